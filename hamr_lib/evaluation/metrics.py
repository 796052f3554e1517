"""The measures of Sections 4.3 to 4.5, and a name for every choice behind them.

Papers report "the AUC" under different thresholds, roots and scalings, and their numbers cannot be
compared without knowing which. A `Protocol` names these choices, `protocol_matrix` lists those in
use, and every number of this study carries the name of its protocol.

All functions take numpy arrays. Errors are (N, 21): millimetres in 3-D, pixels of the photo in
2-D, NaN where a joint is not labelled or does not count. Averages are taken over images for each
joint first and then over the joints, as in the evaluation code of Zimmermann & Brox, which nearly
everyone has used since; where all joints are labelled this is the plain average.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from hamr_lib.errors import HamrError
from hamr_lib.joints import MIDDLE_MCP, NAMES, NUM_JOINTS, WRIST

MIDDLE_PIP = NAMES.index("middle PIP")

# Millimetres in 3-D, pixels or shares of a box in 2-D. The third is how Zimmermann & Brox got "20
# to 50": the upper part of twenty steps from 0 to 50, which starts at 21.05 mm.
THRESHOLDS = {
    "20-50 mm in 20": np.linspace(20, 50, 20),
    "20-50 mm in 15": np.linspace(20, 50, 15),
    "20-50 mm cut from 0-50 in 20": np.linspace(0, 50, 20)[8:],
    "0-50 mm in 20": np.linspace(0, 50, 20),
    "0-30 px in 31": np.linspace(0, 30, 31),
    "0-0.3 in 31": np.linspace(0, 0.3, 31),
}
ROOT_JOINTS = {"wrist": WRIST, "middle MCP": MIDDLE_MCP}  # the roots that are joints
ROOTS = ("wrist", "palm", "middle MCP", "centroid")
SCALES = ("none", "bone", "procrustes")


@dataclass(frozen=True)
class Protocol:
    """How predicted joints are compared with labels.

    Attributes:
        thresholds: a key of `THRESHOLDS`.
        root: the point that prediction and label are moved onto each other by: "wrist", "palm"
            (midway between wrist and middle MCP), "middle MCP", or "centroid" of the labelled
            joints (for sets that label fingertips only). "" in 2-D, where nothing is aligned.
        scale: "none"; "bone" (the prediction is scaled so that its middle proximal phalanx has
            the label's length, as Zimmermann & Brox do); or "procrustes" (the best similarity
            transform over the labelled joints, which makes `root` meaningless).
        root_counts: whether the root joint, whose error is zero by construction, is scored.
    """

    thresholds: str = "20-50 mm in 20"
    root: str = "wrist"
    scale: str = "none"
    root_counts: bool = True

    @property
    def name(self):
        """The protocol in words, as it stands in every table."""
        if not self.root:
            unit = "photo pixels" if "px" in self.thresholds else "of the box's longer side"
            return f"2-D, {self.thresholds}, {unit}"
        if self.scale == "procrustes":
            return f"3-D, {self.thresholds}, Procrustes"
        words = [f"3-D, {self.thresholds}, root {self.root}"]
        words += ["scaled by one bone"] if self.scale == "bone" else []
        words += ["root not scored"] if not self.root_counts else []
        return ", ".join(words)


PAPER = Protocol()  # RHD and STB
TIPS = Protocol(root="centroid")  # Dexter+Object labels fingertips only, so it has no wrist
PIXELS = Protocol(thresholds="0-30 px in 31", root="")
BOXES = Protocol(thresholds="0-0.3 in 31", root="")  # photographs, whose hands are of any size


def protocol_matrix():
    """Every 3-D protocol that the literature on RHD, STB and Dexter+Object mixes."""
    found = []
    for thresholds in THRESHOLDS:
        if thresholds in (PIXELS.thresholds, BOXES.thresholds):
            continue
        for root in ROOTS:
            for scale in ("none", "bone"):
                found.append(Protocol(thresholds, root, scale))
                if root in ROOT_JOINTS:
                    found.append(Protocol(thresholds, root, scale, root_counts=False))
        found.append(Protocol(thresholds, "centroid", "procrustes"))
    return found


def joint_errors_3d(predicted, true, valid, protocol=PAPER):
    """Distance of every joint to its label.

    Args:
        predicted, true: (N, 21, 3) metres, any origin; labels may be NaN where not valid.
        valid: (N, 21) bool.

    Returns:
        (N, 21) millimetres; NaN where the joint is not valid, or where the image lacks the
        labels that the protocol's alignment needs.

    Raises:
        HamrError: wrong shapes, an unknown root or scale, or a prediction that is not finite.
    """
    predicted, true, valid = _checked(predicted, true, valid, 3)
    known = protocol.root in ROOTS and protocol.scale in SCALES
    is_joint = protocol.root in ROOT_JOINTS and protocol.scale != "procrustes"
    if not known or not (protocol.root_counts or is_joint):
        raise HamrError(
            f"{protocol}: expected a root of {ROOTS}, a scale of {SCALES}, and root_counts=False "
            f"only where the root is a joint"
        )
    weight = valid.astype(float)[..., None]
    if protocol.scale == "procrustes":
        predicted = procrustes(predicted, true, valid)
    else:
        if protocol.scale == "bone":
            labelled = valid[:, MIDDLE_MCP] & valid[:, MIDDLE_PIP]
            ratio = _bone(true) / np.where(_bone(predicted) > 0, _bone(predicted), np.nan)
            predicted = predicted * np.where(labelled, ratio, np.nan)[:, None, None]
        if protocol.root == "centroid":
            count = np.where(valid.any(1), weight.sum((1, 2)), np.nan)[:, None]
            root, label = ((p * weight).sum(1) / count for p in (predicted, true))
        else:
            joints = (
                [WRIST, MIDDLE_MCP] if protocol.root == "palm" else [ROOT_JOINTS[protocol.root]]
            )
            root = predicted[:, joints].mean(1)
            label = np.where(valid[:, joints].all(1)[:, None], true[:, joints].mean(1), np.nan)
        predicted = predicted - root[:, None] + label[:, None]
    errors = 1000 * np.linalg.norm(predicted - true, axis=-1)
    errors[~valid] = np.nan
    if not protocol.root_counts:
        errors[:, ROOT_JOINTS[protocol.root]] = np.nan
    return errors


def joint_errors_2d(predicted, true, valid):
    """Distance of every projected joint to its label, nothing aligned.

    Args:
        predicted, true: (N, 21, 2) pixels of the photo.
        valid: (N, 21) bool.

    Returns:
        (N, 21) pixels, NaN where not valid.
    """
    predicted, true, valid = _checked(predicted, true, valid, 2)
    return np.where(valid, np.linalg.norm(predicted - true, axis=-1), np.nan)


def procrustes(predicted, true, valid):
    """Predictions after the similarity transform that brings them closest to the labels.

    Rotation (never a reflection), scale and translation minimise the squared distance over the
    valid joints (Umeyama 1991). Images with fewer than three valid joints come back as NaN.
    Shapes as in `joint_errors_3d`.
    """
    weight = valid.astype(float)[..., None]
    count = np.where(valid.sum(1) >= 3, valid.sum(1), np.nan)[:, None]
    center_p = (predicted * weight).sum(1) / count
    center_t = (true * weight).sum(1) / count
    p = (predicted - center_p[:, None]) * weight
    t = (true - center_t[:, None]) * weight
    covariance = np.einsum("nji,njk->nik", p, t)
    enough = np.isfinite(covariance).all((1, 2))
    covariance[~enough] = np.eye(3)  # keeps the batch whole; the result is NaN by its centre
    u, s, vt = np.linalg.svd(covariance)
    sign = np.ones_like(s)
    sign[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = (u * sign[:, None]) @ vt
    spread = (p**2).sum((1, 2))
    scale = (s * sign).sum(1) / np.where(spread > 0, spread, np.nan)
    return scale[:, None, None] * (predicted - center_p[:, None]) @ rotation + center_t[:, None]


def hits(errors, thresholds):
    """(N, 21) errors -> (N, 21, T): 1 within the threshold, 0 beyond it, NaN where unscored."""
    within = (errors[..., None] <= thresholds).astype(np.float32)
    within[np.isnan(errors)] = np.nan
    return within


def pck_curve(errors, thresholds):
    """Share of correct joints at each threshold: (N, 21) errors -> (T,)."""
    return joint_mean(hits(errors, thresholds))


def auc(curve, thresholds):
    """Area under a curve by the trapezoid rule, over the range of its thresholds: 1 is perfect."""
    return np.trapezoid(curve, thresholds, axis=-1) / (thresholds[-1] - thresholds[0])


def joint_mean(values):
    """Mean over images for each joint, then over joints: (N, J, ...) with NaN -> (...)."""
    scored = ~np.isnan(values)
    count = scored.sum(0)
    total = np.where(scored, values, 0).sum(0, dtype=float)
    return _mean_known(total, count, axis=0)


def joint_median(errors):
    """Median over images for each joint, then the mean over joints: (N, J) -> scalar."""
    known = errors[:, ~np.isnan(errors).all(0)]
    return np.nanmedian(known, axis=0).mean() if known.size else np.nan


def iou(predicted, true):
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


def draw(images, samples, seed=0):
    """Bootstrap draws: (samples, images), how often each image is in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), samples).astype(np.float32)


def bootstrap(runs, draws, seed=0):
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


def bootstrap_median(errors, draws):
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


def interval(resampled):
    """The central 95 % of bootstrap results: (R, ...) -> (2, ...), NaN where nothing is known."""
    return np.percentile(resampled, [2.5, 97.5], axis=0)


def paired_test(runs_a, runs_b, thresholds, samples=1000, seed=0):
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


def _bone(joints):
    return np.linalg.norm(joints[:, MIDDLE_PIP] - joints[:, MIDDLE_MCP], axis=-1)


def _checked(predicted, true, valid, dimensions):
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    valid = np.asarray(valid)
    shape = (len(true), NUM_JOINTS, dimensions)
    if predicted.shape != shape or true.shape != shape or valid.shape != shape[:2]:
        raise HamrError(
            f"joints: expected (N, {NUM_JOINTS}, {dimensions}) and valid (N, {NUM_JOINTS}), got "
            f"{predicted.shape}, {true.shape} and {valid.shape}"
        )
    valid = valid.astype(bool)
    if not np.isfinite(predicted).all():
        image = int(np.argwhere(~np.isfinite(predicted))[0, 0])
        raise HamrError(f"joints: the prediction for image {image} is not finite")
    if not np.isfinite(true[valid]).all():
        image = int(np.argwhere(~np.isfinite(true) & valid[..., None])[0, 0])
        raise HamrError(f"joints: image {image} has a label marked valid that is not finite")
    # What is not labelled must not spoil sums over joints: NaN times zero is NaN.
    return predicted, np.where(valid[..., None], true, 0), valid
