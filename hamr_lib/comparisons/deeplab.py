"""DeepLab v3: a mask and nothing else.

Atrous convolutions keep the last features fine, and a pyramid of them at several rates sees parts
of all sizes; each pixel is then hand or not, by cross-entropy.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation

from ..losses import mean_where
from .common import NO_WEIGHTS, Trained

NETWORKS = {"resnet50": "deeplabv3_resnet50", "resnet18": "deeplabv3_mobilenet_v3_large"}


class Mask(nn.Module):
    """torchvision's DeepLab v3 with one class: (B, 3, S, S) to logits (B, S, S)."""

    def __init__(self, encoder):
        super().__init__()
        build = getattr(segmentation, NETWORKS[encoder])
        self.deeplab = build(weights=None, weights_backbone=None, num_classes=1)

    def forward(self, image):
        return self.deeplab(image)["out"][:, 0]


class DeepLab(Trained):
    """Chen et al. 2017, as the paper's Table 1 compares with it."""

    name = "deeplab"
    reference = "Chen et al., arXiv 1706.05587"
    judged_by = "mask_percent"
    told = "mask {:.1f} % wrong"

    @staticmethod
    def departures(settings):
        small = settings.study.comparison_encoder != "resnet50"
        return (
            f"{'MobileNet v3 below it in place of a ResNet, ' if small else ''}{NO_WEIGHTS}; one "
            "class, hand; no joints, so that only its mask is scored."
        )

    def build(self, settings, hand, crops):
        return Mask(settings.study.comparison_encoder)

    def parts(self, network, output, batch, settings):
        wrong = F.binary_cross_entropy_with_logits(output.float(), batch["mask"], reduction="none")
        return {"mask": (1.0, mean_where(wrong.mean(dim=(1, 2)), batch["has_mask"]))}

    def error(self, network, output, batch):
        """Pixels that are wrong, percent: defined also where neither side has any hand."""
        wrong = ((output > 0) != (batch["mask"] >= 0.5)).float().mean(dim=(1, 2))
        return 100 * mean_where(wrong, batch["has_mask"])

    def estimate(self, images):
        """See `comparisons`: a mask alone."""
        mask = torch.sigmoid(self.network(images).float())
        size = (self.mask_size, self.mask_size)
        mask = F.interpolate(mask[:, None], size, mode="bilinear", antialias=True)
        return {"mask": mask[:, 0]}
