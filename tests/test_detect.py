"""Finding hands with MediaPipe, on the photographs of a left hand that DEODR carries."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from test_photo import photo

from hamr_lib.data.photographs import example_photographs
from hamr_lib.recovery.detect import Detection, Detector, distinct, find_hands, find_in_box, overlap
from hamr_lib.recovery.photo import read_photo


@pytest.fixture(scope="module")
def left():
    return read_photo(example_photographs()[0])


def test_a_hand_its_side_and_its_mirror_image(left):
    [found] = find_hands(left)
    assert found.side == "left" and found.score > 0.9
    assert found.landmarks.shape == (21, 2) and found.world.shape == (21, 3)
    assert found.box == (*found.landmarks.min(0), *found.landmarks.max(0))
    assert find_hands(photo()) == find_hands(np.zeros((1, 1, 3), np.uint8)) == []
    assert 0.1 < np.ptp(found.world, axis=0).max() < 0.25  # metres
    [mirrored] = find_hands(np.ascontiguousarray(left[:, ::-1]))
    assert mirrored.side == "right"
    back = [left.shape[1] - 1, 0] + mirrored.landmarks * [-1, 1]
    size = np.ptp(found.landmarks, axis=0).max()
    assert np.abs(back - found.landmarks).max() < 0.1 * size


def test_landmarks_count_pixels_of_the_photo_however_large(left):
    """A photo k times as large has pixel p at k p + (k - 1) / 2."""
    [found] = find_hands(left)
    k = 12
    large = cv2.resize(left, None, fx=k, fy=k, interpolation=cv2.INTER_LINEAR)
    assert max(large.shape) > 2000
    [same] = find_hands(large)
    off = (same.landmarks - (k - 1) / 2) / k - found.landmarks
    assert np.abs(off).max() < 0.04 * np.ptp(found.landmarks, axis=0).max()


def test_in_a_box_a_hand_is_looked_for_from_near(left):
    [found] = find_hands(left)
    framed = cv2.copyMakeBorder(left, 900, 1400, 1500, 800, cv2.BORDER_CONSTANT)
    box = tuple(np.add(found.box, (1500, 900, 1500, 900)))
    near = find_in_box(framed, box)
    assert overlap(near.box, box) > 0.8 and near.side == "left"
    assert find_in_box(framed, (100, 100, 300, 300)) is None


def test_a_tracked_hand_is_found_in_each_frame(left):
    detector = Detector(track=True)
    for shift in range(0, 20, 5):
        [found] = detector(np.ascontiguousarray(np.roll(left, shift, 1)))
        assert found.side == "left"


def test_detections_that_overlap_are_one():
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0 == overlap((1, 1, 1, 1), (1, 1, 1, 1))
    detections = [
        Detection((0, 0, 10, 10), "left", 0.7),
        Detection((1, 1, 11, 11), "right", 0.9),
        Detection((8, 8, 20, 20), "left", 0.8),
    ]
    assert distinct(detections) == detections[1:]


def test_only_what_finds_hands_is_imported_and_it_says_nothing():
    code = (
        "import sys, numpy, hamr_lib.recovery.pipeline\n"
        "from hamr_lib.recovery.detect import find_hands\n"
        "assert 'mediapipe' not in sys.modules\n"
        "find_hands(numpy.zeros((9, 9, 3), numpy.uint8))\n"
        "assert not {'matplotlib', 'trimesh', 'k3d'} & set(sys.modules)\n"
        "import mediapipe  # whole for others\n"
        "mediapipe.solutions.hands.Hands, mediapipe.Image\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == done.stdout == ""
