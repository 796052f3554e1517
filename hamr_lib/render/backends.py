"""The two libraries that draw, either of which may be missing."""

import functools
import importlib
import warnings

import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.imports import in_place_of
from hamr_lib.render.checks import check

INSTALL = {
    "deodr": "pip install deodr==0.2.3",
    "pytorch3d": "pip install easypytorch3d (Linux wheels), or see PyTorch3D's INSTALL.md",
}


@functools.cache
def installed(name: str) -> bool:
    """Tell whether a backend can be imported."""
    try:
        with in_place_of("trimesh.base", Trimesh=object):  # which DEODR imports for a type alone
            importlib.import_module(name)
    except (ImportError, OSError):  # OSError: a wheel whose shared libraries are missing
        return False
    return True


@functools.cache
def choose(backend: str, cuda: bool) -> str:
    """Choose the backend that draws: "auto" or a name.

    "auto" is PyTorch3D for CUDA tensors, which stay on their device, and DEODR for others. If that
    one is missing, the other draws, and a warning says so once.

    Raises:
        HamrError: for an unknown name, or a backend that is not installed and how to install it.
    """
    check(backend in ("auto", *INSTALL), "backend", repr(backend), "auto, deodr or pytorch3d")
    wanted = [backend]
    if backend == "auto":
        wanted = ["pytorch3d", "deodr"] if cuda else ["deodr", "pytorch3d"]
    found = [name for name in wanted if installed(name)]
    if not found:
        ways = "; or ".join(INSTALL[name] for name in wanted)
        raise HamrError(f"{' and '.join(wanted)} not installed: {ways}")
    if found[0] != wanted[0]:
        warnings.warn(f"{wanted[0]} is not installed, {found[0]} draws instead", stacklevel=3)
    return found[0]


def deodr_scene(ij, depths, faces, colors, edgeflags, shape: tuple[int, int], **options):
    """Make DEODR's `Scene2D` of plain triangles on black.

    Args:
        ij: (V, 2) pixels. depths: (V,) positive. colors: (V, C). All float64.
        faces: (F, 3) uint32. edgeflags: (F, 3) bool, which edges are outlines.
        shape: (height, width) pixels.
        options: DEODR's own.
    """
    choose("deodr", cuda=False)
    from deodr.differentiable_renderer import Scene2D

    none, channels = np.zeros(len(faces), bool), colors.shape[1]
    return Scene2D(
        faces=faces, ij=ij, depths=depths, colors=colors, edgeflags=edgeflags, height=shape[0],
        width=shape[1], nb_colors=channels, background_color=np.zeros(channels), textured=none,
        texture=np.zeros((0, 0, channels)), faces_uv=np.zeros_like(faces), uv=np.zeros((1, 2)),
        shaded=none, shade=np.zeros(len(ij)), **options,
    )  # fmt: skip
