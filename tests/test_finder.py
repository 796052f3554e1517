"""What is counted of detections in photographs."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_photo import photo

from hamr_lib.data.photographs import example_photographs
from hamr_lib.errors import HamrError
from hamr_lib.report import finder

BOXES = {"a": (0, 0, 40, 40), "b": (50, 0, 90, 40), "c": (0, 50, 40, 90)}


def detections(*rows):
    """A table of detections (photograph, name of a box, side, score)."""
    return pd.DataFrame(
        [(name, *BOXES[box], side, score, 1 - score) for name, box, side, score in rows],
        columns=finder.COLUMNS,
    )


def test_detections_are_counted_by_the_hands_that_they_show():
    corners = [("1", "h", "left", x, y) for x, y in ((0, 0), (40, 30))]
    corners += [("1", "k", "right", x, y) for x, y in ((50, 30), (90, 70))]  # touches box b
    corners += [("2", "h", "left", x, y) for x, y in ((0, 0), (40, 40))]
    labels = pd.DataFrame(corners, columns=["photograph", "hand", "side", "x", "y"])
    judged = pd.DataFrame([("1", *BOXES["a"], 1), ("1", *BOXES["b"], 1), ("2", *BOXES["c"], 0)],
                          columns=["photograph", *finder.BOX, "hand"])  # fmt: skip
    found = detections(
        ("1", "a", "left", 0.9), ("1", "b", "left", 0.7), ("2", "c", "left", 0.8),
        ("3", "a", "left", 0.9),
    )  # fmt: skip
    counts = finder.summary(found, labels, judged)["count"].tolist()
    # Of 3 hands 2 are detected, 1 of them well and 1 with its side. Of 4 detections 2 are of hands,
    # 1 is not, and 1 is not judged.
    assert counts == [3, 2, 1, 1, 4, 2, 1, 1, 1, 1]


def test_detections_are_listed_and_pictured(tiny_checkpoint, tmp_path):
    Image.fromarray(photo()).save(tmp_path / "noise.png")
    paths = [example_photographs()[0], tmp_path / "noise.png"]
    table, [picture] = finder.detect_all(paths, tiny_checkpoint)
    assert table.photograph.tolist() == [paths[0].stem] and table.side.tolist() == ["left"]
    assert picture.shape == (200, 200, 3) and np.ptp(picture) > 100


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(HamrError, match="expected BSDS500, .*jpg is missing"):
        finder.main(tmp_path, tmp_path / "out")
