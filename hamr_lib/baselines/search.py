"""The learning rate of a method, chosen on the validation crops."""

import math
import shutil
import sys
from dataclasses import replace

import pandas as pd

from hamr_lib.files import write_aside
from hamr_lib.training.loop import fit
from hamr_lib.training.watch import Diverged


def search_rate(task, settings, train_crops, val_crops, hand, folder):
    """Train a method for a while at each rate, and take the one with the least validation error.

    The rates are `train.learning_rate` times each of `study.search_rates`, and each is trained for
    `study.search_steps` with a schedule of that length. A rate at which the loss diverges loses.

    Args:
        task: a `training.task.Task`.
        folder: of the method; search.csv in it holds what was found, and a second call reads it.

    Returns:
        `settings` with the rate that was found.
    """
    steps, rates = settings.study.search_steps, settings.study.search_rates
    if not steps:
        return settings
    rates = [settings.train.learning_rate * rate for rate in rates]
    found = folder / "search.csv"
    if not found.is_file() or pd.read_csv(found)[["learning_rate", "steps"]].values.tolist() != [
        [rate, steps] for rate in rates
    ]:
        errors = [
            _error(task, _with_rate(settings, rate, steps), train_crops, val_crops, hand, folder)
            for rate in rates
        ]
        table = pd.DataFrame({"learning_rate": rates, "steps": steps, task.val_metric: errors})
        with write_aside(found) as aside:
            table.to_csv(aside, index=False)
        shutil.rmtree(folder / "search")
    table = pd.read_csv(found)
    best = table.learning_rate[table[task.val_metric].idxmin()]
    print(f"{task.name}: learning rate {best:g}", file=sys.stderr)
    return replace(settings, train=replace(settings.train, learning_rate=float(best)))


def _with_rate(settings, rate, steps):
    train = replace(settings.train, learning_rate=rate, steps=steps, validate_every=steps)
    return replace(settings, train=train)


def _error(task, settings, train_crops, val_crops, hand, folder):
    """The validation error at the end of a trial; infinite where it diverges."""
    trial = folder / "search" / f"{settings.train.learning_rate:g}"
    try:
        history = fit(settings, trial, train_crops, val_crops, hand, task)
    except Diverged as error:
        print(f"{task.name}: {error}", file=sys.stderr)
        return math.inf
    return history[-1][f"val_{task.val_metric}"]
