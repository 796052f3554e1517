"""Tables from saved results: each as CSV, Markdown and LaTeX, and as the DataFrame it shows.

In Markdown and LaTeX, results on several data sets are one table a set, a method a row.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from hamr_lib.baselines import deviations
from hamr_lib.config import Settings
from hamr_lib.data.photographs import TITLE
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.scores import METRICS, published, read_rows, score
from hamr_lib.files import read_json, write_text
from hamr_lib.report import results as saved
from hamr_lib.report.style import caption
from hamr_lib.variants import CLAIMS, FLOORS, LABELS, VARIANTS

SET = "data set"
STEPS = (250, 500, 1000, 2000, 3000)  # of the table along the training; the figure has all
OUR_READING = METRICS | {"auc": f"{METRICS['auc']}, our reading"}
MAIN = {name: METRICS[name] for name in ("auc", "epe_mean", "auc_2d", "miou")}
HEADLINE = {name: OUR_READING[name] for name in ("auc", "auc_hand3d", "auc_2d", "miou")}
EVIDENCE = {
    "auc_2d_box": "2-D AUC, of the box",
    "auc": "3-D AUC, one bone aligned",
    "auc_procrustes": "3-D AUC, Procrustes",
}


def write_table(
    table: pd.DataFrame, folder: Path, name: str, by: str = "", words_of: str = "", **words
) -> pd.DataFrame:
    """Write a table as `<name>.csv`, `.md` and `.tex`, each aside and renamed.

    Args:
        by: column by whose values Markdown and LaTeX are split into tables, each without the
            columns that are empty in it; "" keeps one table.
        words_of: key of the caption in captions.yaml, if not `name`.
        words: of the caption.

    Returns:
        The table as written to the CSV file: missing cells are "-".
    """
    table = table.fillna("-").reset_index(drop=True)
    text = table.astype(str)
    about = caption("tables", words_of or name, (*text, *text.to_numpy().flat), **words)
    parts = {"": text}
    if by:
        parts = {
            title: part.loc[:, (part != "-").any()].drop(columns=by)
            for title, part in text.groupby(by, sort=False)
        }
    markdown, latex = [], []
    for title, part in parts.items():
        shown = part.to_markdown(index=False, tablefmt="github", disable_numparse=True)
        markdown.append(f"**{title}**\n\n{shown}" if title else shown)
        above = re.sub(r"([&%_#])", r"\\\1", f"{title}. {about}" if title else about)
        latex.append(part.to_latex(index=False, escape=True, caption=above))
    write_text(folder / f"{name}.csv", table.to_csv(index=False))
    write_text(folder / f"{name}.md", "\n\n".join([*markdown, about]) + "\n")
    write_text(folder / f"{name}.tex", "\n".join(latex))
    return table


def results(results_dir: Path) -> pd.DataFrame:
    """Write what this study measured, a row a method and set; needs `scores.merge_metrics`."""
    shown = _wide(_of_the_study(results_dir), OUR_READING)
    return write_table(shown, results_dir / "tables", "results", by=SET)


def headline(results_dir: Path) -> pd.DataFrame:
    """Write the main run in one row a set: 3-D AUC under two protocols, 2-D AUC and mIoU."""
    shown = _wide(_of_the_study(results_dir).query("method == 'main'"), HEADLINE)
    return write_table(shown.drop(columns="method"), results_dir / "tables", "headline")


def literature(results_dir: Path) -> pd.DataFrame:
    """Write what others report for the real sets, where it stands and what could be checked."""
    table = published()[["dataset", "method", "metric", "value", "protocol", "where", "checked"]]
    table = table.replace({"metric": METRICS}).rename(columns={"dataset": SET})
    return write_table(table, results_dir / "tables", "published", by=SET)


def table1(results_dir: Path) -> pd.DataFrame:
    """Write Table 1: mIoU of hand masks, ours as measured and the paper's as published."""
    rows = read_rows(results_dir / "metrics.csv")
    rows = pd.concat([_of_the_study(results_dir), rows[rows.source == "published"]])
    rows = rows[rows.metric == "miou"]
    if not (rows.source == "measured").any():
        raise HamrError(f"{results_dir / 'metrics.csv'} holds no measured mIoU")
    rows = rows.assign(mIoU=_values(rows)).replace({"method": LABELS})
    table = rows[["source", "dataset", "method", "mIoU", "protocol"]]
    table = table.sort_values(["source", "dataset", "mIoU"], kind="stable")
    table = table.rename(columns={"dataset": SET})
    return write_table(table, results_dir / "tables", "table1")


def protocols(results_dir: Path) -> pd.DataFrame:
    """Write the AUC of the main run's predictions under every protocol, a column a set."""
    rows = read_rows(results_dir / "runs" / "main" / "protocols.csv")
    name = rows.protocol.str.extract(r"^(.*?)(?:, (\w+ camera))?$")
    dataset = rows.dataset + (", " + name[1]).fillna("")
    rows = rows.assign(protocol=name[0], dataset=dataset, value=_values(rows))
    table = rows.pivot(index="protocol", columns="dataset", values="value")
    table = table.reindex(rows.protocol.unique()).rename_axis(columns=None).reset_index()
    return write_table(table, results_dir / "tables", "protocols")


def ablations(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Write the ablations' means over seeds, and the difference of the 3-D AUC to the full model's.

    The difference is paired by image and seed; beside it stands that of each seed.
    """
    runs = saved.variant_runs(results_dir, settings)
    gains = saved.differences(runs, "full", settings)
    gains["3-D AUC minus the full model's"] = [signed(gain) for gain in gains.to_dict("records")]
    gains["of each seed"] = [", ".join(f"{one:+.3f}" for one in each) for each in gains.each]
    table = _beside(runs, gains.iloc[:, [0, 1, -2, -1]], settings)
    words = saved.ablation_words(settings)
    return write_table(table, results_dir / "tables", "ablations", by=SET, **words)


def _beside(runs, gains, settings):
    """The scores of `results.runs`, a row a set and method, with what stands in `gains` of each."""
    sets = next(iter(runs.values()))
    rows = pd.concat(score(found[d], settings.evaluate) for d in sets for found in runs.values())
    gains = gains.replace({"method": LABELS}).rename(columns={"dataset": SET})
    return _wide(rows, MAIN).merge(gains, how="left")


def claims(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Write what the paper says of its four parts, and whether it holds in these ablations.

    A claim holds on a set where the 3-D AUC without the part is lower, with the whole interval of
    the difference. Where a study asks for none of the four, the table is empty and not written.
    """
    return _verdicts(results_dir, settings, CLAIMS, "the paper says", "without it", "claims")


def choices(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Write what each choice and deviation changes that is no claim of the paper; as `claims`."""
    named = {name: LABELS[name] for name in settings.study.ablations if name not in CLAIMS}
    return _verdicts(results_dir, settings, named, "choice", "with it", "choices")


def _verdicts(results_dir, settings, named, title, how, name):
    """A row for each variant of the study that is named, a column for each set; written, if any."""
    gains = saved.differences(saved.variant_runs(results_dir, settings), "full", settings)
    rows = []
    for variant, about in named.items():
        own = gains[gains.method == variant]
        signs = [own.ci_high < 0, own.ci_low > 0]
        words = np.select(signs, ["worse", "better"], "no clear difference")
        row = {title: about}
        if named is CLAIMS:
            holds = np.select(signs, ["holds", "does not hold"], "undecided")
            by_word = own.dataset.groupby(holds, sort=False).agg(", ".join)
            row["verdict"] = "; ".join(f"{word} on {sets}" for word, sets in by_word.items())
        for word, gain in zip(words, own.to_dict("records"), strict=True):
            row[f"{gain['dataset']}, {how}"] = f"{word}: {signed(gain)}"
        if len(own):  # the study may have left it out
            rows.append(row)
    if not rows:
        return pd.DataFrame(rows)
    words = saved.ablation_words(settings)
    return write_table(pd.DataFrame(rows), results_dir / "tables", name, **words)


def comparisons(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Write the baselines beside the network, and the table `methods` of what each is and costs.

    The paired difference is to HAMR with the baselines' budget, or, where that was not run, to the
    main run, as the column's title says.
    """
    folders, runs = saved.method_folders(results_dir), saved.method_runs(results_dir)
    if len(runs) == 1:
        raise HamrError(f"{results_dir} holds no comparisons/*/metrics.csv: run them first")
    ours = "hamr" if "hamr" in runs else "main"
    gains = saved.differences(runs, ours, settings)
    title = f"3-D AUC of {'ours' if ours == 'main' else LABELS[ours]} minus it"
    swapped = {"difference": -gains.difference, "ci_low": -gains.ci_high, "ci_high": -gains.ci_low}
    gains[title] = [signed(gain) for gain in gains.assign(**swapped).to_dict("records")]
    gains["p"] = gains.p_value.map("{:.2g}".format)
    table = _beside(runs, gains[["dataset", "method", title, "p"]], settings)
    out_dir = results_dir / "tables"
    if told := [path for path in folders.values() if (path / "about.json").is_file()]:
        costs = pd.DataFrame([_cost(path, settings) for path in told])
        about = deviations(told)
        about = pd.concat([about.iloc[:, :4], costs, about.iloc[:, 4:]], axis=1)
        write_table(about, out_dir, "methods")
    words = {"steps": settings.study.comparison_steps, "main_steps": settings.train.steps}
    words_of = "controls" if set(runs) <= {"main", "one-look", *FLOORS} else "comparisons"
    return write_table(table, out_dir, "comparisons", by=SET, words_of=words_of, **words)


def _cost(folder, settings):
    """What a method costs, as text; nothing of two of them is trained."""
    cost, log = read_json(folder / "cost.json"), folder / "log.csv"
    seconds = saved.read_log(log, settings).seconds.iloc[-1] if log.is_file() else None
    return {
        "parameters (M)": f"{cost['parameters'] / 1e6:.2f}",
        "GFLOP an image": f"{cost['gflop']:.2f}",
        "fit (s)": "-" if seconds is None else f"{seconds:.0f}",
        "ms an image": f"{cost['ms_an_image']:.3g}",
    }


def photographs(results_dir: Path) -> pd.DataFrame:
    """Write how well the network does on photographs; see `scores.evaluate_photographs`."""
    rows = read_rows(results_dir / "runs" / "main" / "photographs.csv")
    table = _wide(rows)
    table.insert(2, "hands", rows.n.max())
    return write_table(table, results_dir / "tables", "photographs")


def evidence(results_dir: Path) -> pd.DataFrame:
    """Write what `recover` makes of each kind of evidence; see `evidence.evaluate_evidence`."""
    rows = read_rows(results_dir / "runs" / "main" / "evidence.csv")
    table = _wide(rows, EVIDENCE).rename(columns={"method": "evidence"})
    counts = rows.drop_duplicates(["dataset", "method"])
    table.insert(2, "hands", counts.n.to_numpy())
    table.insert(3, "of", counts.of.to_numpy())
    return write_table(table, results_dir / "tables", "evidence")


def along_training(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Write the table `along_training`: the differences at a few steps."""
    found = saved.differences_along(results_dir, settings)
    shown = found[found.step.isin(STEPS) | (found.step == found.step.max())]
    full = shown.drop_duplicates("step").set_index("step").full.map("{:.1f}".format)
    shown = shown.assign(cell=[signed(row, 1) for row in shown.to_dict("records")])
    table = shown.pivot(index="variant", columns="step", values="cell")
    table = table.reindex(settings.study.ablations)
    table = pd.concat([full.rename("full").to_frame().T, table]).add_suffix(" steps")
    table.insert(0, "mm", [LABELS[variant] for variant in table.index])
    words = saved.ablation_words(settings)
    return write_table(table, results_dir / "tables", "along_training", **words)


def time_to_accuracy(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """Write the table `time_to_accuracy`: validation error of the main run by training time."""
    log = saved.read_log(results_dir / "runs" / "main" / "log.csv", settings)
    shown = log.iloc[np.unique(np.linspace(0, len(log) - 1, 10).round().astype(int))]
    table = pd.DataFrame({
        "steps": shown.step,
        "training (minutes)": (shown.seconds / 60).map("{:.1f}".format),
        "mean 3-D error, validation (mm)": shown.val_joints_3d_mm.map("{:.1f}".format),
    })  # fmt: skip
    return write_table(table, results_dir / "tables", "time_to_accuracy")


def signed(test: dict, digits: int = 3) -> str:
    """Write a difference with its interval, as in a paired test or a row of differences."""
    values = [f"{test[key]:+.{digits}f}" for key in ("difference", "ci_low", "ci_high")]
    return "{} [{}, {}]".format(*values)


def _of_the_study(results_dir):
    """Measured rows of the main run and the baselines on the sets; others have their own tables."""
    rows = read_rows(results_dir / "metrics.csv")
    rows = rows[(rows.source == "measured") & (rows.dataset != TITLE)]
    return rows[~rows.method.isin(list(VARIANTS))]


def _wide(rows, names=METRICS):
    """Long rows to one row a set and method, one column a metric that any of them has."""
    keys = ["dataset", "method"]
    wide = rows.assign(text=_values(rows)).pivot(index=keys, columns="metric", values="text")
    wide = wide[[metric for metric in names if metric in wide]].rename(columns=names)
    wide = wide.reindex(pd.MultiIndex.from_frame(rows[keys].drop_duplicates()))
    wide = wide.rename_axis(columns=None).reset_index().replace({"method": LABELS})
    return wide.rename(columns={"dataset": SET})


def _values(rows):
    """Numbers as text. Errors in mm or pixels stand without the interval that metrics.csv has."""
    text = []
    for row in rows.itertuples():
        digits = 1 if row.metric.startswith("epe") else 3
        bare = digits == 1 or np.isnan(row.ci_low)
        interval = "" if bare else f" [{row.ci_low:.3f}, {row.ci_high:.3f}]"
        text.append(f"{row.value:.{digits}f}{interval}")
    return text
