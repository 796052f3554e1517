"""Draw meshes with numpy and DEODR: what each pixel sees, and shaded pictures of it."""

from typing import NamedTuple

import cv2
import numpy as np
import scipy.sparse

from hamr_lib.errors import HamrError
from hamr_lib.files import numbers
from hamr_lib.imports import in_place_of

with in_place_of("trimesh.base", Trimesh=object):  # which DEODR imports for a type alone
    from deodr.differentiable_renderer import Scene2D

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
        """Interpolate (V, C) values of vertices, or of `faces` (F, 3) into others: (N, C)."""
        corners = (self.faces if faces is None else faces)[self.face]
        rows = np.arange(0, 3 * len(corners) + 1, 3)
        matrix = scipy.sparse.csr_array(
            (self.weights.ravel(), corners.ravel(), rows), shape=(len(corners), len(values))
        )
        return matrix @ np.ascontiguousarray(values, np.float32)

    def image(self, values: np.ndarray, background=0) -> np.ndarray:
        """Arrange (N,) or (N, C) values as (H, W) or (H, W, C), over a number, colour or image."""
        image = np.empty((*self.shape, *values.shape[1:]), values.dtype)
        image[:] = background
        image.reshape(-1, *values.shape[1:])[self.pixel] = values
        return image


class Picture(NamedTuple):
    """What `render` draws."""

    colour: np.ndarray  # (H, W, 3) float32 in [0, 1]
    coverage: np.ndarray  # (H, W) float32 in [0, 1]


def render(
    vertices: np.ndarray, faces: np.ndarray, camera: np.ndarray, size: int | tuple[int, int],
    colour=(0.8, 0.65, 0.55), background=(1.0, 1.0, 1.0), supersample: int = 1, cull: bool = True,
) -> Picture:  # fmt: skip
    """Draw a mesh, shaded by Lambert's law without shadows.

    Args:
        vertices, faces, camera, size, cull: as in `rasterize`.
        colour: RGB (3,) in [0, 1].
        background: RGB (3,) or image (H, W, 3) in [0, 1].
        supersample: draws so many times larger and averages, which smooths outlines.
    """
    vertices, (height, width) = np.asarray(vertices, np.float64), _shape(size)
    large = (height * supersample, width * supersample)
    seen = rasterize(vertices, faces, enlarged(camera, supersample), large, cull)
    normals = seen.interpolate(vertex_normals(vertices, seen.faces))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    toward = -LAMP_TRAVELS / np.float32(np.linalg.norm(LAMP_TRAVELS))
    light = AMBIENT + np.maximum(normals @ toward, 0)[:, None] * np.float32(LAMP)
    shaded = seen.image((np.asarray(colour, np.float32) * light).clip(0, 1))
    coverage = seen.image(np.ones(len(normals), np.float32))
    if supersample > 1:
        shaded, coverage = (
            cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            for image in (shaded, coverage)
        )
    empty = (1 - coverage[..., None]) * np.asarray(background, np.float32)
    return Picture(shaded + empty, coverage)


def rasterize(
    vertices: np.ndarray, faces: np.ndarray, camera: np.ndarray, size: int | tuple[int, int],
    cull: bool = True,
) -> Fragments:  # fmt: skip
    """Find the nearest face at every pixel; those closer than `NEAR` to a pinhole are left out.

    Args:
        vertices: (V, 3) metres, camera frame.
        faces: (F, 3) int.
        camera: (3,) weak perspective, or (3, 3) pinhole intrinsics in pixels.
        size: side of a square image, or (height, width), pixels.
        cull: leave out faces seen from behind.

    Raises:
        HamrError: naming the argument that is wrong.
    """
    vertices, camera = np.ascontiguousarray(vertices, np.float64), np.asarray(camera, np.float64)
    pinhole = camera.shape == (3, 3)
    numbers("vertices", vertices, (None, 3))
    numbers("camera", camera, (3, 3) if pinhole else (3,))
    faces, shape = check_faces(faces, len(vertices)), _shape(size)

    points, visible = _project(vertices, camera, shape)
    kept = _seen_faces(points, faces, shape, visible, cull)
    if len(kept) == 0:
        nothing = np.zeros(0, int)
        return Fragments(shape, nothing, nothing, np.zeros((0, 3), "f4"), np.zeros(0, "f4"), faces)
    corners = faces[kept].ravel()
    points, depths = points[corners], vertices[corners, 2]
    # A hand covers little of a photo: only the box around it is drawn. NumPy's minimum over the
    # rows of a narrow array is slow, so columns come one by one.
    low = np.maximum([int(np.floor(column.min())) for column in points.T], 0)
    high = np.minimum([int(np.ceil(column.max())) + 1 for column in points.T], shape[::-1])
    # DEODR sees only positive depths; a weak camera sees all.
    nearest = 0.0 if pinhole else depths.min() - 1
    # DEODR interpolates colours. Here every triangle has three vertices of its own, coloured with
    # its row and the weights of the first and second corner.
    colours = np.zeros((len(kept), 3, 3))
    colours[..., 0] = np.arange(len(kept))[:, None]
    colours[:, 0, 1] = colours[:, 1, 2] = 1
    triangles = np.arange(len(corners), dtype=np.uint32).reshape(-1, 3)
    scene = deodr_scene(
        points - low, depths - nearest, triangles, colours.reshape(-1, 3),
        np.zeros(triangles.shape, bool), (high - low)[::-1], perspective_correct=pinhole,
    )  # fmt: skip
    image, depth = scene.render(sigma=0.0)
    covered = np.flatnonzero(np.isfinite(depth))
    row, first, second = image.reshape(-1, 3).take(covered, axis=0).T
    # A pixel centre on an edge may fall a rounding error outside its face.
    first = first.clip(0, 1).astype(np.float32)
    second = np.minimum(second.clip(0, 1).astype(np.float32), 1 - first)
    y, x = np.divmod(covered, depth.shape[1])
    return Fragments(
        shape,
        (y + low[1]) * shape[1] + x + low[0],
        kept[np.rint(row).astype(np.int32)],
        np.stack([first, second, 1 - first - second], axis=1),
        (depth.ravel()[covered] + nearest).astype(np.float32),
        faces,
    )


def depth_map(vertices, faces, camera, size) -> np.ndarray:
    """Return depth (H, W) float32 in metres, infinite for nothing; arguments as `rasterize`."""
    seen = rasterize(vertices, faces, camera, size)
    return seen.image(seen.depth, np.inf)


def enlarged(camera: np.ndarray, factor: int) -> np.ndarray:
    """Return the camera of the same image with `factor` times as many pixels a side."""
    camera = np.asarray(camera, np.float64)
    if camera.shape == (3, 3):
        camera = camera * np.array([[factor], [factor], [1]])
        camera[:2, 2] += (factor - 1) / 2  # pixel centres are whole numbers
    return camera


def incidence(faces: np.ndarray, count: int, dtype=np.float64) -> scipy.sparse.csc_array:
    """Return the matrix (V, F) that sums values of faces (F, 3) at their `count` vertices."""
    ones, starts = np.ones(faces.size, dtype), np.arange(0, faces.size + 1, 3)
    return scipy.sparse.csc_array((ones, faces.ravel(), starts), shape=(count, len(faces)))


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return (V, 3) outward unit normals: the mean of the faces around, weighted by area."""
    a, b, c = (vertices.take(corner, axis=0) for corner in faces.T)
    normals = incidence(faces, len(vertices)) @ np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)


def deodr_scene(ij, depths, faces, colors, edgeflags, shape: tuple[int, int], **options) -> Scene2D:
    """Make DEODR's scene of plain triangles (F, 3) uint32 on black; all numbers are float64.

    Vertices have pixels (V, 2), positive depths (V,) and colors (V, C); edgeflags (F, 3) tell which
    edges are outlines.
    """
    none, channels = np.zeros(len(faces), bool), colors.shape[1]
    return Scene2D(
        faces=faces, ij=ij, depths=depths, colors=colors, edgeflags=edgeflags, height=shape[0],
        width=shape[1], nb_colors=channels, background_color=np.zeros(channels), textured=none,
        texture=np.zeros((0, 0, channels)), faces_uv=np.zeros_like(faces), uv=np.zeros((1, 2)),
        shaded=none, shade=np.zeros(len(ij)), **options,
    )  # fmt: skip


def check(good: bool, name: str, value, expected: str) -> None:
    """Refuse an argument that is not good: in DEODR's compiled code it would end the process."""
    if not good:
        if getattr(value, "ndim", 0):
            value = f"{value.dtype} {tuple(value.shape)} on {getattr(value, 'device', 'cpu')}"
        raise HamrError(f"{name} is {value}, expected {expected}")


def check_size(size) -> None:
    """Refuse a side that is no whole number of pixels, at least 1."""
    check(isinstance(size, (int, np.integer)) and size >= 1, "size", size, "whole pixels, from 1")


def check_faces(faces, count: int) -> np.ndarray:
    """Return faces as (F, 3) int32, rows of `count` vertices; refuse others."""
    faces = numbers("faces", np.asarray(faces), (None, 3), kinds="iu")
    for index in (faces.min(), faces.max()):
        check(0 <= index < count, "an index in faces", index, f"0 to {count - 1}")
    return np.ascontiguousarray(faces, np.int32)


def _shape(size):
    height, width = (size, size) if np.ndim(size) == 0 else size
    check_size(height)
    check_size(width)
    return height, width


def _project(vertices, camera, shape):
    """Return pixels (V, 2), and which vertices the camera can see (V,) bool."""
    if camera.shape == (3,):
        points = (camera[0] * vertices[:, :2] + camera[1:]) * (shape[1] / 2)
        return points + (np.array(shape[::-1]) - 1) / 2, np.ones(len(points), bool)
    visible = vertices[:, 2] > NEAR
    depth = np.where(visible, vertices[:, 2], 1.0)  # those behind are dropped with their faces
    return (vertices @ camera[:2].T) / depth[:, None], visible


def _seen_faces(points, faces, shape, visible, cull):
    """Return the rows of the faces that can be visible."""
    x, y = points.T
    height, width = shape
    # One bit for each border that a vertex is beyond: a face whose corners share one is not seen.
    beyond = (x < 0) | (x > width - 1) * np.uint8(2)
    beyond = beyond | (y < 0) * np.uint8(4) | (y > height - 1) * np.uint8(8)
    a, b, c = faces.T
    inside = (beyond[a] & beyond[b] & beyond[c]) == 0
    kept = np.flatnonzero(inside & visible[a] & visible[b] & visible[c])
    a, b, c = faces[kept].T
    area = (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])
    # y points down, so a face that turns counterclockwise to the eye has a negative area.
    return kept[area < 0 if cull else area != 0]
