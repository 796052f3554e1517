"""What the trained baselines share: training, answers, losses, an encoder and bone lengths."""

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import best_device, output_answer
from hamr_lib.files import write_aside
from hamr_lib.joints import BONES, NAMES
from hamr_lib.losses import PARTS, hamr_losses
from hamr_lib.model.checkpoint import load_state, read
from hamr_lib.model.hamr import HAMR
from hamr_lib.model.hourglass import make_stem
from hamr_lib.model.regressor import Regressor
from hamr_lib.training.loop import fit
from hamr_lib.training.task import Task, joints_error
from hamr_lib.training.watch import Diverged


class Trained(Task):
    """A baseline whose network is trained by the study's loop.

    A subclass adds `reference`, `build` (see `Task`), `parts`, its losses as (weight, loss) by
    name, and `joints`: (B, 21, 3) metres and (B, 21, 2) crop units of an output.
    """

    faces = None

    @classmethod
    def fit(cls, settings, train_crops, val_crops, hand, folder):
        """Train, or resume, at the rate of `search_rate`, and take the best checkpoint."""
        method, data, folder = cls(), (train_crops, val_crops, hand), Path(folder)
        settings = search_rate(method, settings, *data, folder)
        fit(settings, folder, *data, method)
        best = folder / "checkpoints" / "best.ckpt"
        network = method.build(settings, hand, train_crops)
        load_state(best, network, read(best)["state_dict"])
        method.network = network.to(best_device()).eval()
        method.mask_size = settings.evaluate.mask_size
        method.learning_rate = settings.train.learning_rate
        return method

    def prepare(self, network, settings, generator):
        pass

    def auxiliary_losses(self, network, settings, generator):
        return {}

    def losses(self, network, output, batch, settings):
        with torch.autocast(batch["image"].device.type, enabled=False):
            parts = self.parts(network, output, batch, settings)
            total = sum(weight * loss for weight, loss in parts.values())
        return {name: loss for name, (_, loss) in parts.items()} | {"total": total}

    def error(self, network, output, batch):
        with torch.autocast(batch["image"].device.type, enabled=False):
            return joints_error(self.joints(network, output)[0], batch)

    def estimate(self, images):
        joints_3d, joints_2d = self.joints(self.network, self.network(images))
        return {"joints_3d": joints_3d, "joints_2d": joints_2d}


class TrainedMesh(Trained):
    """A baseline whose network gives a `hamr.Output` with a mesh."""

    def joints(self, network, output):
        return output.estimates[-1].joints_3d, output.estimates[-1].joints_2d

    @property
    def faces(self):
        return self.network.hand.faces

    def estimate(self, images):
        return output_answer(self.network(images), self.faces, self.mask_size)


def search_rate(task, settings, train_crops, val_crops, hand, folder):
    """Choose the learning rate with the least validation error after a short training.

    The rates are `train.learning_rate` times each of `study.search_rates`, each trained for
    `study.search_steps` with a schedule of that length. A rate at which the loss diverges loses.
    A second call reads search.csv in `folder`. Returns `settings` with the rate that was found.
    """
    steps, train = settings.study.search_steps, settings.train
    if not steps:
        return settings
    rates = [train.learning_rate * rate for rate in settings.study.search_rates]
    found, asked = folder / "search.csv", [[rate, steps] for rate in rates]
    if not found.is_file() or pd.read_csv(found).iloc[:, :2].values.tolist() != asked:
        errors = []
        for rate in rates:
            short = replace(train, learning_rate=rate, steps=steps, validate_every=steps)
            trial = replace(settings, train=short), folder / "search" / f"{rate:g}"
            try:
                history = fit(*trial, train_crops, val_crops, hand, task)
                errors.append(history[-1][f"val_{task.val_metric}"])
            except Diverged as error:
                print(f"{task.name}: {error}", file=sys.stderr)
                errors.append(math.inf)
        table = pd.DataFrame({"learning_rate": rates, "steps": steps, task.val_metric: errors})
        with write_aside(found) as aside:
            table.to_csv(aside, index=False)
        shutil.rmtree(folder / "search")
    table = pd.read_csv(found)
    best = float(table.learning_rate[table[task.val_metric].idxmin()])
    print(f"{task.name}: learning rate {best:g}", file=sys.stderr)
    return replace(settings, train=replace(train, learning_rate=best))


def hamr_parts(names, network, output, batch, settings):
    """Compute the named parts of the study's own loss, as `Trained.parts` gives them."""
    weights = replace(settings.losses, **dict.fromkeys(set(PARTS) - set(names), 0.0))
    losses = hamr_losses(output, batch, weights, network.hand.faces)
    return {name: (getattr(weights, name), loss) for name, loss in losses.items() if name in names}


def resize_mask(mask, size):
    """Bring masks (B, S, S) to `size` pixels a side."""
    return F.interpolate(mask[:, None], (size, size), mode="bilinear", antialias=True)[:, 0]


class Features(nn.Module):
    """The stem in the place of HAMR's 2-D pose module, without heat maps."""

    def __init__(self, settings):
        super().__init__()
        self.stem = make_stem(settings)

    def forward(self, image):
        features, pooled = self.stem(image)
        return features, [], pooled


def encoder_network(settings, hand, iterations):
    """HAMR without its 2-D pose module: from image features to the hand."""
    model = replace(settings.model, joint_features=False, iterations=iterations)
    network = HAMR(model, hand)
    network.pose_module = Features(model)
    network.regressor = Regressor(model, model.channels, network.regressor.start)
    return network


def mean_lengths(crops, bones=BONES):
    """Mean length of bones (N, 2), over the samples that label both ends: (N,) metres."""
    points, valid = crops.labels["joints_3d"], crops.labels["valid_3d"]
    a, b = np.array(bones).T
    both = valid[:, a] & valid[:, b]
    for bone in np.flatnonzero(~both.any(0)):
        ends = " and ".join(NAMES[j] for j in bones[bone])
        raise HamrError(f"no training sample labels both {ends}: expected one")
    length = np.linalg.norm(points[:, b] - points[:, a], axis=-1)
    return torch.from_numpy((length * both).sum(0) / both.sum(0)).float()
