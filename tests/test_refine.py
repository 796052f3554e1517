"""The hand model fitted to heat maps and landmarks: its derivatives, its energy, its ends."""

import numpy as np
import pytest
import roma
import torch
from scipy.optimize import least_squares

from hamr_lib.config import load_settings
from hamr_lib.hand.layer import load_hand
from hamr_lib.model.hamr import HAMR, Output
from hamr_lib.recovery import refine
from hamr_lib.recovery.refine import Seen, fit, joints_and_slopes


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
    peaks, variance = refine.read_maps(logits)
    expected = (2 * middle + 1) / size - 1
    torch.testing.assert_close(peaks, expected[:, None].expand(-1, 21, -1), atol=1e-4, rtol=0)
    expected = (sigma * 2 / size) ** 2
    torch.testing.assert_close(variance, expected[:, None].expand(-1, 21), atol=0, rtol=0.01)


def test_confidence_is_the_fraction_of_a_map_near_a_joint():
    maps = torch.full((1, 21, 32, 32), -30.0)
    maps[:, :, 8, 24] = 0.0  # x = 17 / 32, y = -15 / 32
    place = torch.tensor([17.0, -15.0]).expand(1, 21, 2) / 32
    assert refine.confidence(maps, place).min() > 0.999
    assert refine.confidence(maps, place + 0.1).min() > 0.999
    assert refine.confidence(maps, place + 0.2).max() < 0.001
    flat = refine.confidence(torch.zeros(1, 21, 32, 32), torch.zeros(1, 21, 2))
    assert flat.mean().item() == pytest.approx(np.pi * refine.AROUND**2 / 4, rel=0.15)


# --- derivatives --------------------------------------------------------------------------------


def test_the_jacobian_of_rotations():
    """exp(v + d) = exp(J d) exp(v) for a small d; at zero J is the identity."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(20, 3, generator=generator).double()
    d = 1e-6 * torch.randn(20, 3, generator=generator).double()
    moved = roma.rotvec_to_rotmat(v + d) @ roma.rotvec_to_rotmat(v).mT
    expected = (refine.left_jacobian(v) @ d[..., None])[..., 0]
    torch.testing.assert_close(roma.rotmat_to_rotvec(moved), expected, atol=1e-11, rtol=1e-5)
    torch.testing.assert_close(refine.left_jacobian(torch.zeros(1, 3)), torch.eye(3)[None])


@pytest.mark.parametrize("poses, joints", [(6, "regressed"), (22, "kinematic"), (45, "regressed")])
def test_points_and_derivatives_are_those_of_the_layer(poses, joints):
    hand = load_hand("open", pose_components=poses, joints=joints).double()
    generator = torch.Generator().manual_seed(1)
    betas, pose = (torch.randn(1, n, generator=generator).double() for n in (10, poses))
    rotation = roma.random_rotmat(1).double()

    def joints_at(turn, pose, betas):
        place = hand.skeleton(betas, roma.rotvec_to_rotmat(turn) @ rotation, 0.5 * pose)[0]
        return place - place[:1]

    at = (torch.zeros(1, 3).double(), pose, betas)
    place, slopes = joints_and_slopes(hand, betas, rotation, 0.5 * pose)
    torch.testing.assert_close(place[0], joints_at(*at), atol=1e-8, rtol=0)
    by_turn, by_pose, by_shape = torch.autograd.functional.jacobian(joints_at, at)
    expected = torch.cat([by_turn, 2 * by_pose, by_shape], -1)[:, :, 0]
    torch.testing.assert_close(slopes[0], expected, atol=1e-7, rtol=0)


# --- fits ---------------------------------------------------------------------------------------


def seen_of(network, truth, noise=0.0):
    """`Seen` of a known hand: its joints in 2-D and, as much larger as they may be, in 3-D."""
    generator = torch.Generator().manual_seed(0)
    flat = truth.joints_2d
    flat = flat + noise * torch.randn(flat.shape, generator=generator).double()
    weights = refine.SIGMA_MAP**-2 * torch.rand(flat.shape[:2], generator=generator).double()
    world = truth.joints_3d - truth.joints_3d.mean(1, keepdim=True)
    return Seen(flat, weights, 1.2 * world, refine.SIGMA_3D**-2)


def test_the_least_of_the_energy_is_scipys(network, monkeypatch):
    monkeypatch.setattr(refine, "STEPS", 60)
    start, truth = hands(network, 1), hands(network, 1, seed=1)
    truth = network.compose(start.camera * 1.1, start.rotation, truth.hand_pose, truth.betas)
    seen = seen_of(network, truth, noise=0.02)
    poses = network.hand.poses
    spread, count = poses.std(0).numpy(), poses.shape[1]
    near = np.concatenate([
        np.full(3, refine.CAMERA), np.full(3, refine.TURN), refine.POSE * spread,
        np.full(10, refine.SHAPE), [100.0],
    ])  # fmt: skip

    def residuals(change):
        part = torch.from_numpy(change)[None].split([1, 2, 3, count, 10, 1], dim=1)
        pose, betas = start.hand_pose + part[3], start.betas + part[4]
        rotation = roma.rotvec_to_rotmat(part[2]) @ start.rotation
        place = network.hand.skeleton(betas, rotation, pose)
        place = place - place[:, :1]
        scale = (start.camera[:, :1] * part[0].exp())[..., None]
        flat = scale * place[..., :2] + (start.camera[:, 1:] + part[1])[:, None]
        solid = place - place.mean(1, keepdim=True)
        return np.concatenate([
            ((flat - seen.points) * seen.weights.sqrt()[..., None]).flatten().numpy(),
            ((solid - part[5].exp() * seen.world) / refine.SIGMA_3D).flatten().numpy(),
            change / near, ((pose - poses.mean(0))[0].numpy()) / spread, betas[0].numpy(),
        ])  # fmt: skip

    with torch.no_grad():
        best = least_squares(residuals, np.zeros(len(near)), xtol=1e-12, ftol=1e-12, gtol=1e-12)
        fitted, _ = fit(network, start, seen)
    change = torch.cat([fitted.hand_pose - start.hand_pose, fitted.betas - start.betas], 1)
    np.testing.assert_allclose(change[0], best.x[6:-1], atol=1e-4)
    scale = (fitted.camera / start.camera)[0, 0].item()
    assert scale == pytest.approx(np.exp(best.x[0]), rel=1e-4)


def test_from_afar_the_steps_go_down(network, monkeypatch):
    """Undamped steps diverge from starts that are turned by a radian or two."""
    truth, starts, energies = hands(network, 1), hands(network, 8, seed=1), []
    for steps in (1, 3, 10):
        monkeypatch.setattr(refine, "STEPS", steps)
        with torch.no_grad():
            fitted, energy = fit(network, starts, seen_of(network, truth))
        energies.append(energy)
        assert torch.isfinite(fitted.vertices).all()
    assert energies[-1].mean() < energies[1].mean() < energies[0].mean()


def maps_of(truth):
    """Logits of Gaussians about the joints, (1, 21, 32, 32)."""
    axis = (torch.arange(32) + 0.5) / 16 - 1
    x, y = ((axis - truth.joints_2d[..., None]) ** 2).unbind(2)
    return -(x[:, :, None] + y[..., None]) / (2 * 0.05**2)


def test_a_landmark_far_from_its_map_counts_little(network):
    truth = hands(network, 1)
    landmarks = truth.joints_2d[0].numpy().copy()
    landmarks[8] += 0.4  # crop units: the tip of the index finger
    off = {}
    for evidence in ("landmarks", "both"):
        with torch.no_grad():
            fitted = refine.lay(network, Output([maps_of(truth)], [truth]), evidence, landmarks)
        off[evidence] = (fitted.joints_2d - truth.joints_2d)[0, 8].norm().item()
    assert off["both"] < 0.1 * off["landmarks"]


@pytest.mark.parametrize("evidence", ["network", "landmarks", "both"])
def test_a_hand_is_fitted_to_what_is_seen_of_it(network, evidence):
    """Maps and landmarks are those of one hand, the network's estimate is of another."""
    off = []
    for seed in range(5):
        [truth, start] = (hands(network, 1, seed=seed + i) for i in (0, 100))
        truth = network.compose(truth.camera, start.rotation, truth.hand_pose, truth.betas)
        maps, seen = maps_of(truth), seen_of(network, truth)
        with torch.no_grad():
            fitted = refine.lay(
                network, Output([maps], [start]), evidence,
                seen.points[0].numpy(), seen.world[0].numpy(),
            )  # fmt: skip
        before = (start.joints_2d - truth.joints_2d).norm(dim=-1).mean()
        off.append(((fitted.joints_2d - truth.joints_2d).norm(dim=-1).mean() / before).item())
        if evidence != "network":
            depth = (fitted.joints_3d - truth.joints_3d).norm(dim=-1).mean()
            assert depth < 0.015
    assert np.mean(off) < 0.25
