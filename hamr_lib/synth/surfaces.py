"""Surfaces: the colour, relief and gloss of skin, cloth and objects at each sample of an image."""

import functools

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from hamr_lib.synth.people import body
from hamr_lib.synth.samples import pixel_of
from hamr_lib.synth.skin import details
from hamr_lib.synth.vectors import unit

SKIN, CLOTH, THING = range(3)
_CLOTH_AXES = np.array([[0.8, 0.1], [0.6, 0.3], [0.0, 0.95]], np.float32)
_GRAIN_AXES = Rotation.from_euler("xyz", [0.5, 0.7, 0.3]).as_matrix().astype(np.float32)


def surface_values(look, things: list, factors) -> tuple[np.ndarray, ...]:
    """Return what `surface` needs at each of V vertices of the body and the objects.

    They are (V, 3) metres at rest or in an object's axes, (V, 3) linear RGB, and (V,) how far
    inside the clothes a vertex is (negative for bare skin).
    """
    shared, extra = body(), sum(len(thing.vertices) for thing in things)
    rest = np.concatenate([shared.rest, *(thing.local for thing in things)])
    inside = look.inside if factors.people else np.full(len(shared.rest), -9.0)
    return rest, np.pad(look.colours, ((0, extra), (0, 0))), np.pad(inside, (0, extra))


def surface(rng, samples, values, look, body_faces, things, factors):
    """Return the material of N samples, from `surface_values` interpolated at them (7, N).

    Args:
        look: `skin.Look`; body_faces: the rows of the body's faces that are drawn.

    Returns:
        colour (3, N) reflectance, bump (N,) height in metres, gloss (N,), kind (N,): SKIN, CLOTH
        or THING.
    """
    place, colour, inside = values[:3], values[3:6].copy(), values[6]
    of_thing = samples.face - len(body_faces)  # 0 and more: a face of an object
    kind = np.where(of_thing >= 0, THING, np.where(inside > 0, CLOTH, SKIN))
    bump = np.zeros(len(kind), np.float32)
    gloss = np.full(len(kind), np.float32(look.gloss))
    skin, cloth = np.flatnonzero(kind == SKIN), np.flatnonzero(kind == CLOTH)
    shift = rng.uniform(0, 1, 2)
    if factors.textures and len(skin):
        crease, nail = np.zeros((2, len(skin)), np.float32)
        shared, faces = body(), body_faces[samples.face[skin]]
        on_hand = np.flatnonzero((shared.hand[shared.faces] > 0).all(1)[faces])
        corners = shared.uv[shared.faces_uv[faces[on_hand]]].astype(np.float32)
        uv = np.einsum("nk,nkc->nc", samples.weights[skin[on_hand]], corners)
        crease[on_hand], nail[on_hand] = details(uv).T
        grain = _grain(place[:, skin], shift)
        crease = np.float32(look.creases) * crease * (1 - nail)
        tone = 1 + np.float32(look.grain) * grain - np.float32(0.35) * crease
        # The sleeve's shadow.
        tone *= (1 - 0.5 * np.exp(inside[skin] / np.float32(0.03))).clip(0.3, 1)
        nail = np.float32(0.7) * nail
        colour[:, skin] = (1 - nail) * tone * colour[:, skin] + nail * look.nails[:, None]
        bump[skin] = np.float32(0.00012) * grain - np.float32(0.00035) * crease
        gloss[skin] += np.float32(0.35) * nail
    if len(cloth):
        across = _CLOTH_AXES.T @ place[:, cloth] / np.float32(look.cloth_scale)
        colour[:, cloth] = _repeat(look.cloth, across).T
        bump[cloth] = np.float32(0.0003) * _grain(place[:, cloth], (0.3, 0.7))
        gloss[cloth] = 0
    start = 0
    for thing in things:
        own = np.flatnonzero((of_thing >= start) & (of_thing < start + len(thing.faces)))
        across = _CLOTH_AXES.T @ place[:, own] / np.float32(0.12)
        colour[:, own] = _repeat(thing.pattern, across).T
        gloss[own] = 0.15
        start += len(thing.faces)
    return colour, bump, gloss, kind


def _repeat(pattern, at):
    """Sample an image (h, w, C) that repeats, at (2, N) in its widths: (N, C).

    h and w must be powers of two.
    """
    height, width = pattern.shape[:2]
    # The shift keeps coordinates positive: truncation would mirror the pattern at zero.
    x, y = ((at + np.float32(64)) * np.float32([[width], [height]])).astype(np.int32)
    index = (y & (height - 1)) * width + (x & (width - 1))
    return pattern.reshape(height * width, -1).take(index, axis=0)


@functools.cache
def _noise_tile():
    """Return (512, 512, 1) noise that repeats, of unit variance; fine noise is fainter."""
    size = 512
    rng = np.random.default_rng(7)
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    fall = np.maximum(np.hypot(fy, fx), 0.01) ** -0.9
    tile = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) * fall)
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)[..., None]


def _grain(place, offset):
    """Return noise (N,) that is fixed to the body, at `place` (3, N) metres.

    It is the mean of the noise in two planes, which repeats every 20 cm.
    """
    turned = _GRAIN_AXES.T @ place / np.float32(0.2) + np.float32(offset[0])
    first = _repeat(_noise_tile(), turned[:2])
    second = _repeat(_noise_tile(), turned[1:] + np.float32(offset[1]))
    return np.float32(0.7) * (first + second)[:, 0]


def bumped(samples, normal: np.ndarray, bump: np.ndarray, focal: float) -> np.ndarray:
    """Turn normals (3, N) by the slope of small heights `bump` (N,) metres across the image."""
    height, width = samples.shape
    at = pixel_of(samples)
    pixels = np.zeros((height // 2, width // 2), np.float32)
    pixels.ravel()[at] = bump / (samples.depth / np.float32(focal))
    slopes = [cv2.Sobel(pixels, -1, dx, 1 - dx, scale=1 / 8).ravel()[at] for dx in (1, 0)]
    normal = normal.copy()
    normal[:2] -= np.clip(slopes, np.float32(-0.5), np.float32(0.5))
    return unit(normal)
