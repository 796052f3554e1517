"""Hand poses as anatomy names them: joint angles, their limits, gestures, and a seeded sampler.

A pose is 22 angles in radians (`ANGLES`). Zero is a flat hand: straight fingers side by side in
the plane of the palm, the thumb straight and laid along it. Flexion bends towards the palm; a
finger's spread moves it away from the middle finger (the middle finger's own: towards the thumb).
The thumb's base is placed like a direction on a globe: `radial` turns it in the plane of the palm
away from the fingers, `palmar` lifts it out of that plane, and `twist` turns its pad towards the
fingers, as opposition does.

The axes are those of the rest skeleton of `anny`'s right hand, whose finger bones carry an
anatomical frame each: x the flexion axis, y along the bone, z palmar. `angles_to_axis_angle` gives
the rotations as MANO's format has them: each joint's relative to its parent, about the axes of the
whole upright hand (x to its back, y along the fingers, z to the thumb's side). `anny_pose` gives
the same rotations as the hands of Anny's bodies take them.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation
from scipy.special import ndtr

from hamr_lib.errors import HamrError
from hamr_lib.hand.rig import ANNY_BONES, palm_frame, rig
from hamr_lib.joints import FINGERS, MANO_NAMES

ANGLES = (
    "thumb CMC radial",
    "thumb CMC palmar",
    "thumb CMC twist",
    "thumb MCP flexion",
    "thumb MCP radial",
    "thumb IP flexion",
) + tuple(
    f"{finger} {angle}"
    for finger in FINGERS[1:]
    for angle in ("MCP flexion", "MCP spread", "PIP flexion", "DIP flexion")
)

# Degrees. Active range of adult hands, with a little of what a push adds at the ends; the spread
# of a finger is further reduced as its knuckle bends (`limit`).
_LIMITS = ((0, 65), (-5, 65), (-25, 60), (-10, 60), (-12, 12), (-25, 85)) + (
    (-25, 92),
    (-12, 22),
    (-5, 110),
    (-8, 80),  # index
    (-20, 94),
    (-10, 10),
    (-5, 112),
    (-8, 80),  # middle
    (-20, 96),
    (-10, 16),
    (-5, 112),
    (-8, 80),  # ring
    (-25, 98),
    (-12, 28),
    (-5, 110),
    (-8, 80),  # little
)
LOWER, UPPER = np.radians(np.array(_LIMITS, dtype=float)).T

# Where the angles lie in the vector, the fingers' for index to little.
_THUMB = slice(0, 6)
_MCP, _SPREAD, _PIP, _DIP = (6 + np.arange(4) * 4 + part for part in range(4))
# A positive turn about a finger's palmar axis moves it to the little finger's side.
_SPREAD_SIGN = np.array([-1.0, -1.0, 1.0, 1.0])

# Rows of (5 fingers x 3 joints), base to tip, in the order of MANO's joints 1 to 15.
_TO_MANO = [3 * FINGERS.index(name.split()[0]) + j % 3 for j, name in enumerate(MANO_NAMES[1:])]
# Mirrored at the plane x = 0, an axis-angle keeps its x and negates the rest.
MIRROR = np.array([1.0, -1.0, -1.0])


def _pose(thumb, index, middle, ring, little):
    return np.radians(np.array([*thumb, *index, *middle, *ring, *little], dtype=float))


_STRAIGHT = (0, 0, 0, 0)
_CURLED = (75, 0, 90, 44)

# Degrees, in the order of `ANGLES`. Where fingers touch, the thumb was fitted so that pads meet and
# nothing overlaps; letters are those of American finger spelling (F is "OK", L "thumb and index",
# S "fist", V "two", W "three"; G, N, P, Q, R, T and the moving J and Z are not here).
GESTURES = {
    "flat": _pose((22, 14, 8, 5, 0, 5), _STRAIGHT, _STRAIGHT, _STRAIGHT, _STRAIGHT),
    "open": _pose((55, 25, 20, 2, 0, 0), (2, 12, 4, 3), (2, 0, 4, 3), (2, 11, 4, 3), (2, 22, 4, 3)),
    "relaxed": _pose(
        (45, 38, 34, 12, 5, 18), (20, 4, 26, 17), (27, 0, 32, 21), (32, 2, 35, 23), (35, 6, 34, 23)
    ),
    "fist": _pose((34, 33, 18, 36, 10, 27), _CURLED, _CURLED, _CURLED, _CURLED),
    "thumbs up": _pose((50, 5, 5, -5, 0, -12), _CURLED, _CURLED, _CURLED, _CURLED),
    "point": _pose((11, 25, 25, 28, 7, 12), _STRAIGHT, _CURLED, _CURLED, _CURLED),
    "gun": _pose((58, 18, 15, 0, 0, -5), (0, -3, 5, 3), (0, 2, 8, 5), _CURLED, _CURLED),
    "two": _pose((0, 22, 25, 39, 11, -4), (0, 12, 3, 2), (0, -5, 3, 2), _CURLED, _CURLED),
    "three": _pose(
        (0, 22, 23, 60, 12, -6), (0, 10, 3, 2), (0, 0, 3, 2), (0, 9, 5, 3), (87, 0, 82, 48)
    ),
    "four": _pose((1, 13, 24, 49, 12, 47), (0, 9, 3, 2), (0, 0, 3, 2), (0, 8, 3, 2), (0, 16, 3, 2)),
    "thumb and index": _pose((58, 18, 15, 0, 0, -5), (0, 6, 3, 2), _CURLED, _CURLED, _CURLED),
    "thumb, index, middle": _pose(
        (58, 18, 15, 0, 0, -5), (0, 10, 3, 2), (0, -6, 3, 2), _CURLED, _CURLED
    ),
    "pinch": _pose(
        (24, 30, 34, 24, 6, 4), (55, 2, 43, 28), (28, 0, 40, 27), (30, 0, 38, 25), (30, 4, 34, 23)
    ),
    "closed pinch": _pose(
        (24, 30, 34, 24, 6, 4), (55, 2, 43, 28), (62, 0, 72, 48), (68, 0, 80, 53), (72, 0, 80, 53)
    ),
    "OK": _pose(
        (24, 28, 34, 22, 5, 11), (52, 2, 48, 33), (12, 0, 18, 12), (6, 4, 14, 9), (2, 12, 10, 7)
    ),
    "middle pinch": _pose(
        (12, 36, 35, 34, 10, -4), (22, 4, 30, 20), (66, 0, 49, 26), (28, 0, 36, 24), (22, 6, 28, 19)
    ),
    "ring pinch": _pose(
        (0, 28, 34, 43, 12, -15), (10, 4, 18, 12), (14, 0, 22, 15), (58, 0, 54, 37), (28, 2, 34, 23)
    ),
    "little pinch": _pose(
        (0, 29, 27, 60, 12, -10), (6, 4, 12, 8), (8, 0, 16, 11), (22, 0, 32, 21), (74, -2, 42, 22)
    ),
    "tripod": _pose(
        (10, 21, 41, 26, 8, 21), (52, 0, 41, 27), (61, -3, 58, 38), (62, 0, 66, 44), (64, 0, 68, 45)
    ),
    "key": _pose(
        (27, 22, 17, 18, 1, 22), (56, 0, 70, 40), (64, 0, 78, 42), (68, 0, 82, 44), (70, 0, 82, 44)
    ),
    "hook": _pose(
        (25, 16, 12, 10, 0, 12), (5, 0, 88, 50), (5, 0, 88, 50), (5, 0, 88, 50), (5, 0, 88, 50)
    ),
    "claw": _pose(
        (52, 32, 28, 5, 0, 45), (0, 10, 62, 45), (0, 0, 66, 45), (0, 8, 64, 45), (0, 18, 60, 45)
    ),
    "grasp small": _pose(
        (37, 43, 25, 40, 11, 25), (58, 0, 80, 42), (64, 0, 84, 44), (68, 0, 86, 44), (70, 0, 86, 44)
    ),
    "grasp medium": _pose(
        (20, 42, 40, 23, 5, 9), (48, 2, 62, 41), (50, 0, 64, 43), (54, 1, 64, 43), (58, 3, 62, 41)
    ),
    "grasp large": _pose(
        (47, 65, 39, 29, -1, 7), (32, 5, 48, 32), (34, 0, 50, 33), (38, 3, 50, 33), (42, 7, 48, 32)
    ),
    "grasp ball": _pose(
        (45, 42, 41, 8, 3, 17),
        (24, 16, 42, 28),
        (22, 0, 46, 31),
        (24, 10, 44, 29),
        (26, 20, 42, 28),
    ),
    "cylinder": _pose(
        (34, 58, 40, 26, 4, 4), (40, 0, 55, 37), (42, 0, 57, 38), (46, 0, 57, 38), (50, 0, 55, 37)
    ),
    "precision large": _pose(
        (46, 63, 34, 38, 8, 3), (42, 8, 28, 14), (44, 0, 30, 14), (45, 6, 30, 14), (44, 14, 28, 14)
    ),
    "precision disc": _pose(
        (35, 38, 36, 12, 3, 10),
        (34, 14, 34, 18),
        (34, 0, 38, 20),
        (36, 10, 36, 20),
        (36, 17, 34, 18),
    ),
    "letter A": _pose((25, 19, 6, 12, -1, 16), _CURLED, _CURLED, _CURLED, _CURLED),
    "letter B": _pose((14, 4, 33, 58, 10, 67), _STRAIGHT, _STRAIGHT, _STRAIGHT, _STRAIGHT),
    "letter C": _pose(
        (52, 47, 39, 1, 0, 16), (32, 0, 52, 36), (32, 0, 54, 36), (34, 0, 54, 36), (36, 0, 52, 36)
    ),
    "letter D": _pose(
        (13, 34, 35, 35, 8, -2), (0, 0, 3, 2), (65, 0, 52, 27), (58, 0, 60, 38), (62, 0, 62, 40)
    ),
    "letter E": _pose(
        (18, 50, 8, 40, 6, 38), (47, 0, 90, 50), (47, 0, 91, 50), (50, 0, 92, 50), (52, 0, 92, 48)
    ),
    "letter I": _pose((34, 33, 18, 36, 10, 27), _CURLED, _CURLED, _CURLED, (0, 8, 3, 2)),
    "letter K": _pose((2, 14, 22, 14, 8, -23), (2, 10, 5, 3), (35, -4, 8, 5), _CURLED, _CURLED),
    "letter O": _pose(
        (22, 38, 25, 36, 3, 38), (58, 0, 53, 12), (68, 0, 65, 18), (56, 0, 56, 36), (60, 0, 56, 36)
    ),
    "letter U": _pose((0, 22, 25, 39, 11, -4), (0, -5, 3, 2), (0, 3, 3, 2), _CURLED, _CURLED),
    "letter H": _pose((22, 14, 8, 5, 0, 5), (8, -5, 5, 3), (10, 3, 5, 3), _CURLED, _CURLED),
    "letter X": _pose((13, 25, 24, 32, 5, 11), (15, 0, 82, 50), _CURLED, _CURLED, _CURLED),
    "letter Y": _pose((60, 12, 10, -5, 0, -10), _CURLED, _CURLED, _CURLED, (0, 24, 3, 2)),
    "horns": _pose((8, 28, 21, 34, 3, 10), (0, 4, 3, 2), _CURLED, _CURLED, (0, 12, 5, 3)),
    "I love you": _pose((60, 15, 12, 0, 0, -8), (0, 6, 3, 2), _CURLED, _CURLED, (0, 18, 3, 2)),
    "letter M": _pose(
        (13, 47, 40, 41, 0, 40), (66, 0, 62, 36), (66, 0, 64, 36), (66, 0, 64, 38), _CURLED
    ),
}
COUNTING = ("point", "two", "three", "four", "open")  # one to five


class Skeleton(NamedTuple):
    """The right hand at rest, of Anny's average adult; fingers thumb to little, base to tip."""

    heads: np.ndarray  # (5, 4, 3) metres, wrist at the origin: three joints and the tip
    frames: np.ndarray  # (5, 3, 3, 3): columns x flexion axis, y along the bone, z palmar
    zero: np.ndarray  # (5, 3, 3): frame of each finger's base where all angles are zero
    palm: np.ndarray  # (3, 3): columns to the thumb's side, along the fingers, palmar
    offsets: np.ndarray  # (5, 3, 3) metres, from each bone to the middle of its flesh, at rest
    radii: np.ndarray  # (5, 3) metres, of the flesh
    rays: np.ndarray  # (4, 2, 3) metres, middle lines of the palm below each finger
    ray_radii: np.ndarray  # (4,) metres
    reference: np.ndarray  # (3, 3): from the hand's axes to those of Anny's bodies at reference


@functools.cache
def skeleton() -> Skeleton:
    """Return the rest skeleton that the angles refer to (constructs Anny's hand: seconds)."""
    shared = rig()
    vertices, heads, frames = shared.vertices, shared.chains, shared.axes
    offsets, radii = np.zeros((5, 3, 3)), np.zeros((5, 3))
    for f in range(5):
        for k in range(3):
            flesh = vertices[shared.weights[:, 1 + _TO_MANO.index(3 * f + k)] > 0.6]
            bone = heads[f, k + 1] - heads[f, k]
            length = np.linalg.norm(bone)
            along = (flesh - heads[f, k]) @ bone / length
            shaft = (along > 0.2 * length) & (along < 0.8 * length)
            across = flesh - heads[f, k] - along[:, None] * bone / length
            # The bone does not run through the middle of the flesh, so find that first.
            low, high = across[shaft].min(0), across[shaft].max(0)
            offsets[f, k] = (low + high) / 2
            radii[f, k] = np.median(np.linalg.norm(across[shaft] - offsets[f, k], axis=1))
    palm = palm_frame(*heads[[1, 2, 4], 0])
    zero = np.empty((5, 3, 3))
    # The thumb at zero flexes within the plane of the palm.
    zero[0] = np.stack([palm[:, 2], palm[:, 1], -palm[:, 0]], axis=1)
    for f in range(1, 5):
        # The least turn that lays the finger along the palm keeps its roll: fingers bend towards
        # the root of the thumb, not in parallel planes.
        turn, _ = Rotation.align_vectors(palm[:, 1], frames[f, 0, :, 1])
        zero[f] = turn.as_matrix() @ frames[f, 0]
    # The palm, from a third of the way up: below lie the balls of the thumb and little finger.
    rays, ray_radii = np.empty((4, 2, 3)), np.empty(4)
    flesh = vertices[shared.weights[:, 0] > 0.5]
    for f in range(4):
        rays[f] = np.outer((0.35, 1), heads[f + 1, 0])
        side, along, depth = ((flesh - rays[f, 0]) @ palm).T
        length = np.linalg.norm(rays[f, 1] - rays[f, 0])
        near = (np.abs(side) < 0.008) & (along > 0) & (along < length)
        back, front = (np.median(depth[near & half]) for half in (depth < 0, depth > 0))
        rays[f] += (back + front) / 2 * palm[:, 2]
        ray_radii[f] = (front - back) / 2
    return Skeleton(heads, frames, zero, palm, offsets, radii, rays, ray_radii, shared.reference)


def _turn(axis, angle):
    """Rotations about x, y or z by (n,) radians -> (n, 3, 3)."""
    return Rotation.from_euler(axis, angle[:, None]).as_matrix()


def _orientations(angles):
    """How each phalanx has turned from rest, in the hand's axes: (n, 22) -> (n, 5, 3, 3, 3)."""
    hand = skeleton()
    palm, frames = hand.palm, hand.frames
    world = np.empty((len(angles), 5, 3, 3, 3))  # anatomical frames, posed
    radial, palmar, twist, mcp, mcp_radial, ip = angles[:, _THUMB].T
    # In the palm's axes (side, along, palmar): lift, then swing to the side, then twist.
    place = palm @ _turn("z", -radial) @ _turn("x", palmar) @ palm.T
    world[:, 0, 0] = place @ hand.zero[0] @ _turn("y", twist)
    world[:, 0, 1] = world[:, 0, 0] @ _turn("x", mcp) @ _turn("z", mcp_radial)
    world[:, 0, 2] = world[:, 0, 1] @ _turn("x", ip)
    for f in range(4):
        spread = _SPREAD_SIGN[f] * angles[:, _SPREAD[f]]
        base = _turn("x", angles[:, _MCP[f]]) @ _turn("z", spread)
        world[:, f + 1, 0] = hand.zero[f + 1] @ base
        world[:, f + 1, 1] = world[:, f + 1, 0] @ _turn("x", angles[:, _PIP[f]])
        world[:, f + 1, 2] = world[:, f + 1, 1] @ _turn("x", angles[:, _DIP[f]])
    return world @ frames.swapaxes(-1, -2)


def _checked(angles):
    angles = np.asarray(angles, dtype=float)
    if angles.ndim not in (1, 2) or angles.shape[-1] != len(ANGLES):
        raise HamrError(
            f"angles: expected ({len(ANGLES)},) or (n, {len(ANGLES)}) radians, "
            f"got shape {angles.shape}"
        )
    return angles


def angles_to_axis_angle(angles):
    """Anatomical angles as the 15 joint rotations of MANO's format.

    Args:
        angles: (n, 22) or (22,) radians, in the order of `ANGLES`.

    Returns:
        (n, 15, 3) or (15, 3) axis-angle, joints in MANO's order (`joints.MANO_NAMES[1:]`), of the
        open right hand, each relative to its parent and to the rest pose (not to the mean pose).
    """
    angles = _checked(angles)
    turned = _orientations(np.atleast_2d(angles))
    local = turned.copy()
    local[:, :, 1:] = turned[:, :, :-1].swapaxes(-1, -2) @ turned[:, :, 1:]
    vectors = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 15, 3)
    vectors = vectors[:, _TO_MANO]
    return vectors if angles.ndim == 2 else vectors[0]


def anny_pose(angles, side):
    """Anatomical angles as pose parameters of Anny's finger bones, for bodies and hands.

    For models with `pose_parameterization="local-ref"`, Anny's default. The metacarpals stay
    at identity.

    Args:
        angles: (n, 22) or (22,) radians.
        side: "left" or "right"; the angles mean the same on both.

    Returns:
        dict of bone label, e.g. "finger2-1.R", to (n, 4, 4) or (4, 4) float64.
    """
    if side not in ("left", "right"):
        raise HamrError(f"side: expected 'left' or 'right', got {side!r}")
    # Anny's deltas are about the axes of its reference body, the same for the hand alone; its left
    # side mirrors its right at x = 0.
    vectors = angles_to_axis_angle(angles) @ skeleton().reference.T
    if side == "left":
        vectors = vectors * MIRROR
    transforms = np.zeros((*vectors.shape[:-1], 4, 4))
    transforms[..., :3, :3] = (
        Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*vectors.shape, 3)
    )
    transforms[..., 3, 3] = 1
    suffix = ".L" if side == "left" else ".R"
    return {bone + suffix: transforms[..., j, :, :] for j, bone in enumerate(ANNY_BONES)}


def _phalanges(angles):
    """(n, 22) -> starts and ends of the flesh's middle lines, (n, 5, 3, 3) metres each."""
    hand = skeleton()
    turned = _orientations(angles)
    starts, ends = np.empty((2, len(angles), 5, 3, 3))
    joint = np.broadcast_to(hand.heads[:, 0], (len(angles), 5, 3))
    for k in range(3):
        bone = hand.heads[:, k + 1] - hand.heads[:, k]
        posed = np.einsum("nfij,fj->nfi", turned[:, :, k], bone)
        offset = np.einsum("nfij,fj->nfi", turned[:, :, k], hand.offsets[:, k])
        starts[:, :, k], ends[:, :, k] = joint + offset, joint + offset + posed
        joint = joint + posed
    # A capsule reaches beyond its segment by its radius; the tip is where the flesh ends.
    ends[:, :, 2] -= posed / np.linalg.norm(posed, axis=-1, keepdims=True) * hand.radii[:, 2, None]
    return starts, ends


# Flesh gives way: two phalanges may come this much closer than their radii, as a share of them.
_GIVE = 0.35
# Pairs of phalanges (finger, bone) that can run into each other. Neighbours' bases and the ball of
# the thumb always touch, so they are left out.
_PAIRS = np.array(
    [
        ((f, k), (g, m))
        for f in range(5)
        for g in range(f + 1, 5)
        for k in range(3)
        for m in range(3)
        if not (g == f + 1 and f > 0 and k == m == 0) and not (f == 0 and k == 0)
    ]
)


def limit(angles):
    """Clip to the joint limits; a finger spreads less the more its knuckle is bent."""
    angles = np.clip(_checked(angles), LOWER, UPPER)
    room = 1 - 0.8 * np.clip(angles[..., _MCP] / np.radians(80), 0, 1)
    angles[..., _SPREAD] = np.clip(
        angles[..., _SPREAD], LOWER[_SPREAD] * room, UPPER[_SPREAD] * room
    )
    return angles


def blend(a, b, t):
    """Between two poses: (..., 22) radians at share `t` (scalar or broadcastable) from a to b."""
    a, b = _checked(a), _checked(b)
    return a + np.asarray(t)[..., None] * (b - a)


def sample_poses(rng, n, resting=0.0):
    """Poses of a lively hand, or of one at rest.

    A share of `resting` are as hands lie, hang and hold while nobody poses them: the fingers side
    by side and bent alike, the thumb along them or hidden before the palm. Of the others, 40 % are
    named gestures (flat, open and relaxed hands three times as often as others), 30 % lie between
    two of them, each with noise that the fingers partly share; 30 % are free: every finger curls
    by an amount correlated with its neighbours', its last joint following the middle one by two
    thirds as tendons make it. All respect `limit`, and poses in which the hand runs into itself
    (`overlap`) are drawn again.

    Args:
        rng: numpy Generator; the same state gives the same poses.
        n: how many.
        resting: share of hands at rest.

    Returns:
        (n, 22) radians, in the order of `ANGLES`.

    Raises:
        HamrError: for a share outside [0, 1].
    """
    if not 0 <= resting <= 1:
        raise HamrError(f"resting={resting!r}: expected a share from 0 to 1")
    poses = np.empty((0, len(ANGLES)))
    while len(poses) < n:
        drawn = _draw(rng, max(32, 2 * (n - len(poses))))
        if resting:
            rests = rng.uniform(size=(len(drawn), 1)) < resting
            drawn = np.where(rests, _draw_resting(rng, len(drawn)), drawn)
        poses = np.concatenate([poses, drawn[overlap(drawn) <= 0]])
    return poses[:n]


def _draw(rng, n):
    gestures = np.array(list(GESTURES.values()))
    weight = np.array([3.0 if name in ("flat", "open", "relaxed") else 1.0 for name in GESTURES])
    first, second = gestures[rng.choice(len(gestures), size=(2, n), p=weight / weight.sum())]
    kind = rng.choice(3, size=n, p=(0.4, 0.3, 0.3))
    share = np.where(kind == 1, rng.uniform(size=n), 0)
    named = blend(first, second, share)
    # Noise of 5 degrees, half of its variance common to all fingers.
    wobble = rng.normal(size=(n, 1, 4)) + rng.normal(size=(n, 4, 4))
    wobble *= np.radians((5, 2.5, 5, 3.5)) / np.sqrt(2)
    thumb = rng.normal(size=(n, 6)) * np.radians((5, 5, 5, 5, 2, 6))
    named = named + np.concatenate([thumb, wobble.reshape(n, 16)], axis=1)
    return limit(np.where((kind == 2)[:, None], _draw_free(rng, n), named))


# How alike fingers curl: neighbours most, the index finger and thumb most independent.
_LIKENESS = np.array(
    [
        [1.0, 0.3, 0.2, 0.2, 0.1],
        [0.3, 1.0, 0.6, 0.4, 0.3],
        [0.2, 0.6, 1.0, 0.8, 0.6],
        [0.2, 0.4, 0.8, 1.0, 0.8],
        [0.1, 0.3, 0.6, 0.8, 1.0],
    ]
)


def _draw_free(rng, n):
    curls = rng.multivariate_normal(np.zeros(5), _LIKENESS, size=(2, n))
    # The knuckle's bend and the middle joint's are alike too, but less.
    knuckle = ndtr(curls[0])
    middle = ndtr(0.5 * curls[0] + np.sqrt(0.75) * curls[1])
    angles = np.empty((n, len(ANGLES)))
    angles[:, _MCP] = np.radians(-12 + 92 * knuckle[:, 1:])
    angles[:, _PIP] = np.radians(-2 + 100 * middle[:, 1:])
    angles[:, _DIP] = 2 / 3 * angles[:, _PIP] + rng.normal(0, np.radians(7), size=(n, 4))
    spread = rng.normal(size=(n, 1)) + 0.6 * rng.normal(size=(n, 4))
    angles[:, _SPREAD] = np.radians((4, 0, 4, 7)) + np.radians((6, 2.5, 5, 8)) * spread
    # Opposition: a thumb that is lifted out of the palm's plane is also turned to the fingers.
    opposed = rng.uniform(size=n)
    angles[:, 0] = np.radians(rng.uniform(8, 60, size=n))
    angles[:, 1] = np.radians(8 + 48 * opposed + rng.normal(0, 5, size=n))
    angles[:, 2] = np.radians(8 + 36 * opposed + rng.normal(0, 6, size=n))
    angles[:, 3] = np.radians(-8 + 56 * knuckle[:, 0])
    angles[:, 4] = rng.normal(0, np.radians(4), size=n)
    angles[:, 5] = np.radians(-18 + 85 * middle[:, 0])
    return angles


# Where the thumb of a hand at rest may be, degrees and their deviations: beside the index finger,
# before the palm, and loosely away from both.
_THUMB_AT_REST = np.array(
    [(12, 12, 8, 8, 2, 12), (14, 44, 34, 28, 4, 26), (36, 32, 28, 10, 3, 16)], dtype=float
)
_THUMB_MOVES = np.array([(8, 8, 8, 8, 4, 12), (8, 9, 9, 14, 4, 18), (10, 10, 9, 9, 4, 12)])


def _draw_resting(rng, n):
    # Rather straight than bent, and all fingers nearly alike, each a little more than the last.
    curl = rng.beta(1.2, 1.8, size=(n, 1))
    middle = (curl + rng.normal(0, 0.15, size=(n, 1))).clip(0, 1)
    angles = np.empty((n, len(ANGLES)))
    cascade = np.arange(4) * rng.normal(3, 3, size=(n, 1))
    angles[:, _MCP] = np.radians(-8 + 80 * curl + cascade + rng.normal(0, 5, size=(n, 4)))
    angles[:, _PIP] = np.radians(2 + 85 * middle + cascade / 2 + rng.normal(0, 6, size=(n, 4)))
    angles[:, _DIP] = 0.55 * angles[:, _PIP] + rng.normal(0, np.radians(5), size=(n, 4))
    fan = np.abs(rng.normal(0, np.radians(4), size=(n, 1)))
    angles[:, _SPREAD] = fan * (1, 0, 1, 1.8) + rng.normal(0, np.radians(1.2), size=(n, 4))
    place = rng.choice(3, size=n, p=(0.35, 0.35, 0.3))
    thumb = _THUMB_AT_REST[place] + rng.normal(size=(n, 6)) * _THUMB_MOVES[place]
    angles[:, _THUMB] = np.radians(thumb)
    return limit(angles)


def overlap(angles):
    """How deep the worst two parts of the hand run into each other beyond what flesh allows.

    Phalanges are capsules with the radii of `skeleton`; flesh gives way by 35 % of them.

    Args:
        angles: (n, 22) or (22,) radians.

    Returns:
        (n,) or a float, metres; zero or less is a possible pose.
    """
    angles = _checked(angles)
    starts, ends = _phalanges(np.atleast_2d(angles))
    hand = skeleton()
    (f, k), (g, m) = _PAIRS[:, 0].T, _PAIRS[:, 1].T
    distance = _between_segments(starts[:, f, k], ends[:, f, k], starts[:, g, m], ends[:, g, m])
    radii = hand.radii[f, k] + hand.radii[g, m]
    depth = ((1 - _GIVE) * radii - distance).max(1)
    f, g = (part.ravel() for part in np.meshgrid(range(5), range(4)))
    # Ends of the fingers and of the thumb against the palm.
    rays = np.broadcast_to(hand.rays[g], (len(starts), len(g), 2, 3))
    distance = _between_segments(starts[:, f, 2], ends[:, f, 2], rays[:, :, 0], rays[:, :, 1])
    radii = hand.radii[f, 2] + hand.ray_radii[g]
    depth = np.maximum(depth, ((1 - _GIVE) * radii - distance).max(1))
    return depth if angles.ndim == 2 else float(depth[0])


def _between_segments(p, q, r, s):
    """Least distance of segments pq and rs, (..., 3) each (Ericson, Real-Time Collision, 5.1.9)."""
    u, v, w = q - p, s - r, p - r
    uu, vv, uv = (u * u).sum(-1), (v * v).sum(-1), (u * v).sum(-1)
    uw, vw = (u * w).sum(-1), (v * w).sum(-1)
    first = np.clip((uv * vw - uw * vv) / np.maximum(uu * vv - uv * uv, 1e-12), 0, 1)
    second = np.clip((uv * first + vw) / vv, 0, 1)
    first = np.clip((uv * second - uw) / uu, 0, 1)
    return np.linalg.norm(w + first[..., None] * u - second[..., None] * v, axis=-1)
