"""The iterative regressor, Section 3.2: features and heat maps to raw estimates."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamr_lib.config import Model
from hamr_lib.joints import NUM_JOINTS
from hamr_lib.model.backbone import POOLED
from hamr_lib.model.heatmaps import joint_aligned_features, softargmax_keypoints
from hamr_lib.model.hourglass import conv

FEATURES = 32  # channels of the joint-aligned features


class Regressor(nn.Module):
    """The iterative regressor: each iteration adds a residual to the last estimate.

    Stride-2 convolutions halve features and maps of `inputs` channels until one pixel is left,
    while their width doubles towards `hidden`. `start` (N,) is the estimate before the first
    iteration.
    """

    def __init__(self, settings: Model, inputs: int, start: Tensor):
        super().__init__()
        self.iterations, hidden, dropout = settings.iterations, settings.hidden, settings.dropout
        halvings = reversed(range(math.ceil(math.log2(settings.image_size // settings.map_stride))))
        widths = [max(settings.channels, hidden >> left) for left in halvings]
        layers = (conv(a, b, stride=2) for a, b in zip([inputs, *widths], widths, strict=False))
        self.encoder = nn.Sequential(*layers)
        self.maps = settings.maps if settings.joint_features else 0
        # Inputs of the layers: encoded and pooled features, keypoints, joint-aligned features, the
        # last estimate, and the distance of its projection from the keypoints.
        pooled = POOLED[settings.stem] if settings.pooled_features else 0
        sizes = [widths[-1] + pooled, len(start)]
        if settings.joint_features:
            linear = nn.Linear(inputs - self.maps, FEATURES)
            self.joint_features = nn.Sequential(linear, nn.ReLU(inplace=True))
            sizes[1:1] = [NUM_JOINTS * 3, NUM_JOINTS * FEATURES]
            sizes.append(NUM_JOINTS * 2)
        self.sizes = sizes
        self.layers = nn.Sequential(
            nn.Linear(sum(sizes), hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, len(start)),
        )  # fmt: skip
        # The first estimates stay close to the start, as in HMR.
        nn.init.xavier_uniform_(self.layers[-1].weight, gain=0.01)
        nn.init.zeros_(self.layers[-1].bias)
        self.register_buffer("start", start)

    def forward(self, joined: Tensor, pooled: Tensor | None, project: Callable) -> list[Tensor]:
        """Regress raw estimates, a list of (B, N), one an iteration, in single precision.

        Args:
            joined: features and maps (B, C, size, size), the maps last.
            pooled: (B, P) the stem's pooled features; None without `model.pooled_features`.
            project: a function of estimates (B, N) that gives their joints, (B, 21, 2) crop units.
        """
        features = self.encoder(joined).flatten(1)
        if pooled is not None:
            features = torch.cat([features, pooled], dim=1)
        # These layers cost next to nothing, and bfloat16 would round each parameter to 0.4 %.
        with torch.autocast(joined.device.type, enabled=False):
            image, keypoints = [features.float()], None
            if self.maps:
                keypoints = softargmax_keypoints(joined[:, -self.maps :])
                there = joint_aligned_features(joined[:, : -self.maps].float(), keypoints[..., :2])
                image += [keypoints, self.joint_features(there)]
            return self.iterate(self.first_layer(*image), keypoints, project)

    def first_layer(self, *image: Tensor | None) -> Tensor:
        """Apply the first layer to what an image tells, the same in every iteration: (B, hidden).

        That is features (B, F), and with `model.joint_features` keypoints (B, 21, 3) and
        joint-aligned features (B, 21, FEATURES). None stands for zeros.
        """
        hidden = self.layers[0].bias
        for part, weight in zip(image, self._columns(), strict=False):
            if part is not None:
                hidden = hidden + F.linear(part.flatten(1), weight)
        return hidden

    def _columns(self):
        """The first layer's weights, one part for each of `sizes`."""
        return self.layers[0].weight.split(self.sizes, dim=1)

    def iterate(self, image: Tensor, keypoints: Tensor | None, project: Callable) -> list[Tensor]:
        """Iterate from the start, see `forward`; `image` is that of `first_layer`."""
        weights = self._columns()[3:] if self.maps else self._columns()[1:]
        estimates = [self.start.expand(len(image), -1)]
        for _ in range(self.iterations):
            inputs = [estimates[-1]]
            if keypoints is not None:
                with torch.no_grad():  # no gradient through the projection
                    inputs.append((project(estimates[-1]) - keypoints[..., :2]).flatten(1))
            hidden = image
            for numbers, weight in zip(inputs, weights, strict=True):
                hidden = hidden + F.linear(numbers, weight)
            estimates.append(estimates[-1] + self.layers[1:](hidden))
        return estimates[1:]

    @torch.no_grad()
    def silence_features(self):
        """Set the first layer's weights of encoded and joint-aligned features to zero."""
        encoded, _, aligned = self._columns()[:3]
        encoded.zero_()
        aligned.zero_()
