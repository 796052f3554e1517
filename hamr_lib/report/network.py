"""Fig. 2 and 3: the network, drawn from its own modules."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from hamr_lib.model.blocks import describe_blocks
from hamr_lib.model.hamr import HAMR
from hamr_lib.report.style import COLOURS, WIDTH, caption, save_figure, styled


@styled
def fig2(model: HAMR, out_dir: Path | None) -> Figure:
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
    data = blocks.assign(shape=["x".join(map(str, s)) for s in blocks["shape"]])
    return save_figure(fig, data, caption("fig2", millions=total / 1e6), out_dir, "fig2_network")


@styled
def fig3(model: HAMR, out_dir: Path | None) -> Figure:
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
    _arrow(ax, (left - 0.02, 0.9), (0.02, 0.9), connectionstyle="arc3,rad=0.12")
    ax.text(0, 1.1, f"{times}: the layers see the last estimate and add to it", fontsize=7)
    steps = ["hand layer\n(Section 3.1)", "mesh, then\njoints (Eq. 3)", "projection\n(Eq. 4-5)"]
    for k, text in enumerate(steps if model.mesh else ["21 joints", "projection\n(Eq. 4-5)"]):
        x = left + 0.09 + 0.29 * k
        ax.add_patch(FancyBboxPatch((x, 0.56), 0.2, 0.28, boxstyle="round,pad=0.01", lw=0.7,
                                    facecolor="white", edgecolor="0.3"))  # fmt: skip
        ax.text(x + 0.1, 0.7, text, ha="center", va="center", fontsize=7)
        _arrow(ax, (x - 0.08, 0.7), (x - 0.01, 0.7))
    ax.set(xlim=(-0.01, left + 0.9), ylim=(0.53, 1.2))
    ax.axis("off")
    form = (
        "three axis-angle numbers" if turn == 3 else "given in the 6-D form of Zhou et al. (2019)"
    )
    words = caption("fig3", total=total, times=times, turn=form)
    data = pd.DataFrame(parts, columns=["part", "numbers"])
    return save_figure(fig, data, words, out_dir, "fig3_regression")


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
            _arrow(ax, (i - 0.2, 0), (i + 0.2, 0))
    ax.set(xlim=(0, len(rows)), ylim=(-1.05, 0.62))
    ax.set_title(title, loc="left")
    ax.axis("off")


def _feedback(ax, place, iterations):
    """The estimate that goes back into the layers, whose box is the one at `place`."""
    _arrow(ax, (place + 0.75, 0.36), (place + 0.3, 0.36), connectionstyle="arc3,rad=0.9")
    ax.text(place + 0.85, 0.62, f"last estimate,\n{iterations} iterations", fontsize=7, va="center")


def _branch(ax, name, size, count, place):
    """A box above the chain, from its first box to the one at `place`."""
    ax.add_patch(Rectangle((place / 2, 0.8), 1.2, 0.34, lw=0.7, edgecolor="0.3",
                           facecolor=COLOURS[4], alpha=0.5))  # fmt: skip
    ax.text(place / 2 + 0.6, 0.97, name, ha="center", va="center", fontsize=7)
    ax.text(place / 2 + 1.3, 0.97, f"{'x'.join(map(str, size))}, {_thousands(count)}",
            va="center", fontsize=7)  # fmt: skip
    ax.plot([0.5, 0.5], [0.5, 0.97], "k", lw=0.7)
    _arrow(ax, (0.5, 0.97), (place / 2, 0.97), shrinkA=0, shrinkB=0)
    ax.plot([place / 2 + 0.6, place / 2 + 0.6, place + 0.25], [1.14, 1.25, 1.25], "k", lw=0.7)
    _arrow(ax, (place + 0.25, 1.25), (place + 0.25, 0.38), shrinkA=0, shrinkB=0)
    ax.set_ylim(-1.05, 1.3)


def _arrow(ax, start, end, **style):
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "lw": 0.7, **style})


def _thousands(count):
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
