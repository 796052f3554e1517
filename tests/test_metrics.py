"""The measures, against theory, other implementations, and curves that were published."""

import numpy as np
import pytest

from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, protocols
from hamr_lib.joints import WRIST

GRID = protocols.THRESHOLDS["20-50 mm in 20"]


@pytest.mark.parametrize("name", protocols.THRESHOLDS)
def test_auc_of_a_constant_error(name):
    """One error e: the curve steps from 0 to 1 at e, so the area is the range above e."""
    grid = protocols.THRESHOLDS[name]
    for error in (0.0, 26.3, 51.0):
        curve = metrics.pck_curve(np.full((4, 21), error), grid)
        area = np.clip((grid[-1] - error) / np.ptp(grid), 0, 1)
        half_step = (grid[1] - grid[0]) / 2 / np.ptp(grid)
        assert metrics.auc(curve, grid) == pytest.approx(area, abs=half_step + 1e-12)


# Curves as their authors published them: thresholds, PCK, and the AUC printed beside them.
TENTHS = np.linspace(20, 50, 7)
CUT = np.linspace(0, 50, 20)[8:]
PUBLISHED = {
    # Zhang et al. 2016, as kept in lmb-freiburg/hand3d, utils/general.py.
    "PSO": (TENTHS, [0.32237, 0.53947, 0.67434, 0.75658, 0.80921, 0.86513, 0.89474], 0.709),
    # Zimmermann & Brox 2017 on STB, in the thresholds of hand3d.
    "Zimmermann": (
        CUT,
        [0.86989, 0.89687, 0.91685, 0.93214, 0.94351, 0.95275]
        + [0.9599, 0.96605, 0.9716, 0.97655, 0.98017, 0.98328],
        0.948,
    ),
    # Iqbal et al. 2018, on STB and (0 to 100 mm) on Dexter+Object.
    "Iqbal": (
        np.linspace(20, 50, 10),
        [0.9625, 0.9818, 0.9908, 0.9949, 0.9969, 0.9982, 0.9988, 0.9993, 0.9996, 0.9998],
        0.994,
    ),
    "Iqbal on Dexter+Object": (
        np.linspace(0, 100, 20),
        [0, 0.0619, 0.1872, 0.3071, 0.4142, 0.5102, 0.6024, 0.6843, 0.7634, 0.8268]
        + [0.8784, 0.9179, 0.9466, 0.9652, 0.9775, 0.9845, 0.9881, 0.9925, 0.9950, 0.9964],
        0.711,
    ),
}


@pytest.mark.parametrize("method", list(PUBLISHED))
def test_auc_of_published_curves(method):
    thresholds, curve, printed = PUBLISHED[method]
    # Half a unit in the last printed place, and a little for curves that were printed rounded.
    assert metrics.auc(np.array(curve), thresholds) == pytest.approx(printed, abs=7e-4)


def test_against_the_loop_of_hand3d():
    """The numbers of `EvalUtil.get_measures`: per joint, over visible joints, then over joints."""
    rng = np.random.default_rng(1)
    predicted = rng.normal(0, 0.05, (40, 21, 3))
    true = predicted + rng.normal(0, 0.02, predicted.shape)
    valid = rng.random((40, 21)) < 0.7
    valid[:, WRIST] = True
    errors = protocols.joint_errors_3d(predicted, true, valid)
    grid = protocols.THRESHOLDS["0-50 mm in 20"]

    a, b = predicted - predicted[:, :1], true - true[:, :1]
    areas, means, medians = [], [], []
    for joint in range(21):
        images = np.flatnonzero(valid[:, joint])
        distance = [1000 * np.sqrt(((a[i, joint] - b[i, joint]) ** 2).sum()) for i in images]
        correct = [np.mean(np.array(distance) <= t) for t in grid]
        areas.append(np.trapezoid(correct, grid) / 50)
        means.append(np.mean(distance))
        medians.append(np.median(distance))
    curve = metrics.pck_curve(errors, grid)
    assert metrics.auc(curve, grid) == pytest.approx(np.mean(areas), abs=1e-6)
    assert metrics.joint_mean(errors) == pytest.approx(np.mean(means))
    assert metrics.joint_median(errors) == pytest.approx(np.mean(medians))


def test_iou():
    true = np.zeros((3, 8, 8), bool)
    true[:2, :4, :4] = True
    predicted = np.zeros_like(true)
    predicted[:, 2:6, :4] = True
    hand, background = metrics.iou(predicted, true)
    # 16 and 16 pixels that share 8; outside them 40 pixels agree out of 56 that either calls so.
    np.testing.assert_allclose(hand, [1 / 3, 1 / 3, np.nan])
    np.testing.assert_allclose(background, [40 / 56, 40 / 56, np.nan])


def test_bootstrap_interval_of_a_mean():
    """95 % of a mean of n normal values is +-1.96 sigma / sqrt(n)."""
    values = np.random.default_rng(0).normal(10, 2, (400, 1))
    low, high = metrics.interval(metrics.bootstrap([values], metrics.draw(400, 4000)))
    spread = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - spread, abs=0.03)
    assert high == pytest.approx(values.mean() + spread, abs=0.03)


def test_bootstrap_is_what_resampling_by_hand_gives():
    errors = np.random.default_rng(1).gamma(3, 8, (30, 21))
    errors[np.random.default_rng(2).random(errors.shape) < 0.3] = np.nan
    draws = metrics.draw(30, 20, seed=4)
    means = metrics.bootstrap([errors], draws)
    medians = metrics.bootstrap_median(errors, draws)
    for counts, mean, median in zip(draws, means, medians, strict=True):
        resample = np.repeat(errors, counts.astype(int), axis=0)
        assert mean == pytest.approx(metrics.joint_mean(resample), rel=1e-4)
        assert median == pytest.approx(metrics.joint_median(resample))


def test_paired_test_finds_a_small_steady_gain_only():
    rng = np.random.default_rng(0)
    base = rng.gamma(4, 8, (300, 21))
    better = base - rng.uniform(0, 2, base.shape)
    found = metrics.paired_test([better], [base], GRID)
    assert found["p_value"] < 1e-6 and 0 < found["ci_low"] < found["difference"] < found["ci_high"]
    expected = metrics.auc(metrics.pck_curve(better, GRID), GRID)
    expected -= metrics.auc(metrics.pck_curve(base, GRID), GRID)
    assert found["difference"] == pytest.approx(expected, abs=1e-6)
    noise = metrics.paired_test([rng.gamma(4, 8, base.shape)], [base], GRID)
    assert noise["p_value"] > 0.01 and noise["ci_low"] < 0 < noise["ci_high"]
    assert metrics.paired_test([base], [base], GRID)["p_value"] == 1


def test_paired_test_holds_the_spread_between_seeds():
    """Three seeds that differ far more than their images do: one against, so nothing is clear."""
    rng = np.random.default_rng(0)
    base = [rng.uniform(20, 50, (400, 21)) for _ in range(3)]
    moved = [errors + shift for errors, shift in zip(base, (-6, -3, 3), strict=True)]
    found = metrics.paired_test(moved, base, GRID)
    alone = [metrics.paired_test([a], [b], GRID) for a, b in zip(moved, base, strict=True)]
    assert found["each"] == pytest.approx([one["difference"] for one in alone])
    assert found["difference"] == pytest.approx(np.mean(found["each"])) and found["difference"] > 0
    assert found["ci_low"] < 0 < alone[1]["ci_low"]  # one seed alone would have looked clear
    assert found["ci_low"] == pytest.approx(min(found["each"]), abs=0.02)
    with pytest.raises(HamrError, match="same joints"):
        metrics.paired_test([np.zeros((3, 21))], [np.zeros((4, 21))], GRID)
