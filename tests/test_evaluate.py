"""Predictions and scores, with answers whose quality is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from saved_results import SETTINGS, Oracle, drawn_sets
from tiny import TinyHand, draw_frames

from hamr_lib.data.crops import load_crops
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, predict, protocols, scores
from hamr_lib.joints import MIDDLE_MCP, RING_MCP, TIPS
from hamr_lib.model.hamr import HAMR


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return drawn_sets(tmp_path_factory.mktemp("crops"), SETTINGS)


def predictions(sets, name="open-rhd", noise=0.0, seed=0, change=None, **kind):
    """What an oracle predicts for a set, changed in place by a function of its answer."""
    crops = sets[name, "evaluation"]
    oracle = Oracle([crops], SETTINGS, noise, seed, **kind)

    def estimate(images):
        answer = oracle(images)
        if change:
            change(answer)
        return answer

    return predict.predict(
        estimate, crops, SETTINGS, dataset=name, split="evaluation", method="main", seed=seed,
        faces=oracle.faces,
    )  # fmt: skip


def scored(*runs):
    return scores.score(runs, SETTINGS.evaluate).set_index("metric")


@pytest.mark.parametrize("side", ["right", "left"])
def test_pixels_are_those_of_the_photo(tmp_path, side):
    """A left hand is mirrored for the network, and what is in pixels is mirrored back."""
    frames = draw_frames(5, seed=3, side=side)
    found = predictions({("open-rhd", "evaluation"): load_crops(frames, side, 32, cache=tmp_path)})
    for name in ("pixels", "true_pixels"):
        np.testing.assert_allclose(found[name], [f.joints_2d for f in frames], atol=1e-3)
    assert (found["mirrored"] == (side == "left")).all()


def test_a_known_error_is_measured_in_millimetres(sets):
    """Every joint but the wrist moved by 30 mm: 20 of 21 joints cross at 30 mm."""

    def move(answer):
        answer["joints_3d"][:, 1:, 2] += 0.030

    table = scored(predictions(sets, change=move))
    for metric in ("epe_mean", "epe_median"):
        assert table.value[metric] == pytest.approx(30 * 20 / 21, rel=1e-4)
    grid = protocols.PAPER.grid
    steps = np.where(grid >= 30, 1, 1 / 21)
    assert table.value["auc"] == pytest.approx(np.trapezoid(steps, grid) / 30, rel=1e-4)
    assert table.value["auc_2d"] == 1 and table.value["epe_2d"] < 1e-3
    assert (table.n == 10).all()


def test_masks_are_compared_where_there_are_labels(sets):
    nothing = predictions(sets, change=lambda answer: answer["mask"].zero_())
    assert scored(nothing).value["miou"] == 0
    found = predictions(sets, change=lambda answer: answer["mask"].fill_(1))
    hand = found["example_masks"].mean((1, 2))  # of the whole image: its IoU with the hand
    np.testing.assert_allclose(found["iou"][found["examples"]], hand)
    np.testing.assert_array_equal(found["iou_background"], 0)
    assert scored(predictions(sets)).value["miou"] > 0.5
    for without in (predictions(sets, "open-stb"), predictions(sets, mask=False)):
        assert "miou" not in scored(without).index


def test_sets_without_wrists_are_aligned_by_their_tips(sets):
    found = predictions(sets, "open-dexter", noise=0.01)
    assert scores.main_protocol(found) == protocols.TIPS
    assert "centroid" in scored(found).protocol["auc"]
    errors = scores.errors(found, protocols.TIPS)
    assert (np.isfinite(errors) == np.isin(np.arange(21), TIPS)).all()
    means = scores.row_means(np.vstack([errors, np.full(21, np.nan)]))
    np.testing.assert_allclose(means, [*np.nanmean(errors, axis=1), np.nan])


def test_the_mean_over_seeds(sets):
    runs = [predictions(sets, noise=n, seed=s) for s, n in ((0, 0.01), (1, 0.03))]
    both, one, two = scored(*runs), scored(runs[0]), scored(runs[1])
    np.testing.assert_allclose(both.value, (one.value + two.value) / 2, rtol=1e-5)
    # The seeds are worlds apart, and so must the interval be.
    assert both.ci_low["epe_mean"] < one.value["epe_mean"] * 1.1
    assert both.ci_high["epe_mean"] > two.value["epe_mean"] * 0.9
    assert both.seeds["auc"] == "0 1"
    runs[1]["keys"] = runs[1]["keys"][::-1]
    with pytest.raises(HamrError, match="different images"):
        scored(*runs)


@pytest.mark.parametrize("name, palm, camera", [
    ("open-stb", RING_MCP, ", SK camera"), ("open-rhd", MIDDLE_MCP, ""),
])  # fmt: skip
def test_the_palm_and_the_camera_are_those_of_the_set(sets, name, palm, camera):
    """STB's palm follows its wrist's rule, and its protocol's name tells the camera."""
    found = predictions(sets, name, noise=0.02)
    assert found["palm"].tolist() == [palm, 2.0]
    assert scored(found).protocol["auc_hand3d"] == protocols.HAND3D.name + camera
    errors = protocols.joint_errors_3d(
        *(found[key] for key in ("joints_3d", "true_joints_3d", "valid_3d")),
        protocols.HAND3D, found["visible"], (palm, 2.0),
    )  # fmt: skip
    np.testing.assert_array_equal(scores.errors(found, protocols.HAND3D), errors)
    other = scores.errors(found | {"palm": (5, 2.0)}, protocols.HAND3D)
    assert np.abs(other - errors).max() > 1


def test_a_curve_has_its_own_auc_as_area(sets):
    found = predictions(sets, noise=0.02)
    pck, (low, high) = scores.curve([found], protocols.PAPER, SETTINGS.evaluate)
    table = scored(found)
    assert metrics.auc(pck, protocols.PAPER.grid) == pytest.approx(table.value["auc"], abs=1e-6)
    for a, b, c in ((low, pck, high), (table.ci_low, table.value, table.ci_high)):
        assert (a <= b + 1e-6).all() and (b <= c + 1e-6).all()


def test_the_network_is_run_as_it_is(sets, tmp_path, capsys):
    """Same predictions twice (no dropout), with masks, and through the run's files."""
    torch.manual_seed(0)
    network = HAMR(SETTINGS.model, TinyHand())
    rhd = {key: crops for key, crops in sets.items() if key[0] == "open-rhd"}
    run = tmp_path / "no-silhouette-s0"
    table = scores.evaluate_network(network, SETTINGS, run, rhd)
    assert {"auc", "auc_2d_heatmaps", "miou"} <= set(table.metric)
    again = scores.evaluate_network(network.train(), SETTINGS, tmp_path / "main", rhd)
    pd.testing.assert_series_equal(table.value, again.value)
    assert set(table.method) == {"no-silhouette"} and set(again.method) == {"main"}
    assert "10 images, 0 of them unscored; 0 of 210 joints" in capsys.readouterr().out
    saved, found = (
        predict.load_predictions(predict.predictions_path(folder, "open-rhd"))
        for folder in (run, tmp_path / "main")
    )
    assert not len(saved["examples"]) and found["example_vertices"].shape == (8, 84, 3)
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
        predictions(sets, change=spoil)


def test_merging_keeps_measured_and_published_apart(results, tmp_path):
    merged = scores.read_rows(results / "metrics.csv")
    measured, literature = (merged[merged.source == kind] for kind in ("measured", "published"))
    assert len(measured) + len(literature) == len(merged)
    assert measured.dataset.map(scores.is_stand_in).all()
    assert {"main", "full", "no-mesh", "mean-pose"} <= set(measured.method)
    known = literature.set_index(["method", "dataset", "metric"]).value
    assert known["HAMR", "RHD", "miou"] == 0.931 and known["PSO", "STB", "auc"] == 0.709
    assert known.index.is_unique and known.between(0.5, 1).all()
    assert literature.commit.isna().all()


def test_missing_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    for read, path, message in (
        (scores.merge_metrics, tmp_path, "no runs"),
        (predict.load_predictions, tmp_path / "predictions-none.npz", "none.npz is missing"),
        (scores.read_rows, tmp_path / "none.csv", "none.csv is missing"),
        (scores.read_rows, tmp_path / "metrics.csv", "expected the columns"),
    ):
        with pytest.raises(HamrError, match=message):
            read(path)
