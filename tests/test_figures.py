"""Every figure from saved results alone: its four files, its numbers, and its words."""

import dataclasses
import shutil

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from saved_results import SETS, SETTINGS
from tiny import TinyHand

from hamr_lib.errors import HamrError
from hamr_lib.evaluation import predict, protocols, scores
from hamr_lib.model.blocks import describe_blocks
from hamr_lib.model.hamr import HAMR
from hamr_lib.report import figures, meshes, tables
from hamr_lib.variants import LABELS

DRAWN = {
    "fig4_meshes": lambda r: figures.fig4(r, 4),
    "fig5_masks": lambda r: figures.fig5(r, 4),
    "fig6_pck_3d": lambda r: figures.fig6(r, SETTINGS),
    "fig7_pck_2d": lambda r: figures.fig7(r, SETTINGS),
    "fig8_ablations": lambda r: figures.fig8(r, SETTINGS),
    "ablations": lambda r: figures.ablations(r, SETTINGS),
    "fig9_dexter": lambda r: figures.fig9(r, 4),
    "fig10_segments": lambda r: figures.fig10(r, 4),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def load(results, run, dataset):
    return predict.load_predictions(predict.predictions_path(results / "runs" / run, dataset))


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_leaves_four_files_and_names_its_stand_ins(results, name):
    fig = DRAWN[name](results)
    folder = results / "figures"
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
    assert image.std() > 10  # not a blank page
    assert pd.read_csv(folder / f"{name}.csv").dataset.map(scores.is_stand_in).all()
    caption = (folder / f"{name}.md").read_text()
    assert "rendered stand-ins" in caption and caption.startswith("**Fig. ")
    texts = [t for t in fig.findobj(matplotlib.text.Text) if t.get_text()]
    assert min(t.get_fontsize() for t in texts) >= 7
    for title in (ax.get_title() for ax in fig.axes):
        assert not title.startswith("open-") or title.endswith("(rendered stand-in)")


def test_plotted_numbers_are_those_of_the_lines(results):
    fig = figures.fig6(results, SETTINGS)
    data = pd.read_csv(results / "figures" / "fig6_pck_3d.csv")
    assert "published" not in set(data.kind)
    scored = scores.read_rows(results / "metrics.csv").query("metric == 'auc'")
    scored = scored[scored.source == "measured"].set_index(["dataset", "method"]).value
    for ax, dataset in zip(fig.axes, SETS, strict=True):
        for line, method in zip(ax.get_lines(), ["main", "mean-pose", "untrained"], strict=True):
            rows = data[(data.dataset == dataset) & (data.method == method)]
            np.testing.assert_allclose(line.get_xdata(), rows.threshold, rtol=1e-5)
            np.testing.assert_allclose(line.get_ydata(), rows.pck, rtol=1e-5)
            area = rows.value.iloc[0]
            assert f"{LABELS[method]} {area:.3f}" in [t.get_text() for t in ax.texts]
            assert area == pytest.approx(scored[dataset, method], abs=1e-5)


def test_published_numbers_stand_under_real_sets_only(results, tmp_path):
    names = {"open-stb": "STB", "open-rhd": "RHD", "open-dexter": "Dexter+Object"}
    run = tmp_path / "runs" / "main"
    for stand_in, real in names.items():
        found = load(results, "main", stand_in) | {"dataset": np.array(real)}
        predict.save_predictions(predict.predictions_path(run, real), found)
    fig = figures.fig6(tmp_path, SETTINGS)
    data = pd.read_csv(tmp_path / "figures" / "fig6_pck_3d.csv")
    listed = data[data.kind == "published"]
    table = scores.published().query("metric == 'auc'")
    assert len(listed) == len(table) and listed.pck.isna().all()
    assert sum(len(ax.get_lines()) for ax in fig.axes) == 3  # published numbers are no curves
    assert any("Zimmermann & Brox 0.948" in t.get_text() for t in fig.axes[0].texts)
    assert "stand-in" not in (tmp_path / "figures" / "fig6_pck_3d.md").read_text()


def test_fig_6_shows_the_best_methods(results, tmp_path):
    """Eight methods, the seventh and eighth with the lowest AUC, whose names are not drawn."""
    (tmp_path / "runs").symlink_to(results / "runs")
    for name in ("hmr", "pavlakos", "bodynet", "iqbal", "boukhayma", "smplify", "mean-pose"):
        quality = "untrained" if name in ("smplify", "mean-pose") else "mean-pose"
        shutil.copytree(results / "comparisons" / quality, tmp_path / "comparisons" / name)
    for ax in figures.fig6(tmp_path, SETTINGS).axes:
        assert len(ax.get_lines()) == len(ax.texts) == figures.LINES
        assert not any("SMPLify" in t.get_text() or "mean" in t.get_text() for t in ax.texts)


def test_the_ablations_are_means_over_seeds(results):
    figures.fig8(results, SETTINGS)
    data = pd.read_csv(results / "figures" / "fig8_ablations.csv")
    assert set(data.method) == {"full", "no-mesh", "no-camera"}
    curves = []
    for seed in (0, 1):
        found = load(results, f"no-mesh-s{seed}", "open-rhd")
        errors = scores.errors(found, protocols.PAPER)
        curves.append([np.mean(errors <= t) for t in protocols.PAPER.grid])
    rows = data[(data.dataset == "open-rhd") & (data.method == "no-mesh")]
    np.testing.assert_allclose(rows.pck, np.mean(curves, axis=0), atol=1e-5)
    assert "from 2 seeds" in (results / "figures" / "fig8_ablations.md").read_text()


def test_a_left_hand_is_shown_as_a_left_hand(results):
    """The crop was mirrored for the network; the picture of it must not be."""
    found = load(results, "main", "open-dexter")
    assert found["mirrored"].all()
    for what in ("image", "overlay", "left", "mesh"):
        shown = meshes._tile(found, 0, what)
        straight = meshes._tile(found | {"mirrored": ~found["mirrored"]}, 0, what)
        np.testing.assert_array_equal(shown, straight[:, ::-1])


def test_an_overlay_lies_where_the_camera_says(results):
    """Blue where the mesh projects to, and the photo where it does not."""
    found = load(results, "main", "open-rhd")
    overlay, image = (meshes._tile(found, 0, what) for what in ("overlay", "image"))
    changed = np.abs(overlay - image).max(-1) > 0.1
    flat = 9.0 * found["example_vertices"][0][:, :2] + [0, 0.7]
    pixels = ((flat + 1) * meshes.TILE - 1) / 2
    inside = (pixels > 2).all(1) & (pixels < meshes.TILE - 3).all(1)
    low, high = pixels[inside].min(0), pixels[inside].max(0)
    rows, columns = np.nonzero(changed)
    assert abs(columns.min() - low[0]) < 3 and abs(columns.max() - high[0]) < 3
    assert rows.min() >= low[1] - 3 and rows.max() <= high[1] + 3


def test_labels_never_overlap():
    fig, ax = plt.subplots()
    ends = [(y, str(y), "k") for y in (0.99, 0.985, 0.98, 0.2, 0.19, 1.0, 0.0)]
    figures._label_ends(ax, ends)
    places = sorted(t.xyann[1] for t in ax.texts)
    assert np.diff(places).min() > 0.0849 and places[0] >= 0 and places[-1] <= 1 + 1e-9
    order = [float(t.get_text()) for t in sorted(ax.texts, key=lambda t: t.xyann[1])]
    assert order == sorted(order)


def test_the_network_is_drawn_from_its_modules(tmp_path):
    network = HAMR(dataclasses.replace(SETTINGS.model, joint_features=True), TinyHand())
    fig = figures.fig2(network, tmp_path)
    data = pd.read_csv(tmp_path / "fig2_network.csv")
    assert list(data.block) == [name for name, _, _ in describe_blocks(network)]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert data.parameters.sum() == trained
    assert set(data.block) <= {t.get_text() for ax in fig.axes for t in ax.texts}
    figures.fig3(network, tmp_path)
    assert pd.read_csv(tmp_path / "fig3_regression.csv").numbers.sum() == 22  # the paper's count


@pytest.mark.parametrize("draw, message", [
    (lambda r: figures.fig6(r, SETTINGS), "runs/main holds no predictions"),
    (lambda r: figures.training_curves(r / "log.csv"), "log.csv is missing"),
    (tables.results, "metrics.csv is missing"),
    (tables.protocols, "protocols.csv is missing"),
    (tables.evidence, "evidence.csv is missing"),
    (lambda r: tables.time_to_accuracy(r, SETTINGS), "log.csv is missing"),
    (lambda r: tables.ablations(r, SETTINGS), "full-s0 holds no predictions"),
    (lambda r: tables.along_training(r, SETTINGS), "full-s0/validation.npz is missing"),
])  # fmt: skip
def test_missing_results_are_named(tmp_path, draw, message):
    with pytest.raises(HamrError, match=message):
        draw(tmp_path)


def test_missing_sets_and_meshes_are_named(results, tmp_path):
    run = tmp_path / "runs" / "main"
    found = load(results, "no-mesh-s0", "open-stb")
    predict.save_predictions(predict.predictions_path(run, "open-stb"), found)
    with pytest.raises(HamrError, match="no predictions for 'rhd', only for open-stb"):
        figures.fig4(tmp_path)
    found |= {"dataset": np.array("open-dexter")}
    predict.save_predictions(predict.predictions_path(run, "open-dexter"), found)
    with pytest.raises(HamrError, match="no mesh for open-dexter"):
        figures.fig9(tmp_path)
    assert not (tmp_path / "figures").exists()
