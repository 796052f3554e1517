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


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def output_of(raw):
    """An `Output` whose every number hangs on `raw` (B, 40), as on a network's last layer."""
    hand = TinyHand()
    mesh = hand(raw[:, :10], roma.rotvec_to_rotmat(raw[:, 10:13]), raw[:, 13:19])
    camera = torch.cat([7 + raw[:, 19:20], raw[:, 20:22]], dim=1)
    joints = mesh.joints - mesh.joints[:, :1]
    maps = raw[:, 22:38].view(-1, 1, 4, 4) * (1 + torch.arange(24.0)[:, None, None]) / 10
    estimate = Estimate(
        camera, None, None, None, mesh.vertices - mesh.joints[:, :1], joints,
        project_weak(joints, camera),
    )  # fmt: skip
    return Output([maps, 2 * maps], [estimate]), hand.faces


def labels(batch=4):
    joints_3d = TinyHand()(*(torch.zeros(batch, n) for n in (10, 3, 6))).joints
    joints_3d = joints_3d + 0.01 * random(batch, 21, 3, seed=1)
    return {
        "joints_3d": joints_3d - joints_3d[:, :1],
        "joints_2d": project_weak(joints_3d, torch.tensor([[6.0, 0.1, 0.5]]).repeat(batch, 1)),
        "valid_2d": torch.ones(batch, 21, dtype=torch.bool),
        "valid_3d": torch.ones(batch, 21, dtype=torch.bool),
        "mask": (random(batch, 32, 32, seed=2) > 0.5).float(),
        "has_mask": torch.ones(batch, dtype=torch.bool),
    }


# Each part against numbers worked out by hand.


def test_joints_are_compared_by_distance_averaged_over_the_labelled():
    valid = torch.ones(2, 21, dtype=torch.bool)
    few = valid & (torch.arange(21) < 5) & torch.tensor([[True], [False]])
    label = random(2, 21, 3)
    prediction = label.clone()
    prediction[0, 4] += torch.tensor([0.03, 0.0, 0.04])  # 5 cm
    for loss, expected in (
        (joints_3d_loss(prediction, label, valid), 0.05**2 / 42),
        (joints_3d_loss(prediction, label, few), 0.05**2 / 5),
        (joints_3d_loss(prediction, label, few, "distance"), 0.05 / 5),
        (joints_2d_loss(prediction[..., ::2], label[..., ::2], valid), 0.05**2 / 42),
        (joints_2d_loss(prediction[..., ::2], label[..., ::2], few, "absolute"), 0.07 / 2 / 5),
    ):
        assert loss == pytest.approx(expected, rel=1e-4)


X, Y, Z = torch.eye(3)


def with_index_finger(*bones):
    """A hand whose fingers are straight, but for an index finger of these bones."""
    joints = torch.zeros(1, 21, 3)
    for finger in range(5):
        joints[0, 1 + 4 * finger : 5 + 4 * finger, 1] = torch.arange(4) * 0.03
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
    joints = with_index_finger(*bones)
    # One finger of four in one sample of one.
    assert geometric_loss(joints) == pytest.approx(expected / 4, abs=1e-6)
    # Neither the size of the hand, nor of one bone, nor where it points or stands matters.
    stretched = with_index_finger(0.04 * bones[0], 0.025 * bones[1], 0.02 * bones[2])
    turn = torch.linalg.qr(random(3, 3).double())[0].float()
    moved = (stretched @ (turn * torch.linalg.det(turn)).T + 0.3).requires_grad_()
    loss = geometric_loss(moved)
    assert loss.item() == pytest.approx(expected / 4, abs=1e-4)
    loss.backward()
    assert not moved.grad[0, :5].any()  # neither the wrist's nor the thumb's


def test_camera_is_the_squared_difference_from_the_labels_camera():
    batch = labels(2)
    valid = batch["valid_2d"]
    joints_2d = project_weak(batch["joints_3d"], torch.tensor([[6.0, 0.1, -0.2], [8.0, 0.0, 0.0]]))
    right = torch.tensor([[6.0, 0.1, -0.2], [8.0, 0.0, 0.0]])
    crop = {"offset": "crop", "scale": "projected"}
    assert camera_loss(right, batch["joints_3d"], joints_2d, valid, **crop) < 1e-9
    off = right + torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.6, 0.0]])
    loss = camera_loss(off, batch["joints_3d"], joints_2d, valid, **crop)
    assert loss == pytest.approx((3**2 + 0.6**2) / 6, rel=1e-3)
    # In metres: t = (0.1, -0.2) / 9 against (0.1, -0.2) / 6; and (0, 0.6) / 8 against 0.
    loss = camera_loss(off, batch["joints_3d"], joints_2d, valid, "metres", "projected")
    shift = (0.1**2 + 0.2**2) * (1 / 9 - 1 / 6) ** 2
    assert loss == pytest.approx((3**2 + shift + (0.6 / 8) ** 2) / 6, rel=1e-3)
    valid = valid.clone()
    valid[0, 1:] = False  # one joint says nothing about the scale
    loss = camera_loss(off, batch["joints_3d"], joints_2d, valid, **crop)
    assert loss == pytest.approx(0.6**2 / 3, rel=1e-3)


def test_camera_compares_with_the_paper_s_scale_and_metres_unless_told_otherwise():
    # The wrist and one bone of (6, 0, 8) cm, seen 0.6 wide: s = 6, not 10; t = x / s - X.
    joints_3d, joints_2d = torch.zeros(1, 21, 3), torch.zeros(1, 21, 2)
    joints_3d[0, 5], joints_2d[0, 5, 0] = torch.tensor([0.06, 0.0, 0.08]), 0.6
    valid = (torch.arange(21) % 5 == 0)[None] & (torch.arange(21) < 6)
    loss = camera_loss(torch.tensor([[8.0, 0.4, 0.8]]), joints_3d, joints_2d, valid)
    # Predicted is t = (0.05, 0.1) m, labelled (0.3 / 6 - 0.03, 0) m.
    assert loss == pytest.approx((2**2 + (0.05 - 0.3 / 6 + 0.03) ** 2 + 0.1**2) / 3, rel=1e-5)


def heatmap_labels(size=16):
    """Gaussians (1, 21, h, h) of variance 2.5, their joints in crop units, and all as valid."""
    centres = 2 + 11 * random(21, 2)  # pixels
    joints = ((centres + 0.5) / size * 2 - 1)[None]
    return gaussians(centres, size)[None], joints, torch.ones(1, 21, dtype=torch.bool), size


def test_squared_heatmaps_compare_with_gaussians_of_the_stated_variance():
    target, joints, valid, size = heatmap_labels()
    target = target.float()
    assert heatmap_loss(target, joints, valid, "squared", 2.5) < 1e-10
    maps = random(1, 21, size, size)
    expected = (maps - target).square().mean(dim=(0, 2, 3))  # joint by joint
    loss = heatmap_loss(maps, joints, valid, "squared", 2.5)
    assert loss == pytest.approx(expected.mean().item(), rel=1e-4)
    valid[0, 10:] = False
    loss = heatmap_loss(maps, joints, valid, "squared", 2.5)
    assert loss == pytest.approx(expected[:10].mean().item(), rel=1e-4)
    # The map of a joint outside the crop is empty.
    assert heatmap_loss(0 * maps, 0 * joints + 3, valid, "squared", 2.5) < 1e-10


def test_cross_entropy_heatmaps_are_the_divergence_from_the_gaussian():
    target, joints, valid, size = heatmap_labels()
    target = (target / target.sum(dim=(2, 3), keepdim=True)).flatten(2)
    perfect = (target.log() + 5).float().view(1, 21, size, size)
    assert abs(heatmap_loss(perfect, joints, valid, "cross_entropy", 2.5)) < 1e-5
    maps = 3 * random(1, 21, size, size)
    predicted = maps.double().flatten(2).log_softmax(dim=2)
    divergence = torch.nn.functional.kl_div(predicted, target, reduction="none").sum(dim=2)[0]
    loss = heatmap_loss(maps, joints, valid, "cross_entropy", 2.5)
    assert loss == pytest.approx(divergence.mean().item(), rel=1e-4)
    # A joint outside the crop, or without a label, is left out.
    joints[0, 20] = 1.2
    joints[0, 19] = NAN
    valid[0, 19] = False
    loss = heatmap_loss(maps, joints, valid, "cross_entropy", 2.5)
    assert loss == pytest.approx(divergence[:19].mean().item(), rel=1e-4)


def square(side, left=-0.5, top=-0.5):
    """An `Estimate` of a flat square under the camera (1, 0, 0), and its two triangles."""
    corners = [[left, top, 0], [left + side, top, 0], [left, top + side, 0],
               [left + side, top + side, 0]]  # fmt: skip
    vertices = torch.tensor([corners], dtype=torch.float32)
    # Turned by half a degree: DEODR does not smooth outlines that run exactly along an axis.
    vertices = vertices @ torch.tensor([[1, 0.01, 0], [-0.01, 1, 0], [0, 0, 1]])
    vertices.requires_grad_()
    camera = torch.tensor([[1.0, 0.0, 0.0]]).requires_grad_()
    joints = torch.zeros(1, 21, 3)
    return (
        Estimate(camera, None, None, None, vertices, joints, joints[..., :2]),
        torch.tensor([[0, 1, 2], [1, 3, 2]]),
    )


def test_silhouette_is_the_share_of_pixels_that_differ():
    estimate, faces = square(1.0)  # the middle quarter of the crop
    has_mask = torch.tensor([True])
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    same = silhouette_loss(estimate, faces, mask, has_mask, 32).item()
    # A flat sheet has no inside to move the outline into: it is up to half a pixel larger a side.
    assert same < (17 / 32) ** 2 - 0.25 + 0.003
    empty = silhouette_loss(estimate, faces, torch.zeros(1, 64, 64), has_mask, 32).item()
    assert empty == pytest.approx(0.25, abs=(17 / 32) ** 2 - 0.25 + 0.003)
    shifted = silhouette_loss(estimate, faces, mask.roll(8, dims=2), has_mask, 32).item()
    assert shifted == pytest.approx(2 * 8 * 32 / 64**2, abs=0.03)  # 8 columns on either side
    silhouette_loss(estimate, faces, mask.roll(4, dims=2), has_mask, 32).backward()
    # Shifting right by d uncovers d / 2 of the crop's width on one side and covers it on the
    # other, over half its height: both bring the loss down by d / 4.
    assert estimate.camera.grad[0, 1] == pytest.approx(-0.5, abs=0.1)
    assert abs(estimate.camera.grad[0, 2]) < 0.1


# All parts together.


def test_total_is_the_weighted_sum_and_weight_zero_switches_a_part_off():
    output, faces = output_of(random(4, 40))
    settings = Losses(silhouette_size=16)
    losses = hamr_losses(output, labels(), settings, faces)
    assert set(losses) == {*PARTS, "total"}
    weights = {"joints_3d": 1000, "joints_2d": 1, "geometric": 1, "camera": 0.1, "heatmap": 100,
               "silhouette": 10}  # fmt: skip
    expected = sum(weights[name] * losses[name] for name in PARTS)
    torch.testing.assert_close(losses["total"], expected)
    stacks = [output._replace(heatmaps=[maps]) for maps in output.heatmaps]
    each = [hamr_losses(one, labels(), settings, faces)["heatmap"] for one in stacks]
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
        moved = [i for i in range(4) if gradient[i].any()]
        assert moved == [i for i in range(4) if i not in blind[name]], name
    # The loss is that of the labelled samples alone: it does not shrink with the blind ones.
    for name in blind:
        if name == "geometric":
            continue
        seeing = [i for i in range(4) if i not in blind[name]]
        some, faces = output_of(raw[seeing])
        alone = hamr_losses(some, {k: v[seeing] for k, v in batch.items()}, settings, faces)
        torch.testing.assert_close(alone[name], losses[name], msg=name)


def test_a_prediction_that_is_nan_shows():
    """Masks hide missing labels, never a network that has blown up."""
    output, faces = output_of(random(4, 40))
    broken = output.estimates[0]._replace(joints_3d=torch.full((4, 21, 3), NAN))
    losses = hamr_losses(output._replace(estimates=[broken]), labels(), Losses(), faces)
    assert losses["joints_3d"].isnan() and losses["total"].isnan()


def test_losses_are_float32_under_autocast():
    output, faces = output_of(random(4, 40))
    batch, settings = labels(), Losses(heatmap_kind="cross_entropy", silhouette_size=16)
    plain = hamr_losses(output, batch, settings, faces)
    with torch.autocast("cpu", torch.bfloat16):
        under = hamr_losses(output, batch, settings, faces)
    for name, value in plain.items():
        torch.testing.assert_close(under[name], value, msg=name)
