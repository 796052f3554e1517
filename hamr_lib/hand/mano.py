"""Find, read and check the official files of MANO (Romero et al.).

They are licensed and not part of this project. A file that is damaged or of another model is
refused here, since smplx does not check it.
"""

from pathlib import Path

import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.hand.pickles import load_pickle
from hamr_lib.joints import MANO_NAMES, MANO_PARENTS

# The paper's fingertips on MANO's mesh, thumb to little finger. Others use 744, 320, 443, 554, 671
# (smplx) or 745, 317, 444, 556, 673 (manopth): a few millimetres apart.
MANO_TIPS = (734, 333, 443, 555, 678)
NUM_BETAS = 10
_VERTICES, _JOINTS = 778, len(MANO_NAMES)
SHAPES = {
    "v_template": (_VERTICES, 3),
    "shapedirs": (_VERTICES, 3, NUM_BETAS),
    "posedirs": (_VERTICES, 3, 135),
    "J_regressor": (_JOINTS, _VERTICES),
    "kintree_table": (2, _JOINTS),
    "weights": (_VERTICES, _JOINTS),
    "f": (1538, 3),
    "hands_mean": (45,),
    "hands_components": (45, 45),
    "hands_coeffs": (None, 45),  # any number of poses
}
_LARGEST = 1000  # of any number in the file but the wrist's parent


def find_mano(root: Path, side: str) -> Path | None:
    """Return the official file below the data folder `root`, or None where there is none."""
    for place in (".", "models", "mano_v1_2/models"):
        path = root / "raw" / "mano" / place / _file(side)
        if path.is_file():
            return path
    return None


def load_mano(root: Path, side: str) -> dict[str, np.ndarray]:
    """Read and check the official file of one side.

    A known flaw of the left file is undone: its shape components are not mirrored in x. The right
    file tells: sides that agree in x where they should be opposite are flawed.

    Returns:
        {name: array} as smplx takes it; sparse matrices are dense.

    Raises:
        HamrError: for a missing or damaged file, or arrays that are not MANO's.
    """
    paths = {each: find_mano(root, each) for each in ("right", "left")}
    for each in ("right", side):
        if paths[each] is None:
            why = "" if each == side else " (MANO's left hand is checked against it)"
            raise HamrError(
                f"{root / 'raw/mano' / _file(each)} is missing{why}: register at "
                "https://mano.is.tue.mpg.de, download 'Models & Code' and put the file there"
            )
    data = _read(paths[side])
    if side == "left":
        ours, theirs = data["shapedirs"][:, 0], _read(paths["right"])["shapedirs"][:, 0]
        if np.abs(ours - theirs).sum() < np.abs(ours + theirs).sum():
            data["shapedirs"] = data["shapedirs"] * np.array([-1.0, 1.0, 1.0])[:, None]
    return data


def _file(side):
    return f"MANO_{side.upper()}.pkl"


def _read(path):
    stored = load_pickle(path)
    if not isinstance(stored, dict):
        raise HamrError(f"{path}: expected a dictionary of arrays, got {type(stored).__name__}")
    missing = [key for key in SHAPES if key not in stored]
    if missing:
        found = ", ".join(key for key in stored if isinstance(key, str))[:200]
        raise HamrError(f"{path}: expected {missing[0]!r} in it, found {found}")
    data = {key: _array(path, key, stored[key], shape) for key, shape in SHAPES.items()}
    _check(path, data)
    return data


def _array(path, key, value, shape):
    """Return one array, dense; refuse other shapes and numbers that are not finite."""
    if len(getattr(value, "shape", ())) == len(shape):  # what is huge is not made dense
        shape = tuple(
            found if wanted is None else wanted
            for found, wanted in zip(value.shape, shape, strict=True)
        )
        if value.shape == shape and 0 not in shape and value.dtype.kind in "fiu":
            value = value.toarray() if hasattr(value, "toarray") else value
            if np.isfinite(value).all():
                return value
    raise HamrError(
        f"{path}: {key}: expected finite numbers of shape {shape}, got "
        f"{getattr(value, 'dtype', type(value).__name__)} of shape {getattr(value, 'shape', None)}"
    )


def _check(path, data):
    """Refuse numbers that cannot be a hand's, with the first of them."""
    faces, tree, parents = data["f"], data["kintree_table"], MANO_PARENTS[1:]
    weights, regressor = data["weights"], data["J_regressor"]
    whole = {"f": faces, "kintree_table": tree}
    for key, holds, expected in (
        *((key, array.dtype.kind in "iu", "whole numbers") for key, array in whole.items()),
        ("f", faces.min() >= 0 and faces.max() < _VERTICES, f"vertices below {_VERTICES}"),
        ("kintree_table", (tree[0, 1:] == parents).all(), f"MANO's parents {parents}"),
        ("kintree_table", tree[1].tolist() == list(range(_JOINTS)), "joints 0 to 15 in order"),
        ("weights", _are_means(weights), "parts of each vertex that sum up to 1"),
        ("J_regressor", _are_means(regressor), "parts of each joint that sum up to 1"),
        *(
            (key, np.abs(array).max() <= _LARGEST, f"numbers up to {_LARGEST}")
            for key, array in data.items()
            if key not in whole
        ),
    ):
        if not holds:
            raise HamrError(f"{path}: {key}: expected {expected}")


def _are_means(rows):
    """Tell whether each row holds the weights of a mean; a fit may be slightly below zero."""
    return rows.min() > -0.1 and np.abs(rows.sum(1) - 1).max() < 0.01
