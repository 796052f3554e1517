"""Find, read and check the official files of MANO (Romero et al.), which are licensed.

A file that is damaged or of another model is refused here, since smplx does not check it.
"""

from pathlib import Path

import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.files import numbers
from hamr_lib.hand.pickles import load_pickle
from hamr_lib.joints import MANO_PARENTS

# The paper's fingertips on MANO's mesh, thumb to little finger; smplx's and manopth's are a few
# millimetres apart.
MANO_TIPS = (734, 333, 443, 555, 678)
NUM_BETAS = 10
# Mirrored at the plane x = 0, an axis-angle keeps its x and negates the rest.
MIRROR = np.array([1.0, -1.0, -1.0])
SHAPES = {
    "v_template": (778, 3),
    "shapedirs": (778, 3, NUM_BETAS),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "kintree_table": (2, 16),
    "weights": (778, 16),
    "f": (1538, 3),
    "hands_mean": (45,),
    "hands_components": (45, 45),
    "hands_coeffs": (None, 45),  # any number of poses
}


def find_mano(root: Path, side: str) -> Path | None:
    """Return the official file below the data folder `root`, or None where there is none."""
    places = (root / "raw" / "mano" / place for place in (".", "models", "mano_v1_2/models"))
    paths = (place / f"MANO_{side.upper()}.pkl" for place in places)
    return next((path for path in paths if path.is_file()), None)


def load_mano(root: Path, side: str) -> dict[str, np.ndarray]:
    """Read and check the official file of one side: {name: array} of `SHAPES`, as smplx takes it.

    A known flaw of the left file is undone: its shape components are not mirrored in x. The right
    file tells: sides that agree in x where they should be opposite are flawed.

    Raises:
        HamrError: for a missing or damaged file, or arrays that are not MANO's.
    """
    data = {}
    for each in dict.fromkeys(("right", side)):
        path = find_mano(root, each)
        if path is None:
            raise HamrError(
                f"{root / 'raw/mano'}/MANO_{each.upper()}.pkl is missing (the {side} hand needs "
                "it): register at https://mano.is.tue.mpg.de, download 'Models & Code' and put "
                "the file there"
            )
        data[each] = _read(path)
    if side == "left":
        ours, theirs = (data[each]["shapedirs"][:, 0] for each in ("left", "right"))
        if np.abs(ours - theirs).sum() < np.abs(ours + theirs).sum():
            data["left"]["shapedirs"] = data["left"]["shapedirs"] * [[-1.0], [1.0], [1.0]]
    return data[side]


def _read(path):
    """Read the arrays of a file; refuse numbers that cannot be a hand's."""
    stored, data = load_pickle(path), {}
    if not isinstance(stored, dict):
        raise HamrError(f"{path}: expected a dictionary of arrays, got {type(stored).__name__}")
    for key, shape in SHAPES.items():
        # The wrist's parent is written as 2^32 - 1.
        kinds, largest = ("iu", 2**32) if key in ("f", "kintree_table") else ("iuf", 1000)
        data[key] = numbers(f"{path}: {key}", stored.get(key), shape, kinds, largest)
    faces, tree = data["f"], data["kintree_table"]
    for key, holds, expected in (
        ("f", faces.min() >= 0 and faces.max() < 778, "vertices below 778"),
        ("kintree_table", (tree[0, 1:] == MANO_PARENTS[1:]).all(), "MANO's parents"),
        ("kintree_table", (tree[1] == range(16)).all(), "joints 0 to 15 in order"),
        ("weights", _are_means(data["weights"]), "parts of each vertex that sum up to 1"),
        ("J_regressor", _are_means(data["J_regressor"]), "parts of each joint that sum up to 1"),
    ):
        if not holds:
            raise HamrError(f"{path}: {key}: expected {expected}")
    return data


def _are_means(rows):
    """Tell whether each row holds the weights of a mean; a fit may be slightly below zero."""
    return rows.min() > -0.1 and np.abs(rows.sum(1) - 1).max() < 0.01
