"""Render one image: a person, objects, lights, a camera and its lens.

The scene is rasterised once at twice the resolution and shaded pixel by pixel in linear light;
then `lens` develops it.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from hamr_lib.camera import project_pinhole
from hamr_lib.render import depth_map, enlarged, rasterize, vertex_normals
from hamr_lib.synth.backgrounds import draw_background
from hamr_lib.synth.environments import draw_surroundings
from hamr_lib.synth.lens import develop
from hamr_lib.synth.lights import sample_lights, shaded, vertex_light
from hamr_lib.synth.people import body
from hamr_lib.synth.samples import composed, thinned
from hamr_lib.synth.skin import GAMMA
from hamr_lib.synth.surfaces import THING, bumped, surface, surface_values
from hamr_lib.synth.vectors import unit


class Person(NamedTuple):
    """A posed person, in the body's axes, metres."""

    vertices: np.ndarray  # (V, 3)
    joints: np.ndarray  # (2, 21, 3)
    eyes: np.ndarray  # (3,)
    look: object  # `skin.Look`


class Shot(NamedTuple):
    """A rendered image and everything that labels it."""

    image: np.ndarray  # (H, W, 3) uint8
    parts: np.ndarray  # (H, W) uint8, RHD's ids
    depth: np.ndarray  # (H, W) float32 metres; infinite where there is only background


def dressed(vertices: np.ndarray, joints: np.ndarray, look, factors) -> Person:
    """Dress a posed body (V, 3) with joints (2, 21, 3), unless bare hands are asked for."""
    shared, clothed = body(), vertices
    if factors.people:
        clothed = vertices + look.inflation[:, None] * vertex_normals(vertices, shared.faces)
    return Person(clothed, joints, vertices[shared.head].mean(0), look)


def glimpse(person: Person, side: int, view, things=()) -> np.ndarray:
    """Return (21,) bool: the joints that an image shows, by one at an eighth of its size."""
    vertices, faces = assembled(view(person.vertices), body().faces, things)
    small = (view.shape[0] // 8, view.shape[1] // 8)
    depth = depth_map(vertices, faces, view.K / np.array([[8], [8], [1]]), small)
    return seen_joints(view(person.joints[side]), view, depth)


def seen_joints(joints: np.ndarray, view, depth: np.ndarray) -> np.ndarray:
    """Return (21,) bool: inside the image, and at most 2.5 cm behind the nearest surface.

    Args:
        joints: (21, 3) metres, camera frame.
        depth: (h, w) metres; it may be smaller than the image.
    """
    pixels, size = project_pinhole(joints, view.K), np.array(view.shape[::-1])
    inside = ((pixels >= 0) & (pixels <= size - 1)).all(1) & (joints[:, 2] > 0)
    u, v = (pixels[inside] * np.array(depth.shape[::-1]) / size).astype(int).T
    inside[inside] = joints[inside, 2] < depth[v, u] + 0.025
    return inside


def assembled(vertices, faces, things) -> tuple[np.ndarray, np.ndarray]:
    """Join a mesh (V, 3), (F, 3) and the meshes of objects."""
    for thing in things:
        faces = np.concatenate([faces, thing.faces + len(vertices)])
        vertices = np.concatenate([vertices, thing.vertices])
    return vertices, faces


def photograph(rng, lens, person: Person, side: int, view, factors, split: str, things) -> Shot:
    """Render an image with its labels.

    Args:
        rng: numpy Generator of the light and the background: the same for all of a sequence.
        lens: numpy Generator of what differs from image to image.
        side: 0 or 1, the hand that light and shadow are computed around.
        view: `View`; things: list of `Thing`.
        factors: `settings.data.open`; split: whose photographs may be used.
    """
    body_faces = drawn_faces(factors.people, side)
    vertices, faces = assembled(view(person.vertices), body().faces[body_faces], things)
    normals = vertex_normals(vertices, faces)
    around = None
    if factors.environments and rng.random() < 0.6:
        around = draw_surroundings(rng, split, view.rotation)
    backdrop = draw_background(rng, view.shape, split, factors.photographs, around)
    middle = view(person.joints[side]).mean(0)
    sky_axes, lamps = sample_lights(rng, backdrop, around, factors)
    light = vertex_light(vertices, faces, normals, middle, sky_axes, lamps, factors)

    K = enlarged(view.K, 2)
    fragments = rasterize(vertices, faces, K, (2 * view.shape[0], 2 * view.shape[1]))
    depth = fragments.image(fragments.depth, np.float32(np.inf))
    samples, even = thinned(fragments, depth)
    # One pass interpolates everything; from here on channels come first, which is faster.
    values = np.column_stack([normals, light, *surface_values(person.look, things, factors)])
    values = np.ascontiguousarray(samples.interpolate(values.astype(np.float32)).T)
    normal, sky, lit = unit(values[:3] + np.float32(1e-9)), values[3:6], values[6:-7]
    own = values[-7:], person.look, body_faces, things, factors
    colour, bump, gloss, kind = surface(rng, samples, *own)
    if factors.textures:
        normal = bumped(samples, normal, bump, view.K[0, 0])
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
    image = composed(samples, even, shown, backdrop)
    ids = np.zeros(len(faces), np.uint8)
    ids[: len(body_faces)] = body().parts[body_faces]
    half = (slice(1, None, 2),) * 2
    parts = fragments.image(ids[fragments.face], 0)[half]
    return Shot(develop(rng, lens, image, split, factors), parts, depth[half])


@functools.cache
def drawn_faces(people: bool, side: int) -> np.ndarray:
    """Return the rows of the body's faces that are drawn: all, or those of one bare hand."""
    shared = body()
    if people:
        return np.arange(len(shared.faces))
    return np.flatnonzero((shared.hand[shared.faces] == side + 1).all(1))
