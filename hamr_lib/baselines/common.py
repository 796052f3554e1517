"""What several baselines share: how one is trained, its encoder, heat-map loss and bone lengths."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hamr_lib.baselines.search import search_rate
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import best_device, output_answer
from hamr_lib.joints import BONES, NAMES
from hamr_lib.model.checkpoint import load_state, read
from hamr_lib.model.hamr import HAMR
from hamr_lib.model.hourglass import make_stem
from hamr_lib.model.regressor import Regressor
from hamr_lib.training.loop import fit
from hamr_lib.training.task import Task, joints_error


class Trained(Task):
    """A baseline whose network is trained by the study's loop.

    A subclass has, besides what `Task` asks for, `reference`, `deviations`, `parts`, which returns
    (weight, loss) by name for its own losses, and `joints`, what its output says of the joints:
    (B, 21, 3) metres and (B, 21, 2) crop units.
    """

    faces = None

    @classmethod
    def fit(cls, settings, train_crops, val_crops, hand, folder):
        """Train, or resume, and take the best checkpoint."""
        method = cls()
        settings = search_rate(method, settings, train_crops, val_crops, hand, Path(folder))
        fit(settings, folder, train_crops, val_crops, hand, method)
        best = Path(folder) / "checkpoints" / "best.ckpt"
        network = method.build(settings, hand, train_crops)
        load_state(best, network, read(best)["state_dict"])
        method.network = network.to(best_device()).eval()
        method.mask_size = settings.evaluate.mask_size
        method.learning_rate = settings.train.learning_rate
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
        """See `baselines`: a method that gives 3-D and 2-D joints."""
        joints_3d, joints_2d = self.joints(self.network, self.network(images))
        return {"joints_3d": joints_3d, "joints_2d": joints_2d}


class TrainedMesh(Trained):
    """A baseline whose network gives a `hamr.Output` with a mesh."""

    def joints(self, network, output):
        """See `Trained`."""
        return output.estimates[-1].joints_3d, output.estimates[-1].joints_2d

    @property
    def faces(self):
        """(F, 3), the hand's triangles."""
        return self.network.hand.faces

    def estimate(self, images):
        """See `baselines`: joints, parameters and a mesh."""
        return output_answer(self.network(images), self.faces, self.mask_size)


class Features(nn.Module):
    """The stem alone, where HAMR has its 2-D pose module: no heat maps."""

    def __init__(self, settings):
        super().__init__()
        self.stem = make_stem(settings)

    def forward(self, image):
        """(B, 3, S, S) -> features (B, C, h, h), no heat maps, and pooled features or None."""
        features, pooled = self.stem(image)
        return features, [], pooled


def encoder_network(settings, hand, iterations):
    """HAMR without its 2-D pose module: image features to hand without any heat map."""
    model = replace(settings.model, joint_features=False)  # there are no maps
    network = HAMR(model, hand)
    network.pose_module = Features(model)
    network.regressor = Regressor(
        model,
        inputs=model.channels,
        size=model.image_size // model.map_stride,
        start=network.regressor.start,
    )
    network.regressor.iterations = iterations
    return network


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
