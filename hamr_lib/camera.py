"""The cameras: weak perspective (Eq. 4 and 5 of the paper), the full pinhole, and crops.

Frames. 3-D points are metres in the camera's frame: x right, y down, z away from the viewer.
A *pixel* coordinate is (u, v) with the centre of the top-left pixel at (0, 0). A *crop*
coordinate lies in [-1, 1]: -1 and 1 are the outer edges of the first and last pixel of the
square crop, so a crop of `size` pixels has pixel = ((crop + 1) * size - 1) / 2. This is the
convention of `torch.nn.functional.grid_sample(align_corners=False)`.

The weak-perspective camera is (B, 3): scale s in crop units a metre, and the offset (tx, ty) in
crop units.
"""

import torch

from hamr_lib.joints import BONES


def project_weak(points, camera):
    """Weak perspective, Eq. 4: (B, N, 3) metres and (B, 3) camera -> (B, N, 2) crop units."""
    return camera[:, None, :1] * points[..., :2] + camera[:, None, 1:]


def ground_truth_camera(joints_3d, joints_2d, valid=None):
    """The camera that paired labels imply, Eq. 5.

    The scale is the ratio of the mean 2-D bone length to the mean length of the same bones seen
    along the optical axis; the offset is then the mean difference.

    Args:
        joints_3d: (B, 21, 3) metres, any root.
        joints_2d: (B, 21, 2) crop units.
        valid: (B, 21) bool, joints that carry both labels; None for all of them.

    Returns:
        (B, 3) camera; NaN where fewer than two joined joints are valid.
    """
    if valid is None:
        valid = torch.ones(joints_3d.shape[:2], dtype=torch.bool, device=joints_3d.device)
    parent, child = torch.tensor(BONES, device=joints_3d.device).T
    bone_valid = (valid[:, parent] & valid[:, child]).to(joints_3d.dtype)
    # Invalid labels may be NaN, and NaN times zero is NaN: blank them before any sum.
    points_3d = torch.where(valid[..., None], joints_3d, torch.zeros_like(joints_3d))
    points_2d = torch.where(valid[..., None], joints_2d, torch.zeros_like(joints_2d))
    length_3d = (points_3d[:, child, :2] - points_3d[:, parent, :2]).norm(dim=-1) * bone_valid
    length_2d = (points_2d[:, child] - points_2d[:, parent]).norm(dim=-1) * bone_valid
    scale = length_2d.sum(1) / length_3d.sum(1)
    weight = valid.to(joints_3d.dtype)[..., None]
    offset = ((points_2d - scale[:, None, None] * points_3d[..., :2]) * weight).sum(1)
    return torch.cat([scale[:, None], offset / weight.sum(1)], dim=1)


def project_pinhole(points, K):
    """Full perspective: (..., N, 3) metres and (..., 3, 3) intrinsics -> (..., N, 2) pixels."""
    uvw = points @ K.transpose(-1, -2)
    return uvw[..., :2] / uvw[..., 2:]


def pixels_to_crop(pixels, center, side):
    """Pixels of an image -> crop units of the square with this centre and side length.

    Args:
        pixels: (..., N, 2) pixels.
        center: (..., 2) pixels, the middle of the crop.
        side: (...,) pixels, its side length.
    """
    return (pixels - center[..., None, :]) * 2 / side[..., None, None]


def crop_to_pixels(points, center, side):
    """The inverse of `pixels_to_crop`."""
    return points * side[..., None, None] / 2 + center[..., None, :]


def crop_units_to_grid(points, size):
    """Crop units -> pixel coordinates of that crop drawn at `size` pixels a side."""
    return ((points + 1) * size - 1) / 2


def rotate_in_plane(points, angle):
    """Rotate about the optical axis, clockwise as seen (x right, y down).

    Args:
        points: (B, N, 2) or (B, N, 3); a third coordinate is kept.
        angle: (B,) radians.
    """
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = points[..., 0], points[..., 1]
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    return torch.cat([turned, points[..., 2:]], dim=-1)
