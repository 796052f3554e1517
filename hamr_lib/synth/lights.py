"""Light from panoramas or made up, its shadows, and how surfaces reflect it.

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

from hamr_lib.render import depth_map
from hamr_lib.synth.people import unit
from hamr_lib.synth.skin import GAMMA, SKIN

FILE = Path(__file__).with_name("environments.npz")
PLACES = {
    "training": ("apartment", "bridge", "dawn", "esplanade", "hall", "lab", "night", "park", "sky",
                 "studio", "sunrise", "sunset", "venice", "warehouse"),
    "evaluation": ("city", "forest", "lobby", "workshop"),
}  # fmt: skip
_TAPS = ((0, 0), (2, 1), (-1, 2), (-2, -1), (1, -2))  # pixels; their mean softens a shadow
REACH = 0.14  # metres around the hand in which shadows are cast


class Surroundings(NamedTuple):
    """One panorama, z up, seen by a camera. Its strongest lights are separate, as lamps."""

    picture: np.ndarray  # (256, 512, 3) uint8
    directions: np.ndarray  # (D, 3) of the light's pixels
    light: np.ndarray  # (D, 3) radiance times solid angle, without the lamps
    lamps: tuple  # pairs of a direction (3,) and radiance times solid angle (3,), strongest first
    to_camera: np.ndarray  # (3, 3)

    def light_from(self, around: np.ndarray) -> np.ndarray:
        """Return (K, 3) light on planes that face each of `around` (K, 3), without the lamps."""
        facing = np.maximum(around @ self.to_camera @ self.directions.T, 0)
        return facing @ self.light / np.pi

    def view(self, shape: tuple, focal: float) -> np.ndarray:
        """Draw the view of a camera of that focal length: (height, width, 3) float32 in [0, 1]."""
        # The panorama is coarser than the image, so half the pixels lose nothing.
        height, width = shape[0] // 2, shape[1] // 2
        v, u = np.mgrid[0:height, 0:width].astype(np.float32)
        ray = np.stack([u - (width - 1) / 2, v - (height - 1) / 2, np.full_like(u, focal / 2)])
        x, y, z = np.tensordot(self.to_camera.T.astype(np.float32), ray, 1)
        rows, columns = self.picture.shape[:2]
        column = (np.arctan2(-y, x) / (2 * np.pi) + 0.5) * columns - 0.5
        row = (0.5 - np.arctan2(z, np.hypot(x, y)) / np.pi) * rows - 0.5
        wrap = {"interpolation": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_WRAP}
        seen = cv2.remap(self.picture, column, row, **wrap)
        seen = cv2.resize(seen, shape[::-1], interpolation=cv2.INTER_CUBIC)
        return seen.astype(np.float32) / 255


@functools.cache
def read_place(name: str) -> tuple:
    """Read what `Surroundings` hold of the panorama of that name."""
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
    return picture, directions, light, tuple(lamps)


def draw_surroundings(rng: np.random.Generator, split: str, rotation: np.ndarray) -> Surroundings:
    """Draw a panorama of a split, turned about z; `rotation` (3, 3) is from world to camera."""
    place = read_place(PLACES[split][rng.integers(len(PLACES[split]))])
    turn = Rotation.from_rotvec([0, 0, rng.uniform(0, 2 * np.pi)]).as_matrix()
    return Surroundings(*place, rotation @ turn)


def sample_lights(rng: np.random.Generator, backdrop: np.ndarray, around, factors):
    """Draw the light of an image: that of `around`, or made up with the colours of the backdrop.

    Returns:
        ((axes (3, 3), colours (6, 3)), lamps): ambient light from both ends of three axes, and up
        to three distant lamps: unit directions to them (3,), camera frame, and linear RGB (3,).
    """
    axes = Rotation.random(rng=rng).as_matrix()
    if not factors.lights:
        return (axes, np.full((6, 3), 0.5)), [(unit(np.array([-0.3, -0.5, -0.8])), np.ones(3))]
    ends = np.concatenate([axes, -axes])
    if around is not None:
        # Lamps are dimmed at random, as by a cloud or a curtain.
        lamps = [(around.to_camera @ to, c * rng.uniform(0.2, 1.0)) for to, c in around.lamps]
        return (axes, around.light_from(ends)), lamps
    small = cv2.resize(backdrop, (6, 6), interpolation=cv2.INTER_AREA) ** GAMMA
    column, row = ((ends[:, :2] + 1) * 2.99).astype(int).T
    seen = small[row, column] / max(small.mean(), 0.02)
    seen = 0.7 * seen.mean(1, keepdims=True) + 0.3 * seen  # the view is only a part of the place
    tint = np.exp(rng.normal(0, 0.06, 3))
    above = unit(rng.normal(size=3) * 0.4 + (0, -1, 0))
    brightness = np.exp(rng.uniform(0, 1.2) * (ends @ above))[:, None]
    part = rng.uniform(0.1, 0.6)
    ambient = (part * seen.clip(0, 3) + (1 - part) * tint) * brightness * rng.uniform(0.25, 1.0)
    lamps = []
    for number in range(rng.integers(1, 4)):
        toward = unit(unit(rng.normal(size=3)) + (0, -0.5, -0.5))  # mostly from above and the front
        warmth = rng.normal(0, 0.16)
        colour = np.exp(np.array([warmth, 0, -1.2 * warmth]) + rng.normal(0, 0.05, 3))
        lamps.append((toward, colour * rng.uniform(0.3, 1.8) * 0.55**number))
    return (axes, ambient), lamps


def vertex_light(vertices, faces, normals, middle, sky, lamps, factors) -> np.ndarray:
    """Return (V, 3 + L): the ambient light on vertices and the visible fraction of each lamp.

    The ambient light is an ambient cube (McTaggart 2004): light from the six ends of three axes,
    each weighted by the square of its cosine. What lies within `REACH` metres of `middle` casts
    shadows, by a small depth map for each direction.
    """
    axes, colours = sky
    facing = (axes @ normals.T).astype(np.float32)
    falls = np.concatenate([np.maximum(facing, 0), np.maximum(-facing, 0)]) ** 2
    light = np.ones((len(vertices), 3 + len(lamps)), np.float32)
    if factors.lights:
        inside = (np.abs(vertices - middle) < REACH).all(1)
        near, row = np.flatnonzero(inside), np.cumsum(inside) - 1
        casters = row[faces[inside[faces].all(1)]]
        points = (vertices[near] - middle) / (1.5 * REACH)
        for number, toward in enumerate(np.concatenate([axes, -axes])):
            falls[number, near] *= _reached(points, casters, toward, axes[(number + 1) % 3], 80)
        for number, (toward, _) in enumerate(lamps[:2]):
            side = unit(np.cross(toward, (0.3, 0.9, 0.2)))
            light[near, 3 + number] = _reached(points, casters, toward, side, 176, _TAPS)
    light[:, :3] = falls.T @ colours.astype(np.float32)
    return light


def _reached(points, faces, toward, side, size, taps=_TAPS[:1]):
    """Return the fraction (N,) of light from a direction that reaches points (N, 3) around 0.

    A shadow begins 5 mm behind the first surface, and is full at 12.5 mm.
    """
    slack = 0.005 / (1.5 * REACH)
    seen = points @ np.stack([side, np.cross(side, toward), -toward]).T  # from the light
    depth = depth_map(seen, faces, np.array([1.0, 0, 0]), size)
    u, v = np.rint(((seen[:, :2] + 1) * size - 1) / 2).astype(np.int32).T
    behind = seen[:, 2].astype(np.float32) - np.float32(slack)
    total = np.zeros(len(points), np.float32)
    for du, dv in taps:
        first = depth[(v + dv).clip(0, size - 1), (u + du).clip(0, size - 1)]
        total += 1 - ((behind - first) / np.float32(1.5 * slack)).clip(0, 1)
    return total / len(taps)


def shaded(samples, normal, sky, lit, lamps, kind, gloss, K) -> tuple[np.ndarray, np.ndarray]:
    """Return the diffuse light (3, N) and the specular light (3, N) of N samples.

    They have normals (3, N), ambient light `sky` (3, N), visible fractions `lit` (L, N) of the
    lamps, and the kind and gloss of `skin.materials`; K is their image's.
    """
    v, u = np.divmod(samples.pixel.astype(np.int32), np.int32(samples.shape[1]))
    (fx, _, cx), (_, fy, cy), _ = K.astype(np.float32)
    eye = unit(np.stack([(cx - u) / fx, (cy - v) / fy, np.full(len(u), -1)]).astype(np.float32))
    light, shine = sky.copy(), np.zeros_like(sky)
    # Subsurface scattering: in skin, red light reaches farthest round an edge.
    skin = kind == SKIN
    wraps = [skin * np.float32(reach) for reach in (0.32, 0.16, 0.12)]
    for (toward, colour), reached in zip(lamps, lit, strict=True):
        toward, colour = toward.astype(np.float32), colour.astype(np.float32)
        facing = toward @ normal
        half = unit(eye + toward[:, None])
        mirror = np.maximum((normal * half).sum(0), 0) ** 2
        mirror = mirror**8 * mirror**2 * (facing > 0) * gloss * reached
        for channel, wrap in enumerate(wraps):
            fallen = np.maximum((facing + wrap) / (1 + wrap), 0)
            light[channel] += fallen * reached * colour[channel]
            shine[channel] += mirror * colour[channel]
    grazing = (1 - np.abs((normal * eye).sum(0))) ** 2
    shine += np.float32(0.25) * gloss * grazing * grazing * sky
    return light, shine
