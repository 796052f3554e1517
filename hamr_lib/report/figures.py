"""The paper's figures, drawn from saved results alone.

Each function leaves four files: PDF, PNG, a CSV with exactly the plotted numbers, and the caption.
Here are the curves; the others are drawn in `network` and `meshes`.
"""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hamr_lib.config import Settings
from hamr_lib.evaluation import metrics, scores
from hamr_lib.evaluation.protocols import PIXELS, Protocol
from hamr_lib.report import results
from hamr_lib.report.meshes import fig4, fig5, fig9, fig10  # noqa: F401
from hamr_lib.report.network import fig2, fig3  # noqa: F401
from hamr_lib.report.style import COLOURS, WIDTH, save_figure, set_title, styled
from hamr_lib.variants import CLAIMS, LABELS

LINES = 6  # most curves in a panel; the others are in the tables
GAP = 0.085  # axes heights between the names of two curves, at least


@styled
def fig6(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 6: 3-D PCK of the main run and the best baselines, a panel a set."""
    table = _best(_pck(results.method_runs(results_dir), settings), LINES - 1)
    grid = _draw_pck(table, "3-D PCK")
    named = table[["dataset", "protocol"]].drop_duplicates()
    literature = scores.published().query("metric == 'auc'").assign(kind="published")
    literature = literature[literature.dataset.isin(named.dataset)]
    for dataset, rows in literature.groupby("dataset"):
        listed = "\n".join(f"{row.method} {row.value:.3f}" for row in rows.itertuples())
        note = f"published AUC, not measured here:\n{listed}"
        ax = grid.axes_dict[dataset]
        ax.text(0.98, 0.03, note, transform=ax.transAxes, ha="right", fontsize=7, color="0.35")
    columns = ["dataset", "protocol", "method", "kind", "value"]
    table = pd.concat([table, literature[columns]])
    words = {"most": LINES, "protocols": "; ".join(f"{d} ({p})" for d, p in named.to_numpy())}
    return save_figure(grid.figure, table, results_dir / "figures", "fig6_pck_3d", **words)


@styled
def fig7(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 7: 2-D PCK on Dexter+Object (or its stand-in), which no method was trained on."""
    runs = results.method_runs(results_dir)
    dataset = results.find_set(runs["main"], "dexter")
    main = runs["main"][dataset]
    maps = {"main, heat maps": {dataset: [one | {"pixels": one["peak_pixels"]} for one in main]}}
    runs = {"main": runs["main"]} | maps | runs
    table = _best(_pck(runs, settings, [dataset], PIXELS), LINES - 2)
    grid = _draw_pck(table, "2-D PCK", "error threshold (pixels of the photo)")
    folder = results_dir / "figures"
    return save_figure(grid.figure, table, folder, "fig7_pck_2d", dataset=dataset)


@styled
def fig8(results_dir: Path, settings: Settings) -> Figure:
    """Draw Fig. 8: the paper's ablations, 3-D PCK on the two sets with labelled wrists."""
    runs = results.variant_runs(results_dir, settings)
    stb, rhd = (results.find_set(runs["full"], kind) for kind in ("stb", "rhd"))
    runs = {name: sets for name, sets in runs.items() if name in ("full", *CLAIMS)}
    table = _pck(runs, settings, (stb, rhd))
    grid = _draw_pck(table, "3-D PCK")
    count = len(settings.study.ablation_seeds)
    words = {"stb": stb, "rhd": rhd, "seeds": f"{count} seed{'s' * (count > 1)}"}
    words |= results.ablation_words(settings)
    return save_figure(grid.figure, table, results_dir / "figures", "fig8_ablations", **words)


@styled
def ablations(results_dir: Path, settings: Settings) -> Figure:
    """Draw every ablation's difference to the full model: its mean, interval, and each seed's."""
    gains = results.differences(results.variant_runs(results_dir, settings), "full", settings)
    gains = gains.rename(columns={"method": "variant"})
    height, panels = 0.8 + 0.17 * gains.variant.nunique(), gains.dataset.nunique()
    grid = sns.FacetGrid(gains, col="dataset", height=height, aspect=WIDTH / panels / height)
    for dataset, ax in grid.axes_dict.items():
        rows = gains[gains.dataset == dataset].replace({"variant": LABELS})
        ax.axvline(0, color="0.6", linewidth=0.6)
        strokes = rows.explode("each")
        ax.plot(strokes.each, strokes.variant, "|", color="0.55", markersize=5)
        for claimed, some in rows.groupby(gains.variant.isin(CLAIMS)):
            spread = [some.difference - some.ci_low, some.ci_high - some.difference]
            colour = COLOURS["full"] if claimed else "0.25"
            ax.errorbar(some.difference, some.variant, xerr=spread, fmt="o", color=colour, ms=3.5)
        ax.set_title(set_title(dataset))
        ax.grid(axis="x")
        ax.xaxis.set_major_locator(MaxNLocator(3))
    grid.set(ylim=(gains.variant.nunique() - 0.4, -0.6), xlabel="difference of 3-D AUC")
    grid.tight_layout()
    seeds = pd.DataFrame(list(gains.each), index=gains.index).add_prefix("seed_")
    table = gains.drop(columns=["each", "p_value"]).join(seeds)
    folder, words = results_dir / "figures", results.ablation_words(settings)
    return save_figure(grid.figure, table, folder, "ablations", **words)


@styled
def along_training(results_dir: Path, settings: Settings) -> Figure:
    """Draw what leaving out each of the paper's parts adds to the error along the training."""
    found = results.differences_along(results_dir, settings)
    shown = found[found.variant.isin(CLAIMS)] if found.variant.isin(CLAIMS).any() else found
    columns = min(4, shown.variant.nunique())
    size = {"height": 1.9, "aspect": WIDTH / columns / 1.9, "col_wrap": columns}
    grid = sns.FacetGrid(shown.assign(label=shown.variant.replace(LABELS)), col="label", **size)
    grid.refline(y=0, color="0.6", linewidth=0.6, linestyle="-")
    grid.map(plt.fill_between, "step", "ci_low", "ci_high", alpha=0.2, color=COLOURS["full"])
    grid.map(plt.plot, "step", "difference", color=COLOURS["full"])
    grid.set_titles("{col_name}")
    grid.set_axis_labels("steps", "difference (mm)")
    grid.tight_layout()
    words = results.ablation_words(settings)
    return save_figure(grid.figure, shown, results_dir / "figures", "along_training", **words)


@styled
def training_curves(log: Path) -> Figure:
    """Draw losses and validation error of a run by step, from its log.csv; saved beside it."""
    names = {"train_total": "training", "val_total": "validation"}
    table = scores.read_csv(log)[["step", *names, "val_joints_3d_mm"]]
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.3), layout="constrained")
    style = {"x": "step", "style": ".-", "markersize": 3}
    table.rename(columns=names).plot(
        y=[*names.values()], ax=left, logy=True, ylabel="loss (weighted sum)", **style
    )
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    table.plot(
        y="val_joints_3d_mm", ax=right, color="C1", ylabel="validation error (mm)", ylim=(0, None),
        legend=False, **style,
    )  # fmt: skip
    return save_figure(fig, table, Path(log).parent, "training")


def _pck(
    runs: dict, settings: Settings, sets: Iterable[str] = (), protocol: Protocol | None = None
) -> pd.DataFrame:
    """Compute the PCK curves of `results.runs` that have joints, with their bands and AUC."""
    tables = []
    for dataset in sets or runs["main"]:
        for name, seeds in ((name, found[dataset]) for name, found in runs.items()):
            if "joints_3d" not in seeds[0]:
                continue
            used = protocol or scores.main_protocol(seeds[0])
            pck, (low, high) = scores.curve(seeds, used, settings.evaluate)
            tables.append(pd.DataFrame({
                "method": name, "kind": "measured", "threshold": used.grid, "pck": pck,
                "ci_low": low, "ci_high": high, "value": metrics.auc(pck, used.grid),
                "dataset": dataset, "protocol": scores.protocol_name(used.name, seeds[0]),
            }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _best(table, count):
    """Choose the main run and the `count` other methods of the highest AUC, mean over the sets."""
    means = table.groupby("method").value.mean().sort_index()
    others = means[~means.index.str.startswith("main")].nlargest(count).index
    return table[table.method.str.startswith("main") | table.method.isin(others)]


def _draw_pck(table, what, threshold="error threshold (mm)"):
    """Draw curves, a panel a set: each with its band, and its name and AUC at its end."""
    names = table.method.unique()[::-1]  # the first lies above the others
    size = {"height": 2.5, "aspect": WIDTH / 2 / 2.5, "col_wrap": 2}
    lines = {"hue": "method", "hue_order": names, "palette": COLOURS}
    limits = {"xlim": (table.threshold.min(), table.threshold.max()), "ylim": (0, 1)}
    grid = sns.FacetGrid(table, col="dataset", **lines, **size, **limits)
    grid.map(plt.fill_between, "threshold", "ci_low", "ci_high", alpha=0.2, linewidth=0)
    grid.map(plt.plot, "threshold", "pck")
    grid.set_axis_labels(threshold, f"fraction of correct joints ({what})")
    for dataset, ax in grid.axes_dict.items():
        ax.grid()
        ax.set_title(set_title(dataset))
        ends = table[table.dataset == dataset].groupby("method").last()
        ends = ends.sort_values(["pck", "value"])
        steps = GAP * np.arange(len(ends))
        # As high as the end, lower where the next name needs it, and never below the axes.
        places = np.minimum.accumulate((ends.pck - steps)[::-1])[::-1].clip(0) + steps
        for name, end in ends.iterrows():
            ax.annotate(
                f"{LABELS[name]} {end.value:.3f}", (1, end.pck), (1.06, places[name]),
                "axes fraction", va="center", fontsize=7, color=COLOURS[name],
                arrowprops={"arrowstyle": "-", "color": COLOURS[name], "lw": 0.6,
                            "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
    grid.tight_layout()
    return grid
