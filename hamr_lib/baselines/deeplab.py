"""DeepLab, version 3: each pixel is hand or not, seen by atrous convolutions at several rates."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from hamr_lib.baselines.common import Trained, resize_mask
from hamr_lib.losses import mean_where
from hamr_lib.model.hourglass import make_stem

REACH = 96  # pixels of the image between the taps of rate 1, as of rate 6 at stride 16 there


class Mask(nn.Module):
    """The study's encoder and DeepLab's head: (B, 3, S, S) to logits (B, S, S)."""

    def __init__(self, settings):
        super().__init__()
        self.features = make_stem(settings)
        rates = [max(1, part * REACH // settings.map_stride) for part in (1, 2, 3)]
        self.head = DeepLabHead(settings.channels, 1, rates)

    def forward(self, image):
        logits = self.head(self.features(image)[0])
        return F.interpolate(logits, image.shape[-2:], mode="bilinear")[:, 0]


class DeepLab(Trained):
    """Version 3 (Chen et al., arXiv 1706.05587) in place of the earlier one, which ends in a
    conditional random field; the study's encoder and its feature pyramid in place of a dilated
    ResNet; one class, hand; no joints, so that only its mask is scored.
    """

    name = "deeplab"
    reference = "Chen et al., arXiv 1606.00915"
    val_metric = "mask_percent"

    def build(self, settings, hand, crops):
        return Mask(settings.model)

    def parts(self, network, output, batch, settings):
        wrong = F.binary_cross_entropy_with_logits(output.float(), batch["mask"], reduction="none")
        return {"mask": (1.0, mean_where(wrong.mean(dim=(1, 2)), batch["has_mask"]))}

    def error(self, network, output, batch):
        """Pixels that are wrong, (B,) percent: defined also where neither side has any hand."""
        wrong = ((output > 0) != (batch["mask"] >= 0.5)).float().mean(dim=(1, 2))
        return torch.where(batch["has_mask"], 100 * wrong, torch.nan)

    def estimate(self, images):
        return {"mask": resize_mask(self.network(images).float().sigmoid(), self.mask_size)}
