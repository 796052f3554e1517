"""The look of the figures, their captions and their files."""

import io
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from hamr_lib.evaluation.scores import is_stand_in
from hamr_lib.files import read_yaml, write_aside, write_text
from hamr_lib.variants import CLAIMS, COMPARISONS

CAPTIONS = Path(__file__).with_name("captions.yaml")
STAND_IN = (
    "Sets named open-... are our own rendered stand-ins: their numbers are not numbers on the real "
    "sets."
)
WIDTH = 7.2  # inches, both columns of a page
# Colours that colour-blind readers tell apart: Okabe and Ito's first, the floors in grey.
PALETTE = ("#0072B2", "#000000", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#999933",
           "#882255", "#332288", "#AA4499", "#777777", "#AAAAAA", "#661100")  # fmt: skip
METHODS = ("main", "main, heat maps", *COMPARISONS, "one-look")
# One colour for a method or variant in every figure.
COLOURS = {
    **dict(zip(METHODS, cycle(PALETTE), strict=False)),
    **dict(zip(("full", *CLAIMS), cycle(PALETTE), strict=False)),
}
plt.switch_backend(plt.get_backend())  # Jupyter sets its own up now, not within `styled`
# Decorates what draws.
styled = plt.rc_context({
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", font_scale=0.85),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "legend.frameon": False,
    "patch.edgecolor": "black",  # of arrows
    "patch.force_edgecolor": False,
    "pdf.fonttype": 42,  # text stays text
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.02,
})  # fmt: skip


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
    about = caption("figures", name, data.get("dataset", ()), **words)
    with write_aside(folder / f"{name}.pdf") as aside:  # without a date: the same every time
        fig.savefig(aside, metadata={"CreationDate": None})
    with write_aside(folder / f"{name}.png") as aside:
        fig.savefig(aside)
    write_text(folder / f"{name}.csv", data.to_csv(index=False, float_format="%.6g"))
    write_text(folder / f"{name}.md", f"{about}\n")
    return fig


def shrink_png(path: Path, limit: int = 300_000) -> None:
    """Rewrite a PNG of more than `limit` bytes with 256 colours, scaled down by four at most."""
    if path.stat().st_size <= limit:
        return
    with Image.open(path) as picture:
        whole = picture.convert("RGB")
    for scale in (1.0, 0.7, 0.5, 0.35, 0.25):
        content = io.BytesIO()
        ImageOps.scale(whole, scale).quantize(256).save(content, "PNG", optimize=True)
        if content.tell() <= limit:
            break
    with write_aside(path) as aside:
        aside.write_bytes(content.getvalue())


def set_title(dataset: str) -> str:
    """Return a set's name as a title, which tells a stand-in."""
    return f"{dataset} (rendered stand-in)" if is_stand_in(dataset) else dataset
