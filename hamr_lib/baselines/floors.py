"""What bounds the table: HAMR with the comparisons' budget, and two methods that cannot see."""

import numpy as np
import torch

from hamr_lib.baselines.common import TrainedMesh
from hamr_lib.data.crops import EvenBatches
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import best_device, network_estimator
from hamr_lib.model.hamr import HAMR
from hamr_lib.training.task import Task


class SameBudget(TrainedMesh):
    """The study's own network, trained for as many steps as its rivals."""

    name = Task.name
    reference = "this study"
    build, prepare, losses = Task.build, Task.prepare, Task.losses

    @staticmethod
    def deviations(settings):
        return "Ours: the network of the main run, with the budget of the other methods."


class Untrained:
    """The study's own network before its first step."""

    reference = "this study"

    def __init__(self, settings, network):
        self.network, self.faces = network, network.hand.faces
        self.estimate = network_estimator(network, settings.evaluate.mask_size)

    @staticmethod
    def deviations(settings):
        return "Ours: the same network with its first random weights."

    @classmethod
    def fit(cls, settings, train_crops, val_crops, hand, folder):
        """Draw the weights from the study's seed."""
        torch.manual_seed(settings.train.seed)
        return cls(settings, HAMR(settings.model, hand).to(best_device()))


class MeanPose:
    """Answers every image with the mean of the training labels, joints and mask."""

    reference = "this study"
    faces = None
    network = None

    def __init__(self, joints_3d, joints_2d, mask):
        self.joints_3d, self.joints_2d, self.mask = joints_3d, joints_2d, mask

    @staticmethod
    def deviations(settings):
        return "Ours: the floor of every measure, not a published method."

    @classmethod
    def fit(cls, settings, train_crops, val_crops, hand, folder):
        """Average the labels; the mask over at most 1000 evenly spaced samples that have one."""
        crops, means = train_crops, []
        for name, valid in (("joints_3d", "valid_3d"), ("joints_2d", "valid_2d")):
            values, weight = crops.labels[name], crops.labels[valid][..., None]
            count = weight.sum(0)
            if not count.all():
                raise HamrError(f"mean pose: a joint of {name} is labelled in no training sample")
            means.append(torch.from_numpy((values * weight).sum(0) / count).float())
        masked = np.flatnonzero(crops.labels["has_mask"])
        if not len(masked):
            return cls(*means, None)
        chosen = masked[np.linspace(0, len(masked) - 1, min(1000, len(masked))).astype(int)]
        batches = EvenBatches(crops.subset(chosen), settings.evaluate.batch_size)
        size, edge = settings.model.image_size, crops.pixels[0].shape[-1]
        edge = (edge - size) // 2
        total = sum(batch["mask"].double().sum(0) for batch in batches) / (255 * len(chosen))
        mean = total[edge : edge + size, edge : edge + size].float()
        mask = torch.nn.functional.interpolate(
            mean[None, None], size=settings.evaluate.mask_size, mode="bilinear", antialias=True
        )[0, 0]
        return cls(*means, mask)

    def estimate(self, images):
        """(B, 3, S, S) images, which it does not look at."""
        answer = {"joints_3d": self.joints_3d, "joints_2d": self.joints_2d}
        if self.mask is not None:
            answer["mask"] = self.mask
        return {k: v.expand(len(images), *v.shape) for k, v in answer.items()}
