import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_mano import PARENTS, B, inputs, made_up_mano

from hamr_lib import config
from hamr_lib.errors import HamrError
from hamr_lib.hand.layer import Hand, hand_of, load_hand, mirrored
from hamr_lib.joints import FINGERS, MANO_NAMES, NAMES


def open_layer(data, components=45, joints="kinematic", side="right"):
    """The open hand in float64, so that tests can be exact."""
    data = data if side == "right" else mirrored(data)
    return Hand(data, "open", side, components, joints)


def skinned(data, betas, orient, pose):
    """MANO in plain NumPy, from the formulas of Romero et al. 2017, one hand at a time.

    Returns:
        vertices (V, 3) and the 16 kinematic joints (16, 3).
    """
    shaped = data["v_template"] + data["shapedirs"] @ betas
    rest = np.asarray(data["J_regressor"] @ shaped)
    turns = Rotation.from_rotvec(np.concatenate([orient, pose]).reshape(16, 3)).as_matrix()
    shaped = shaped + data["posedirs"] @ (turns[1:] - np.eye(3)).ravel()
    world = np.zeros((16, 4, 4))
    for j, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = turns[j]
        local[:3, 3] = rest[j] - (rest[parent] if parent >= 0 else 0)
        world[j] = local if parent < 0 else world[parent] @ local
    joints = world[:, :3, 3].copy()
    world[:, :3, 3] -= np.einsum("jab,jb->ja", world[:, :3, :3], rest)
    blended = np.einsum("vj,jab->vab", data["weights"], world)
    return np.einsum("vab,vb->va", blended[:, :3, :3], shaped) + blended[:, :3, 3], joints


def volume(vertices, faces):
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def test_against_plain_numpy(open_hand_data):
    # The open hand has no pose blend shapes; give it some, so that they are tested too.
    blends = 1e-3 * np.random.default_rng(1).normal(size=(1649, 3, 135))
    data = open_hand_data | {"posedirs": blends}
    hand = open_layer(data)
    betas, orient, pose = inputs(45)
    mesh = hand(betas, orient, pose)
    assert mesh.vertices.shape == (B, 1649, 3) and mesh.joints.shape == (B, 21, 3)
    for i in range(B):
        vertices, joints = skinned(
            data, betas[i].numpy(), orient[i].numpy(), pose[i].numpy() + data["hands_mean"]
        )
        # smplx adds 1e-8 to every axis-angle number, hence not to the last bit.
        np.testing.assert_allclose(mesh.vertices[i], vertices, atol=1e-7)
        named = dict(zip(NAMES, mesh.joints[i].numpy(), strict=True))
        for name, joint in zip(MANO_NAMES, joints, strict=True):
            np.testing.assert_allclose(named[name], joint, atol=1e-7)
        for finger, tip in zip(FINGERS, data["tips"], strict=True):
            np.testing.assert_allclose(named[f"{finger} tip"], vertices[tip], atol=1e-7)


@pytest.mark.parametrize("joints", ["regressed", "kinematic"])
def test_turning_the_hand_turns_everything(open_hand_data, joints):
    hand = open_layer(open_hand_data, joints=joints)
    betas, orient, pose = inputs(45)
    turn = torch.tensor(Rotation.from_rotvec(orient.numpy()).as_matrix())
    still = hand(betas, torch.zeros_like(orient), pose)
    by_vector, by_matrix = hand(betas, orient, pose), hand(betas, turn, pose)
    wrist = open_layer(open_hand_data)(betas, torch.zeros_like(orient), pose).joints[:, :1]
    for got, other, before in zip(by_vector, by_matrix, still, strict=True):
        wanted = (before - wrist) @ turn.transpose(1, 2) + wrist
        np.testing.assert_allclose(got, wanted, atol=1e-7)
        np.testing.assert_allclose(other, wanted, atol=1e-7)


def test_regressed_joints_are_eq_3(open_hand_data):
    args = inputs(45)
    mesh = open_layer(open_hand_data, joints="regressed")(*args)
    regressed = open_hand_data["J_regressor"] @ mesh.vertices.numpy()
    for j, name in enumerate(MANO_NAMES):
        np.testing.assert_allclose(mesh.joints[:, NAMES.index(name)], regressed[:, j], atol=1e-9)
    other = open_layer(open_hand_data)(*args).joints
    apart = (mesh.joints - other).norm(dim=-1)
    assert 1e-5 < apart.max() < 0.03  # two definitions, not one
    tips = [i for i, name in enumerate(NAMES) if name.endswith("tip")]
    assert apart[:, tips].max() == 0


@pytest.mark.parametrize("joints", ["regressed", "kinematic"])
@pytest.mark.parametrize("components", [6, 45])
def test_the_skeleton_is_the_mesh_s(joints, components, open_hand_data):
    """With MANO's pose blend shapes too, and for either form of the orientation."""
    mano = {k: getattr(v, "toarray", lambda v=v: v)() for k, v in made_up_mano().items()}
    betas, orient, pose = inputs(components)
    matrix = torch.tensor(Rotation.from_rotvec(orient.numpy()).as_matrix())
    for hand in (
        open_layer(open_hand_data, components, joints),
        Hand(mano, "mano", "right", components, joints),
    ):
        for turn in (orient, matrix):
            expected = hand(betas, turn, pose).joints
            np.testing.assert_allclose(hand.skeleton(betas, turn, pose), expected, atol=1e-9)


def test_components_and_poses_are_axis_angle_numbers(open_hand_data):
    """PCA coefficients (44) and axis-angle (45) are one pose; the 22 angles need no more."""
    betas, orient, coefficients = inputs(44)
    fewer, angles = (open_layer(open_hand_data, n) for n in (44, 45))
    numbers = coefficients @ torch.tensor(open_hand_data["hands_components"][:44])
    ours, theirs = fewer(betas, orient, coefficients), angles(betas, orient, numbers)
    np.testing.assert_allclose(ours.vertices, theirs.vertices, atol=1e-9)
    assert angles.poses.shape == (4000, 45) and angles.poses.std() > 0.1
    ours, theirs = (hand.skeleton(betas, orient, hand.poses[:B]) for hand in (fewer, angles))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_gradients_reach_every_input_also_at_zero(open_hand_data):
    hand = open_layer(open_hand_data, components=6, joints="regressed").float()
    args = [torch.zeros(2, n, requires_grad=True) for n in (10, 3, 6)]
    hand(*args).joints.square().sum().backward()
    for value in args:
        assert torch.isfinite(value.grad).all() and value.grad.abs().min() > 0


def test_left_mirrors_right(open_hand_data):
    right = open_layer(open_hand_data, 6, "regressed")
    left = open_layer(open_hand_data, 6, "regressed", side="left")
    betas, orient, pose = inputs(6)
    flip = torch.tensor([-1.0, 1.0, 1.0]).double()
    ours, theirs = right(betas, orient, pose), left(betas, orient * -flip, pose)
    np.testing.assert_allclose(theirs.vertices, ours.vertices * flip, atol=1e-7)
    np.testing.assert_allclose(theirs.joints, ours.joints * flip, atol=1e-7)
    sizes = volume(ours.vertices[0], right.faces), volume(theirs.vertices[0], left.faces)
    assert sizes[0] == pytest.approx(sizes[1]) and sizes[0] > 0  # both look outside


def test_bad_arguments_of_load_hand():
    for wrong in ({"name": "smpl"}, {"side": "both"}, {"joints": "both"}, {"pose_components": 46}):
        with pytest.raises(HamrError, match="expected"):
            load_hand(**{"name": "open"} | wrong)


@pytest.mark.parametrize(
    "which, shape", [(0, (2, 9)), (1, (3, 3)), (1, (2, 4)), (1, (1, 3, 3)), (2, (2, 45))]
)
def test_bad_shapes_of_the_layer(open_hand_data, which, shape):
    args = [torch.zeros(2, n).double() for n in (10, 3, 6)]
    args[which] = torch.zeros(shape).double()
    key = ("betas", "global_orient", "hand_pose")[which]
    with pytest.raises(HamrError, match=f"{key}: expected shape"):
        open_layer(open_hand_data, 6)(*args)


def test_the_settings_hand_is_of_single_precision_and_not_in_checkpoints():
    hand = hand_of(config.Hand(model="open", pose_components=12, joints="kinematic"))
    got = (hand.name, hand.side, hand.pose_components, hand.joints)
    assert got == ("open", "right", 12, "kinematic")
    assert not hand.state_dict() and not list(hand.parameters())
    mesh = hand(torch.zeros(1, 10), torch.zeros(1, 3), torch.zeros(1, 12))
    assert mesh.vertices.dtype == torch.float32
