"""Boukhayma, de Bem & Torr: an encoder and one linear step to the parameters of the hand model.

L = L_2D + L_3D + L_mask + L_reg. L_mask is the fraction of the mesh's vertices that project
outside the hand's mask. L_reg = |pose|^2 + |shape|^2 keeps the hand likely.
"""

import torch.nn.functional as F
from torch import nn

from hamr_lib.baselines.common import TrainedMesh, encoder_network, hamr_parts
from hamr_lib.camera import project_weak
from hamr_lib.losses import mean_where

MASK = 1.0  # weight of L_mask
REGULAR = 0.01  # weight of the mean square of pose and shape


class Boukhayma(TrainedMesh):
    """The variant that is not given OpenPose's heat maps; the encoder as for HMR; this study's hand
    layer, rotation, kinds and weights of the 2-D and 3-D losses, own weights of the mask and of the
    regulariser; no images from the wild.
    """

    name = "boukhayma"
    reference = "Boukhayma et al., CVPR 2019"

    def build(self, settings, hand, crops):
        network = encoder_network(settings, hand, iterations=1)
        linear = nn.Linear(sum(network.regressor.sizes), len(network.regressor.start))
        nn.init.xavier_uniform_(linear.weight, gain=0.01)
        nn.init.zeros_(linear.bias)
        network.regressor.layers = nn.Sequential(linear)
        return network

    def parts(self, network, output, batch, settings):
        last = output.estimates[-1]
        points = project_weak(last.vertices, last.camera)
        regular = last.hand_pose.square().mean() + last.betas.square().mean()
        return {
            **hamr_parts(("joints_3d", "joints_2d"), network, output, batch, settings),
            "mask": (MASK, mask_loss(points, batch["mask"], batch["has_mask"])),
            "regular": (REGULAR, regular),
        }


def mask_loss(points, mask, has_mask):
    """L_mask: one less the mean of masks (B, S, S) at the vertices' projections (B, V, 2)."""
    hit = F.grid_sample(mask[:, None], points[:, None], align_corners=False)[:, 0, 0]  # (B, V)
    return mean_where(1 - hit.mean(dim=1), has_mask)
