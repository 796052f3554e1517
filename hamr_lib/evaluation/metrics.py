"""The measures of Sections 4.3 to 4.5: PCK curves and their area, mask overlap, and intervals.

Errors are (N, 21), from `protocols`; NaN where a joint is not scored. Averages are taken over
images for each joint, and then over joints, as in the code of Zimmermann & Brox (hand3d).
"""

import numpy as np
from scipy import stats

from hamr_lib.errors import HamrError


def hits(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Tell which joints are correct: (N, 21) -> (N, 21, T), 1, 0, or NaN where unscored."""
    within = (errors[..., None] <= thresholds).astype(np.float32)
    within[np.isnan(errors)] = np.nan
    return within


def pck_curve(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Compute the fraction of correct joints at each threshold: (N, 21) errors -> (T,)."""
    return joint_mean(hits(errors, thresholds))


def auc(curve: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Integrate (..., T) by the trapezoid rule, as a fraction of the thresholds' range."""
    return np.trapezoid(curve, thresholds, axis=-1) / (thresholds[-1] - thresholds[0])


def joint_mean(values: np.ndarray) -> np.ndarray:
    """Average over images for each joint, then over joints: (N, J, ...) with NaN -> (...)."""
    return _mean_known(np.nansum(values, 0, dtype=float), (~np.isnan(values)).sum(0), axis=0)


def joint_median(errors: np.ndarray) -> float:
    """Take the median over images for each joint, then the mean over joints: (N, J) -> scalar."""
    known = errors[:, ~np.isnan(errors).all(0)]
    return np.nanmedian(known, axis=0).mean() if known.size else np.nan


def iou(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute intersection over union of the hand and of the background, two (N,) arrays.

    Masks are (N, H, W) bool. NaN where `true` holds no hand, or where the union is empty.
    """

    def ratio(a, b):
        union = (a | b).sum((1, 2))
        return np.where(true.any((1, 2)) & (union > 0), (a & b).sum((1, 2)) / union.clip(1), np.nan)

    return ratio(predicted, true), ratio(~predicted, ~true)


def draw(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """Draw bootstrap resamples: (samples, images), how often each image is in each."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), samples).astype(np.float32)


def bootstrap(runs: list[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Resample the images of a `joint_mean`, averaged over runs, and the runs (seeds) as well.

    Args:
        runs: (N, J, ...) arrays of the same images, NaN where unscored.
        draws: (R, N) from `draw`.

    Returns:
        (R, ...) means.
    """
    means = []
    for values in runs:
        flat = values.reshape(len(values), -1)
        total = draws @ np.nan_to_num(flat).astype(np.float32)
        count = draws @ (~np.isnan(flat)).astype(np.float32)
        shape = (len(draws), *values.shape[1:])
        means.append(_mean_known(total.reshape(shape), count.reshape(shape), axis=1))
    weight = draw(len(means), len(draws)).astype(float) / len(means)
    return np.einsum("rs,sr...->r...", weight, np.stack(means))


def bootstrap_median(errors: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Resample the images of a `joint_median`: (N, J) errors and (R, N) draws -> (R,)."""
    medians = []
    for column in errors.T:
        known = np.flatnonzero(~np.isnan(column))
        if not len(known):
            continue
        order = known[np.argsort(column[known])]
        seen = np.cumsum(draws[:, order], axis=1)
        count = seen[:, -1]
        # The lower and upper middle of each resample, which are one where its count is odd.
        ranks = np.stack([np.ceil(count / 2), np.floor(count / 2) + 1])[..., None]
        places = (seen < ranks).sum(-1).clip(max=len(order) - 1)
        medians.append(np.where(count > 0, column[order[places]].mean(0), np.nan))
    return np.nanmean(medians, axis=0) if medians else np.full(len(draws), np.nan)


def interval(resampled: np.ndarray) -> np.ndarray:
    """Take the central 95 % of bootstrap results: (R, ...) -> (2, ...)."""
    return np.percentile(resampled, [2.5, 97.5], axis=0)


def paired_test(
    runs_a: list[np.ndarray], runs_b: list[np.ndarray], thresholds: np.ndarray, samples: int = 1000
) -> dict:
    """Compare the AUC of two methods on the same images.

    Args:
        runs_a, runs_b: (N, 21) errors; runs at the same place had the same seed.

    Returns:
        dict: `difference` of the AUC (a minus b), `each` run's own, `ci_low` and `ci_high` (95 %,
        over images and runs) and `p_value` (two-sided Wilcoxon signed-rank test on the images'
        own AUC, averaged over runs).
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
    low, high = interval(bootstrap(gains, draw(scored.sum(), samples)))
    images = np.nanmean(gains, axis=(0, 2))
    each = [joint_mean(gain) for gain in gains]
    return {
        "difference": np.mean(each),
        "each": each,
        "ci_low": low,
        "ci_high": high,
        "p_value": stats.wilcoxon(images).pvalue if images.any() else 1.0,
    }


def _mean_known(total, count, axis):
    """Divide, then average along `axis` over the entries that have a count; NaN where none has."""
    known = count > 0
    means = np.where(known, total / np.where(known, count, 1), 0)
    number = known.sum(axis)
    return np.where(number > 0, means.sum(axis) / np.where(number > 0, number, 1), np.nan)
