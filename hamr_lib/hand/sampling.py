"""Draw hand poses: gestures, blends of them, free hands, and hands at rest."""

import numpy as np
from scipy.special import ndtr

from hamr_lib.hand import anatomy
from hamr_lib.hand.anatomy import ANGLES, DIP, GESTURES, MCP, PIP, SPREAD, THUMB


def sample_poses(rng: np.random.Generator, n: int, resting: float = 0.0) -> np.ndarray:
    """Draw n poses (n, 22) radians, in the order of `ANGLES`; a fraction `resting` at rest.

    Of the other hands, 40 % are named gestures (flat, open and relaxed hands three times as often
    as others), 30 % blends of two, and 30 % free. All respect `limit`. Poses in which the hand
    collides with itself (`overlap`) are drawn again.
    """
    poses = np.empty((0, len(ANGLES)))
    while len(poses) < n:
        drawn = _draw(rng, max(32, 2 * (n - len(poses))))
        if resting:
            rests = rng.uniform(size=(len(drawn), 1)) < resting
            drawn = np.where(rests, _draw_resting(rng, len(drawn)), drawn)
        poses = np.concatenate([poses, drawn[anatomy.overlap(drawn) <= 0]])
    return poses[:n]


def _draw(rng, n):
    gestures = np.array(list(GESTURES.values()))
    weight = np.array([3.0 if name in ("flat", "open", "relaxed") else 1.0 for name in GESTURES])
    first, second = gestures[rng.choice(len(gestures), size=(2, n), p=weight / weight.sum())]
    kind = rng.choice(3, size=n, p=(0.4, 0.3, 0.3))
    t = np.where(kind == 1, rng.uniform(size=n), 0)
    named = anatomy.blend(first, second, t)
    # Noise of 5 degrees, half of its variance common to all fingers.
    wobble = rng.normal(size=(n, 1, 4)) + rng.normal(size=(n, 4, 4))
    wobble *= np.radians((5, 2.5, 5, 3.5)) / np.sqrt(2)
    thumb = rng.normal(size=(n, 6)) * np.radians((5, 5, 5, 5, 2, 6))
    named = named + np.concatenate([thumb, wobble.reshape(n, 16)], axis=1)
    return anatomy.limit(np.where((kind == 2)[:, None], _draw_free(rng, n), named))


# Correlation of the curls: neighbours most, the index finger and thumb least.
_LIKENESS = (
    (1.0, 0.3, 0.2, 0.2, 0.1),
    (0.3, 1.0, 0.6, 0.4, 0.3),
    (0.2, 0.6, 1.0, 0.8, 0.6),
    (0.2, 0.4, 0.8, 1.0, 0.8),
    (0.1, 0.3, 0.6, 0.8, 1.0),
)


def _draw_free(rng, n):
    """Draw free hands: fingers curl as their neighbours do, and last joints follow the middle."""
    curls = rng.multivariate_normal(np.zeros(5), _LIKENESS, size=(2, n))
    # The bends of the knuckle and of the middle joint are correlated too, but less.
    knuckle = ndtr(curls[0])
    middle = ndtr(0.5 * curls[0] + np.sqrt(0.75) * curls[1])
    angles = np.empty((n, len(ANGLES)))
    angles[:, MCP] = np.radians(-12 + 92 * knuckle[:, 1:])
    angles[:, PIP] = np.radians(-2 + 100 * middle[:, 1:])
    angles[:, DIP] = 2 / 3 * angles[:, PIP] + rng.normal(0, np.radians(7), size=(n, 4))
    spread = rng.normal(size=(n, 1)) + 0.6 * rng.normal(size=(n, 4))
    angles[:, SPREAD] = np.radians((4, 0, 4, 7)) + np.radians((6, 2.5, 5, 8)) * spread
    # Opposition: a thumb that is lifted out of the palm's plane is also turned to the fingers.
    opposed = rng.uniform(size=n)
    thumb = (
        rng.uniform(8, 60, size=n),
        16 + 46 * opposed + rng.normal(0, 5, size=n),
        8 + 36 * opposed + rng.normal(0, 6, size=n),
        -8 + 56 * knuckle[:, 0],
        rng.normal(0, 4, size=n),
        -18 + 85 * middle[:, 0],
    )
    angles[:, THUMB] = np.radians(thumb).T
    return angles


# The thumb of a hand at rest, degrees and their deviations: along the index finger, in front of the
# palm, and loosely away from both.
_THUMB_AT_REST = np.array(
    [(14, 20, 8, 8, 3, 12), (18, 53, 32, 22, 6, 30), (37, 35, 28, 10, 3, 16)], dtype=float
)
_THUMB_MOVES = np.array([(8, 8, 8, 8, 4, 12), (8, 9, 9, 14, 4, 18), (10, 10, 9, 9, 4, 12)])


def _draw_resting(rng, n):
    """Draw hands with the fingers side by side and bent alike, the thumb along or before them."""
    # More straight than bent; the fingers are nearly alike, each a little more bent than the last.
    curl = rng.beta(1.2, 1.8, size=(n, 1))
    middle = (curl + rng.normal(0, 0.15, size=(n, 1))).clip(0, 1)
    angles = np.empty((n, len(ANGLES)))
    cascade = np.arange(4) * rng.normal(3, 3, size=(n, 1))
    angles[:, MCP] = np.radians(-8 + 80 * curl + cascade + rng.normal(0, 5, size=(n, 4)))
    angles[:, PIP] = np.radians(2 + 85 * middle + cascade / 2 + rng.normal(0, 6, size=(n, 4)))
    angles[:, DIP] = 0.55 * angles[:, PIP] + rng.normal(0, np.radians(5), size=(n, 4))
    fan = np.abs(rng.normal(0, np.radians(4), size=(n, 1)))
    angles[:, SPREAD] = fan * (1, 0, 1, 1.8) + rng.normal(0, np.radians(1.2), size=(n, 4))
    pose = rng.choice(3, size=n, p=(0.35, 0.35, 0.3))
    thumb = _THUMB_AT_REST[pose] + rng.normal(size=(n, 6)) * _THUMB_MOVES[pose]
    angles[:, THUMB] = np.radians(thumb)
    return anatomy.limit(angles)
