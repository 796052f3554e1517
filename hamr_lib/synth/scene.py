"""One photograph that never was: a person, things, lights, a camera and what a lens does.

The scene is rasterised once at twice the resolution and shaded pixel by pixel in linear light;
then it is developed as a phone would: exposure, white balance, blur, noise, sharpening, JPEG.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np
import trimesh
from scipy.spatial.transform import Rotation

from hamr_lib.camera import project_pinhole
from hamr_lib.render import depth_map, rasterize, vertex_normals
from hamr_lib.synth.backgrounds import draw_background, draw_photograph, draw_swatch
from hamr_lib.synth.environments import draw_surroundings
from hamr_lib.synth.people import body
from hamr_lib.synth.skin import GAMMA, details

OVERSAMPLE = 2
SKIN, CLOTH, THING = range(3)


class View(NamedTuple):
    """Where the camera is: points of the world are `R (p - center)`."""

    rotation: np.ndarray  # (3, 3)
    center: np.ndarray  # (3,)

    def __call__(self, points):
        return (points - self.center) @ self.rotation.T


class Thing(NamedTuple):
    """An object, in the camera's frame."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3)
    local: np.ndarray  # (V, 3) in its own axes, where its pattern is fixed
    pattern: np.ndarray  # (h, w, 3) linear RGB


class Shot(NamedTuple):
    """A rendered image and everything that labels it."""

    image: np.ndarray  # (H, W, 3) uint8
    parts: np.ndarray  # (H, W) uint8, RHD's ids
    depth: np.ndarray  # (H, W) float32 metres; infinite where there is only background


def unit(vector):
    """A vector (3,), or vectors (3, N), of length one."""
    x, y, z = vector
    return vector / np.sqrt(x * x + y * y + z * z)


def sample_view(rng, person, side, K, shape, length, centred=False):
    """Look at a hand: from anywhere on the sphere, from before the person, or from their eyes.

    Args:
        person: `Person`; side: 0 left, 1 right, the hand that is looked at.
        K: (3, 3) intrinsics; shape: (height, width) of the image.
        length: pixels that 18 cm, a hand's length, should measure.
        centred: near the picture's middle, and upright, as before a camera on a table.
    """
    joints = person.joints[side]
    middle = joints.mean(0)
    kind = "front" if centred else rng.choice(["sphere", "front", "eyes"], p=(0.45, 0.3, 0.25))
    if kind == "sphere":
        direction = unit(rng.normal(size=3))
    elif kind == "front":
        direction = unit(unit(rng.normal(size=3)) * 0.6 + (0, -1, 0))
    else:
        direction = unit(unit(person.eyes - middle) + 0.25 * rng.normal(size=3))
    x = unit(_cross(-direction, np.array([0, 0, 1.0]) + 0.05 * rng.normal(size=3)))
    rotation = np.stack([x, _cross(-direction, x), -direction])
    # Phones are held upright, mostly.
    upright = centred or rng.random() < 0.6
    roll = rng.normal(0, np.radians(20)) if upright else rng.uniform(-np.pi, np.pi)
    rotation = Rotation.from_rotvec([0, 0, roll]).as_matrix() @ rotation
    # The hand lies anywhere in the picture, and now and then over its border.
    spread = 0.62 if rng.random() < 0.15 else 0.4
    room = np.maximum(np.array(shape[::-1]) / 2 - spread * length, 0.12 * length)
    if spread > 0.5:
        room = np.array(shape[::-1]) / 2
    aim = rng.uniform(-1, 1, 2) * (0.2 * room if centred else room)
    distance = K[0, 0] * 0.18 / length
    offset = np.array([*(aim / K[[0, 1], [0, 1]]), 1.0]) * distance
    return View(rotation, middle - rotation.T @ offset)


def sample_things(rng, joints, held, split):
    """A thing held in a hand, or one or two between a hand and the camera.

    Args:
        joints: (21, 3) metres of the hand, camera frame.
        held: the first or the second.
    """
    if not held:
        middle = joints[rng.integers(len(joints))]
        return [
            _thing(
                rng,
                middle * rng.uniform(0.6, 0.92) + rng.normal(0, 0.035, 3),
                rng.uniform(0.008, 0.03),
                rng.normal(size=3),
                split,
            )
            for _ in range(rng.integers(1, 3))
        ]
    palm, tips = joints[[0, 5, 9, 13, 17]].mean(0), joints[[4, 8, 12, 16, 20]].mean(0)
    normal = unit(_cross(joints[5] - joints[0], joints[17] - joints[0]))
    normal = normal * np.sign(normal @ (tips - palm) or 1.0)
    axis = unit(unit(joints[5] - joints[17]) + 0.25 * rng.normal(size=3))
    # As thick as the grasp allows: from its middle to the nearest bone, less half a finger.
    center = 0.5 * joints[[9, 10, 13, 14]].mean(0) + 0.5 * tips + 0.006 * normal
    bones = np.concatenate([joints[1:] * s + joints[_PARENTS] * (1 - s) for s in (0.25, 0.6, 1.0)])
    away = bones - center
    away = np.linalg.norm(away - (away @ axis)[:, None] * axis, axis=1)
    radius = np.clip(np.sort(away)[5] - 0.005, 0.005, 0.05)
    return [_thing(rng, center + axis * rng.normal(0, 0.02), radius, axis, split)]


_PARENTS = [0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19]


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


class Person(NamedTuple):
    """Somebody posed, in the body's axes."""

    vertices: np.ndarray  # (V, 3)
    joints: np.ndarray  # (2, 21, 3)
    eyes: np.ndarray  # (3,)
    look: object  # `skin.Look`


def dressed(vertices, joints, look, factors):
    """A `Person`: a body with its clothes on, where there are to be people."""
    shared, clothed = body(), vertices
    if factors.people:
        clothed = vertices + look.inflation[:, None] * vertex_normals(vertices, shared.faces)
    return Person(clothed, joints, vertices[shared.head].mean(0), look)


def glimpse(person, view, K, shape, side, things=()):
    """(21,) bool: which joints of a hand a picture would show; an eighth of the pixels decide."""
    small = (shape[0] // 8, shape[1] // 8)
    vertices, faces = _assembled(view(person.vertices), body().faces, things)
    depth = depth_map(vertices, faces, K / np.array([[8], [8], [1]]), small)
    return seen_joints(view(person.joints[side]), K, shape, depth)


def seen_joints(joints, K, shape, depth):
    """(21,) bool: inside the image, with no more than 2.5 cm of flesh or things before the joint.

    `depth` may be smaller than the image of that `shape` (height, width).
    """
    pixels = project_pinhole(joints, K)
    inside = ((pixels >= 0) & (pixels <= np.array(shape[::-1]) - 1)).all(1) & (joints[:, 2] > 0)
    u, v = (pixels[inside] * np.array(depth.shape[::-1]) / shape[::-1]).astype(int).T
    inside[inside] = joints[inside, 2] < depth[v, u] + 0.025
    return inside


def _assembled(vertices, faces, things):
    all_vertices, all_faces, count = [vertices], [faces], len(vertices)
    for thing in things:
        all_vertices.append(thing.vertices)
        all_faces.append(thing.faces + count)
        count += len(thing.vertices)
    return np.concatenate(all_vertices), np.concatenate(all_faces)


def photograph(rng, lens, person, side, view, K, shape, factors, split, things=()):
    """Take the picture.

    Args:
        rng: numpy Generator of the light and the background: the same for all of a sequence.
        lens: numpy Generator of what differs from shot to shot.
        person: `Person`; side: 0 or 1, the hand that light and shadow are computed around.
        view: `View`; K: (3, 3); shape: (height, width).
        factors: `settings.data.open`; split: whose photographs may be seen.
        things: list of `Thing`.

    Returns:
        `Shot`.
    """
    body_faces = _faces(factors.people, side)
    vertices, faces = _assembled(view(person.vertices), body().faces[body_faces], things)
    normals = vertex_normals(vertices, faces)
    around = None
    if factors.environments and rng.random() < 0.6:
        around = draw_surroundings(rng, split, view.rotation)
    backdrop = draw_background(rng, shape, split, factors.photographs, around)
    middle = view(person.joints[side]).mean(0)
    sky_axes, lamps = _lights(rng, backdrop, around, factors)
    light = _vertex_light(vertices, faces, normals, middle, sky_axes, lamps, factors)

    large = (OVERSAMPLE * shape[0], OVERSAMPLE * shape[1])
    large_K = K * np.array([[OVERSAMPLE], [OVERSAMPLE], [1]])
    large_K[:2, 2] += (OVERSAMPLE - 1) / 2
    fragments = rasterize(vertices, faces, large_K, large)
    depth = fragments.image(fragments.depth, np.float32(np.inf))
    samples, even = _thinned(fragments, depth)
    # One pass interpolates everything; from here on channels come first, which is faster.
    values = np.column_stack([
        normals, light, *_surface_values(person.look, things, factors)
    ]).astype(np.float32)  # fmt: skip
    values = np.ascontiguousarray(samples.interpolate(values).T)
    normal, sky, lit = unit(values[:3] + np.float32(1e-9)), values[3:6], values[6:-7]
    colour, bump, gloss, kind = _surface(
        rng, samples, values[-7:], person.look, body_faces, things, factors
    )
    if factors.textures:
        normal = _bumped(samples, normal, bump, K[0, 0])
    light, shine = _shaded(samples, normal, sky, lit, lamps, kind, gloss, large_K)
    # Exposed for the people, more or less.
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
    ids[: len(body_faces)] = body().parts[body_faces]
    half = (slice(OVERSAMPLE // 2, None, OVERSAMPLE),) * 2
    parts = fragments.image(ids[fragments.face], 0)[half]
    return Shot(develop(rng, lens, image, split, factors), parts, depth[half])


def _thinned(fragments, depth, flat=0.004):
    """The samples that are shaded: one in each pixel of the image where its four lie within `flat`
    metres of depth, all four along outlines. And (H W,) bool: which pixels have only the one."""
    a, b, c, d = (depth[i::2, j::2] for i in (0, 1) for j in (0, 1))
    farthest = np.maximum(np.maximum(a, b), np.maximum(c, d))
    nearest = np.minimum(np.minimum(a, b), np.minimum(c, d))
    even = farthest < nearest + np.float32(flat)
    kept = np.empty(fragments.shape, bool)
    kept[::2, ::2] = True
    kept[::2, 1::2] = kept[1::2, ::2] = kept[1::2, 1::2] = ~even
    kept = np.flatnonzero(kept.ravel()[fragments.pixel])
    samples = fragments._replace(
        pixel=fragments.pixel[kept], face=fragments.face[kept], weights=fragments.weights[kept],
        depth=fragments.depth[kept],
    )  # fmt: skip
    return samples, even.ravel()


def _blocks(samples):
    """(N,) the pixel of the image, flattened, that each sample lies in."""
    width = samples.shape[1]
    y, x = np.divmod(samples.pixel.astype(np.int32), np.int32(width))
    return (y >> 1) * (width >> 1) + (x >> 1)


def _surface_values(look, things, factors):
    """What `_surface` wants at each vertex: 7 columns."""
    shared, extra = body(), sum(len(thing.vertices) for thing in things)
    rest = np.concatenate([shared.rest, *(thing.local for thing in things)])
    inside = look.inside if factors.people else np.full(len(shared.rest), -9.0)
    return rest, np.pad(look.colours, ((0, extra), (0, 0))), np.pad(inside, (0, extra))


def _surface(rng, samples, values, look, body_faces, things, factors):
    """What each sample is made of.

    Args:
        values: (7, N), `_surface_values` interpolated.

    Returns:
        colour (3, N) reflectance, bump (N,) height in metres, gloss (N,), kind (N,): SKIN, CLOTH
        or THING.
    """
    place, colour, inside = values[:3], values[3:6].copy(), values[6]
    of_thing = samples.face - len(body_faces)  # 0 and up: a thing's
    kind = np.where(of_thing >= 0, THING, np.where(inside > 0, CLOTH, SKIN))
    bump = np.zeros(len(kind), np.float32)
    gloss = np.full(len(kind), np.float32(look.gloss))
    skin, cloth = np.flatnonzero(kind == SKIN), np.flatnonzero(kind == CLOTH)
    shift = rng.uniform(0, 1, 2)
    if factors.textures and len(skin):
        crease, nail = np.zeros((2, len(skin)), np.float32)
        on_hand = np.flatnonzero(_on_hand()[body_faces[samples.face[skin]]])
        uv = _interpolated_uv(samples, skin[on_hand], body_faces)
        crease[on_hand], nail[on_hand] = details()(uv).T
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


_CLOTH_AXES = np.array([[0.8, 0.1], [0.6, 0.3], [0.0, 0.95]], np.float32)


@functools.cache
def _faces(people, side):
    """Rows of the body's faces that are drawn: all, or those of one bare hand."""
    shared = body()
    if people:
        return np.arange(len(shared.faces))
    return np.flatnonzero((shared.hand[shared.faces] == side + 1).all(1))


@functools.cache
def _on_hand():
    """(F,) bool: the body's faces that `skin.details` covers."""
    return (body().hand[body().faces] > 0).all(1)


def _interpolated_uv(fragments, rows, body_faces):
    shared = body()
    corners = shared.uv[shared.faces_uv[body_faces[fragments.face[rows]]]].astype(np.float32)
    return np.einsum("nk,nkc->nc", fragments.weights[rows], corners)


def _repeat(pattern, at):
    """Samples (N, C) of an image (h, w, C) that repeats, at (2, N) in its widths; h and w are
    powers of two."""
    height, width = pattern.shape[:2]
    # Far from zero, since truncation would mirror the pattern there.
    x, y = ((at + np.float32(64)) * np.float32([[width], [height]])).astype(np.int32)
    index = (y & (height - 1)) * width + (x & (width - 1))
    return pattern.reshape(height * width, -1).take(index, axis=0)


@functools.cache
def _noise_tile(size=512):
    """(size, size) noise that repeats, of unit variance: the finer, the fainter."""
    rng = np.random.default_rng(7)
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    fall = np.maximum(np.hypot(fy, fx), 0.01) ** -0.9
    tile = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) * fall)
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)[..., None]


def _grain(place, offset, across=0.2):
    """(N,) noise fixed to the body: two of its planes' noise, `across` metres a repeat.

    `place` is (3, N) metres.
    """
    turned = _GRAIN_AXES.T @ place / np.float32(across) + np.float32(offset[0])
    first = _repeat(_noise_tile(), turned[:2])
    second = _repeat(_noise_tile(), turned[1:] + np.float32(offset[1]))
    return np.float32(0.7) * (first + second)[:, 0]


_GRAIN_AXES = Rotation.from_euler("xyz", [0.5, 0.7, 0.3]).as_matrix().astype(np.float32)


def _bumped(samples, normal, bump, focal):
    """Normals (3, N) turned by the slope of small heights (metres) across the image's pixels."""
    height, width = samples.shape
    at = _blocks(samples)
    pixels = np.zeros((height // 2, width // 2), np.float32)
    pixels.ravel()[at] = bump / (samples.depth / np.float32(focal))
    slopes = [cv2.Sobel(pixels, -1, dx, 1 - dx, scale=1 / 8).ravel()[at] for dx in (1, 0)]
    normal = normal.copy()
    normal[:2] -= np.clip(slopes, np.float32(-0.5), np.float32(0.5))
    return unit(normal)


class Lamp(NamedTuple):
    """A distant light."""

    toward: np.ndarray  # (3,) where it is, camera frame
    colour: np.ndarray  # (3,)


def _lights(rng, backdrop, around, factors):
    """Light from all around, as (three axes (3, 3), colours from their two ends (6, 3)), and up to
    three `Lamp`s.

    In an environment both are its own. Elsewhere half of the ambient light has the colours of what
    is seen, so that the hand belongs there.
    """
    axes = Rotation.random(rng=rng).as_matrix()
    if not factors.lights:
        return (axes, np.full((6, 3), 0.5)), [Lamp(unit(np.array([-0.3, -0.5, -0.8])), np.ones(3))]
    ends = np.concatenate([axes, -axes])
    if around is not None:
        # Lamps are dimmed at random: a cloud, a curtain, something between.
        lamps = [Lamp(to, colour * rng.uniform(0.2, 1.0)) for to, colour in around.lamps()]
        return (axes, around.light_from(ends)), lamps
    small = cv2.resize(backdrop, (6, 6), interpolation=cv2.INTER_AREA) ** GAMMA
    column, row = ((ends[:, :2] + 1) * 2.99).astype(int).T
    seen = small[row, column] / max(small.mean(), 0.02)
    seen = 0.7 * seen.mean(1, keepdims=True) + 0.3 * seen  # much of it comes from elsewhere
    tint = np.exp(rng.normal(0, 0.06, 3))
    above = unit(rng.normal(size=3) * 0.4 + (0, -1, 0))
    brightness = np.exp(rng.uniform(0, 1.2) * (ends @ above))[:, None]
    share = rng.uniform(0.1, 0.6)
    ambient = (share * seen.clip(0, 3) + (1 - share) * tint) * brightness * rng.uniform(0.25, 1.0)
    lamps = []
    for number in range(rng.integers(1, 4)):
        toward = unit(unit(rng.normal(size=3)) + (0, -0.5, -0.5))  # mostly above and before it
        warmth = rng.normal(0, 0.16)
        colour = np.exp(np.array([warmth, 0, -1.2 * warmth]) + rng.normal(0, 0.05, 3))
        lamps.append(Lamp(toward, colour * rng.uniform(0.3, 1.8) * 0.55**number))
    return (axes, ambient), lamps


def _vertex_light(vertices, faces, normals, middle, sky, lamps, factors, reach=0.14):
    """Light that falls on each vertex from around, and how much of each lamp: (V, 3 + L).

    What comes from around is an ambient cube (McTaggart 2004): light from the six ends of three
    axes, each by the square of its cosine. All is shadowed by what lies within `reach` metres of
    the hand: a small depth map a direction.
    """
    axes, colours = sky
    facing = (axes @ normals.T).astype(np.float32)
    falls = np.concatenate([np.maximum(facing, 0), np.maximum(-facing, 0)]) ** 2
    light = np.ones((len(vertices), 3 + len(lamps)), np.float32)
    if factors.lights:
        x, y, z = np.abs(vertices - middle).T < reach
        inside = x & y & z
        near, row = np.flatnonzero(inside), np.cumsum(inside) - 1
        casters = row[faces[inside[faces].all(1)]]
        points, slack = (vertices[near] - middle) / (1.5 * reach), 0.005 / (1.5 * reach)
        for number, toward in enumerate(np.concatenate([axes, -axes])):
            falls[number, near] *= _reached(
                points, casters, toward, axes[(number + 1) % 3], slack, 80
            )
        for number, lamp in enumerate(lamps[:2]):
            side = unit(_cross(lamp.toward, (0.3, 0.9, 0.2)))
            light[near, 3 + number] = _reached(
                points, casters, lamp.toward, side, slack, 176, _TAPS
            )
    light[:, :3] = falls.T @ colours.astype(np.float32)
    return light


def _cross(a, b):
    """The cross product of two vectors (3,); np.cross takes ten times as long on these."""
    return np.array(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )


_TAPS = ((0, 0), (2, 1), (-1, 2), (-2, -1), (1, -2))  # pixels, about a shadow's soft border


def _reached(points, faces, toward, side, slack, size, taps=_TAPS[:1]):
    """(N,) share of the light from a direction that reaches points (N, 3) about the origin.

    A point is in the shadow from `slack` behind what the light first hits, wholly from 2.5 of it.
    `side` is any unit vector across `toward`.
    """
    seen = points @ np.stack([side, _cross(side, toward), -toward]).T  # from the light
    depth = depth_map(seen, faces, np.array([1.0, 0, 0]), size)
    u, v = np.rint(((seen[:, :2] + 1) * size - 1) / 2).astype(np.int32).T
    behind = seen[:, 2].astype(np.float32) - np.float32(slack)
    total = np.zeros(len(points), np.float32)
    for du, dv in taps:
        first = depth[(v + dv).clip(0, size - 1), (u + du).clip(0, size - 1)]
        total += 1 - ((behind - first) / np.float32(1.5 * slack)).clip(0, 1)
    return total / len(taps)


def _shaded(fragments, normal, sky, lit, lamps, kind, gloss, K):
    """Light that each sample scatters (3, N), and what it mirrors (3, N)."""
    width = np.int32(fragments.shape[1])
    v, u = np.divmod(fragments.pixel.astype(np.int32), width)
    focal, middle = K[[0, 1], [0, 1]].astype("f4"), K[:2, 2].astype("f4")
    eye = np.empty((3, len(u)), np.float32)
    eye[0], eye[1], eye[2] = (middle[0] - u) / focal[0], (middle[1] - v) / focal[1], -1
    eye = unit(eye)
    light, shine = sky.copy(), np.zeros_like(sky)
    # Skin lets light in and out again: red reaches furthest round an edge.
    skin = kind == SKIN
    wraps = [skin * np.float32(reach) for reach in (0.32, 0.16, 0.12)]
    for lamp, reached in zip(lamps, lit, strict=True):
        toward, colour = lamp.toward.astype(np.float32), lamp.colour.astype(np.float32)
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


def _composed(samples, even, shown, backdrop):
    """The people and things (3, N) over a backdrop; (H, W, 3) in [0, 1]."""
    at = _blocks(samples)
    alone = even[at]
    seen = np.zeros((4, len(even)), np.float32)
    seen[:3, at[alone]] = shown[:, alone]
    seen[3, at[alone]] = 1
    # The others are a quarter of a pixel each.
    share, where = shown[:, ~alone], at[~alone]
    for channel in range(4):
        weights = share[channel] / 4 if channel < 3 else np.full(len(where), 0.25)
        seen[channel] += np.bincount(where, weights, len(even)).astype(np.float32)
    seen = cv2.merge(list(seen.reshape(4, *backdrop.shape[:2])))
    return seen[..., :3] + (1 - seen[..., 3:]) * backdrop


def develop(rng, lens, image, split, factors):
    """An image in [0, 1] to the uint8 image that a phone would save."""
    if factors.spectrum and rng.random() < 0.4:
        image = _mixed_spectrum(rng, image, split)
    image = (255 * image.clip(0, 1)).round().astype(np.uint8)
    if not factors.lens:
        return image
    # Now and then the white balance or the exposure is far off.
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
        image = cv2.filter2D(image, -1, _streak(rng))
    elif blur < 0.75:  # phones sharpen
        image = image + rng.uniform(0.3, 1.0) * (image - cv2.GaussianBlur(image, (0, 0), 1.2))
    if rng.random() < 0.7:
        strength = np.float32(np.exp(rng.uniform(np.log(0.003), np.log(0.03))))
        noise = _noise_from(lens, image.shape)
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
    return np.random.default_rng(8).standard_normal(2**22, np.float32)


def _noise_from(rng, shape):
    """White noise of unit variance, cut from a store: drawing it anew takes 2 ms an image."""
    start = int(rng.integers(len(_noise_store()) - np.prod(shape)))
    return _noise_store()[start : start + np.prod(shape)].reshape(shape)


def _mixed_spectrum(rng, image, split, size=64):
    """An image whose lowest frequencies have partly a photograph's amplitudes, and their own
    phases (Yang and Soatto, FDA, CVPR 2020; Zhao et al., CVPR 2025)."""
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    other = draw_photograph(rng, split, (size, size))
    spectrum, wanted = (np.fft.rfft2(each, axes=(0, 1)) for each in (small, other))
    y, x = np.fft.fftfreq(size, 1 / size), np.fft.rfftfreq(size, 1 / size)
    low = np.maximum(np.abs(y)[:, None], x[None]) <= rng.integers(1, 5)
    share = rng.uniform(0.1, 0.45) * low[..., None]
    ratio = np.abs(wanted) / np.maximum(np.abs(spectrum), 1e-6)
    change = np.fft.irfft2(share * (ratio - 1) * spectrum, (size, size), axes=(0, 1))
    change = cv2.resize(
        change.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC
    )
    return image + change


def _streak(rng):
    """A blur along a line of a few pixels."""
    size = int(rng.integers(3, 10)) | 1
    kernel = np.zeros((size, size), np.float32)
    kernel[size // 2] = 1
    turn = cv2.getRotationMatrix2D((size // 2, size // 2), rng.uniform(0, 180), 1)
    kernel = cv2.warpAffine(kernel, turn, (size, size))
    return kernel / kernel.sum()
