"""Fig. 4, 5, 9 and 10: recovered meshes and masks, of evenly spaced test images."""

from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.spatial.transform import Rotation

from hamr_lib.errors import HamrError
from hamr_lib.evaluation.scores import errors, main_protocol, row_means
from hamr_lib.render import render
from hamr_lib.report.results import find_set, method_predictions, run_predictions
from hamr_lib.report.style import COLOURS, WIDTH, save_figure, set_title, styled
from hamr_lib.variants import LABELS

SKIN = (0.45, 0.65, 0.85)  # of drawn meshes; unlike any real skin
# What the parts of a mask are painted in, over a grey image.
AGREEMENT = {"agreement": COLOURS[0], "missed": COLOURS[5], "not the hand": COLOURS[3]}
TILE = 160  # pixels a side of a small picture
# Turns of a mesh: an axis of the camera's frame, and degrees.
SIDES = {"left": ("y", 60), "right": ("y", -60), "above": ("x", -90)}


@styled
def fig4(results_dir: Path, count: int = 8) -> Figure:
    """Draw Fig. 4: recovered meshes over the image and from three more sides, `count` a set."""
    sets = run_predictions(results_dir / "runs" / "main")
    chosen = [sets[find_set(sets, kind)] for kind in ("stb", "rhd")]
    return _mesh_figure(results_dir, chosen, count, "fig4_meshes")


@styled
def fig9(results_dir: Path, count: int = 8) -> Figure:
    """Draw Fig. 9: the same on Dexter+Object (or its stand-in), which nothing was trained on."""
    sets = run_predictions(results_dir / "runs" / "main")
    dataset = find_set(sets, "dexter")
    return _mesh_figure(results_dir, [sets[dataset]], count, "fig9_dexter", dataset=dataset)


@styled
def fig5(results_dir: Path, count: int = 8) -> Figure:
    """Draw Fig. 5: images, and the masks that the recovered meshes cast."""
    names = {"image": "image", "label": "label mask", "mesh": "mask of mesh"}
    rows, tables = [], []
    for dataset, found in run_predictions(results_dir / "runs" / "main").items():
        table = _examples(found, count)
        for what, name in names.items():
            if what != "label" or found["example_masks"].any():
                rows.append((f"{dataset}\n{name}", [_tile(found, i, what) for i in table.index]))
        tables.append(table)
    fig = _rows_of_tiles(rows)
    return save_figure(fig, pd.concat(tables), results_dir / "figures", "fig5_masks")


@styled
def fig10(results_dir: Path, count: int = 8) -> Figure:
    """Draw Fig. 10: segmentation by every method that gives a mask, against the label."""
    methods = method_predictions(results_dir)
    masked = [d for d, found in methods["main"].items() if found["example_masks"].any()]
    if not masked:
        raise HamrError(f"{results_dir}: no test set has masks, so there is no Fig. 10")
    main = methods["main"][masked[0]]
    shown = _examples(main, count).index
    rows = [("image", [_tile(main, i, "image") for i in shown])]
    tables, notes = [], [[""] * len(shown)]
    for name, sets in methods.items():
        found = sets[masked[0]]
        if "example_predicted" in found:
            table = _examples(found, count)
            rows.append((LABELS.get(name, name), [_tile(found, i, "agreement") for i in shown]))
            notes.append([f"IoU {v:.2f}" for v in table.iou])
            tables.append(table)
    fig = _rows_of_tiles(rows, notes)
    patches = [Patch(color=colour, label=name) for name, colour in AGREEMENT.items()]
    place = {"loc": "upper center", "bbox_to_anchor": (0.55, -0.03)}
    fig.legend(handles=patches, ncols=3, frameon=False, **place)
    out_dir = results_dir / "figures"
    return save_figure(fig, pd.concat(tables), out_dir, "fig10_segments", dataset=masked[0])


def _mesh_figure(results_dir, sets, count, name, **words):
    """Blocks of examples, two a row, each with its views."""
    blocks, tables = [], []
    for found in sets:
        if "example_vertices" not in found:
            dataset = found["dataset"]
            raise HamrError(f"{results_dir}: the main run predicts no mesh for {dataset}")
        table = _examples(found, count)
        views = ("image", "overlay", *SIDES)
        tiles = [np.hstack([_tile(found, i, view) for view in views]) for i in table.index]
        notes = [f"{error:.0f} mm" for error in table.error_mm]
        blocks.append((set_title(str(found["dataset"])), tiles, notes))
        tables.append(table)
    # Inches: a row of pictures with its note, and the title of a block.
    row, title = WIDTH / 10 + 0.2, 0.25
    heights = [row * -(-len(tiles) // 2) + title for _, tiles, _ in blocks]
    fig = plt.figure(figsize=(WIDTH, sum(heights)))
    panels = fig.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, height, (heading, tiles, notes) in zip(panels, heights, blocks, strict=True):
        panel.suptitle(heading, fontsize=8, y=1 - 0.04 / height, va="top")
        axes = panel.subplots(-(-len(tiles) // 2), 2, squeeze=False)
        panel.subplots_adjust(0.005, 0.17 / height, 0.995, 1 - title / height, 0.02, 0.25)
        for ax in axes.flat:
            ax.axis("off")
        for ax, tile, note in zip(axes.flat, tiles, notes, strict=False):
            ax.imshow(tile)
            _note(ax, 0.5, -0.02, note, ha="center", va="top")
    return save_figure(fig, pd.concat(tables), results_dir / "figures", name, **words)


def _rows_of_tiles(rows, notes=None):
    """A grid of pictures: (label, tiles) a row, and optionally a note under each tile."""
    columns = max(len(tiles) for _, tiles in rows)
    height = ((WIDTH - 1.0) / columns + (0.17 if notes else 0.04)) * len(rows)
    fig, axes = plt.subplots(len(rows), columns, figsize=(WIDTH, height), squeeze=False)
    fig.subplots_adjust(1.0 / WIDTH, 0.01, 0.995, 0.995, 0.04, 0.25 if notes else 0.04)
    for r, (label, tiles) in enumerate(rows):
        _note(axes[r, 0], -0.08, 0.5, label, ha="right", va="center")
        for ax in axes[r]:
            ax.axis("off")
        for c, tile in enumerate(tiles):
            axes[r, c].imshow(tile)
            if notes:
                _note(axes[r, c], 0.5, -0.04, notes[r][c], ha="center", va="top")
    return fig


def _note(ax, x, y, text, **align):
    ax.text(x, y, text, transform=ax.transAxes, fontsize=7, **align)


def _examples(found, count):
    """Tabulate up to `count` of the kept examples, evenly spaced, by their place among these."""
    dataset, kept = str(found["dataset"]), len(found.get("examples", ()))
    if not kept:
        raise HamrError(f"the predictions for {dataset} keep no examples (evaluate.examples is 0)")
    shown = np.unique(np.linspace(0, kept - 1, min(count, kept)).round().astype(int))
    images = found["examples"][shown]
    table = {
        "dataset": dataset,
        "method": str(found["method"]),
        "image": found["keys"][images],
        "error_mm": row_means(errors(found, main_protocol(found))[images]),
        "iou": found["iou"][images],
    }
    return pd.DataFrame(table, index=shown)


def _tile(found, i, what):
    """One small picture (TILE, TILE, 3) in [0, 1], left hands turned back."""
    image = _resized(found["example_images"][i] / 255.0)
    if what == "image":
        tile = image
    elif what == "agreement":  # misses and false alarms in colour over the dimmed image
        predicted, true = (
            _resized(found[name][i], cv2.INTER_NEAREST) > 0
            for name in ("example_predicted", "example_masks")
        )
        tile = (0.35 * image.mean(-1, keepdims=True) + 0.6).repeat(3, 2)
        parts = (predicted & true, ~predicted & true, predicted & ~true)
        for where, colour in zip(parts, AGREEMENT.values(), strict=True):
            tile[where] = 0.35 * tile[where] + 0.65 * np.array(to_rgb(colour))
    elif what in ("label", "mesh"):
        mask = found["example_masks" if what == "label" else "example_predicted"][i]
        tile = _resized(mask, cv2.INTER_NEAREST)[..., None].repeat(3, 2)
    else:
        vertices, background = found["example_vertices"][i].astype(float), image
        camera = found["camera"][found["examples"][i]]
        if what in SIDES:
            turn = Rotation.from_euler(*SIDES[what], degrees=True).as_matrix()
            vertices = (vertices - vertices.mean(0)) @ turn.T
            low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
            scale = 1.8 / (high - low).max()  # all of it, with a little air
            camera = np.array([scale, *(-scale * (low + high) / 2)])
            background = (1.0, 1.0, 1.0)
        tile = render(
            vertices, found["faces"], camera, TILE, colour=SKIN, background=background,
            supersample=2, cull=False,  # the wrist is open: its inside is seen from behind
        ).colour  # fmt: skip
    return tile[:, ::-1] if found["mirrored"][found["examples"][i]] else tile


def _resized(image, how=None):
    """(S, S) or (S, S, 3) in [0, 1] -> the same at TILE pixels a side."""
    if how is None:
        how = cv2.INTER_AREA if len(image) > TILE else cv2.INTER_CUBIC
    image = np.ascontiguousarray(image, np.float32)
    return cv2.resize(image, (TILE, TILE), interpolation=how).clip(0, 1)
