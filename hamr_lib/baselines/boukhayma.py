"""Boukhayma, de Bem & Torr: an encoder and one linear step to the parameters of the hand model.

L = L_2D + L_3D + L_mask + L_reg, with L_mask the share of the mesh's vertices that project outside
of the hand's mask, and L_reg = |pose|^2 + |shape|^2, which keeps the hand likely.
"""

import torch.nn.functional as F
from torch import nn

from hamr_lib.baselines.common import TrainedMesh, encoder_network
from hamr_lib.camera import project_weak
from hamr_lib.losses import joints_2d_loss, joints_3d_loss, mean_where

MASK = 1.0  # weight of L_mask, a share of the vertices
REGULAR = 0.01  # weight of the mean square of pose and shape


class Boukhayma(TrainedMesh):
    """Boukhayma et al. 2019, the variant that sees the image alone."""

    name = "boukhayma"
    reference = "Boukhayma et al., CVPR 2019"

    @staticmethod
    def deviations(settings):
        return (
            "The variant that is not given OpenPose's heat maps; the encoder as for HMR; this "
            "study's hand layer, rotation, kinds and weights of the 2-D and 3-D losses, own "
            "weights of the mask and of the regulariser; no images from the wild."
        )

    def build(self, settings, hand, crops):
        network = encoder_network(settings, hand, iterations=1)
        start = network.regressor.start
        linear = nn.Linear(sum(network.regressor.sizes), len(start))
        nn.init.xavier_uniform_(linear.weight, gain=0.01)
        nn.init.zeros_(linear.bias)
        network.regressor.layers = nn.Sequential(linear)
        return network

    def parts(self, network, output, batch, settings):
        last, weights = output.estimates[-1], settings.losses
        points = project_weak(last.vertices, last.camera)
        regular = last.hand_pose.square().mean() + last.betas.square().mean()
        valid_2d, valid_3d = batch["valid_2d"], batch["valid_3d"]
        return {
            "joints_3d": (
                weights.joints_3d,
                joints_3d_loss(
                    last.joints_3d, batch["joints_3d"], valid_3d, weights.joints_3d_kind
                ),
            ),
            "joints_2d": (
                weights.joints_2d,
                joints_2d_loss(
                    last.joints_2d, batch["joints_2d"], valid_2d, weights.joints_2d_kind
                ),
            ),
            "mask": (MASK, mask_loss(points, batch["mask"], batch["has_mask"])),
            "regular": (REGULAR, regular),
        }  # fmt: skip


def mask_loss(points, mask, has_mask):
    """L_mask: one less the mean of the mask where the vertices project.

    Args:
        points: (B, V, 2) crop units.
        mask: (B, S, S) in [0, 1]; has_mask: (B,) bool.

    Returns:
        A scalar in [0, 1].
    """
    hit = F.grid_sample(mask[:, None], points[:, None], align_corners=False)[:, 0, 0]  # (B, V)
    return mean_where(1 - hit.mean(dim=1), has_mask)
