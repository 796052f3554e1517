"""The network of HAMR: heat maps of the joints, then the hand by iterative regression.

    image -> stem -> stacked hourglass -> maps of the joints        (2-D pose module, Section 3.3)
                             |                  |
                             +---- joined ------+-> stride-2 convolutions -> fully connected,
                                                    three times over        (Section 3.2)
                                                 -> camera, rotation, pose, shape -> hand layer

At the paper's size (256 px, 256 channels, two 3x3 convolutions a block, 2048 hidden) this has
68.1 million parameters and one forward pass of one image costs 61.2 GFLOP (a multiplication and
its addition counted as two).
"""

import math
from typing import NamedTuple

import roma
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamr_lib.camera import project_weak
from hamr_lib.errors import HamrError
from hamr_lib.joints import NUM_JOINTS, WRIST
from hamr_lib.model.backbone import PretrainedStem

NUM_BETAS = 10
# Crop units a metre at which every estimate starts: the median over random poses and viewpoints
# of the open hand, in crops 1.4 times its joints' box, is 10.6.
START_SCALE = 10.0
LOCAL = 32  # numbers that are read off the features at each joint's place


class Estimate(NamedTuple):
    """What the network says about a batch of hands, camera frame, wrist at the origin.

    Without a mesh (the `no-mesh` ablation) rotation, pose, betas and vertices are None; where only
    the joints were asked for, the vertices are.
    """

    camera: Tensor  # (B, 3) weak perspective s, tx, ty; s > 0
    rotation: Tensor | None  # (B, 3, 3) the wrist's rotation
    hand_pose: Tensor | None  # (B, P) PCA coefficients, or 45 axis-angle numbers
    betas: Tensor | None  # (B, 10) shape
    vertices: Tensor | None  # (B, V, 3) metres, root-relative
    joints_3d: Tensor  # (B, 21, 3) metres, root-relative
    joints_2d: Tensor  # (B, 21, 2) crop units, Eq. 4-5

    @property
    def global_orient(self):
        """The rotation as (B, 3) axis-angle, radians, at most pi long."""
        return roma.rotmat_to_rotvec(self.rotation)


class Output(NamedTuple):
    """Heat maps of each stack and estimates of each iteration; the last of each is the best."""

    heatmaps: list[Tensor]  # (B, maps, h, h) each, raw; the first 21 are the joints
    estimates: list[Estimate]


def conv(inputs, outputs, kernel=3, stride=1):
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def block(inputs, outputs, convs):
    """What stands in place of a residual block: `convs` 3x3 convolutions (Section 4.1)."""
    widths = [inputs] + [outputs] * convs
    return nn.Sequential(*(conv(a, b) for a, b in zip(widths, widths[1:], strict=False)))


class Hourglass(nn.Module):
    """One hourglass (Newell et al. 2016): (B, C, h, h) to the same, seeing `depth` halvings."""

    def __init__(self, channels, depth, convs):
        super().__init__()
        self.skip = block(channels, channels, convs)
        self.down = block(channels, channels, convs)
        self.inner = (
            Hourglass(channels, depth - 1, convs) if depth > 1 else block(channels, channels, convs)
        )
        self.up = block(channels, channels, convs)

    def forward(self, x):
        low = self.up(self.inner(self.down(F.avg_pool2d(x, 2))))
        return self.skip(x) + F.interpolate(low, scale_factor=2.0, mode="nearest")


def make_stem(settings, pretrained=True):
    """Make the first layers: (B, 3, S, S) in [0, 1] to (B, channels, h, h), h = S / map_stride."""
    width = settings.channels
    if settings.stem != "convolutions":
        return PretrainedStem(
            width,
            own=settings.own_statistics,
            encoder=settings.stem,
            stride=settings.map_stride,
            frozen=settings.frozen_blocks,
            pretrained=pretrained,
        )
    return nn.Sequential(
        conv(3, width // 4, kernel=7, stride=2),
        conv(width // 4, width // 2),
        nn.AvgPool2d(2),
        block(width // 2, width, settings.convs),
    )


class PoseModule(nn.Module):
    """The 2-D pose module, Section 3.3: an image to features and heat maps of the joints."""

    def __init__(self, settings, pretrained=True):
        super().__init__()
        width, maps, stacks = settings.channels, settings.maps, settings.stacks
        self.stem = make_stem(settings, pretrained)
        self.hourglasses = nn.ModuleList(
            Hourglass(width, settings.depth, settings.convs) for _ in range(stacks)
        )
        self.features = nn.ModuleList(conv(width, width) for _ in range(stacks))
        self.maps = nn.ModuleList(nn.Conv2d(width, maps, 1) for _ in range(stacks))
        # What a stack hands on to the next one, added to its own input.
        self.join = nn.ModuleList(nn.Conv2d(width + maps, width, 1) for _ in range(stacks - 1))
        for head in self.maps:  # start near the empty map that most pixels want
            nn.init.normal_(head.weight, std=0.001)
            nn.init.zeros_(head.bias)

    def forward(self, image):
        """(B, 3, S, S) -> joined features and maps of the last stack (B, C + M, h, h), and the
        list of each stack's maps (B, M, h, h); h = S / `model.map_stride`."""
        x = self.stem(image)
        heatmaps = []
        for stack, hourglass in enumerate(self.hourglasses):
            features = self.features[stack](hourglass(x))
            heatmaps.append(self.maps[stack](features))
            joined = torch.cat([features, heatmaps[-1]], dim=1)
            if stack < len(self.join):
                x = x + self.join[stack](joined)
        return joined, heatmaps


class Regression(nn.Module):
    """Iterative regression, Section 3.2: each iteration adds a residual to the last estimate.

    Stride-2 convolutions halve a map of `size` pixels until one is left: six for the paper's 64.
    Their width doubles towards `hidden` at the last one and is never below `channels`.
    """

    def __init__(self, settings, inputs, size, start):
        super().__init__()
        self.iterations = settings.iterations
        steps = math.ceil(math.log2(size))
        widths = [inputs] + [
            max(settings.channels, settings.hidden >> left) for left in reversed(range(steps))
        ]
        self.encoder = nn.Sequential(
            *(conv(a, b, stride=2) for a, b in zip(widths, widths[1:], strict=False))
        )
        hidden, dropout = settings.hidden, settings.dropout
        self.maps = settings.maps if settings.places else 0
        # What the layers see: of the image its features, and the places and features of joints; of
        # the last estimate its numbers, and how far off its joints are.
        sizes = [widths[-1], len(start)]
        if settings.places:
            self.local = nn.Sequential(nn.Linear(inputs - self.maps, LOCAL), nn.ReLU(inplace=True))
            sizes[1:1] = [NUM_JOINTS * 3, NUM_JOINTS * LOCAL]
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

    def forward(self, joined, project):
        """Features and maps to estimates.

        Args:
            joined: (B, C, size, size), the maps last.
            project: a function of estimates (B, N) that gives their joints, (B, 21, 2) crop units.

        Returns:
            a list of (B, N) estimates, one an iteration, in float32.
        """
        features = self.encoder(joined).flatten(1)
        # These layers cost next to nothing, and bfloat16 would round each parameter to 0.4 %.
        with torch.autocast(joined.device.type, enabled=False):
            if not self.maps:
                return self.iterate(self.known(features.float()), None, project)
            places = heatmap_places(joined[:, -self.maps :])
            there = self.local(sample(joined[:, : -self.maps].float(), places[..., :2]))
            return self.iterate(self.known(features.float(), places, there), places, project)

    def known(self, *image):
        """What the first layer makes of an image, which is the same in every iteration.

        Args:
            image: features (B, F) of the whole of it; and with `model.places` the places
                (B, 21, 3) of `heatmap_places` and the features (B, 21, LOCAL) there. None is as
                good as zeros.

        Returns:
            (B, hidden).
        """
        answer = self.layers[0].bias
        for seen, weight in zip(image, self._columns(), strict=False):
            if seen is not None:
                answer = answer + F.linear(seen.flatten(1), weight)
        return answer

    def _columns(self):
        """The first layer's weights, cut by what they are of: see `sizes`."""
        return self.layers[0].weight.split(self.sizes, dim=1)

    def iterate(self, known, places, project):
        """What is known of an image to estimates, as `forward` gives them.

        Args:
            known: (B, hidden) of `known`.
            places: (B, 21, 3) of `heatmap_places`; None where `model.places` is off.
        """
        weights = self._columns()[3:] if self.maps else self._columns()[1:]
        estimates = [self.start.expand(len(known), -1)]
        for _ in range(self.iterations):
            seen = [estimates[-1]]
            if places is not None:
                with torch.no_grad():  # how far off it is, told and not to be learned through
                    seen.append((project(estimates[-1]) - places[..., :2]).flatten(1))
            hidden = known
            for numbers, weight in zip(seen, weights, strict=True):
                hidden = hidden + F.linear(numbers, weight)
            estimates.append(estimates[-1] + self.layers[1:](hidden))
        return estimates[1:]

    def silence_features(self):
        """Let features, of the image and at places, change nothing until training says so."""
        whole, _, there = self._columns()[:3]
        with torch.no_grad():
            whole.zero_()
            there.zero_()


class HAMR(nn.Module):
    """Hand mesh recovery from one image of a right hand.

    Args:
        settings: `config.Model`.
        hand: the hand layer of `layer.load_hand`. It is not trained, and it keeps itself out of the
            state dict.
        pretrained: fill a pretrained stem with its weights; off where a checkpoint brings them.

    Raises:
        HamrError: for a setting that makes no network.

    What is regressed are raw numbers, to which each iteration adds. Rotation, pose and shape are
    used as they are (the rotation through the exponential map, or Gram-Schmidt for "6d"). Of the
    camera, tx and ty are used as they are, and the scale is 10 softplus(raw): a hand seen at a
    negative scale means nothing, and unlike an exponential the softplus grows no faster than its
    argument, so that one bad step cannot throw the scale away.
    """

    def __init__(self, settings, hand, pretrained=True):
        super().__init__()
        self.image_size = settings.image_size
        self.mesh = settings.mesh
        self.rotation = settings.rotation
        self.metrics = {}  # on training and validation images, where a checkpoint tells them
        self.hand = hand.requires_grad_(False)
        self.pose_module = PoseModule(settings, pretrained)
        self.regression = Regression(
            settings,
            inputs=settings.channels + settings.maps,
            size=settings.image_size // settings.map_stride,
            start=self._start(),
        )

    @classmethod
    def from_pretrained(cls, path=None, device="cpu"):
        """A trained network, ready to be used.

        Args:
            path: a checkpoint; None takes the reader's own latest, else the one that is shipped
                (`checkpoint.pretrained`).
            device: where it shall be.
        """
        from hamr_lib.model.checkpoint import (  # here, since they need this class
            load_model,
            pretrained,
        )

        network, _ = load_model(pretrained() if path is None else path, device)
        return network

    def _start(self):
        """The estimate before the first iteration: (22,) with the paper's settings."""
        device = next(self.hand.buffers()).device
        camera = torch.tensor([math.log(math.e - 1), 0.0, 0.0], device=device)  # softplus = 1
        identity = [0.0, 0.0, 0.0] if self.rotation == "axis_angle" else [1.0, 0, 0, 0, 1, 0]
        rotation = torch.tensor(identity, device=device)
        pose = torch.zeros(self.hand.pose_components, device=device)
        betas = torch.zeros(NUM_BETAS, device=device)
        if self.mesh:
            return torch.cat([camera, rotation, pose, betas])
        rest = self.hand(betas[None], torch.zeros(1, 3, device=device), pose[None]).joints[0]
        return torch.cat([camera, (10 * (rest - rest[WRIST])).flatten()])

    def forward(self, image, all_iterations=False):
        """Recover the hands in a batch of images.

        Args:
            image: (B, 3, S, S) floats in [0, 1], crops of right hands, S = settings.image_size.
            all_iterations: give an estimate for every iteration, not for the last alone. The
                losses take the last one only, so training need not pay for the others' meshes.

        Returns:
            `Output`.
        """
        expected = (3, self.image_size, self.image_size)
        if image.shape[1:] != expected:
            raise HamrError(f"image is {tuple(image.shape)}, expected (B, {expected})")
        joined, heatmaps = self.pose_module(image)
        raw = self.regression(joined, self.project)
        wanted = raw if all_iterations else raw[-1:]
        with torch.autocast(image.device.type, enabled=False):
            return Output(heatmaps, [self.decode(r) for r in wanted])

    def decode(self, raw, mesh=True):
        """Raw numbers (B, N) of one iteration to an `Estimate`; mesh=False leaves vertices out."""
        camera = torch.cat([START_SCALE * F.softplus(raw[:, :1]), raw[:, 1:3]], dim=1)
        if not self.mesh:
            joints = raw[:, 3:].unflatten(1, (NUM_JOINTS, 3)) / 10  # decimetres, so that they are
            joints = joints - joints[:, WRIST, None]  # of the order of one like everything else
            flat = project_weak(joints, camera)
            return Estimate(camera, None, None, None, None, joints, flat)
        turn, pose, betas = raw[:, 3:].split(
            [raw.shape[1] - 3 - self.hand.pose_components - NUM_BETAS,
             self.hand.pose_components, NUM_BETAS], dim=1
        )  # fmt: skip
        rotation = (
            roma.rotvec_to_rotmat(turn) if self.rotation == "axis_angle" else rotation_from_6d(turn)
        )
        return self.compose(camera, rotation, pose, betas, mesh)

    def compose(self, camera, rotation, hand_pose, betas, mesh=True):
        """The `Estimate` that these of its parts make; mesh=False leaves vertices out."""
        vertices = None
        if mesh:
            vertices, joints = self.hand(betas, rotation, hand_pose)
            vertices = vertices - joints[:, WRIST, None]
        else:
            joints = self.hand.skeleton(betas, rotation, hand_pose)
        joints = joints - joints[:, WRIST, None]
        flat = project_weak(joints, camera)
        return Estimate(camera, rotation, hand_pose, betas, vertices, joints, flat)

    def project(self, raw):
        """Raw numbers (B, N) of one iteration to joints, (B, 21, 2) crop units."""
        return self.decode(raw, mesh=False).joints_2d


def rotation_from_6d(numbers):
    """Zhou et al. 2019: (B, 6), a matrix's first two columns before Gram-Schmidt, to (B, 3, 3)."""
    columns = numbers.unflatten(-1, (2, 3)).transpose(-1, -2)
    return roma.special_gramschmidt(columns, epsilon=1e-6)


def sample(features, places):
    """What a feature map holds at some places of the crop.

    Args:
        features: (B, C, h, h).
        places: (B, J, 2) crop units; no gradient reaches them.

    Returns:
        (B, J, C), bilinear, zero outside the crop.
    """
    grid = places.detach()[:, :, None]
    return F.grid_sample(features, grid, align_corners=False)[..., 0].transpose(1, 2)


def heatmap_places(heatmaps):
    """Where the joints are on average, under the softmax of their maps, and how sure that is.

    Args:
        heatmaps: (B, M, h, h) logits, M >= 21.

    Returns:
        (B, 21, 3): x and y in crop units, and the sum of the squared probabilities, which is one
        where all is in a single pixel.
    """
    maps = heatmaps[:, :NUM_JOINTS].float()
    axis = cell_centres(maps.shape[-1], -1.0, 1.0, maps)
    yx, share = soft_argmax(maps, (axis, axis))
    sure = share.square().sum((2, 3))
    return torch.cat([yx.flip(-1), sure[..., None]], dim=-1)


def soft_argmax(maps, axes):
    """The mean place of each map, softmax taken over all of it (Sun et al. 2018).

    Args:
        maps: (B, 21, n_1, ..., n_k), raw.
        axes: k tensors (n_i,), the coordinates of the map's cells along each dimension.

    Returns:
        (B, 21, k) coordinates, and the softmax, shaped like `maps`.
    """
    share = maps.flatten(2).softmax(dim=-1).view_as(maps)
    places = []
    for i, axis in enumerate(axes):
        others = [2 + k for k in range(len(axes)) if k != i]
        along = share.sum(dim=others) if others else share
        places.append((along * axis).sum(dim=-1))
    return torch.stack(places, dim=-1), share


def cell_centres(count, low, high, like):
    """(count,) the middles of `count` equal cells between two ends, on the device of `like`."""
    return low + (torch.arange(count, device=like.device) + 0.5) * ((high - low) / count)


def heatmap_peaks(heatmaps):
    """Where the joints are, from their maps alone.

    The highest pixel of each map, moved along each axis to the top of the parabola through it
    and its two neighbours. For the logits of a Gaussian (trained by cross-entropy) that is exact,
    for a Gaussian of variance 2.5 (trained by squared error) it is 0.02 pixels off at most. On
    the border of the map the pixel itself is taken.

    Args:
        heatmaps: (B, M, h, h) raw maps, M >= 21.

    Returns:
        (B, 21, 2) crop units.
    """
    maps = heatmaps[:, :NUM_JOINTS].float()
    size = maps.shape[-1]
    top = maps.flatten(2).argmax(dim=2)
    centre = torch.stack([top % size, top // size], dim=-1)  # (B, 21, 2) as x, y
    inside = ((centre > 0) & (centre < size - 1)).to(maps.dtype)
    # Values at the peak and one pixel to either side of it, along x and along y.
    stride = torch.tensor([1, size], device=maps.device)
    at = top[..., None] + torch.tensor([-1, 0, 1], device=maps.device)[:, None, None, None] * stride
    flat = maps.flatten(2)
    before, peak, after = (flat.gather(2, a.clamp(0, size * size - 1)) for a in at.unbind(0))
    curvature = 2 * peak - before - after  # >= 0, for nothing is higher than the peak
    offset = (after - before) / (2 * curvature.clamp_min(1e-12)) * inside
    return (2 * (centre + offset.clamp(-0.5, 0.5)) + 1) / size - 1


def describe(model):
    """The network's blocks in the order they run, for drawing it.

    Returns:
        A list of (name, shape of its output for one image, trained parameters). Modules that hold
        blocks (an `nn.ModuleList`, the six convolutions) are told block by block.
    """
    blocks = {}  # by the module that ends them
    for part in (model.pose_module, model.regression):
        for name, module in part.named_children():
            holds = isinstance(module, (nn.ModuleList, nn.Sequential))
            holds = holds and name not in ("local", "layers")
            for i, inner in module.named_children() if holds else [("", module)]:
                last = inner[-1] if name == "layers" else inner  # whose first is taken apart
                blocks[last] = f"{name}.{i}".rstrip("."), inner
    rows, seen = [], set()

    def record(module, _, output):
        if module not in seen:  # the fully connected layers run once an iteration
            seen.add(module)
            name, block = blocks[module]
            count = sum(p.numel() for p in block.parameters() if p.requires_grad)
            rows.append((name, tuple(output.shape[1:]), count))

    hooks = [module.register_forward_hook(record) for module in blocks]
    training = model.training
    try:
        start = model.regression.start
        with torch.no_grad():
            model.eval()(start.new_zeros(1, 3, model.image_size, model.image_size))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return rows
