import numpy as np
import pytest
from tiny import rest_joints

from hamr_lib.data.crops import Crops
from hamr_lib.data.statistics import statistics


def crops_of(joints, masks=True, has_root=True):
    """Hands (n, 21, 3) half a metre before the camera; their pixels are 200, all else 10."""
    count, size = len(joints), 16
    pixels = np.full((count, 4, size, size), 10, np.uint8)
    pixels[:, :3, 4:8], pixels[:, 3] = 200, 0
    pixels[:, 3, 4:8] = 255
    labels = {
        "joints_3d": joints.astype(np.float32),
        "valid_3d": np.ones((count, 21), bool),
        "root": np.tile(np.float32([0, 0, 0.5]), (count, 1)),
        "has_root": np.full(count, has_root),
        "has_mask": np.full(count, masks),
        "side": np.full(count, 90, np.float32),
    }
    rows = np.stack([np.zeros(count, int), np.arange(count)], axis=1)
    return Crops([pixels], rows, labels, [str(i) for i in range(count)], "", size)


def test_a_flat_right_hand_from_behind_from_the_front_and_turned():
    flat = rest_joints()  # fingers up, thumb to the left: its back is seen
    front = flat * [-1, 1, -1]  # half a turn about the vertical
    sideways = flat[:, [1, 0, 2]] * [-1, 1, 1]  # a quarter turn in the image, clockwise
    found = statistics(crops_of(np.stack([flat, front, sideways])))
    for name, expected in {
        "palm's turn from the camera (degrees)": [180, 0, 180],
        "direction of the hand in the image (degrees)": [0, 0, 90],
        "how straight the fingers are (1: stretched)": 1,
        "wrist to middle knuckle (mm)": 80,
        "distance of the hand (m)": 0.5,
        "lightness of the hand (0-255)": 200,
    }.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_bent_finger_is_less_straight():
    bent = rest_joints()
    bent[11:13] = bent[10] + np.array([[0, 0, 0.025], [0, 0, 0.045]])  # 30 mm along, 45 mm across
    straight = np.hypot(30, 45) / 75
    found = statistics(crops_of(bent[None]))["how straight the fingers are (1: stretched)"]
    assert found == pytest.approx([(3 + straight) / 4], rel=1e-4)


def test_what_is_not_labelled_is_left_out():
    found = statistics(crops_of(rest_joints()[None], masks=False, has_root=False))
    whole = [name for name, values in found.items() if len(values)]
    assert whole == ["side of the crop in the photo (px)"]
