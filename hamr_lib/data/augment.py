"""Augment whole batches by tensor operations, Section 4.1 of the paper.

Each sample has one affine map (scale, rotation, shift). Image and mask are resampled by it in a
single `grid_sample`, and 2-D and 3-D joints follow it. Brightness, contrast, saturation and hue are
the operations of `torchvision.transforms.v2.functional`, with a factor for each sample in place of
one a call.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from hamr_lib.camera import hand_tilt, rotate_in_plane
from hamr_lib.config import Augment
from hamr_lib.errors import HamrError
from hamr_lib.joints import MIDDLE_MCP, WRIST

CACHED = 1 << 20  # pixel values that are sampled at once on a CPU
PATCH = (0.1, 0.5)  # half a side of a patch, in crop units; the latter also of its middle
COARSE = 4  # times fewer pixels a side
GRAY = (0.2989, 0.587, 0.114)  # as torchvision weighs red, green and blue


class Draw(NamedTuple):
    """The random numbers of a batch of B samples."""

    scale: torch.Tensor  # (B,) enlargement of the picture
    angle: torch.Tensor  # (B,) radians, clockwise as seen
    shift: torch.Tensor  # (B, 2) crop units
    brightness: torch.Tensor  # (B,) factors
    contrast: torch.Tensor
    saturation: torch.Tensor
    hue: torch.Tensor  # (B,) turns of the hue circle
    noise: torch.Tensor  # (B, 3 * size * size) deviations, of an image in [0, 1]
    covered: torch.Tensor  # (n,) which samples have a patch
    patch: torch.Tensor  # (n, 4) x, y and half sides in crop units
    coarsened: torch.Tensor  # (m,) which samples are mixed with a coarse copy
    weight: torch.Tensor  # (m,) of the coarse copy
    upright: torch.Tensor  # (B,) bool, which are turned upright

    def to(self, device: torch.device | str) -> "Draw":
        """Move the numbers to a device."""
        return Draw(*(numbers.to(device, non_blocking=True) for numbers in self))


def draw(
    augment: Augment, count: int, size: int, generator: torch.Generator, part: slice = slice(None)
) -> Draw:
    """Draw what a batch of `count` network crops of `size` pixels needs; keep a part of it.

    With several processes each draws for the whole batch and keeps its own part, so that the
    numbers do not depend on how many there are.
    """

    def uniform(low, high, *shape):
        unit = torch.rand(count, *shape, generator=generator, device=generator.device)
        return (low + (high - low) * unit)[part]

    numbers = {
        "scale": uniform(*augment.scale),
        "angle": torch.deg2rad(uniform(-augment.rotation, augment.rotation)),
        "shift": 2 * uniform(-augment.shift, augment.shift, 2),  # a crop is 2 units wide
        "brightness": uniform(*augment.brightness),
        "contrast": uniform(*augment.contrast),
        "saturation": uniform(*augment.saturation),
        "hue": (uniform(*augment.hue) - 1) / 8,  # see `Augment.hue`
    }
    # Each sample reads its noise from its own random offset in one field of twice its size: normal
    # numbers for every pixel would cost as much as everything else.
    pixels = 3 * size * size
    field = torch.randn(2 * pixels, generator=generator, device=generator.device) * augment.noise
    start = uniform(0, pixels).long()
    numbers["noise"] = field.unfold(0, pixels, 1)[start]
    covered = (uniform(0, 1) < augment.occlusion).nonzero()[:, 0]
    patch = torch.cat([uniform(-PATCH[1], PATCH[1], 2), uniform(*PATCH, 2)], dim=1)[covered]
    coarsened = (uniform(0, 1) < augment.coarse).nonzero()[:, 0]
    weight = uniform(0, 1)[coarsened]
    numbers["upright"] = uniform(0, 1) < augment.upright
    return Draw(**numbers, covered=covered, patch=patch, coarsened=coarsened, weight=weight)


def augment(
    batch: dict,
    settings: Augment,
    size: int,
    generator: torch.Generator,
    part: slice = slice(None),
    count: int = 0,
) -> dict:
    """Augment a batch of `data.crops.Crops.batch` to network crops of `size` pixels.

    The generator, of the CPU, is the only source of randomness. Where a batch is cut among
    processes, `part` and `count` tell which of how many samples these are.

    Returns:
        The batch with image (B, 3, size, size) and mask (B, size, size), float in [0, 1], and
        joints_2d, joints_3d as they then appear.
    """
    count = count or len(batch["image"])
    drawn = draw(settings, count, size, generator, part).to(batch["image"].device)
    upright = drawn.upright & batch["valid_2d"][:, [WRIST, MIDDLE_MCP]].all(1)
    from_upright = drawn.angle / 2 - hand_tilt(batch["joints_2d"])
    angle = torch.where(upright, from_upright, drawn.angle)
    moved = warp(batch, drawn.scale, angle, drawn.shift, size)
    image, mask, some = moved["image"], moved["mask"], drawn.covered
    image[some], mask[some] = occlude(image[some], mask[some], drawn.patch)
    image[drawn.coarsened] = coarsen(image[drawn.coarsened], drawn.weight)
    adjust_brightness(image, drawn.brightness)
    adjust_contrast(image, drawn.contrast)
    adjust_saturation(image, drawn.saturation)
    adjust_hue(image, drawn.hue)
    image.add_(drawn.noise.view_as(image)).clamp_(0, 1)
    return moved


def centre_crop(batch: dict, size: int) -> dict:
    """Cut a batch of stored crops as the network sees it without augmentation; see `augment`."""
    edge = (_stored(batch, size) - size) // 2
    inside = (..., slice(edge, edge + size), slice(edge, edge + size))
    return batch | {key: batch[key][inside].float().div_(255) for key in ("image", "mask")}


def warp(
    batch: dict, scale: torch.Tensor, angle: torch.Tensor, shift: torch.Tensor, size: int
) -> dict:
    """Move points x of crops to s R x + t: scale (B,), angle (B,) radians, shift (B, 2)."""
    reach = _stored(batch, size) / size  # half sides of the network crop that are stored
    cos, sin = angle.cos() / (scale * reach), angle.sin() / (scale * reach)
    # R(-angle) / (s * reach): from the new crop's units back to the stored crop's.
    back = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)
    theta = torch.cat([back, -back @ shift[:, :, None]], dim=2)
    # On a CPU, parts that fit its cache take half the time.
    count = max(2, CACHED // (4 * batch["image"].shape[-1] ** 2))
    count = len(theta) if theta.is_cuda else count
    parts = (tensor.split(count) for tensor in (batch["image"], batch["mask"], theta))
    pixels = torch.cat([_sample(*part, size) for part in zip(*parts, strict=True)])
    joints_2d = rotate_in_plane(batch["joints_2d"], angle) * scale[:, None, None] + shift[:, None]
    joints_3d = rotate_in_plane(batch["joints_3d"], angle)
    moved = {"joints_2d": joints_2d, "joints_3d": joints_3d}
    return {**batch, "image": pixels[:, :3], "mask": pixels[:, 3], **moved}


def _sample(image, mask, theta, size):
    """Read image and mask together, (B, 4, size, size) in [0, 1], at theta (B, 2, 3) x grid."""
    stored = image.shape[-1]
    pixels = torch.empty(len(image), 4, stored, stored, device=image.device)
    pixels[:, :3], pixels[:, 3] = image, mask
    # What F.affine_grid gives for align_corners=False, in a seventh of its time on a CPU.
    unit = _centres(size, theta.device)
    grid = theta.new_empty(len(theta), size, size, 2)
    for axis in (0, 1):
        along_x = theta[:, axis, 0, None] * unit
        along_y = theta[:, axis, 1, None] * unit + theta[:, axis, 2, None]
        torch.add(along_x[:, None, :], along_y[:, :, None], out=grid[..., axis])
    return F.grid_sample(pixels, grid, align_corners=False).div_(255)


def _centres(size, device):
    """The pixels' centres (size,) in crop units."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1


def occlude(
    image: torch.Tensor, mask: torch.Tensor, patch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay a patch (B, 4) of each image, turned upside down, over its hand; see `Draw`.

    A patch of the image itself (background, arm, other fingers) has the image's sharpness and
    light, which a patch of one colour has not. Its corners are round.

    Returns:
        The image (B, 3, size, size), and the mask (B, size, size) without what is hidden.
    """
    unit = _centres(mask.shape[-1], mask.device)
    middle, reach = patch[:, :2, None], patch[:, 2:, None]
    along_x, along_y = ((unit - middle) / reach).pow(4).unbind(1)
    hidden = ((along_x[:, None, :] + along_y[:, :, None]) < 1).to(image.dtype)
    # Choosing by lerp with 0 or 1 is exact, and far faster than torch.where on a CPU.
    return image.lerp(image.flip((2, 3)), hidden[:, None]), mask * (1 - hidden)


def coarsen(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mix (B, 3, H, W) with itself in `COARSE` times fewer pixels a side, by weights (B,)."""
    size = image.shape[-2:]
    few = F.interpolate(image, [max(1, side // COARSE) for side in size], mode="area")
    return image.lerp_(F.interpolate(few, size, mode="bilinear"), _each(weight))


def adjust_brightness(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply (B, 3, H, W) in [0, 1] by factor (B,), clamped, in place like the next three."""
    return image.mul_(_each(factor)).clamp_(0, 1)


def adjust_contrast(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move away from (factor > 1) or towards the mean grey of each image."""
    mean = (image.mean((2, 3)) * image.new_tensor(GRAY)).sum(1)
    return image.mul_(_each(factor)).add_(_each((1 - factor) * mean)).clamp_(0, 1)


def adjust_saturation(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move away from (factor > 1) or towards the grey of each pixel."""
    red, green, blue = image.unbind(1)
    gray = red * GRAY[0] + green * GRAY[1] + blue * GRAY[2]
    gray *= (1 - factor)[:, None, None]
    return image.mul_(_each(factor)).add_(gray[:, None]).clamp_(0, 1)


def adjust_hue(image: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Rotate the hue of each image by turn (B,) of the HSV circle."""
    red, green, blue = image.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Hue in sextants of the circle: 0 at red, 2 at green, 4 at blue; a grey has none and needs
    # none. Choosing by lerp with 0 or 1 is exact, and far faster than torch.where on a CPU.
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), value.clone().eq_(green))
    hue.lerp_(green - blue, value.clone().eq_(red))
    hue /= chroma.clamp(min=1e-12)
    hue += 6 * turn[:, None, None]
    hue -= (hue / 6).floor_().mul_(6)
    # Full up to one sextant from a colour's own, nothing from two on.
    red.copy_(value - chroma * (hue - 3).abs_().neg_().add_(2).clamp_(0, 1))
    green.copy_(value - chroma * (hue - 2).abs_().sub_(1).clamp_(0, 1))
    blue.copy_(value - chroma * (hue - 4).abs_().sub_(1).clamp_(0, 1))
    return image


def _each(numbers):
    return numbers[:, None, None, None]


def _stored(batch, size):
    stored = batch["image"].shape[-1]
    if stored < size or (stored - size) % 2:
        raise HamrError(f"stored crops of {stored} pixels do not hold network crops of {size}")
    return stored
