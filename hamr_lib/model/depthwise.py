"""Depthwise convolutions, padded as TensorFlow does, that train fast on a CPU.

oneDNN's gradient by the weights is fast for 3x3 kernels of stride 1 alone. At 5x5, or at stride 2,
in bfloat16, it takes up to thirty times as long. Other kernels are here put together from those.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Depthwise(nn.Conv2d):
    """A depthwise convolution of kernel 3 or 5 and stride 1 or 2.

    TensorFlow's padding at stride 2 has one pixel more at the far ends. The output is then every
    second pixel, from pixel 1 on, of the output of stride 1.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias
        )
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        if x.is_cuda or not trained:
            y = super().forward(x)
            return y[:, :, 1::2, 1::2] if self.every == 2 else y
        if self.every == 1 and self.kernel_size[0] == 3:
            return super().forward(x)
        y = self._by_phase(x) if self.every == 2 else Depthwise5x5.apply(x, self.weight.to(x.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

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
