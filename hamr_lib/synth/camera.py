"""Cameras: from where a hand is photographed, and what the lens and the phone make of the image."""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from hamr_lib.synth.backgrounds import draw_photograph
from hamr_lib.synth.people import unit


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
        length: pixels that 18 cm, a hand's length, should measure.
        centred: place the hand near the image's centre and upright, as before a camera on a table.
    """
    middle = person.joints[side].mean(0)
    kind = "front" if centred else rng.choice(["sphere", "front", "eyes"], p=(0.45, 0.3, 0.25))
    direction = unit(rng.normal(size=3)) if kind != "eyes" else unit(person.eyes - middle)
    if kind == "front":
        direction = unit(direction * 0.6 + (0, -1, 0))
    elif kind == "eyes":
        direction = unit(direction + 0.25 * rng.normal(size=3))
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
    offset = np.array([*(aim / K[[0, 1], [0, 1]]), 1.0]) * (K[0, 0] * 0.18 / length)
    return View(rotation, middle - rotation.T @ offset, K, shape)


def develop(rng, lens, image: np.ndarray, split: str, factors) -> np.ndarray:
    """Turn an image (H, W, 3) in [0, 1] into the uint8 image that a phone would save.

    `rng` is the generator of a whole sequence, `lens` that of the noise of this image.
    """
    if factors.spectrum and rng.random() < 0.4:
        image = mixed_spectrum(rng, image, split)
    image = (255 * image.clip(0, 1)).round().astype(np.uint8)
    if not factors.lens:
        return image
    # In one image of ten each, the white balance or the exposure is far off.
    astray = 1 + 0.8 * (rng.random(2) < 0.1)
    balance = rng.normal(0, 0.03, 3) + rng.normal(0, 0.06) * np.array([1, 0, -1])
    gamma, contrast, brightness = rng.normal(0, (0.18, 0.12, 0.04))
    tones = np.arange(256)[:, None] / 255 * np.exp(astray[0] * balance)
    tones = tones ** np.exp(astray[1] * gamma)
    tones = (tones - 0.5) * np.exp(contrast) + 0.5 + brightness
    image = cv2.LUT(image, tones[None].astype(np.float32))
    saturation = rng.uniform(0.6, 1.2)
    image = cv2.transform(image, saturation * np.eye(3) + (1 - saturation) / 3)
    blur = rng.random()
    if blur < 0.45:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.1))
    elif blur < 0.55:
        size = int(rng.integers(3, 10)) | 1
        streak = np.zeros((size, size), np.float32)  # a motion blur along a line of a few pixels
        streak[size // 2] = 1
        turn = cv2.getRotationMatrix2D((size // 2, size // 2), rng.uniform(0, 180), 1)
        streak = cv2.warpAffine(streak, turn, (size, size))
        image = cv2.filter2D(image, -1, streak / streak.sum())
    elif blur < 0.75:  # phones sharpen
        image = image + rng.uniform(0.3, 1.0) * (image - cv2.GaussianBlur(image, (0, 0), 1.2))
    if rng.random() < 0.7:
        strength = np.float32(np.exp(rng.uniform(np.log(0.003), np.log(0.03))))
        start = int(lens.integers(len(_noise_store()) - image.size))
        noise = _noise_store()[start : start + image.size].reshape(image.shape)
        if rng.random() < 0.5:  # coarser grains, as noise reduction leaves them
            noise = 1.8 * cv2.GaussianBlur(noise, (0, 0), 0.8)
        image = image + strength * noise * (1.2 - image.clip(0, 1))
    image = (255 * image.clip(0, 1)).round().astype(np.uint8)
    if rng.random() < 0.7:
        quality = int(rng.integers(30, 96))
        _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    return image


@functools.cache
def _noise_store():
    """Draw white noise that images take a part of, since to draw it takes 2 ms an image."""
    return np.random.default_rng(8).standard_normal(2**22, np.float32)


def mixed_spectrum(rng, image: np.ndarray, split: str) -> np.ndarray:
    """Mix the amplitudes of a photograph into the lowest frequencies of an image, keeping phases.

    After Yang and Soatto (FDA, CVPR 2020) and Zhao et al. (CVPR 2025).
    """
    size = 64
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    other = draw_photograph(rng, split, (size, size))
    spectrum, wanted = (np.fft.rfft2(each, axes=(0, 1)) for each in (small, other))
    y, x = np.fft.fftfreq(size, 1 / size), np.fft.rfftfreq(size, 1 / size)
    low = np.maximum(np.abs(y)[:, None], x[None]) <= rng.integers(1, 5)
    weight = rng.uniform(0.1, 0.45) * low[..., None]
    ratio = np.abs(wanted) / np.maximum(np.abs(spectrum), 1e-6)
    change = np.fft.irfft2(weight * (ratio - 1) * spectrum, (size, size), axes=(0, 1))
    change = change.astype(np.float32)
    return image + cv2.resize(change, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
