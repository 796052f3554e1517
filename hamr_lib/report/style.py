"""The look of the figures, their captions and their files."""

import functools
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from hamr_lib.evaluation.scores import is_stand_in
from hamr_lib.files import read_yaml, write_aside

CAPTIONS = Path(__file__).with_name("captions.yaml")
STAND_IN = (
    "Sets named open-... are our own rendered stand-ins: their numbers are not numbers on the real "
    "sets."
)

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
# Okabe and Ito's colour-blind safe colours, without the yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
WIDTH = 7.2  # inches, both columns of a page


def caption(kind: str, name: str, cells: Iterable, **words) -> str:
    """Fill in the words under a table or figure: those of captions.yaml, by kind and name.

    Where one of the `cells` that it shows is a stand-in's name, they say what that means.
    """
    text = read_yaml(CAPTIONS)[kind][name].format(**words)
    return f"{text} {STAND_IN}" if any(is_stand_in(str(cell)) for cell in cells) else text


def save_figure(fig: Figure, data: pd.DataFrame, folder: Path | None, name: str, **words) -> Figure:
    """Write a figure as `<name>.pdf`, `.png`, `.csv` and `.md`, each aside and renamed; return it.

    Args:
        data: exactly what is plotted; a column `dataset` holds the sets' display names.
        folder: None writes nothing.
        words: of the caption.
    """
    if folder is None:
        return fig
    text = caption("figures", name, data.get("dataset", ()), **words)
    tight = {"bbox_inches": "tight", "pad_inches": 0.02}
    with write_aside(folder / f"{name}.pdf") as aside:  # without a date: the same every time
        fig.savefig(aside, metadata={"CreationDate": None}, **tight)
    with write_aside(folder / f"{name}.png") as aside:
        fig.savefig(aside, **tight)
    with write_aside(folder / f"{name}.csv") as aside:
        data.to_csv(aside, index=False, float_format="%.6g")
    with write_aside(folder / f"{name}.md") as aside:
        aside.write_text(text + "\n")
    return fig


def styled(draw):
    """Draw under `STYLE`.

    Without `plt.rc_context`, which also undoes what Jupyter sets at a notebook's first figure so
    that figures are shown.
    """

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        before = {name: plt.rcParams[name] for name in STYLE}
        plt.rcParams.update(STYLE)
        try:
            return draw(*args, **kwargs)
        finally:
            plt.rcParams.update(before)

    return drawn


def set_title(dataset: str) -> str:
    """Return a set's name as a title, which tells a stand-in."""
    return f"{dataset} (rendered stand-in)" if is_stand_in(dataset) else dataset
