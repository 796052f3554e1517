"""Fig. 2 and 3: the network, drawn from its own modules."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from hamr_lib.model.blocks import describe_blocks
from hamr_lib.model.hamr import HAMR
from hamr_lib.report.style import PALETTE, WIDTH, save_figure, styled

BOX = {"lw": 0.7, "edgecolor": "0.3"}
LIGHT = "#a8d4ee"
short = EngFormatter(places=1)  # 1.2 M, 34.5 k


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
    last = ("hand layer", (), None)
    _chain(below, "iterative regression (Section 3.2)", [joined, *chain, last])
    place = len(chain)  # of the layers, into which the estimate goes back
    _arrow(below, (place + 0.75, 0.36), (place + 0.3, 0.36), connectionstyle="arc3,rad=0.9")
    told = f"last estimate,\n{model.regressor.iterations} iterations"
    below.text(place + 0.85, 0.62, told, fontsize=7, va="center")
    for name, shape, count in branch:  # a box above the chain, from its first box to the layers
        below.bar(place / 2 + 0.6, 0.34, 1.2, 0.8, color=LIGHT, **BOX)
        below.text(place / 2 + 0.6, 0.97, name, fontsize=7, ha="center", va="center")
        told = f"{'x'.join(map(str, shape))}, {short(count)}"
        below.text(place / 2 + 1.3, 0.97, told, va="center", fontsize=7)
        for path in ([(0.5, 0.5), (0.5, 0.97), (place / 2, 0.97)],
                     [(place / 2 + 0.6, 1.14), (place / 2 + 0.6, 1.25), (place + 0.25, 1.25),
                      (place + 0.25, 0.38)]):  # fmt: skip
            below.plot(*zip(*path[:-1], strict=True), "k", lw=0.7)
            _arrow(below, *path[-2:], shrinkA=0, shrinkB=0)
        below.set_ylim(-1.05, 1.3)
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
    parts, steps = [("camera", 3), ("joints", 63)], ["21 joints", "projection\n(Eq. 4-5)"]
    if model.mesh:
        components = model.hand.pose_components
        parts[1:] = [("rotation", turn), ("pose", components), ("shape", 10)]
        steps[:1] = ["hand layer\n(Section 3.1)", "mesh, then\njoints (Eq. 3)"]
    data = pd.DataFrame(parts, columns=["part", "numbers"])
    total = data.numbers.sum()
    widths = 0.12 + 0.3 * data.numbers / total
    end = widths.sum()
    fig, ax = plt.subplots(figsize=(WIDTH, 1.5))
    colours = PALETTE[0], *PALETTE[3:6]
    bars = ax.barh(0.7, widths, 0.3, widths.cumsum() - widths, color=colours, alpha=0.35)
    labels = [f"{name}\n{size}" for name, size in parts]
    ax.bar_label(bars, labels, label_type="center", fontsize=7)
    times = f"{model.regressor.iterations} iteration{'s' * (model.regressor.iterations > 1)}"
    _arrow(ax, (end - 0.02, 0.9), (0.02, 0.9), connectionstyle="arc3,rad=0.12")
    ax.text(0, 1.1, f"{times}: the layers see the last estimate and add to it", fontsize=7)
    left = end + 0.09 + 0.29 * np.arange(len(steps))
    boxes = ax.barh([0.7] * len(steps), 0.2, 0.28, left, facecolor="white", **BOX)
    ax.bar_label(boxes, steps, label_type="center", fontsize=7)
    for x in left:
        _arrow(ax, (x - 0.08, 0.7), (x - 0.01, 0.7))
    ax.set(xlim=(-0.01, end + 0.9), ylim=(0.53, 1.2))
    ax.axis("off")
    forms = {3: "three axis-angle numbers", 6: "given in the 6-D form of Zhou et al. (2019)"}
    words = {"total": total, "times": times, "turn": forms[turn]}
    return save_figure(fig, data, out_dir, "fig3_regression", **words)


def _chain(ax, title, rows):
    """A row of boxes joined by arrows; heights go by the logarithm of the output's side.

    Args:
        rows: (name, shape of the output, trained parameters or None) of each box.
    """
    for i, (name, shape, count) in enumerate(rows):
        height = 0.7 + 0.05 * np.log2(shape[-1] if len(shape) == 3 else 1)
        ax.bar(i + 0.5, height, 0.6, -height / 2, color="0.95" if count is None else LIGHT, **BOX)
        label = name.replace(" + ", "\n+ ")
        ax.text(i + 0.5, 0, label, rotation=90, ha="center", va="center", fontsize=7)
        # The channels, then height and width where there are such, then the weights.
        told = [*map(str, shape[:1]), "x".join(map(str, shape[1:])), short(count) if count else ""]
        told = "\n".join(filter(None, told))
        ax.text(i + 0.5, -0.6, told, ha="center", va="top", fontsize=7)
        if i:
            _arrow(ax, (i - 0.2, 0), (i + 0.2, 0))
    ax.set(xlim=(0, len(rows)), ylim=(-1.05, 0.62))
    ax.set_title(title, loc="left")
    ax.axis("off")


def _arrow(ax, start, end, **style):
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "lw": 0.7, **style})
