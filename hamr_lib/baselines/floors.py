"""What bounds the table: HAMR with the other methods' budget, and two methods that cannot see."""

import numpy as np
import torch

from hamr_lib.baselines.common import TrainedMesh, resize_mask
from hamr_lib.data.crops import EvenBatches
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import best_device, network_estimator
from hamr_lib.model.hamr import HAMR
from hamr_lib.training.task import Task


class SameBudget(TrainedMesh):
    """Ours: the network of the main run, with the budget of the other methods."""

    name = Task.name
    reference = "this study"
    build, prepare, losses = Task.build, Task.prepare, Task.losses
    auxiliary_losses = Task.auxiliary_losses


class Untrained:
    """Ours: the same network with its first random weights."""

    name = "untrained"
    reference = "this study"

    @classmethod
    def fit(cls, settings, train_crops, val_crops, hand, folder):
        """Draw the weights from the study's seed."""
        torch.manual_seed(settings.train.seed)
        method, method.faces = cls(), hand.faces
        method.network = HAMR(settings.model, hand).to(best_device())
        method.estimate = network_estimator(method.network, settings.evaluate)
        return method


class MeanPose:
    """Ours: the floor of every measure, not a published method."""

    name = "mean-pose"
    reference = "this study"
    faces = None
    network = None

    @classmethod
    def fit(cls, settings, train_crops, val_crops, hand, folder):
        """Average the labels; the mask over at most 1000 evenly spaced samples that have one."""
        labels, method = train_crops.labels, cls()
        method.answer = {}
        for name, valid in (("joints_3d", "valid_3d"), ("joints_2d", "valid_2d")):
            count = labels[valid].sum(0)[:, None]
            if not count.all():
                raise HamrError(f"mean pose: a joint of {name} is labelled in no training sample")
            mean = (labels[name] * labels[valid][..., None]).sum(0) / count
            method.answer[name] = torch.from_numpy(mean).float()
        masked = np.flatnonzero(labels["has_mask"])
        if len(masked):
            chosen = np.linspace(0, len(masked) - 1, min(1000, len(masked))).astype(int)
            crops = train_crops.subset(masked[chosen])
            batches = EvenBatches(crops, settings.evaluate.batch_size)
            mean = sum(batch["mask"].double().sum(0) for batch in batches) / (255 * len(crops))
            size = settings.model.image_size
            middle = slice((len(mean) - size) // 2, (len(mean) + size) // 2)
            mean = mean[None, middle, middle].float()
            method.answer["mask"] = resize_mask(mean, settings.evaluate.mask_size)[0]
        return method

    def estimate(self, images):
        """See `baselines`; the images (B, 3, S, S) are only counted."""
        return {name: mean.expand(len(images), *mean.shape) for name, mean in self.answer.items()}
