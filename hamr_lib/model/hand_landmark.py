"""The encoder of MediaPipe's hand landmark network, in torch.

The network (MediaPipe Hands, Zhang et al. 2020, `hand_landmark_full`) was trained by others on
photographs of hands. Its encoder is an EfficientNet-Lite with the normalisation folded into the
convolutions. The weights are copyright of The MediaPipe Authors, under the Apache License 2.0 (see
`NOTICE`); they come inside the `mediapipe` wheel.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamr_lib.errors import HamrError
from hamr_lib.model.depthwise import Depthwise

FILE = "modules/hand_landmark/hand_landmark_full.tflite"
# Expanded channels, output channels, kernel and stride of each inverted bottleneck.
BLOCKS = (
    (24, 16, 3, 1), (64, 24, 3, 2), (144, 24, 3, 1), (144, 40, 5, 2), (240, 40, 5, 1),
    (240, 80, 3, 2), (480, 80, 3, 1), (480, 80, 3, 1), (480, 112, 5, 1), (672, 112, 5, 1),
    (672, 112, 5, 1), (672, 192, 5, 2), (1152, 192, 5, 1), (1152, 192, 5, 1), (1152, 192, 5, 1),
)  # fmt: skip
# Block after which a map of stride 4, 8, 16 and 32 ends: its channels.
TAPS = {2: 24, 4: 40, 10: 112, 14: 192}
LAST = 1152  # channels after the last layers


class FirstConv2d(nn.Conv2d):
    """The first convolution, 3x3 of stride 2; like TensorFlow it pads at the far ends alone."""

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


def encoder() -> nn.Sequential:
    """Build the encoder: (B, 3, S, S) RGB in [0, 1] to (B, 1152, S/32, S/32), at random.

    It is the first convolution with its ReLU6, one `Bottleneck` for each of `BLOCKS`, and last the
    layers from whose mean over the image the landmarks are read.
    """
    inputs = [BLOCKS[0][0], *(outputs for _, outputs, *_ in BLOCKS)]
    blocks = (Bottleneck(i, *block) for i, block in zip(inputs, BLOCKS, strict=False))
    last = nn.Sequential(
        nn.Conv2d(inputs[-1], LAST, 1), nn.ReLU6(inplace=True),
        Depthwise(LAST, 3, 1), nn.ReLU6(inplace=True),
    )  # fmt: skip
    return nn.Sequential(FirstConv2d(3, 24, 3, stride=2), nn.ReLU6(inplace=True), *blocks, last)


@torch.no_grad()
def fill(network: nn.Module, weights: list[tuple[Tensor, Tensor]]):
    """Copy (weight, bias) pairs to a network's convolutions and linear layers, in their order."""
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    shapes = [layer.weight.shape for layer in layers]
    if [weight.shape for weight, _ in weights[: len(layers)]] != shapes:
        raise HamrError(f"{FILE}: its layers are not those of hand_landmark_full in mediapipe")
    for layer, (weight, bias) in zip(layers, weights, strict=False):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def weights_path() -> Path:
    """Locate the network in the installed `mediapipe` wheel, which is not imported."""
    package = importlib.util.find_spec("mediapipe")
    if package and (path := Path(package.origin).parent / FILE).is_file():
        return path
    raise HamrError(
        f"mediapipe/{FILE} is missing: a new network with model.stem=hand_landmark needs the "
        "package mediapipe==0.10.14"
    )


def read_weights(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Read (weight, bias) of each convolution and linear layer of a .tflite file, in graph order.

    Weights are in torch's layout, single precision: (out, in / groups, k, k) or (out, in).
    """
    import tflite  # only a new network needs it

    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    axes = {  # from TFLite's layout to torch's
        tflite.BuiltinOperator.CONV_2D: (0, 3, 1, 2),
        tflite.BuiltinOperator.DEPTHWISE_CONV_2D: (3, 0, 1, 2),
        tflite.BuiltinOperator.FULLY_CONNECTED: (0, 1),
    }
    halves, layers = {}, []  # a constant in half precision by the tensor that DEQUANTIZE makes
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if kind == tflite.BuiltinOperator.DEQUANTIZE:
            constant = graph.Tensors(operator.Inputs(0))
            values = model.Buffers(constant.Buffer()).DataAsNumpy().view(np.float16).copy()
            shape = tuple(constant.ShapeAsNumpy())
            halves[operator.Outputs(0)] = torch.from_numpy(values).reshape(shape)
        elif kind in axes:
            weight, bias = (halves[operator.Inputs(i)].float() for i in (1, 2))
            layers.append((weight.permute(axes[kind]), bias))
    return layers
