"""Hands in photographs: BSDS500's, whose joints were marked by eye.

The Berkeley Segmentation Data Set 500 (research and education use) can be had by anyone and is not
shipped; `photographs.csv` holds our labels: the joints that can be seen, in pixels, of hands that
are large and clear enough. They were placed on enlarged crops, we think to a twentieth of a hand's
box, and there is no depth. Nothing is trained on them. Photographs given as `BACKGROUNDS` stand
behind rendered hands, three quarters of them in training; what they show is no label there.

To try things on there are also the photographs of DEODR's examples, which come with its package.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pandas as pd

from hamr_lib.data.frame import Frame, Frames, read_image
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT
from hamr_lib.joints import NAMES, NUM_JOINTS

LABELS = Path(__file__).with_name("photographs.csv")
TITLE = "BSDS500 hands"
EXAMPLES = (
    "hand_multiview/IMG-1842.jpg",
    "hand_multiview/IMG-1843.jpg",
    "hand_multiview/IMG-1844.jpg",
    "hand.png",
)
SIZES = ((321, 481), (481, 321))  # (height, width) pixels of every photograph of the set


def find_photographs(folder: Path = ROOT / "data" / "raw" / "bsds500") -> dict[str, Path]:
    """The photographs with labelled hands, by name, wherever below `folder` or BACKGROUNDS.

    Returns:
        {name: path}, empty where not one is there.

    Raises:
        HamrError: where some are there and one is missing.
    """
    wanted = set(pd.read_csv(LABELS, dtype={"photograph": str}).photograph)
    for place in (folder, os.environ.get("BACKGROUNDS")):
        if not place:
            continue
        found = {path.stem: path for path in Path(place).rglob("*.jpg") if path.stem in wanted}
        if found and wanted - found.keys():
            missing = sorted(wanted - found.keys())[0]
            raise HamrError(
                f"{place}: expected all photographs of BSDS500, {missing}.jpg is missing"
            )
        if found:
            return found
    return {}


def example_photographs() -> tuple[Path, ...]:
    """The photographs of a left hand that DEODR's package (BSD) carries, as a tuple of paths.

    The first three are one open hand from three sides; the last is another, cut off at the wrist.
    """
    folder = Path(importlib.util.find_spec("deodr").origin).parent / "data"
    return tuple(folder / name for name in EXAMPLES)


class Photographs(Frames):
    """The labelled hands as frames: 2-D labels of what is seen, and nothing else.

    Args:
        paths: of `find_photographs`.
    """

    def __init__(self, paths):
        self.paths = paths
        labels = pd.read_csv(LABELS, dtype={"photograph": str})
        self.hands = list(labels.groupby(["photograph", "hand"], sort=False))
        super().__init__(next(iter(paths.values())).parent)

    def __len__(self):
        return len(self.hands)

    def frame(self, index: int) -> Frame:
        """The `Frame` of one hand."""
        (photograph, hand), rows = self.hands[index]
        image = read_image(self.paths[photograph])
        if image.shape[:2] not in SIZES:
            raise HamrError(
                f"{self.paths[photograph]} has {image.shape[1]} x {image.shape[0]} pixels: "
                "expected BSDS500's own 481 x 321"
            )
        joints = np.full((NUM_JOINTS, 2), np.nan, np.float32)
        joints[[NAMES.index(name) for name in rows.joint]] = rows[["x", "y"]]
        nothing = np.full((NUM_JOINTS, 3), np.nan, np.float32)
        return Frame(
            image, rows.side.iloc[0], nothing, joints, np.eye(3, dtype=np.float32), None,
            f"{photograph}{hand}",
        )  # fmt: skip
