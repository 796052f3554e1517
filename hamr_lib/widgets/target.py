"""A target hand for the explorer: its labels, the losses against it, and the descent towards it."""

from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import torch

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
    joints_3d: torch.Tensor  # (1, 21, 3) metres, wrist at the origin
    joints_2d: torch.Tensor  # (1, 21, 2) crop units
    mask: torch.Tensor  # (1, MASK, MASK) in [0, 1]
    outline: np.ndarray  # (S, S) bool


def rooted(hand, betas, global_orient, hand_pose):
    """Vertices (B, V, 3) and joints (B, 21, 3) of a hand, metres, wrist at the origin."""
    mesh = hand(betas, global_orient, hand_pose)
    root = mesh.joints[:, [WRIST]]
    return mesh.vertices - root, mesh.joints - root


@torch.no_grad()
def make_target(hand, betas, global_orient, hand_pose, camera, size):
    """The target that parameters (1, ...) describe, its outline in a picture of `size` pixels."""
    vertices, joints = rooted(hand, betas, global_orient, hand_pose)
    seen = rasterize(vertices[0].numpy(), hand.faces.numpy(), camera[0].numpy(), size)
    covered = np.zeros((size, size), np.uint8)
    covered.flat[seen.pixel] = 1
    return Target(
        vertices[0].numpy(),
        joints,
        project_weak(joints, camera),
        silhouette(vertices, hand.faces, camera, MASK),
        cv2.morphologyEx(covered, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0,
    )


def loss_terms(hand, parameters, target):
    """Compute the parts of Eq. 8 that need no heat maps, unweighted.

    Args:
        parameters: betas (1, 10), global_orient (1, 3), hand_pose (1, 45) and camera (1, 3).

    Returns:
        dict of scalar tensors by the names of their weights in `config.Losses`.
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


def descend(hand, parameters, target, steps, every):
    """Minimise the weighted losses from `parameters` by Adam.

    Yields:
        The moved parameters, float64 arrays (10,), (3,), (45,) and (3,), after every `every` steps
        and after the last.
    """
    offsets = [torch.zeros_like(value, requires_grad=True) for value in parameters]
    optimizer = torch.optim.Adam(offsets, lr=LEARNING_RATE)

    def moved():
        return [v + u * o for v, u, o in zip(parameters, UNITS, offsets, strict=True)]

    for step in range(1, steps + 1):
        optimizer.zero_grad()
        terms = loss_terms(hand, moved(), target)
        sum(getattr(WEIGHTS, name) * term for name, term in terms.items()).backward()
        optimizer.step()
        if step % every == 0 or step == steps:
            yield [value.detach()[0].double().numpy() for value in moved()]


def loss_table(terms):
    """Losses as an HTML table: value, weight and product a row, and the sum."""
    rows = [(name, term, getattr(WEIGHTS, name)) for name, term in terms.items()]
    total = sum(term * weight for _, term, weight in rows)
    body = "".join(
        f"<tr><td>{name}<td>{term:.4g}<td>{weight:g}<td>{term * weight:.4g}</tr>"
        for name, term, weight in rows
    )
    head = "<tr><th>loss<th>value<th>weight<th>product</tr>"
    return f"<table>{head}{body}<tr><td>sum<td><td><td><b>{total:.4g}</b></tr></table>"
