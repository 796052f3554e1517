"""Each part of the loss against numbers worked out by hand, and all of them together."""

import math

import pytest
import roma
import torch
from test_model import gaussians
from tiny import TinyHand

from hamr_lib.camera import project_weak
from hamr_lib.config import Losses
from hamr_lib.losses import (
    PARTS,
    camera_loss,
    geometric_loss,
    hamr_losses,
    heatmap_loss,
    joints_2d_loss,
    joints_3d_loss,
    silhouette_loss,
)
from hamr_lib.model.hamr import Estimate, Output

NAN = float("nan")
X, Y, Z = torch.eye(3)
ALL = torch.ones(1, 21, dtype=torch.bool)
SMALL = Losses(silhouette_size=16)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def output_of(raw):
    """An `Output` whose every number hangs on `raw` (B, 40), as on a network's last layer."""
    hand = TinyHand()
    mesh = hand(raw[:, :10], roma.rotvec_to_rotmat(raw[:, 10:13]), raw[:, 13:19])
    camera = torch.cat([7 + raw[:, 19:20], raw[:, 20:22]], dim=1)
    vertices, joints = (points - mesh.joints[:, :1] for points in mesh)
    maps = raw[:, 22:38].view(-1, 1, 4, 4) * (1 + torch.arange(24.0)[:, None, None]) / 10
    flat = project_weak(joints, camera)
    estimate = Estimate(camera, None, None, None, vertices, joints, flat)
    return Output([maps, 2 * maps], [estimate]), hand.faces


def labels(batch=4):
    joints_3d = TinyHand()(*(torch.zeros(batch, n) for n in (10, 3, 6))).joints
    joints_3d = joints_3d + 0.01 * random(batch, 21, 3, seed=1)
    valid = ALL.repeat(batch, 1)
    return {
        "joints_3d": joints_3d - joints_3d[:, :1],
        "joints_2d": project_weak(joints_3d, torch.tensor([[6.0, 0.1, 0.5]]).repeat(batch, 1)),
        "valid_2d": valid, "valid_3d": valid.clone(), "has_mask": valid[:, 0].clone(),
        "mask": (random(batch, 32, 32, seed=2) > 0.5).float(),
    }  # fmt: skip


def test_joints_are_compared_by_distance_averaged_over_the_labelled():
    valid = ALL.repeat(2, 1)
    few = valid & (torch.arange(21) < 5) & torch.tensor([[True], [False]])
    label = random(2, 21, 3)
    found = label.clone()
    found[0, 4] += torch.tensor([0.03, 0.0, 0.04])  # 5 cm
    flat = found[..., ::2], label[..., ::2]
    for loss, expected in (
        (joints_3d_loss(found, label, valid), 0.05**2 / 42),
        (joints_3d_loss(found, label, few), 0.05**2 / 5),
        (joints_3d_loss(found, label, few, "distance"), 0.05 / 5),
        (joints_2d_loss(*flat, valid), 0.05**2 / 42),
        (joints_2d_loss(*flat, few, "absolute"), 0.07 / 2 / 5),
    ):
        assert loss == pytest.approx(expected, rel=1e-4)


def with_index_finger(*bones):
    """A hand whose fingers are straight, but for an index finger of these bones."""
    joints = torch.zeros(1, 21, 3)
    joints[0, 1:, 1] = torch.arange(4).repeat(5) * 0.03
    joints[0, 5:9] = torch.stack([0 * X, *bones]).cumsum(dim=0)
    return joints


@pytest.mark.parametrize(
    "bones, expected",
    [
        ((X, X, X), 0.0),  # straight
        ((X, Y, -X), 0.0),  # both joints bend 90 degrees the same way: u x v = v x w = z
        ((X, Y, X), 1.0),  # they bend opposite ways: u x v = z, v x w = -z
        ((X, Y, Z), 1.0),  # out of the plane: <u x v, w> = 1, and the normals z, x are square
        # 30 degrees one way, then 30 back: sin(30)^2.
        ((X, math.cos(math.pi / 6) * X + 0.5 * Y, X), 0.25),
        # The last bone 45 degrees out of the plane: <z, (z - x)/sqrt 2> = sqrt 1/2, and the
        # normals agree.
        ((X, Y, (Z - X) / math.sqrt(2)), math.sqrt(0.5)),
    ],
)
def test_geometric(bones, expected):
    # One finger of four in one sample of one.
    assert geometric_loss(with_index_finger(*bones)) == pytest.approx(expected / 4, abs=1e-6)
    # Neither the size of the hand, nor of one bone, nor where it points or stands matters.
    stretched = with_index_finger(0.04 * bones[0], 0.025 * bones[1], 0.02 * bones[2])
    turn = torch.linalg.qr(random(3, 3).double())[0].float()
    moved = (stretched @ (turn * torch.linalg.det(turn)).T + 0.3).requires_grad_()
    loss = geometric_loss(moved)
    assert loss.item() == pytest.approx(expected / 4, abs=1e-4)
    loss.backward()
    assert not moved.grad[0, :5].any()  # neither the wrist's nor the thumb's


def test_camera_is_the_squared_difference_from_the_labels_camera():
    joints_3d, valid = labels(2)["joints_3d"], ALL.repeat(2, 1)
    right = torch.tensor([[6.0, 0.1, -0.2], [8.0, 0.0, 0.0]])
    known = joints_3d, project_weak(joints_3d, right)
    assert camera_loss(right, *known, valid, "crop", "projected") < 1e-9
    off = right + torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.6, 0.0]])
    loss = camera_loss(off, *known, valid, "crop", "projected")
    assert loss == pytest.approx((3**2 + 0.6**2) / 6, rel=1e-3)
    # In metres: t = (0.1, -0.2) / 9 against (0.1, -0.2) / 6; and (0, 0.6) / 8 against 0.
    loss = camera_loss(off, *known, valid, "metres", "projected")
    shift = (0.1**2 + 0.2**2) * (1 / 9 - 1 / 6) ** 2
    assert loss == pytest.approx((3**2 + shift + (0.6 / 8) ** 2) / 6, rel=1e-3)
    valid[0, 1:] = False  # one joint says nothing about the scale
    loss = camera_loss(off, *known, valid, "crop", "projected")
    assert loss == pytest.approx(0.6**2 / 3, rel=1e-3)


def test_camera_compares_with_the_paper_s_scale_and_metres_unless_told_otherwise():
    # The wrist and one bone of (6, 0, 8) cm, seen 0.6 wide: s = 6, not 10; t = x / s - X.
    joints_3d, joints_2d = torch.zeros(1, 21, 3), torch.zeros(1, 21, 2)
    joints_3d[0, 5], joints_2d[0, 5, 0] = torch.tensor([0.06, 0.0, 0.08]), 0.6
    valid = (torch.arange(21) % 5 == 0)[None] & (torch.arange(21) < 6)
    loss = camera_loss(torch.tensor([[8.0, 0.4, 0.8]]), joints_3d, joints_2d, valid)
    # Predicted is t = (0.05, 0.1) m, labelled (0.3 / 6 - 0.03, 0) m.
    assert loss == pytest.approx((2**2 + (0.05 - 0.3 / 6 + 0.03) ** 2 + 0.1**2) / 3, rel=1e-5)


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
def test_heatmaps_compare_with_gaussians_of_the_stated_variance(kind):
    size, valid = 16, ALL.clone()
    centres = 2 + 11 * random(21, 2)  # pixels
    joints = ((centres + 0.5) / size * 2 - 1)[None]
    target, maps = gaussians(centres, size)[None], 3 * random(1, 21, size, size)
    share = (target / target.sum(dim=(2, 3), keepdim=True)).flatten(2)
    if kind == "squared":
        perfect, expected = target.float(), (maps - target).square().mean(dim=(0, 2, 3))
    else:
        perfect = (share.log() + 5).float().view(maps.shape)
        predicted = maps.double().flatten(2).log_softmax(dim=2)
        expected = torch.nn.functional.kl_div(predicted, share, reduction="none").sum(dim=2)[0]
    assert abs(heatmap_loss(perfect, joints, valid, kind, 2.5)) < 1e-5
    loss = heatmap_loss(maps, joints, valid, kind, 2.5)
    assert loss == pytest.approx(expected.mean().item(), rel=1e-4)
    joints[0, 10:], valid[0, 10:] = NAN, False
    joints[0, 9] = 3.0  # outside the crop: its map should be empty, or is left out
    expected[9] = maps[0, 9].square().mean()
    expected = expected[: 10 if kind == "squared" else 9].mean().item()
    assert heatmap_loss(maps, joints, valid, kind, 2.5) == pytest.approx(expected, rel=1e-4)


def test_silhouette_is_the_share_of_pixels_that_differ():
    corners = torch.tensor([[[x, y, 0] for y in (-0.5, 0.5) for x in (-0.5, 0.5)]])
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])  # the middle quarter of the crop
    # Turned by half a degree: DEODR does not smooth outlines that run exactly along an axis.
    vertices = corners @ torch.tensor([[1, 0.01, 0], [-0.01, 1, 0], [0, 0, 1]])
    camera, joints = torch.tensor([[1.0, 0.0, 0.0]]).requires_grad_(), torch.zeros(1, 21, 3)
    estimate = Estimate(camera, None, None, None, vertices, joints, joints[..., :2])
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1

    def loss(mask):
        return silhouette_loss(estimate, faces, mask, torch.tensor([True]), 32)

    # A flat sheet has no inside to move the outline into: it is up to half a pixel larger a side.
    wider = (17 / 32) ** 2 - 0.25 + 0.003
    assert loss(mask) < wider
    assert loss(0 * mask).item() == pytest.approx(0.25, abs=wider)
    shifted = loss(mask.roll(8, dims=2)).item()
    assert shifted == pytest.approx(2 * 8 * 32 / 64**2, abs=0.03)  # 8 columns on either side
    loss(mask.roll(4, dims=2)).backward()
    # Shifting right by d uncovers d / 2 of the crop's width on one side and covers it on the
    # other, over half its height: both bring the loss down by d / 4.
    assert camera.grad[0, 1] == pytest.approx(-0.5, abs=0.1) and abs(camera.grad[0, 2]) < 0.1


def test_total_is_the_weighted_sum_and_weight_zero_switches_a_part_off():
    output, faces = output_of(random(4, 40))
    losses = hamr_losses(output, labels(), SMALL, faces)
    assert set(losses) == {*PARTS, "total"}
    weights = {"joints_3d": 1000, "joints_2d": 1, "geometric": 1, "camera": 0.1, "heatmap": 100,
               "silhouette": 10}  # fmt: skip
    expected = sum(weights[name] * losses[name] for name in PARTS)
    torch.testing.assert_close(losses["total"], expected)
    stacks = [output._replace(heatmaps=[maps]) for maps in output.heatmaps]
    each = [hamr_losses(one, labels(), SMALL, faces)["heatmap"] for one in stacks]
    torch.testing.assert_close(losses["heatmap"], sum(each))
    flat = output._replace(estimates=[output.estimates[0]._replace(vertices=None)])
    fewer = hamr_losses(flat, labels(), Losses(silhouette=0.0, camera=0.0), faces)
    assert {*PARTS, "total"} - set(fewer) == {"silhouette", "camera"}


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
def test_a_sample_without_labels_gets_exactly_no_gradient(kind):
    """Sample 1 has no 2-D label, 2 no 3-D label, 3 no mask; what stands there is NaN."""
    batch = labels()
    batch["valid_2d"][1], batch["joints_2d"][1] = False, NAN
    batch["valid_3d"][2], batch["joints_3d"][2] = False, NAN
    batch["has_mask"][3], batch["mask"][3] = False, NAN
    blind = {"joints_3d": [2], "joints_2d": [1], "camera": [1, 2], "heatmap": [1],
             "silhouette": [3], "geometric": []}  # fmt: skip
    settings = Losses(heatmap_kind=kind, silhouette_size=16)
    raw = random(4, 40).requires_grad_()
    output, faces = output_of(raw)
    losses = hamr_losses(output, batch, settings, faces)
    for name in PARTS:
        assert losses[name].isfinite() and losses[name] > 0, name
        gradient = torch.autograd.grad(losses[name], raw, retain_graph=True)[0]
        assert gradient.isfinite().all(), name
        seeing = [i for i in range(4) if i not in blind[name]]
        assert [i for i in range(4) if gradient[i].any()] == seeing, name
        # The loss is that of the labelled samples alone: it does not shrink with the blind ones.
        some, faces = output_of(raw[seeing])
        alone = hamr_losses(some, {k: v[seeing] for k, v in batch.items()}, settings, faces)
        if name != "geometric":
            torch.testing.assert_close(alone[name], losses[name], msg=name)


def test_a_prediction_that_is_nan_shows():
    """Masks hide missing labels, never a network that has blown up."""
    output, faces = output_of(random(4, 40))
    broken = output.estimates[0]._replace(joints_3d=torch.full((4, 21, 3), NAN))
    losses = hamr_losses(output._replace(estimates=[broken]), labels(), Losses(), faces)
    assert losses["joints_3d"].isnan() and losses["total"].isnan()


def test_losses_are_float32_under_autocast():
    output, faces = output_of(random(4, 40))
    more = labels(), Losses(heatmap_kind="cross_entropy", silhouette_size=16), faces
    plain = hamr_losses(output, *more)
    with torch.autocast("cpu", torch.bfloat16):
        under = hamr_losses(output, *more)
    for name, value in plain.items():
        torch.testing.assert_close(under[name], value, msg=name)
