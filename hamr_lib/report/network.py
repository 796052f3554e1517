"""Fig. 2 and 3: the network, drawn from its own modules."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from hamr_lib.model.blocks import describe_blocks
from hamr_lib.model.hamr import HAMR
from hamr_lib.report.style import COLOURS, WIDTH, save_figure, styled

CENTRED = {"ha": "center", "va": "center", "fontsize": 7}
BOX = {"lw": 0.7, "edgecolor": "0.3", "facecolor": COLOURS[4], "alpha": 0.5}


@styled
def fig2(model: HAMR, out_dir: Path | None) -> Figure:
    """Draw Fig. 2: the network as it is built, each block with its output's shape and weights."""
    blocks = describe_blocks(model)
    of_regression = ("encoder", "joint_features", "layers")
    pose = [block for block in blocks if not block[0].startswith(of_regression)]
    branch = [block for block in blocks if block[0] == "joint_features"]
    chain = [block for block in blocks if block not in (*pose, *branch)]
    tall = 0.9 * len(branch)  # inches, for what is drawn above the chain
    size = (WIDTH, 3.8 + tall)
    fig, (above, below) = plt.subplots(2, 1, figsize=size, height_ratios=(1.9, 1.9 + tall))
    image = ("image", (3, model.image_size, model.image_size), None)
    _chain(above, "2-D pose module (Section 3.3)", [image, *pose])
    *_, features, maps = (row[1] for row in pose if row[0].startswith(("features", "maps")))
    joined = ("features + maps", (features[0] + maps[0], *maps[1:]), None)
    last = ("hand layer", None, None)
    _chain(below, "iterative regression (Section 3.2)", [joined, *chain, last])
    place = len(chain)  # of the layers, into which the estimate goes back
    _arrow(below, (place + 0.75, 0.36), (place + 0.3, 0.36), connectionstyle="arc3,rad=0.9")
    told = f"last estimate,\n{model.regressor.iterations} iterations"
    below.text(place + 0.85, 0.62, told, fontsize=7, va="center")
    for row in branch:
        _branch(below, *row, place)
    pooled = model.regressor.sizes[0] - chain[-2][1][0]  # beside the features of the encoder
    if pooled:
        told = f"{pooled} pooled features\nof the stem"
        below.text(place - 0.15, 0.62, told, fontsize=7, ha="right", va="center")
        _arrow(below, (place - 0.12, 0.62), (place + 0.22, 0.37))
    fig.tight_layout(h_pad=0.5)
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = [(name, "x".join(map(str, shape)), count) for name, shape, count in blocks]
    data = pd.DataFrame(rows, columns=["block", "shape", "parameters"])
    return save_figure(fig, data, out_dir, "fig2_network", millions=total / 1e6)


@styled
def fig3(model: HAMR, out_dir: Path | None) -> Figure:
    """Draw Fig. 3: what is regressed, and how an estimate becomes a mesh and its projection."""
    turn = 3 if model.rotation == "axis_angle" else 6
    parts = [("camera", 3), ("joints", 63)]
    steps = ["21 joints", "projection\n(Eq. 4-5)"]
    if model.mesh:
        components = model.hand.pose_components
        parts[1:] = [("rotation", turn), ("pose", components), ("shape", 10)]
        steps[:1] = ["hand layer\n(Section 3.1)", "mesh, then\njoints (Eq. 3)"]
    total = sum(n for _, n in parts)
    fig, ax = plt.subplots(figsize=(WIDTH, 1.5))
    left = 0.0
    for (name, size), colour in zip(parts, COLOURS, strict=False):
        width = 0.12 + 0.3 * size / total
        style = {"facecolor": colour, "edgecolor": colour, "alpha": 0.35, "lw": 0.6}
        ax.add_patch(Rectangle((left, 0.55), width, 0.3, **style))
        ax.text(left + width / 2, 0.7, f"{name}\n{size}", **CENTRED)
        left += width
    times = f"{model.regressor.iterations} iteration{'s' * (model.regressor.iterations > 1)}"
    _arrow(ax, (left - 0.02, 0.9), (0.02, 0.9), connectionstyle="arc3,rad=0.12")
    ax.text(0, 1.1, f"{times}: the layers see the last estimate and add to it", fontsize=7)
    style = {"boxstyle": "round,pad=0.01", "lw": 0.7, "facecolor": "white", "edgecolor": "0.3"}
    for k, text in enumerate(steps):
        x = left + 0.09 + 0.29 * k
        ax.add_patch(FancyBboxPatch((x, 0.56), 0.2, 0.28, **style))
        ax.text(x + 0.1, 0.7, text, **CENTRED)
        _arrow(ax, (x - 0.08, 0.7), (x - 0.01, 0.7))
    ax.set(xlim=(-0.01, left + 0.9), ylim=(0.53, 1.2))
    ax.axis("off")
    forms = {3: "three axis-angle numbers", 6: "given in the 6-D form of Zhou et al. (2019)"}
    data = pd.DataFrame(parts, columns=["part", "numbers"])
    words = {"total": total, "times": times, "turn": forms[turn]}
    return save_figure(fig, data, out_dir, "fig3_regression", **words)


def _chain(ax, title, rows):
    """A row of boxes joined by arrows; heights go by the logarithm of the output's side.

    Args:
        rows: (name, shape of the output or None, trained parameters or None) of each box.
    """
    for i, (name, shape, count) in enumerate(rows):
        height = 0.7 + 0.05 * np.log2(shape[-1] if shape and len(shape) == 3 else 1)
        style = BOX | ({"facecolor": "0.95", "alpha": 1} if count is None else {})
        ax.add_patch(Rectangle((i + 0.2, -height / 2), 0.6, height, **style))
        ax.text(i + 0.5, 0, name.replace(" + ", "\n+ "), rotation=90, **CENTRED)
        text = []
        if shape:  # the channels, then height and width where there are such
            text = [str(shape[0])] + ["x".join(map(str, shape[1:]))] * (len(shape) > 1)
        text += [_thousands(count)] if count else []
        ax.text(i + 0.5, -0.6, "\n".join(text), ha="center", va="top", fontsize=7)
        if i:
            _arrow(ax, (i - 0.2, 0), (i + 0.2, 0))
    ax.set(xlim=(0, len(rows)), ylim=(-1.05, 0.62))
    ax.set_title(title, loc="left")
    ax.axis("off")


def _branch(ax, name, shape, count, place):
    """A box above the chain, from its first box to the one at `place`."""
    x = place / 2
    ax.add_patch(Rectangle((x, 0.8), 1.2, 0.34, **BOX))
    ax.text(x + 0.6, 0.97, name, **CENTRED)
    told = f"{'x'.join(map(str, shape))}, {_thousands(count)}"
    ax.text(x + 1.3, 0.97, told, va="center", fontsize=7)
    ax.plot([0.5, 0.5], [0.5, 0.97], "k", lw=0.7)
    _arrow(ax, (0.5, 0.97), (x, 0.97), shrinkA=0, shrinkB=0)
    ax.plot([x + 0.6, x + 0.6, place + 0.25], [1.14, 1.25, 1.25], "k", lw=0.7)
    _arrow(ax, (place + 0.25, 1.25), (place + 0.25, 0.38), shrinkA=0, shrinkB=0)
    ax.set_ylim(-1.05, 1.3)


def _arrow(ax, start, end, **style):
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "lw": 0.7, **style})


def _thousands(count):
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
