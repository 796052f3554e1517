"""Iqbal et al.: 2.5-D heat maps, and the depth that one bone's length implies in closed form.

For every joint the network gives a place in the image and a depth relative to the wrist, both of a
hand so scaled that one bone, (n, m), has length 1. With (x, y) the place over the focal length,
a joint lies at (x Z, y Z, Z), Z = Z_wrist + z, and |P_n - P_m| = 1 is a quadratic equation in
Z_wrist; its larger root is the hand before the camera.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from hamr_lib.baselines.common import Trained, mean_lengths
from hamr_lib.camera import ground_truth_camera
from hamr_lib.errors import HamrError
from hamr_lib.joints import NAMES, NUM_JOINTS, WRIST
from hamr_lib.losses import difference, joints_2d_loss, mean_where
from hamr_lib.model.heatmaps import cell_centres, soft_argmax
from hamr_lib.model.hourglass import PoseModule

BONE = (WRIST, NAMES.index("index MCP"))  # hardly moved by any pose
DEPTH = 0.2  # weight of the depth, lengths of `BONE`, beside places in crop units
STEEP = 1e-3  # least square of the bone's length in the image over the focal length


class Latent(nn.Module):
    """Each stack's places (B, 21, 2), crop units, and depths (B, 21) from the wrist."""

    def __init__(self, settings, length, focal):
        super().__init__()
        self.pose_module = PoseModule(settings)
        self.register_buffer("length", length)
        self.register_buffer("focal", focal)

    def forward(self, image):
        stacks = []
        for maps in self.pose_module(image)[1]:
            where, depth = maps.float().split(NUM_JOINTS, dim=1)
            axis = cell_centres(maps.shape[-1], -1.0, 1.0, maps)
            yx, probability = soft_argmax(where, (axis, axis))
            z = (probability * depth).sum(dim=(2, 3))
            stacks.append((yx.flip(-1), z - z[:, WRIST, None]))
        return stacks


def root_depth(points, depth):
    """The wrist's depth Z (B,), in lengths of `BONE`, from the quadratic equation.

    It is (x_n Z_n - x_m Z_m)^2 + (y_n Z_n - y_m Z_m)^2 + (z_n - z_m)^2 = 1 with Z_n = Z + z_n and
    (x, y) the points (B, 21, 2), crop units over the focal length. Where the image of the bone is
    too long, the discriminant is taken as zero.
    """
    n, m = BONE
    along = points[:, n] - points[:, m]
    # What x_n Z_n - x_m Z_m is at Z = 0.
    offset = points[:, n] * depth[:, n, None] - points[:, m] * depth[:, m, None]
    a = along.square().sum(dim=-1).clamp_min(STEEP)
    b = 2 * (along * offset).sum(dim=-1)
    c = offset.square().sum(dim=-1) + (depth[:, n] - depth[:, m]).square() - 1
    return (-b + (b * b - 4 * a * c).clamp_min(0).sqrt()) / (2 * a)


def unproject(points, depth, root):
    """(B, 21, 3) in lengths of the bone, wrist at the origin: places as in `root_depth`."""
    z = (root[:, None] + depth)[..., None]
    joints = torch.cat([points * z, z], dim=-1)
    return joints - joints[:, WRIST, None]


def focal_length(crops):
    """Median over a training set of s Z, crop units: scale and depth of a sample's wrist."""
    labels = {k: torch.from_numpy(np.asarray(v)) for k, v in crops.labels.items()}
    valid = labels["valid_2d"] & labels["valid_3d"]
    camera = ground_truth_camera(labels["joints_3d"], labels["joints_2d"], valid)
    focal = camera[:, 0] * labels["root"][:, 2]
    known = focal.isfinite() & labels["has_root"] & (focal > 0)
    if not known.any():
        raise HamrError("no training sample has the labels that a focal length follows from")
    return focal[known].median()


class Iqbal(Trained):
    """The study's hourglass in place of the authors' network. Crops carry no intrinsics: the crop
    is taken for the image of a camera that looks at its middle, with one focal length for all, the
    median of the training set; the true scale is the mean bone's of the training set.
    """

    name = "iqbal"
    reference = "Iqbal et al., ECCV 2018"

    def build(self, settings, hand, crops):
        model = replace(settings.model, maps=2 * NUM_JOINTS)
        return Latent(model, mean_lengths(crops, [BONE]), focal_length(crops))

    def parts(self, network, output, batch, settings):
        true, valid = batch["joints_3d"], batch["valid_3d"]
        known = valid[:, BONE[0]] & valid[:, BONE[1]]
        length = (true[:, BONE[1]] - true[:, BONE[0]]).norm(dim=-1)
        unit = torch.where(known, length, 1.0)[:, None, None]
        wanted = (true[..., 2:] - true[:, WRIST, None, 2:]) / unit
        both = valid & known[:, None]
        flat = batch["joints_2d"], batch["valid_2d"], "absolute"
        off = [difference(z[..., None], wanted, both)[..., 0].abs() for _, z in output]
        return {
            "joints_2d": (1.0, sum(joints_2d_loss(places, *flat) for places, _ in output)),
            "depth": (DEPTH, sum(mean_where(z, both) for z in off)),
        }

    def joints(self, network, output):
        places, depth = output[-1]
        points = places / network.focal
        return network.length * unproject(points, depth, root_depth(points, depth)), places
