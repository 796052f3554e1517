"""The protocols under which joints are scored, by name, and the errors that they define.

Papers report "the AUC" under different thresholds, roots and scalings. The paper's own text gives
neither thresholds nor root. A `Protocol` names every choice; those of public evaluation code carry
the name of whose they are. Every number of this study carries the name of its protocol.

Errors are (N, 21): millimetres in 3-D, pixels of the photo in 2-D, NaN where a joint is not
labelled or does not count.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.joints import MIDDLE_MCP, NAMES, NUM_JOINTS, WRIST

MIDDLE_PIP = NAMES.index("middle PIP")

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
ROOT_JOINTS = {"wrist": WRIST, "middle MCP": MIDDLE_MCP}  # the roots that are joints
ROOTS = (*ROOT_JOINTS, "palm", "centroid")
# Bones by which a prediction is scaled to the label's size, as (parent, child).
SCALE_BONES = {"bone": (MIDDLE_MCP, MIDDLE_PIP), "wrist bone": (WRIST, MIDDLE_MCP)}
SCALES = ("none", *SCALE_BONES, "centroid", "procrustes")
# The palm that replaces joint 0: a joint, and how many times farther from it the wrist lies than
# the palm. This is RHD's in hand3d; STB's follows from how its wrist was made (`stb.ROOT_SHIFTS`).
PALM = (MIDDLE_MCP, 2.0)


@dataclass(frozen=True)
class Protocol:
    """How predicted joints are compared with labels.

    Attributes:
        thresholds: a key of `THRESHOLDS`.
        root: the point at which prediction and label are laid upon each other: "wrist"; "middle
            MCP"; "palm", which takes the place of joint 0 in both and is scored there (always as
            zero), as in hand3d; or "centroid" of the labelled joints. "" in 2-D: no alignment.
        scale: "none"; "bone" or "wrist bone": the prediction is scaled until its middle proximal
            phalanx (hand3d), or its bone from wrist to middle MCP (bihand, Minimal-Hand), has the
            label's length; "centroid": until the labelled joints have the label's mean distance
            from their centroid (Minimal-Hand on Dexter+Object); or "procrustes": the best
            similarity over the labelled joints, which makes `root` meaningless.
        root_counts: whether the root joint, whose error is always zero, is scored.
        visible: whether only joints that the set flags as visible are scored.
        whose: whose evaluation this is; part of the name, not of the comparison.
    """

    thresholds: str = "20-50 mm in 20"
    root: str = "wrist"
    scale: str = "none"
    root_counts: bool = True
    visible: bool = False
    whose: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The protocol in words, as in every table."""
        if not self.root:
            unit = "photo pixels" if "px" in self.thresholds else "of the box's longer side"
            return f"2-D, {self.thresholds}, {unit}"
        words = [f"3-D, {self.thresholds}"]
        if self.scale == "procrustes":
            words.append("Procrustes")
        else:
            words.append("root palm for wrist" if self.root == "palm" else f"root {self.root}")
            words += [f"scaled by {self.scale}"] if self.scale != "none" else []
        words += ["root not scored"] if not self.root_counts else []
        words += ["visible joints"] if self.visible else []
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
        for counts in ((True, False) if root in ROOT_JOINTS else (True,))
    ]
    alignments += [("middle MCP", "wrist bone", True), ("centroid", "centroid", True)]
    alignments += [("centroid", "procrustes", True)]
    found = list(NAMED)
    for thresholds in (name for name in THRESHOLDS if " mm" in name):
        for alignment in alignments:
            protocol = Protocol(thresholds, *alignment)
            if protocol not in found:
                found.append(protocol)
    return found


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
        valid: (N, 21) bool, which joints are labelled.
        visible: (N, 21) bool, for protocols of visible joints; a palm is visible where one of
            its two joints is.
        palm: see `PALM`; for the root "palm".

    Returns:
        (N, 21) millimetres; NaN where the joint is not scored, or where the image lacks the labels
        that the protocol's alignment needs. Under the scale "centroid" the errors of an image
        stand in its first columns: Minimal-Hand averages over the first, second, ... labelled tip.

    Raises:
        HamrError: wrong shapes, an unknown root or scale, flags of visibility that are missing, or
            a prediction that is not finite.
    """
    predicted, true, valid = _checked(predicted, true, valid, 3)
    _check_protocol(protocol, visible)
    scored = valid & np.asarray(visible, bool) if protocol.visible else valid.copy()
    if protocol.root == "palm":
        anchor, times = int(palm[0]), float(palm[1])
        valid[:, WRIST] &= valid[:, anchor]
        scored[:, WRIST] = valid[:, WRIST]
        if protocol.visible:
            scored[:, WRIST] &= np.asarray(visible)[:, [WRIST, anchor]].any(1)
    if protocol.scale in SCALE_BONES:  # of the wrist itself, not of the palm in its place
        predicted = predicted * _bone_ratio(predicted, true, valid, protocol.scale)
    if protocol.root == "palm":
        predicted, true = (_with_palm(points, anchor, times) for points in (predicted, true))
    if protocol.scale == "procrustes":
        predicted = procrustes(predicted, true, valid)
    elif protocol.root == "centroid":
        predicted = _centred(predicted, true, valid, protocol.scale == "centroid")
    else:
        joint = ROOT_JOINTS.get(protocol.root, WRIST)
        label = np.where(valid[:, [joint]], true[:, joint], np.nan)
        predicted, true = predicted - predicted[:, [joint]], true - label[:, None]
    errors = 1000 * np.linalg.norm(predicted - true, axis=-1)
    errors[~scored] = np.nan
    if not protocol.root_counts:
        errors[:, ROOT_JOINTS[protocol.root]] = np.nan
    if protocol.scale == "centroid":
        order = np.argsort(np.isnan(errors), axis=1, kind="stable")
        errors = np.take_along_axis(errors, order, axis=1)
    return errors


def joint_errors_2d(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Measure how far each projected joint is from its label, nothing aligned.

    Args:
        predicted, true: (N, 21, 2) pixels of the photo.
        valid: (N, 21) bool.

    Returns:
        (N, 21) pixels, NaN where not valid.
    """
    predicted, true, valid = _checked(predicted, true, valid, 2)
    return np.where(valid, np.linalg.norm(predicted - true, axis=-1), np.nan)


def procrustes(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Move predictions by the similarity transform that brings them closest to the labels.

    Rotation, scale and translation minimise the squared distance over the valid joints (Umeyama
    1991). A reflection is not allowed; FreiHAND's evaluation allows it, so a mirrored hand scores
    worse here than there. Images with fewer than three valid joints come back as NaN. Shapes as in
    `joint_errors_3d`.
    """
    weight = valid.astype(float)[..., None]
    count = np.where(valid.sum(1) >= 3, valid.sum(1), np.nan)[:, None]
    center_p = (predicted * weight).sum(1) / count
    center_t = (true * weight).sum(1) / count
    p = (predicted - center_p[:, None]) * weight
    t = (true - center_t[:, None]) * weight
    covariance = np.einsum("nji,njk->nik", p, t)
    enough = np.isfinite(covariance).all((1, 2))
    covariance[~enough] = np.eye(3)  # keeps the batch whole; the result is NaN by its centre
    u, s, vt = np.linalg.svd(covariance)
    sign = np.ones_like(s)
    sign[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = (u * sign[:, None]) @ vt
    spread = (p**2).sum((1, 2))
    scale = (s * sign).sum(1) / np.where(spread > 0, spread, 1)
    return scale[:, None, None] * (predicted - center_p[:, None]) @ rotation + center_t[:, None]


def _with_palm(points, anchor, times):
    """Put the palm in the place of joint 0: (N, 21, 3)."""
    points = points.copy()
    points[:, WRIST] = points[:, anchor] + (points[:, WRIST] - points[:, anchor]) / times
    return points


def _bone_ratio(predicted, true, valid, scale):
    """(N, 1, 1): the label's length of a bone over the prediction's, NaN without label."""
    ends = list(SCALE_BONES[scale])
    ours, label = (np.linalg.norm(np.diff(p[:, ends], axis=1)[:, 0], axis=-1)
                   for p in (predicted, true))  # fmt: skip
    return np.where(valid[:, ends].all(1), _ratio(label, ours), np.nan)[:, None, None]


def _centred(predicted, true, valid, scaled):
    """Lay the centroids of the labelled joints upon each other; NaN with fewer than two joints."""
    weight = valid.astype(float)[..., None]
    count = np.where(valid.sum(1) >= 2, valid.sum(1), np.nan)[:, None]
    ours, label = ((p * weight).sum(1) / count for p in (predicted, true))
    moved = predicted - ours[:, None]
    if scaled:
        sizes = [(np.linalg.norm(p, axis=-1) * valid).sum(1)
                 for p in (true - label[:, None], moved)]  # fmt: skip
        moved = moved * _ratio(*sizes)[:, None, None]
    return moved + label[:, None]


def _ratio(label, ours):
    """The scale of a prediction; 1 where it has no size, so that it still counts."""
    return np.divide(label, ours, out=np.ones_like(label), where=ours > 0)


def _check_protocol(protocol, visible):
    known = protocol.root in ROOTS and protocol.scale in SCALES
    is_joint = protocol.root in ROOT_JOINTS and protocol.scale != "procrustes"
    if not known or not (protocol.root_counts or is_joint):
        raise HamrError(
            f"{protocol}: expected a root of {ROOTS}, a scale of {SCALES}, and root_counts=False "
            f"only where the root is a joint"
        )
    if protocol.scale == "centroid" and protocol.root != "centroid":
        raise HamrError(f"{protocol}: the scale 'centroid' needs the root 'centroid'")
    if protocol.visible and visible is None:
        raise HamrError(f"{protocol.name}: expected flags of visibility, got none")


def _checked(predicted, true, valid, dimensions):
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    valid = np.asarray(valid)
    shape = (len(true), NUM_JOINTS, dimensions)
    if predicted.shape != shape or true.shape != shape or valid.shape != shape[:2]:
        raise HamrError(
            f"joints: expected (N, {NUM_JOINTS}, {dimensions}) and valid (N, {NUM_JOINTS}), got "
            f"{predicted.shape}, {true.shape} and {valid.shape}"
        )
    valid = valid.astype(bool)
    if not np.isfinite(predicted).all():
        image = int(np.argwhere(~np.isfinite(predicted))[0, 0])
        raise HamrError(f"joints: the prediction for image {image} is not finite")
    if not np.isfinite(true[valid]).all():
        image = int(np.argwhere(~np.isfinite(true) & valid[..., None])[0, 0])
        raise HamrError(f"joints: image {image} has a label marked valid that is not finite")
    # What is not labelled must not spoil sums over joints: NaN times zero is NaN.
    return predicted, np.where(valid[..., None], true, 0), valid
