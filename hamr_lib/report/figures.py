"""The paper's figures, drawn from saved results alone.

Each function leaves four files: PDF, PNG, a CSV with exactly the plotted numbers, and the caption.
Here are the curves; the others are drawn in `network` and `meshes`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hamr_lib.config import Settings
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, scores
from hamr_lib.evaluation.protocols import PIXELS
from hamr_lib.report import results
from hamr_lib.report.meshes import fig4, fig5, fig9, fig10  # noqa: F401
from hamr_lib.report.network import fig2, fig3  # noqa: F401
from hamr_lib.report.style import COLOURS, WIDTH, save_figure, set_title, styled
from hamr_lib.variants import CLAIMS, LABELS

LINES = 6  # most curves in a panel; the others are in the tables
CORRECT = "fraction of correct joints"


@styled
def fig6(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 6: 3-D PCK of the main run and the best baselines, a panel a set."""
    methods = _with_joints(results.method_predictions(results_dir))
    main = methods["main"]
    scored = {dataset: scores.main_protocol(found) for dataset, found in main.items()}
    shown = _best(methods, scored, LINES - 1)
    rows = -(-len(scored) // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(WIDTH, 2.4 * rows), squeeze=False)
    panels, tables = list(zip(axes.flat, scored, strict=False)), []
    for ax, dataset in panels:
        runs = {name: [methods[name][dataset]] for name in shown}
        tables.append(_curves(ax, runs, scored[dataset], settings))
        ax.set_ylabel(f"{CORRECT} (3-D PCK)")
    for ax in axes.flat[len(scored) :]:
        ax.remove()
    fig.tight_layout(w_pad=1.0, h_pad=1.0)
    for ax, dataset in panels:
        tables += _list_published(ax, dataset)
    names = (f"{d} ({scores.protocol_name(scored[d].name, main[d])})" for d in scored)
    words = {"most": LINES, "protocols": "; ".join(names)}
    return save_figure(fig, pd.concat(tables), results_dir / "figures", "fig6_pck_3d", **words)


@styled
def fig7(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 7: 2-D PCK on Dexter+Object (or its stand-in), which no method was trained on."""
    methods = _with_joints(results.method_predictions(results_dir))
    dataset = results.find_set(methods["main"], "dexter")
    main = methods["main"][dataset]
    shown = _best(methods, {dataset: PIXELS}, LINES - 2)
    runs = {"main": [main], "main, heat maps": [main | {"pixels": main["peak_pixels"]}]}
    runs |= {name: [methods[name][dataset]] for name in shown}
    fig, ax = plt.subplots(figsize=(WIDTH / 2, 2.5))
    table = _curves(ax, runs, PIXELS, settings)
    ax.set(xlabel="error threshold (pixels of the photo)", ylabel=f"{CORRECT} (2-D PCK)")
    fig.tight_layout()
    return save_figure(fig, table, results_dir / "figures", "fig7_pck_2d", dataset=dataset)


@styled
def fig8(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 8: the paper's ablations, 3-D PCK on the two sets with labelled wrists."""
    study = settings.study
    variants = ("full", *(v for v in study.ablations if v in CLAIMS))
    runs = results.variant_predictions(results_dir, variants, settings)
    sets = [results.find_set(runs["full"], kind) for kind in ("stb", "rhd")]
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    tables = []
    for ax, dataset in zip(axes, sets, strict=True):
        own = {variant: found[dataset] for variant, found in runs.items()}
        tables.append(_curves(ax, own, scores.main_protocol(own["full"][0]), settings))
    axes[0].set_ylabel(f"{CORRECT} (3-D PCK)")
    fig.tight_layout(w_pad=1.5)
    count = len(study.ablation_seeds)
    words = {"stb": sets[0], "rhd": sets[1], "seeds": f"{count} seed{'s' * (count > 1)}"}
    words |= results.ablation_words(settings)
    return save_figure(fig, pd.concat(tables), results_dir / "figures", "fig8_ablations", **words)


@styled
def ablations(results_dir: Path, settings: Settings) -> Figure:
    """Draw every ablation's difference to the full model: its mean, interval, and each seed's."""
    gains = results.ablation_differences(results_dir, settings)
    sets, variants = gains.dataset.unique(), settings.study.ablations
    heights = dict(zip(variants, reversed(range(len(variants))), strict=True))
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
    words = results.ablation_words(settings)
    return save_figure(fig, table, results_dir / "figures", "ablations", **words)


@styled
def along_training(results_dir: Path, settings: Settings) -> Figure:
    """Draw what leaving out each of the paper's parts adds to the error along the training."""
    found = results.differences_along(results_dir, settings)
    shown = found[found.variant.isin(CLAIMS)] if found.variant.isin(CLAIMS).any() else found
    variants = list(shown.variant.unique())
    columns = min(4, len(variants))
    rows = -(-len(variants) // columns)
    size = (WIDTH, 1.9 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, variant in zip(axes.flat, variants, strict=False):
        curve = shown[shown.variant == variant]
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.fill_between(curve.step, curve.ci_low, curve.ci_high, color=COLOURS[0], alpha=0.2)
        ax.plot(curve.step, curve.difference, color=COLOURS[0])
        ax.set_title(LABELS.get(variant, variant))
    for ax in axes.flat[len(variants) :]:
        ax.axis("off")
    plt.setp(axes[-1], xlabel="steps")
    plt.setp(axes[:, 0], ylabel="mm more than the full model")
    fig.tight_layout(w_pad=1.0)
    words = results.ablation_words(settings)
    return save_figure(fig, shown, results_dir / "figures", "along_training", **words)


@styled
def training_curves(log: Path) -> Figure:
    """Draw losses and validation error of a run by step, from its log.csv; saved beside it."""
    if not Path(log).is_file():
        raise HamrError(f"{log} is missing: train first")
    table = pd.read_csv(log)
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.3))
    points = {"marker": ".", "markersize": 3}
    left.plot(table.step, table.train_total, COLOURS[0], label="training", **points)
    left.plot(table.step, table.val_total, COLOURS[1], label="validation", **points)
    left.set(xlabel="step", ylabel="loss (weighted sum)", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.legend(frameon=False)
    right.plot(table.step, table.val_joints_3d_mm, COLOURS[1], **points)
    right.set(xlabel="step", ylabel="validation error (mm)", ylim=(0, None))
    fig.tight_layout()
    columns = ["step", "train_total", "val_total", "val_joints_3d_mm"]
    return save_figure(fig, table[columns], Path(log).parent, "training")


def _with_joints(methods):
    """The methods that give joints, and not masks alone."""
    return {k: sets for k, sets in methods.items() if "joints_3d" in next(iter(sets.values()))}


def _best(methods, scored, count):
    """Choose "main" and the `count` other methods of the highest AUC, averaged over the sets.

    Args:
        scored: set -> `Protocol`.
    """

    def mean_auc(name):
        found = methods[name]
        areas = [scores.areas([found[dataset]], scored[dataset])[0] for dataset in scored]
        return np.mean([metrics.joint_mean(area) for area in areas])

    others = sorted(methods.keys() - {"main"}, key=lambda name: (-mean_auc(name), name))[:count]
    return ["main", *(name for name in methods if name in others)]


def _list_published(ax, dataset):
    """Write what the literature reports for a set beside its panel; return these rows."""
    rows = scores.published()
    rows = rows[(rows.dataset == dataset) & (rows.metric == "auc")].assign(kind="published")
    if rows.empty:
        return []
    listed = "\n".join(f"{row.method} {row.value:.3f}" for row in rows.itertuples())
    note = f"published AUC, not measured here:\n{listed}"
    ax.text(0.98, 0.03, note, transform=ax.transAxes, ha="right", fontsize=7, color="0.35")
    return [rows[["dataset", "protocol", "method", "kind", "value"]]]


def _curves(ax, runs, protocol, settings):
    """Draw the PCK curves of a set, each with its band, name and AUC; return what is plotted.

    Args:
        runs: method -> predictions of the set, a list with one a seed.
    """
    found, grid = next(iter(runs.values()))[0], protocol.grid
    dataset, ends, tables = str(found["dataset"]), [], []
    for (name, seeds), colour in zip(runs.items(), COLOURS, strict=False):
        pck, (low, high) = scores.curve(seeds, protocol, settings.evaluate)
        ax.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(grid, pck, color=colour, zorder=2 if ends else 3)
        area = metrics.auc(pck, grid)
        ends.append((area, pck[-1], f"{LABELS.get(name, name)} {area:.3f}", colour))
        tables.append(pd.DataFrame({
            "method": name, "kind": "measured", "threshold": grid, "pck": pck, "ci_low": low,
            "ci_high": high, "value": area, "dataset": dataset,
            "protocol": scores.protocol_name(protocol.name, found),
        }))  # fmt: skip
    ax.set(xlim=(grid[0], grid[-1]), ylim=(0, 1))
    ax.set(title=set_title(dataset), xlabel="error threshold (mm)")
    ax.grid(color="0.9", linewidth=0.5)
    _label_ends(ax, [end for _, *end in sorted(ends)])
    return pd.concat(tables)


def _label_ends(ax, ends, gap=0.085):
    """Write each curve's name beside its end, `gap` axes heights between two names at least.

    Args:
        ends: list of (y in axes units, text, colour).
    """
    ends = sorted(ends, key=lambda end: end[0])
    steps = gap * np.arange(len(ends))
    # As high as the end, lower where the next name needs it, and never below the axes.
    free = np.array([y for y, _, _ in ends]) - steps
    places = np.minimum.accumulate(free[::-1])[::-1].clip(0) + steps
    for place, (y, text, colour) in zip(places, ends, strict=True):
        line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0.5)}
        ax.annotate(
            text, xy=(1, y), xytext=(1.06, place), xycoords="axes fraction",
            textcoords="axes fraction", va="center", fontsize=7, color=colour,
            arrowprops={**line, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
