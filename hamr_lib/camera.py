"""The cameras: weak perspective (Eq. 4-5 of the paper), the full pinhole, and crops.

Frames. 3-D points are metres in the camera's frame: x right, y down, z away from the viewer.
A *pixel* coordinate is (u, v) with the centre of the top-left pixel at (0, 0). A *crop*
coordinate lies in [-1, 1]: -1 and 1 are the outer edges of the first and last pixel of the
square crop, so a crop of `size` pixels has pixel = ((crop + 1) * size - 1) / 2. This is the
convention of `torch.nn.functional.grid_sample(align_corners=False)`.

The weak-perspective camera is (B, 3): scale s in crop units a metre, and the offset (tx, ty) in
crop units: x = s X + t. The paper writes s (X + t), t in metres; `offset_in_metres` converts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hamr_lib.joints import BONES, MIDDLE_MCP, WRIST


def project_weak(points: Tensor, camera: Tensor) -> Tensor:
    """Project (B, N, 3) metres by a camera (B, 3) to (B, N, 2) crop units, Eq. 4-5."""
    return camera[:, None, :1] * points[..., :2] + camera[:, None, 1:]


def offset_in_metres(camera: Tensor) -> Tensor:
    """Convert (B, 3) cameras to the paper's form: s, and t of s (X + t) in metres."""
    return torch.cat([camera[:, :1], camera[:, 1:] / camera[:, :1]], dim=1)


def ground_truth_camera(
    joints_3d: Tensor, joints_2d: Tensor, valid: Tensor | None = None, scale: str = "projected"
) -> Tensor:
    """Estimate the camera (B, 3) of paired 2-D and 3-D labels (Section 3.3, not numbered).

    The scale is the mean 2-D bone length over a mean 3-D one, the offset the mean difference
    between the 2-D joints and the scaled 3-D ones. It is NaN without two valid, joined joints.

    Args:
        joints_3d, joints_2d: (B, 21, 3) metres, any root, and (B, 21, 2) crop units.
        valid: (B, 21) bool, joints that carry both labels; None for all of them.
        scale: "full", the paper's: the 3-D bones at their full length, so that s is too small
            where bones are foreshortened. "projected", ours: their x and y alone, exact.
    """
    axes = 3 if scale == "full" else 2
    if valid is None:
        valid = torch.ones(joints_3d.shape[:2], dtype=torch.bool, device=joints_3d.device)
    parent, child = torch.tensor(BONES, device=joints_3d.device).T
    bone_valid = (valid[:, parent] & valid[:, child]).to(joints_3d.dtype)
    # Invalid labels may be NaN, and NaN times zero is NaN: blank them before any sum.
    points_3d, points_2d = (torch.where(valid[..., None], x, 0) for x in (joints_3d, joints_2d))
    bones_3d, bones_2d = (x[:, child] - x[:, parent] for x in (points_3d[..., :axes], points_2d))
    length_3d, length_2d = ((x.norm(dim=-1) * bone_valid).sum(1) for x in (bones_3d, bones_2d))
    ratio = (length_2d / length_3d)[:, None]
    weight = valid.to(joints_3d.dtype)[..., None]
    offset = ((points_2d - ratio[..., None] * points_3d[..., :2]) * weight).sum(1)
    return torch.cat([ratio, offset / weight.sum(1)], dim=1)


def project_pinhole(points, K) -> Tensor:
    """Project (..., N, 3) metres by pinhole intrinsics (..., 3, 3) to (..., N, 2) pixels."""
    uvw = points @ K.transpose(-1, -2)
    return uvw[..., :2] / uvw[..., 2:]


def pixels_to_crop(pixels: Tensor, center: Tensor, side: Tensor) -> Tensor:
    """Convert pixels (..., N, 2) to units of the crop with this center (..., 2) and side (...,)."""
    return (pixels - center[..., None, :]) * 2 / side[..., None, None]


def crop_to_pixels(points: Tensor, center: Tensor, side: Tensor) -> Tensor:
    """Convert crop units to pixels of the image, the inverse of `pixels_to_crop`."""
    return points * side[..., None, None] / 2 + center[..., None, :]


def crop_units_to_grid(points: Tensor, size: int) -> Tensor:
    """Convert crop units to pixel coordinates of that crop, drawn at `size` pixels a side."""
    return ((points + 1) * size - 1) / 2


def turn_image(image: Tensor, angle: Tensor, mode: str = "bilinear") -> Tensor:
    """Turn images (B, C, S, S) about their middle by angles (B,), as `rotate_in_plane` points.

    What comes from beyond the border repeats it.
    """
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, sin, zero, -sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, image.shape, align_corners=False)
    return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)


def rotate_in_plane(points: Tensor, angle: Tensor) -> Tensor:
    """Rotate points (B, N, 2 or 3) by angles (B,), radians, about the optical axis.

    It is clockwise as seen (x right, y down); a third coordinate is kept.
    """
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = points[..., 0], points[..., 1]
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    return torch.cat([turned, points[..., 2:]], dim=-1)


def hand_tilt(joints_2d: Tensor) -> Tensor:
    """Measure how far hands (B, 21, 2) are turned from upright: (B,) radians, clockwise as seen.

    A hand is upright where the base of its middle finger is straight above its wrist.
    """
    x, y = (joints_2d[:, MIDDLE_MCP] - joints_2d[:, WRIST]).unbind(1)
    return torch.atan2(x, -y)
