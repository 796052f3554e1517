"""What is counted of detections in photographs."""

import pandas as pd
import pytest

from hamr_lib.data.photographs import example_photographs
from hamr_lib.errors import HamrError
from hamr_lib.recovery.pipeline import recover
from hamr_lib.report import finder

BOXES = {"a": (0, 0, 40, 40), "b": (50, 0, 90, 40), "c": (0, 50, 40, 90)}


def test_detections_are_counted_by_the_hands_that_they_show():
    corners = [("1", "h", "left", x, y) for x, y in ((0, 0), (40, 30))]
    corners += [("1", "k", "right", x, y) for x, y in ((50, 30), (90, 70))]  # touches box b
    corners += [("2", "h", "left", x, y) for x, y in ((0, 0), (40, 40))]
    labels = pd.DataFrame(corners, columns=["photograph", "hand", "side", "x", "y"])
    judged = pd.DataFrame([("1", *BOXES["a"], 1), ("1", *BOXES["b"], 1), ("2", *BOXES["c"], 0)],
                          columns=["photograph", *finder.BOX, "hand"])  # fmt: skip
    found = pd.DataFrame(
        [(name, *BOXES[box], "left", score, 1 - score) for name, box, score in (
            ("1", "a", 0.9), ("1", "b", 0.7), ("2", "c", 0.8), ("3", "a", 0.9))],
        columns=finder.COLUMNS,
    )  # fmt: skip
    counts = finder.summary(found, labels, judged)["count"].tolist()
    # Of 3 hands 2 are detected, 1 of them well and 1 with its side. Of 4 detections 2 are of hands,
    # 1 is not, and 1 is not judged.
    assert counts == [3, 2, 1, 1, 4, 2, 1, 1, 1, 1]


def test_what_the_command_wrote_is_read(tiny_checkpoint, tmp_path):
    [hand] = recover(example_photographs()[0], checkpoint=tiny_checkpoint)
    for name in ("135037", "135037_hand2"):
        hand.save(tmp_path, name, html=False)
    table = finder.read_found(tmp_path)
    assert table.photograph.tolist() == ["135037"] * 2 and set(table.side) == {"left"}
    assert table.confidence[0] == pytest.approx(hand.confidence.mean())


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(HamrError, match="expected BSDS500, .*jpg is missing"):
        finder.main(tmp_path, tmp_path / "out")
