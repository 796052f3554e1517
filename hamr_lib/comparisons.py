"""Other methods on the same data, crops and protocol.

A method is a class with

    departures                  what differs from the work it stands for, in a sentence
    fit(settings, crops, folder)  -> a fitted method; `crops` are the training crops, `folder` is
                                where it may keep checkpoints
    estimate(images)            -> dict of tensors, as `evaluate.network_estimator` describes
    faces                       (F, 3) where `estimate` gives vertices, else None

and `run` fits, predicts and scores it. These two cannot see and bound the study from below.
"""

from pathlib import Path

import numpy as np
import torch

from .data.crops import EvenBatches
from .errors import HamrError
from .evaluate import best_device, evaluate_method, network_estimator
from .hand import load_hand
from .model import HAMR


class MeanPose:
    """Answers every image with the mean of the training labels, joints and mask."""

    departures = "Ours: the floor of every measure, not a published method."
    faces = None

    def __init__(self, joints_3d, joints_2d, mask):
        self.joints_3d, self.joints_2d, self.mask = joints_3d, joints_2d, mask

    @classmethod
    def fit(cls, settings, crops, folder):
        """Average the labels; the mask over at most 1000 evenly spaced samples that have one."""
        means = []
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


class Untrained:
    """The study's own network before its first step."""

    departures = "Ours: the same network with its first random weights."

    def __init__(self, settings, network):
        self.faces = network.hand.faces
        self.estimate = network_estimator(network, settings.evaluate.mask_size)

    @classmethod
    def fit(cls, settings, crops, folder):
        """Draw the weights from the study's seed."""
        options = settings.hand
        hand = load_hand(
            options.model, pose_components=options.pose_components, joints=options.joints
        )
        torch.manual_seed(settings.train.seed)
        return cls(settings, HAMR(settings.model, hand).to(best_device()))


METHODS = {"mean-pose": MeanPose, "untrained": Untrained}


def run(name, settings, folder, train_crops, sets):
    """Fit a method, predict and score every test set.

    Args:
        name: a key of `METHODS`.
        folder: receives its predictions and metrics.csv.
        train_crops: `Crops` to fit on.
        sets: the test sets, as in `evaluate.evaluate_method`.

    Returns:
        The rows of its metrics.csv.
    """
    if name not in METHODS:
        raise HamrError(f"unknown method {name!r} (known: {', '.join(METHODS)})")
    method = METHODS[name].fit(settings, train_crops, Path(folder))
    return evaluate_method(
        method.estimate, settings, folder, sets,
        method=name, seed=settings.train.seed, faces=method.faces, device=best_device(),
    )  # fmt: skip
