"""Render one image: a person, objects, lights, a camera and its lens.

The scene is rasterised once at twice the resolution and shaded in linear light. A pixel keeps one
of its four samples where these lie within 4 mm of depth, and all four along outlines.
"""

from typing import NamedTuple

import cv2
import numpy as np
import trimesh
from scipy.spatial.transform import Rotation

from hamr_lib.camera import project_pinhole
from hamr_lib.joints import PARENTS, TIPS
from hamr_lib.render import depth_map, enlarged, rasterize, vertex_normals
from hamr_lib.synth.backgrounds import draw_background, draw_swatch
from hamr_lib.synth.camera import View, develop
from hamr_lib.synth.lights import draw_surroundings, sample_lights, shaded, vertex_light
from hamr_lib.synth.people import body, unit
from hamr_lib.synth.skin import GAMMA, THING, Look, materials, vertex_materials


class Person(NamedTuple):
    """A posed person, in the body's axes, metres."""

    vertices: np.ndarray  # (V, 3)
    joints: np.ndarray  # (2, 21, 3)
    eyes: np.ndarray  # (3,)
    look: Look


class Thing(NamedTuple):
    """An object, in the camera's frame."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3)
    local: np.ndarray  # (V, 3) in its own axes, where its pattern is fixed
    pattern: np.ndarray  # (h, w, 3) linear RGB


def dressed(vertices: np.ndarray, joints: np.ndarray, look: Look, factors) -> Person:
    """Dress a posed body (V, 3) with joints (2, 21, 3), unless bare hands are asked for."""
    shared, clothed = body(), vertices
    if factors.people:
        clothed = vertices + look.inflation[:, None] * vertex_normals(vertices, shared.faces)
    return Person(clothed, joints, vertices[shared.head].mean(0), look)


def sample_things(
    rng: np.random.Generator, joints: np.ndarray, held: bool, split: str
) -> list[Thing]:
    """Draw one object held in a hand (21, 3), or one or two between it and the camera."""
    if not held:
        middle = joints[rng.integers(len(joints))]
        things = []
        for _ in range(rng.integers(1, 3)):
            center = middle * rng.uniform(0.6, 0.92) + rng.normal(0, 0.035, 3)
            radius = rng.uniform(0.008, 0.03)
            things.append(_thing(rng, center, radius, rng.normal(size=3), split))
        return things
    palm, tips = joints[[0, 5, 9, 13, 17]].mean(0), joints[list(TIPS)].mean(0)
    normal = unit(np.cross(joints[5] - joints[0], joints[17] - joints[0]))
    normal = normal * np.sign(normal @ (tips - palm) or 1.0)
    axis = unit(unit(joints[5] - joints[17]) + 0.25 * rng.normal(size=3))
    # As thick as the grasp allows: from its middle to the nearest bone, less half a finger.
    center = 0.5 * joints[[9, 10, 13, 14]].mean(0) + 0.5 * tips + 0.006 * normal
    parents = joints[list(PARENTS[1:])]
    bones = np.concatenate([joints[1:] * s + parents * (1 - s) for s in (0.25, 0.6, 1.0)])
    away = bones - center
    away = np.linalg.norm(away - (away @ axis)[:, None] * axis, axis=1)
    radius = np.clip(np.sort(away)[5] - 0.005, 0.005, 0.05)
    return [_thing(rng, center + axis * rng.normal(0, 0.02), radius, axis, split)]


def _thing(rng, center, radius, axis, split):
    kind = rng.choice(["box", "cylinder", "capsule", "ball"], p=(0.35, 0.35, 0.15, 0.15))
    long = max(radius, 0.012) * np.exp(rng.uniform(np.log(2.5), np.log(9)))
    if kind == "box":
        mesh = trimesh.creation.box([2 * radius, 2 * radius * rng.uniform(0.4, 1.5), long])
    elif kind == "cylinder":
        mesh = trimesh.creation.cylinder(radius, long, sections=24)
    elif kind == "capsule":
        mesh = trimesh.creation.capsule(long, radius, count=[16, 16])
        mesh.vertices -= mesh.vertices.mean(0)
    else:
        mesh = trimesh.creation.icosphere(subdivisions=2, radius=1.2 * radius)
    if kind in ("box", "cylinder"):
        mesh.unmerge_vertices()  # so that edges stay sharp when shaded
    turn, _ = Rotation.align_vectors(unit(axis), [0, 0, 1])
    local = mesh.vertices @ Rotation.from_rotvec([0, 0, rng.uniform(0, 6)]).as_matrix().T
    vertices = turn.apply(local) + center
    return Thing(vertices, np.asarray(mesh.faces), local, draw_swatch(rng, split))


def glimpse(person: Person, side: int, view: View, things=()) -> int:
    """Count the joints of a hand that an image shows, by one at an eighth of its size."""
    mesh = _assembled(view(person.vertices), body().faces, things)
    small = (view.shape[0] // 8, view.shape[1] // 8)
    depth = depth_map(*mesh, view.K / np.array([[8], [8], [1]]), small)
    return seen_joints(view(person.joints[side]), view, depth).sum()


def seen_joints(joints: np.ndarray, view: View, depth: np.ndarray) -> np.ndarray:
    """Return (21,) bool: inside the image, and at most 2.5 cm behind its depth (at any size)."""
    pixels, size = project_pinhole(joints, view.K), np.array(view.shape[::-1])
    inside = ((pixels >= 0) & (pixels <= size - 1)).all(1) & (joints[:, 2] > 0)
    u, v = (pixels[inside] * np.array(depth.shape[::-1]) / size).astype(int).T
    inside[inside] = joints[inside, 2] < depth[v, u] + 0.025
    return inside


def _assembled(vertices, faces, things):
    """Join a mesh (V, 3), (F, 3) and the meshes of objects."""
    for thing in things:
        faces = np.concatenate([faces, thing.faces + len(vertices)])
        vertices = np.concatenate([vertices, thing.vertices])
    return vertices, faces


def photograph(
    rng, lens, person: Person, side: int, view: View, factors, split: str, things: list[Thing]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render an image with its labels.

    Args:
        rng, lens: generators of all images of a sequence, and of what differs from image to image.
        side: 0 or 1, the hand that light and shadow are computed around.
        factors: `settings.data.open`; split: whose photographs may be used.

    Returns:
        image (H, W, 3) uint8; parts (H, W) uint8, RHD's ids; depth (H, W) metres, infinite where
        there is only background.
    """
    shared = body()
    body_faces = np.arange(len(shared.faces))
    if not factors.people:  # one bare hand
        body_faces = np.flatnonzero((shared.hand[shared.faces] == side + 1).all(1))
    vertices, faces = _assembled(view(person.vertices), shared.faces[body_faces], things)
    normals, around = vertex_normals(vertices, faces), None
    if factors.environments and rng.random() < 0.6:
        around = draw_surroundings(rng, split, view.rotation)
    backdrop = draw_background(rng, view.shape, split, factors.photographs, around)
    middle = view(person.joints[side]).mean(0)
    sky_axes, lamps = sample_lights(rng, backdrop, around, factors)
    light = vertex_light(vertices, faces, normals, middle, sky_axes, lamps, factors)
    K = enlarged(view.K, 2)
    fragments = rasterize(vertices, faces, K, (2 * view.shape[0], 2 * view.shape[1]))
    depth = fragments.image(fragments.depth, np.float32(np.inf))
    samples, even = _thinned(fragments, depth)
    # One pass interpolates everything; from here on channels come first, which is faster.
    values = np.column_stack([normals, light, vertex_materials(person.look, things, factors)])
    values = np.ascontiguousarray(samples.interpolate(values.astype(np.float32)).T)
    normal, sky, lit = unit(values[:3] + np.float32(1e-9)), values[3:6], values[6:-7]
    own = values[-7:], person.look, body_faces, things, factors
    colour, bump, gloss, kind = materials(rng, samples, *own)
    if factors.textures:
        normal = _bumped(samples, normal, bump, view.K[0, 0])
    light, shine = shaded(samples, normal, sky, lit, lamps, kind, gloss, K)
    # The exposure follows the people, with some error.
    level = light[:, kind != THING].mean() if (kind != THING).any() else 1.0
    exposure = np.exp(rng.normal(0, 0.18)) * rng.uniform(0.75, 1.0) if factors.lens else 0.9
    shown = (colour * light + shine) * np.float32(exposure / max(level, 1e-3))
    square = shown * shown
    shown /= np.sqrt(np.sqrt(1 + square * square))  # highlights saturate gently
    shown = np.power(shown, np.float32(1 / GAMMA))
    if factors.lens and rng.random() < 0.55:  # out of focus
        backdrop = cv2.GaussianBlur(backdrop, (0, 0), rng.uniform(0.4, 3.5))
    image = _composed(samples, even, shown, backdrop)
    ids = np.zeros(len(faces), np.uint8)
    ids[: len(body_faces)] = shared.parts[body_faces]
    half = (slice(1, None, 2),) * 2
    parts = fragments.image(ids[fragments.face], 0)[half]
    return develop(rng, lens, image, split, factors), parts, depth[half]


def _thinned(fragments, depth):
    """Return the samples that are shaded, and (H W,) bool: the pixels that keep one sample."""
    a, b, c, d = (depth[i::2, j::2] for i in (0, 1) for j in (0, 1))
    farthest = np.maximum(np.maximum(a, b), np.maximum(c, d))
    nearest = np.minimum(np.minimum(a, b), np.minimum(c, d))
    even = farthest < nearest + np.float32(0.004)
    kept = np.empty(fragments.shape, bool)
    kept[::2, ::2] = True
    kept[::2, 1::2] = kept[1::2, ::2] = kept[1::2, 1::2] = ~even
    kept = np.flatnonzero(kept.ravel()[fragments.pixel])
    each = {k: getattr(fragments, k)[kept] for k in ("pixel", "face", "weights", "depth")}
    return fragments._replace(**each), even.ravel()


def _pixel_of(samples):
    """Return (N,) the flat index of the pixel that each sample lies in."""
    y, x = np.divmod(samples.pixel.astype(np.int32), np.int32(samples.shape[1]))
    return (y >> 1) * (samples.shape[1] >> 1) + (x >> 1)


def _bumped(samples, normal, bump, focal):
    """Turn normals (3, N) by the slope of small heights `bump` (N,) metres across the image."""
    height, width = samples.shape
    at = _pixel_of(samples)
    pixels = np.zeros((height // 2, width // 2), np.float32)
    pixels.ravel()[at] = bump / (samples.depth / np.float32(focal))
    slopes = [cv2.Sobel(pixels, -1, dx, 1 - dx, scale=1 / 8).ravel()[at] for dx in (1, 0)]
    normal = normal.copy()
    normal[:2] -= np.clip(slopes, np.float32(-0.5), np.float32(0.5))
    return unit(normal)


def _composed(samples, even, shown, backdrop):
    """Lay the colours (3, N) of the samples over a background: (H, W, 3) in [0, 1]."""
    at = _pixel_of(samples)
    alone = even[at]
    seen = np.zeros((4, len(even)), np.float32)
    seen[:3, at[alone]] = shown[:, alone]
    seen[3, at[alone]] = 1
    # Each of the others covers a quarter of a pixel.
    quarter, where = shown[:, ~alone], at[~alone]
    for channel in range(4):
        weights = quarter[channel] / 4 if channel < 3 else np.full(len(where), 0.25)
        seen[channel] += np.bincount(where, weights, len(even)).astype(np.float32)
    seen = cv2.merge(list(seen.reshape(4, *backdrop.shape[:2])))
    return seen[..., :3] + (1 - seen[..., 3:]) * backdrop
