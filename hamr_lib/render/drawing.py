"""Drawing with numpy and DEODR: ids and weights at every pixel, and shaded pictures of them."""

from typing import NamedTuple

import cv2
import numpy as np
import scipy.sparse

from hamr_lib.errors import HamrError
from hamr_lib.render.backends import deodr_scene, load_deodr
from hamr_lib.render.checks import check_faces, check_size

NEAR = 0.01  # metres; a pinhole camera sees nothing closer


class Fragments(NamedTuple):
    """The N covered pixels of an image in row order, each with its nearest face."""

    shape: tuple[int, int]  # (height, width)
    pixel: np.ndarray  # (N,) int, index into the flattened image
    face: np.ndarray  # (N,) int, row of `faces`
    weights: np.ndarray  # (N, 3) float32, perspective-correct barycentric coordinates
    depth: np.ndarray  # (N,) float32, metres
    faces: np.ndarray  # (F, 3) int, as given to `rasterize`

    def interpolate(self, values: np.ndarray, faces: np.ndarray | None = None) -> np.ndarray:
        """Interpolate (V, C) values at vertices: (N, C) float32 at the covered pixels.

        `faces` (F, 3) indexes the values where they are not one a vertex, as texture
        coordinates along a seam are not.
        """
        corners = (self.faces if faces is None else faces)[self.face]
        rows = np.arange(0, 3 * len(corners) + 1, 3)
        matrix = scipy.sparse.csr_array(
            (self.weights.ravel(), corners.ravel(), rows), shape=(len(corners), len(values))
        )
        return matrix @ np.ascontiguousarray(values, np.float32)

    def image(self, values: np.ndarray, background=0) -> np.ndarray:
        """Arrange (N,) or (N, C) values of the covered pixels as (H, W) or (H, W, C).

        `background` fills the rest: a number, a colour, or an image of the result's shape.
        """
        height, width = self.shape
        channels = values.shape[1:]
        image = np.empty((height, width, *channels), values.dtype)
        image[:] = background
        image.reshape(-1, *channels)[self.pixel] = values
        return image


class Picture(NamedTuple):
    """The images `render` draws."""

    colour: np.ndarray  # (H, W, 3) float32 in [0, 1]
    depth: np.ndarray  # (H, W) float32 metres; infinite where nothing is seen
    normals: np.ndarray  # (H, W, 3) float32 unit vectors of the camera's frame; 0 for nothing
    parts: np.ndarray  # (H, W) int32; -1 where nothing is seen
    coverage: np.ndarray  # (H, W) float32 in [0, 1]


class Lights(NamedTuple):
    """Ambient white light, and distant lamps."""

    ambient: float = 0.45
    # Pairs of the direction light travels in (camera frame) and its colour.
    lamps: tuple = (((0.3, 0.5, 1.0), (0.6, 0.6, 0.6)),)


DAYLIGHT = Lights()


def render(
    vertices,
    faces,
    camera,
    size,
    colours=(0.8, 0.65, 0.55),
    texture=None,
    uv=None,
    faces_uv=None,
    parts=None,
    lights=DAYLIGHT,
    background=(1.0, 1.0, 1.0),
    supersample=1,
    cull=True,
):
    """Draw a shaded mesh, over an image if there is one.

    Args:
        vertices, faces, camera, size, cull: as in `rasterize`.
        colours: one RGB (3,), or one a vertex (V, 3), in [0, 1].
        texture: (h, w, 3) RGB in [0, 1] instead of `colours`, with `uv` (T, 2) in [0, 1], v up,
            and `faces_uv` (F, 3) into it; None where `faces` serve.
        parts: (F,) int, what each face belongs to; None: 0.
        lights: `Lights`.
        background: RGB (3,) or image (H, W, 3) in [0, 1].
        supersample: draws so many times larger and averages colour and coverage, which smooths
            outlines; depth, normals and parts keep the middle sample.

    Returns:
        `Picture`.
    """
    vertices, faces, camera, shape = _checked(vertices, faces, camera, size)
    large = (shape[0] * supersample, shape[1] * supersample)
    fragments = rasterize(vertices, faces, _enlarged(camera, supersample), large, cull)
    normals = fragments.interpolate(vertex_normals(vertices, faces))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    if texture is not None:
        places = fragments.interpolate(uv, faces_uv)
        albedo = sample_texture(texture, places)
    elif np.ndim(colours) == 1:
        albedo = np.asarray(colours, np.float32)
    else:
        albedo = fragments.interpolate(colours)
    colour = (albedo * shade(normals, lights)).clip(0, 1)
    colour = _averaged(fragments.image(colour), supersample)
    coverage = _averaged(fragments.image(np.ones(len(normals), np.float32)), supersample)
    colour += (1 - coverage[..., None]) * np.asarray(background, np.float32)
    labels = np.zeros(len(faces), np.int32) if parts is None else np.asarray(parts, np.int32)
    middle = (slice(supersample // 2, None, supersample),) * 2
    return Picture(
        colour,
        fragments.image(fragments.depth, np.inf)[middle],
        fragments.image(normals)[middle],
        fragments.image(labels[fragments.face], -1)[middle],
        coverage,
    )


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return (V, 3) outward unit normals: the mean of the faces around, weighted by area."""
    a, b, c = (vertices.take(faces[:, k], axis=0).T for k in range(3))
    (ux, uy, uz), (vx, vy, vz) = b - a, c - a
    # The cross product, written out: np.cross takes five times as long on these.
    across = np.stack([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx], axis=1)
    incidence = scipy.sparse.csc_array(
        (np.ones(faces.size), faces.ravel(), np.arange(0, faces.size + 1, 3)),
        shape=(len(vertices), len(faces)),
    )
    normals = incidence @ across
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)


def shade(normals: np.ndarray, lights: Lights) -> np.ndarray:
    """Return (N, 3) the light on (N, 3) unit normals, by Lambert's law without shadows."""
    light = np.full((len(normals), 3), lights.ambient, np.float32)
    for direction, colour in lights.lamps:
        toward = -np.asarray(direction, np.float32) / np.float32(np.linalg.norm(direction))
        light += np.maximum(normals @ toward, 0)[:, None] * np.asarray(colour, np.float32)
    return light


def sample_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Sample a texture (h, w, C) bilinearly at uv (N, 2) in [0, 1], v up: (N, C) float32."""
    height, width = texture.shape[:2]
    x = uv[:, 0] * width - 0.5
    y = (1 - uv[:, 1]) * height - 0.5
    # cv2.remap takes images of at most 32767 pixels a side, so the list is folded into rows.
    rows = -(-len(uv) // 1024)
    folded = np.zeros((2, rows * 1024), np.float32)
    folded[0, : len(uv)], folded[1, : len(uv)] = x, y
    folded = folded.reshape(2, rows, 1024)
    if rows == 0:
        return np.zeros((0, texture.shape[2]), np.float32)
    samples = cv2.remap(
        np.asarray(texture, np.float32),
        folded[0],
        folded[1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return samples.reshape(rows * 1024, -1)[: len(uv)]


def _enlarged(camera, factor):
    """Return the camera of the same image with `factor` times as many pixels a side."""
    if camera.shape == (3,):
        return camera
    camera = camera * np.array([[factor], [factor], [1]])
    camera[:2, 2] += (factor - 1) / 2  # pixel centres are whole numbers
    return camera


def _averaged(image, factor):
    if factor == 1:
        return image
    height, width = image.shape[:2]
    return cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA)


def rasterize(vertices, faces, camera, size, cull: bool = True) -> Fragments:
    """Find the nearest face at every pixel, in one pass of DEODR.

    Args:
        vertices: (V, 3) metres, camera frame.
        faces: (F, 3) int.
        camera: (3,) weak perspective, or (3, 3) pinhole intrinsics in pixels.
        size: side of a square image, or (height, width), pixels.
        cull: leave out faces seen from behind; False for open sheets.

    Returns:
        `Fragments`. Faces that reach closer than `NEAR` to a pinhole are left out.
    """
    vertices, faces, camera, shape = _checked(vertices, faces, camera, size)
    kept, low, ids, depth = _draw_nearest(vertices, faces, camera, shape, cull, True)
    if len(kept) == 0:
        nothing = np.zeros(0, int)
        return Fragments(shape, nothing, nothing, np.zeros((0, 3), "f4"), np.zeros(0, "f4"), faces)
    width = depth.shape[1]
    box = np.flatnonzero(np.isfinite(depth))
    seen = ids.reshape(-1, 3).take(box, axis=0)
    face = kept[np.rint(seen[:, 0]).astype(np.int32)]
    # A pixel centre on an edge may fall a rounding error outside its face.
    first = seen[:, 1].clip(0, 1).astype(np.float32)
    second = np.minimum(seen[:, 2].clip(0, 1).astype(np.float32), 1 - first)
    weights = np.stack([first, second, 1 - first - second], axis=1)
    y, x = np.divmod(box, width)
    pixel = (y + low[1]) * shape[1] + x + low[0]
    return Fragments(shape, pixel, face, weights, depth.ravel()[box].astype(np.float32), faces)


def depth_map(vertices, faces, camera, size) -> np.ndarray:
    """Return depth (H, W) float32 in metres, infinite for nothing; arguments as `rasterize`."""
    vertices, faces, camera, shape = _checked(vertices, faces, camera, size)
    kept, low, _, depth = _draw_nearest(vertices, faces, camera, shape, True, False)
    image = np.full(shape, np.float32(np.inf))
    if len(kept):
        image[low[1] : low[1] + depth.shape[0], low[0] : low[0] + depth.shape[1]] = depth
    return image


def _draw_nearest(vertices, faces, camera, shape, cull, ids):
    """Draw the nearest faces in their bounding box.

    Returns:
        Rows of the faces drawn, the (x, y) corner of the box, and what `_draw_corners` gives.
    """
    points, near_enough = _project(vertices, camera, shape)
    kept = _seen_faces(points, faces, shape, near_enough, cull)
    if len(kept) == 0:
        return kept, None, None, None
    corners = faces[kept].ravel()
    points, depths = points[corners], vertices[corners, 2]
    # A hand covers little of a photo: only the box around it is drawn.
    # (Column by column: NumPy's minimum over the rows of a narrow array is 50 times slower.)
    low = np.maximum([int(np.floor(column.min())) for column in points.T], 0)
    high = np.minimum([int(np.ceil(column.max())) + 1 for column in points.T], shape[::-1])
    width, height = high - low
    # DEODR sees only positive depths; a weak camera sees all.
    perspective = camera.shape == (3, 3)
    nearest = 0.0 if perspective else depths.min() - 1
    ids, depth = _draw_corners(points - low, depths - nearest, (height, width), perspective, ids)
    depth += nearest
    return kept, low, ids, depth


def _project(vertices, camera, shape):
    """Return pixels (V, 2), and the vertices beyond `NEAR` (V,) bool, or None for all."""
    if camera.shape == (3,):
        crop = camera[0] * vertices[:, :2] + camera[1:]
        return crop * (shape[1] / 2) + (np.array(shape[::-1]) - 1) / 2, None
    near_enough = vertices[:, 2] > NEAR
    depth = np.where(near_enough, vertices[:, 2], 1.0)  # those behind are dropped with their faces
    return (vertices @ camera[:2].T) / depth[:, None], near_enough


def _seen_faces(points, faces, shape, visible, cull):
    """Return the rows of the faces that can be visible."""
    x, y = points[:, 0], points[:, 1]
    height, width = shape
    # One bit for each border that a vertex lies beyond: a face all of whose corners share a bit
    # lies beyond that border.
    beyond = (x < 0) | (x > width - 1) * np.uint8(2)
    beyond = beyond | (y < 0) * np.uint8(4) | (y > height - 1) * np.uint8(8)
    a, b, c = faces.T
    inside = (beyond[a] & beyond[b] & beyond[c]) == 0
    if visible is not None:
        inside &= visible[a] & visible[b] & visible[c]
    kept = np.flatnonzero(inside)
    a, b, c = a[kept], b[kept], c[kept]
    area = (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])
    # y points down, so a face that turns counterclockwise to the eye has a negative area.
    shows = area < 0 if cull else area != 0
    return kept[shows]


def _draw_corners(points, depths, shape, perspective, ids):
    """Draw the nearest of K triangles at each pixel, by DEODR.

    DEODR interpolates colours between vertices. Here every triangle has three vertices of its own,
    coloured with (its row, weight of the first corner, weight of the second).

    Args:
        points: (3 K, 2) pixels, three corners after another.
        depths: (3 K,) metres.
        shape: (height, width).
        perspective: interpolate in space, not on the image.
        ids: False draws one channel that means nothing, for the depth alone.

    Returns:
        (H, W, 3) colours and (H, W) depth, infinite for nothing.
    """
    _, compiled = load_deodr()
    channels = 3 if ids else 1
    image, z_buffer = np.empty((*shape, channels)), np.empty(shape)
    count = len(points) // 3
    colours = np.zeros((count, 3, channels))
    if ids:
        colours[..., 0] = np.arange(count)[:, None]
        colours[:, 0, 1] = colours[:, 1, 2] = 1
    corners = np.arange(3 * count, dtype=np.uint32).reshape(count, 3)
    scene = deodr_scene(
        points, depths, corners, colours.reshape(-1, channels), np.zeros((count, 3), bool), shape,
        backface_culling=False, perspective_correct=perspective,
    )  # fmt: skip
    compiled.renderSceneCpp(scene, 0.0, image, z_buffer, False, None, None, False)
    return image, z_buffer


def _checked(vertices, faces, camera, size):
    """Return the arguments of `rasterize` as arrays; refuse a bad one by its name."""
    vertices = np.ascontiguousarray(vertices, np.float64)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or len(vertices) == 0:
        raise HamrError(f"vertices has shape {vertices.shape}, expected (V, 3) with V at least 1")
    camera = np.asarray(camera, np.float64)
    if camera.shape not in ((3,), (3, 3)):
        raise HamrError(f"camera has shape {camera.shape}, expected (3,) weak or (3, 3) pinhole")
    for name, value in (("vertices", vertices), ("camera", camera)):
        if not np.isfinite(value).all():
            raise HamrError(f"{name} has NaN or infinite values, expected finite ones")
    sides = (size, size) if np.ndim(size) == 0 else tuple(size)
    if len(sides) != 2:
        raise HamrError(f"size is {size!r}, expected pixels or (height, width)")
    shape = tuple(check_size(side) for side in sides)
    return vertices, check_faces(faces, len(vertices)), camera, shape
