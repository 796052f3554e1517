import math

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from hamr_lib.camera import crop_units_to_grid, hand_tilt
from hamr_lib.config import Augment
from hamr_lib.data import augment as module
from hamr_lib.data.augment import augment, centre_crop, coarsen, draw, occlude, warp
from hamr_lib.data.crops import stored_size
from hamr_lib.errors import HamrError
from hamr_lib.joints import WRIST

SIZE = 64
PLAIN = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0),
         "hue": (1.0, 1.0), "noise": 0.0}  # fmt: skip


def random_images(count=6, size=20, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def dots(joints, stored, size):
    """A batch whose sample i has one soft dot at its one joint (B, 2), in image and mask."""
    pixel = torch.arange(stored)
    at = crop_units_to_grid(joints * size / stored, stored)  # (B, 2) pixels of the stored crop
    x = (-(pixel - at[:, 0, None]).square() / 8).exp()
    y = (-(pixel - at[:, 1, None]).square() / 8).exp()
    dot = (255 * y[:, :, None] * x[:, None, :]).round().byte()
    count = len(joints)
    return {
        "image": dot[:, None].repeat(1, 3, 1, 1),
        "mask": dot,
        "joints_2d": joints[:, None].repeat(1, 21, 1),
        "valid_2d": torch.ones(count, 21, dtype=torch.bool),
        "joints_3d": torch.cat([joints, torch.ones(count, 1)], 1)[:, None].repeat(1, 21, 1) / 10,
    }


def centroid(pictures):
    """(B, H, W) -> (B, 2) pixels: where the weight of each picture is."""
    weight = pictures / pictures.sum((1, 2), keepdim=True)
    pixel = torch.arange(pictures.shape[-1], dtype=weight.dtype)
    return torch.stack([(weight.sum(1) * pixel).sum(1), (weight.sum(2) * pixel).sum(1)], 1)


def test_a_dot_at_a_joint_stays_at_the_joint():
    settings = Augment(scale=(0.9, 1.2), rotation=60.0, shift=0.1, **PLAIN)
    generator = torch.Generator().manual_seed(3)
    joints = torch.rand(200, 2, generator=generator) * 1.4 - 0.7
    batch = dots(joints, stored_size(SIZE, settings), SIZE)
    out = augment(batch, settings, SIZE, generator)
    inside = out["joints_2d"][:, 0].abs().amax(1) < 0.75  # the whole dot is in the picture
    assert inside.sum() > 100
    expected = crop_units_to_grid(out["joints_2d"][inside, 0], SIZE)
    for picture in (out["image"][inside].mean(1), out["mask"][inside]):
        assert (centroid(picture) - expected).norm(dim=1).max() < 0.1
    assert out["image"].shape == (200, 3, SIZE, SIZE)
    assert out["mask"].shape == (200, SIZE, SIZE) and out["mask"].max() <= 1


def test_warp_by_hand():
    # A quarter turn clockwise takes x right to y down; then twice the size; then the shift.
    batch = dots(torch.tensor([[0.2, 0.1]]), 2 * SIZE, SIZE)
    out = warp(batch, torch.tensor([2.0]), torch.tensor([math.pi / 2]), torch.tensor([[0.3, 0.0]]),
               SIZE)  # fmt: skip
    torch.testing.assert_close(out["joints_2d"][0, 0], torch.tensor([-0.2 + 0.3, 0.4]))
    # The metric hand turns with the picture; neither zoom nor shift moves it.
    torch.testing.assert_close(out["joints_3d"][0, 0], torch.tensor([-0.01, 0.02, 0.1]))
    found = centroid(out["mask"])[0]
    expected = crop_units_to_grid(torch.tensor([0.1, 0.4]), SIZE)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_without_any_change_it_is_the_centre_crop():
    settings = Augment(scale=(1.0, 1.0), rotation=0.0, **PLAIN)
    batch = dots(torch.tensor([[0.3, -0.2], [0.0, 0.9]]), SIZE + 20, SIZE)
    generator = torch.Generator().manual_seed(0)
    batch["image"] = torch.randint(0, 256, batch["image"].shape, generator=generator).byte()
    out, centre = augment(batch, settings, SIZE, generator), centre_crop(batch, SIZE)
    for key in ("image", "mask", "joints_2d", "joints_3d"):
        torch.testing.assert_close(out[key], centre[key], atol=1e-4, rtol=0)
    assert torch.equal(centre["image"][0, 0, 0], batch["image"][0, 0, 10, 10:74] / 255)
    with pytest.raises(HamrError, match="40 pixels do not hold network crops of 64"):
        centre_crop({"image": torch.zeros(1, 3, 40, 40)}, 64)


def test_augmentation_never_leaves_the_stored_crop():
    for settings in (
        Augment(scale=(0.9, 1.2), rotation=60.0, **PLAIN),
        Augment(scale=(0.8, 1.0), rotation=20.0, shift=0.15, **PLAIN),
    ):
        stored = stored_size(SIZE, settings)
        white = {"image": torch.full((64, 3, stored, stored), 255, dtype=torch.uint8),
                 "mask": torch.full((64, stored, stored), 255, dtype=torch.uint8),
                 "joints_2d": torch.zeros(64, 21, 2), "valid_2d": torch.ones(64, 21).bool(),
                 "joints_3d": torch.zeros(64, 21, 3)}  # fmt: skip
        out = augment(white, settings, SIZE, torch.Generator().manual_seed(0))
        assert out["image"].min() > 0.999
        # and the margin is no larger than it has to be: the worst case does reach the border
        turn = torch.tensor([math.radians(min(45.0, settings.rotation))])
        worst = warp({key: value[:1] for key, value in white.items()},
                     torch.tensor([settings.scale[0] - 0.05]), turn,
                     torch.full((1, 2), 2 * settings.shift), SIZE)  # fmt: skip
        assert worst["image"].min() < 0.9


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("brightness", [0.2, 0.5, 1.0, 1.3, 1.8, 1.0]),
        ("contrast", [0.3, 0.7, 1.0, 1.2, 1.7, 0.0]),
        ("saturation", [0.4, 0.8, 1.0, 1.3, 1.6, 0.0]),
        ("hue", [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5]),
    ],
)
def test_colours_agree_with_torchvision(name, factors):
    images = random_images()
    images[0, :, :5] = 0.5  # grey, black and white have no hue
    images[1, :, 0], images[2, :, 0] = 0.0, 1.0
    expected = torch.stack(
        [getattr(reference, f"adjust_{name}")(image, f)
         for image, f in zip(images, factors, strict=True)]
    )  # fmt: skip
    ours = getattr(module, f"adjust_{name}")(images.clone(), torch.tensor(factors))
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_noise_is_normal_and_differs_between_samples():
    settings = Augment(scale=(1.0, 1.0), rotation=0.0, **(PLAIN | {"noise": 0.05}))
    grey = {"image": torch.full((8, 3, SIZE, SIZE), 128, dtype=torch.uint8),
            "mask": torch.zeros((8, SIZE, SIZE), dtype=torch.uint8),
            "valid_2d": torch.ones(8, 21).bool(),
            "joints_2d": torch.zeros(8, 21, 2), "joints_3d": torch.zeros(8, 21, 3)}  # fmt: skip
    noise = augment(grey, settings, SIZE, torch.Generator().manual_seed(0))["image"] - 128 / 255
    assert noise.mean().abs() < 1e-3
    assert noise.std() == pytest.approx(0.05, rel=0.02)
    within = (noise.abs() < 0.05).float().mean()
    assert within == pytest.approx(0.6827, abs=0.01)  # one standard deviation of a normal
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(8)
    assert correlation.abs().max() < 0.05


def test_hands_are_turned_upright_where_their_direction_is_known():
    settings = Augment(scale=(1.0, 1.0), rotation=60.0, upright=0.8, **PLAIN)
    generator = torch.Generator().manual_seed(0)
    stored, count = stored_size(SIZE, settings), 400
    joints = torch.rand(count, 21, 2, generator=generator) - 0.5
    valid = torch.ones(count, 21, dtype=torch.bool)
    valid[: count // 2, WRIST] = False
    batch = {"image": torch.zeros(count, 3, stored, stored, dtype=torch.uint8),
             "mask": torch.zeros(count, stored, stored, dtype=torch.uint8),
             "joints_2d": joints, "joints_3d": torch.zeros(count, 21, 3),
             "valid_2d": valid}  # fmt: skip
    out = augment(batch, settings, SIZE, generator)
    unknown, known = hand_tilt(out["joints_2d"]).rad2deg().abs().split(count // 2)
    upright = (known < 30).float().mean()
    # By chance an unknown one lies within 30 degrees of upright in a sixth of the cases.
    assert upright == pytest.approx(0.8 + 0.2 / 6, abs=0.08)
    assert (unknown < 30).float().mean() == pytest.approx(1 / 6, abs=0.1)


def test_a_patch_shows_the_picture_upside_down_and_hides_the_mask():
    images, mask = random_images(count=2, size=SIZE), torch.ones(2, SIZE, SIZE)
    patch = torch.tensor([[0.25, -0.5, 0.25, 0.125], [0.5, 0.5, 0.25, 0.25]])
    shown, mask = occlude(images, mask, patch)
    # Its middle is column 40, row 16 of 64; half sides are 8 and 4 pixels.
    inside = mask[0] == 0
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (12, 19, 32, 47)
    assert not inside[12, 32]  # round corners
    assert torch.equal(shown[0, :, 16, 40], images[0, :, 63 - 16, 63 - 40])
    kept = ~inside[None].expand(3, -1, -1)
    assert torch.equal(shown[0][kept], images[0][kept])
    assert mask[1, :32].all() and not mask[1, 48, 48]


def test_a_coarse_picture_keeps_its_means_and_loses_its_detail():
    checks = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2  # black and white pixels
    images = checks.float().expand(3, 3, SIZE, SIZE).clone()
    sharp, half, coarse = coarsen(images.clone(), torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(sharp, images[0])
    torch.testing.assert_close(half, (images[0] + 0.5) / 2)
    torch.testing.assert_close(coarse, torch.full_like(coarse, 0.5))


def test_draws_follow_the_settings():
    settings = Augment(shift=0.1, occlusion=0.3, coarse=0.2)
    drawn = draw(settings, 4000, 4, torch.Generator().manual_seed(0))
    for name, low, high in (
        ("scale", 0.9, 1.2), ("angle", -math.pi / 3, math.pi / 3), ("shift", -0.2, 0.2),
        ("brightness", 0.2, 1.8), ("contrast", 0.3, 1.7), ("saturation", 0.4, 1.6),
        ("hue", -0.1, 0.1),
    ):  # fmt: skip
        least, most = getattr(drawn, name).aminmax()
        near = 0.01 * (high - low)
        assert low <= least < low + near and high - near < most <= high
    assert len(drawn.covered) / 4000 == pytest.approx(0.3, abs=0.03)
    assert len(drawn.coarsened) / 4000 == pytest.approx(0.2, abs=0.03)
    assert 0.99 < drawn.weight.max() <= 1 and drawn.patch[:, 2:].max() <= 0.5
    # What the paper has is drawn as it always was.
    plain = draw(Augment(), 4000, 4, torch.Generator().manual_seed(0))
    assert torch.equal(plain.scale, drawn.scale)
    assert not len(plain.covered) and not len(plain.coarsened)


def test_one_seed_one_result_however_the_batch_is_cut():
    settings = Augment(shift=0.05, occlusion=0.5, coarse=0.5, upright=0.5)
    stored = stored_size(SIZE, settings)
    generator = torch.Generator()
    batch = {"image": torch.randint(0, 256, (4, 3, stored, stored)).byte(),
             "mask": torch.randint(0, 256, (4, stored, stored)).byte(),
             "valid_2d": torch.ones(4, 21).bool(),
             "joints_2d": torch.rand(4, 21, 2), "joints_3d": torch.rand(4, 21, 3)}  # fmt: skip
    whole = augment(batch, settings, SIZE, generator.manual_seed(5))
    again = augment(batch, settings, SIZE, generator.manual_seed(5))
    other = augment(batch, settings, SIZE, generator.manual_seed(6))
    half = {key: value[2:] for key, value in batch.items()}
    part = augment(half, settings, SIZE, generator.manual_seed(5), part=slice(2, 4), count=4)
    for key in ("image", "mask", "joints_2d", "joints_3d"):
        assert torch.equal(whole[key], again[key])
        torch.testing.assert_close(whole[key][2:], part[key], atol=1e-6, rtol=0)
        assert not torch.equal(whole[key], other[key])
