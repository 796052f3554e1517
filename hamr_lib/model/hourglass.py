"""The 2-D pose module, Section 3.3: stem and stacked hourglass to heat maps of the joints."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamr_lib.config import Model
from hamr_lib.model.backbone import PretrainedStem


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Make a convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def block(inputs: int, outputs: int, convs: int) -> nn.Sequential:
    """Make `convs` 3x3 convolutions, which replace a residual block (Section 4.1)."""
    return nn.Sequential(*(conv(outputs if i else inputs, outputs) for i in range(convs)))


class Hourglass(nn.Module):
    """One hourglass (Newell et al. 2016): (B, C, h, h) to the same shape, by `depth` halvings."""

    def __init__(self, channels: int, depth: int, convs: int):
        super().__init__()
        size = channels, channels, convs
        self.skip = block(*size)
        self.down = block(*size)
        self.inner = Hourglass(channels, depth - 1, convs) if depth > 1 else block(*size)
        self.up = block(*size)

    def forward(self, x: Tensor) -> Tensor:
        low = self.up(self.inner(self.down(F.avg_pool2d(x, 2))))
        return self.skip(x) + F.interpolate(low, scale_factor=2.0, mode="nearest")


class ConvolutionStem(nn.Sequential):
    """The paper's first layers; like `PretrainedStem` with no pooled features."""

    def forward(self, image: Tensor) -> tuple[Tensor, None]:
        return super().forward(image), None


def make_stem(settings: Model, pretrained: bool = True) -> nn.Module:
    """Make the first layers: (B, 3, S, S) in [0, 1] to (B, channels, h, h), h = S / map_stride.

    Their second result is a pretrained encoder's pooled features (B, P), or None.
    """
    width = settings.channels
    if settings.stem == "convolutions":
        first, second = conv(3, width // 4, kernel=7, stride=2), conv(width // 4, width // 2)
        last = block(width // 2, width, settings.convs)
        return ConvolutionStem(first, second, nn.AvgPool2d(2), last)
    return PretrainedStem(settings, pretrained)


class PoseModule(nn.Module):
    """The stem, the hourglasses, and the maps that each of these gives."""

    def __init__(self, settings: Model, pretrained: bool = True):
        super().__init__()
        width, maps, stacks = settings.channels, settings.maps, range(settings.stacks)
        self.stem = make_stem(settings, pretrained)
        size = width, settings.depth, settings.convs
        self.hourglasses = nn.ModuleList(Hourglass(*size) for _ in stacks)
        self.features = nn.ModuleList(conv(width, width) for _ in stacks)
        self.maps = nn.ModuleList(nn.Conv2d(width, maps, 1) for _ in stacks)
        # Features and maps of a stack are added to its input for the next one.
        self.join = nn.ModuleList(nn.Conv2d(width + maps, width, 1) for _ in stacks[:-1])
        for head in self.maps:  # start near empty maps
            if not head.weight.is_meta:  # where `normal_` would import torch's compiler
                nn.init.normal_(head.weight, std=0.001)
                nn.init.zeros_(head.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Compute features and raw heat maps of an image (B, 3, S, S) in [0, 1].

        Returns:
            Features and maps of the last stack, joined (B, C + M, h, h), the maps of each stack
            (B, M, h, h), h = S / `model.map_stride`, and the stem's pooled features (B, P) or None.
        """
        (x, pooled), heatmaps = self.stem(image), []
        for stack, hourglass in enumerate(self.hourglasses):
            features = self.features[stack](hourglass(x))
            heatmaps.append(self.maps[stack](features))
            joined = torch.cat([features, heatmaps[-1]], dim=1)
            if stack < len(self.join):
                x = x + self.join[stack](joined)
        return joined, heatmaps, pooled
