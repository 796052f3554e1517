"""The saved predictions of a study by method, data set and seed, and the differences they show."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hamr_lib.config import Settings
from hamr_lib.data.frame import Frame
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics
from hamr_lib.evaluation.predict import load_predictions
from hamr_lib.evaluation.protocols import THRESHOLDS
from hamr_lib.evaluation.scores import errors_3d, main_protocol, protocol_name
from hamr_lib.recovery.pipeline import recover_frame
from hamr_lib.variants import LABELS

KINDS = ("stb", "rhd", "dexter")  # the paper's order


def read_log(path: Path, settings: Settings) -> pd.DataFrame:
    """Read a run's log.csv, with a column `seconds`: those of its training steps so far."""
    if not path.is_file():
        raise HamrError(f"{path} is missing: train first")
    log = pd.read_csv(path)
    images = settings.train.batch_size * log.step.diff().fillna(log.step)
    return log.assign(seconds=(images / log.images_per_second).cumsum())


def run_predictions(folder: Path) -> dict[str, dict]:
    """Load the predictions of one run by data set (display name), in the paper's order."""
    paths = sorted(folder.glob("predictions-*.npz"))
    if not paths:
        raise HamrError(f"{folder} holds no predictions-*.npz: run the evaluation first")
    found = {str(p["dataset"]): p for p in map(load_predictions, paths)}
    return {name: found[name] for name in sorted(found, key=_rank)}


def _rank(dataset):
    kinds = (i for i, kind in enumerate(KINDS) if _is_kind(dataset, kind))
    return next(kinds, len(KINDS)), dataset


def _is_kind(dataset, kind):
    return dataset.lower().removeprefix("open-").startswith(kind)


def recover_sample(run: Path, frames: Sequence[Frame], predictions: dict, index: int) -> tuple:
    """Run the network of a run anew on one of its test samples.

    Returns:
        The sample's `Frame`, and what is recovered after each iteration (`recover_frame`).

    Raises:
        HamrError: where the sample is not the one that was evaluated.
    """
    frame, key = frames[index], str(predictions["keys"][index])
    if frame.key != key:
        raise HamrError(f"{run}: sample {index} was {key} and is now {frame.key}: evaluate anew")
    return frame, recover_frame(frame, run / "checkpoints" / "best.ckpt")


def find_set(sets: Iterable[str], kind: str) -> str:
    """Return the display name of the set of a kind ("stb", "rhd", "dexter"), real or stand-in."""
    for dataset in sets:
        if _is_kind(dataset, kind):
            return dataset
    raise HamrError(f"there are no predictions for {kind!r}, only for {', '.join(sets)}")


def method_folders(results_dir: Path) -> dict[str, Path]:
    """Return name -> folder of the main run and the scored comparisons, as ordered in `LABELS`."""
    others = {name: results_dir / "comparisons" / name for name in LABELS}
    scored = {name: path for name, path in others.items() if (path / "metrics.csv").is_file()}
    return {"main": results_dir / "runs" / "main"} | scored


def method_predictions(results_dir: Path) -> dict[str, dict]:
    """Load name -> `run_predictions` of the main run and the comparisons."""
    return {name: run_predictions(path) for name, path in method_folders(results_dir).items()}


def variant_predictions(
    results_dir: Path, variants: Iterable[str], settings: Settings
) -> dict[str, dict]:
    """Load the predictions of ablations: variant -> data set -> a list, one a training seed."""
    runs = {}
    for variant in variants:
        names = [f"{variant}-s{seed}" for seed in settings.study.seeds(variant)]
        seeds = [run_predictions(results_dir / "runs" / name) for name in names]
        runs[variant] = {dataset: [found[dataset] for found in seeds] for dataset in seeds[0]}
    return runs


def paired_difference(runs_a: list[dict], runs_b: list[dict], settings: Settings) -> dict | None:
    """Compare the 3-D AUC of two methods on a set, predictions of one a seed.

    Returns:
        The dict of `metrics.paired_test`; None where one of the methods gives no joints.
    """
    protocol = main_protocol(runs_a[0])
    a, b = ([errors_3d(run, protocol) for run in runs] for runs in (runs_a, runs_b))
    if np.isnan(a).all() or np.isnan(b).all():
        return None
    thresholds = THRESHOLDS[protocol.thresholds]
    return metrics.paired_test(a, b, thresholds, settings.evaluate.bootstrap)


def ablation_differences(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Compare each ablation's 3-D AUC with that of the full model, set by set.

    Returns:
        DataFrame, a row a set and variant: dataset, variant, protocol, and of the variant's AUC
        minus the full model's `difference`, `ci_low`, `ci_high` and `each`, a list with a
        difference a seed.
    """
    runs = variant_predictions(results_dir, ("full", *settings.study.ablations), settings)
    rows = []
    for dataset, full in runs["full"].items():
        protocol = protocol_name(main_protocol(full[0]).name, full[0])
        for variant in settings.study.ablations:
            own = runs[variant][dataset]  # its seeds are the first of the full model's
            test = paired_difference(own, full[: len(own)], settings)
            kept = {key: test[key] for key in ("difference", "ci_low", "ci_high", "each")}
            rows.append({"dataset": dataset, "variant": variant, "protocol": protocol, **kept})
    return pd.DataFrame(rows)


def intervals_over(settings: Settings) -> str:
    """Say what the ablations' intervals are taken over."""
    count = len(settings.study.ablation_seeds)
    few = min(settings.study.choice_seeds, count)
    if count == 1:
        return "the images of one seed (not over seeds)"
    fewer = f" ({few} for what the paper leaves open)" if few < count else ""
    return f"images and {count} seeds{fewer}"
