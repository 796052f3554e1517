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
from hamr_lib.report import figures, meshes, style, tables
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


def test_plotted_numbers_are_those_of_the_lines_and_of_metrics_csv(results):
    fig = figures.fig6(results, SETTINGS)
    data = pd.read_csv(results / "figures" / "fig6_pck_3d.csv")
    scored = scores.read_rows(results / "metrics.csv").query("metric == 'auc'")
    scored = scored[scored.source == "measured"].set_index(["dataset", "method"]).value
    for ax, dataset in zip(fig.axes, SETS, strict=True):
        methods = data[data.dataset == dataset].groupby("method")
        for line, method in zip(ax.get_lines(), ["untrained", "mean-pose", "main"], strict=True):
            rows = methods.get_group(method)
            np.testing.assert_allclose(line.get_xydata(), rows[["threshold", "pck"]], rtol=1e-5)
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


def test_the_best_methods_are_shown_each_in_one_colour_and_with_its_name(results, tmp_path):
    """Eight methods, the seventh and eighth with the lowest AUC, whose names are not drawn."""
    (tmp_path / "runs").symlink_to(results / "runs")
    for name in ("hmr", "pavlakos", "bodynet", "iqbal", "boukhayma", "smplify", "mean-pose"):
        quality = "untrained" if name in ("smplify", "mean-pose") else "mean-pose"
        shutil.copytree(results / "comparisons" / quality, tmp_path / "comparisons" / name)
    colours = {}
    for ax in figures.fig6(tmp_path, SETTINGS).axes + figures.fig7(tmp_path, SETTINGS).axes:
        assert len(ax.get_lines()) == len(ax.texts) == figures.LINES
        for text in ax.texts:
            name = text.get_text().rpartition(" ")[0]
            assert colours.setdefault(name, text.get_color()) == text.get_color()
        places = sorted(text.xyann[1] for text in ax.texts)
        assert np.diff(places).min() > figures.GAP - 1e-9  # names do not overlap
        assert 0 <= places[0] and places[-1] <= 1 + 1e-9
    assert not {"SMPLify", "mean pose"} & colours.keys()
    assert len(set(colours.values())) == len(colours) == figures.LINES + 1  # with the heat maps


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


@pytest.mark.parametrize("what", ["image", "overlay", "left", "mesh"])
def test_a_left_hand_is_shown_as_a_left_hand(results, what):
    """The crop was mirrored for the network; the picture of it must not be."""
    found = load(results, "main", "open-dexter")
    assert found["mirrored"].all()
    straight = meshes.draw_tile(found | {"mirrored": ~found["mirrored"]}, 0, what)
    np.testing.assert_array_equal(meshes.draw_tile(found, 0, what), straight[:, ::-1])


def test_an_overlay_lies_where_the_camera_says(results):
    """Blue where the mesh projects to, and the photo where it does not."""
    found = load(results, "main", "open-rhd")
    overlay, image = (meshes.draw_tile(found, 0, what) for what in ("overlay", "image"))
    changed = np.abs(overlay - image).max(-1) > 0.1
    flat = 9.0 * found["example_vertices"][0][:, :2] + [0, 0.7]
    pixels = ((flat + 1) * meshes.TILE - 1) / 2
    inside = (pixels > 2).all(1) & (pixels < meshes.TILE - 3).all(1)
    low, high = pixels[inside].min(0), pixels[inside].max(0)
    rows, columns = np.nonzero(changed)
    assert abs(columns.min() - low[0]) < 3 and abs(columns.max() - high[0]) < 3
    assert rows.min() >= low[1] - 3 and rows.max() <= high[1] + 3


def test_the_network_is_drawn_from_its_modules(tmp_path):
    network = HAMR(dataclasses.replace(SETTINGS.model, joint_features=True), TinyHand())
    fig = figures.fig2(network, tmp_path)
    data = pd.read_csv(tmp_path / "fig2_network.csv")
    assert list(data.block) == [name for name, _, _ in describe_blocks(network)]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert data.parameters.sum() == trained
    assert set(data.block) <= {t.get_text() for ax in fig.axes for t in ax.texts}
    regression = figures.fig3(network, tmp_path)
    texts = [text for drawn in (fig, regression) for ax in drawn.axes for text in ax.texts]
    arrows = [text.arrow_patch for text in texts if getattr(text, "arrow_patch", None)]
    assert arrows and all(arrow.get_edgecolor()[:3] == (0, 0, 0) for arrow in arrows)
    assert pd.read_csv(tmp_path / "fig3_regression.csv").numbers.sum() == 22  # the paper's count


def test_a_png_is_left_alone_where_it_is_small_and_else_fits(tmp_path):
    path, noise = tmp_path / "figure.png", np.random.default_rng(0).normal(0, 20, (240, 320, 3))
    ramp = np.add.outer(np.linspace(0, 50, 240), np.linspace(0, 200, 320))[..., None]
    whole = Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8))
    whole.save(path)
    before = path.read_bytes()
    style.shrink_png(path, limit=len(before))
    assert path.read_bytes() == before
    style.shrink_png(path, limit=60_000)
    assert path.stat().st_size <= 60_000
    with Image.open(path) as small:
        assert small.width / small.height == pytest.approx(4 / 3, rel=0.02)
        both = [np.asarray(one.convert("RGB").resize((8, 6), Image.Resampling.BOX), float)
                for one in (small, whole)]  # fmt: skip
    assert np.abs(both[0] - both[1]).max() < 12  # of 255: what 256 colours cost


@pytest.mark.parametrize("draw, message", [
    (lambda r: figures.fig6(r, SETTINGS), "runs/main holds no predictions"),
    (lambda r: figures.training_curves(r / "log.csv"), "log.csv is missing"),
    (tables.results, "metrics.csv is missing"),
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
