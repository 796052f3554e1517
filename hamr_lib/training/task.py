"""What a run trains, and the figure that its checkpoints are chosen by."""

import sys

import torch

from hamr_lib.losses import hamr_losses
from hamr_lib.model.hamr import HAMR
from hamr_lib.training.pose_prior import lift, lifting_loss
from hamr_lib.training.watch import Progress


class Task:
    """HAMR, as a run trains it. A baseline overrides these methods.

    Attributes:
        name: kept in the checkpoints; those of another name are refused.
        val_metric: what `error` measures, least is best.
    """

    name = "hamr"
    val_metric = "joints_3d_mm"

    def build(self, settings, hand, crops):
        """Make a new network: a module of images (B, 3, S, S). `crops` it will train on."""
        return HAMR(settings.model, hand)

    def prepare(self, network, settings, generator):
        """Train a new network before its first image, on synthetic keypoints alone."""
        steps = settings.train.lift_steps
        if steps:
            print("pre-training the regressor on synthetic 2-D keypoints", file=sys.stderr)
            lift(network, settings, generator, Progress(steps).show)

    def auxiliary_losses(self, network, settings, generator):
        """Compute the losses that need no image, by name, which a step adds to its batch's."""
        hands = settings.train.lift_beside
        return {"lifting": lifting_loss(network, settings, hands, generator)} if hands else {}

    def losses(self, network, output, batch, settings):
        """Compute the unweighted parts of an output's loss, by name, and their "total"."""
        return hamr_losses(output, batch, settings.losses, network.hand.faces)

    def error(self, network, output, batch):
        """Measure the `val_metric` of each sample, (B,); NaN without a label."""
        return joints_error(output.estimates[-1].joints_3d, batch)


def joints_error(joints_3d: torch.Tensor, batch: dict) -> torch.Tensor:
    """Mean distance of joints (B, 21, 3) from their labels: (B,) millimetres, NaN without any."""
    error = (joints_3d.float() - batch["joints_3d"]).norm(dim=-1)
    valid = batch["valid_3d"]
    return 1000 * torch.where(valid, error, 0).sum(1) / valid.sum(1)
