"""BodyNet: a volume of joints and of flesh, held to the mask from the front and from the side.

Features of the hourglass become 21 volumetric heat maps, whose mean places are the joints, and a
volume V of probabilities that a voxel is hand. From the front it is seen as max_z V(x, y, z), to be
the mask; from the side as max_x V. In depth it reaches `REACH` metres before and behind the wrist.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from hamr_lib.baselines.common import Trained, mean_lengths, resize_mask
from hamr_lib.camera import ground_truth_camera
from hamr_lib.joints import BONES, NAMES, NUM_JOINTS, WRIST
from hamr_lib.losses import difference, heatmaps_loss, joints_2d_loss, mean_where
from hamr_lib.model.heatmaps import cell_centres, soft_argmax
from hamr_lib.model.hourglass import PoseModule, conv

REACH = 0.2  # metres, a hand's length
FLESH = 0.009  # metres, the radius of the capsules that stand for flesh
# Bones, and lines across the palm, so that its capsules leave no gap.
_BASES = [NAMES.index(f"{finger} MCP") for finger in ("index", "middle", "ring", "little")]
LINES = (*BONES, *zip(_BASES, _BASES[1:], strict=False))
FULL = 10.0  # voxels of flesh count as much more as they are fewer, about
DEPTH = 5.0  # weight of the joints' depth, metres, beside places in crop units
VOXELS, VIEWS = 1.0, 0.5  # weights of the volume, and of what is seen of it
LARGEST = 100.0  # crop units a metre, of which no crop has more


class Volume(nn.Module):
    """(B, 3, S, S) to each stack's 2-D maps, joints (B, 21, 3) and logits (B, D, h, h).

    Joints are x, y in crop units and depth from the wrist in metres; D = S / 8.
    """

    def __init__(self, settings, length):
        super().__init__()
        self.depth = settings.image_size // 8
        self.pose_module = PoseModule(settings)
        width = settings.channels + settings.maps
        self.head = conv(width, width)
        self.joints = nn.Conv2d(width, NUM_JOINTS * self.depth, 1)
        self.flesh = nn.Conv2d(width, self.depth, 1)
        self.register_buffer("length", length)

    def forward(self, image):
        joined, heatmaps, _ = self.pose_module(image)
        features = self.head(joined)
        maps = self.joints(features).float().unflatten(1, (NUM_JOINTS, self.depth))
        return heatmaps, volume_joints(maps), self.flesh(features).float()


def volume_joints(maps):
    """Volumetric maps (B, 21, D, h, h) -> (B, 21, 3): x, y crop units, z metres from the wrist."""
    deep = cell_centres(maps.shape[2], -REACH, REACH, maps)
    flat = cell_centres(maps.shape[-1], -1.0, 1.0, maps)
    x, y, z = soft_argmax(maps, (deep, flat, flat))[0].flip(-1).unbind(-1)
    return torch.stack([x, y, z - z[:, WRIST, None]], dim=-1)


def capsules(joints_3d, camera, depth, size):
    """Which voxels (B, depth, h, h) lie within `FLESH` of a line of a hand (B, 21, 3), metres.

    In depth they may lie half a voxel further, so that no finger is lost between two layers.
    """
    flat = cell_centres(size, -1.0, 1.0, joints_3d)
    deep = cell_centres(depth, -REACH, REACH, joints_3d)
    x, y = ((flat - camera[:, i, None]) / camera[:, :1] for i in (1, 2))  # (B, h) metres
    squeeze = FLESH / (FLESH + REACH / depth)
    axes = x[:, None, None, :], y[:, None, :, None], (deep * squeeze)[:, None, None]
    points = (joints_3d * joints_3d.new_tensor([1, 1, squeeze]))[..., None, None, None]
    found = joints_3d.new_zeros(len(joints_3d), depth, size, size, dtype=torch.bool)
    for a, b in LINES:
        start, along = points[:, a], points[:, b] - points[:, a]  # (B, 3, 1, 1, 1)
        # The square of the distance to the line, axis by axis: |v|^2 - 2 t v.u + t^2 |u|^2.
        off = [axis - start[:, i] for i, axis in enumerate(axes)]
        length = along.square().sum(dim=1).clamp_min(1e-8)
        dot = sum(off[i] * along[:, i] for i in (2, 1, 0))
        t = (dot / length).clamp(0, 1)
        squares = sum(off[i].square() for i in (2, 1, 0)) - 2 * t * dot + t.square() * length
        found |= squares < FLESH**2
    return found


def metric_scale(joints, total):
    """The weak perspective, (B,) crop units a metre, under which all bones are `total` metres long.

    Of joints (B, 21, 3), x, y crop units and z metres, sum sqrt(|dx, dy|^2 / s^2 + dz^2) = total
    falls as s grows, so that halving finds s. Where the depths alone are too long, s is `LARGEST`.
    """
    parent, child = torch.tensor(BONES, device=joints.device).T
    bones = (joints[:, child] - joints[:, parent]).square()
    flat, deep = bones[..., :2].sum(dim=-1), bones[..., 2]
    low, high = joints.new_full((len(joints),), 0.1), joints.new_full((len(joints),), LARGEST)
    for _ in range(40):
        middle = (low * high).sqrt()
        longer = (flat / middle[:, None] ** 2 + deep).sqrt().sum(dim=1) > total
        low, high = torch.where(longer, middle, low), torch.where(longer, high, middle)
    return high


def cross_entropy(logits, wanted, known, positive=1.0):
    """Mean binary cross-entropy over the known samples; what is wanted full counts `positive`."""
    weight = torch.tensor(positive, device=logits.device)
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=weight)
    return mean_where(loss.flatten(1).mean(dim=1), known)


class BodyNet(Trained):
    """A hand in a volume as wide as the heat maps, for 128 x 128 x 128; one trunk trained at once
    in place of four networks one after the other; joints are mean places in the volume; no data set
    labels flesh, so that the volume learns capsules around the labelled bones, and its front view
    the mask; no model is fitted to the volume; weak perspective, its scale from the mean length of
    all bones in training.
    """

    name = "bodynet"
    reference = "Varol et al., ECCV 2018"

    def build(self, settings, hand, crops):
        return Volume(replace(settings.model, maps=NUM_JOINTS), mean_lengths(crops).sum())

    def parts(self, network, output, batch, settings):
        heatmaps, joints, flesh = output
        weights, true, flat = settings.losses, batch["joints_3d"], batch["joints_2d"]
        valid_2d, valid_3d = batch["valid_2d"], batch["valid_3d"]
        rooted, both = valid_3d & valid_3d[:, WRIST, None], valid_2d & valid_3d
        deep = difference(joints[..., 2:], true[..., 2:] - true[:, WRIST, None, 2:], rooted)
        depth, size = flesh.shape[1], flesh.shape[-1]
        camera = ground_truth_camera(true, flat, both)
        known = both.all(dim=1) & camera.isfinite().all(dim=1)
        wanted = capsules(true, torch.where(known[:, None], camera, 1.0), depth, size).float()
        front, side = flesh.amax(dim=1), flesh.amax(dim=3)  # logits order as probabilities do
        mask = F.interpolate(batch["mask"][:, None], (size, size), mode="area")[:, 0]
        places = joints_2d_loss(joints[..., :2], flat, valid_2d, "absolute")
        return {
            "heatmap": (weights.heatmap, heatmaps_loss(heatmaps, batch, weights)),
            "joints_2d": (weights.joints_2d, places),
            "depth": (DEPTH, mean_where(deep[..., 0].abs(), rooted)),
            "voxels": (VOXELS, cross_entropy(flesh, wanted, known, FULL)),
            "front": (VIEWS, cross_entropy(front, mask, batch["has_mask"])),
            "side": (VIEWS, cross_entropy(side, wanted.amax(dim=3), known)),
        }

    def joints(self, network, output):
        joints = output[1]
        scale = metric_scale(joints, network.length)[:, None, None]
        flat = (joints[..., :2] - joints[:, WRIST, None, :2]) / scale
        return torch.cat([flat, joints[..., 2:]], dim=-1), joints[..., :2]

    def estimate(self, images):
        output = self.network(images)
        joints_3d, joints_2d = self.joints(self.network, output)
        mask = resize_mask(output[2].amax(dim=1).sigmoid(), self.mask_size)
        return {"joints_3d": joints_3d, "joints_2d": joints_2d, "mask": mask}
