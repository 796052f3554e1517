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
from hamr_lib.render.draw2d import fit
from hamr_lib.report.results import find_set, method_runs, run_predictions
from hamr_lib.report.style import WIDTH, save_figure, set_title, styled
from hamr_lib.variants import LABELS

SKIN = (0.45, 0.65, 0.85)  # of drawn meshes; unlike any real skin
# What the parts of a mask are painted in, over a grey image.
AGREEMENT = {"agreement": "#0072B2", "missed": "#E69F00", "not the hand": "#CC79A7"}
TILE = 160  # pixels a side of a small picture
# Turns of a mesh: an axis of the camera's frame, and degrees.
SIDES = {"left": ("y", 60), "right": ("y", -60), "above": ("x", -90)}


@styled
def fig4(results_dir: Path, count: int = 8) -> Figure:
    """Draw Fig. 4: recovered meshes over the image and from three more sides, `count` a set."""
    return _mesh_figure(results_dir, ("stb", "rhd"), count, "fig4_meshes")


@styled
def fig9(results_dir: Path, count: int = 8) -> Figure:
    """Draw Fig. 9: the same on Dexter+Object (or its stand-in), which nothing was trained on."""
    return _mesh_figure(results_dir, ("dexter",), count, "fig9_dexter")


@styled
def fig5(results_dir: Path, count: int = 8) -> Figure:
    """Draw Fig. 5: images, and the masks that the recovered meshes cast."""
    names = {"image": "image", "label": "label mask", "mesh": "mask of mesh"}
    rows, tables = [], []
    for dataset, found in run_predictions(results_dir / "runs" / "main").items():
        tables.append(_examples(found, count))
        for what, name in names.items():
            if what != "label" or found["example_masks"].any():
                tiles = [draw_tile(found, i, what) for i in tables[-1].index]
                rows.append((f"{dataset}\n{name}", tiles, []))
    return save_figure(_grid(rows), pd.concat(tables), results_dir / "figures", "fig5_masks")


@styled
def fig10(results_dir: Path, count: int = 8) -> Figure:
    """Draw Fig. 10: segmentation by every method that gives a mask, against the label."""
    runs = method_runs(results_dir)
    masked = [d for d, (found,) in runs["main"].items() if found["example_masks"].any()]
    if not masked:
        raise HamrError(f"{results_dir}: no test set has masks, so there is no Fig. 10")
    rows, tables = [], []
    for name, sets in runs.items():
        (found,) = sets[masked[0]]
        if "example_predicted" in found:
            table = _examples(found, count)
            if not rows:
                rows.append(("image", [draw_tile(found, i, "image") for i in table.index], []))
            tiles = [draw_tile(found, i, "agreement") for i in table.index]
            rows.append((LABELS[name], tiles, [f"IoU {iou:.2f}" for iou in table.iou]))
            tables.append(table)
    fig = _grid(rows)
    patches = [Patch(color=colour, label=name) for name, colour in AGREEMENT.items()]
    fig.legend(handles=patches, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0))
    out_dir = results_dir / "figures"
    return save_figure(fig, pd.concat(tables), out_dir, "fig10_segments", dataset=masked[0])


def _mesh_figure(results_dir, kinds, count, name):
    """Examples of sets, two a row, each with its views."""
    sets, rows, tables, titles = run_predictions(results_dir / "runs" / "main"), [], [], {}
    for dataset in [find_set(sets, kind) for kind in kinds]:
        found = sets[dataset]
        if "example_vertices" not in found:
            raise HamrError(f"{results_dir}: the main run predicts no mesh for {dataset}")
        tables.append(_examples(found, count))
        titles[2 * len(rows)] = set_title(dataset)
        table = tables[-1]
        for pair in (table[k : k + 2] for k in range(0, len(table), 2)):
            views = [
                np.hstack([draw_tile(found, i, view) for view in ("image", "overlay", *SIDES)])
                for i in pair.index
            ]
            rows.append(("", views, [f"{error:.0f} mm" for error in pair.error_mm]))
    fig = _grid(rows)
    for place, title in titles.items():
        fig.axes[place].set_title(title, loc="left")
    out_dir = results_dir / "figures"
    return save_figure(fig, pd.concat(tables), out_dir, name, dataset=dataset)


def _grid(rows):
    """A grid of pictures of one shape: (label, pictures, a note under each or none) a row."""
    columns = max(len(pictures) for _, pictures, _ in rows)
    height, width = rows[0][1][0].shape[:2]
    wide = WIDTH - any(label for label, *_ in rows)  # inches, beside the labels
    tall = wide / columns * height / width * len(rows) + 0.18 * sum(bool(n) for *_, n in rows)
    options = {"figsize": (WIDTH, tall), "layout": "constrained", "squeeze": False}
    fig, axes = plt.subplots(len(rows), columns, **options)
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, hspace=0, wspace=0)
    plt.setp(axes, xticks=[], yticks=[], frame_on=False)
    for line, (label, pictures, notes) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for ax, picture in zip(line, pictures, strict=False):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
        for ax, note in zip(line, notes, strict=False):
            ax.set_xlabel(note, labelpad=1, fontsize=7)
    return fig


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


def draw_tile(found: dict, i: int, what: str) -> np.ndarray:
    """Draw the i-th example of a predictions dict; left hands are turned back.

    Args:
        what: "image", "label" or "mesh" (their masks), "agreement" of these, "overlay" of the mesh
            over the image, or one of `SIDES`.

    Returns:
        (TILE, TILE, 3) in [0, 1], a mask (TILE, TILE) bool.
    """
    image = fit(found["example_images"][i], TILE) / 255
    label, mesh = (
        cv2.resize(np.uint8(found[name][i]), (TILE, TILE), interpolation=cv2.INTER_NEAREST) > 0
        for name in ("example_masks", "example_predicted")
    )
    if what == "image":
        tile = image
    elif what in ("label", "mesh"):
        tile = label if what == "label" else mesh
    elif what == "agreement":  # the hand's and the mask's pixels in colour over the dimmed image
        grey = 0.35 * image.mean(-1, keepdims=True) + 0.6
        tints = np.array([to_rgb(colour) for colour in ("white", *AGREEMENT.values())])
        part = np.select([label & mesh, label, mesh], [1, 2, 3])
        tile = np.where(part[..., None] > 0, 0.35 * grey + 0.65 * tints[part], grey)
    else:
        vertices, faces = found["example_vertices"][i].astype(float), found["faces"]
        if what in SIDES:
            turn = Rotation.from_euler(*SIDES[what], degrees=True)
            tile = draw_turned(vertices, faces, turn, TILE, SKIN)
        else:
            camera = found["camera"][found["examples"][i]]
            tile = _draw(vertices, faces, camera, TILE, SKIN, background=image)
    return tile[:, ::-1] if found["mirrored"][found["examples"][i]] else tile


def draw_turned(
    vertices: np.ndarray, faces: np.ndarray, turn: Rotation, size: int, colour: tuple
) -> np.ndarray:
    """Draw a mesh, turned about its middle, at a scale at which every turn of it fits.

    Args:
        vertices, faces: (V, 3) metres and (F, 3).
        size: pixels a side.
        colour: RGB in [0, 1].

    Returns:
        (size, size, 3) in [0, 1].
    """
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    camera = np.array([0.97 / np.linalg.norm(vertices, axis=1).max(), 0.0, 0.0])
    return _draw(turn.apply(vertices), faces, camera, size, colour)


def _draw(*mesh, **options):
    # The wrist is open: its inside is seen from behind.
    return render(*mesh, supersample=2, cull=False, **options).colour
