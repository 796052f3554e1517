"""The protocols of joints, against values computed by hand and against theory."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hamr_lib.data import stb
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, protocols
from hamr_lib.joints import NAMES, TIPS, WRIST


def hands(count=6, seed=0):
    """Random joints (metres) and full validity."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.05, (count, 21, 3)), np.ones((count, 21), bool)


def placed(**millimetres):
    """(1, 21, 3) metres: every joint at the wrist's place but those given."""
    points = np.zeros((1, 21, 3))
    for name, place in millimetres.items():
        points[0, NAMES.index(name.replace("_", " "))] = np.array(place) / 1000
    return points


# A flat hand, and a prediction of twice its size whose middle proximal phalanx is right.
LABEL = placed(middle_MCP=(0, 80, 0), middle_PIP=(0, 120, 0), ring_MCP=(20, 80, 0),
               index_tip=(30, 160, 0))  # fmt: skip
GUESS = 0.3 + placed(middle_MCP=(0, 160, 0), middle_PIP=(0, 200, 0), ring_MCP=(40, 160, 0),
                     index_tip=(60, 320, 20))  # fmt: skip
RING = stb.ROOT_SHIFTS["ring"]
# Errors in mm of the wrist, middle MCP, middle PIP, ring MCP, index tip, and thumb MCP (which lies
# at the wrist), computed by hand.
GOLDEN = {
    "our reading": (protocols.PAPER, protocols.PALM,
                    [0, 80, 80, np.hypot(20, 80), np.sqrt(30**2 + 160**2 + 20**2), 0]),
    # Palms at (0, 40) and (0, 80); the phalanx is right, so that nothing is scaled.
    "hand3d": (protocols.HAND3D, protocols.PALM,
               [0, 40, 40, np.hypot(20, 40), np.sqrt(30**2 + 120**2 + 20**2), 40]),
    # On STB the palms are midway to the ring MCP: (10, 40) and (20, 80).
    "hand3d, STB": (protocols.HAND3D, RING, [
        0, np.hypot(10, 40), np.hypot(10, 40), np.hypot(10, 40),
        np.sqrt(20**2 + 120**2 + 20**2), np.hypot(10, 40)]),
    # Halved about the middle MCP, for the bone from the wrist is 160 instead of 80.
    "bihand": (protocols.BIHAND, protocols.PALM, [0, 0, 20, 0, 10, 0]),
    "Minimal-Hand": (protocols.MINIMAL_HAND, protocols.PALM, [0, 0, 20, 0, 10, 0]),
}  # fmt: skip


@pytest.mark.parametrize("which", list(GOLDEN))
def test_golden_values(which):
    protocol, palm, expected = GOLDEN[which]
    valid = np.ones((1, 21), bool)
    errors = protocols.joint_errors_3d(GUESS, LABEL, valid, protocol, valid, palm)[0]
    names = ("wrist", "middle MCP", "middle PIP", "ring MCP", "index tip", "thumb MCP")
    np.testing.assert_allclose([errors[NAMES.index(n)] for n in names], expected, atol=1e-9)


def test_the_palm_of_stb_is_the_one_in_its_files():
    """Under each rule for its wrist, the palm that replaces it is where the file has it."""
    palms, valid = hands()
    for rule, (joint, times) in stb.ROOT_SHIFTS.items():
        wrists = stb.palm_to_wrist(palms, rule)
        moved = protocols.joint_errors_3d(
            wrists, 0 * wrists, valid, protocols.Protocol(root="palm"), palm=(joint, times)
        )
        expected = 1000 * np.linalg.norm(palms - palms[:, :1], axis=-1)
        np.testing.assert_allclose(moved, expected, atol=1e-9)


def test_visible_joints_only():
    true, valid = hands(3)
    visible = np.ones_like(valid)
    visible[0, [WRIST, 7]] = False
    visible[1, [WRIST, NAMES.index("middle MCP")]] = False
    reading = replace(protocols.PAPER, visible=True)
    errors = protocols.joint_errors_3d(true + 0.01, true, valid, reading, visible)
    np.testing.assert_array_equal(np.isfinite(errors), visible)
    errors = protocols.joint_errors_3d(true, true, valid, protocols.HAND3D, visible)
    # hand3d's palm is visible where the wrist or the middle MCP is.
    assert np.isfinite(errors[:, WRIST]).tolist() == [True, False, True]
    np.testing.assert_array_equal(np.isfinite(errors[:, 1:]), visible[:, 1:])


def test_minimal_hand_s_fingertips():
    """Index and ring tip 40 mm apart along y, predicted 80 mm apart along x: scaled by a half,
    each is 20 mm from the centroid in its own direction. Errors stand in the first two columns."""
    true = placed(ring_tip=(0, 40, 0))
    predicted = placed(ring_tip=(80, 0, 0))
    valid = np.zeros((1, 21), bool)
    valid[0, [NAMES.index("index tip"), NAMES.index("ring tip")]] = True
    protocol = protocols.MINIMAL_HAND_TIPS
    errors = protocols.joint_errors_3d(predicted, true, valid, protocol)[0]
    np.testing.assert_allclose(errors[:2], np.hypot(20, 20))
    assert np.isnan(errors[2:]).all()
    valid[0, NAMES.index("ring tip")] = False  # one tip alone would fit whatever is predicted
    for protocol in (protocols.MINIMAL_HAND_TIPS, protocols.TIPS):
        assert np.isnan(protocols.joint_errors_3d(predicted, true, valid, protocol)).all()


@pytest.mark.parametrize("root", protocols.ROOTS)
def test_a_shift_costs_nothing_and_the_aligned_point_fits(root):
    true, valid = hands()
    protocol = protocols.Protocol(root=root)
    assert protocols.joint_errors_3d(true + [0.3, -1, 2], true, valid, protocol).max() < 1e-9
    predicted = hands(seed=3)[0]
    errors = protocols.joint_errors_3d(predicted, true, valid, protocol)
    if root == "centroid":
        a, b = (p - p.mean(1, keepdims=True) for p in (predicted, true))
        np.testing.assert_allclose(errors, 1000 * np.linalg.norm(a - b, axis=-1))
        return
    joint = protocols.ROOT_JOINTS[root]
    assert errors[:, joint].max() < 1e-9
    protocol = replace(protocol, root_counts=False)
    unscored = protocols.joint_errors_3d(predicted, true, valid, protocol)
    assert np.isnan(unscored[:, joint]).all() and np.isfinite(unscored).sum() == 6 * 20


def test_procrustes_undoes_a_similarity_but_not_a_mirror():
    true, valid = hands()
    valid[:, 15:] = False
    turn = Rotation.random(6, random_state=1).as_matrix()
    predicted = 0.4 * true @ turn + [1, 2, 3]
    protocol = protocols.Protocol(root="centroid", scale="procrustes")
    assert np.nanmax(protocols.joint_errors_3d(predicted, true, valid, protocol)) < 1e-9
    assert np.nanmin(protocols.joint_errors_3d(true * [1, 1, -1], true, valid, protocol)) > 0.1


def test_procrustes_is_the_least_squares_optimum():
    """SciPy's rotation fit, with the scale that is best for it, must agree."""
    true, valid = hands(1)
    predicted = true + hands(1, seed=5)[0] * 0.3
    found = protocols.procrustes(predicted, true, valid)[0]
    p, t = (x[0] - x[0].mean(0) for x in (predicted, true))
    rotation, _ = Rotation.align_vectors(t, p)
    turned = rotation.apply(p)
    expected = turned * (turned * t).sum() / (turned**2).sum() + true[0].mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_unlabelled_joints_are_left_out():
    true, valid = hands()
    predicted = true + 0.01
    valid[:] = False
    valid[:, list(TIPS)] = True
    true[~valid] = np.nan
    assert np.isnan(protocols.joint_errors_3d(predicted, true, valid)).all()  # no wrist to align by
    errors = protocols.joint_errors_3d(predicted, true, valid, protocols.TIPS)
    assert np.isfinite(errors).sum() == 6 * 5 and np.nanmax(errors) < 1e-9
    flat = protocols.joint_errors_2d(np.tile([3.0, 4.0], (6, 21, 1)), np.zeros((6, 21, 2)), valid)
    np.testing.assert_array_equal(flat, np.where(valid, 5.0, np.nan))
    nothing = np.full((3, 21), np.nan)
    assert np.isnan(metrics.joint_mean(nothing)) and np.isnan(metrics.joint_median(nothing))


def test_a_prediction_without_size_still_counts():
    true, valid = hands(2)
    for root, scale in (("wrist", "bone"), ("centroid", "centroid"), ("centroid", "procrustes")):
        protocol = protocols.Protocol(root=root, scale=scale)
        errors = protocols.joint_errors_3d(0 * true, true, valid, protocol)
        reference = true[:, :1] if root == "wrist" else true.mean(1, keepdims=True)
        expected = 1000 * np.linalg.norm(true - reference, axis=-1)
        np.testing.assert_allclose(errors, expected, atol=1e-9)


def test_bad_input_is_told():
    true, valid = hands()
    broken = true.copy()
    broken[4, 7] = np.nan
    for arguments, message in (
        ((true[:, :20], true, valid), r"expected \(N, 21, 3\)"),
        ((broken, true, valid), "image 4: expected finite"),
        ((true, broken, valid), "image 4: expected finite"),
        ((true, true, valid, protocols.HAND3D), "expected flags of visibility"),
    ):
        with pytest.raises(HamrError, match=message):
            protocols.joint_errors_3d(*arguments)
    for wrong in ({"root": "elbow"}, {"scale": "arm"}, {"thresholds": "20-50"}):
        with pytest.raises(HamrError, match=f"Protocol: {list(wrong)[0]}: expected"):
            protocols.Protocol(**wrong)
