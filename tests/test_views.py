import math

import pytest
import roma
import torch
from tiny import TinyHand, tiny_settings

from hamr_lib.camera import project_weak
from hamr_lib.data.augment import warp
from hamr_lib.model.hamr import HAMR, Output
from hamr_lib.recovery.views import VIEWS, add_views, points_back, turned_back, views_size


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return HAMR(tiny_settings().model, TinyHand()).eval()


def estimates(network, count, seed=0):
    """Random hands, as `Estimate`s (count, ...)."""
    generator = torch.Generator().manual_seed(seed)
    normal = [torch.randn(count, n, generator=generator) for n in (3, 3, 6, 10)]
    camera = normal[0] * torch.tensor([0.5, 0.2, 0.2]) + torch.tensor([8.0, 0, 0])
    return network.compose(camera, roma.rotvec_to_rotmat(normal[1]), *normal[2:])


def warped(network, estimate, scale, angle):
    """What a network that errs nowhere says of the crops that `warp` makes of (1, ...)."""
    count = len(scale)
    spread = type(estimate)(*(part.expand(count, *part.shape[1:]) for part in estimate))
    blank = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    batch = {"image": blank, "mask": blank[:, 0], "joints_2d": spread.joints_2d,
             "joints_3d": spread.joints_3d}  # fmt: skip
    moved = warp(batch, scale, angle, torch.zeros(count, 2), 32)
    axis = torch.zeros(count, 3)
    axis[:, 2] = angle
    turn = roma.rotvec_to_rotmat(axis)
    offset = (turn[:, :2, :2] @ spread.camera[:, 1:, None])[..., 0]
    camera = torch.cat([spread.camera[:, :1], offset], 1) * scale[:, None]
    found = network.compose(camera, turn @ spread.rotation, spread.hand_pose, spread.betas)
    # So it is what the labels of such crops are.
    torch.testing.assert_close(found.joints_3d, moved["joints_3d"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.joints_2d, moved["joints_2d"], atol=1e-4, rtol=0)
    return found


def test_warped_estimates_are_turned_back(network):
    truth = estimates(network, 1)
    scale, angle = torch.tensor([1.0, 1.3, 0.7]), torch.tensor([0.0, 0.6, -1.1])
    parts = turned_back(warped(network, truth, scale, angle), scale, angle)
    again = network.compose(**parts)
    for part, expected in zip(again, truth, strict=True):
        torch.testing.assert_close(part, expected.expand_as(part), atol=1e-4, rtol=0)
    flat = project_weak(truth.joints_3d, parts["camera"][1:2])
    torch.testing.assert_close(flat, truth.joints_2d, atol=1e-4, rtol=0)


def maps_of(points, size=64, variance=2.5):
    """Logits (B, 21, size, size) of Gaussians about points (B, 21, 2) crop units."""
    at = ((points + 1) * size - 1) / 2
    pixels = torch.arange(size)
    x, y = (pixels - at[..., None]).square().unbind(2)  # (B, 21, size) each
    return -(x[..., None, :] + y[..., None]) / (2 * variance)


def test_views_that_agree_change_nothing_and_others_are_averaged(network, monkeypatch):
    truth, other = estimates(network, 1), estimates(network, 1, seed=1)
    own = Output([maps_of(truth.joints_2d)], [truth])
    scale, degrees = torch.tensor(VIEWS).unbind(1)
    angle = torch.deg2rad(degrees)
    size = views_size(32)
    crop = torch.zeros(3, size, size, dtype=torch.uint8)

    def says(estimate):
        answer = warped(network, estimate, scale, angle)
        return lambda images: Output([maps_of(answer.joints_2d)], [answer])

    inside = truth.joints_2d[0].abs().amax(1) < 0.6  # where every view's maps hold the joint
    assert inside.sum() > 10
    monkeypatch.setattr(network, "forward", says(truth))
    same, points, variance = add_views(network, own, crop)
    torch.testing.assert_close(same.vertices, truth.vertices, atol=1e-4, rtol=0)
    torch.testing.assert_close(same.joints_2d, truth.joints_2d, atol=1e-4, rtol=0)
    torch.testing.assert_close(points[:, inside], truth.joints_2d[:, inside], atol=1e-3, rtol=0)
    # Each view's maps are as wide in its own crop. Drawn back, the nearer view's are narrower and
    # the farther one's wider, so that the mean is about as wide as the crop's own.
    expected = 2.5 * (2 / 64) ** 2
    torch.testing.assert_close(variance[:, inside], torch.full_like(variance[:, inside], expected),
                               atol=0, rtol=0.1)  # fmt: skip
    monkeypatch.setattr(network, "forward", says(other))
    mixed, points, _ = add_views(network, own, crop)
    share = len(VIEWS) / (1 + len(VIEWS))
    for name in ("camera", "betas", "hand_pose"):
        expected = torch.lerp(getattr(truth, name), getattr(other, name), share)
        torch.testing.assert_close(getattr(mixed, name), expected, atol=1e-4, rtol=0)
    assert torch.linalg.det(mixed.rotation).item() == pytest.approx(1, abs=1e-5)
    both = inside & (other.joints_2d[0].abs().amax(1) < 0.6)
    expected = torch.lerp(truth.joints_2d, other.joints_2d, share)
    torch.testing.assert_close(points[:, both], expected[:, both], atol=0.02, rtol=0)


def test_points_are_turned_back(network):
    truth = estimates(network, 1)
    scale, angle = torch.tensor([1.0, 1.3, 0.7]), torch.tensor([0.0, 0.6, -1.1])
    moved = warped(network, truth, scale, angle).joints_2d
    expected = truth.joints_2d.expand(3, -1, -1)
    torch.testing.assert_close(points_back(moved, scale, angle), expected, atol=1e-4, rtol=0)


def test_all_views_lie_within_the_crop(network, monkeypatch):
    """Of a white crop no view shows what is beyond its border."""
    size, seen = views_size(32), []
    truth = estimates(network, 1)
    answer = warped(network, truth, *(n for n in torch.tensor(VIEWS).unbind(1)))
    monkeypatch.setattr(network, "forward", lambda images: (
        seen.append(images), Output([maps_of(answer.joints_2d)], [answer]))[1])  # fmt: skip
    add_views(
        network,
        Output([maps_of(truth.joints_2d)], [truth]),
        torch.full((3, size, size), 255, dtype=torch.uint8),
    )
    assert seen[0].shape == (len(VIEWS), 3, 32, 32) and seen[0].min() > 0.999
    farthest = max(
        (math.cos(math.radians(turn)) + math.sin(math.radians(abs(turn)))) / scale
        for scale, turn in VIEWS
    )
    assert size - 2 <= 32 * farthest <= size  # and it is no larger than it has to be
