"""The optimiser, its learning rate along a run, and the average of weights that is validated."""

import math

import torch
from torch.optim.swa_utils import AveragedModel

from hamr_lib.config import Train
from hamr_lib.model.backbone import PretrainedStem

WARM_UP = 0.05  # fraction of the steps, with the cosine schedule
WARM_STEPS = 200  # with the trapezoid, whose start must not depend on how long a run is
FALL = 0.4  # fraction of the steps over which the trapezoid's rate falls


def cosine(step: int, steps: int) -> float:
    """Give the factor of the learning rate at a step: up in a line, then half a cosine down."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def trapezoid(step: int, steps: int) -> float:
    """Give the factor of the learning rate at a step: up in a line, level, and 1 - sqrt down.

    All but the fall is the same however long the run (Hägele et al. 2024).
    """
    begins = steps - max(1, round(FALL * steps))
    fallen = max(0, step - begins) / (steps - begins)
    return min(1, (step + 1) / WARM_STEPS, 1 - math.sqrt(fallen))


SCHEDULES = {"cosine": cosine, "trapezoid": trapezoid}


def make_optimizer(network: torch.nn.Module, train: Train) -> torch.optim.Optimizer:
    """Make the optimiser of `settings.train`.

    The blocks of a `PretrainedStem` learn at `stem_rate` times the rate of all other weights. Each
    group keeps its factor of the rate as "rate".
    """
    stems = [module for module in network.modules() if isinstance(module, PretrainedStem)]
    slow = {weight for stem in stems for weight in stem.blocks.parameters()}
    groups = []
    for rate, of_stem in ((1.0, False), (train.stem_rate, True)):
        trained = [p for p in network.parameters() if p.requires_grad and (p in slow) == of_stem]
        if trained:
            groups.append({"params": trained, "rate": rate, "lr": train.learning_rate * rate})
    if train.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, weight_decay=train.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=train.weight_decay, fused=True)


class WeightAverage(AveragedModel):
    """Exponential moving average of a network's weights and buffers.

    w <- d w + (1 - d) w_now with d = min(decay, (1 + n) / (10 + n)) at the n-th update, so that
    the first weights are soon forgotten.
    """

    def __init__(self, network: torch.nn.Module, decay: float):
        super().__init__(network, multi_avg_fn=self._move, use_buffers=True)
        self.decay = decay

    def _move(self, averaged, current, _):
        n = self.n_averaged.item()  # kept on the CPU: reading it waits for no device
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + n) / (10 + n)))
        else:
            torch._foreach_copy_(averaged, current)
