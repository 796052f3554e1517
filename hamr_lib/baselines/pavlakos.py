"""Pavlakos et al.: pose from the joints in the image, shape from the silhouette.

A first network draws heat maps and a silhouette. A second sees nothing else: the keypoints give
rotation and pose, the silhouette gives the shape.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from hamr_lib.baselines.common import TrainedMesh, hamr_parts
from hamr_lib.joints import NUM_JOINTS
from hamr_lib.losses import mean_where
from hamr_lib.model.hamr import HAMR, NUM_BETAS
from hamr_lib.model.heatmaps import heatmap_peaks
from hamr_lib.model.hourglass import conv

HIDDEN = 512
MASK = 1.0  # weight of the drawn silhouette's cross-entropy


class Residual(nn.Module):
    """One block of the pose prior: two linear layers with a way around them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        return x + self.layers(x)


class Priors(nn.Module):
    """The second stage, in the place of HAMR's regressor: maps to raw numbers.

    The first `channels`, features, are not used; `start` (N,) is a mean hand, its shape last.
    """

    def __init__(self, channels, start):
        super().__init__()
        self.channels = channels
        self.register_buffer("start", start)
        self.pose = nn.Sequential(
            nn.Linear(3 * NUM_JOINTS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
            Residual(), Residual(), nn.Linear(HIDDEN, len(start) - NUM_BETAS),
        )  # fmt: skip
        self.shape = nn.Sequential(
            conv(1, 16, stride=2), conv(16, 32, stride=2), conv(32, 64, stride=2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, NUM_BETAS),
        )  # fmt: skip
        for stream in (self.pose, self.shape):  # the first answers stay close to the mean hand
            nn.init.xavier_uniform_(stream[-1].weight, gain=0.01)
            nn.init.zeros_(stream[-1].bias)

    def forward(self, joined, pooled, project):
        """Estimate once, (B, C + 22, h, h) to [(B, N)]; it asks for nothing else."""
        maps = joined[:, self.channels :].detach().float()
        height = maps[:, :NUM_JOINTS].amax(dim=(2, 3))
        points = torch.cat([heatmap_peaks(maps).flatten(1), height], dim=1)
        silhouette = torch.sigmoid(maps[:, NUM_JOINTS, None])
        residual = torch.cat([self.pose(points), self.shape(silhouette)], dim=1)
        return [self.start + residual.float()]


class Pavlakos(TrainedMesh):
    """A hand in place of SMPL; both stages are trained together on the same images, without
    gradients from the second to the first, where the original trains the second on recorded poses
    and bodies, which hands lack; for the same reason joints are compared and not parameters or
    vertices; rotation and weak-perspective camera come from the joints as well.
    """

    name = "pavlakos"
    reference = "Pavlakos et al., CVPR 2018"

    def build(self, settings, hand, crops):
        network = HAMR(replace(settings.model, maps=NUM_JOINTS + 1), hand)
        network.regressor = Priors(settings.model.channels, network.regressor.start)
        return network

    def parts(self, network, output, batch, settings):
        names = "joints_3d", "joints_2d", "heatmap", "silhouette"
        drawn = [maps[:, NUM_JOINTS].float() for maps in output.heatmaps]
        mask = F.interpolate(batch["mask"][:, None], drawn[0].shape[-2:], mode="area")[:, 0]
        wrong = sum(F.binary_cross_entropy_with_logits(d, mask, reduction="none") for d in drawn)
        return {
            **hamr_parts(names, network, output, batch, settings),
            "mask": (MASK, mean_where(wrong.mean(dim=(1, 2)), batch["has_mask"])),
        }
