"""The saved predictions of a study by method, data set and seed, and the differences they show.

`runs` is name -> data set (display name) -> predictions, a list with one a training seed.
"""

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
from hamr_lib.evaluation.scores import errors, main_protocol, protocol_name, read_csv
from hamr_lib.files import read_arrays
from hamr_lib.recovery.pipeline import recover_frame
from hamr_lib.variants import LABELS

KINDS = ("stb", "rhd", "dexter")  # the paper's order


def read_log(path: Path, settings: Settings) -> pd.DataFrame:
    """Read a run's log.csv, with a column `seconds`: those of its training steps so far."""
    log = read_csv(path)
    images = settings.train.batch_size * log.step.diff().fillna(log.step)
    return log.assign(seconds=(images / log.images_per_second).cumsum())


def run_predictions(folder: Path) -> dict[str, dict]:
    """Load the predictions of one run by data set (display name), in the paper's order."""
    found = {str(p["dataset"]): p for p in map(load_predictions, folder.glob("predictions-*.npz"))}
    if not found:
        raise HamrError(f"{folder} holds no predictions-*.npz: run the evaluation first")
    order = [name for kind in KINDS for name in sorted(found) if _kind(name) == kind]
    return {name: found[name] for name in dict.fromkeys([*order, *sorted(found)])}


def _kind(dataset):
    return dataset.lower().removeprefix("open-").partition("+")[0]


def find_set(sets: Iterable[str], kind: str) -> str:
    """Return the display name of the set of a kind ("stb", "rhd", "dexter"), real or stand-in."""
    for dataset in sets:
        if _kind(dataset) == kind:
            return dataset
    raise HamrError(f"there are no predictions for {kind!r}, only for {', '.join(sets)}")


def recover_sample(run: Path, frames: Sequence[Frame], predictions: dict, index: int) -> tuple:
    """Run a run's network anew on a test sample: its `Frame`, and the recovery of each iteration.

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


def method_runs(results_dir: Path) -> dict[str, dict[str, list]]:
    """Load the `runs` of the main run and the baselines, which have one seed."""
    return {name: _seeds([path]) for name, path in method_folders(results_dir).items()}


def variant_runs(results_dir: Path, settings: Settings) -> dict[str, dict[str, list]]:
    """Load the `runs` of the full model and the ablations."""
    return {
        variant: _seeds([results_dir / "runs" / f"{variant}-s{seed}" for seed in seeds])
        for variant in ("full", *settings.study.ablations)
        for seeds in [settings.study.seeds(variant)]
    }


def _seeds(folders):
    found = [run_predictions(folder) for folder in folders]
    return {dataset: [sets[dataset] for sets in found] for dataset in found[0]}


def differences(runs: dict, reference: str, settings: Settings) -> pd.DataFrame:
    """Compare the 3-D AUC of each of the `runs` with that of the reference, set by set.

    Paired by image and seed, see `metrics.paired_test`. A method without joints has no row.

    Returns:
        DataFrame: dataset, method, protocol, and of the method's AUC minus the reference's
        difference, each (a list, one a seed), ci_low, ci_high and p_value.
    """
    rows = []
    for dataset, theirs in runs[reference].items():
        protocol = main_protocol(theirs[0])
        for name, sets in runs.items():
            if name == reference or "joints_3d" not in sets[dataset][0]:
                continue
            ours = [errors(run, protocol) for run in sets[dataset]]
            beside = [errors(run, protocol) for run in theirs[: len(ours)]]  # of the same seeds
            test = metrics.paired_test(ours, beside, protocol.grid, settings.evaluate.bootstrap)
            words = protocol_name(protocol.name, theirs[0])
            rows.append({"dataset": dataset, "method": name, "protocol": words, **test})
    return pd.DataFrame(rows)


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
        pairs = list(zip(validated(variant), full, strict=False))  # of the same seeds
        for step in functools.reduce(pd.Index.intersection, (t.index for p in pairs for t in p)):
            gains = [(a.loc[step] - b.loc[step]).dropna().to_numpy() for a, b in pairs]
            low, high = _interval(gains, settings.evaluate.bootstrap)
            rows.append({
                "variant": variant, "step": int(step),
                "full": np.mean([b.loc[step].mean() for _, b in pairs]),
                "difference": np.mean([gain.mean() for gain in gains]),
                "ci_low": low, "ci_high": high,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _interval(gains, samples):
    """The interval of a mean over seeds, each with samples of its own: resampled both."""
    means = [
        metrics.draw(len(gain), samples, seed) @ gain / len(gain) for seed, gain in enumerate(gains)
    ]
    chosen = np.random.default_rng(0).integers(len(means), size=(samples, len(means)))
    means = np.take_along_axis(np.stack(means, axis=1), chosen, axis=1)
    return metrics.interval(means.mean(1))


def ablation_words(settings: Settings) -> dict[str, str | int]:
    """Return what captions say of the ablations: their steps, and what intervals are taken over."""
    count = len(settings.study.ablation_seeds)
    few = min(settings.study.choice_seeds, count)
    fewer = f" ({few} for what the paper leaves open)" if few < count else ""
    over = f"images and {count} seeds{fewer}"
    if count == 1:
        over = "the images of one seed (not over seeds)"
    return {"steps": settings.study.ablation_steps, "over": over}
