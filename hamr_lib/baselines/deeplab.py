"""DeepLab, version 3: a mask and nothing else.

Atrous convolutions keep the last features fine, and a pyramid of them at several rates sees parts
of all sizes; each pixel is then hand or not, by cross-entropy.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from hamr_lib.baselines.common import NO_WEIGHTS, Trained, encoder_departure
from hamr_lib.losses import mean_where

RATES = (6, 12, 18)  # of the pyramid, as in the original where features have stride 16


class Mask(nn.Module):
    """torchvision's ResNet at stride 16 and DeepLab's head: (B, 3, S, S) to logits (B, S, S)."""

    def __init__(self, encoder):
        super().__init__()
        resnet = torchvision.models.get_model(encoder, weights=None)
        dilate(resnet.layer4)
        channels = resnet.fc.in_features
        self.features = nn.Sequential(*list(resnet.children())[:-2])  # not the pooling, the classes
        self.head = DeepLabHead(channels, 1, RATES)

    def forward(self, image):
        logits = self.head(self.features(image))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear")[:, 0]


def dilate(layer):
    """Keep a ResNet layer's resolution: no stride, and its 3x3 convolutions twice as far apart.

    torchvision does this for the larger ResNets only.
    """
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            if module.kernel_size == (3, 3) and module.stride == (1, 1):
                module.dilation, module.padding = (2, 2), (2, 2)
            module.stride = (1, 1)  # the first block's, whose 3x3 still steps as far as before


class DeepLab(Trained):
    """Version 3 of what the paper's Table 1 compares with: its [11], an earlier DeepLab."""

    name = "deeplab"
    reference = "Chen et al., arXiv 1606.00915"
    val_metric = "mask_percent"

    @staticmethod
    def departures(settings):
        return (
            "Version 3 (Chen et al., arXiv 1706.05587) in place of the earlier one, which ends in "
            f"a conditional random field; {encoder_departure(settings)}{NO_WEIGHTS}; one class, "
            "hand; no joints, so that only its mask is scored."
        )

    def build(self, settings, hand, crops):
        return Mask(settings.study.comparison_encoder)

    def parts(self, network, output, batch, settings):
        wrong = F.binary_cross_entropy_with_logits(output.float(), batch["mask"], reduction="none")
        return {"mask": (1.0, mean_where(wrong.mean(dim=(1, 2)), batch["has_mask"]))}

    def error(self, network, output, batch):
        """Pixels that are wrong, (B,) percent: defined also where neither side has any hand."""
        wrong = ((output > 0) != (batch["mask"] >= 0.5)).float().mean(dim=(1, 2))
        return torch.where(batch["has_mask"], 100 * wrong, torch.nan)

    def estimate(self, images):
        """See `comparisons`: a mask alone."""
        mask = torch.sigmoid(self.network(images).float())
        size = (self.mask_size, self.mask_size)
        mask = F.interpolate(mask[:, None], size, mode="bilinear", antialias=True)
        return {"mask": mask[:, 0]}
