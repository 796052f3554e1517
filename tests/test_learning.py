"""Differences along the training, from validation errors of known size."""

import numpy as np
import pandas as pd
import pytest
from saved_results import SETTINGS

from hamr_lib.errors import HamrError
from hamr_lib.report import figures, learning

STEPS = np.array([250, 500, 750])


@pytest.fixture
def study(tmp_path):
    """no-mesh learns later and ends equal; no-camera stays 5 mm worse for one seed in two."""
    settings = SETTINGS
    rng = np.random.default_rng(0)
    for seed in settings.study.ablation_seeds:
        full = 50 - STEPS[:, None] / 50 + rng.normal(0, 8, (3, 60 + seed))
        full[:, 3] = np.nan
        shift = {"full": [0, 0, 0], "no-mesh": [10, 4, 0], "no-camera": [5 * seed] * 3}
        for variant, more in shift.items():
            folder = tmp_path / "runs" / f"{variant}-s{seed}"
            folder.mkdir(parents=True)
            noise = rng.normal(0, 1, full.shape)
            error = full + np.array(more)[:, None] + (variant != "full") * noise
            np.savez(folder / "validation.npz", step=STEPS, error=error)
    return tmp_path, settings


def test_differences_are_paired_by_sample_and_seed(study):
    found = learning.differences_along(*study).set_index(["variant", "step"])
    for step, more in zip(STEPS, (10, 4, 0), strict=True):
        row = found.loc["no-mesh", step]
        # The samples differ by 8 mm, their differences by 1.
        assert row.difference == pytest.approx(more, abs=0.4)
        assert row.ci_low <= more + 0.3 and row.ci_high >= more - 0.3
        assert row.ci_high - row.ci_low < 1
        assert row.full == pytest.approx(50 - step / 50, abs=2)
    # Two seeds that disagree: the interval reaches from one to the other.
    row = found.loc["no-camera", 750]
    assert row.difference == pytest.approx(2.5, abs=0.4)
    assert row.ci_low < 0.5 and row.ci_high > 4.5


def test_table_and_figure(study):
    folder, settings = study
    table = learning.table_along(folder, settings)
    assert list(table.columns) == ["mm", "250 steps", "500 steps", "750 steps"]
    assert table["mm"].tolist() == ["full model", "without mesh", "without camera loss"]
    assert table["250 steps"][1].startswith("+10.") or table["250 steps"][1].startswith("+9.")
    learning.along_training(folder, settings)
    for name in ("figures/along_training.png", "tables/along_training.md"):
        assert (folder / name).is_file()


def test_a_run_that_is_not_there_is_named(study):
    folder, settings = study
    (folder / "runs" / "no-mesh-s1" / "validation.npz").unlink()
    with pytest.raises(HamrError, match="no-mesh-s1.*validation.npz is missing"):
        learning.differences_along(folder, settings)


def test_time_is_that_of_the_steps(tmp_path):
    settings = SETTINGS
    rates = np.array([settings.train.batch_size, settings.train.batch_size / 2])  # images a second
    log = pd.DataFrame(
        {"step": [60, 120], "images_per_second": rates, "val_joints_3d_mm": [50, 40]}
    )
    with pytest.raises(HamrError, match="log.csv is missing"):
        learning.table_time(tmp_path, settings)
    (tmp_path / "runs" / "main").mkdir(parents=True)
    log.to_csv(tmp_path / "runs" / "main" / "log.csv", index=False)
    table = learning.table_time(tmp_path, settings)
    assert list(table["training (minutes)"]) == ["1.0", "3.0"]  # a step a second, then two seconds
    assert list(table["mean 3-D error, validation (mm)"]) == ["50.0", "40.0"]
    assert (tmp_path / "tables" / "time_to_accuracy.md").is_file()
    whole = log.assign(train_total=[5, 4], val_total=[6, 5])
    whole.to_csv(tmp_path / "log.csv", index=False)
    drawn = figures.training_curves(tmp_path / "log.csv").axes[1].get_lines()[0]
    assert list(drawn.get_ydata()) == [50, 40] and (tmp_path / "training.pdf").is_file()
