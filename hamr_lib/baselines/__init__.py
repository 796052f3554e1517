"""Other methods on the same data, crops, budget and protocol.

The idea of each work is rebuilt in a short module and trained by the same loop (`loop.fit`). Code
and weights of the originals are not used. A method is a class with

    name, reference the key in `COMPARISONS`, and the work it stands for
    __doc__         how it departs from that work, in a sentence that tables quote
    fit(settings, train_crops, val_crops, hand, folder)
                    -> a fitted method; an interrupted training goes on from `folder`
    estimate(images)
                    -> dict of tensors, as `predict.network_estimator` describes
    faces           (F, 3) where `estimate` gives vertices, else None
    network         the module behind it, None where there is none
"""

import inspect
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
from hamr_lib.hand.layer import hand_of
from hamr_lib.variants import COMPARISONS, FLOORS, LABELS, check_names

METHODS = {
    method.name: method
    for method in (
        SameBudget, Zimmermann, HMR, SMPLify, Pavlakos, DeepLab, BodyNet, Boukhayma, Iqbal,
        MeanPose, Untrained,
    )
}  # fmt: skip


def to_run(settings, method):
    """Which methods a run of notebook 05 fits: the named one, or for "" all without their own."""
    if method:
        check_names([method], COMPARISONS, "method")
        return (method,)
    methods, apart = settings.study.comparisons, settings.study.comparisons_apart
    return tuple(name for name in methods if name in FLOORS or not apart)


def run(name, settings, folder, train_crops, val_crops, sets):
    """Fit a method of `METHODS`, predict and score every test set.

    Args:
        settings: as `config.load_comparison` gives them.
        folder: receives its checkpoints, predictions, metrics.csv, cost.json and about.json.
        train_crops, val_crops: `Crops` to fit on and to choose the best checkpoint by.
        sets: the test sets, as in `scores.evaluate_method`.

    Returns:
        The rows of its metrics.csv.
    """
    check_names([name], COMPARISONS, "method")
    folder, hand = Path(folder), hand_of(settings.hand)
    method = METHODS[name].fit(settings, train_crops, val_crops, hand, folder)
    trained = (folder / "log.csv").is_file()
    about = {
        "method": name,
        "reference": method.reference,
        "deviations": inspect.cleandoc(method.__doc__).replace("\n", " "),
        "steps": settings.train.steps if trained else 0,
        "learning_rate": method.learning_rate if trained else None,
    }
    write_json(folder / "about.json", about)
    return evaluate_method(
        method.estimate, settings, folder, sets, method=name, seed=settings.train.seed,
        faces=method.faces, device=best_device(), network=method.network,
    )  # fmt: skip


def deviations(folders):
    """Tabulate what each method stands for and how it departs from it, from its about.json."""
    found = pd.DataFrame([read_json(Path(folder) / "about.json") for folder in folders])
    return pd.DataFrame({
        "method": found.method.map(lambda name: LABELS.get(name, name)),
        "stands for": found.reference,
        "steps": found.steps,
        "learning rate": found.get("learning_rate"),
        "deviations": found.deviations,
    })  # fmt: skip
