"""Hands in photographs: BSDS500's, whose joints were marked by eye.

The Berkeley Segmentation Data Set 500 (research and education use) is not shipped;
`photographs.csv` holds our labels: the joints that can be seen, in pixels, of hands that are large
and clear enough. They were placed on enlarged crops, we think to a twentieth of a hand's box.
There is no depth. Nothing is trained on these labels. Where `BACKGROUNDS` names the set, its
photographs stand behind rendered hands, in training too.
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
SIZES = ((321, 481), (481, 321))  # (height, width) pixels of every photograph of the set


def _labels():
    return pd.read_csv(LABELS, dtype={"photograph": str})


def find_photographs(folder: Path = ROOT / "data" / "raw" / "bsds500") -> dict[str, Path]:
    """Find the photographs with labelled hands, wherever below `folder` or BACKGROUNDS.

    Returns:
        {name: path}, empty where not one is there; a `HamrError` where one of them is missing.
    """
    wanted = set(_labels().photograph)
    for place in (folder, os.environ.get("BACKGROUNDS")):
        paths = Path(place).rglob("*.jpg") if place else ()
        found = {path.stem: path for path in paths if path.stem in wanted}
        if missing := sorted(wanted - found.keys()) if found else ():
            raise HamrError(f"{place}: expected all of BSDS500, {missing[0]}.jpg is missing")
        if found:
            return found
    return {}


def example_photographs() -> tuple[Path, ...]:
    """Return the paths of the photographs of a left hand that DEODR's package (BSD) carries.

    The first three are one open hand from three sides; the last is another, cut off at the wrist.
    """
    folder = Path(importlib.util.find_spec("deodr").origin).parent / "data"
    views = (folder / "hand_multiview" / f"IMG-{number}.jpg" for number in (1842, 1843, 1844))
    return (*views, folder / "hand.png")


class Photographs(Frames):
    """The labelled hands of `find_photographs` as frames: 2-D labels of what is seen, no more."""

    def __init__(self, found: dict[str, Path]):
        self.hands = list(_labels().groupby(["photograph", "hand"], sort=False))
        paths = [found[name] for (name, _), _ in self.hands]
        keys = [f"{name}{hand}" for (name, hand), _ in self.hands]
        super().__init__(paths[0].parent, paths, keys)

    def frame(self, index: int) -> Frame:
        """Read one hand."""
        image, rows = read_image(self.paths[index]), self.hands[index][1]
        if image.shape[:2] not in SIZES:
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise HamrError(f"{self.paths[index]} has {size}: expected BSDS500's own 481 x 321")
        joints = np.full((NUM_JOINTS, 2), np.nan, np.float32)
        joints[[NAMES.index(name) for name in rows.joint]] = rows[["x", "y"]]
        nothing, K = np.full((NUM_JOINTS, 3), np.nan, np.float32), np.eye(3, dtype=np.float32)
        return Frame(image, rows.side.iloc[0], nothing, joints, K, None, self.keys[index])
