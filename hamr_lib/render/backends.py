"""The two libraries that draw, either of which may be missing."""

import functools
import importlib
import warnings

import numpy as np

from hamr_lib.errors import HamrError

INSTALL = {
    "deodr": "pip install deodr==0.2.3",
    "pytorch3d": "pip install easypytorch3d (Linux wheels), or see PyTorch3D's INSTALL.md",
}


@functools.cache
def installed(name: str) -> bool:
    """Tell whether a backend can be imported."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError):  # OSError: a wheel whose shared libraries are missing
        return False
    return True


def choose(backend: str, cuda: bool) -> str:
    """Choose the backend that draws, by name.

    "auto" means PyTorch3D for CUDA tensors, which stay on their device, and DEODR for others; if
    that one is missing, the other draws, and a message says so once.

    Raises:
        HamrError: for an unknown name, or a backend that is not installed and how to install it.
    """
    if backend not in ("auto", *INSTALL):
        raise HamrError(f"backend is {backend!r}, expected one of auto, {', '.join(INSTALL)}")
    if backend != "auto":
        if not installed(backend):
            raise HamrError(f"backend {backend!r} is not installed: {INSTALL[backend]}")
        return backend
    wanted, other = ("pytorch3d", "deodr") if cuda else ("deodr", "pytorch3d")
    if installed(wanted):
        return wanted
    if not installed(other):
        ways = "; or ".join(INSTALL.values())
        raise HamrError(f"neither DEODR nor PyTorch3D is installed, expected one of them: {ways}")
    _say_once(wanted, other)
    return other


@functools.cache
def _say_once(wanted, other):
    warnings.warn(f"{wanted} is not installed, {other} draws silhouettes instead", stacklevel=4)


def deodr_scene(
    points: np.ndarray,
    depths: np.ndarray,
    faces: np.ndarray,
    colours: np.ndarray,
    edges: np.ndarray,
    shape: tuple[int, int],
    **options,
):
    """Make DEODR's scene of plain triangles on black.

    Args:
        points: (V, 2) pixels. depths: (V,) positive. colours: (V, C). All float64.
        faces: (F, 3) uint32. edges: (F, 3) bool, which edges are outlines.
        shape: (height, width) pixels.
        options: DEODR's own.
    """
    scene, _ = load_deodr()
    none, channels = np.zeros(len(faces), bool), colours.shape[1]
    return scene(
        faces=faces, ij=points, depths=depths, colors=colours, edgeflags=edges,
        height=shape[0], width=shape[1], nb_colors=channels, background_color=np.zeros(channels),
        textured=none, texture=np.zeros((0, 0, channels)), faces_uv=np.zeros_like(faces),
        uv=np.zeros((1, 2)), shaded=none, shade=np.zeros(1), **options,
    )  # fmt: skip


def load_deodr():
    """Import DEODR's scene class and its compiled module."""
    if not installed("deodr"):
        raise HamrError(
            f"DEODR is not installed, and pictures are drawn with it: {INSTALL['deodr']}"
        )
    from deodr.differentiable_renderer import Scene2DBase

    return Scene2DBase, importlib.import_module("deodr.differentiable_renderer_cython")
