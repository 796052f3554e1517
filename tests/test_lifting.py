"""Lifting: hands drawn as crops show them, what maps would see of them, and what is learnt."""

import dataclasses

import pytest
import torch
from tiny import TinyHand, tiny_settings

from hamr_lib.camera import crop_units_to_grid, ground_truth_camera, project_weak
from hamr_lib.config import Augment, load_settings
from hamr_lib.data.crops import BOX_FACTOR
from hamr_lib.joints import WRIST
from hamr_lib.model.hamr import HAMR
from hamr_lib.model.heatmaps import softargmax_keypoints
from hamr_lib.model.regressor import FEATURES
from hamr_lib.training import pose_prior

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def settings(**train):
    """A network that sees places, with weights and a schedule under which it learns quickly."""
    model = {"joint_features": True, "dropout": 0.0, "hidden": 64}
    small = tiny_settings(model, learning_rate=3e-3, **train)
    return dataclasses.replace(small, losses=load_settings("cpu").losses)


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1.2, 0.1)])
def test_hands_fill_crops_as_labelled_and_augmented_ones_do(scale, shift):
    moved = Augment(scale=(scale, scale), shift=shift)
    hands = pose_prior.random_hands(TinyHand(), moved, 100, generator())
    low, high = hands["joints_2d"].amin(1), hands["joints_2d"].amax(1)
    longest = torch.full((100,), scale * 2 / BOX_FACTOR)
    torch.testing.assert_close((high - low).amax(1), longest, atol=1e-5, rtol=0)
    middle = ((low + high) / 2).abs().max()  # of the two units of a side
    assert 1.5 * shift - 1e-5 <= middle <= 2 * shift + 1e-5
    assert (hands["joints_3d"][:, WRIST] == 0).all()


def test_far_away_the_camera_is_a_weak_one(monkeypatch):
    def off(distance):
        monkeypatch.setattr(pose_prior, "DISTANCE", (distance, distance))
        hands = pose_prior.random_hands(TinyHand(), Augment(), 20, generator())
        camera = ground_truth_camera(hands["joints_3d"], hands["joints_2d"])
        return (project_weak(hands["joints_3d"], camera) - hands["joints_2d"]).abs().max()

    # From near, what is behind the wrist looks smaller.
    assert off(100.0) < 3e-3 and off(0.25) > 0.05


def test_a_joint_is_as_sure_as_the_map_of_its_gaussian(monkeypatch):
    """`softargmax_keypoints` of a map whose logits are a Gaussian's, of the target's and the blur's
    variance together."""
    blur = 0.1
    monkeypatch.setattr(pose_prior, "BLUR", (blur, blur))
    chosen = load_settings("paper")
    size = chosen.model.image_size // chosen.model.map_stride
    places = pose_prior.noisy_keypoints(torch.zeros(500, 21, 2), chosen, generator())
    assert places[..., :2].std() == pytest.approx(blur, rel=0.02)
    variance = chosen.losses.heatmap_variance + (blur * size / 2) ** 2
    pixels = torch.arange(size) - crop_units_to_grid(torch.zeros(1), size)
    logits = -(pixels[:, None].square() + pixels.square()) / (2 * variance)
    [[sure]] = softargmax_keypoints(logits.expand(1, 21, size, size))[:, :1, 2].tolist()
    assert places[..., 2].unique().tolist() == pytest.approx([sure], rel=1e-3)


def test_hands_are_exact_whatever_the_images_are_computed_in():
    chosen = settings()
    network = HAMR(chosen.model, TinyHand())
    loss = pose_prior.lifting_loss(network, chosen, 16, generator())
    with torch.autocast("cpu", torch.bfloat16):
        again = pose_prior.lifting_loss(network, chosen, 16, generator())
    assert loss.dtype == torch.float32 and again.item() == loss.item()


@pytest.mark.slow
def test_it_learns_to_lift():
    chosen = settings(lift_steps=600)
    torch.manual_seed(0)
    network = HAMR(chosen.model, TinyHand())
    hands = pose_prior.random_hands(network.hand, chosen.augment, pose_prior.BATCH, generator(7))
    places = pose_prior.noisy_keypoints(hands["joints_2d"], chosen, generator(8))

    @torch.no_grad()
    def error(noise):
        """Of joints, metres, with features of noise in place of zeros."""
        regression = network.regressor
        features = noise * torch.randn(pose_prior.BATCH, regression.sizes[0])
        there = noise * torch.randn(pose_prior.BATCH, 21, FEATURES)
        known = regression.first_layer(features, places, there)
        raw = regression.iterate(known, places, network.project)
        found = network.decode(raw[-1]).joints_3d
        return (found - hands["joints_3d"]).norm(dim=-1).mean().item()

    before, told = error(noise=0.0), []
    other = {k: v.clone() for k, v in network.state_dict().items() if "layers" not in k}
    pose_prior.lift(network, chosen, generator(), told.append)
    assert told == list(range(1, 601))
    after = error(noise=0.0)
    assert before > 0.08 and after < 0.5 * before
    # Until images say what features mean, they change nothing; and nothing else was touched.
    assert error(noise=1.0) == pytest.approx(after, rel=1e-4)
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in other.items())
