"""The protocols under which joints are scored, and the errors that they define.

Papers report "the AUC" under different thresholds, roots and scalings, and the paper's own text
gives neither thresholds nor root. A `Protocol` names every choice (`docs/protocols.md`).

Errors are (N, 21): millimetres in 3-D, pixels of the photo in 2-D, NaN where a joint is not
labelled or does not count.
"""

from dataclasses import field, replace
from typing import Literal

import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.joints import MIDDLE_MCP, NAMES, NUM_JOINTS, WRIST
from hamr_lib.validation import group

# Millimetres in 3-D, pixels or fractions of a box in 2-D. The third is what hand3d calls "20 to
# 50": the upper part of twenty steps from 0 to 50, which starts at 21.05 mm.
THRESHOLDS = {
    "20-50 mm in 20": np.linspace(20, 50, 20),
    "20-50 mm in 15": np.linspace(20, 50, 15),
    "20-50 mm cut from 0-50 in 20": np.linspace(0, 50, 20)[8:],
    "0-50 mm in 20": np.linspace(0, 50, 20),
    "0-100 mm in 20": np.linspace(0, 100, 20),
    "0-30 px in 31": np.linspace(0, 30, 31),
    "0-0.3 in 31": np.linspace(0, 0.3, 31),
}
ROOT_JOINTS = {"wrist": WRIST, "middle MCP": MIDDLE_MCP, "palm": WRIST}
ROOTS = (*ROOT_JOINTS, "centroid")
# Bones by which a prediction is scaled to the label's size, as (parent, child).
SCALE_BONES = {"bone": (MIDDLE_MCP, NAMES.index("middle PIP")), "wrist bone": (WRIST, MIDDLE_MCP)}
SCALES = ("none", *SCALE_BONES, "centroid", "procrustes")
# The palm that replaces joint 0: a joint, and how many times farther from it the wrist lies than
# the palm. This is RHD's in hand3d; STB's follows from how its wrist was made (`stb.ROOT_SHIFTS`).
PALM = (MIDDLE_MCP, 2.0)


@group
class Protocol:
    """How predicted joints are compared with labels (docs/protocols.md)."""

    thresholds: Literal[*THRESHOLDS] = "20-50 mm in 20"
    # What is laid upon each other: a joint; "palm", in the place of joint 0, where it is scored,
    # always as zero; or "centroid" of the labelled joints. "" in 2-D: nothing.
    root: Literal["", *ROOTS] = "wrist"
    # What gets the label's size: the middle proximal phalanx ("bone"), "wrist bone", or the joints'
    # mean distance from their "centroid". "procrustes" is the best similarity, whatever the root.
    scale: Literal[*SCALES] = "none"
    root_counts: bool = True  # whether the root joint, whose error is always zero, is scored
    visible: bool = False  # whether only joints that the set flags as visible are scored
    whose: str = field(default="", compare=False)  # whose evaluation this is; part of the name

    @property
    def grid(self) -> np.ndarray:
        """(T,) thresholds, in the unit of the errors."""
        return THRESHOLDS[self.thresholds]

    @property
    def name(self) -> str:
        """The protocol in words, as in every table."""
        if not self.root:
            unit = "photo pixels" if "px" in self.thresholds else "of the box's longer side"
            return f"2-D, {self.thresholds}, {unit}"
        root = "palm for wrist" if self.root == "palm" else self.root
        words = [f"3-D, {self.thresholds}", f"root {root}", f"scaled by {self.scale}"]
        if self.scale == "procrustes":
            words[1:] = ["Procrustes"]
        elif self.scale == "none":
            words.pop()
        words += ["root not scored"] * (not self.root_counts) + ["visible joints"] * self.visible
        return (f"{self.whose}: " if self.whose else "") + ", ".join(words)


PAPER = Protocol(whose="our reading of the paper's")  # RHD and STB
TIPS = Protocol(root="centroid", whose=PAPER.whose)  # Dexter+Object labels fingertips only
HAND3D = Protocol("20-50 mm cut from 0-50 in 20", "palm", "bone", visible=True, whose="hand3d's")
BIHAND = Protocol("20-50 mm in 20", "middle MCP", "wrist bone", whose="bihand's")
MINIMAL_HAND = Protocol("20-50 mm in 15", "middle MCP", "wrist bone", whose="Minimal-Hand's")
MINIMAL_HAND_TIPS = Protocol("20-50 mm in 15", "centroid", "centroid", whose="Minimal-Hand's")
PIXELS = Protocol(thresholds="0-30 px in 31", root="")
BOXES = Protocol(thresholds="0-0.3 in 31", root="")  # photographs, whose hands are of any size
NAMED = (
    PAPER, TIPS, replace(PAPER, visible=True, whose=""), HAND3D,
    replace(HAND3D, thresholds="0-50 mm in 20"), BIHAND, MINIMAL_HAND, MINIMAL_HAND_TIPS,
)  # fmt: skip


def protocol_matrix() -> list[Protocol]:
    """List the named 3-D protocols, then every other combination that papers mix."""
    alignments = [
        (root, scale, counts)
        for root in ROOTS
        for scale in ("none", "bone")
        for counts in ((True, False) if root in ("wrist", "middle MCP") else (True,))
    ]
    alignments += [("middle MCP", "wrist bone"), ("centroid", "centroid")]
    alignments += [("centroid", "procrustes")]
    grids = (name for name in THRESHOLDS if " mm" in name)
    mixed = (Protocol(thresholds, *alignment) for thresholds in grids for alignment in alignments)
    return list(dict.fromkeys((*NAMED, *mixed)))


def joint_errors_3d(
    predicted: np.ndarray,
    true: np.ndarray,
    valid: np.ndarray,
    protocol: Protocol = PAPER,
    visible: np.ndarray | None = None,
    palm: tuple[int, float] = PALM,
) -> np.ndarray:
    """Measure how far each joint is from its label.

    Args:
        predicted, true: (N, 21, 3) metres, any origin; labels may be NaN where not valid.
        valid, visible: (N, 21) bool; a palm is visible where one of its two joints is.
        palm: see `PALM`.

    Returns:
        (N, 21) millimetres; NaN where the joint is not scored, or where the image lacks the labels
        that the protocol's alignment needs. Under the scale "centroid" the errors of an image
        stand in its first columns: Minimal-Hand averages over the first, second, ... labelled tip.

    Raises:
        HamrError: wrong shapes, missing flags of visibility, or points that are not finite.
    """
    predicted, true, valid = _checked(predicted, true, valid, 3)
    if protocol.visible and visible is None:
        raise HamrError(f"{protocol.name}: expected flags of visibility, got none")
    seen = np.array(visible, bool) if protocol.visible else np.ones_like(valid)
    anchor, times = int(palm[0]), float(palm[1])
    if protocol.root == "palm":
        valid[:, WRIST] &= valid[:, anchor]
        seen[:, WRIST] |= seen[:, anchor]
    if protocol.scale in (*SCALE_BONES, "centroid"):  # by the wrist, not the palm in its place
        predicted *= _ratio(*(_size(p, valid, protocol.scale) for p in (true, predicted)))
    if protocol.root == "palm":
        for p in (predicted, true):
            p[:, WRIST] = p[:, anchor] + (p[:, WRIST] - p[:, anchor]) / times
    if protocol.scale == "procrustes":
        predicted = procrustes(predicted, true, valid)
    elif protocol.root == "centroid":
        predicted, true = (p - _centroid(p, valid, 2) for p in (predicted, true))
    else:
        joint = [ROOT_JOINTS[protocol.root]]
        label = np.where(valid[:, joint, None], true[:, joint], np.nan)
        predicted, true = predicted - predicted[:, joint], true - label
    errors = 1000 * np.linalg.norm(predicted - true, axis=-1)
    errors[~(valid & seen)] = np.nan
    if not protocol.root_counts:
        errors[:, ROOT_JOINTS[protocol.root]] = np.nan
    if protocol.scale == "centroid":
        order = np.argsort(np.isnan(errors), axis=1, kind="stable")
        errors = np.take_along_axis(errors, order, axis=1)
    return errors


def joint_errors_2d(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Measure how far each projected joint is from its label: (N, 21, 2) pixels -> (N, 21)."""
    predicted, true, valid = _checked(predicted, true, valid, 2)
    return np.where(valid, np.linalg.norm(predicted - true, axis=-1), np.nan)


def procrustes(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Move predictions by the similarity that brings them closest to the labels (Umeyama 1991).

    Rotation, scale and translation minimise the squared distance over the valid joints; a
    reflection is not allowed. Images with fewer than three valid joints come back as NaN. Shapes
    as in `joint_errors_3d`.
    """
    centre, target = (_centroid(points, valid, 3) for points in (predicted, true))
    moved = predicted - centre
    p, t = moved * valid[..., None], (true - target) * valid[..., None]
    covariance = np.einsum("nji,njk->nik", p, t)
    enough = np.isfinite(covariance).all((1, 2))
    covariance[~enough] = np.eye(3)  # keeps the batch whole; the result is NaN by its centre
    u, s, vt = np.linalg.svd(covariance)
    sign = np.ones_like(s)
    sign[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = (u * sign[:, None]) @ vt
    return _ratio((s * sign).sum(1), (p**2).sum((1, 2))) * moved @ rotation + target


def _centroid(points, valid, least):
    """(N, 1, 3), of the valid joints; NaN where these are fewer than `least`."""
    count = np.where(valid.sum(1) >= least, valid.sum(1), np.nan)
    return (points * valid[..., None]).sum(1, keepdims=True) / count[:, None, None]


def _size(points, valid, scale):
    """(N,) length of a bone, or sum of distances from the centroid; NaN without the labels."""
    if scale == "centroid":
        distance = np.linalg.norm(points - _centroid(points, valid, 2), axis=-1)
        return (distance * valid).sum(1)
    a, b = SCALE_BONES[scale]
    length = np.linalg.norm(points[:, b] - points[:, a], axis=-1)
    return np.where(valid[:, a] & valid[:, b], length, np.nan)


def _ratio(label, ours):
    """(N, 1, 1) scale of a prediction; 1 where it has no size, so that it still counts."""
    return np.divide(label, ours, out=np.ones_like(label), where=ours != 0)[:, None, None]


def _checked(predicted, true, valid, dimensions):
    """Copies in which labels that are not valid are zero, for NaN times zero is NaN."""
    predicted, true = np.array(predicted, float), np.array(true, float)
    valid = np.array(valid, bool)
    shape = (len(true), NUM_JOINTS, dimensions)
    if not predicted.shape == true.shape == shape == (*valid.shape, dimensions):
        raise HamrError(
            f"joints: expected (N, {NUM_JOINTS}, {dimensions}) and valid (N, {NUM_JOINTS}), got "
            f"{predicted.shape}, {true.shape} and {valid.shape}"
        )
    true[~valid] = 0
    finite = np.isfinite(predicted + true).all((1, 2))
    if not finite.all():
        raise HamrError(f"joints of image {finite.argmin()}: expected finite points, got NaN")
    return predicted, true, valid
