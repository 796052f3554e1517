"""The hand model laid onto heat maps and landmarks: its derivatives, its energy, its ends."""

import numpy as np
import pytest
import roma
import torch
from scipy.optimize import least_squares

from hamr_lib.config import load_settings
from hamr_lib.hand.layer import load_hand
from hamr_lib.joints import NUM_JOINTS
from hamr_lib.model.hamr import HAMR, Output
from hamr_lib.recovery import refine
from hamr_lib.recovery.refine import Points, Seen, confidence, fit, lay, left_jacobian, read_maps


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


def test_confidence_is_the_share_of_a_map_near_a_joint():
    maps = torch.full((1, 21, 32, 32), -30.0)
    maps[:, :, 8, 24] = 0.0  # x = 17 / 32, y = -15 / 32
    place = torch.tensor([17.0, -15.0]).expand(1, 21, 2) / 32
    assert confidence(maps, place).min() > 0.999
    assert confidence(maps, place + 0.1).min() > 0.999
    assert confidence(maps, place + 0.2).max() < 0.001
    flat = confidence(torch.zeros(1, 21, 32, 32), torch.zeros(1, 21, 2))
    assert flat.mean().item() == pytest.approx(np.pi * refine.NEAR**2 / 4, rel=0.15)


# --- derivatives --------------------------------------------------------------------------------


def test_the_jacobian_of_rotations():
    """exp(v + d) = exp(J d) exp(v) for a small d; at zero J is the identity."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(20, 3, generator=generator).double()
    d = 1e-6 * torch.randn(20, 3, generator=generator).double()
    moved = roma.rotvec_to_rotmat(v + d) @ roma.rotvec_to_rotmat(v).mT
    expected = (left_jacobian(v) @ d[..., None])[..., 0]
    torch.testing.assert_close(roma.rotmat_to_rotvec(moved), expected, atol=1e-11, rtol=1e-5)
    torch.testing.assert_close(left_jacobian(torch.zeros(1, 3)), torch.eye(3)[None])


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
    place, slopes = Points(hand, np.zeros((21, 3)))(betas, rotation, 0.5 * pose)
    torch.testing.assert_close(place[0, :NUM_JOINTS], joints_at(*at), atol=1e-8, rtol=0)
    torch.testing.assert_close(place[0, NUM_JOINTS:], place[0, :NUM_JOINTS])
    by_turn, by_pose, by_shape = torch.autograd.functional.jacobian(joints_at, at)
    expected = torch.cat([by_turn, 2 * by_pose, by_shape], -1)[:, :, 0]
    torch.testing.assert_close(slopes[0, :NUM_JOINTS], expected, atol=1e-7, rtol=0)


def test_an_offset_moves_with_its_bone(network):
    """At rest a landmark lies where the table says, and it turns as the hand does."""
    offsets = np.random.default_rng(0).normal(0, 0.005, (21, 3))
    hand = network.hand
    points, rotation = Points(hand, offsets), roma.random_rotmat(1).double()
    still = -hand.hand_mean[None] @ torch.linalg.pinv(hand.layer.hand_components)
    place, _ = points(torch.zeros(1, 10).double(), rotation, still)
    moved = (place[0, NUM_JOINTS:] - place[0, :NUM_JOINTS]) @ rotation[0]
    np.testing.assert_allclose(moved.norm(dim=1), np.linalg.norm(offsets, axis=1), atol=1e-8)
    np.testing.assert_allclose(moved[0], offsets[0], atol=1e-8)


# --- fits ---------------------------------------------------------------------------------------


def seen_of(network, truth, noise=0.0, seed=0):
    """`Seen` of known hands: both kinds of 2-D points and the 3-D landmarks."""
    generator = torch.Generator().manual_seed(seed)
    place, _ = refine.model_points(network.hand)(truth.betas, truth.rotation, truth.hand_pose)
    flat = truth.camera[:, None, :1] * place[..., :2] + truth.camera[:, None, 1:]
    flat = flat + noise * torch.randn(flat.shape, generator=generator).double()
    weights = torch.full(flat.shape[:2], refine.LEAST**-2).double()
    world = place[:, NUM_JOINTS:] - place[:, NUM_JOINTS:].mean(1, keepdim=True)
    return Seen(flat, weights, 1.2 * world, torch.full((len(flat),), refine.SIGMA_3D**-2).double())


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
        place, _ = refine.model_points(network.hand)(betas, rotation, pose)
        scale = (start.camera[:, :1] * part[0].exp())[..., None]
        flat = scale * place[..., :2] + (start.camera[:, 1:] + part[1])[:, None]
        solid = place[:, NUM_JOINTS:] - place[:, NUM_JOINTS:].mean(1, keepdim=True)
        return np.concatenate([
            ((flat - seen.points) / refine.LEAST).flatten().numpy(),
            ((solid - part[5].exp() * seen.world) / refine.SIGMA_3D).flatten().numpy(),
            change / near, ((pose - poses.mean(0))[0].numpy()) / spread, betas[0].numpy(),
        ])  # fmt: skip

    with torch.no_grad():
        best = least_squares(residuals, np.zeros(len(near)), xtol=1e-12, ftol=1e-12, gtol=1e-12)
        fitted, _ = fit(network, start, seen)
    np.testing.assert_allclose(
        (fitted.hand_pose - start.hand_pose)[0], best.x[6 : 6 + count], atol=1e-4
    )
    np.testing.assert_allclose(
        (fitted.betas - start.betas)[0], best.x[6 + count : 16 + count], atol=1e-4
    )
    assert fitted.camera[0, 0].item() == pytest.approx(
        start.camera[0, 0].item() * np.exp(best.x[0]), rel=1e-4
    )


def test_from_afar_the_steps_go_down(network, monkeypatch):
    """Undamped steps diverge from starts that are turned by a radian or two."""
    truth, start = hands(network, 8), hands(network, 8, seed=1)
    seen = seen_of(network, truth)
    energies = []
    for steps in (1, 3, 10):
        monkeypatch.setattr(refine, "STEPS", steps)
        with torch.no_grad():
            fitted, energy = fit(network, start, seen)
        energies.append(energy)
        assert torch.isfinite(fitted.vertices).all()
    assert energies[-1].mean() < energies[1].mean() < energies[0].mean()
    # What comes back is one hand: its joints are those of its mesh and camera.
    again = network.compose(fitted.camera, fitted.rotation, fitted.hand_pose, fitted.betas)
    torch.testing.assert_close(fitted.joints_2d, again.joints_2d)
    torch.testing.assert_close(fitted.vertices, again.vertices)


@pytest.mark.parametrize("evidence", ["network", "landmarks", "both"])
def test_a_hand_is_laid_onto_what_is_seen_of_it(network, evidence):
    """Maps and landmarks are those of one hand, the network's estimate is of another."""
    off = []
    for seed in range(5):
        [truth, start] = (hands(network, 1, seed=seed + i) for i in (0, 100))
        truth = network.compose(truth.camera, start.rotation, truth.hand_pose, truth.betas)
        axis = (torch.arange(32) + 0.5) / 16 - 1
        x, y = ((axis - truth.joints_2d[..., None]) ** 2).unbind(2)
        maps = -(x[:, :, None] + y[..., None]) / (2 * 0.05**2)
        seen = seen_of(network, truth)
        with torch.no_grad():
            fitted = lay(
                network, Output([maps], [start]), evidence,
                seen.points[0, NUM_JOINTS:].numpy(), seen.world[0].numpy(),
            )  # fmt: skip
        before = (start.joints_2d - truth.joints_2d).norm(dim=-1).mean()
        off.append(((fitted.joints_2d - truth.joints_2d).norm(dim=-1).mean() / before).item())
        if evidence != "network":
            depth = (fitted.joints_3d - truth.joints_3d).norm(dim=-1).mean()
            assert depth < 0.015
    assert np.mean(off) < 0.25


def test_a_joint_whose_map_says_nothing_pulls_little(network):
    start = hands(network, 1)
    moved = []
    for weight in (1e3, 1.0):
        seen = seen_of(network, start)
        seen.points[0, 8] += 0.5
        seen.weights[0, 8] = weight
        seen.weights[:, NUM_JOINTS:] = 0
        seen.world_weight[:] = 0
        with torch.no_grad():
            base = fit(network, start, seen_of(network, start))[0]
            fitted = fit(network, start, seen)[0]
        moved.append((fitted.joints_2d - base.joints_2d)[0, 8].norm().item())
    assert moved[0] > 0.1 and moved[1] < 0.1 * moved[0]
