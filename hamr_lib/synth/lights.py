"""Light from all around and from lamps, its shadows, and how surfaces reflect it."""

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from hamr_lib.render import depth_map
from hamr_lib.synth.skin import GAMMA
from hamr_lib.synth.surfaces import SKIN
from hamr_lib.synth.vectors import unit

_TAPS = ((0, 0), (2, 1), (-1, 2), (-2, -1), (1, -2))  # pixels; their mean softens a shadow
REACH = 0.14  # metres around the hand in which shadows are cast


def sample_lights(rng: np.random.Generator, backdrop: np.ndarray, around, factors):
    """Draw the light of an image: that of `around`, an `environments.Surroundings`, or made up.

    A part of the ambient light that is made up has the colours of the backdrop (H, W, 3).

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
        lamps = [(to, colour * rng.uniform(0.2, 1.0)) for to, colour in around.lamps()]
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
    """Return the ambient light on each of V vertices and the visible fraction of each lamp.

    The ambient light is an ambient cube (McTaggart 2004): light from the six ends of three axes,
    each weighted by the square of its cosine. What lies within `REACH` metres of the hand casts
    shadows, by a small depth map for each direction.

    Returns:
        (V, 3 + L) float32: linear RGB, then a fraction for each of L lamps.
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
    """Return the fraction (N,) of light from a direction that reaches points (N, 3).

    Points lie around the origin. A shadow begins 5 mm behind the first surface, and is full at
    12.5 mm. `side` is any unit vector across `toward`.
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

    Args:
        samples: `render.Fragments`; K: (3, 3) intrinsics of their image.
        normal: (3, N) unit normals, camera frame; sky: (3, N) ambient light.
        lit: (L, N) visible fraction of each of the lamps (see `sample_lights`).
        kind: (N,) material, see `surfaces`; gloss: (N,).
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
