"""One photograph that never was: a person, things, lights, a camera and what a lens does.

A scene is drawn from a seeded generator, rasterised once at twice the resolution, shaded pixel by
pixel in linear light, and then developed: exposure, white balance, gamma, blur, noise, JPEG.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np
import trimesh
from scipy.spatial.transform import Rotation

from ..camera import project_pinhole
from ..joints import FINGERS, WRIST
from ..render import rasterize, vertex_normals
from .backgrounds import draw_background
from .people import SIDES, body

OVERSAMPLE = 2
GAMMA = 2.2


class Shot(NamedTuple):
    """A rendered image and everything that labels it."""

    image: np.ndarray  # (H, W, 3) uint8
    parts: np.ndarray  # (H, W) uint8, RHD's ids
    depth: np.ndarray  # (H, W) float32 metres, 0 where there is only background
    joints: dict  # side -> (21, 3) metres, camera frame
    visible: dict  # side -> (21,) bool
    K: np.ndarray  # (3, 3)


class View(NamedTuple):
    """Where the camera is: points of the world are `R (p - center)`."""

    rotation: np.ndarray  # (3, 3)
    center: np.ndarray  # (3,)

    def __call__(self, points):
        return (points - self.center) @ self.rotation.T


def draw_view(rng, person, side, K, shape, hand_pixels):
    """Look at a hand from anywhere on the sphere.

    Args:
        person: `people.Person`.
        side: the hand that is looked at.
        K: (3, 3) intrinsics; shape: (height, width) of the image.
        hand_pixels: how long the hand, 18 cm from wrist to tip, should appear.
    """
    joints = person.joints[side]
    distance = K[0, 0] * 0.18 / hand_pixels
    while True:
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        # From behind, below or within the body little is seen: `photograph` redraws such views.
        if direction[2] > -0.75:
            break
    upright = np.array([0, 0, 1.0]) if abs(direction[2]) < 0.95 else np.array([0, 1.0, 0])
    z = -direction
    x = np.cross(z, upright)
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z])
    # Phones are held upright, mostly.
    roll = rng.normal(0, np.radians(18)) if rng.uniform() < 0.7 else rng.uniform(-np.pi, np.pi)
    rotation = Rotation.from_rotvec([0, 0, roll]).as_matrix() @ rotation
    # The hand lies anywhere in the picture, a little over its border at times.
    room = np.maximum(np.array(shape[::-1]) / 2 - 0.4 * hand_pixels, 0)
    aim = rng.uniform(-1, 1, 2) * room
    offset = np.array([*(aim / K[[0, 1], [0, 1]]), 1.0]) * distance
    return View(rotation, joints.mean(0) - rotation.T @ offset)


class Thing(NamedTuple):
    """An object in the scene, camera frame."""

    vertices: np.ndarray
    faces: np.ndarray
    albedo: np.ndarray  # (V, 3) linear RGB


def draw_things(rng, hand, held):
    """Things that are held by, or stand before, a hand.

    Args:
        hand: (21, 3) joints, camera frame.
        held: True: one thing in the palm; False: up to two things between hand and camera.
    """
    if held:
        palm = hand[[WRIST, 5, 9, 13, 17]].mean(0)
        inward = np.mean(hand[[8, 12, 16, 20]], 0) - palm
        normal = np.cross(hand[5] - hand[WRIST], hand[17] - hand[WRIST])
        normal /= np.linalg.norm(normal)
        normal *= np.sign(normal @ inward) or 1.0
        radius = rng.uniform(0.012, 0.035)
        across = hand[5] - hand[17]
        return [_thing(rng, palm + 0.35 * inward + normal * (radius + 0.012), radius, across)]
    things = []
    for _ in range(rng.integers(1, 3)):
        toward = rng.uniform(0.25, 0.9)  # of the way from the hand to the camera
        target = hand[rng.integers(len(hand))] + rng.normal(0, 0.05, 3)
        things.append(_thing(rng, target * (1 - 0.3 * toward), rng.uniform(0.01, 0.04), rng.normal(size=3)))
    return things


def _thing(rng, center, radius, axis):
    kind = rng.choice(["box", "cylinder", "sphere"])
    long = radius * rng.uniform(2, 6)
    if kind == "box":
        mesh = trimesh.creation.box([2 * radius, 2 * radius * rng.uniform(0.4, 1.2), long])
    elif kind == "cylinder":
        mesh = trimesh.creation.cylinder(radius, long, sections=24)
    else:
        mesh = trimesh.creation.icosphere(subdivisions=2, radius=1.3 * radius)
    if kind != "sphere":
        # Corners that belong to one flat side only, so that edges stay sharp when shaded.
        mesh.unmerge_vertices()
    turn, _ = Rotation.align_vectors(axis / np.linalg.norm(axis), [0, 0, 1])
    spin = Rotation.from_rotvec([0, 0, rng.uniform(0, 2 * np.pi)])
    vertices = (turn * spin).apply(mesh.vertices) + center
    stripes = 1 + 0.3 * np.sign(np.sin(mesh.vertices[:, 2:] * rng.uniform(40, 300)))
    albedo = rng.uniform(0.02, 0.9, 3) * (stripes if rng.uniform() < 0.4 else 1)
    return Thing(vertices, mesh.faces, np.broadcast_to(albedo, vertices.shape).clip(0.01, 0.95))


def part_ids():
    """RHD's part id of every face of the body, and the side of its hand (0 none, 1 left, 2 right)."""
    from ..data.rhd import part_id

    b = body()
    first = b.faces[:, 0]
    ids = np.ones(len(b.faces), np.uint8)
    for side in SIDES:
        on_hand = b.hand[side][b.faces].mean(1) > 0.5
        phalanx = b.finger[first]
        for f, finger in enumerate(FINGERS):
            for k, part in enumerate(("base", "middle", "tip")):
                ids[on_hand & (phalanx == 3 * f + k + 1)] = part_id(side, finger, part)
        ids[on_hand & (phalanx == 0)] = part_id(side, "palm")
    return ids


def photograph(rng, person, view, K, shape, factors, split, things=()):
    """Take the picture.

    Args:
        rng: numpy Generator.
        person: `people.Person`; view: `View`; K: (3, 3); shape: (height, width).
        factors: `settings.data.open`.
        split: "training" or "evaluation": whose backgrounds are used.
        things: list of `Thing`.

    Returns:
        `Shot`.
    """
    b = body()
    vertices = view(person.vertices)
    faces, albedo = b.faces, person.albedo
    if not factors.people:  # the bare hands
        faces = faces[(np.maximum(b.hand["left"], b.hand["right"])[faces] > 0.5).all(1)]
    ids = _face_ids(factors.people)
    grain, rest = person.grain, b.rest
    for thing in things:
        faces = np.concatenate([faces, thing.faces + len(vertices)])
        vertices = np.concatenate([vertices, thing.vertices])
        albedo = np.concatenate([albedo, thing.albedo])
        grain = np.concatenate([grain, np.zeros(len(thing.vertices))])
        rest = np.concatenate([rest, thing.vertices])
        ids = np.concatenate([ids, np.zeros(len(thing.faces), np.uint8)])
    large = (OVERSAMPLE * shape[0], OVERSAMPLE * shape[1])
    large_K = K * np.array([[OVERSAMPLE], [OVERSAMPLE], [1]])
    large_K[:2, 2] += (OVERSAMPLE - 1) / 2
    fragments = rasterize(vertices, faces, large_K, large)
    normals = vertex_normals(vertices, faces)
    values = fragments.interpolate(
        np.concatenate([normals, albedo, vertices, rest, grain[:, None]], axis=1)
    )
    normal, color, place, fixed, rough = np.split(values, [3, 6, 9, 12], axis=1)
    if factors.textures:
        texture = rough * _texture(rng, fixed)
        color = color * (1 + texture[:, :1]).clip(0.2)
        normal = normal + 1.2 * texture[:, 1:]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    light = _lights(rng, factors, normal, place, vertices, faces)
    behind = draw_background(rng, large, split, factors.photographs) ** GAMMA
    if factors.lens and rng.uniform() < 0.6:  # out of focus
        behind = cv2.GaussianBlur(behind, (0, 0), OVERSAMPLE * rng.uniform(0.5, 5))
    picture = fragments.image((color * light).astype(np.float32), behind.astype(np.float32))
    picture = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)
    middle = (slice(OVERSAMPLE // 2, None, OVERSAMPLE),) * 2
    parts = fragments.image(ids[fragments.face], 0)[middle]
    depth = fragments.image(fragments.depth, 0.0)[middle]
    joints = {side: view(person.joints[side]) for side in SIDES}
    visible = {side: seen_joints(joints[side], K, depth) for side in SIDES}
    return Shot(develop(rng, picture, factors), parts, depth, joints, visible, K)


_IDS = {}


def _face_ids(people):
    if people not in _IDS:
        b, ids = body(), part_ids()
        if not people:
            ids = ids[(np.maximum(b.hand["left"], b.hand["right"])[b.faces] > 0.5).all(1)]
        _IDS[people] = ids
    return _IDS[people]


def glimpse(person, view, K, shape, side, things=()):
    """(21,) bool: which joints of a hand a picture would show; an eighth of the pixels decide."""
    small = (shape[0] // 8, shape[1] // 8)
    K = K / np.array([[8], [8], [1]])
    vertices, faces = view(person.vertices), body().faces
    for thing in things:
        faces = np.concatenate([faces, thing.faces + len(vertices)])
        vertices = np.concatenate([vertices, thing.vertices])
    fragments = rasterize(vertices, faces, K, small)
    depth = fragments.image(fragments.depth, 0.0)
    return seen_joints(view(person.joints[side]), K, depth)


def seen_joints(joints, K, depth):
    """(21,) bool: inside the image, and no more than 3 cm of flesh before the joint."""
    u, v = np.rint(project_pinhole(joints, K)).astype(int).T
    height, width = depth.shape
    inside = (joints[:, 2] > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    seen = np.zeros(len(joints), bool)
    nearest = depth[v[inside], u[inside]]
    seen[inside] = (nearest == 0) | (joints[inside, 2] < nearest + 0.03)
    return seen


@functools.cache
def _noise_volume(side=64):
    """(side^3, 4) float32: smooth noise that repeats; its value, and three more for the normals."""
    rng = np.random.default_rng(7)
    volume = rng.normal(size=(4, side, side, side))
    spectrum = np.fft.rfftn(volume, axes=(1, 2, 3))
    frequency = np.sqrt(sum(
        f**2 for f in np.meshgrid(*[np.fft.fftfreq(side)] * 2, np.fft.rfftfreq(side), indexing="ij")
    ))  # fmt: skip
    # Like most textures in nature: the finer, the fainter, down to two cells.
    volume = np.fft.irfftn(spectrum / np.maximum(frequency, 0.02) ** 1.2, axes=(1, 2, 3))
    volume /= volume.std(axis=(1, 2, 3), keepdims=True)
    return volume.reshape(4, -1).T.astype(np.float32).copy()


def _texture(rng, points, cell=0.0008, side=64):
    """(N, 4) noise fixed to the skin, down to `cell` metres: its tone, and turns of its normal."""
    turn = Rotation.random(random_state=rng).as_matrix() / cell
    at = (points @ turn.T.astype(np.float32) + rng.uniform(0, side, 3).astype(np.float32)) % side
    x, y, z = at.astype(np.int32).T % side
    return _noise_volume(side)[(x * side + y) * side + z]


def _unit(vector):
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _lights(rng, factors, normal, place, vertices, faces):
    """(N, 3) linear light at every pixel."""
    if not factors.lights:
        direction = _unit([0.3, 0.5, 0.8])
        return (0.4 + 0.6 * np.maximum(-normal @ direction, 0))[:, None]
    # Light from all sides is brighter from above and tinted, as in a room or under the sky.
    above = _unit(rng.normal(size=3) * 0.5 + [0, -1, 0])
    high, low = (rng.uniform(0.1, 0.6, 2)[:, None] * rng.uniform(0.8, 1.2, (2, 3))).astype("f4")
    share = (0.5 + 0.5 * normal @ above)[:, None]
    light = share * high + (1 - share) * low * 0.7
    for lamp in range(rng.integers(1, 4)):
        direction = _unit(rng.normal(size=3) + [0, 0.6, 0.5])  # mostly from above, behind us
        color = rng.uniform(0.2, 1.1) * np.exp(rng.normal(0, 0.12, 3)) / (1 + 0.5 * lamp)
        wrap = rng.uniform(0, 0.35)  # skin lets light around its edges
        lambert = np.maximum((-(normal @ direction) + wrap) / (1 + wrap), 0)
        if lamp == 0 and rng.uniform() < 0.7:
            lambert = lambert * _shadow(direction, place, vertices, faces)
        half = _unit([0, 0, -1.0] - direction)
        gloss = rng.uniform(0, 0.12) * np.maximum(normal @ half, 0) ** rng.uniform(8, 40)
        light += (lambert + gloss)[:, None] * color.astype(np.float32)
    return light


def _shadow(direction, place, vertices, faces, size=384):
    """(N,) 0 in the shadow that the scene throws on itself, 1 in the light; soft at its border."""
    if len(place) == 0:
        return np.ones(0, np.float32)
    up = np.array([0, 0, 1.0]) if abs(direction[2]) < 0.9 else np.array([1.0, 0, 0])
    x = _unit(np.cross(up, direction))
    turn = np.stack([x, np.cross(direction, x), direction])
    seen = place @ turn.T.astype(np.float32)
    low, high = seen.min(0), seen.max(0)
    scale = 1.9 / (high - low)[:2].max()
    camera = np.array([scale, *(-scale * (low + high)[:2] / 2)])
    fragments = rasterize(vertices @ turn.T, faces, camera, size)
    nearest = fragments.image(fragments.depth, np.float32(np.inf))
    pixel = ((scale * seen[:, :2] + camera[1:] + 1) * size - 1) / 2
    u, v = np.rint(pixel).astype(int).clip(0, size - 1).T
    lit = np.zeros(len(place), np.float32)
    for du, dv in ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)):
        at = nearest[(v + dv).clip(0, size - 1), (u + du).clip(0, size - 1)]
        lit += seen[:, 2] < at + 0.006
    return lit / 5


def develop(rng, linear, factors):
    """Linear light (H, W, 3) to the uint8 image a phone would save."""
    if not factors.lens:
        return (255 * linear.clip(0, 1) ** (1 / GAMMA)).round().astype(np.uint8)
    level = np.percentile(linear[::4, ::4], 90)
    linear = linear * (rng.uniform(0.55, 1.15) / max(level, 0.05)) ** 0.7
    linear = linear * np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)  # white balance
    if rng.uniform() < 0.5:
        linear = cv2.GaussianBlur(linear, (0, 0), rng.uniform(0.3, 1.1))
    if rng.uniform() < 0.15:
        linear = cv2.filter2D(linear, -1, _motion(rng))
    noisy = linear + rng.standard_normal(linear.shape, np.float32) * np.sqrt(
        rng.uniform(0, 1.5e-3) * linear.clip(0) + rng.uniform(0, 2e-4)
    )
    image = noisy.clip(0, 1) ** (1 / (GAMMA * rng.uniform(0.9, 1.1)))
    contrast = rng.uniform(0.85, 1.15)
    image = ((image - 0.5) * contrast + 0.5).clip(0, 1)
    image = (255 * image).round().astype(np.uint8)
    if rng.uniform() < 0.6:
        quality = int(rng.integers(40, 96))
        _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
    return image


def _motion(rng):
    """A blur along a line of a few pixels."""
    size = int(rng.integers(3, 9)) | 1
    kernel = np.zeros((size, size), np.float32)
    kernel[size // 2] = 1
    turn = cv2.getRotationMatrix2D((size // 2, size // 2), rng.uniform(0, 180), 1)
    kernel = cv2.warpAffine(kernel, turn, (size, size))
    return kernel / kernel.sum()
