"""Objects in a hand, or between a hand and the camera."""

from typing import NamedTuple

import numpy as np
import trimesh
from scipy.spatial.transform import Rotation

from hamr_lib.joints import PARENTS, TIPS
from hamr_lib.synth.backgrounds import draw_swatch
from hamr_lib.synth.vectors import unit


class Thing(NamedTuple):
    """An object, in the camera's frame."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3)
    local: np.ndarray  # (V, 3) in its own axes, where its pattern is fixed
    pattern: np.ndarray  # (h, w, 3) linear RGB


def sample_things(
    rng: np.random.Generator, joints: np.ndarray, held: bool, split: str
) -> list[Thing]:
    """Draw one object in a hand, or one or two between a hand and the camera.

    Args:
        joints: (21, 3) metres of the hand, camera frame; held: whether the object is in the hand.
        split: whose photographs may cover an object, "training" or "evaluation".
    """
    if not held:
        middle = joints[rng.integers(len(joints))]
        things = []
        for _ in range(rng.integers(1, 3)):
            center = middle * rng.uniform(0.6, 0.92) + rng.normal(0, 0.035, 3)
            radius = rng.uniform(0.008, 0.03)
            things.append(_thing(rng, center, radius, rng.normal(size=3), split))
        return things
    palm, tips = joints[[0, 5, 9, 13, 17]].mean(0), joints[list(TIPS)].mean(0)
    normal = unit(np.cross(joints[5] - joints[0], joints[17] - joints[0]))
    normal = normal * np.sign(normal @ (tips - palm) or 1.0)
    axis = unit(unit(joints[5] - joints[17]) + 0.25 * rng.normal(size=3))
    # As thick as the grasp allows: from its middle to the nearest bone, less half a finger.
    center = 0.5 * joints[[9, 10, 13, 14]].mean(0) + 0.5 * tips + 0.006 * normal
    parents = joints[list(PARENTS[1:])]
    bones = np.concatenate([joints[1:] * s + parents * (1 - s) for s in (0.25, 0.6, 1.0)])
    away = bones - center
    away = np.linalg.norm(away - (away @ axis)[:, None] * axis, axis=1)
    radius = np.clip(np.sort(away)[5] - 0.005, 0.005, 0.05)
    return [_thing(rng, center + axis * rng.normal(0, 0.02), radius, axis, split)]


def _thing(rng, center, radius, axis, split):
    kind = rng.choice(["box", "cylinder", "capsule", "ball"], p=(0.35, 0.35, 0.15, 0.15))
    long = max(radius, 0.012) * np.exp(rng.uniform(np.log(2.5), np.log(9)))
    if kind == "box":
        mesh = trimesh.creation.box([2 * radius, 2 * radius * rng.uniform(0.4, 1.5), long])
    elif kind == "cylinder":
        mesh = trimesh.creation.cylinder(radius, long, sections=24)
    elif kind == "capsule":
        mesh = trimesh.creation.capsule(long, radius, count=[16, 16])
        mesh.vertices -= mesh.vertices.mean(0)
    else:
        mesh = trimesh.creation.icosphere(subdivisions=2, radius=1.2 * radius)
    if kind in ("box", "cylinder"):
        mesh.unmerge_vertices()  # so that edges stay sharp when shaded
    turn, _ = Rotation.align_vectors(unit(axis), [0, 0, 1])
    local = mesh.vertices @ Rotation.from_rotvec([0, 0, rng.uniform(0, 6)]).as_matrix().T
    vertices = turn.apply(local) + center
    return Thing(vertices, np.asarray(mesh.faces), local, draw_swatch(rng, split))
