"""Predictions and scores, with answers whose quality is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from saved_results import Oracle, drawn_sets, make_results, small_settings
from tiny import TinyHand, draw_frames

from hamr_lib.data.crops import load_crops
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, predict, protocols, scores
from hamr_lib.joints import MIDDLE_MCP, RING_MCP, TIPS
from hamr_lib.model.hamr import HAMR

SETTINGS = small_settings()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return drawn_sets(tmp_path_factory.mktemp("crops"), SETTINGS)


def predictions(sets, name, noise=0.0, seed=0, change=None, **kind):
    crops = sets[name, "evaluation"]
    oracle = Oracle(SETTINGS, noise, seed, **kind).on(crops)

    def estimate(images):
        answer = oracle(images)
        if change:
            change(answer)
        return answer

    return predict.predict(
        estimate, crops, SETTINGS, dataset=name, split="evaluation", method="main", seed=seed,
        faces=oracle.faces,
    )  # fmt: skip


def value(table, metric):
    return table.set_index("metric").value[metric]


@pytest.mark.parametrize("side", ["right", "left"])
def test_pixels_are_those_of_the_photo(tmp_path, side):
    """A left hand is mirrored for the network, and what is in pixels is mirrored back."""
    frames = draw_frames(5, seed=3, side=side)
    crops = load_crops(frames, side, 32, cache=tmp_path)
    found = predictions({("open-rhd", "evaluation"): crops}, "open-rhd")
    expected = np.stack([frame.joints_2d for frame in frames])
    np.testing.assert_allclose(found["pixels"], expected, atol=1e-3)
    np.testing.assert_allclose(found["true_pixels"], expected, atol=1e-3)
    assert (found["mirrored"] == (side == "left")).all()


def test_a_known_error_is_measured_in_millimetres(sets):
    """Every joint but the wrist moved by 30 mm: 20 of 21 joints cross at 30 mm."""

    def move(answer):
        answer["joints_3d"][:, 1:, 2] += 0.030

    table = scores.score([predictions(sets, "open-rhd", change=move)], SETTINGS.evaluate)
    assert value(table, "epe_mean") == pytest.approx(30 * 20 / 21, rel=1e-4)
    assert value(table, "epe_median") == pytest.approx(30 * 20 / 21, rel=1e-4)
    grid = protocols.THRESHOLDS["20-50 mm in 20"]
    steps = np.where(grid >= 30, 1, 1 / 21)
    assert value(table, "auc") == pytest.approx(np.trapezoid(steps, grid) / 30, rel=1e-4)
    assert value(table, "auc_2d") == 1 and value(table, "epe_2d") < 1e-3
    assert list(table.columns) == scores.COLUMNS and (table.n == 10).all()
    # Alignment by a similarity can only help, on the same thresholds.
    found = predictions(sets, "open-rhd", noise=0.02)
    table = scores.score_protocols([found], SETTINGS.evaluate).set_index("protocol").value
    assert len(table) == len(protocols.protocol_matrix())
    best = protocols.Protocol(root="centroid", scale="procrustes").name
    assert table[best] > table[protocols.PAPER.name]


def test_masks_are_compared_where_there_are_labels(sets):
    def nothing(answer):
        answer["mask"] = torch.zeros_like(answer["mask"])

    def everything(answer):
        answer["mask"] = torch.ones_like(answer["mask"])

    table = scores.score([predictions(sets, "open-rhd", change=nothing)], SETTINGS.evaluate)
    assert value(table, "miou") == 0
    found = predictions(sets, "open-rhd", change=everything)
    share = found["example_masks"].mean((1, 2))  # whole image against the hand: IoU is its share
    np.testing.assert_allclose(found["iou"][found["examples"]], share)
    np.testing.assert_array_equal(found["iou_background"], 0)
    same = scores.score([predictions(sets, "open-rhd")], SETTINGS.evaluate)
    assert value(same, "miou") > 0.5
    without = scores.score([predictions(sets, "open-stb")], SETTINGS.evaluate)
    assert "miou" not in set(without.metric)
    unmasked = scores.score([predictions(sets, "open-rhd", mask=False)], SETTINGS.evaluate)
    assert "miou" not in set(unmasked.metric)


def test_sets_without_wrists_are_aligned_by_their_tips(sets):
    found = predictions(sets, "open-dexter", noise=0.01)
    assert scores.main_protocol(found) == protocols.TIPS
    table = scores.score([found], SETTINGS.evaluate)
    assert "centroid" in table.set_index("metric").protocol["auc"]
    counts = scores.unlabelled(found)
    assert counts == {"images": 10, "images_unscored": 0, "joints": 210, "joints_unscored": 160}
    errors = scores.errors_3d(found, protocols.TIPS)
    assert np.isfinite(errors[:, list(TIPS)]).all()
    assert scores.main_protocol(predictions(sets, "open-rhd")) == protocols.PAPER


def test_the_mean_over_seeds(sets):
    runs = [predictions(sets, "open-rhd", noise=n, seed=s) for s, n in ((0, 0.01), (1, 0.03))]
    both = scores.score(runs, SETTINGS.evaluate).set_index("metric")
    one, two = (scores.score([run], SETTINGS.evaluate).set_index("metric") for run in runs)
    for metric in both.index:
        mean = (one.value[metric] + two.value[metric]) / 2
        assert both.value[metric] == pytest.approx(mean, rel=1e-5)
    # The seeds are worlds apart, and so must the interval be.
    assert both.ci_low["epe_mean"] < one.value["epe_mean"] * 1.1
    assert both.ci_high["epe_mean"] > two.value["epe_mean"] * 0.9
    assert both.seeds["auc"] == "0 1"
    runs[1]["keys"] = runs[1]["keys"][::-1]
    with pytest.raises(HamrError, match="different images"):
        scores.score(runs, SETTINGS.evaluate)


def test_the_palm_and_the_camera_are_those_of_the_set(sets):
    """STB's palm follows its wrist's rule, and its protocol's name tells the camera."""
    stb, rhd = (predictions(sets, name, noise=0.02) for name in ("open-stb", "open-rhd"))
    assert stb["palm"].tolist() == [RING_MCP, 2.0] and rhd["palm"].tolist() == [MIDDLE_MCP, 2.0]
    for found, camera in ((stb, ", SK camera"), (rhd, "")):
        table = scores.score([found], SETTINGS.evaluate).set_index("metric")
        assert table.protocol["auc_hand3d"] == protocols.HAND3D.name + camera
        errors = protocols.joint_errors_3d(
            *(found[name] for name in ("joints_3d", "true_joints_3d", "valid_3d")),
            protocols.HAND3D, found["visible"], found["palm"],
        )  # fmt: skip
        np.testing.assert_array_equal(scores.errors_3d(found, protocols.HAND3D), errors)
        other = scores.errors_3d(found | {"palm": (5, 2.0)}, protocols.HAND3D)
        assert np.abs(other - errors).max() > 1


def test_a_curve_has_its_own_auc_as_area(sets):
    found = predictions(sets, "open-rhd", noise=0.02)
    grid = protocols.THRESHOLDS[protocols.PAPER.thresholds]
    errors = scores.errors_3d(found, protocols.PAPER)
    pck, band = scores.curve([errors], grid, SETTINGS.evaluate)
    scored = scores.score([found], SETTINGS.evaluate)
    assert metrics.auc(pck, grid) == pytest.approx(value(scored, "auc"), abs=1e-6)
    assert (band[0] <= pck + 1e-6).all() and (pck <= band[1] + 1e-6).all()
    assert (scored.ci_low <= scored.value + 1e-6).all()
    assert (scored.value <= scored.ci_high + 1e-6).all()


def test_the_network_is_run_as_it_is(sets, tmp_path, capsys):
    """Same predictions twice (no dropout), finite, with masks, and through the run's files."""
    torch.manual_seed(0)
    network = HAMR(SETTINGS.model, TinyHand())
    rhd = {key: crops for key, crops in sets.items() if key[0] == "open-rhd"}
    run = tmp_path / "no-silhouette-s0"
    table = scores.evaluate_network(network, SETTINGS, run, rhd)
    assert set(table.method) == {"no-silhouette"}
    assert {"auc", "auc_2d_heatmaps", "miou"} <= set(table.metric)
    again = scores.evaluate_network(network.train(), SETTINGS, tmp_path / "main", rhd)
    pd.testing.assert_series_equal(table.value, again.value)
    assert set(again.method) == {"main"}
    assert "10 images, 0 of them unscored; 0 of 210 joints" in capsys.readouterr().out
    assert not len(predict.load_predictions(predict.predictions_path(run, "open-rhd"))["examples"])
    found = predict.load_predictions(predict.predictions_path(tmp_path / "main", "open-rhd"))
    assert found["example_vertices"].shape == (8, 84, 3) and found["faces"].shape == (84, 3)
    assert found["hand_pose"].shape == (10, 6) and found["global_orient"].shape == (10, 3)
    with torch.no_grad():
        batch = rhd["open-rhd", "evaluation"].batch([7])
        alone = network.eval()(batch["image"] / 255.0).estimates[-1]
    np.testing.assert_allclose(found["joints_3d"][7], alone.joints_3d[0], atol=1e-5)
    read = scores.read_rows(run / "metrics.csv")
    np.testing.assert_allclose(read.value, table.value, rtol=1e-5)


def test_a_broken_prediction_names_its_image(sets):
    def spoil(answer):
        answer["joints_3d"][1, 4, 2] = np.nan

    with pytest.raises(HamrError, match="joints_3d of open-rhd drawn/00001 is not finite"):
        predictions(sets, "open-rhd", change=spoil)


def test_predictions_files(sets, tmp_path):
    found = predictions(sets, "open-rhd")
    path = predict.predictions_path(tmp_path, "open-rhd")
    predict.save_predictions(path, found)
    again = predict.load_predictions(path)
    assert again.keys() == found.keys() and str(again["method"]) == "main"
    np.testing.assert_array_equal(again["example_images"], found["example_images"])
    with pytest.raises(HamrError, match="missing: run the evaluation"):
        predict.load_predictions(tmp_path / "predictions-none.npz")


def test_merging_keeps_measured_and_published_apart(tmp_path):
    with pytest.raises(HamrError, match="no runs"):
        scores.merge_metrics(tmp_path)
    make_results(tmp_path)
    merged = scores.read_rows(tmp_path / "metrics.csv")
    assert set(merged.source) == {"measured", "published"}
    measured = merged[merged.source == "measured"]
    assert measured.dataset.map(scores.is_stand_in).all()
    assert {"main", "full", "no-mesh", "mean-pose"} <= set(measured.method)
    literature = merged[merged.source == "published"]
    known = literature.set_index(["method", "dataset", "metric"]).value
    assert known["HAMR", "RHD", "miou"] == 0.931 and known["PSO", "STB", "auc"] == 0.709
    assert known.index.is_unique and known.between(0.5, 1).all()
    assert set(literature.dataset) == {"RHD", "STB", "Dexter+Object"}
    assert literature.commit.isna().all() and len(literature) == len(scores.published())
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(HamrError, match="expected the columns"):
        scores.read_rows(tmp_path / "metrics.csv")
