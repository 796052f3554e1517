"""The losses, whose weighted sum is Eq. 8: six parts, each over the labels that a sample has.

Every part is an average over the entries that carry the label it needs, and zero without any. A
label that is not valid may hold anything, NaN too: it reaches neither a loss nor a gradient.

The paper gives the weights (1000, 1, 1, 0.1, 100, 10), but no units. Ours:

    joints_3d    metres^2, or metres as "distance"
    joints_2d    crop units^2 (a unit is half the crop's side), or crop units as "absolute"
    geometric    none (products of unit vectors)
    camera       the mean of (crop units a metre)^2, of s, and metres^2, of t
    heatmap      of the peak's height^2, or nats as "cross_entropy"; the sum of all stacks
    silhouette   fraction of the crop's pixels
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hamr_lib.camera import crop_units_to_grid, ground_truth_camera, offset_in_metres
from hamr_lib.config import Losses
from hamr_lib.joints import NAMES, NUM_JOINTS
from hamr_lib.model.hamr import Estimate, Output
from hamr_lib.render import silhouette

PARTS = ("joints_3d", "joints_2d", "geometric", "camera", "heatmap", "silhouette")


def hamr_losses(
    output: Output, batch: dict[str, Tensor], settings: Losses, faces: Tensor
) -> dict[str, Tensor]:
    """Compute the parts that have a weight, unweighted, and their weighted sum, "total".

    Args:
        output: the last iteration's estimate is supervised, and the heat maps of every stack.
        batch: joints_2d (B, 21, 2) crop units, joints_3d (B, 21, 3) metres root-relative, valid_2d
            and valid_3d (B, 21) bool, mask (B, S, S) in [0, 1], has_mask (B,) bool.
        faces: (F, 3) long, the hand's triangles.
    """
    last = output.estimates[-1]
    label_3d, label_2d = batch["joints_3d"], batch["joints_2d"]
    valid_3d, valid_2d = batch["valid_3d"], batch["valid_2d"]
    camera = settings.camera_offset, settings.camera_scale
    mask = batch.get("mask"), batch.get("has_mask"), settings.silhouette_size
    parts = {
        "joints_3d": (joints_3d_loss, last.joints_3d, label_3d, valid_3d, settings.joints_3d_kind),
        "joints_2d": (joints_2d_loss, last.joints_2d, label_2d, valid_2d, settings.joints_2d_kind),
        "geometric": (geometric_loss, last.joints_3d),
        "camera": (camera_loss, last.camera, label_3d, label_2d, valid_2d & valid_3d, *camera),
        "heatmap": (heatmaps_loss, output.heatmaps, batch, settings),
        "silhouette": (silhouette_loss, last, faces, *mask),
    }
    # Losses are differences of nearly equal numbers: none of them in half precision.
    with torch.autocast(last.camera.device.type, enabled=False):
        losses = {k: part(*of) for k, (part, *of) in parts.items() if getattr(settings, k)}
        losses["total"] = sum(getattr(settings, name) * loss for name, loss in losses.items())
    return losses


def mean_where(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of the values where valid; zero, with zero gradient, where nothing is."""
    return torch.where(valid, values, 0).sum() / valid.sum().clamp_min(1)


def difference(found: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """found - label, exactly zero (and so its gradient) where the label is not valid."""
    return found - torch.where(valid[..., None], label, found.detach())


def joints_3d_loss(found: Tensor, label: Tensor, valid: Tensor, kind: str = "squared") -> Tensor:
    """L_3D of joints (B, 21, 3) metres: their mean "squared" distance, or their mean "distance"."""
    squared = difference(found, label, valid).square().sum(dim=-1)
    # A square root's slope at zero is infinite; a micrometre more is nothing.
    return mean_where(squared if kind == "squared" else (squared + 1e-12).sqrt(), valid)


def joints_2d_loss(found: Tensor, label: Tensor, valid: Tensor, kind: str = "squared") -> Tensor:
    """L_2D of joints (B, 21, 2) crop units: the mean "squared" distance, the paper's L2.

    Or, as in HMR, the mean "absolute" difference of a coordinate.
    """
    off = difference(found, label, valid)
    return mean_where(off.square().sum(-1) if kind == "squared" else off.abs().mean(-1), valid)


def geometric_loss(joints: Tensor) -> Tensor:
    """L_geo, Eq. 6-7: each finger but the thumb bends in one plane (6), and one way (7).

    With the unit vectors u, v, w along a finger's bones from base to tip, planarity is
    |<u x v, w>|, the volume that they span, and direction max(0, -<u x v, v x w>), positive where
    two joints bend opposite ways. Both lie in [0, 1]; they are averaged over batch and fingers.

    Args:
        joints: (B, 21, 3) metres; no label is needed.
    """
    first = NAMES.index("index MCP")  # the thumb's joints come before it
    fingers = joints[:, first:].unflatten(1, (4, 4))  # (B, 4 fingers, base to tip, 3)
    u, v, w = F.normalize(fingers.diff(dim=2), dim=-1, eps=1e-6).unbind(dim=2)
    bend, next_bend = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    planarity = (bend * w).sum(dim=-1).abs()
    direction = F.relu(-(bend * next_bend).sum(dim=-1))
    return (planarity + direction).mean()


def camera_loss(
    found: Tensor,
    joints_3d: Tensor,
    joints_2d: Tensor,
    valid: Tensor,
    offset: str = "metres",
    scale: str = "full",
) -> Tensor:
    """L_cam: squared difference from the labels' camera, averaged over s and the two of t.

    Args:
        found: (B, 3) camera, s X + t with t in crop units.
        joints_3d, joints_2d, valid, scale: as in `ground_truth_camera`.
        offset: how t is compared: "metres", as in the paper's s (X + t), or "crop" units, which
            weigh t about s^2 times as much.
    """
    label = ground_truth_camera(joints_3d, joints_2d, valid, scale)
    if offset == "metres":
        found, label = offset_in_metres(found), offset_in_metres(label)
    known = label.isfinite().all(dim=-1)
    return mean_where(difference(found, label, known).square().mean(dim=-1), known)


def heatmaps_loss(heatmaps: list[Tensor], batch: dict[str, Tensor], settings: Losses) -> Tensor:
    """L_heat: the sum over stacks of `heatmap_loss`; of each stack's maps the first 21 count."""
    more = batch["joints_2d"], batch["valid_2d"], settings.heatmap_kind, settings.heatmap_variance
    return sum(heatmap_loss(maps[:, :NUM_JOINTS].float(), *more) for maps in heatmaps)


def heatmap_loss(
    maps: Tensor, joints_2d: Tensor, valid: Tensor, kind: str, variance: float
) -> Tensor:
    """L_heat: one stack's raw maps (B, 21, h, h) against Gaussians around the labelled joints.

    squared: squared difference from a Gaussian of peak 1, averaged over the map's pixels. The map
    of a joint outside the crop should be empty.
    cross_entropy: of the map's softmax against the Gaussian that sums to 1, nats, less the
    Gaussian's own entropy. A joint outside the crop has no such Gaussian and is left out.

    Args:
        joints_2d, valid: (B, 21, 2) crop units and (B, 21) bool.
        variance: of the Gaussian, pixels^2 of the map.
    """
    size = maps.shape[-1]
    centre = crop_units_to_grid(torch.where(valid[..., None], joints_2d, 0.0), size)
    pixel = torch.arange(size, device=maps.device, dtype=maps.dtype)
    # The Gaussian is a product of one along x and one along y: (B, 21, 2, h).
    log_axes = (pixel - centre[..., None]).square() / (-2 * variance)
    if kind == "squared":
        along_x, along_y = log_axes.exp().unbind(dim=2)
        target = along_y[..., :, None] * along_x[..., None, :]
        return mean_where((maps - target).square().mean(dim=(2, 3)), valid)
    log_axes = log_axes.log_softmax(dim=-1)
    along_x, along_y = log_axes.exp().unbind(dim=2)
    entropy = -(log_axes.exp() * log_axes).sum(dim=(2, 3))
    expected = ((maps @ along_x[..., None])[..., 0] * along_y).sum(dim=-1)
    divergence = maps.flatten(2).logsumexp(dim=-1) - expected - entropy
    inside = (centre > -0.5) & (centre < size - 0.5)
    return mean_where(divergence, valid & inside.all(dim=-1))


def silhouette_loss(
    estimate: Estimate, faces: Tensor, mask: Tensor, has_mask: Tensor, size: int
) -> Tensor:
    """L_seg: the fraction of the crop's pixels in which the mesh's silhouette is not the mask.

    Args:
        faces: (F, 3) long.
        mask: (B, S, S) in [0, 1], averaged down to `size` pixels a side.
        has_mask: (B,) bool; the other samples are not rendered.
    """
    if not has_mask.any():
        return estimate.camera.new_zeros(())
    covered = silhouette(estimate.vertices[has_mask], faces, estimate.camera[has_mask], size)
    wanted = F.interpolate(mask[has_mask][:, None], (size, size), mode="area")[:, 0]
    return (covered - wanted).abs().mean()
