import numpy as np
import pytest
import roma
import torch
from scipy.optimize import least_squares

from hamr_lib.config import load_settings
from hamr_lib.hand.layer import load_hand
from hamr_lib.model.hamr import HAMR
from hamr_lib.recovery import refine
from hamr_lib.recovery.refine import CAMERA, LEAST, POSE, SHAPE, TURN, fit, read_maps


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    settings = load_settings("smoke")
    hand = load_hand("open", pose_components=settings.hand.pose_components)
    return HAMR(settings.model, hand).eval().double()


def hands(network, count, seed=0):
    """Random hands, as `Estimate`s (count, ...)."""
    generator = torch.Generator().manual_seed(seed)
    poses = network.hand.pose_components
    camera, turn, pose, betas = (
        torch.randn(count, n, generator=generator).double() for n in (3, 3, poses, 10)
    )
    camera = camera * torch.tensor([0.5, 0.1, 0.1]) + torch.tensor([8.0, 0, 0])
    return network.compose(camera, roma.rotvec_to_rotmat(turn), 0.5 * pose, 0.5 * betas)


def test_peak_and_spread_of_gaussian_maps_are_read():
    """A Gaussian's logits fall by the square; its variance along an axis is what it says."""
    size, sigma = 32, torch.tensor([1.5, 2.5])
    middle = torch.tensor([[12.0, 17.25], [15.5, 13.0]])  # pixels, (x, y), of 2 images
    pixels = torch.arange(size)
    square = (pixels[None, None] - middle[:, 0, None, None]) ** 2
    square = square + (pixels[None, :, None] - middle[:, 1, None, None]) ** 2
    logits = (-square / (2 * sigma[:, None, None] ** 2))[:, None].expand(-1, 21, -1, -1)
    peaks, variance = read_maps(logits)
    expected = (2 * middle + 1) / size - 1
    torch.testing.assert_close(peaks, expected[:, None].expand(-1, 21, -1), atol=1e-4, rtol=0)
    expected = (sigma * 2 / size) ** 2
    torch.testing.assert_close(variance, expected[:, None].expand(-1, 21), atol=0, rtol=0.01)


def test_the_least_of_the_energy_is_scipys(network, monkeypatch):
    monkeypatch.setattr(refine, "STEPS", 12)
    start, truth = hands(network, 1), hands(network, 1, seed=1)
    points = torch.lerp(start.joints_2d, truth.joints_2d, 0.3)
    variance = torch.rand(1, 21, generator=torch.Generator().manual_seed(2)).double() * 0.05
    poses = network.hand.pose_components
    reach = np.repeat([CAMERA, CAMERA, TURN, POSE, SHAPE], [1, 2, 3, poses, 10])
    sure = (variance + LEAST**2).rsqrt()[0, :, None].numpy()

    def residuals(change):
        part = torch.from_numpy(change)[None].split([1, 2, 3, poses, 10], dim=1)
        camera = torch.cat([start.camera[:, :1] * part[0].exp(), start.camera[:, 1:] + part[1]], 1)
        rotation = roma.rotvec_to_rotmat(part[2]) @ start.rotation
        hand = network.compose(
            camera, rotation, start.hand_pose + part[3], start.betas + part[4], False
        )
        off = (hand.joints_2d[0] - points[0]).numpy()
        return np.concatenate([(off * sure).ravel(), change / reach])

    with torch.no_grad():
        best = least_squares(residuals, np.zeros(len(reach)), xtol=1e-12, ftol=1e-12, gtol=1e-12)
        fitted = fit(network, start, points, variance)
    zoom, bend = best.x[0], best.x[6 : 6 + poses]
    assert fitted.camera[0, 0].item() == pytest.approx(start.camera[0, 0].item() * np.exp(zoom))
    np.testing.assert_allclose((fitted.hand_pose - start.hand_pose)[0], bend, atol=1e-5)
    turn = roma.rotmat_to_rotvec(fitted.rotation @ start.rotation.mT)[0]
    np.testing.assert_allclose(turn, best.x[3:6], atol=1e-5)


def test_two_steps_go_most_of_the_way_and_agreement_changes_nothing(network):
    start, others = hands(network, 5), hands(network, 5, seed=1)
    sharp = torch.full((5, 21), 1e-4).double()
    with torch.no_grad():
        near = network.compose(
            start.camera * 1.05, start.rotation,
            torch.lerp(start.hand_pose, others.hand_pose, 0.3), start.betas,
        )  # fmt: skip
        fitted = fit(network, start, near.joints_2d, sharp)
        same = fit(network, start, start.joints_2d, sharp)
    before = (start.joints_2d - near.joints_2d).norm(dim=-1).mean(1)
    after = (fitted.joints_2d - near.joints_2d).norm(dim=-1).mean(1)
    assert (after < 0.5 * before).all() and after.mean() < 0.2 * before.mean()
    torch.testing.assert_close(same.vertices, start.vertices)
    # What comes back is one hand: its joints are those of its mesh and camera.
    again = network.compose(fitted.camera, fitted.rotation, fitted.hand_pose, fitted.betas)
    torch.testing.assert_close(fitted.joints_2d, again.joints_2d)
    torch.testing.assert_close(fitted.vertices, again.vertices)


def test_a_joint_whose_map_says_nothing_pulls_little(network):
    start = hands(network, 1)
    points = start.joints_2d.clone()
    points[0, 8] += 0.5
    variance = torch.full((1, 21), 1e-3).double()
    moved = []
    for spread in (1e-3, 0.3):
        variance[0, 8] = spread
        with torch.no_grad():
            fitted = fit(network, start, points, variance)
        moved.append((fitted.joints_2d - start.joints_2d)[0, 8].norm().item())
    assert moved[0] > 0.1 and moved[1] < 0.02
