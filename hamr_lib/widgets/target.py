"""A target hand for the explorer: its labels, the losses against it, and the descent towards it."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hamr_lib import losses
from hamr_lib.camera import project_weak
from hamr_lib.config import Losses
from hamr_lib.joints import NUM_JOINTS, WRIST
from hamr_lib.render import rasterize, silhouette

MASK = 64  # pixels a side at which silhouettes are compared
WEIGHTS = Losses()  # the paper's
LEARNING_RATE = 0.02
# One unit of the optimiser in betas, global_orient, hand_pose, and camera (s, tx, ty): the scale of
# a camera is about ten times as large as a rotation.
UNITS = (5.0, 1.0, 1.0, torch.tensor([10.0, 1.0, 1.0]))


class Target(NamedTuple):
    """Labels as a training sample has them, and what is drawn of the target."""

    vertices: np.ndarray  # (V, 3) metres, wrist at the origin
    joints_3d: Tensor  # (1, 21, 3) metres, wrist at the origin
    joints_2d: Tensor  # (1, 21, 2) crop units
    mask: Tensor  # (1, MASK, MASK) in [0, 1]
    outline: np.ndarray  # (S, S) bool


def rooted(hand, betas: Tensor, global_orient: Tensor, hand_pose: Tensor) -> tuple[Tensor, Tensor]:
    """Pose a hand: vertices (B, V, 3) and joints (B, 21, 3), metres, wrist at the origin."""
    mesh = hand(betas, global_orient, hand_pose)
    root = mesh.joints[:, [WRIST]]
    return mesh.vertices - root, mesh.joints - root


@torch.no_grad()
def make_target(hand, parameters: list[Tensor], size: int) -> Target:
    """Make the target of parameters (see `loss_terms`); its outline is for `size` pixels."""
    *pose, camera = parameters
    vertices, joints = rooted(hand, *pose)
    points = vertices[0].numpy()
    covered = np.zeros((size, size), np.uint8)
    covered.flat[rasterize(points, hand.faces.numpy(), camera[0].numpy(), size).pixel] = 1
    outline = cv2.morphologyEx(covered, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    mask = silhouette(vertices, hand.faces, camera, MASK)
    return Target(points, joints, project_weak(joints, camera), mask, outline)


def loss_terms(hand, parameters: list[Tensor], target: Target) -> dict[str, Tensor]:
    """Compute the parts of Eq. 8 that need no heat maps, unweighted.

    Args:
        parameters: betas (1, 10), global_orient (1, 3), hand_pose (1, 45) and camera (1, 3).

    Returns:
        scalars by the names of their weights in `config.Losses`.
    """
    *pose, camera = parameters
    vertices, joints = rooted(hand, *pose)
    known, has_mask = (torch.ones(1, n, dtype=torch.bool) for n in (NUM_JOINTS, 1))
    estimate = SimpleNamespace(vertices=vertices, camera=camera)
    return {
        "joints_3d": losses.joints_3d_loss(joints, target.joints_3d, known),
        "joints_2d": losses.joints_2d_loss(project_weak(joints, camera), target.joints_2d, known),
        "geometric": losses.geometric_loss(joints),
        "camera": losses.camera_loss(
            camera, target.joints_3d, target.joints_2d, known, scale="projected"
        ),
        "silhouette": losses.silhouette_loss(
            estimate, hand.faces, target.mask, has_mask[:, 0], MASK
        ),
    }


def descend(hand, parameters: list[Tensor], target: Target, steps: int) -> Iterator[list]:
    """Minimise the weighted losses from `parameters` by Adam.

    Yields:
        After each step the moved parameters, float64 arrays (10,), (3,), (45,) and (3,).
    """
    offsets = [torch.zeros_like(value, requires_grad=True) for value in parameters]
    optimizer = torch.optim.Adam(offsets, lr=LEARNING_RATE)

    def moved():
        return [v + u * o for v, u, o in zip(parameters, UNITS, offsets, strict=True)]

    for _ in range(steps):
        optimizer.zero_grad()
        terms = loss_terms(hand, moved(), target)
        sum(getattr(WEIGHTS, name) * term for name, term in terms.items()).backward()
        optimizer.step()
        yield [value.detach()[0].double().numpy() for value in moved()]


def loss_table(terms: dict[str, float]) -> str:
    """Lay losses out as HTML: value, weight and product a row, and the sum."""
    table = pd.DataFrame({"value": terms})
    table["weight"] = [getattr(WEIGHTS, name) for name in terms]
    table["product"] = table.value * table.weight
    table.loc["sum", "product"] = table["product"].sum()
    return table.to_html(float_format="{:.4g}".format, na_rep="", border=0)
