"""Light a hand by panoramas of high dynamic range.

The 18 panoramas are Poly Haven's (CC0), as the npm package @pmndrs/assets 1.7.0 (CC0) carries them.
`environments.npz` holds of each, scaled to a mean log luminance of 0.18, a picture of 256 x 512
pixels (a JPEG, its highlights compressed) and its light: 16 x 32 directions, linear, half floats.
Rows go from the zenith to the nadir, columns to the right. Each panorama belongs to training or to
evaluation, never to both.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from hamr_lib.files import digest

FILE = Path(__file__).with_name("environments.npz")
PLACES = {
    "training": ("apartment", "bridge", "dawn", "esplanade", "hall", "lab", "night", "park", "sky",
                 "studio", "sunrise", "sunset", "venice", "warehouse"),
    "evaluation": ("city", "forest", "lobby", "workshop"),
}  # fmt: skip


class Place(NamedTuple):
    """One panorama, z up. Its strongest lights are separate, as lamps."""

    picture: np.ndarray  # (256, 512, 3) uint8
    directions: np.ndarray  # (D, 3) of the light's pixels
    light: np.ndarray  # (D, 3) radiance times solid angle, without the lamps
    lamps: tuple  # pairs of a direction (3,) and radiance times solid angle (3,), strongest first


class Surroundings(NamedTuple):
    """A `Place` seen by a camera."""

    place: Place
    to_camera: np.ndarray  # (3, 3)

    def lamps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the direction to each lamp (3,), camera frame, and its colour (3,)."""
        return [(self.to_camera @ toward, colour) for toward, colour in self.place.lamps]

    def light_from(self, around: np.ndarray) -> np.ndarray:
        """Return (K, 3) light on planes that face each of `around` (K, 3), without the lamps."""
        facing = np.maximum(around @ self.to_camera @ self.place.directions.T, 0)
        return facing @ self.place.light / np.pi

    def picture(self, shape: tuple, focal: float) -> np.ndarray:
        """Draw the view of a camera of that focal length: (height, width, 3) float32 in [0, 1]."""
        # The panorama is coarser than the image, so half the pixels lose nothing.
        height, width = shape[0] // 2, shape[1] // 2
        v, u = np.mgrid[0:height, 0:width].astype(np.float32)
        ray = np.stack([u - (width - 1) / 2, v - (height - 1) / 2, np.full_like(u, focal / 2)])
        x, y, z = np.tensordot(self.to_camera.T.astype(np.float32), ray, 1)
        rows, columns = self.place.picture.shape[:2]
        column = (np.arctan2(-y, x) / (2 * np.pi) + 0.5) * columns - 0.5
        row = (0.5 - np.arctan2(z, np.hypot(x, y)) / np.pi) * rows - 0.5
        wrap = {"interpolation": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_WRAP}
        seen = cv2.remap(self.place.picture, column, row, **wrap)
        seen = cv2.resize(seen, shape[::-1], interpolation=cv2.INTER_CUBIC)
        return seen.astype(np.float32) / 255


@functools.cache
def read_place(name: str) -> Place:
    """Read the `Place` of that name."""
    with np.load(FILE) as stored:
        light = stored["light"][list(stored["names"]).index(name)].astype(np.float64)
        picture = cv2.imdecode(stored[f"picture_{name}"], cv2.IMREAD_COLOR_RGB)
    # White balance: a phone removes most of a colour cast, here two thirds of it.
    light *= (light.mean() / light.mean((0, 1))) ** 0.67
    rows, columns = light.shape[:2]
    polar = (np.arange(rows) + 0.5) / rows * np.pi
    turn = ((np.arange(columns) + 0.5) / columns - 0.5) * 2 * np.pi
    flat, up = np.sin(polar)[:, None], np.cos(polar)[:, None] + 0 * turn
    directions = np.stack([flat * np.cos(turn), -flat * np.sin(turn), up], -1).reshape(-1, 3)
    light = (light * flat[..., None] * (np.pi / rows) * (2 * np.pi / columns)).reshape(-1, 3)
    lamps = []
    for _ in range(2):
        # The brightest pixel and what lies within 15 degrees of it.
        near = directions @ directions[light.sum(1).argmax()] > np.cos(np.radians(15))
        toward = light[near].sum(1) @ directions[near]
        lamps.append((toward / np.linalg.norm(toward), light[near].sum(0) / np.pi))
        light[near] = 0
    return Place(picture, directions, light, tuple(lamps))


def draw_surroundings(rng: np.random.Generator, split: str, rotation: np.ndarray) -> Surroundings:
    """Draw a panorama of a split, turned about z; `rotation` (3, 3) is from world to camera."""
    place = read_place(PLACES[split][rng.integers(len(PLACES[split]))])
    turn = Rotation.from_rotvec([0, 0, rng.uniform(0, 2 * np.pi)]).as_matrix()
    return Surroundings(place, rotation @ turn)


def identity() -> str:
    """Digest the panoramas and their splits."""
    return digest([FILE.read_bytes().hex(), PLACES])
