"""Fig. 6 to 8: PCK curves, and the differences that the ablations make.

Curves are measured, with their 95 % band. Published numbers are shown for a real set only, and in
words. A stand-in is named as one in the title of its panel and in the caption.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hamr_lib.config import Settings
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, protocols
from hamr_lib.evaluation.scores import (
    curve,
    errors_2d,
    errors_3d,
    main_protocol,
    protocol_name,
    published,
)
from hamr_lib.report.results import (
    ablation_differences,
    find_set,
    intervals_over,
    method_predictions,
    variant_predictions,
)
from hamr_lib.report.style import COLOURS, WIDTH, caption, save_figure, set_title, styled
from hamr_lib.variants import CLAIMS, LABELS

LINES = 6  # most curves in a panel; the others are in the tables
CORRECT = "fraction of correct joints"


@styled
def fig6(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 6: 3-D PCK of the main run and the best comparisons, a panel a set.

    Needs the predictions of `runs/main` and of any `comparisons/`.
    """
    methods = _with_joints(method_predictions(results_dir))
    sets = list(methods["main"])
    scored = {d: main_protocol(methods["main"][d]) for d in sets}
    errors = {
        name: {d: errors_3d(found[d], scored[d]) for d in sets} for name, found in methods.items()
    }
    grids = {d: protocols.THRESHOLDS[protocol.thresholds] for d, protocol in scored.items()}
    shown = _best(errors, grids, LINES - 1)
    rows = -(-len(sets) // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(WIDTH, 2.4 * rows), squeeze=False)
    names = {d: protocol_name(p.name, methods["main"][d]) for d, p in scored.items()}
    tables = []
    for ax, dataset in zip(axes.flat, sets, strict=False):
        curves = {name: [errors[name][dataset]] for name in shown}
        tables.append(_curves(ax, curves, grids[dataset], settings, dataset, names[dataset]))
        ax.set_ylabel(f"{CORRECT} (3-D PCK)")
    for ax in axes.flat[len(sets) :]:
        ax.remove()
    fig.tight_layout(w_pad=1.0, h_pad=1.0)
    for ax, dataset in zip(axes.flat, sets, strict=False):
        tables += _list_published(ax, dataset)
    words = {"most": LINES, "protocols": "; ".join(f"{d} ({name})" for d, name in names.items())}
    text = caption("fig6", **words)
    return save_figure(fig, pd.concat(tables), text, results_dir / "figures", "fig6_pck_3d")


@styled
def fig7(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 7: 2-D PCK on Dexter+Object (or its stand-in), which no method was trained on."""
    methods = _with_joints(method_predictions(results_dir))
    dataset = find_set(methods["main"], "dexter")
    thresholds = protocols.THRESHOLDS[protocols.PIXELS.thresholds]
    errors = {name: {dataset: errors_2d(found[dataset])} for name, found in methods.items()}
    first, *others = _best(errors, {dataset: thresholds}, LINES - 2)
    maps = errors_2d(methods["main"][dataset], "peak_pixels")
    curves = {first: [errors[first][dataset]], "main, heat maps": [maps]}
    curves |= {name: [errors[name][dataset]] for name in others}
    fig, ax = plt.subplots(figsize=(WIDTH / 2, 2.5))
    table = _curves(ax, curves, thresholds, settings, dataset, protocols.PIXELS.name)
    ax.set(xlabel="error threshold (pixels of the photo)", ylabel=f"{CORRECT} (2-D PCK)")
    fig.tight_layout()
    text = caption("fig7", dataset=dataset)
    return save_figure(fig, table, text, results_dir / "figures", "fig7_pck_2d")


@styled
def fig8(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 8: the paper's ablations, 3-D PCK on the two sets with labelled wrists."""
    variants = ("full", *(v for v in settings.study.ablations if v in CLAIMS))
    runs = variant_predictions(results_dir, variants, settings)
    sets = [find_set(runs["full"], kind) for kind in ("stb", "rhd")]
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    tables = []
    for ax, dataset in zip(axes, sets, strict=True):
        protocol = main_protocol(runs["full"][dataset][0])
        curves = {v: [errors_3d(p, protocol) for p in found[dataset]] for v, found in runs.items()}
        name = protocol_name(protocol.name, runs["full"][dataset][0])
        thresholds = protocols.THRESHOLDS[protocol.thresholds]
        tables.append(_curves(ax, curves, thresholds, settings, dataset, name))
    axes[0].set_ylabel(f"{CORRECT} (3-D PCK)")
    fig.tight_layout(w_pad=1.5)
    count = len(settings.study.ablation_seeds)
    words = {"stb": sets[0], "rhd": sets[1], "seeds": f"{count} seed{'s' * (count > 1)}"}
    words |= {"steps": settings.study.ablation_steps, "over": intervals_over(settings)}
    text = caption("fig8", **words)
    return save_figure(fig, pd.concat(tables), text, results_dir / "figures", "fig8_ablations")


@styled
def ablations(results_dir: Path, settings: Settings) -> Figure:
    """Draw every ablation's difference to the full model: its mean, interval, and each seed's."""
    gains = ablation_differences(results_dir, settings)
    sets, variants = gains.dataset.unique(), settings.study.ablations
    heights = dict(zip(variants, range(len(variants))[::-1], strict=True))
    size = WIDTH, 0.8 + 0.17 * len(variants)
    fig, axes = plt.subplots(1, len(sets), figsize=size, sharey=True, squeeze=False)
    for ax, dataset in zip(axes[0], sets, strict=True):
        ax.axvline(0, color="0.6", linewidth=0.6)
        for gain in gains[gains.dataset == dataset].itertuples():
            y = heights[gain.variant]
            colour = COLOURS[0] if gain.variant in CLAIMS else "0.25"
            ax.plot(gain.each, [y] * len(gain.each), "|", color="0.55", markersize=5)
            ax.plot([gain.ci_low, gain.ci_high], [y, y], color=colour)
            ax.plot(gain.difference, y, "o", color=colour, markersize=3.5)
        ax.set_title(set_title(dataset))
        ax.grid(axis="x", color="0.9", linewidth=0.5)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(list(heights.values()), [LABELS.get(v, v) for v in variants])
    axes[0, 0].set_ylim(-0.7, len(variants) - 0.3)
    fig.supxlabel("3-D AUC minus the full model's", fontsize=8)
    fig.tight_layout(w_pad=1.5)
    seeds = pd.DataFrame(list(gains.each), index=gains.index).add_prefix("seed_")
    table = gains.drop(columns="each").join(seeds)
    words = {"steps": settings.study.ablation_steps, "over": intervals_over(settings)}
    text = caption("ablations_figure", **words)
    return save_figure(fig, table, text, results_dir / "figures", "ablations")


@styled
def training_curves(log: Path) -> Figure:
    """Draw losses and validation error of a run by step, from its log.csv; saved beside it."""
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
    columns = ["step", "train_total", "val_total", "val_joints_3d_mm"]
    return save_figure(fig, table[columns], caption("training"), log.parent, "training")


def _with_joints(methods):
    """The methods that give joints, and not masks alone."""
    return {k: sets for k, sets in methods.items() if "joints_3d" in next(iter(sets.values()))}


def _best(errors, grids, count):
    """ "main", then the `count` other methods of the highest AUC, averaged over the sets.

    Args:
        errors: method -> set -> (N, 21).
        grids: set -> thresholds (T,).
    """

    def mean_auc(name):
        hits = {d: metrics.hits(e, grids[d]) for d, e in errors[name].items()}
        return np.mean([metrics.auc(metrics.joint_mean(h), grids[d]) for d, h in hits.items()])

    others = sorted(errors.keys() - {"main"}, key=lambda name: (-mean_auc(name), name))[:count]
    return ["main", *(name for name in errors if name in others)]


def _list_published(ax, dataset):
    """Write what the literature reports for a set beside its panel; the rows that are written."""
    rows = published()
    rows = rows[(rows.dataset == dataset) & (rows.metric == "auc")]
    if rows.empty:
        return []
    listed = "\n".join(f"{row.method} {row.value:.3f}" for row in rows.itertuples())
    note = f"published AUC, not measured here:\n{listed}"
    ax.text(0.98, 0.03, note, transform=ax.transAxes, ha="right", fontsize=7, color="0.35")
    listed = rows.assign(kind="published")
    return [listed[["dataset", "protocol", "method", "kind", "value"]]]


def _curves(ax, curves, thresholds, settings, dataset, protocol):
    """Draw the PCK curves of a set, each with its band, name and AUC; return what is plotted.

    Args:
        curves: method -> list of errors (N, 21), one a seed.
    """
    ends, tables = [], []
    for i, (name, errors) in enumerate(curves.items()):
        pck, (low, high) = curve(errors, thresholds, settings.evaluate)
        ax.fill_between(thresholds, low, high, color=COLOURS[i], alpha=0.2, linewidth=0)
        ax.plot(thresholds, pck, color=COLOURS[i], zorder=3 if i == 0 else 2)
        area = metrics.auc(pck, thresholds)
        ends.append((area, pck[-1], f"{LABELS.get(name, name)} {area:.3f}", COLOURS[i]))
        tables.append(pd.DataFrame({
            "method": name, "kind": "measured", "threshold": thresholds, "pck": pck,
            "ci_low": low, "ci_high": high, "value": area, "dataset": dataset, "protocol": protocol,
        }))  # fmt: skip
    ax.set(xlim=(thresholds[0], thresholds[-1]), ylim=(0, 1))
    ax.set(title=set_title(dataset), xlabel="error threshold (mm)")
    ax.grid(color="0.9", linewidth=0.5)
    _label_ends(ax, [end for _, *end in sorted(ends)])
    return pd.concat(tables)


def _label_ends(ax, ends, gap=0.085):
    """Write each curve's name beside its end, with a gap between names.

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
