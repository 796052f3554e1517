"""Draw backgrounds: photographs, or procedural patterns.

Photographs are those in installed packages, and those in the folder that the environment variable
BACKGROUNDS names. Each belongs to training or to evaluation, never to both. The hash of a user's
photograph decides, so that adding one moves no other.
"""

import functools
import hashlib
import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np

from hamr_lib.data.frame import read_image
from hamr_lib.errors import HamrError
from hamr_lib.files import digest

# Natural photographs in packages that the study needs anyway: no hands, drawings or microscopy.
PACKAGED = {
    "training": (
        "skimage/data/astronaut.png", "skimage/data/brick.png", "skimage/data/chelsea.png",
        "skimage/data/gravel.png", "skimage/data/rocket.jpg", "skimage/data/motorcycle_left.png",
        "sklearn/datasets/images/flower.jpg", "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    ),
    "evaluation": ("skimage/data/coffee.png", "skimage/data/grass.png",
                   "sklearn/datasets/images/china.jpg"),
}  # fmt: skip
LARGEST = 640  # pixels of a photograph's longer side that are kept
EVALUATION_FRACTION = 0.25  # of the user's photographs


@functools.cache
def photographs(split: str) -> tuple[Path, ...]:
    """List the photographs of a split, "training" or "evaluation".

    Raises:
        HamrError: for a BACKGROUNDS folder that holds no photographs, or one that is unreadable.
    """
    chosen = []
    for package, inside in (name.split("/", 1) for name in PACKAGED[split]):
        chosen.append(Path(importlib.util.find_spec(package).origin).parent / inside)
    if folder := os.environ.get("BACKGROUNDS"):
        suffixes = (".jpg", ".jpeg", ".png")
        found = [p for p in Path(folder).rglob("*") if p.suffix.lower() in suffixes and p.is_file()]
        if not found:
            raise HamrError(f"BACKGROUNDS={folder}: expected a folder with .jpg or .png files")
        for path in sorted(found):
            read_image(path)  # a bad file stops here, before hours of rendering
            number = int(_hash(path)[:8], 16) / 16**8
            if (number < EVALUATION_FRACTION) == (split == "evaluation"):
                chosen.append(path)
    return tuple(chosen)


def _hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def identity() -> str:
    """Digest all photographs; the digest is part of the identity of the rendered sets."""
    return digest([[_hash(path) for path in photographs(split)] for split in PACKAGED])


@functools.lru_cache(maxsize=400)
def _read(path):
    image = read_image(path)
    shrink = min(LARGEST / max(image.shape[:2]), 1)
    return cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)


def draw_background(
    rng: np.random.Generator, shape: tuple, split: str, photographs_too: bool, around
) -> np.ndarray:
    """Draw a view of `around`, a photograph or a pattern: (height, width, 3) RGB as displayed."""
    if around is not None and rng.uniform() < 0.45:
        return around.view(shape, max(shape) * rng.uniform(0.4, 0.8))
    if photographs_too and rng.uniform() < 0.8:
        return draw_photograph(rng, split, shape)
    return _pattern(rng, shape)


def draw_photograph(rng: np.random.Generator, split: str, shape: tuple) -> np.ndarray:
    """Cut a random part of a photograph, (height, width, 3) float32 RGB in [0, 1]."""
    paths = photographs(split)
    image = _read(paths[rng.integers(len(paths))])
    # At least 0.35 of the photograph's shorter side, which limits the magnification.
    side = rng.uniform(0.35, 1.0) * min(image.shape[:2])
    center = [rng.uniform(side / 2, length - side / 2) for length in image.shape[1::-1]]
    matrix = cv2.getRotationMatrix2D(center, rng.normal(0, 8), max(shape) / side)
    matrix[:, 2] += np.array(shape[::-1]) / 2 - center
    cut = cv2.warpAffine(image, matrix, shape[::-1], borderMode=cv2.BORDER_REFLECT_101)
    if rng.uniform() < 0.5:
        cut = cut[:, ::-1]
    return cut.astype(np.float32) / 255


def draw_swatch(rng: np.random.Generator, split: str) -> np.ndarray:
    """Draw the surface of an object: (256, 128, 3) float32 linear RGB that repeats."""
    shape = (128, 128)
    if rng.random() < 0.4:
        image = draw_photograph(rng, split, shape)
    elif rng.random() < 0.5:
        image = _pattern(rng, shape)
    else:
        image = np.full((*shape, 3), rng.uniform(0.05, 0.95, 3), np.float32)
        image *= 1 + 0.04 * _noise(rng, shape, 2)[..., None]
    half = np.clip(image, 0.01, 0.97) ** 2.2
    return np.vstack([half, half[::-1]]).astype(np.float32)


def _pattern(rng, shape):
    """Draw a gradient with texture and clutter."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) / max(shape)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * x + np.sin(angle) * y)[..., None]
    first, second = _colour(rng), _colour(rng)
    image = first + (second - first) * ramp
    image = image + rng.uniform(0, 0.25) * _noise(rng, shape, rng.uniform(2, 30))[..., None]
    image = np.ascontiguousarray(image, np.float32)
    for _ in range(rng.integers(0, 14)):  # boards, boxes and round things
        color = tuple(float(c) for c in _colour(rng))
        place = rng.uniform(-0.1, 1.1, 2) * shape[::-1]
        size = np.exp(rng.uniform(np.log(0.04), np.log(0.5), 2)) * max(shape)
        square = rng.uniform() < 0.6
        box = (tuple(place), tuple(size), rng.uniform(0, 180))
        if square:
            cv2.fillPoly(image, [cv2.boxPoints(box).astype(np.int32)], color, cv2.LINE_AA)
        else:
            cv2.ellipse(image, box, color, -1, cv2.LINE_AA)
    return image.clip(0, 1)


def _noise(rng, shape, finest):
    """Draw smooth noise in about [-1, 1]: four octaves from coarse down to `finest` pixels."""
    total = np.zeros(shape, np.float32)
    for octave in range(4):
        step = finest * 2 ** (3 - octave)
        coarse = rng.normal(size=[max(2, round(side / step)) for side in shape]).astype(np.float32)
        total += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total / 2


def _colour(rng):
    """Draw a colour (3,), mostly of little saturation."""
    return (rng.uniform(0.05, 0.95) + rng.exponential(0.15) * rng.normal(size=3)).clip(0, 1)
