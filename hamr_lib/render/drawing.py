"""Drawing with numpy and DEODR: ids and weights at every pixel, and shaded pictures of them."""

from typing import NamedTuple

import cv2
import numpy as np
import scipy.sparse

from hamr_lib.render.backends import deodr_scene
from hamr_lib.render.checks import check, check_faces, check_size

NEAR = 0.01  # metres; a pinhole camera sees nothing closer
AMBIENT = 0.45  # white light in `render`, from all around and from one distant lamp
LAMP = 0.6
LAMP_TRAVELS = np.array([0.3, 0.5, 1.0], np.float32)  # camera frame


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
        image = np.empty((*self.shape, *values.shape[1:]), values.dtype)
        image[:] = background
        image.reshape(-1, *values.shape[1:])[self.pixel] = values
        return image


class Picture(NamedTuple):
    """The images `render` draws."""

    colour: np.ndarray  # (H, W, 3) float32 in [0, 1]
    depth: np.ndarray  # (H, W) float32 metres; infinite where nothing is seen
    normals: np.ndarray  # (H, W, 3) float32 unit vectors of the camera's frame; 0 for nothing
    parts: np.ndarray  # (H, W) int32; -1 where nothing is seen
    coverage: np.ndarray  # (H, W) float32 in [0, 1]


def render(
    vertices: np.ndarray, faces: np.ndarray, camera: np.ndarray, size: int | tuple[int, int],
    colour=(0.8, 0.65, 0.55), parts: np.ndarray | None = None, background=(1.0, 1.0, 1.0),
    supersample: int = 1, cull: bool = True,
) -> Picture:  # fmt: skip
    """Draw a mesh, shaded by Lambert's law without shadows, over an image if there is one.

    Args:
        vertices, faces, camera, size, cull: as in `rasterize`.
        colour: RGB (3,) in [0, 1].
        parts: (F,) int, what each face belongs to; None: 0.
        background: RGB (3,) or image (H, W, 3) in [0, 1].
        supersample: draws so many times larger and averages colour and coverage, which smooths
            outlines; depth, normals and parts keep the middle sample.
    """
    vertices, (height, width) = np.asarray(vertices, np.float64), _shape(size)
    large = (height * supersample, width * supersample)
    fragments = rasterize(vertices, faces, enlarged(camera, supersample), large, cull)
    normals = fragments.interpolate(vertex_normals(vertices, fragments.faces))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    toward = -LAMP_TRAVELS / np.float32(np.linalg.norm(LAMP_TRAVELS))
    light = AMBIENT + np.maximum(normals @ toward, 0)[:, None] * np.float32(LAMP)
    shaded = fragments.image((np.asarray(colour, np.float32) * light).clip(0, 1))
    coverage = fragments.image(np.ones(len(normals), np.float32))
    if supersample > 1:
        shaded, coverage = (
            cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            for image in (shaded, coverage)
        )
    labels = np.zeros(len(fragments.faces)) if parts is None else np.asarray(parts)
    middle = (slice(supersample // 2, None, supersample),) * 2
    return Picture(
        shaded + (1 - coverage[..., None]) * np.asarray(background, np.float32),
        fragments.image(fragments.depth, np.inf)[middle],
        fragments.image(normals)[middle],
        fragments.image(labels.astype(np.int32)[fragments.face], -1)[middle],
        coverage,
    )


def incidence(faces: np.ndarray, count: int, dtype=np.float64) -> scipy.sparse.csc_array:
    """Return the matrix (V, F) that sums values of faces (F, 3) at their `count` vertices."""
    ones, starts = np.ones(faces.size, dtype), np.arange(0, faces.size + 1, 3)
    return scipy.sparse.csc_array((ones, faces.ravel(), starts), shape=(count, len(faces)))


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return (V, 3) outward unit normals: the mean of the faces around, weighted by area."""
    a, b, c = (vertices.take(corner, axis=0) for corner in faces.T)
    normals = incidence(faces, len(vertices)) @ np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)


def enlarged(camera: np.ndarray, factor: int) -> np.ndarray:
    """Return the camera of the same image with `factor` times as many pixels a side."""
    camera = np.asarray(camera, np.float64)
    if camera.shape == (3, 3):
        camera = camera * np.array([[factor], [factor], [1]])
        camera[:2, 2] += (factor - 1) / 2  # pixel centres are whole numbers
    return camera


def _draw_rows(points, depths, shape, pinhole):
    """Draw triangles, three points each, coloured with row and first two weights; their depth."""
    count = len(points) // 3
    colours = np.zeros((count, 3, 3))
    colours[..., 0] = np.arange(count)[:, None]
    colours[:, 0, 1] = colours[:, 1, 2] = 1
    triangles = np.arange(3 * count, dtype=np.uint32).reshape(-1, 3)
    scene = deodr_scene(
        points, depths, triangles, colours.reshape(-1, 3), np.zeros(triangles.shape, bool), shape,
        perspective_correct=pinhole,
    )  # fmt: skip
    return scene.render(sigma=0.0)


def rasterize(
    vertices: np.ndarray, faces: np.ndarray, camera: np.ndarray, size: int | tuple[int, int],
    cull: bool = True,
) -> Fragments:  # fmt: skip
    """Find the nearest face at every pixel, in one pass of DEODR.

    DEODR interpolates colours between vertices. Here every triangle has three vertices of its own,
    coloured with (its row, weight of the first corner, weight of the second).

    Args:
        vertices: (V, 3) metres, camera frame.
        faces: (F, 3) int.
        camera: (3,) weak perspective, or (3, 3) pinhole intrinsics in pixels.
        size: side of a square image, or (height, width), pixels.
        cull: leave out faces seen from behind; False for open sheets.

    Returns:
        `Fragments`. Faces that reach closer than `NEAR` to a pinhole are left out.

    Raises:
        HamrError: naming the argument that is wrong.
    """
    vertices, camera = np.ascontiguousarray(vertices, np.float64), np.asarray(camera, np.float64)
    shaped = vertices.ndim == 2 and vertices.shape[1] == 3 and len(vertices) > 0
    check(shaped and np.isfinite(vertices).all(), "vertices", vertices, "finite (V, 3), V from 1")
    pinhole = camera.shape == (3, 3)
    known = (pinhole or camera.shape == (3,)) and np.isfinite(camera).all()
    check(known, "camera", camera, "finite (3,) weak or (3, 3) pinhole")
    faces, shape = check_faces(faces, len(vertices)), _shape(size)

    points, visible = _project(vertices, camera, shape)
    kept = _seen_faces(points, faces, shape, visible, cull)
    if len(kept) == 0:
        nothing = np.zeros(0, int)
        return Fragments(shape, nothing, nothing, np.zeros((0, 3), "f4"), np.zeros(0, "f4"), faces)
    corners = faces[kept].ravel()
    points, depths = points[corners], vertices[corners, 2]
    # A hand covers little of a photo: only the box around it is drawn.
    # (Column by column: NumPy's minimum over the rows of a narrow array is 50 times slower.)
    low = np.maximum([int(np.floor(column.min())) for column in points.T], 0)
    high = np.minimum([int(np.ceil(column.max())) + 1 for column in points.T], shape[::-1])
    # DEODR sees only positive depths; a weak camera sees all.
    nearest = 0.0 if pinhole else depths.min() - 1
    image, depth = _draw_rows(points - low, depths - nearest, (high - low)[::-1], pinhole)
    covered = np.flatnonzero(np.isfinite(depth))
    seen = image.reshape(-1, 3).take(covered, axis=0)
    # A pixel centre on an edge may fall a rounding error outside its face.
    first = seen[:, 1].clip(0, 1).astype(np.float32)
    second = np.minimum(seen[:, 2].clip(0, 1).astype(np.float32), 1 - first)
    y, x = np.divmod(covered, depth.shape[1])
    return Fragments(
        shape,
        (y + low[1]) * shape[1] + x + low[0],
        kept[np.rint(seen[:, 0]).astype(np.int32)],
        np.stack([first, second, 1 - first - second], axis=1),
        (depth.ravel()[covered] + nearest).astype(np.float32),
        faces,
    )


def depth_map(vertices, faces, camera, size) -> np.ndarray:
    """Return depth (H, W) float32 in metres, infinite for nothing; arguments as `rasterize`."""
    seen = rasterize(vertices, faces, camera, size)
    return seen.image(seen.depth, np.inf)


def _project(vertices, camera, shape):
    """Return pixels (V, 2), and which vertices the camera can see (V,) bool."""
    if camera.shape == (3,):
        crop = camera[0] * vertices[:, :2] + camera[1:]
        points = crop * (shape[1] / 2) + (np.array(shape[::-1]) - 1) / 2
        return points, np.ones(len(points), bool)
    visible = vertices[:, 2] > NEAR
    depth = np.where(visible, vertices[:, 2], 1.0)  # those behind are dropped with their faces
    return (vertices @ camera[:2].T) / depth[:, None], visible


def _seen_faces(points, faces, shape, visible, cull):
    """Return the rows of the faces that can be visible."""
    x, y = points.T
    height, width = shape
    # One bit for each border that a vertex lies beyond: a face all of whose corners share a bit
    # lies beyond that border.
    beyond = (x < 0) | (x > width - 1) * np.uint8(2)
    beyond = beyond | (y < 0) * np.uint8(4) | (y > height - 1) * np.uint8(8)
    a, b, c = faces.T
    inside = (beyond[a] & beyond[b] & beyond[c]) == 0
    kept = np.flatnonzero(inside & visible[a] & visible[b] & visible[c])
    a, b, c = faces[kept].T
    area = (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])
    # y points down, so a face that turns counterclockwise to the eye has a negative area.
    return kept[area < 0 if cull else area != 0]


def _shape(size):
    sides = (size, size) if np.ndim(size) == 0 else tuple(size)
    check(len(sides) == 2, "size", size, "pixels or (height, width)")
    for side in sides:
        check_size(side)
    return sides
