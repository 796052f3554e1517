"""Zimmermann & Brox: score maps of the joints, then a lifting to a canonical hand and a viewpoint.

The score maps alone are lifted, in two streams: one to the hand w_c in a frame of its own, divided
by the length of one bone; one to the rotation R from the camera's frame to that frame. Then
w_rel = s R^T w_c, s being here the mean length of that bone in training.
"""

import math

import roma
import torch
import torch.nn.functional as F
from torch import nn

from hamr_lib.baselines.common import Trained, mean_lengths
from hamr_lib.joints import NAMES, NUM_JOINTS, WRIST
from hamr_lib.losses import heatmaps_loss, mean_where
from hamr_lib.model.heatmaps import heatmap_peaks
from hamr_lib.model.hourglass import PoseModule, conv

# What the canonical frame hangs on, and the bone that measures a hand, as in the authors' code.
TOWARDS, SIDEWAYS = NAMES.index("middle MCP"), NAMES.index("little MCP")
BONE = (TOWARDS, NAMES.index("middle PIP"))


class Lifter(nn.Module):
    """An image to each stack's score maps, canonical joints (B, 21, 3) in lengths of `BONE`, and
    the rotation (B, 3, 3) from the camera's to the canonical frame."""

    def __init__(self, settings, length):
        super().__init__()
        self.kind = settings.losses.heatmap_kind
        self.pose_module = PoseModule(settings.model)
        size = math.ceil(settings.model.image_size / settings.model.map_stride / 8)
        self.canonical, self.viewpoint = (_stream(size, n) for n in (3 * NUM_JOINTS, 3))
        self.register_buffer("length", length)

    def forward(self, image):
        heatmaps = self.pose_module(image)[1]
        # As in the original, the lifting does not train the maps.
        maps = score_maps(heatmaps[-1][:, :NUM_JOINTS].detach().float(), self.kind)
        canonical = self.canonical(maps).float().unflatten(1, (NUM_JOINTS, 3))
        return heatmaps, canonical, roma.rotvec_to_rotmat(self.viewpoint(maps).float())


def _stream(size, outputs):
    """Six convolutions, halving thrice, and three fully connected layers."""
    widths = (NUM_JOINTS, 32, 32, 64, 64, 128, 128)
    return nn.Sequential(
        *(conv(widths[i], widths[i + 1], stride=1 + i % 2) for i in range(6)), nn.Flatten(),
        nn.Linear(128 * size * size, 512), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(512, outputs),
    )  # fmt: skip


def score_maps(maps, kind):
    """Raw maps (B, 21, h, h) as Gaussians of height one, which those of squared error are."""
    return maps if kind == "squared" else (maps - maps.amax(dim=(2, 3), keepdim=True)).exp()


def canonical_frame(joints):
    """The rotation (B, 3, 3) of hands (B, 21, 3) that turns the base of the middle finger up the y
    axis, and that of the little finger into the x-y plane, at positive x."""
    joints = joints - joints[:, WRIST, None]
    y = F.normalize(joints[:, TOWARDS], dim=-1)
    side = joints[:, SIDEWAYS]
    x = F.normalize(side - (side * y).sum(dim=-1, keepdim=True) * y, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=1)


def lift(canonical, rotation, length):
    """w_rel = s R^T w_c: canonical joints (B, 21, 3) back to metres, wrist at the origin."""
    joints = length * canonical @ rotation
    return joints - joints[:, WRIST, None]


class Zimmermann(Trained):
    """The crops are given, so there is no HandSegNet; the study's hourglass draws the score maps,
    by its kind of heat-map loss; all hands are right ones; maps and lifting are trained together,
    without gradients from one to the other; the true scale is the mean bone's of the training set,
    where the original takes the label's.
    """

    name = "zimmermann"
    reference = "Zimmermann & Brox, ICCV 2017"

    def build(self, settings, hand, crops):
        return Lifter(settings, mean_lengths(crops, [BONE]))

    def parts(self, network, output, batch, settings):
        heatmaps, canonical, rotation = output
        weights, true = settings.losses, batch["joints_3d"]
        known = batch["valid_3d"][:, [WRIST, *BONE, SIDEWAYS]].all(dim=1)
        frame = torch.where(known[:, None, None], canonical_frame(true), torch.eye(3).to(true))
        length = (true[:, BONE[1]] - true[:, BONE[0]]).norm(dim=-1)
        upright = (true - true[:, WRIST, None]) @ frame.transpose(1, 2)
        wanted = upright / torch.where(known, length, 1.0)[:, None, None]
        apart = (canonical - wanted).square().sum(dim=-1)
        turned = (rotation - frame).square().sum(dim=(1, 2))
        return {
            "heatmap": (weights.heatmap, heatmaps_loss(heatmaps, batch, weights)),
            "canonical": (1.0, mean_where(apart, batch["valid_3d"] & known[:, None])),
            "viewpoint": (1.0, mean_where(turned, known)),
        }

    def joints(self, network, output):
        heatmaps, canonical, rotation = output
        return lift(canonical, rotation, network.length), heatmap_peaks(heatmaps[-1])
