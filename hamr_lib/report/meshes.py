"""Fig. 4, 5, 9 and 10: recovered meshes and masks, of evenly spaced test images."""

from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hamr_lib.errors import HamrError
from hamr_lib.evaluation.scores import errors_3d, main_protocol
from hamr_lib.render import render
from hamr_lib.report.results import find_set, method_predictions, run_predictions
from hamr_lib.report.style import COLOURS, WIDTH, caption, save_figure, set_title, styled
from hamr_lib.variants import LABELS

SKIN = (0.45, 0.65, 0.85)  # of drawn meshes; unlike any real skin
# What the parts of a mask are painted in, over a grey image.
AGREEMENT = {"agreement": COLOURS[0], "missed": COLOURS[5], "not the hand": COLOURS[3]}
TILE = 160  # pixels a side of a small picture


@styled
def fig4(results_dir: Path, count: int = 8) -> Figure:
    """Fig. 4: recovered meshes over the image and from three more sides, `count` a set."""
    sets = run_predictions(results_dir / "runs" / "main")
    chosen = {find_set(sets, kind): sets[find_set(sets, kind)] for kind in ("stb", "rhd")}
    return _mesh_figure(results_dir, chosen, count, caption("fig4"), "fig4_meshes")


@styled
def fig9(results_dir: Path, count: int = 8) -> Figure:
    """Fig. 9: the same on Dexter+Object (or its stand-in), which nothing was trained on."""
    sets = run_predictions(results_dir / "runs" / "main")
    dataset = find_set(sets, "dexter")
    text = caption("fig9", dataset=dataset)
    return _mesh_figure(results_dir, {dataset: sets[dataset]}, count, text, "fig9_dexter")


@styled
def fig5(results_dir: Path, count: int = 8) -> Figure:
    """Fig. 5: images, and the masks that the recovered meshes cast."""
    sets = run_predictions(results_dir / "runs" / "main")
    rows, tables = [], []
    for dataset, found in sets.items():
        shown = _evenly_spaced(found, count, dataset)
        labelled = bool(found["example_masks"].any())
        for what in ("image", "label") if labelled else ("image",):
            rows.append((dataset, what, [_tile(found, i, what) for i in shown]))
        rows.append((dataset, "mesh", [_tile(found, i, "mesh") for i in shown]))
        tables.append(_example_table(dataset, found, shown))
    names = {"image": "image", "label": "label mask", "mesh": "mask of mesh"}
    fig = _rows_of_tiles([(f"{d}\n{names[what]}", tiles) for d, what, tiles in rows])
    text = caption("fig5")
    return save_figure(fig, pd.concat(tables), text, results_dir / "figures", "fig5_masks")


@styled
def fig10(results_dir: Path, count: int = 8) -> Figure:
    """Fig. 10: segmentation by every method that gives a mask, against the label."""
    methods = method_predictions(results_dir)
    masked = [d for d, found in methods["main"].items() if found["example_masks"].any()]
    if not masked:
        raise HamrError(f"{results_dir}: no test set has masks, so there is no Fig. 10")
    found = methods["main"][masked[0]]
    shown = _evenly_spaced(found, count, masked[0])
    rows = [("image", [_tile(found, i, "image") for i in shown])]
    tables, notes = [], [[""] * len(shown)]
    for name, sets in methods.items():
        if "example_predicted" in sets[masked[0]]:
            theirs = sets[masked[0]]
            table = _example_table(masked[0], theirs, shown)
            rows.append((LABELS.get(name, name), [_agreement(theirs, i) for i in shown]))
            notes.append([f"IoU {v:.2f}" for v in table.iou])
            tables.append(table)
    fig = _rows_of_tiles(rows, notes)
    patches = [Patch(color=colour, label=name) for name, colour in AGREEMENT.items()]
    fig.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.55, -0.03), ncols=3,
               frameon=False)  # fmt: skip
    text = caption("fig10", dataset=masked[0])
    return save_figure(fig, pd.concat(tables), text, results_dir / "figures", "fig10_segments")


def _mesh_figure(results_dir, sets, count, caption, name):
    """Blocks of examples, two a row, each with its views."""
    views = ("image", "overlay", "left", "right", "above")
    blocks, tables = [], []
    for dataset, found in sets.items():
        if "example_vertices" not in found:
            raise HamrError(f"{results_dir}: the main run predicts no mesh for {dataset}")
        shown = _evenly_spaced(found, count, dataset)
        table = _example_table(dataset, found, shown)
        tables.append(table)
        tiles = [np.hstack([_tile(found, i, view) for view in views]) for i in shown]
        blocks.append((dataset, tiles, [f"{e:.0f} mm" for e in table.error_mm]))
    # Inches: a row of pictures with its note, and the title of a block.
    row, title = WIDTH / 10 + 0.2, 0.25
    heights = [row * -(-len(tiles) // 2) + title for _, tiles, _ in blocks]
    fig = plt.figure(figsize=(WIDTH, sum(heights)))
    panels = fig.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, height, (dataset, tiles, notes) in zip(panels, heights, blocks, strict=True):
        panel.suptitle(set_title(dataset), fontsize=8, y=1 - 0.04 / height, va="top")
        axes = panel.subplots(-(-len(tiles) // 2), 2, squeeze=False)
        panel.subplots_adjust(0.005, 0.17 / height, 0.995, 1 - title / height, 0.02, 0.25)
        for ax in axes.flat:
            ax.axis("off")
        for ax, tile, note in zip(axes.flat, tiles, notes, strict=False):
            ax.imshow(tile)
            ax.text(0.5, -0.02, note, transform=ax.transAxes, ha="center", va="top", fontsize=7)
    return save_figure(fig, pd.concat(tables), caption, results_dir / "figures", name)


def _rows_of_tiles(rows, notes=None):
    """A grid of pictures: (label, tiles) a row, and optionally a note under each tile."""
    columns = max(len(tiles) for _, tiles in rows)
    side = (WIDTH - 1.0) / columns
    step = side + (0.17 if notes else 0.04)
    fig, axes = plt.subplots(len(rows), columns, figsize=(WIDTH, step * len(rows)), squeeze=False)
    fig.subplots_adjust(1.0 / WIDTH, 0.01, 0.995, 0.995, 0.04, 0.04 if not notes else 0.25)
    for r, (label, tiles) in enumerate(rows):
        axes[r, 0].text(-0.08, 0.5, label, transform=axes[r, 0].transAxes, ha="right",
                        va="center", fontsize=7)  # fmt: skip
        for c, ax in enumerate(axes[r]):
            ax.axis("off")
            if c < len(tiles):
                ax.imshow(tiles[c])
                if notes and notes[r][c]:
                    ax.text(0.5, -0.04, notes[r][c], transform=ax.transAxes, ha="center",
                            va="top", fontsize=7)  # fmt: skip
    return fig


def _evenly_spaced(found, count, dataset):
    """Which of the kept examples to show: (up to count,) evenly spaced."""
    kept = len(found.get("examples", ()))
    if not kept:
        raise HamrError(f"the predictions for {dataset} keep no examples (evaluate.examples is 0)")
    return np.unique(np.linspace(0, kept - 1, min(count, kept)).round().astype(int))


def _example_table(dataset, found, shown):
    """What the shown examples are, and how well each fits."""
    images = found["examples"][shown]
    with np.errstate(invalid="ignore"):
        error = [np.nanmean(e) if np.isfinite(e).any() else np.nan
                 for e in errors_3d(found, main_protocol(found))[images]]  # fmt: skip
    return pd.DataFrame({
        "dataset": dataset,
        "method": str(found["method"]),
        "image": found["keys"][images],
        "error_mm": error,
        "iou": found["iou"][images],
    })  # fmt: skip


def _tile(found, i, what):
    """One small picture (TILE, TILE, 3) in [0, 1], left hands turned back."""
    image = found["example_images"][i] / 255.0
    if what == "image":
        tile = _resized(image)
    elif what in ("label", "mesh"):
        mask = found["example_masks" if what == "label" else "example_predicted"][i]
        tile = _resized(mask, cv2.INTER_NEAREST)[..., None].repeat(3, 2)
    else:
        vertices, faces = found["example_vertices"][i].astype(float), found["faces"]
        if what == "overlay":
            camera, background = found["camera"][found["examples"][i]], _resized(image)
        else:
            vertices = (vertices - vertices.mean(0)) @ _turned(what).T
            camera, background = _fitting_camera(vertices), (1.0, 1.0, 1.0)
        tile = render(
            vertices, faces, camera, TILE, colour=SKIN, background=background, supersample=2,
            cull=False,  # the wrist is open: its inside is seen from behind
        ).colour  # fmt: skip
    return tile[:, ::-1] if found["mirrored"][found["examples"][i]] else tile


def _agreement(found, i):
    """The dimmed image with agreement, misses and false alarms coloured."""
    image = found["example_images"][i] / 255.0
    tile = 0.35 * _resized(image).mean(-1, keepdims=True) + 0.6
    tile = tile.repeat(3, 2)
    predicted, true = (
        _resized(found[name][i], cv2.INTER_NEAREST) > 0
        for name in ("example_predicted", "example_masks")
    )
    for where, colour in zip(
        (predicted & true, ~predicted & true, predicted & ~true), AGREEMENT.values(), strict=True
    ):
        tile[where] = 0.35 * tile[where] + 0.65 * np.array(to_rgb(colour))
    return tile[:, ::-1] if found["mirrored"][found["examples"][i]] else tile


def _resized(image, how=None):
    """(S, S) or (S, S, 3) in [0, 1] -> the same at TILE pixels a side."""
    if how is None:
        how = cv2.INTER_AREA if len(image) > TILE else cv2.INTER_CUBIC
    image = np.ascontiguousarray(image, np.float32)
    return cv2.resize(image, (TILE, TILE), interpolation=how).clip(0, 1)


def _turned(view):
    """(3, 3) rotation of a view: about the vertical axis, or about the horizontal one."""
    angle = np.deg2rad({"left": 60, "right": -60, "above": 90}[view])
    c, s = np.cos(angle), np.sin(angle)
    if view == "above":
        return np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _fitting_camera(vertices):
    """(3,) weak camera that shows all of a mesh with a little air."""
    low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
    scale = 1.8 / (high - low).max()
    return np.array([scale, *(-scale * (low + high) / 2)])
