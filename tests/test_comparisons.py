"""The two methods that cannot see."""

import numpy as np
import pytest
import torch
from saved_results import drawn_sets, small_settings
from tiny import TinyHand, draw_frames

from hamr_lib import comparisons, evaluate
from hamr_lib.data.crops import load_crops
from hamr_lib.errors import HamrError

SETTINGS = small_settings()


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    cache = tmp_path_factory.mktemp("crops")
    frames = draw_frames(12, seed=9)
    for frame in frames[:6]:  # half of the training samples have no mask, and one no thumb tip
        frame.mask = None
    frames[3].joints_3d[4] = np.nan
    return load_crops(frames, "training", 32, SETTINGS.augment, cache=cache), drawn_sets(
        cache, SETTINGS
    )


def test_the_mean_pose_is_the_mean_of_the_labels(crops):
    training, _ = crops
    method = comparisons.MeanPose.fit(SETTINGS, training, None)
    answer = method.estimate(torch.zeros(3, 3, 32, 32))
    joints = training.labels["joints_3d"].copy()
    assert not training.labels["valid_3d"][3, 4]
    joints[3, 4] = np.nan
    for row in answer["joints_3d"]:
        np.testing.assert_allclose(row, np.nanmean(joints, axis=0), atol=1e-6)
    np.testing.assert_allclose(
        answer["joints_2d"][0], training.labels["joints_2d"].mean(0), atol=1e-6
    )
    edge = (training.pixels[0].shape[-1] - 32) // 2
    masks = training.pixels[0][6:, 3, edge : edge + 32, edge : edge + 32] / 255.0
    expected = masks.mean(0).reshape(16, 2, 16, 2).mean((1, 3))
    assert answer["mask"].shape == (3, 16, 16)
    assert np.abs(answer["mask"][0].numpy() - expected).mean() < 0.03


def test_it_needs_every_joint_labelled_once(crops):
    training, _ = crops
    labels = {k: v.copy() for k, v in training.labels.items()}
    labels["valid_2d"][:, 7] = False
    broken = type(training)(training.pixels, training.rows, labels, training.keys, "", 32)
    with pytest.raises(HamrError, match="joints_2d is labelled in no training sample"):
        comparisons.MeanPose.fit(SETTINGS, broken, None)


def test_both_run_through_the_one_interface(crops, tmp_path, monkeypatch):
    training, sets = crops
    monkeypatch.setattr(comparisons, "load_hand", lambda *args, **kwargs: TinyHand())
    for name in comparisons.METHODS:
        table = comparisons.run(name, SETTINGS, tmp_path / name, training, sets)
        assert set(table.method) == {name} and set(table.dataset) == {d for d, _ in sets}
        assert evaluate.predictions_path(tmp_path / name, "open-rhd").is_file()
    again = comparisons.run("untrained", SETTINGS, tmp_path / "again", training, sets)
    np.testing.assert_array_equal(again.value, table.value)
    with pytest.raises(HamrError, match="unknown method 'magic'"):
        comparisons.run("magic", SETTINGS, tmp_path, training, sets)
