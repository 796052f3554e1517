"""What several comparisons share: the trained method, its encoder, and lengths of bones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import best_device, output_answer
from hamr_lib.joints import BONES, NAMES
from hamr_lib.model.checkpoint import load_state, model_state, read
from hamr_lib.model.hamr import HAMR, Regression
from hamr_lib.training.loop import fit
from hamr_lib.training.task import Task, joints_error

NO_WEIGHTS = "random first weights, where the original starts from ImageNet's"


class Trained(Task):
    """A comparison whose network is trained by the study's loop.

    A subclass has, besides what `Task` asks for, `reference`, `departures`, `parts`, which
    returns (weight, loss) by name for its own losses, and `answer`.
    """

    faces = None

    @classmethod
    def fit(cls, settings, train_crops, val_crops, hand, folder):
        """Train, or go on, and take the best checkpoint."""
        method = cls()
        fit(settings, folder, train_crops, val_crops, hand, method)
        best = Path(folder) / "checkpoints" / "best.ckpt"
        network = method.build(settings, hand, train_crops)
        load_state(best, network, model_state(read(best)))
        method.network = network.to(best_device()).eval()
        method.mask_size = settings.evaluate.mask_size
        return method

    def prepare(self, network, settings, generator):
        """See `Task`: nothing."""

    def auxiliary_losses(self, network, settings, generator):
        """See `Task`: none."""
        return {}

    def losses(self, network, output, batch, settings):
        """See `Task`. In single precision, as the study's own losses are."""
        with torch.autocast(batch["image"].device.type, enabled=False):
            parts = self.parts(network, output, batch, settings)
            losses = {name: loss for name, (_, loss) in parts.items()}
            losses["total"] = sum(weight * loss for weight, loss in parts.values())
        return losses

    def error(self, network, output, batch):
        """See `Task`: of the joints that it would answer."""
        with torch.autocast(batch["image"].device.type, enabled=False):
            return joints_error(self.joints(network, output)[0], batch)

    def estimate(self, images):
        """See `comparisons`: a method that gives 3-D and 2-D joints."""
        joints_3d, joints_2d = self.joints(self.network, self.network(images))
        return {"joints_3d": joints_3d, "joints_2d": joints_2d}


class TrainedMesh(Trained):
    """A comparison whose network gives a `hamr.Output` with a mesh."""

    def error(self, network, output, batch):
        return joints_error(output.estimates[-1].joints_3d, batch)

    @property
    def faces(self):
        return self.network.hand.faces

    def estimate(self, images):
        return output_answer(self.network(images), self.faces, self.mask_size)


class ResNetFeatures(nn.Module):
    """torchvision's ResNet, where HAMR has its 2-D pose module: features of the whole image."""

    def __init__(self, name):
        super().__init__()
        self.network = torchvision.models.get_model(name, weights=None)
        self.channels = self.network.fc.in_features
        self.network.fc = nn.Identity()

    def forward(self, image):
        """(B, 3, S, S) -> features (B, C, 1, 1), and no heat maps."""
        return self.network(image)[..., None, None], []


def encoder_network(settings, hand, iterations):
    """HAMR with a ResNet in place of its pose module: image to hand without any heat map."""
    network = HAMR(settings.model, hand)
    network.pose_module = ResNetFeatures(settings.study.comparison_encoder)
    network.regression = Regression(
        replace(settings.model, places=False),  # there are no maps
        network.pose_module.channels,
        size=1,
        start=network.regression.start,
    )
    network.regression.iterations = iterations
    return network


def encoder_departure(settings):
    """What to say of a smaller encoder, if anything."""
    small = settings.study.comparison_encoder != "resnet50"
    return "ResNet-18 for ResNet-50, " if small else ""


def joint(name):
    """The index of a joint of `joints.NAMES`."""
    return NAMES.index(name)


def mean_lengths(crops, bones=BONES):
    """Mean lengths of bones over the samples of a training set that label both their ends.

    Args:
        crops: `Crops`.
        bones: (N, 2) indices of joints.

    Returns:
        (N,) float32 tensor, metres.
    """
    points, valid = crops.labels["joints_3d"], crops.labels["valid_3d"]
    a, b = np.array(bones).T
    both = valid[:, a] & valid[:, b]
    if not both.any(0).all():
        bone = bones[int(np.argmin(both.any(0)))]
        raise HamrError(
            f"no training sample labels both {NAMES[bone[0]]} and {NAMES[bone[1]]}: expected one"
        )
    length = np.linalg.norm(points[:, b] - points[:, a], axis=-1)
    return torch.from_numpy((length * both).sum(0) / both.sum(0)).float()
