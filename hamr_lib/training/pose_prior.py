"""Pre-train the regressor on noisy synthetic 2-D keypoints.

The regressor's layers learn to lift 2-D keypoints to a hand, as PosePrior does (Zimmermann & Brox
2017). A random hand costs neither a rendering nor a pass of the network. Beside the images,
`train.lift_beside` hands a step go on, else the layers forget most of it.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import roma
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from hamr_lib.config import Augment, Settings
from hamr_lib.data.crops import BOX_FACTOR
from hamr_lib.joints import NUM_JOINTS, WRIST
from hamr_lib.losses import hamr_losses
from hamr_lib.model.hamr import HAMR, NUM_BETAS, Output

BATCH = 256  # hands a step
DISTANCE = (0.25, 1.5)  # metres from the camera to the wrist
BLUR = (0.01, 0.3)  # crop units, the standard deviation of a keypoint's noise


def lift(network: HAMR, settings: Settings, generator: Generator, tell: Callable[[int], None]):
    """Train the regressor's layers in place for `train.lift_steps` steps, and tell each."""
    train, weights = settings.train, list(network.regressor.layers.parameters())
    optimizer = torch.optim.AdamW(weights, lr=train.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, train.lift_steps)
    for step in range(train.lift_steps):
        optimizer.zero_grad()
        lifting_loss(network, settings, BATCH, generator).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        tell(step + 1)
    # Image features had no part in this: their random first weights would only be noise.
    network.regressor.silence_features()


def lifting_loss(network: HAMR, settings: Settings, count: int, generator: Generator) -> Tensor:
    """Compute the loss of `count` random hands that are estimated from noisy keypoints alone.

    It is the weighted sum of the losses of joints and camera, in single precision.
    """
    losses = replace(settings.losses, heatmap=0.0, silhouette=0.0)
    with torch.autocast(network.hand.poses.device.type, enabled=False):
        batch = random_hands(network.hand, settings.augment, count, generator)
        keypoints = noisy_keypoints(batch["joints_2d"], settings, generator)
        hidden = network.regressor.first_layer(None, keypoints)
        raw = network.regressor.iterate(hidden, keypoints, network.project)
        output = Output([], [network.decode(raw[-1], mesh=False)])
        return hamr_losses(output, batch, losses, network.hand.faces)["total"]


def random_hands(
    hand: nn.Module, augment: Augment, count: int, generator: Generator
) -> dict[str, Tensor]:
    """Draw hands of random shape and viewpoint, in poses of the hand model's set, as in crops.

    Returns:
        What `hamr_losses` needs of a batch: joints_3d (B, 21, 3) metres, root-relative, joints_2d
        (B, 21, 2) crop units, under a pinhole camera; valid_3d and valid_2d (B, 21), all True.
    """
    device = hand.poses.device

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator).to(device)

    def normal(size):
        return torch.randn(count, size, generator=generator).to(device)

    poses = hand.poses[torch.randint(len(hand.poses), (count,), generator=generator).to(device)]
    turn = roma.unitquat_to_rotmat(F.normalize(normal(4), dim=1))
    with torch.no_grad():
        joints = hand.skeleton(normal(NUM_BETAS), turn, poses)
    joints = joints - joints[:, WRIST, None]
    distance = uniform(*map(math.log, DISTANCE)).exp()[:, None, None]
    flat = joints[..., :2] * distance / (distance + joints[..., 2:])
    low, high = flat.amin(1), flat.amax(1)
    # As `data.crops` cuts crops and `augment` moves them.
    reach = BOX_FACTOR * (high - low).amax(1) / 2 / uniform(*augment.scale)
    shift = 2 * uniform(-augment.shift, augment.shift, 2)
    flat = (flat - (low + high)[:, None] / 2) / reach[:, None, None] + shift[:, None]
    valid = torch.ones(count, NUM_JOINTS, dtype=torch.bool, device=device)
    return {"joints_3d": joints, "joints_2d": flat, "valid_3d": valid, "valid_2d": valid}


def noisy_keypoints(joints_2d: Tensor, settings: Settings, generator: Generator) -> Tensor:
    """Add noise to joints (B, 21, 2), crop units, as `heatmaps.softargmax_keypoints` might.

    The wider a heat map's Gaussian, the larger the noise and the smaller the confidence, the third
    number of each joint. The width varies from image to image and from joint to joint.
    """
    shape, device = joints_2d.shape, joints_2d.device
    widths = (torch.rand(len(joints_2d), n, generator=generator) for n in (1, shape[1]))
    blur = BLUR[0] * (BLUR[1] / BLUR[0]) ** (sum(widths) / 2)
    off = blur[..., None] * torch.randn(shape, generator=generator)
    size = settings.model.image_size / settings.model.map_stride
    pixels = blur * size / 2  # of a map, which is two crop units wide
    confidence = 1 / (4 * math.pi * (settings.losses.heatmap_variance + pixels.square()))
    return torch.cat([joints_2d + off.to(device), confidence.to(device)[..., None]], dim=-1)
