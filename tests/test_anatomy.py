import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hamr_lib.errors import HamrError
from hamr_lib.hand import anatomy, sampling
from hamr_lib.joints import FINGERS, MANO_NAMES


def angles(**degrees):
    """All zero but for the named ones, e.g. index_PIP_flexion=90."""
    pose = np.zeros(len(anatomy.ANGLES))
    for name, value in degrees.items():
        pose[anatomy.ANGLES.index(name.replace("_", " "))] = np.radians(value)
    return pose


def joints(pose):
    """(5, 4, 3) joints and tips in the palm's axes (thumb side, along, palmar).

    An independent way: axis-angle numbers chained as MANO chains them, bone by bone.
    """
    hand = anatomy.skeleton()
    vectors = dict(zip(MANO_NAMES[1:], anatomy.angles_to_axis_angle(pose), strict=True))
    out = np.empty((5, 4, 3))
    for f, finger in enumerate(FINGERS):
        names = [name for name in MANO_NAMES if name.startswith(finger)]
        turn, out[f, 0] = np.eye(3), hand.heads[f, 0]
        for k, name in enumerate(names):
            turn = turn @ Rotation.from_rotvec(vectors[name]).as_matrix()
            out[f, k + 1] = out[f, k] + turn @ (hand.heads[f, k + 1] - hand.heads[f, k])
    return out @ hand.palm


def between(a, b):
    """Degrees between vectors."""
    cos = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.degrees(np.arccos(np.clip(cos, -1, 1)))


class TestAngles:
    def test_zero_is_a_flat_hand(self):
        bones = np.diff(joints(angles()), axis=1)
        # The flesh is straight. The line from base to next joint may lie a little askew in it, as
        # labelled knuckles do; that of a thumb runs through its ball.
        assert between(bones[:, 1:], np.array([0, 1, 0])).max() < 12
        assert between(bones[1:, 0], np.array([0, 1, 0])).max() < 12

    @pytest.mark.parametrize("finger", FINGERS[1:])
    @pytest.mark.parametrize("joint", [0, 1, 2])
    def test_flexion_bends_by_its_angle_towards_the_palm(self, finger, joint):
        name = ("MCP", "PIP", "DIP")[joint]
        f = FINGERS.index(finger)
        bent = joints(angles(**{f"{finger}_{name}_flexion": 50}))[f]
        flat = joints(angles())[f]
        bones = np.diff(bent, axis=0)
        assert between(bones[joint], np.diff(flat, axis=0)[joint]) == pytest.approx(50, abs=1)
        assert bent[3, 2] > flat[3, 2] + 0.01  # the tip comes out on the palm's side
        np.testing.assert_allclose(bent[: joint + 1], flat[: joint + 1], atol=1e-12)

    def test_thumb_is_placed_like_a_direction_on_a_globe(self):
        thumb = joints(angles(thumb_CMC_radial=40, thumb_CMC_palmar=30, thumb_CMC_twist=25))[0]
        bone = thumb[2] - thumb[1]  # in line with the base's flesh while the MCP is straight
        azimuth, elevation = np.arctan2(bone[0], bone[1]), np.arcsin(bone[2] / np.linalg.norm(bone))
        np.testing.assert_allclose(np.degrees([azimuth, elevation]), [40, 30], atol=0.6)
        # Flexing the last joint moves the tip the way the pad faces: more palmar when twisted.
        for twist, low, high in ((0, -0.003, 0.003), (45, 0.01, 1)):
            pose = dict(thumb_CMC_radial=45, thumb_CMC_twist=twist)
            straight, bent = (joints(angles(**pose, thumb_IP_flexion=f))[0, 3] for f in (0, 60))
            assert low < (bent - straight)[2] < high

    def test_spread_parts_the_fingers(self):
        flat, spread = joints(angles()), {f"{f}_MCP_spread": 10 for f in FINGERS[1:]}
        index, middle, ring, little = (joints(angles(**spread)) - flat)[1:, 3, 0]
        assert index > 0.01 and middle > 0.01  # the thumb's side is positive
        assert ring < -0.01 and little < -0.005

    def test_bad_input(self):
        for call in (anatomy.angles_to_axis_angle, anatomy.overlap, anatomy.limit):
            with pytest.raises(HamrError, match="angles: expected shape"):
                call(np.zeros((3, 21)))
        with pytest.raises(HamrError, match="side='both': expected one of left, right"):
            anatomy.anny_pose(angles(), "both")


class TestGestures:
    def test_all_are_possible(self):
        poses = np.array(list(anatomy.GESTURES.values()))
        np.testing.assert_allclose(anatomy.limit(poses), poses, atol=1e-12)
        assert anatomy.overlap(poses).max() <= 0

    def test_which_fingers_are_extended(self):
        expected = {"point": {"index"}, "two": {"index", "middle"}, "fist": set(),
                    "four": set(FINGERS[1:]), "open": set(FINGERS), "thumbs up": {"thumb"},
                    "thumb and index": {"thumb", "index"}, "letter I": {"little"}}  # fmt: skip
        flat = joints(angles())
        for name, fingers in expected.items():
            posed = joints(anatomy.GESTURES[name])
            span = np.linalg.norm(posed[:, 3] - posed[:, 0], axis=1)
            straight = span / np.linalg.norm(flat[:, 3] - flat[:, 0], axis=1) > 0.9
            # A thumb counts as extended when it also stands off the fingers.
            straight[0] &= np.linalg.norm(posed[0, 3] - posed[1, 0]) > 0.07
            assert {f for f, out in zip(FINGERS, straight, strict=True) if out} == fingers, name


class TestOverlap:
    def test_distance_of_segments_against_a_search(self):
        rng = np.random.default_rng(0)
        p, q, r, s = rng.normal(size=(4, 50, 3))
        steps = np.linspace(0, 1, 201)[:, None, None]
        first, second = p + steps * (q - p), r + steps * (s - r)
        brute = np.linalg.norm(first[:, None] - second[None], axis=-1).min((0, 1))
        np.testing.assert_allclose(anatomy._between_segments(p, q, r, s), brute, atol=2e-3)
        assert (anatomy._between_segments(p, q, r, s) <= brute + 1e-12).all()

    def test_impossible_poses_are_noticed(self):
        bends = {f"{f}_{j}_flexion": 90 for f in FINGERS[1:] for j in ("MCP", "PIP", "DIP")}
        assert anatomy.overlap(angles(**bends)) > 0.005  # through the palm
        crossed = angles(index_MCP_spread=-25, middle_MCP_spread=25)
        assert anatomy.overlap(crossed) > 0.002
        assert anatomy.overlap(anatomy.GESTURES["open"]) < -0.005


class TestSampler:
    @pytest.fixture(scope="class")
    def sampled(self):
        return sampling.sample_poses(np.random.default_rng(0), 3000)

    def test_within_limits_and_possible(self, sampled):
        again = sampling.sample_poses(np.random.default_rng(0), 3000)
        np.testing.assert_array_equal(sampled, again)
        low, high = np.percentile(sampled, [1, 99], axis=0)
        assert ((high - low) / (anatomy.UPPER - anatomy.LOWER) > 0.55).all()
        assert sampled.shape == (3000, len(anatomy.ANGLES)) and np.isfinite(sampled).all()
        assert (sampled >= anatomy.LOWER).all() and (sampled <= anatomy.UPPER).all()
        np.testing.assert_allclose(anatomy.limit(sampled), sampled, atol=1e-12)
        assert anatomy.overlap(sampled).max() <= 0

    def test_fingers_at_rest_lie_side_by_side(self, sampled):
        resting = sampling.sample_poses(np.random.default_rng(0), 1000, resting=1.0)
        assert anatomy.overlap(resting).max() <= 0
        # Neighbours bend nearly alike, and their tips are close: far more so than when lively.
        bends, gaps = {}, {}
        for name, drawn in (("resting", resting[:300]), ("lively", sampled[:300])):
            bends[name] = np.degrees(np.abs(np.diff(drawn[:, anatomy.PIP], axis=1))).mean()
            tips = np.array([joints(pose)[1:, 3] for pose in drawn])
            gaps[name] = np.linalg.norm(np.diff(tips, axis=1), axis=-1).mean()
        assert bends["resting"] < 8 < 12 < bends["lively"]
        assert gaps["resting"] < 0.031 < 0.034 < gaps["lively"]  # metres
        # The thumb is lifted before the palm often, but not always.
        before = resting[:, 1] > np.radians(45)
        assert 0.2 < before.mean() < 0.5


def test_anny_poses_left_as_the_mirror_of_right():
    fist = anatomy.GESTURES["fist"]
    right, left = anatomy.anny_pose(fist, "right"), anatomy.anny_pose(fist, "left")
    flip = np.diag([-1.0, 1, 1, 1])
    assert len(right) == 15
    for bone, transform in right.items():
        np.testing.assert_allclose(left[bone[:-1] + "L"], flip @ transform @ flip, atol=1e-12)
