"""`recover` scored by its evidence, beside MediaPipe's landmarks."""

import numpy as np
import pytest
from test_photo import photo

from hamr_lib.config import load_settings
from hamr_lib.data.frame import Frame
from hamr_lib.data.photographs import example_photographs
from hamr_lib.evaluation.evidence import MEDIAPIPE, score_frames
from hamr_lib.recovery.detect import find_hands
from hamr_lib.recovery.photo import read_photo
from hamr_lib.recovery.pipeline import EVIDENCE


def test_labels_that_are_mediapipes_own_are_met_by_it_and_nearly_by_a_fit_to_it(tiny_checkpoint):
    """3-D labels are its landmarks, scaled and moved, which the alignments undo."""
    image = read_photo(example_photographs()[0])
    [found] = find_hands(image)
    solid = 1.2 * found.world + [0.1, 0, 0.5]
    frames = [
        Frame(picture, "left", solid.astype(np.float32), found.landmarks.astype(np.float32),
              np.eye(3, dtype=np.float32), None, name)
        for picture, name in ((image, "hand"), (photo(*image.shape[:2]), "noise"))
    ]  # fmt: skip
    table = score_frames(tiny_checkpoint, frames, "drawn", "evaluation", load_settings("smoke"))
    assert set(table.method) == {*EVIDENCE, MEDIAPIPE}
    assert (table.of == 2).all() and (table.n == 1).all()
    value = table.set_index(["method", "metric"]).value
    for metric in ("auc_2d_box", "auc", "auc_procrustes"):
        assert value[MEDIAPIPE, metric] == pytest.approx(1.0, abs=0.03)
        assert value["landmarks", metric] > value["network", metric]


def test_where_nothing_is_seen_there_are_no_rows(tiny_checkpoint):
    joints = np.random.default_rng(0).uniform(50, 150, (21, 3)).astype(np.float32)
    noise = Frame(photo(), "left", joints, joints[:, :2], np.eye(3), None, "noise")
    table = score_frames(tiny_checkpoint, [noise], "drawn", "evaluation", load_settings("smoke"))
    assert len(table) == 0 and "of" in table
