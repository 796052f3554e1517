"""The saved predictions of a study by method, data set and seed, and the differences they show."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hamr_lib.config import Settings
from hamr_lib.data.frame import Frame
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics
from hamr_lib.evaluation.predict import load_predictions
from hamr_lib.evaluation.scores import errors, main_protocol, protocol_name
from hamr_lib.files import read_arrays
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
    found = {str(p["dataset"]): p for p in map(load_predictions, folder.glob("predictions-*.npz"))}
    if not found:
        raise HamrError(f"{folder} holds no predictions-*.npz: run the evaluation first")
    return {name: found[name] for name in sorted(found, key=_order)}


def _order(dataset):
    return [_kind(dataset) != kind for kind in KINDS], dataset


def _kind(dataset):
    return dataset.lower().removeprefix("open-").partition("+")[0]


def find_set(sets: Iterable[str], kind: str) -> str:
    """Return the display name of the set of a kind ("stb", "rhd", "dexter"), real or stand-in."""
    for dataset in sets:
        if _kind(dataset) == kind:
            return dataset
    raise HamrError(f"there are no predictions for {kind!r}, only for {', '.join(sets)}")


def recover_sample(run: Path, frames: Sequence[Frame], predictions: dict, index: int) -> tuple:
    """Run a run's network anew on a test sample: its `Frame`, and what is recovered of it.

    That is one recovery after each iteration (`recover_frame`).

    Raises:
        HamrError: where the sample is not the one that was evaluated.
    """
    frame, key = frames[index], str(predictions["keys"][index])
    if frame.key != key:
        raise HamrError(f"{run}: sample {index} was {key} and is now {frame.key}: evaluate anew")
    return frame, recover_frame(frame, run / "checkpoints" / "best.ckpt")


def method_folders(results_dir: Path) -> dict[str, Path]:
    """Return name -> folder of the main run and the scored baselines, as ordered in `LABELS`."""
    others = {name: results_dir / "comparisons" / name for name in LABELS}
    scored = {name: path for name, path in others.items() if (path / "metrics.csv").is_file()}
    return {"main": results_dir / "runs" / "main"} | scored


def method_predictions(results_dir: Path) -> dict[str, dict]:
    """Load name -> `run_predictions` of the main run and the baselines."""
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
    """Compare the 3-D AUC of two methods on a set by `metrics.paired_test`, a run a seed.

    Returns None where one of the methods gives no joints.
    """
    protocol = main_protocol(runs_a[0])
    a, b = ([errors(run, protocol) for run in runs] for runs in (runs_a, runs_b))
    if np.isnan(a).all() or np.isnan(b).all():
        return None
    return metrics.paired_test(a, b, protocol.grid, settings.evaluate.bootstrap)


def ablation_differences(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Compare each ablation's 3-D AUC with that of the full model, set by set.

    Returns:
        DataFrame: dataset, variant, protocol, and of the variant's AUC minus the full model's
        difference, ci_low, ci_high and each (a list, one a seed).
    """
    runs = variant_predictions(results_dir, ("full", *settings.study.ablations), settings)
    rows = []
    for dataset, full in runs["full"].items():
        protocol = protocol_name(main_protocol(full[0]).name, full[0])
        for variant in settings.study.ablations:
            own = runs[variant][dataset]  # its seeds are the first of the full model's
            test = paired_difference(own, full[: len(own)], settings)
            rows.append({"dataset": dataset, "variant": variant, "protocol": protocol, **test})
    columns = ["dataset", "variant", "protocol", "difference", "ci_low", "ci_high", "each"]
    return pd.DataFrame(rows)[columns]


def differences_along(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Compare each ablation's mean validation error with the full model's, at each validation.

    Paired by sample and seed; the 95 % intervals are over samples and, if several, seeds.

    Returns:
        DataFrame: variant, step, full (the full model's error), difference, ci_low, ci_high, in
        millimetres; above zero is worse than the full model.
    """

    def validated(variant):  # one table a seed: a row a step, a column a sample
        runs = [results_dir / "runs" / f"{variant}-s{n}" for n in settings.study.seeds(variant)]
        found = [read_arrays(run / "validation.npz", ("step", "error")) for run in runs]
        return [pd.DataFrame(one["error"], index=one["step"]) for one in found]

    full, rows = validated("full"), []
    for variant in settings.study.ablations:
        own = validated(variant)
        beside = full[: len(own)]  # of the same seeds
        steps = functools.reduce(pd.Index.intersection, (one.index for one in own + beside))
        for step in steps:
            ours, theirs = ([one.loc[step].to_numpy() for one in runs] for runs in (own, beside))
            gains = [a - b for a, b in zip(ours, theirs, strict=True)]
            low, high = metrics.interval(_resampled(gains, settings.evaluate.bootstrap))
            rows.append({
                "variant": variant, "step": int(step),
                "full": np.mean([np.nanmean(error) for error in theirs]),
                "difference": np.mean([np.nanmean(gain) for gain in gains]),
                "ci_low": low, "ci_high": high,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _resampled(gains, samples):
    """Means of resampled samples (each seed has its own) and seeds: (samples,)."""
    means = []
    for seed, gain in enumerate(gains):
        known = gain[~np.isnan(gain)]
        means.append(metrics.draw(len(known), samples, seed) @ known / len(known))
    chosen = np.random.default_rng(0).integers(len(means), size=(samples, len(means)))
    return np.take_along_axis(np.stack(means, axis=1), chosen, axis=1).mean(1)


def ablation_words(settings: Settings) -> dict[str, str | int]:
    """Return what captions say of the ablations: their steps, and what intervals are taken over."""
    count = len(settings.study.ablation_seeds)
    few = min(settings.study.choice_seeds, count)
    fewer = f" ({few} for what the paper leaves open)" if few < count else ""
    over = f"images and {count} seeds{fewer}"
    if count == 1:
        over = "the images of one seed (not over seeds)"
    return {"steps": settings.study.ablation_steps, "over": over}
