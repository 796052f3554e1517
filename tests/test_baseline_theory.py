"""The idea of each baseline against theory."""

import math

import pytest
import torch

from hamr_lib.baselines import bodynet, boukhayma, iqbal, smplify, zimmermann
from hamr_lib.camera import project_weak
from hamr_lib.config import load_settings
from hamr_lib.joints import BONES, WRIST
from hamr_lib.model.heatmaps import cell_centres
from hamr_lib.render.examples import random_hands

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def hands():
    return random_hands(12, seed=3)


def joints_of(hands, **changes):
    """(12, 21, 3) metres, wrist at the origin, of hands with other shapes, turns or poses."""
    pose = {name: getattr(hands, name) for name in ("betas", "global_orient", "hand_pose")}
    joints = hands.hand(*(pose | changes).values()).joints
    return joints - joints[:, WRIST, None]


def test_zimmermann_canonical_frame_and_back(hands):
    joints = joints_of(hands)
    frame = zimmermann.canonical_frame(joints)
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3).expand(12, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(frame), torch.ones(12))
    canonical = joints @ frame.mT
    up, side = canonical[:, zimmermann.TOWARDS], canonical[:, zimmermann.SIDEWAYS]
    assert up[:, [0, 2]].abs().max() < 1e-6 and (up[:, 1] > 0).all()
    assert side[:, 2].abs().max() < 1e-6 and (side[:, 0] > 0).all()
    # The frame does not depend on how the hand was turned, and lifting undoes it.
    turned = joints_of(hands, global_orient=hands.global_orient.roll(1, 0))
    again = turned @ zimmermann.canonical_frame(turned).mT
    torch.testing.assert_close(again, canonical, atol=1e-5, rtol=0)
    a, b = zimmermann.BONE
    length = (joints[:, b] - joints[:, a]).norm(dim=-1)[:, None, None]
    lifted = zimmermann.lift(canonical / length, frame, length)
    torch.testing.assert_close(lifted, joints, atol=1e-6, rtol=0)


@pytest.mark.parametrize("distance", [0.4, 0.7, 1.5])
def test_iqbal_closed_form_depth_is_exact(hands, distance):
    """A hand before a pinhole camera, its bone measured as 1: the root's depth comes out."""
    joints = joints_of(hands).double() + torch.tensor([0.03, -0.05, distance])
    n, m = iqbal.BONE
    length = (joints[:, n] - joints[:, m]).norm(dim=-1)
    scaled = joints / length[:, None, None]
    points = scaled[..., :2] / scaled[..., 2:]
    depth = scaled[..., 2] - scaled[:, WRIST, None, 2]
    # A bone that points at the camera has no image to measure: those are left out.
    seen = (points[:, n] - points[:, m]).square().sum(dim=-1) > iqbal.STEEP
    assert seen.sum() >= 6
    root = iqbal.root_depth(points[seen], depth[seen])
    torch.testing.assert_close(root, scaled[seen, WRIST, 2], rtol=1e-6, atol=0)
    found = length[seen, None, None] * iqbal.unproject(points[seen], depth[seen], root)
    expected = joints[seen] - joints[seen][:, WRIST, None]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_smplify_recovers_known_joints(hands):
    """Joints of known hands, as if found without error: within 1 % of the crop's side for most,
    and 3 % for all (a crop is 2 units wide)."""
    settings, true = load_settings("smoke"), joints_of(hands)
    network = smplify.Joints2D(settings.model, random_hands(1).hand, "squared").eval()
    points = project_weak(true, hands.camera)
    with torch.no_grad():
        fitted = smplify.fit_hand(network, points, torch.ones(12, 21))
    error = (fitted.joints_2d - points).norm(dim=-1).mean(dim=1)
    assert error.median() < 0.02 and error.max() < 0.06, error
    # What the image does not show is guessed well for most: the mean hand is 60 mm off and more.
    apart = (fitted.joints_3d - true).norm(dim=-1).mean(dim=1)
    assert apart.median() < 0.02, apart


def test_smplify_first_view_is_the_true_one(hands):
    """A rigid hand, turned, scaled and shifted: the directions tried lie 8 degrees apart."""
    mean = {"betas": torch.zeros(12, 10), "hand_pose": torch.zeros(12, 45)}
    rest = joints_of(hands, **mean, global_orient=torch.zeros(12, 3))[0]
    turned = joints_of(hands, **mean)
    points = project_weak(turned, hands.camera)
    rotation, camera = smplify.first_views(rest, points, torch.ones(12, 21), count=2000)
    found = torch.einsum("bij,nj->bni", rotation[:, 0], rest)
    assert (project_weak(found, camera[:, 0]) - points).norm(dim=-1).mean(dim=1).max() < 0.02
    assert (found - turned).norm(dim=-1).mean(dim=1).median() < 0.006
    # The second start looks from elsewhere.
    cosine = (rotation[:, 0, 2] * rotation[:, 1, 2]).sum(dim=-1)
    assert (cosine <= smplify.APART + 1e-6).all()


def test_smplify_ignores_a_joint_it_is_not_sure_of(hands):
    maps = torch.zeros(1, 21, 32, 32)
    grid = torch.arange(32.0)
    blob = torch.exp(-((grid - 12) ** 2) / 5)
    maps[:, 1:] = blob[:, None] * blob
    maps[:, 0] = 0.01  # nothing found
    sure = smplify.score(maps, "squared")
    assert (sure[0, 1:] > 0.7).all() and sure[0, 0] < 0.05


def test_bodynet_flesh_is_a_capsule():
    """One straight bone, everything else in the wrist: its voxels are those of a capsule."""
    joints, a, b = torch.zeros(1, 21, 3), torch.zeros(3), torch.tensor([0.06, 0.02, 0.05])
    joints[:, 4] = b
    camera = torch.tensor([[10.0, 0.1, -0.2]])
    found = bodynet.capsules(joints, camera, 64, 64)[0]
    z = cell_centres(64, -bodynet.REACH, bodynet.REACH, joints)
    flat = cell_centres(64, -1.0, 1.0, joints)
    x, y = (flat - 0.1) / 10, (flat + 0.2) / 10
    squeeze = bodynet.FLESH / (bodynet.FLESH + bodynet.REACH / 64)
    z, b = z * squeeze, b * torch.tensor([1, 1, squeeze])
    grid = torch.stack(torch.meshgrid(z, y, x, indexing="ij"), dim=-1).flip(-1)
    t = ((grid - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
    distance = (grid - a - t[..., None] * (b - a)).norm(dim=-1)
    clear = (distance - bodynet.FLESH).abs() > 1e-6
    assert torch.equal(found[clear], (distance < bodynet.FLESH)[clear])
    voxel = squeeze * (2 * bodynet.REACH / 64) * (2 / 64 / 10) ** 2
    r, length = bodynet.FLESH, (b - a).norm().item()
    volume = math.pi * r**2 * length + 4 / 3 * math.pi * r**3
    assert found.sum().item() * voxel == pytest.approx(volume, rel=0.05)
    # However few layers there are, and wherever between them a bone lies, none is lost.
    for depth in (2, 3, 4, 8):
        assert bodynet.capsules(joints, camera, depth, 64).any(dim=1).sum() > 60


def test_bodynet_scale_from_the_bones(hands):
    joints = joints_of(hands)
    parent, child = torch.tensor(BONES).T
    total = (joints[:, child] - joints[:, parent]).norm(dim=-1).sum(dim=1)
    seen = torch.cat([project_weak(joints, hands.camera), joints[..., 2:]], dim=-1)
    scale = bodynet.metric_scale(seen, total)
    torch.testing.assert_close(scale, hands.camera[:, 0], rtol=1e-3, atol=0)
    too_deep = torch.zeros(1, 21, 3)
    too_deep[:, 1::2, 2] = 1.0
    assert bodynet.metric_scale(too_deep, 0.5).item() == pytest.approx(bodynet.LARGEST, rel=1e-3)


def test_boukhayma_vertices_outside_of_the_mask():
    mask = torch.zeros(2, 8, 8)
    mask[:, :, :4] = 1  # the left half
    points = torch.tensor([[-0.5, 0.0], [-0.5, 0.5], [-0.5, -0.5], [0.5, 0.0]]).repeat(2, 1, 1)
    has = torch.tensor([True, False])
    assert boukhayma.mask_loss(points, mask, has).item() == pytest.approx(0.25)
    assert boukhayma.mask_loss(points, mask, has & ~has).item() == 0
    # A vertex on the border is drawn inside.
    point = torch.tensor([[[0.05, 0.0]]], requires_grad=True)
    boukhayma.mask_loss(point, mask[:1], has[:1]).backward()
    assert point.grad[0, 0, 0] > 0
