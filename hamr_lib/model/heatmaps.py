"""Heat maps to 2-D keypoints: their peaks, their means, and the features there."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hamr_lib.joints import NUM_JOINTS


def heatmap_peaks(heatmaps: Tensor) -> Tensor:
    """Find the highest point of raw maps (B, M, h, h), M >= 21: (B, 21, 2) crop units.

    The highest pixel moves along each axis to the top of the parabola through it and its two
    neighbours. This is exact for the logits of a Gaussian, and at most 0.02 pixels off for a
    Gaussian of variance 2.5. On the border of the map the pixel itself is taken.
    """
    size = heatmaps.shape[-1]
    flat = heatmaps[:, :NUM_JOINTS].float().flatten(2)
    top = flat.argmax(dim=2)
    centre = torch.stack([top % size, top // size], dim=-1)  # (B, 21, 2) as x, y
    inside = ((centre > 0) & (centre < size - 1)).to(flat.dtype)
    # Values at the peak and one pixel to either side of it, along x and along y.
    step = torch.tensor([1, size], device=flat.device)
    before, peak, after = (
        flat.gather(2, (top[..., None] + side * step).clamp(0, size * size - 1))
        for side in (-1, 0, 1)
    )
    curvature = 2 * peak - before - after  # >= 0, for nothing is higher than the peak
    offset = (after - before) / (2 * curvature.clamp_min(1e-12)) * inside
    return (2 * (centre + offset.clamp(-0.5, 0.5)) + 1) / size - 1


def softargmax_keypoints(heatmaps: Tensor) -> Tensor:
    """Take the mean of the softmax of logits (B, M, h, h), M >= 21, and how peaked it is.

    They are (B, 21, 3): x, y in crop units, and the sum of the squared probabilities, at most 1.
    """
    maps = heatmaps[:, :NUM_JOINTS].float()
    axis = cell_centres(maps.shape[-1], -1.0, 1.0, maps)
    yx, probability = soft_argmax(maps, (axis, axis))
    confidence = probability.square().sum((2, 3))
    return torch.cat([yx.flip(-1), confidence[..., None]], dim=-1)


def soft_argmax(maps: Tensor, axes: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Take the mean coordinates of each map under its softmax (Sun et al. 2018).

    Args:
        maps: (B, 21, n_1, ..., n_k), logits; k is at least 2.
        axes: k tensors (n_i,), the coordinates of the map's cells along each dimension.

    Returns:
        (B, 21, k) coordinates, and the softmax, shaped like `maps`.
    """
    probability = maps.flatten(2).softmax(dim=-1).view_as(maps)
    dims = set(range(2, maps.ndim))
    means = [
        (probability.sum(dim=sorted(dims - {dim})) * axis).sum(dim=-1)
        for dim, axis in enumerate(axes, start=2)
    ]
    return torch.stack(means, dim=-1), probability


def cell_centres(count: int, low: float, high: float, like: Tensor) -> Tensor:
    """(count,) the centres of `count` equal cells between two ends, on the device of `like`."""
    return low + (torch.arange(count, device=like.device) + 0.5) * ((high - low) / count)


def joint_aligned_features(features: Tensor, keypoints: Tensor) -> Tensor:
    """Read features (B, C, h, h) at keypoints (B, J, 2), crop units, bilinearly: (B, J, C).

    Outside the crop they are zero. No gradient reaches the keypoints.
    """
    grid = keypoints.detach()[:, :, None]
    return F.grid_sample(features, grid, align_corners=False)[..., 0].transpose(1, 2)
