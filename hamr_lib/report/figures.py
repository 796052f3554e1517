"""The paper's figures, drawn from saved results alone.

Each function draws one figure and leaves four files: PDF (vector), PNG, a CSV with exactly the
plotted numbers, and its caption as Markdown. Measured curves are solid with their 95 % band;
published figures, which are only ever shown for a real set, are listed in words and never drawn
as curves of ours. A stand-in is named as one in the panel's title and in the caption.
"""

import functools
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, protocols
from hamr_lib.evaluation.scores import (
    curve,
    errors_2d,
    errors_3d,
    is_stand_in,
    main_protocol,
    protocol_name,
    published,
)
from hamr_lib.files import write_aside
from hamr_lib.model.blocks import describe_blocks
from hamr_lib.render import render
from hamr_lib.report.tables import (
    STAND_IN,
    ablation_differences,
    comparison_folders,
    intervals_over,
    run_predictions,
    variant_runs,
)
from hamr_lib.variants import CLAIMS, LABELS

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text
    "figure.dpi": 150,
    "savefig.dpi": 300,
}
# Okabe and Ito's colours, which colour-blind readers can tell apart (without the yellow one, too
# faint on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", ":")  # of curves, where they are more than the colours
WIDTH = 7.2  # inches, both columns of a page
SKIN = (0.45, 0.65, 0.85)  # of drawn meshes: told apart from any real skin
# What the parts of a mask are painted in, over a grey image.
AGREEMENT = {"agreement": COLOURS[0], "missed": COLOURS[5], "not the hand": COLOURS[3]}
TILE = 160  # pixels a side of a small picture


def save_figure(fig, data, caption, out_dir, name):
    """Write a figure as `<name>.pdf`, `.png`, `.csv` and `.md`, each aside and renamed.

    Args:
        fig: matplotlib figure.
        data: DataFrame, exactly what is plotted. Where its column `dataset` holds a stand-in, the
            caption is completed by what that means.
        caption: Markdown.
        out_dir: None writes nothing.

    Returns:
        `fig`.
    """
    if out_dir is None:
        return fig
    out_dir = Path(out_dir)
    if "dataset" in data and data.dataset.map(is_stand_in).any():
        caption = f"{caption} {STAND_IN}"
    with write_aside(out_dir / f"{name}.pdf") as aside:  # without a date: the same every time
        fig.savefig(aside, metadata={"CreationDate": None}, bbox_inches="tight", pad_inches=0.02)
    with write_aside(out_dir / f"{name}.png") as aside:
        fig.savefig(aside, bbox_inches="tight", pad_inches=0.02)
    with write_aside(out_dir / f"{name}.csv") as aside:
        data.to_csv(aside, index=False, float_format="%.6g")
    with write_aside(out_dir / f"{name}.md") as aside:
        aside.write_text(caption + "\n")
    return fig


def _styled(draw):
    """Draw under `STYLE`.

    Not by `plt.rc_context`, which afterwards puts back all settings: among them those by which
    Jupyter, at a notebook's first figure, sees to it that figures are shown.
    """

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        before = {name: plt.rcParams[name] for name in STYLE}
        plt.rcParams.update(STYLE)
        try:
            return draw(*args, **kwargs)
        finally:
            plt.rcParams.update(before)

    return styled


# --- curves --------------------------------------------------------------------------------------


@_styled
def fig6(results_dir, settings):
    """Fig. 6: 3-D PCK of the network and the comparisons, a panel a set.

    Needs the predictions of `runs/main` and of any `comparisons/`.
    """
    results_dir = Path(results_dir)
    methods = _methods(results_dir, joints=True)
    sets = list(methods["main"])
    legend = 0.16 * -(-len(methods) // 5)  # inches, five names a row
    height = 2.4 + legend
    fig, axes = plt.subplots(1, len(sets), figsize=(WIDTH, height), squeeze=False)
    tables = []
    for ax, dataset in zip(axes[0], sets, strict=True):
        protocol = main_protocol(methods["main"][dataset])
        curves = {name: [errors_3d(found[dataset], protocol)] for name, found in methods.items()}
        thresholds = protocols.THRESHOLDS[protocol.thresholds]
        table = _curves(ax, curves, thresholds, settings, named=False)
        name = protocol_name(protocol.name, methods["main"][dataset])
        tables.append(table.assign(dataset=dataset, protocol=name))
        ax.set(title=_title(dataset), xlabel="error threshold (mm)")
    axes[0, 0].set_ylabel("share of correct joints (3-D PCK)")
    fig.tight_layout(w_pad=1.0, rect=(0, 0, 1, 1 - legend / height))
    lines = axes[0, 0].get_lines()
    names = [LABELS.get(name, name) for name in methods]
    fig.legend(lines, names, loc="upper center", ncols=min(5, len(names)), frameon=False)
    for ax, dataset in zip(axes[0], sets, strict=True):
        reported = published()
        reported = reported[(reported.dataset == dataset) & (reported.metric == "auc")]
        if len(reported):
            rows = [f"{row.method} {row.value:.3f}" for row in reported.itertuples()]
            note = "published AUC, not measured here:\n" + "\n".join(rows)
            ax.text(0, -0.3, note, transform=ax.transAxes, va="top", fontsize=7, color="0.35")
            listed = reported.assign(kind="published")
            tables.append(listed[["dataset", "protocol", "method", "kind", "value"]])
    caption = (
        "**Fig. 6.** 3-D PCK by error threshold. Lines: measured by this study, with 95 % "
        "bootstrap bands over images; the number beside each is its AUC. Protocols: "
        + "; ".join(f"{table.dataset[0]} ({table.protocol[0]})" for table in tables[: len(sets)])
        + "."
        + (" Published AUCs are listed in grey, below the real set they were reported for."
           if not all(map(is_stand_in, sets)) else "")
    )  # fmt: skip
    return save_figure(fig, pd.concat(tables), caption, results_dir / "figures", "fig6_pck_3d")


@_styled
def fig7(results_dir, settings):
    """Fig. 7: 2-D PCK on Dexter+Object (or its stand-in), which no method was trained on."""
    results_dir = Path(results_dir)
    methods = _methods(results_dir, joints=True)
    dataset = _find(methods["main"], "dexter")
    ours = methods["main"][dataset]
    curves = {"main": [errors_2d(ours)], "main, heat maps": [errors_2d(ours, "peak_pixels")]}
    for name, found in methods.items():
        if name != "main":
            curves[name] = [errors_2d(found[dataset])]
    fig, ax = plt.subplots(figsize=(WIDTH / 2, 2.5))
    thresholds = protocols.THRESHOLDS[protocols.PIXELS.thresholds]
    table = _curves(ax, curves, thresholds, settings)
    ax.set(
        title=_title(dataset),
        xlabel="error threshold (pixels of the photo)",
        ylabel="share of correct joints (2-D PCK)",
    )
    fig.tight_layout()
    caption = (
        f"**Fig. 7.** 2-D PCK of the labelled fingertips of {dataset}, across data sets: no method "
        "was trained or fine-tuned on it. Joints are the projected mesh's unless marked as heat "
        "maps. Bands: 95 % bootstrap over images; the number behind each name is the AUC over "
        "0-30 pixels."
    )
    table = table.assign(dataset=dataset, protocol=protocols.PIXELS.name)
    return save_figure(fig, table, caption, results_dir / "figures", "fig7_pck_2d")


@_styled
def fig8(results_dir, settings):
    """Fig. 8: the paper's ablations, 3-D PCK on the two sets with labelled wrists."""
    results_dir = Path(results_dir)
    variants = ("full", *(v for v in settings.study.ablations if v in CLAIMS))
    runs = {v: variant_runs(results_dir, v, settings) for v in variants}
    sets = [_find(runs["full"], kind) for kind in ("stb", "rhd")]
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    tables = []
    for ax, dataset in zip(axes, sets, strict=True):
        protocol = main_protocol(runs["full"][dataset][0])
        curves = {v: [errors_3d(p, protocol) for p in found[dataset]] for v, found in runs.items()}
        thresholds = protocols.THRESHOLDS[protocol.thresholds]
        table = _curves(ax, curves, thresholds, settings)
        name = protocol_name(protocol.name, runs["full"][dataset][0])
        tables.append(table.assign(dataset=dataset, protocol=name))
        ax.set(title=_title(dataset), xlabel="error threshold (mm)")
    axes[0].set_ylabel("share of correct joints (3-D PCK)")
    fig.tight_layout(w_pad=1.5)
    count = len(settings.study.ablation_seeds)
    caption = (
        f"**Fig. 8.** Ablations on {sets[0]} and {sets[1]}: 3-D PCK of the full model and of the "
        f"model without one part, each trained for {settings.study.ablation_steps} steps from "
        f"{count} seed{'s' if count > 1 else ''}. Lines: mean over seeds; bands: 95 % bootstrap "
        f"over images{' and seeds' if count > 1 else ', which says nothing of other seeds'}; the "
        "number behind each name is its AUC."
    )
    return save_figure(fig, pd.concat(tables), caption, results_dir / "figures", "fig8_ablations")


@_styled
def ablations(results_dir, settings):
    """Every ablation's difference to the full model: its mean, interval, and each seed's own."""
    results_dir = Path(results_dir)
    gains = ablation_differences(results_dir, settings)
    sets, variants = gains.dataset.unique(), settings.study.ablations
    heights = dict(zip(variants, range(len(variants))[::-1], strict=True))
    size = WIDTH, 0.8 + 0.17 * len(variants)
    fig, axes = plt.subplots(1, len(sets), figsize=size, sharey=True)
    for ax, dataset in zip(axes, sets, strict=True):
        ax.axvline(0, color="0.6", linewidth=0.6)
        for gain in gains[gains.dataset == dataset].itertuples():
            y = heights[gain.variant]
            colour = COLOURS[0] if gain.variant in CLAIMS else "0.25"
            ax.plot(gain.each, [y] * len(gain.each), "|", color="0.55", markersize=5)
            ax.plot([gain.ci_low, gain.ci_high], [y, y], color=colour)
            ax.plot(gain.difference, y, "o", color=colour, markersize=3.5)
        ax.set(title=_title(dataset), xlabel="3-D AUC minus the full model's")
        ax.grid(axis="x", color="0.9", linewidth=0.5)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(list(heights.values()), [LABELS.get(v, v) for v in variants])
    axes[0].set_ylim(-0.7, len(variants) - 0.3)
    fig.tight_layout(w_pad=1.5)
    caption = (
        "**Fig. 8, all parts.** What each change does to the 3-D AUC of the full model after "
        f"{settings.study.ablation_steps} steps: mean over seeds with its 95 % interval over "
        f"{intervals_over(settings)} (line), and each seed's own difference (strokes). Left of "
        "zero: worse than the full model. Blue: the paper's four."
    )
    seeds = pd.DataFrame(list(gains.each), index=gains.index).add_prefix("seed_")
    table = gains.drop(columns="each").join(seeds)
    return save_figure(fig, table, caption, results_dir / "figures", "ablations")


@_styled
def training_curves(log):
    """Losses and validation error of a run by step, from its log.csv; saved beside it."""
    log = Path(log)
    if not log.is_file():
        raise HamrError(f"{log} is missing: train first")
    table = pd.read_csv(log)
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.3))
    lines = [("train_total", "training"), ("val_total", "validation")]
    for (column, label), colour in zip(lines, COLOURS, strict=False):
        left.plot(table.step, table[column], colour, label=label, marker=".", markersize=3)
    left.set(xlabel="step", ylabel="loss (weighted sum)", yscale="log")
    for axis_format in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis_format("{x:g}")
    left.legend(frameon=False)
    right.plot(table.step, table.val_joints_3d_mm, COLOURS[1], marker=".", markersize=3)
    right.set(xlabel="step", ylabel="validation error (mm)", ylim=(0, None))
    fig.tight_layout()
    caption = (
        "**Training.** Left: the weighted sum of all losses on augmented training batches and on "
        "the held-out validation samples. Right: mean 3-D joint error on the validation samples, "
        "by which the best checkpoint is chosen."
    )
    columns = ["step", "train_total", "val_total", "val_joints_3d_mm"]
    return save_figure(fig, table[columns], caption, log.parent, "training")


def _methods(results_dir, joints=False):
    """Name -> display name of a set -> predictions: the main run, then the comparisons.

    With joints=True only those that give joints, and not masks alone.
    """
    folders = {"main": results_dir / "runs" / "main"} | comparison_folders(results_dir)
    methods = {name: run_predictions(folder) for name, folder in folders.items()}
    if joints:
        methods = {k: m for k, m in methods.items() if "joints_3d" in next(iter(m.values()))}
    return methods


def _find(sets, kind):
    """The display name of the set of a kind, real or stand-in."""
    for dataset in sets:
        if dataset.lower().removeprefix("open-").startswith(kind):
            return dataset
    raise HamrError(f"there are no predictions for {kind!r}, only for {', '.join(sets)}")


def _title(dataset):
    return f"{dataset} (rendered stand-in)" if is_stand_in(dataset) else dataset


def _curves(ax, curves, thresholds, settings, named=True):
    """Draw PCK curves with bands, each with its AUC (and name) at its end.

    Returns the plotted numbers as a DataFrame.
    """
    ends, tables = [], []
    for i, (name, errors) in enumerate(curves.items()):
        colour, label = COLOURS[i % len(COLOURS)], LABELS.get(name, name)
        pck, (low, high) = curve(errors, thresholds, settings.evaluate)
        ax.fill_between(thresholds, low, high, color=colour, alpha=0.2, linewidth=0)
        style = STYLES[i // len(COLOURS) % len(STYLES)]
        ax.plot(thresholds, pck, style, color=colour, zorder=3 if i == 0 else 2)
        area = metrics.auc(pck, thresholds)
        ends.append((pck[-1], f"{label} {area:.3f}" if named else f"{area:.3f}", colour))
        tables.append(pd.DataFrame({
            "method": name, "kind": "measured", "threshold": thresholds, "pck": pck,
            "ci_low": low, "ci_high": high, "value": area,
        }))  # fmt: skip
    ax.set(xlim=(thresholds[0], thresholds[-1]), ylim=(0, 1))
    ax.grid(color="0.9", linewidth=0.5)
    _label_ends(ax, ends)
    return pd.concat(tables)


def _label_ends(ax, ends, gap=0.085):
    """Write each curve's name beside its end, moved apart where they would touch.

    Args:
        ends: list of (y in axes units, text, colour).
        gap: smallest distance of two names, in axes heights.
    """
    order = np.argsort([y for y, _, _ in ends], kind="stable")
    places = [ends[i][0] for i in order]
    gap = min(gap, 1 / max(1, len(places) - 1))
    places[-1] = min(places[-1], 1)
    for k in reversed(range(len(places) - 1)):  # down from the top, then up from the bottom
        places[k] = min(places[k], places[k + 1] - gap)
    places[0] = max(places[0], 0)
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + gap)
    for place, i in zip(places, order, strict=True):
        y, text, colour = ends[i]
        ax.annotate(
            text, xy=(1, y), xytext=(1.06, place), xycoords="axes fraction",
            textcoords="axes fraction", va="center", fontsize=7, color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0.5),
                        "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


# --- pictures ------------------------------------------------------------------------------------


@_styled
def fig4(results_dir, count=8):
    """Fig. 4: recovered meshes over the image and from three more sides, `count` a set."""
    sets = run_predictions(Path(results_dir) / "runs" / "main")
    chosen = {_find(sets, kind): sets[_find(sets, kind)] for kind in ("stb", "rhd")}
    caption = (
        "**Fig. 4.** Recovered meshes. Each group: the crop, the mesh over it, and the mesh turned "
        "by 60 degrees to either side and seen from above. Examples are evenly spaced over each "
        "test set, not chosen by quality; below each its mean 3-D error."
    )
    return _mesh_figure(results_dir, chosen, count, caption, "fig4_meshes")


@_styled
def fig9(results_dir, count=8):
    """Fig. 9: the same on Dexter+Object (or its stand-in), which nothing was trained on."""
    sets = run_predictions(Path(results_dir) / "runs" / "main")
    dataset = _find(sets, "dexter")
    caption = (
        f"**Fig. 9.** Recovered meshes on {dataset}, on which nothing was trained; shown as in "
        "Fig. 4. The error is of the labelled fingertips."
    )
    return _mesh_figure(results_dir, {dataset: sets[dataset]}, count, caption, "fig9_dexter")


@_styled
def fig5(results_dir, count=8):
    """Fig. 5: images, and the masks that the recovered meshes cast."""
    sets = run_predictions(Path(results_dir) / "runs" / "main")
    rows, tables = [], []
    for dataset, found in sets.items():
        places = _example_places(found, count, dataset)
        labelled = bool(found["example_masks"].any())
        for what in ("image", "label") if labelled else ("image",):
            rows.append((dataset, what, [_tile(found, i, what) for i in places]))
        rows.append((dataset, "mesh", [_tile(found, i, "mesh") for i in places]))
        tables.append(_example_table(dataset, found, places))
    names = {"image": "image", "label": "label mask", "mesh": "mask of mesh"}
    fig = _rows_of_tiles([(f"{d}\n{names[what]}", tiles) for d, what, tiles in rows])
    caption = (
        "**Fig. 5.** Images, the labelled mask of the hand where the set has one, and the mask "
        "that the recovered mesh casts (coverage of at least one half). Examples are evenly spaced "
        "over each test set."
    )
    return save_figure(fig, pd.concat(tables), caption, Path(results_dir) / "figures", "fig5_masks")


@_styled
def fig10(results_dir, count=8):
    """Fig. 10: segmentation by every method that gives a mask, against the label."""
    results_dir = Path(results_dir)
    methods = _methods(results_dir)
    masked = [d for d, found in methods["main"].items() if found["example_masks"].any()]
    if not masked:
        raise HamrError(f"{results_dir}: no test set has masks, so there is no Fig. 10")
    found = methods["main"][masked[0]]
    places = _example_places(found, count, masked[0])
    rows = [("image", [_tile(found, i, "image") for i in places])]
    tables, notes = [], [[""] * len(places)]
    for name, sets in methods.items():
        if "example_predicted" in sets[masked[0]]:
            theirs = sets[masked[0]]
            table = _example_table(masked[0], theirs, places)
            rows.append((LABELS.get(name, name), [_agreement(theirs, i) for i in places]))
            notes.append([f"IoU {v:.2f}" for v in table.iou])
            tables.append(table)
    fig = _rows_of_tiles(rows, notes)
    patches = [Patch(color=colour, label=name) for name, colour in AGREEMENT.items()]
    fig.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.55, -0.03), ncols=3,
               frameon=False)  # fmt: skip
    caption = (
        f"**Fig. 10.** Segmentation on {masked[0]}: where mask and label agree (blue), where the "
        "mask misses the hand (orange) and where it covers what is no hand (purple), with each "
        "image's IoU. The same evenly spaced examples for every method."
    )
    return save_figure(fig, pd.concat(tables), caption, results_dir / "figures", "fig10_segments")


def _mesh_figure(results_dir, sets, count, caption, name):
    """Blocks of examples, two a row, each with its views."""
    views = ("image", "overlay", "left", "right", "above")
    blocks, tables = [], []
    for dataset, found in sets.items():
        if "example_vertices" not in found:
            raise HamrError(f"{results_dir}: the main run predicts no mesh for {dataset}")
        places = _example_places(found, count, dataset)
        table = _example_table(dataset, found, places)
        tables.append(table)
        tiles = [np.hstack([_tile(found, i, view) for view in views]) for i in places]
        blocks.append((dataset, tiles, [f"{e:.0f} mm" for e in table.error_mm]))
    # Inches: a row of pictures with its note, and the title of a block.
    row, title = WIDTH / 10 + 0.2, 0.25
    heights = [row * -(-len(tiles) // 2) + title for _, tiles, _ in blocks]
    fig = plt.figure(figsize=(WIDTH, sum(heights)))
    panels = fig.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, height, (dataset, tiles, notes) in zip(panels, heights, blocks, strict=True):
        panel.suptitle(_title(dataset), fontsize=8, y=1 - 0.04 / height, va="top")
        axes = panel.subplots(-(-len(tiles) // 2), 2, squeeze=False)
        panel.subplots_adjust(0.005, 0.17 / height, 0.995, 1 - title / height, 0.02, 0.25)
        for ax in axes.flat:
            ax.axis("off")
        for ax, tile, note in zip(axes.flat, tiles, notes, strict=False):
            ax.imshow(tile)
            ax.text(0.5, -0.02, note, transform=ax.transAxes, ha="center", va="top", fontsize=7)
    return save_figure(fig, pd.concat(tables), caption, Path(results_dir) / "figures", name)


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


def _example_places(found, count, dataset):
    """Which of the kept examples to show: (up to count,) evenly spaced."""
    kept = len(found.get("examples", ()))
    if not kept:
        raise HamrError(f"the predictions for {dataset} keep no examples (evaluate.examples is 0)")
    return np.unique(np.linspace(0, kept - 1, min(count, kept)).round().astype(int))


def _example_table(dataset, found, places):
    """What the shown examples are, and how well each fits."""
    images = found["examples"][places]
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
            vertices, faces, camera, TILE, colours=SKIN, background=background, supersample=2,
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


# --- the network ---------------------------------------------------------------------------------


@_styled
def fig2(model, out_dir):
    """Fig. 2: the network as it is built: every block with its output's shape and parameters."""
    blocks = pd.DataFrame(describe_blocks(model), columns=["block", "shape", "parameters"])
    of_regression = blocks.block.str.startswith(("encoder", "joint_features", "layers"))
    pose, regression = blocks[~of_regression], blocks[of_regression]
    branch = regression.block == "joint_features"
    tall = 0.9 * branch.any()  # inches, for what is drawn above the chain
    fig, axes = plt.subplots(2, 1, figsize=(WIDTH, 3.8 + tall), height_ratios=(1.9, 1.9 + tall))
    _boxes(axes[0], pose, "2-D pose module (Section 3.3)", "image", (3, *[model.image_size] * 2))
    joined = blocks[blocks.block.str.startswith(("features", "maps"))]
    channels = sum(shape[0] for shape in joined["shape"].iloc[-2:])
    side = joined["shape"].iloc[-1][-1]
    _boxes(axes[1], regression[~branch], "iterative regression (Section 3.2)", "features + maps",
           (channels, side, side), last="hand layer")  # fmt: skip
    _feedback(axes[1], (~branch).sum(), model.regressor.iterations)
    if branch.any():
        _branch(axes[1], *regression[branch].iloc[0], (~branch).sum())
    fig.tight_layout(h_pad=0.5)
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    caption = (
        "**Fig. 2.** The network, drawn from its own modules: each box is a block, labelled with "
        "its name, the shape of its output for one image (channels x height x width) and its "
        f"number of trained parameters. {total / 1e6:.1f} million parameters in all."
    )
    caption += " `layers` also sees the last estimate, to which it adds."
    if branch.any():
        caption += " `joint_features`, beside the encoder, sees the features at the joints' places."
    data = blocks.assign(shape=["x".join(map(str, s)) for s in blocks["shape"]])
    return save_figure(fig, data, caption, out_dir, "fig2_network")


@_styled
def fig3(model, out_dir):
    """Fig. 3: what is regressed, and how an estimate becomes a mesh and its projection."""
    components = model.hand.pose_components
    turn = 3 if model.rotation == "axis_angle" else 6
    parts = [("camera", 3), ("rotation", turn), ("pose", components), ("shape", 10)]
    if not model.mesh:
        parts = [("camera", 3), ("joints", 63)]
    total = sum(n for _, n in parts)
    fig, ax = plt.subplots(figsize=(WIDTH, 1.5))
    left = 0.0
    for (name, size), colour in zip(parts, COLOURS, strict=False):
        width = 0.12 + 0.3 * size / total
        ax.add_patch(Rectangle((left, 0.55), width, 0.3, facecolor=colour, alpha=0.35, lw=0.6,
                               edgecolor=colour))  # fmt: skip
        ax.text(left + width / 2, 0.7, f"{name}\n{size}", ha="center", va="center", fontsize=7)
        left += width
    times = f"{model.regressor.iterations} iteration{'s' * (model.regressor.iterations > 1)}"
    ax.annotate(
        "",
        xy=(0.02, 0.9),
        xytext=(left - 0.02, 0.9),
        arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=0.12", "lw": 0.8},
    )
    ax.text(0, 1.1, f"{times}: the layers see the last estimate and add to it",
            fontsize=7)  # fmt: skip
    steps = ["hand layer\n(Section 3.1)", "mesh, then\njoints (Eq. 3)", "projection\n(Eq. 4-5)"]
    for k, text in enumerate(steps if model.mesh else ["21 joints", "projection\n(Eq. 4-5)"]):
        x = left + 0.09 + 0.29 * k
        ax.add_patch(FancyBboxPatch((x, 0.56), 0.2, 0.28, boxstyle="round,pad=0.01", lw=0.7,
                                    facecolor="white", edgecolor="0.3"))  # fmt: skip
        ax.text(x + 0.1, 0.7, text, ha="center", va="center", fontsize=7)
        ax.annotate("", xy=(x - 0.01, 0.7), xytext=(x - 0.08, 0.7),
                    arrowprops={"arrowstyle": "->", "lw": 0.8})  # fmt: skip
    ax.set(xlim=(-0.01, left + 0.9), ylim=(0.53, 1.2))
    ax.axis("off")
    caption = (
        f"**Fig. 3.** The {total} numbers that are regressed over {times}, and "
        "what becomes of them. The rotation is "
        + ("three axis-angle numbers." if turn == 3 else "given in the 6-D form of Zhou et al.")
    )
    data = pd.DataFrame(parts, columns=["part", "numbers"])
    return save_figure(fig, data, caption, out_dir, "fig3_regression")


def _boxes(ax, blocks, title, start, shape, last=None):
    """A row of boxes joined by arrows; heights go by the logarithm of the output's side."""
    rows = [(start, shape, None), *blocks.itertuples(index=False, name=None)]
    rows += [(last, None, None)] if last else []
    for i, (name, size, count) in enumerate(rows):
        side = size[-1] if size is not None and len(size) == 3 else 1
        height = 0.7 + 0.05 * np.log2(side)
        flat = size is None or count is None
        ax.add_patch(Rectangle((i + 0.2, -height / 2), 0.6, height, lw=0.7, edgecolor="0.3",
                               facecolor="0.95" if flat else COLOURS[4],
                               alpha=1 if flat else 0.5))  # fmt: skip
        ax.text(i + 0.5, 0, name.replace(" + ", "\n+ "), rotation=90, ha="center", va="center",
                fontsize=7)  # fmt: skip
        text = []
        if size is not None:  # the channels, then height and width where there are such
            text = [str(size[0])] + ["x".join(map(str, size[1:]))] * (len(size) > 1)
        text += [_thousands(count)] if count else []
        ax.text(i + 0.5, -0.6, "\n".join(text), rotation=0, ha="center", va="top", fontsize=7)
        if i:
            ax.annotate("", xy=(i + 0.2, 0), xytext=(i - 0.2, 0),
                        arrowprops={"arrowstyle": "->", "lw": 0.7})  # fmt: skip
    ax.set(xlim=(0, len(rows)), ylim=(-1.05, 0.62))
    ax.set_title(title, loc="left")
    ax.axis("off")


def _feedback(ax, place, iterations):
    """The estimate that goes back into the layers, whose box is the one at `place`."""
    ax.annotate("", xy=(place + 0.3, 0.36), xytext=(place + 0.75, 0.36),
                arrowprops={"arrowstyle": "->", "lw": 0.7,
                            "connectionstyle": "arc3,rad=0.9"})  # fmt: skip
    ax.text(place + 0.85, 0.62, f"last estimate,\n{iterations} iterations", fontsize=7, va="center")


def _branch(ax, name, size, count, place):
    """A box above the chain, from its first box to the one at `place`."""
    ax.add_patch(Rectangle((place / 2, 0.8), 1.2, 0.34, lw=0.7, edgecolor="0.3",
                           facecolor=COLOURS[4], alpha=0.5))  # fmt: skip
    ax.text(place / 2 + 0.6, 0.97, name, ha="center", va="center", fontsize=7)
    ax.text(place / 2 + 1.3, 0.97, f"{'x'.join(map(str, size))}, {_thousands(count)}",
            va="center", fontsize=7)  # fmt: skip
    arrow = {"arrowstyle": "->", "lw": 0.7, "shrinkA": 0, "shrinkB": 0}
    ax.plot([0.5, 0.5], [0.5, 0.97], "k", lw=0.7)
    ax.annotate("", xy=(place / 2, 0.97), xytext=(0.5, 0.97), arrowprops=arrow)
    ax.plot([place / 2 + 0.6, place / 2 + 0.6, place + 0.25], [1.14, 1.25, 1.25], "k", lw=0.7)
    ax.annotate("", xy=(place + 0.25, 0.38), xytext=(place + 0.25, 1.25), arrowprops=arrow)
    ax.set_ylim(-1.05, 1.3)


def _thousands(count):
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
