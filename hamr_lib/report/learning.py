"""What leaving a part out changes along the training: a part may speed learning up alone."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics
from hamr_lib.files import read_arrays
from hamr_lib.report.results import intervals_over, read_log
from hamr_lib.report.style import COLOURS, WIDTH, caption, save_figure, styled
from hamr_lib.report.tables import signed, write_table
from hamr_lib.variants import CLAIMS, LABELS

STEPS = (250, 500, 1000, 2000, 3000)  # of the table; the figure has all


def validation_errors(results_dir, variant, settings):
    """Read the validation errors along the training of a variant's runs.

    Returns:
        (steps (T,), list of (T, N) millimetres, one a seed of the ablations).
    """
    steps, errors = None, []
    for seed in settings.study.seeds(variant):
        path = results_dir / "runs" / f"{variant}-s{seed}" / "validation.npz"
        stored = read_arrays(path, ("step", "error"))
        if errors and stored["step"].tolist() != steps.tolist():
            raise HamrError(f"{path}: validated at other steps than the run of another seed")
        steps = stored["step"]
        errors.append(stored["error"])
    return steps, errors


def differences_along(results_dir, settings):
    """Each ablation's mean validation error minus the full model's, at each validation.

    Paired by sample and seed; the 95 % intervals are over samples and, if several, seeds.

    Returns:
        DataFrame: variant, step, full (the full model's error), difference, ci_low, ci_high, in
        millimetres; above zero is worse than the full model.
    """
    steps, full = validation_errors(results_dir, "full", settings)
    rows = []
    for variant in settings.study.ablations:
        own_steps, own = validation_errors(results_dir, variant, settings)
        beside = full[: len(own)]  # of the same seeds
        shared = np.intersect1d(steps, own_steps, return_indices=True)
        for step, at, own_at in zip(*shared, strict=True):
            gains = [a[own_at] - b[at] for a, b in zip(own, beside, strict=True)]
            low, high = metrics.interval(_resampled(gains, settings.evaluate.bootstrap))
            rows.append({
                "variant": variant,
                "step": int(step),
                "full": np.mean([np.nanmean(errors[at]) for errors in beside]),
                "difference": np.mean([np.nanmean(gain) for gain in gains]),
                "ci_low": low,
                "ci_high": high,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _resampled(gains, samples):
    """Means of resampled samples (each seed has its own) and seeds: (samples,)."""
    means = []
    for seed, gain in enumerate(gains):
        known = gain[~np.isnan(gain)]
        means.append(metrics.draw(len(known), samples, seed) @ known / len(known))
    chosen = np.random.default_rng(0).integers(len(means), size=(samples, len(means)))
    return np.stack(means, axis=1)[np.arange(samples)[:, None], chosen].mean(1)


def table_along(results_dir, settings):
    """Write the table `along_training`: the differences at a few steps."""
    found = differences_along(results_dir, settings)
    shown = found[found.step.isin(STEPS) | (found.step == found.step.max())]
    table = shown.assign(cell=[signed(row, 1) for _, row in shown.iterrows()]).pivot(
        index="variant", columns="step", values="cell"
    )
    table = table.loc[list(settings.study.ablations)]
    full = shown.drop_duplicates("step").set_index("step").full
    table = pd.concat([pd.DataFrame({step: [f"{full[step]:.1f}"] for step in table}), table])
    table.columns = [f"{step} steps" for step in table]
    table.insert(0, "mm", [LABELS["full"], *(LABELS.get(v, v) for v in settings.study.ablations)])
    text = caption("along_training_table", over=intervals_over(settings))
    return write_table(table, text, results_dir / "tables", "along_training")


def table_time(results_dir: Path, settings) -> pd.DataFrame:
    """Write the table `time_to_accuracy`: validation error of the main run by training time."""
    log = read_log(results_dir / "runs" / "main" / "log.csv", settings)
    shown = np.unique(np.linspace(0, len(log) - 1, 10).round().astype(int))
    table = pd.DataFrame({
        "steps": log.step[shown],
        "training (minutes)": (log.seconds / 60)[shown].map("{:.1f}".format),
        "mean 3-D error, validation (mm)": log.val_joints_3d_mm[shown].map("{:.1f}".format),
    })  # fmt: skip
    text = caption("time_to_accuracy")
    return write_table(table, text, results_dir / "tables", "time_to_accuracy")


@styled
def along_training(results_dir, settings):
    """Draw what leaving out each of the paper's parts adds to the error along the training."""
    found = differences_along(results_dir, settings)
    shown = found[found.variant.isin(CLAIMS)] if found.variant.isin(CLAIMS).any() else found
    variants = list(shown.variant.unique())
    columns = min(4, len(variants))
    rows = -(-len(variants) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 1.9 * rows), sharex=True, sharey=True, squeeze=False
    )
    for ax, variant in zip(axes.flat, variants, strict=False):
        curve = shown[shown.variant == variant]
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.fill_between(curve.step, curve.ci_low, curve.ci_high, color=COLOURS[0], alpha=0.2)
        ax.plot(curve.step, curve.difference, color=COLOURS[0])
        ax.set_title(LABELS.get(variant, variant))
    for ax in axes.flat[len(variants) :]:
        ax.axis("off")
    for ax in axes[-1]:
        ax.set_xlabel("steps")
    for ax in axes[:, 0]:
        ax.set_ylabel("mm more than the full model")
    fig.tight_layout(w_pad=1.0)
    text = caption("along_training_figure", over=intervals_over(settings))
    return save_figure(fig, shown, text, results_dir / "figures", "along_training")
