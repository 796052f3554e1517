"""BodyNet: a volume of joints and of flesh, held to the mask from the front and from the side.

Features of the hourglass become 21 volumetric heat maps, whose mean places are the joints, and a
volume V of probabilities that a voxel is hand. From the front it is seen as max_z V(x, y, z), to be
the mask; from the side as max_x V(x, y, z).

The volume is the crop, and in depth `REACH` metres before and behind the wrist.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from hamr_lib.baselines.common import Trained, joint, mean_lengths
from hamr_lib.camera import ground_truth_camera
from hamr_lib.joints import BONES, NUM_JOINTS, WRIST
from hamr_lib.losses import difference, heatmaps_loss, joints_2d_loss, mean_where
from hamr_lib.model.heatmaps import cell_centres, soft_argmax
from hamr_lib.model.hourglass import PoseModule, conv

REACH = 0.2  # metres, a hand's length
FLESH = 0.009  # metres, the radius of the capsules that stand for flesh
# Bones, and lines across the palm, so that its capsules leave no gap.
LINES = (*BONES, *((joint(f"{a} MCP"), joint(f"{b} MCP")) for a, b in (
    ("index", "middle"), ("middle", "ring"), ("ring", "little")
)))  # fmt: skip
FULL = 10.0  # voxels of flesh count as much more as they are fewer, about
DEPTH = 5.0  # weight of the joints' depth, metres, beside places in crop units
VOXELS, VIEWS = 1.0, 0.5  # weights of the volume, and of what is seen of it
LARGEST = 100.0  # crop units a metre, of which no crop has more


class Volume(nn.Module):
    """(B, 3, S, S) to each stack's 2-D maps, joints (B, 21, 3) and logits (B, D, h, h).

    Joints are x, y in crop units and depth from the wrist in metres; D = h / 2.
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
        joints = volume_joints(maps)
        return heatmaps, joints, self.flesh(features).float()


def volume_joints(maps):
    """Volumetric maps (B, 21, D, h, h) -> (B, 21, 3): x, y crop units, z metres from the wrist."""
    deep, flat = (
        cell_centres(maps.shape[2], -REACH, REACH, maps),
        cell_centres(maps.shape[-1], -1.0, 1.0, maps),
    )
    zyx = soft_argmax(maps, (deep, flat, flat))[0]
    x, y, z = zyx.flip(-1).unbind(-1)
    return torch.stack([x, y, z - z[:, WRIST, None]], dim=-1)


def views(probability):
    """What is seen of a volume (B, D, h, h): the front (B, h, h), and the side (B, D, h)."""
    return probability.amax(dim=1), probability.amax(dim=3)


def capsules(joints_3d, camera, depth, size):
    """Which voxels lie within `FLESH` of a line of a hand; in depth, half a voxel further.

    Depth is coarse, and a finger between two layers of voxels' middles must not be lost: the
    capsules are stretched in depth until none is.

    Args:
        joints_3d: (B, 21, 3) metres, wrist at the origin; camera: (B, 3) weak perspective.
        depth, size: D and h.

    Returns:
        (B, D, h, h) bool.
    """
    flat = cell_centres(size, -1.0, 1.0, joints_3d)
    deep = cell_centres(depth, -REACH, REACH, joints_3d)
    x = (flat - camera[:, 1:2]) / camera[:, :1]  # (B, h) metres
    y = (flat - camera[:, 2:3]) / camera[:, :1]
    squeeze = FLESH / (FLESH + REACH / depth)
    deep, joints_3d = deep * squeeze, joints_3d * joints_3d.new_tensor([1, 1, squeeze])
    found = joints_3d.new_zeros(len(joints_3d), depth, size, size, dtype=torch.bool)
    for a, b in LINES:
        start, along = joints_3d[:, a], joints_3d[:, b] - joints_3d[:, a]
        # The square of the distance to the line, axis by axis: |v|^2 - 2 t v.u + t^2 |u|^2.
        dx, dy, dz = x - start[:, :1], y - start[:, 1:2], deep - start[:, 2:]
        length = along.square().sum(dim=-1).clamp_min(1e-8)
        dot = (
            (dz * along[:, 2:])[:, :, None, None]
            + (dy * along[:, 1:2])[:, None, :, None]
            + (dx * along[:, :1])[:, None, None, :]
        )
        t = (dot / length[:, None, None, None]).clamp_(0, 1)
        squares = (
            dz.square()[:, :, None, None]
            + dy.square()[:, None, :, None]
            + dx.square()[:, None, None, :]
        )
        squares = squares - 2 * t * dot + t.square() * length[:, None, None, None]
        found |= squares < FLESH**2
    return found


def metric_scale(joints, total, steps=40):
    """The weak perspective under which all bones together are as long as in training.

    sum sqrt(|dx, dy|^2 / s^2 + dz^2) = total falls as s grows, so that halving finds s. Where even
    the depths alone are too long, s is `LARGEST`.

    Args:
        joints: (B, 21, 3) x, y crop units and z metres.
        total: metres.

    Returns:
        (B,) crop units a metre.
    """
    parent, child = torch.tensor(BONES, device=joints.device).T
    flat = (joints[:, child, :2] - joints[:, parent, :2]).square().sum(dim=-1)
    deep = (joints[:, child, 2] - joints[:, parent, 2]).square()
    low, high = joints.new_full((len(joints),), 0.1), joints.new_full((len(joints),), LARGEST)
    for _ in range(steps):
        middle = (low * high).sqrt()
        longer = (flat / middle[:, None] ** 2 + deep).sqrt().sum(dim=1) > total
        low, high = torch.where(longer, middle, low), torch.where(longer, high, middle)
    return high


class BodyNet(Trained):
    """Varol et al. 2018 for hands."""

    name = "bodynet"
    reference = "Varol et al., ECCV 2018"

    @staticmethod
    def deviations(settings):
        h = settings.model.image_size // settings.model.map_stride
        return (
            f"A hand in a volume of {h} x {h} x {h // 2} voxels, for 128 x 128 x 128; one trunk "
            "trained at once in place of four networks one after the other; joints are mean places "
            "in the volume; no data set labels flesh, so that the volume learns capsules around "
            "the labelled bones, and its front view the mask; no model is fitted to the volume; "
            "weak perspective, its scale from the mean length of all bones in training."
        )

    def build(self, settings, hand, crops):
        return Volume(replace(settings.model, maps=NUM_JOINTS), mean_lengths(crops).sum())

    def parts(self, network, output, batch, settings):
        heatmaps, joints, flesh = output
        weights, true = settings.losses, batch["joints_3d"]
        valid_2d, valid_3d = batch["valid_2d"], batch["valid_3d"]
        rooted = valid_3d & valid_3d[:, WRIST, None]
        deep = difference(joints[..., 2:], true[..., 2:] - true[:, WRIST, None, 2:], rooted)

        depth, size = flesh.shape[1], flesh.shape[-1]
        camera = ground_truth_camera(true, batch["joints_2d"], valid_2d & valid_3d)
        known = (valid_2d & valid_3d).all(dim=1) & camera.isfinite().all(dim=1)
        wanted = capsules(true, torch.where(known[:, None], camera, 1.0), depth, size).float()
        front, side = views(flesh)  # of logits, which order as probabilities do
        mask = F.interpolate(batch["mask"][:, None], (size, size), mode="area")[:, 0]
        return {
            "heatmap": (weights.heatmap, heatmaps_loss(heatmaps, batch, weights)),
            "joints_2d": (
                weights.joints_2d,
                joints_2d_loss(joints[..., :2], batch["joints_2d"], valid_2d, "absolute"),
            ),
            "depth": (DEPTH, mean_where(deep[..., 0].abs(), rooted)),
            "voxels": (VOXELS, _cross_entropy(flesh, wanted, known, FULL)),
            "front": (VIEWS, _cross_entropy(front, mask, batch["has_mask"])),
            "side": (VIEWS, _cross_entropy(side, wanted.amax(dim=3), known)),
        }  # fmt: skip

    def joints(self, network, output):
        """(B, 21, 3) metres and (B, 21, 2) crop units."""
        joints = output[1]
        scale = metric_scale(joints, network.length)[:, None, None]
        flat = (joints[..., :2] - joints[:, WRIST, None, :2]) / scale
        return torch.cat([flat, joints[..., 2:]], dim=-1), joints[..., :2]

    def estimate(self, images):
        """See `comparisons`: joints, and the volume's front view as mask."""
        output = self.network(images)
        joints_3d, joints_2d = self.joints(self.network, output)
        front = torch.sigmoid(views(output[2])[0])
        size = (self.mask_size, self.mask_size)
        mask = F.interpolate(front[:, None], size, mode="bilinear", antialias=True)[:, 0]
        return {"joints_3d": joints_3d, "joints_2d": joints_2d, "mask": mask}


def _cross_entropy(logits, wanted, known, full=1.0):
    """Mean over the known samples; what is wanted full counts `full` times."""
    weight = torch.tensor(full, device=logits.device)
    wrong = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=weight)
    return mean_where(wrong.flatten(1).mean(dim=1), known)
