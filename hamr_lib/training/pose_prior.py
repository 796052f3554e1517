"""What the joints' places alone tell of a hand, learnt before the first image.

An image costs a renderer and a network; a hand in a random pose, seen from anywhere, costs neither.
Where its joints lie in the crop, and how sure the maps would be of that, is all that the fully
connected layers are shown here. In minutes they see more hands than there are images, and learn how
a finger must be bent for its joints to lie so: the lifting of Zimmermann and Brox's PosePrior
(ICCV 2017), in HAMR's own layers. What the image shows besides is added by the training on images,
beside which lifting goes on with a few hands a step: else the layers forget most of what they
learnt here, as they learn from places that are as poor as the maps of the first steps.
"""

import math
from dataclasses import replace

import roma
import torch
import torch.nn.functional as F

from hamr_lib.data.crops import BOX_FACTOR
from hamr_lib.joints import NUM_JOINTS, WRIST
from hamr_lib.losses import hamr_losses
from hamr_lib.model.hamr import NUM_BETAS, Output

BATCH = 256  # hands a step
DISTANCE = (0.25, 1.5)  # metres from the camera to the wrist
BLUR = (0.01, 0.3)  # crop units by which a map may be off


def lift(network, settings, generator, tell=lambda step: None):
    """Train the regression's layers for `train.lift_steps` steps.

    Args:
        network: `hamr.HAMR` with `model.joint_features`; it is changed in place.
        settings: `Settings`.
        generator: a CPU `torch.Generator`, the only source of randomness.
        tell: called with the number of steps done, after each.
    """
    train = settings.train
    weights = list(network.regressor.layers.parameters())
    optimizer = torch.optim.AdamW(weights, lr=train.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, train.lift_steps)
    for step in range(train.lift_steps):
        optimizer.zero_grad()
        lifting_loss(network, settings, BATCH, generator).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        tell(step + 1)
    # Features have had no say here, and their random first weights would only disturb.
    network.regressor.silence_features()


def lifting_loss(network, settings, count, generator):
    """How far off `count` random hands are whose joints' places are all that the layers see.

    Returns:
        the weighted sum of the losses of joints and camera, a scalar in single precision.
    """
    regression = network.regressor
    losses = replace(settings.losses, heatmap=0.0, silhouette=0.0)
    with torch.autocast(network.hand.poses.device.type, enabled=False):
        batch = random_hands(network.hand, settings.augment, count, generator)
        places = seen(batch["joints_2d"], settings, generator)
        raw = regression.iterate(regression.first_layer(None, places), places, network.project)
        output = Output([], [network.decode(raw[-1], mesh=False)])
        return hamr_losses(output, batch, losses, network.hand.faces)["total"]


def random_hands(hand, augment, count, generator):
    """Hands of random people in poses of the hand model's own set, from anywhere, as in crops.

    Args:
        hand: the layer of `layer.load_hand`.
        augment: `config.Augment`; its scale and shift.

    Returns:
        What `hamr_losses` needs of a batch: joints_3d (B, 21, 3) metres, root-relative, joints_2d
        (B, 21, 2) crop units, under a pinhole camera; valid_3d and valid_2d (B, 21), all True.
    """
    device = hand.poses.device

    def uniform(low, high, *shape):
        unit = torch.rand(count, *shape, generator=generator).to(device)
        return low + (high - low) * unit

    def normal(*shape):
        return torch.randn(count, *shape, generator=generator).to(device)

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


def seen(joints_2d, settings, generator):
    """Where maps would see joints (B, 21, 2), and how sure they would be: (B, 21, 3).

    Like `hamr.softargmax_keypoints`: a map whose Gaussian is wide is as far off as it is wide. Some
    images blur all joints, some joints are blurred in any image.
    """
    count = len(joints_2d)
    share = torch.rand(count, 1, generator=generator) + torch.rand(
        count, NUM_JOINTS, generator=generator
    )
    blur = BLUR[0] * (BLUR[1] / BLUR[0]) ** (share / 2)
    off = blur[..., None] * torch.randn(count, NUM_JOINTS, 2, generator=generator)
    size = settings.model.image_size / settings.model.map_stride
    pixels = blur * size / 2  # of a map, which is two crop units wide
    sure = 1 / (4 * math.pi * (settings.losses.heatmap_variance + pixels.square()))
    device = joints_2d.device
    return torch.cat([joints_2d + off.to(device), sure.to(device)[..., None]], dim=-1)
