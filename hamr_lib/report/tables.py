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
from hamr_lib.evaluation.scores import (
    METRICS,
    is_stand_in,
    published,
    read_rows,
    score,
)
from hamr_lib.files import read_json, write_aside
from hamr_lib.report.results import (
    ablation_differences,
    intervals_over,
    method_folders,
    paired_difference,
    read_log,
    run_predictions,
    variant_predictions,
)
from hamr_lib.report.style import STAND_IN, caption
from hamr_lib.variants import CLAIMS, FLOORS, LABELS, VARIANTS

MAIN = ("auc", "epe_mean", "auc_2d", "miou")  # beside columns of another kind
HEADLINE = ("auc", "auc_hand3d", "auc_2d", "miou")
SET = "data set"


def write_table(
    table: pd.DataFrame, caption: str, out_dir: Path, name: str, by: str | None = None
) -> pd.DataFrame:
    """Write a table as `<name>.csv`, `.md` and `.tex`, each aside and renamed.

    A caption that names a stand-in is completed by what that means.

    Args:
        by: column by whose values Markdown and LaTeX are split into tables, each without the
            columns that are empty in it; None keeps one table.

    Returns:
        The table as written to the CSV file: missing cells are "-".
    """
    table = table.fillna("-").reset_index(drop=True)
    text = table.astype(str)
    if any(is_stand_in(cell) for column in text for cell in (column, *text[column])):
        caption = f"{caption} {STAND_IN}"
    out_dir = Path(out_dir)
    with write_aside(out_dir / f"{name}.csv") as aside:
        table.to_csv(aside, index=False)
    with write_aside(out_dir / f"{name}.md") as aside:
        pages = [
            (f"**{title}**\n\n" if title else "")
            + part.to_markdown(index=False, tablefmt="github", disable_numparse=True)
            for title, part in _pages(text, by)
        ]
        aside.write_text("\n\n".join([*pages, caption]) + "\n")
    with write_aside(out_dir / f"{name}.tex") as aside:
        pages = []
        for title, part in _pages(text, by):
            about = _latex(f"{title}. {caption}" if title else caption)
            pages.append(part.to_latex(index=False, escape=True, caption=about))
        aside.write_text("\n".join(pages))
    return table


def _pages(text, by):
    """Yield (title, table) of each part of a table."""
    if by is None:
        yield None, text
        return
    for title, part in text.groupby(by, sort=False):
        yield title, part.loc[:, (part != "-").any()].drop(columns=by)


def _latex(text):
    return re.sub(r"([&%_#])", r"\\\1", text)


def results(results_dir: Path) -> pd.DataFrame:
    """The study's numbers: one row a method and set, measured and published apart.

    Needs `metrics.csv`, see `scores.merge_metrics`.
    """
    rows = read_rows(results_dir / "metrics.csv")
    shown = _wide(_of_the_study(rows[rows.source == "measured"]))
    shown = shown.rename(columns={METRICS["auc"]: f"{METRICS['auc']}, our reading"})
    return write_table(shown, caption("results"), results_dir / "tables", "results", by=SET)


def headline(results_dir: Path) -> pd.DataFrame:
    """The main run in one row a set: 3-D AUC under two protocols, 2-D AUC and mIoU."""
    rows = read_rows(results_dir / "metrics.csv")
    rows = rows[(rows.source == "measured") & (rows.method == "main")]
    shown = _wide(_of_the_study(rows), HEADLINE).drop(columns="method")
    shown = shown.rename(columns={METRICS["auc"]: f"{METRICS['auc']}, our reading"})
    return write_table(shown, caption("headline"), results_dir / "tables", "headline")


def literature(results_dir: Path) -> pd.DataFrame:
    """What others report for the real sets, with where it stands and what could be checked."""
    table = published()[["dataset", "method", "metric", "value", "protocol", "where", "checked"]]
    table = table.replace({"metric": METRICS}).rename(columns={"dataset": SET})
    return write_table(table, caption("published"), results_dir / "tables", "published", by=SET)


def table1(results_dir: Path) -> pd.DataFrame:
    """Table 1: mIoU of hand masks, ours as measured and the paper's as published."""
    rows = read_rows(results_dir / "metrics.csv")
    rows = rows[rows.metric == "miou"]
    measured = _of_the_study(rows[rows.source == "measured"])
    if measured.empty:
        raise HamrError(f"{results_dir / 'metrics.csv'} holds no measured mIoU")
    table = pd.concat([measured, rows[rows.source == "published"]])
    table = pd.DataFrame({
        "source": table.source,
        SET: table.dataset,
        "method": table.method.replace(LABELS),
        "mIoU": [_value(row) for row in table.itertuples()],
        "protocol": table.protocol,
    }).sort_values(["source", SET, "mIoU"], kind="stable")  # fmt: skip
    return write_table(table, caption("table1"), results_dir / "tables", "table1")


def protocols(results_dir: Path) -> pd.DataFrame:
    """The same predictions of the main run under every protocol: AUC by protocol and set."""
    rows = read_rows(results_dir / "runs" / "main" / "protocols.csv")
    name = rows.protocol.str.extract(r"^(.*?)(?:, (\w+) camera)?$")
    dataset = rows.dataset + name[1].map(lambda camera: f", {camera} camera", "ignore").fillna("")
    value = [_value(row) for row in rows.itertuples()]
    rows = rows.assign(protocol=name[0], dataset=dataset, value=value)
    table = rows.pivot(index="protocol", columns="dataset", values="value")
    table = table.reindex(rows.protocol.unique()).rename_axis(columns=None)
    text = caption("protocols")
    return write_table(table.reset_index(), text, results_dir / "tables", "protocols")


def ablations(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """The ablations in numbers, with the difference that each makes to the full model.

    Values are means over seeds with 95 % intervals over images and seeds, and so is the difference
    of the 3-D AUC, paired by image and seed; beside it stands that of each seed.
    """
    runs = variant_predictions(results_dir, ("full", *settings.study.ablations), settings)
    scored = [
        score(sets[name], settings.evaluate) for name in runs["full"] for sets in runs.values()
    ]
    table = _wide(pd.concat(scored), MAIN)
    gains = ablation_differences(results_dir, settings)
    gains = gains.set_index([gains.dataset, gains.variant.replace(LABELS)])
    own = [
        (signed(gains.loc[key]), ", ".join(f"{one:+.3f}" for one in gains.loc[key, "each"]))
        if key in gains.index
        else ("-", "-")
        for key in zip(table[SET], table.method, strict=True)
    ]
    table["3-D AUC minus the full model's"], table["of each seed"] = zip(*own, strict=True)
    text = caption(
        "ablations_table", steps=settings.study.ablation_steps, over=intervals_over(settings)
    )
    return write_table(table, text, results_dir / "tables", "ablations", by=SET)


def claims(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """What the paper says of its four parts, and whether it holds in this study's ablations.

    A part helps where the 3-D AUC without it is lower, with the whole interval of the difference.
    Where a study asks for none of the four, the table is empty and not written.
    """
    return _verdicts(results_dir, settings, CLAIMS, "the paper says", "without it", "claims")


def choices(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """What each choice changes that the paper leaves open, and each deviation; as `claims`."""
    named = {name: LABELS[name] for name in settings.study.ablations if name not in CLAIMS}
    return _verdicts(results_dir, settings, named, "choice", "with it", "choices")


def _verdicts(results_dir, settings, named, title, how, name):
    """A row for each variant of the study that is named, a column for each set; written, if any."""
    gains = ablation_differences(results_dir, settings)
    rows = []
    for variant, words in named.items():
        row = {title: words}
        for _, gain in gains[gains.variant == variant].iterrows():
            row[f"{gain.dataset}, {how}"] = f"{_verdict(gain)}: {signed(gain)}"
        if len(row) > 1:  # the study may have left it out
            rows.append(row)
    if not rows:
        return pd.DataFrame(rows)
    text = caption(name, steps=settings.study.ablation_steps, over=intervals_over(settings))
    return write_table(pd.DataFrame(rows), text, results_dir / "tables", name)


def comparisons(results_dir: Path, settings: Settings) -> pd.DataFrame:
    """The methods of `comparisons/` beside the network, with paired differences to HAMR.

    The difference is to HAMR with the comparisons' budget; where that was not run, to the main
    run, as the column's title says. What a method stands for, how it deviates from it and what it
    costs is written as a second table, `methods`.
    """
    folders = method_folders(results_dir)
    methods = {name: run_predictions(folder) for name, folder in folders.items()}
    if len(methods) == 1:
        raise HamrError(f"{results_dir} holds no comparisons/*/metrics.csv: run them first")
    ours = "hamr" if "hamr" in methods else "main"
    rows, gains = [], []
    for dataset in methods["main"]:
        for found in methods.values():
            scored = score([found[dataset]], settings.evaluate)
            if scored.empty:  # a method of masks alone has no row on a set without them
                continue
            rows.append(scored)
            test = paired_difference([methods[ours][dataset]], [found[dataset]], settings)
            alike = test is None or found is methods[ours]
            gains.append(("-", "-") if alike else (signed(test), f"{test['p_value']:.2g}"))
    table = _wide(pd.concat(rows), MAIN)
    title = f"3-D AUC of {'ours' if ours == 'main' else LABELS[ours]} minus it"
    table[title], table["p"] = zip(*gains, strict=True)
    out_dir = results_dir / "tables"
    _write_methods(folders, settings, out_dir)
    steps = {"steps": settings.study.comparison_steps, "main_steps": settings.train.steps}
    only_controls = set(methods) <= {"main", *FLOORS}
    text = caption("controls") if only_controls else caption("comparisons", **steps)
    return write_table(table, text, out_dir, "comparisons", by=SET)


def _write_methods(folders, settings, out_dir):
    """Write the second table of `comparisons`: what each method is, and what it costs."""
    folders = {name: path for name, path in folders.items() if (path / "about.json").is_file()}
    if not folders:
        return
    table = deviations(list(folders.values()))
    costs = pd.DataFrame([_costs(folder, settings) for folder in folders.values()])
    table = pd.concat([table.iloc[:, :4], costs, table.iloc[:, 4:]], axis=1)
    write_table(table, caption("methods"), out_dir, "methods")


def _costs(folder, settings):
    """What a method costs, as text; "-" where it was not recorded."""
    row = dict.fromkeys(("parameters (M)", "GFLOP an image", "fit (s)", "ms an image"), "-")
    if (folder / "cost.json").is_file():
        cost = read_json(folder / "cost.json")
        row["parameters (M)"] = f"{cost['parameters'] / 1e6:.2f}"
        row["GFLOP an image"] = f"{cost['gflop']:.2f}"
        row["ms an image"] = f"{cost['ms_an_image']:.3g}"
    if (folder / "log.csv").is_file():
        row["fit (s)"] = f"{read_log(folder / 'log.csv', settings).seconds.iloc[-1]:.0f}"
    return row


EVIDENCE = {
    "auc_2d_box": "2-D AUC, of the box",
    "auc": "3-D AUC, one bone aligned",
    "auc_procrustes": "3-D AUC, Procrustes",
}


def photographs(results_dir: Path) -> pd.DataFrame:
    """How well the network does on hands in photographs; see `scores.evaluate_photographs`."""
    rows = read_rows(results_dir / "runs" / "main" / "photographs.csv")
    table = _wide(rows)
    table.insert(2, "hands", rows.n.max())
    return write_table(table, caption("photographs"), results_dir / "tables", "photographs")


def evidence(results_dir: Path) -> pd.DataFrame:
    """What `recover` makes of each kind of evidence; see `evidence.evaluate_evidence`."""
    path = results_dir / "runs" / "main" / "evidence.csv"
    if not path.is_file():
        raise HamrError(f"{path} is missing: run the evaluation first")
    rows = pd.read_csv(path)
    table = _wide(rows, names=EVIDENCE).rename(columns={"method": "evidence"})
    counts = rows.drop_duplicates(["dataset", "method"])
    table.insert(2, "hands", counts.n.to_numpy())
    table.insert(3, "of", counts.of.to_numpy())
    return write_table(table, caption("evidence"), results_dir / "tables", "evidence")


def signed(test, digits=3):
    """Write a difference with its interval, as in a paired test or a row of differences."""
    values = [f"{test[key]:+.{digits}f}" for key in ("difference", "ci_low", "ci_high")]
    return "{} [{}, {}]".format(*values)


def _verdict(gain):
    """What a difference says of what was left out or changed."""
    if gain["ci_high"] < 0:
        return "worse"
    return "better" if gain["ci_low"] > 0 else "no clear difference"


def _of_the_study(rows):
    """The rows of the main run and the comparisons on the sets; others have tables of their own."""
    return rows[~rows.method.isin(list(VARIANTS)) & (rows.dataset != TITLE)]


def _wide(rows, metrics=None, names=METRICS):
    """Long rows to one row a set and method, one column a metric that any of them has."""
    rows = rows.assign(text=[_value(row) for row in rows.itertuples()])
    wide = rows.pivot(index=["dataset", "method"], columns="metric", values="text")
    wide = wide[[m for m in metrics or names if m in wide]].rename(columns=names)
    wide = wide.reindex(pd.MultiIndex.from_frame(rows[["dataset", "method"]].drop_duplicates()))
    wide = wide.rename_axis(columns=None).reset_index()
    wide["method"] = wide.method.replace(LABELS)
    return wide.rename(columns={"dataset": SET})


def _value(row):
    """A number as text. Errors in mm or pixels stand without the interval that metrics.csv has."""
    if row.metric.startswith("epe"):
        return f"{row.value:.1f}"
    if np.isnan(row.ci_low):
        return f"{row.value:.3f}"
    return f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
