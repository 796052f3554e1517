"""Cameras: from where a hand is photographed."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from hamr_lib.synth.vectors import unit


class View(NamedTuple):
    """A pinhole camera: it maps world points p to `R (p - center)`, metres."""

    rotation: np.ndarray  # (3, 3)
    center: np.ndarray  # (3,)
    K: np.ndarray  # (3, 3) intrinsics
    shape: tuple[int, int]  # (height, width), pixels

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return (points - self.center) @ self.rotation.T


def sample_view(
    rng: np.random.Generator, person, side: int, K, shape, length: float, centred: bool = False
) -> View:
    """Draw a camera that photographs a hand: from any side, from the front, or from the eyes.

    Args:
        person: `scene.Person`; side: 0 left, 1 right, the hand that is photographed.
        K: (3, 3) intrinsics; shape: (height, width) of the image, pixels.
        length: pixels that 18 cm, a hand's length, should measure.
        centred: place the hand near the image's centre and upright, as before a camera on a table.
    """
    joints = person.joints[side]
    middle = joints.mean(0)
    kind = "front" if centred else rng.choice(["sphere", "front", "eyes"], p=(0.45, 0.3, 0.25))
    if kind == "sphere":
        direction = unit(rng.normal(size=3))
    elif kind == "front":
        direction = unit(unit(rng.normal(size=3)) * 0.6 + (0, -1, 0))
    else:
        direction = unit(unit(person.eyes - middle) + 0.25 * rng.normal(size=3))
    x = unit(np.cross(-direction, np.array([0, 0, 1.0]) + 0.05 * rng.normal(size=3)))
    rotation = np.stack([x, np.cross(-direction, x), -direction])
    # Phones are held upright, mostly.
    upright = centred or rng.random() < 0.6
    roll = rng.normal(0, np.radians(20)) if upright else rng.uniform(-np.pi, np.pi)
    rotation = Rotation.from_rotvec([0, 0, roll]).as_matrix() @ rotation
    # The hand lies anywhere in the image, in some images over its border.
    spread = 0.62 if rng.random() < 0.15 else 0.4
    room = np.array(shape[::-1]) / 2
    if spread < 0.5:
        room = np.maximum(room - spread * length, 0.12 * length)
    aim = rng.uniform(-1, 1, 2) * (0.2 * room if centred else room)
    distance = K[0, 0] * 0.18 / length
    offset = np.array([*(aim / K[[0, 1], [0, 1]]), 1.0]) * distance
    return View(rotation, middle - rotation.T @ offset, K, shape)
