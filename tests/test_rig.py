import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hamr_lib.hand.layer import load_hand
from hamr_lib.hand.rig import ANNY_BONES, palm_frame, rig
from hamr_lib.joints import FINGERS, MANO_NAMES

# Mean of 35 hands of one adult, labelled in MANO's convention: bases of thumb to little finger in
# the palm's frame and phalanges from base to tip, in mm of a hand whose middle finger ends 191 mm
# from the wrist along the joints.
BASES = [(24.5, 24, 13.4), (21.4, 91.7, 4.2), (0, 100.9, 0), (-21.9, 90.2, -0.5),
         (-38.9, 77.8, 3.5)]  # fmt: skip
PHALANGES = [(30.8, 28.8, 38.9), (36.6, 24.7, 27.9), (34.4, 25.8, 29.8), (34.2, 28.1, 29.2),
             (23.4, 21.0, 22.5)]  # fmt: skip


@pytest.fixture(scope="module")
def hand():
    return load_hand("open", pose_components=45).double()


def posed(hand, **axis_angles):
    """Vertices (V, 3) and joints (21, 3) of the mean person, each named joint turned from rest."""
    pose = -hand.hand_mean.clone()[None]
    for name, vector in axis_angles.items():
        j = MANO_NAMES.index(name.replace("_", " ")) - 1
        pose[0, 3 * j : 3 * j + 3] += torch.as_tensor(vector)
    none = torch.zeros(1, 10, dtype=torch.float64)
    mesh = hand(none, none[:, :3], pose)
    return mesh.vertices[0].numpy(), mesh.joints[0].numpy()


def closed(hand, vertices):
    """The mesh with a lid over the cut of the forearm: vertices (V + 1, 3) and faces."""
    faces = hand.faces.numpy()
    directed = {(a, b) for face in faces for a, b in zip(face, np.roll(face, -1), strict=True)}
    border = np.array([(b, a) for a, b in directed if (b, a) not in directed])
    lid = np.column_stack([border, np.full(len(border), len(vertices))])
    middle = vertices[border[:, 0]].mean(0, keepdims=True)
    return np.concatenate([vertices, middle]), np.concatenate([faces, lid])


def volume(hand, vertices):
    vertices, faces = closed(hand, vertices)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return (a * np.cross(b, c)).sum() / 6


def test_joints_lie_where_labels_in_manos_convention_have_them(hand):
    _, joints = posed(hand)
    chains = (joints[1:] - joints[0]).reshape(5, 4, 3)
    unit = np.linalg.norm(np.diff([np.zeros(3), *chains[2]], axis=0), axis=1).sum() / 191
    palm = palm_frame(*chains[[1, 2, 4], 0])
    off = np.linalg.norm(chains[:, 0] @ palm / unit - BASES, axis=1)
    assert off.max() < 5
    lengths = np.linalg.norm(np.diff(chains, axis=1), axis=-1) / unit
    np.testing.assert_allclose(lengths, PHALANGES, rtol=0.12)


def test_joints_lie_inside_the_flesh(hand):
    vertices, joints = posed(hand)
    inside = np.array([j for j in range(21) if j % 4 or j == 0])  # all but the tips
    vertices, faces = closed(hand, vertices)
    a, b, c = (vertices[faces[:, k]][None] - joints[inside, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=-1) for v in (a, b, c))
    numerator = (a * np.cross(b, c)).sum(-1)
    ab, bc, ca = (a * b).sum(-1), (b * c).sum(-1), (c * a).sum(-1)
    # The solid angle of all triangles is 4 pi from inside and 0 from outside (van Oosterom 1983).
    winding = 2 * np.arctan2(numerator, la * lb * lc + ab * lc + bc * la + ca * lb).sum(1)
    np.testing.assert_allclose(winding, 4 * np.pi, atol=1e-6)
    depth = np.linalg.norm(vertices[:, None] - joints[inside], axis=-1).min(0)
    assert depth.min() > 0.003
    assert depth[0] > 0.01  # the wrist: the forearm reaches beyond it


@pytest.mark.parametrize("joint", ["thumb CMC", "index MCP", "middle PIP", "little DIP"])
def test_bending_keeps_the_volume(hand, joint):
    finger = FINGERS.index(joint.split()[0])
    part = [name for name in MANO_NAMES if name.startswith(FINGERS[finger])].index(joint)
    degrees = 45 if joint == "thumb CMC" else 90  # as far as it reaches from rest
    vector = np.radians(degrees) * rig().axes[finger, part, :, 0]
    straight, bent = (volume(hand, posed(hand, **turn)[0]) for turn in ({}, {joint: vector}))
    assert bent == pytest.approx(straight, rel=0.05)


def test_regressed_and_kinematic_joints_mean_the_same_places(hand):
    """Eq. 3 of the posed mesh against the skeleton, whichever way the joints turn."""
    kinematic = load_hand("open", pose_components=45, joints="kinematic").double()
    rng = np.random.default_rng(0)
    turns = Rotation.random(15 * 40, rng=rng).as_rotvec() * 0.35
    pose = torch.as_tensor(turns.reshape(40, 45)) - hand.hand_mean
    betas = torch.as_tensor(rng.normal(size=(40, 10)))
    upright = torch.zeros(40, 3, dtype=torch.float64)
    apart = hand(betas, upright, pose).joints - kinematic(betas, upright, pose).joints
    apart = apart.norm(dim=-1)
    assert apart.mean() < 0.0007 and apart.max() < 0.006


def test_bodies_carry_the_same_rig():
    """Both hands of a whole body have the open hand's weights and bend about its joints."""
    from hamr_lib.synth import people

    body, (model, hands), shared = people.body(), people.rigged(), rig()
    with torch.no_grad():
        rest = model(phenotype_kwargs={k: torch.tensor([0.5]) for k in model.phenotype_labels})
    vertices, heads = rest["vertices"][0].numpy(), rest["bone_poses"][0, :, :3, 3].numpy()
    dense = torch.zeros(len(vertices), len(model.bone_labels), dtype=model.dtype)
    dense.scatter_add_(1, model.vertex_bone_indices, model.vertex_bone_weights)
    np.testing.assert_allclose(dense.sum(1), 1, atol=1e-6)
    for side, own in zip("LR", hands, strict=True):
        bones = [model.bone_labels.index(f"{bone}.{side}") for bone in ANNY_BONES]
        np.testing.assert_allclose(dense[own][:, bones], shared.weights[:, 1:], atol=1e-9)
        regressed = shared.regressor @ vertices[own]
        np.testing.assert_allclose(heads[bones], regressed[1:], atol=0.001)
    # Left and right share the order of vertices.
    left, right = (vertices[own] for own in hands)
    np.testing.assert_allclose(left * [-1, 1, 1], right, atol=1e-6)
    assert body.hand[hands[0]].min() == 1
