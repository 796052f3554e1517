"""The measures of Sections 4.3 to 4.5: PCK curves and their area, mask overlap, and intervals.

All functions take numpy arrays. Errors are (N, 21), from `protocols`; NaN where a joint is not
labelled or does not count. Averages are taken over images for each joint first and then over the
joints, as in the evaluation code of Zimmermann & Brox (hand3d); where all joints are labelled this
is the plain average.
"""

import numpy as np
from scipy import stats

from hamr_lib.errors import HamrError


def hits(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(N, 21) errors -> (N, 21, T): 1 within the threshold, 0 beyond it, NaN where unscored."""
    within = (errors[..., None] <= thresholds).astype(np.float32)
    within[np.isnan(errors)] = np.nan
    return within


def pck_curve(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of correct joints at each threshold: (N, 21) errors -> (T,)."""
    return joint_mean(hits(errors, thresholds))


def auc(curve: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Area under a curve by the trapezoid rule, over the range of its thresholds: 1 is perfect."""
    return np.trapezoid(curve, thresholds, axis=-1) / (thresholds[-1] - thresholds[0])


def joint_mean(values: np.ndarray) -> np.ndarray:
    """Mean over images for each joint, then over joints: (N, J, ...) with NaN -> (...)."""
    scored = ~np.isnan(values)
    count = scored.sum(0)
    total = np.where(scored, values, 0).sum(0, dtype=float)
    return _mean_known(total, count, axis=0)


def joint_median(errors: np.ndarray) -> float:
    """Median over images for each joint, then the mean over joints: (N, J) -> scalar."""
    known = errors[:, ~np.isnan(errors).all(0)]
    return np.nanmedian(known, axis=0).mean() if known.size else np.nan


def iou(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Overlap of two masks, of the hand and of what is not the hand.

    Args:
        predicted, true: (N, H, W) bool.

    Returns:
        Two (N,) arrays: intersection over union of the hand, and of the background. NaN where
        `true` holds no hand, or where the background is everywhere missing.
    """

    def ratio(a, b):
        union = (a | b).sum((1, 2))
        return (a & b).sum((1, 2)) / np.where(union > 0, union, np.nan)

    if predicted.shape != true.shape or predicted.dtype != bool or true.dtype != bool:
        raise HamrError(
            f"masks: expected two bool arrays of one shape, got {predicted.dtype} "
            f"{predicted.shape} and {true.dtype} {true.shape}"
        )
    hand = true.any((1, 2))
    return (
        np.where(hand, ratio(predicted, true), np.nan),
        np.where(hand, ratio(~predicted, ~true), np.nan),
    )


def draw(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """Bootstrap draws: (samples, images), how often each image is in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), samples).astype(np.float32)


def bootstrap(runs: list[np.ndarray], draws: np.ndarray, seed: int = 0) -> np.ndarray:
    """`joint_mean` of resampled images, averaged over runs.

    With several runs (the same network trained from different seeds, scored on the same images),
    the runs are resampled too, so that the spread between trainings is in the interval.

    Args:
        runs: a list of (N, J, ...) arrays, NaN where unscored.
        draws: (R, N) from `draw`.

    Returns:
        (R, ...) resampled means.
    """
    means = []
    for values in runs:
        scored = ~np.isnan(values)
        flat = np.where(scored, values, 0).reshape(len(values), -1).astype(np.float32)
        total = (draws @ flat).reshape(len(draws), *values.shape[1:])
        count = draws @ scored.reshape(len(values), -1).astype(np.float32)
        means.append(_mean_known(total, count.reshape(total.shape), axis=1))
    if len(means) == 1:
        return means[0]
    weight = np.random.default_rng(seed).multinomial(
        len(means), np.full(len(means), 1 / len(means)), len(draws)
    )
    return np.einsum("rs,sr...->r...", weight / len(means), np.stack(means))


def bootstrap_median(errors: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """`joint_median` of resampled images: (N, J) errors and (R, N) draws -> (R,)."""
    medians = []
    for column in errors.T:
        known = np.flatnonzero(~np.isnan(column))
        if not len(known):
            continue
        order = known[np.argsort(column[known])]
        seen = np.cumsum(draws[:, order], axis=1)
        # The lower and upper middle of each resample; they are one where its count is odd.
        low, high = (
            column[order[(seen < half[:, None]).sum(1).clip(max=len(order) - 1)]]
            for half in (np.floor((seen[:, -1] + 1) / 2), np.floor(seen[:, -1] / 2) + 1)
        )
        medians.append(np.where(seen[:, -1] > 0, (low + high) / 2, np.nan))
    return np.nanmean(medians, axis=0) if medians else np.full(len(draws), np.nan)


def interval(resampled: np.ndarray) -> np.ndarray:
    """The central 95 % of bootstrap results: (R, ...) -> (2, ...), NaN where nothing is known."""
    return np.percentile(resampled, [2.5, 97.5], axis=0)


def paired_test(
    runs_a: list[np.ndarray],
    runs_b: list[np.ndarray],
    thresholds: np.ndarray,
    samples: int = 1000,
    seed: int = 0,
) -> dict:
    """Is one method better than another on the same images?

    Args:
        runs_a, runs_b: lists of (N, 21) errors, a run each, as many of one method as of the other;
            the same images in the same order. Runs at the same place had the same seed.

    Returns:
        dict: `difference` of the AUC (a minus b), `each` run's own, `ci_low` and `ci_high` (95 %,
        from resampling the images, and the runs if there are several, of both alike), `p_value`
        (two-sided Wilcoxon signed-rank test on the images' own AUC, averaged over runs: it knows
        nothing of other seeds), and `n` images.
    """
    gains = []
    for a, b in zip(runs_a, runs_b, strict=True):
        if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
            raise HamrError("paired test: the two methods were not scored on the same joints")
        gains.append(auc(hits(a, thresholds), thresholds) - auc(hits(b, thresholds), thresholds))
    scored = ~np.isnan(gains[0]).all(1)
    if not scored.any():
        raise HamrError("paired test: no joint was scored")
    gains = [gain[scored] for gain in gains]
    low, high = interval(bootstrap(gains, draw(scored.sum(), samples, seed)))
    images = np.nanmean(gains, axis=(0, 2))
    each = [joint_mean(gain) for gain in gains]
    return {
        "difference": np.mean(each),
        "each": each,
        "ci_low": low,
        "ci_high": high,
        "p_value": stats.wilcoxon(images).pvalue if images.any() else 1.0,
        "n": len(images),
    }


def _mean_known(total, count, axis):
    """Divide, then average along `axis` over the entries that have a count; NaN where none has."""
    known = count > 0
    means = np.where(known, total / np.where(known, count, 1), 0)
    number = known.sum(axis)
    return np.where(number > 0, means.sum(axis) / np.where(number > 0, number, 1), np.nan)
