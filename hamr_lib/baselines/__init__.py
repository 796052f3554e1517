"""Other methods on the same data, crops, budget and protocol.

The paper compares itself with numbers that others report on data most people cannot get. Here the
idea of each is rebuilt in a short module and trained by the same loop (`loop.fit`), so that the
table says something about the ideas. Code and weights of the originals are not used, and each
method tells in a sentence how it departs from the work that it stands for.

A method is a class with

    reference                   the work it stands for
    deviations(settings)        what differs from that work, in a sentence
    fit(settings, train_crops, val_crops, hand, folder)
                                -> a fitted method; `folder` keeps its checkpoints, from which an
                                interrupted training goes on
    estimate(images)            -> dict of tensors, as `predict.network_estimator` describes
    faces                       (F, 3) where `estimate` gives vertices, else None
    network                     the module behind it, None where there is none

and `run` fits, predicts and scores it. How a method is called in tables is in `variants.LABELS`.
"""

from pathlib import Path

import pandas as pd

from hamr_lib.baselines.bodynet import BodyNet
from hamr_lib.baselines.boukhayma import Boukhayma
from hamr_lib.baselines.deeplab import DeepLab
from hamr_lib.baselines.floors import MeanPose, SameBudget, Untrained
from hamr_lib.baselines.hmr import HMR
from hamr_lib.baselines.iqbal import Iqbal
from hamr_lib.baselines.pavlakos import Pavlakos
from hamr_lib.baselines.smplify import SMPLify
from hamr_lib.baselines.zimmermann import Zimmermann
from hamr_lib.evaluation.predict import best_device
from hamr_lib.evaluation.scores import evaluate_method
from hamr_lib.files import read_json, write_json
from hamr_lib.hand.layer import load_hand
from hamr_lib.variants import COMPARISONS, FLOORS, LABELS, check_names

METHODS = {
    "hamr": SameBudget,
    "zimmermann": Zimmermann,
    "hmr": HMR,
    "smplify": SMPLify,
    "pavlakos": Pavlakos,
    "deeplab": DeepLab,
    "bodynet": BodyNet,
    "boukhayma": Boukhayma,
    "iqbal": Iqbal,
    "mean-pose": MeanPose,
    "untrained": Untrained,
}


def to_run(settings, method):
    """Which methods a run of notebook 05 fits: the named one; or, for "", those without their own.

    Raises:
        HamrError: for a method that is not known.
    """
    if method:
        check_names([method], COMPARISONS, "method")
        return (method,)
    methods, apart = settings.study.comparisons, settings.study.comparisons_apart
    return tuple(name for name in methods if name in FLOORS or not apart)


def run(name, settings, folder, train_crops, val_crops, sets):
    """Fit a method, predict and score every test set.

    Args:
        name: a key of `METHODS`.
        settings: as `config.load_comparison` gives them.
        folder: receives its checkpoints, predictions, metrics.csv, cost.json and about.json.
        train_crops, val_crops: `Crops` to fit on and to choose the best checkpoint by.
        sets: the test sets, as in `scores.evaluate_method`.

    Returns:
        The rows of its metrics.csv.
    """
    check_names([name], COMPARISONS, "method")
    folder, options = Path(folder), settings.hand
    hand = load_hand(options.model, pose_components=options.pose_components, joints=options.joints)
    method = METHODS[name].fit(settings, train_crops, val_crops, hand, folder)
    trained = (folder / "log.csv").is_file()
    about = {
        "method": name,
        "reference": method.reference,
        "deviations": method.deviations(settings),
        "steps": settings.train.steps if trained else 0,
        "learning_rate": method.learning_rate if trained else None,
    }
    write_json(folder / "about.json", about)
    return evaluate_method(
        method.estimate, settings, folder, sets,
        method=name, seed=settings.train.seed, faces=method.faces, device=best_device(),
        network=method.network,
    )  # fmt: skip


def deviations(folders):
    """What each method stands for and how it departs from it, from the about.json of its folder.

    Returns:
        DataFrame: method, stands for, steps, learning rate, deviations.
    """
    found = [read_json(Path(folder) / "about.json") for folder in folders]
    return pd.DataFrame({
        "method": [LABELS.get(one["method"], one["method"]) for one in found],
        "stands for": [one["reference"] for one in found],
        "steps": [one["steps"] for one in found],
        "learning rate": [one.get("learning_rate") for one in found],
        "deviations": [one["deviations"] for one in found],
    })  # fmt: skip
