"""The differentiable silhouette, by DEODR on the CPU or PyTorch3D on either device."""

import functools
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

from hamr_lib.render.backends import choose, deodr_scene
from hamr_lib.render.checks import check, check_faces, check_size
from hamr_lib.render.drawing import incidence

# Pixels over which an outline fades: the least that leaves no gap between pixel centres.
FADE = 1.0
# PyTorch3D keeps this many faces a pixel and forgets the others, so it fades over less: within half
# a pixel of an outline there are seldom more, and an outline whose face is lost has no gradient.
FACES_PER_PIXEL = 10
NARROW_FADE = 0.5
# Twice the area in pixels^2 below which a face counts as seen from the side.
MIN_AREA = 1e-6


class Topology(NamedTuple):
    """What depends on the faces alone. The mesh is closed: a cap covers each hole."""

    faces: np.ndarray  # (F, 3) int
    across: np.ndarray  # (F, 3) int, the face beyond edge (k, k + 1); F where there is none
    incidence: scipy.sparse.csr_array  # (V, F) float32, sums over the faces around a vertex


def silhouette(
    vertices: torch.Tensor, faces, camera: torch.Tensor, size: int, backend: str = "auto"
) -> torch.Tensor:
    """Draw the fraction of each pixel that a mesh covers, differentiably (Section 3.1).

    Holes, such as the wrist of a hand, are closed. Outlines are smoothed over about a pixel, and
    coverage is about 0.5 on the outline. A mesh wholly outside the image covers nothing, and its
    gradients are zero: other losses must move it back.

    Args:
        vertices: (B, V, 3) float, metres.
        faces: (F, 3) int, counterclockwise seen from outside.
        camera: (B, 3) float, weak perspective (s, tx, ty) in crop units.
        size: side of the square image, pixels.
        backend: "deodr", "pytorch3d", or "auto", see `backends.choose`.

    Returns:
        (B, size, size) coverage in [0, 1], of the dtype and on the device of `vertices`.

    Raises:
        HamrError: naming the argument that is wrong, or how to install a backend.
    """
    device = getattr(vertices, "device", None)
    for name, value, dims in (("vertices", vertices, "(B, V, 3)"), ("camera", camera, "(B, 3)")):
        good = isinstance(value, torch.Tensor) and value.is_floating_point()
        good = good and value.ndim == dims.count(",") + 1 and value.shape[-1] == 3
        good = good and value.device == device and len(value) == len(vertices)
        expected = f"floats {dims} on {device}, one B for vertices and camera"
        check(good and 0 not in value.shape[1:], name, value, expected)
        check(value.isfinite().all(), name, "NaN or infinite", "finite numbers")
    check_size(size)
    if isinstance(faces, torch.Tensor):
        check(faces.device == device, "faces", faces, f"a tensor on {device}, as vertices")
        faces = faces.cpu().numpy()
    count = vertices.shape[1]
    topology = _topology(check_faces(faces, count).tobytes(), count)
    draw = {"deodr": _Deodr.apply, "pytorch3d": _pytorch3d}[choose(backend, vertices.is_cuda)]
    with torch.autocast(vertices.device.type, enabled=False):
        return draw(vertices.float(), camera.float(), topology, size).to(vertices.dtype)


class _Deodr(torch.autograd.Function):
    """DEODR's antialiased drawing and its adjoint, for a batch.

    DEODR holds the interpreter's lock and takes a fraction of a millisecond a hand, so neither
    threads nor processes would make it faster. The arithmetic around it is numpy's, since waking
    torch's threads would take longer than the work.
    """

    @staticmethod
    def forward(ctx, vertices, camera, topology, size):
        points, weak = vertices.detach().cpu().numpy(), camera.detach().cpu().numpy()
        ctx.scenes = _outline_scenes(points, weak, topology, size)
        images = np.zeros((len(points), size, size), np.float32)
        for image, scene in zip(images, ctx.scenes, strict=True):
            if scene is not None:
                image[:] = scene.render(FADE)[0][..., 0]
        ctx.save_for_backward(vertices, camera)
        return torch.from_numpy(images).to(vertices.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        points, weak = (saved.detach().cpu().numpy() for saved in ctx.saved_tensors)
        device, gradient = gradient.device, gradient.cpu().numpy()
        moved = np.zeros((*points.shape[:2], 2))
        for i, scene in enumerate(ctx.scenes):
            if scene is not None:
                scene.clear_gradients()
                # DEODR overwrites the gradient that it is given: this is a copy.
                scene.render_backward(gradient[i, ..., None].astype(np.float64, order="C"))
                moved[i] = scene.ij_b
        # pixel = (s X + t) size / 2 + constant, from Eq. 4-5
        moved *= gradient.shape[-1] / 2
        to_vertices = np.zeros_like(points)
        to_vertices[..., :2] = weak[:, None, :1] * moved
        scaled = (moved * points[..., :2]).sum((1, 2))
        to_camera = np.column_stack([scaled, moved.sum(1)]).astype(np.float32)
        return *(torch.from_numpy(g).to(device) for g in (to_vertices, to_camera)), None, None


def _outline_scenes(vertices, camera, topology, size):
    """Make DEODR's scene of each mesh: its front faces, and which of their edges are outlines.

    DEODR fades an outline over `FADE` pixels beyond it, which enlarges every hand by half a pixel.
    So the surface is first moved inwards along its normals by half of `FADE`. At the outline a
    normal lies in the image plane and turns with the surface. The shift therefore does not change
    the gradient.

    Args:
        vertices: (B, V, 3) float32 metres. camera: (B, 3) float32.

    Returns:
        B scenes; None for a mesh that is not visible.
    """
    half = np.float32(size / 2)
    # Planes of (V, B) pixels: the batch side by side, so that gathering corners copies whole rows.
    x, y, z = np.ascontiguousarray(vertices.transpose(2, 1, 0)) * (camera[:, 0] * half)
    x += (camera[:, 1] + 1) * half - np.float32(0.5)
    y += (camera[:, 2] + 1) * half - np.float32(0.5)
    (xu, yu, zu), (xv, yv, zv) = _sides(topology.faces, x, y, z)
    across = (yu * zv - zu * yv, zu * xv - xu * zv, xu * yv - yu * xv)
    nx, ny, nz = (topology.incidence @ part for part in across)
    inwards = np.float32(-FADE / 2) / (np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-20))
    x += inwards * nx
    y += inwards * ny

    (xu, yu), (xv, yv) = _sides(topology.faces, x, y)
    front = np.zeros((len(vertices), len(topology.faces) + 1), bool)
    front[:, :-1] = (xu * yv - yu * xv < -MIN_AREA).T  # y points down
    points = np.ascontiguousarray(np.stack([x.T, y.T], axis=-1), np.float64)
    reaches_in = (points.max(1) > -FADE) & (points.min(1) < size - 1 + FADE)
    ones = np.ones((len(x), 1))
    scenes, options = [], {"shape": (size, size), "backface_culling": True}
    for ij, is_front, inside in zip(points, front, reaches_in.all(1), strict=True):
        kept = np.flatnonzero(is_front)
        scene = None
        if inside and len(kept):
            corners = topology.faces.take(kept, axis=0).astype(np.uint32)
            edges = ~is_front.take(topology.across.take(kept, axis=0))
            # All is white and equally deep: what lies in front makes no difference.
            scene = deodr_scene(ij, ones[:, 0], corners, ones, edges, **options)
        scenes.append(scene)
    return scenes


def _sides(faces, *planes):
    """Return the sides ab and ac of every face, in each plane of vertex coordinates."""
    a, b, c = ([plane.take(corner, axis=0) for plane in planes] for corner in faces.T)
    return [[p - q for p, q in zip(ends, a, strict=True)] for ends in (b, c)]


def _pytorch3d(vertices, camera, topology, size):
    """Draw the same by PyTorch3D's rasteriser, from the distance of pixels to the nearest face.

    The usual blend of soft rasterisation multiplies over all faces near a pixel. That makes seams
    inside the hand translucent and, with faces as small as ours, hands fat. Here the nearest face
    alone counts, and its distance fades as DEODR's outlines do.
    """
    from pytorch3d.renderer import rasterize_meshes
    from pytorch3d.structures import Meshes

    fade = NARROW_FADE * 2 / size  # pixels in units of half the image
    # PyTorch3D's x points left and y up, and it sees only positive depths.
    xy = -(camera[:, None, :1] * vertices[..., :2] + camera[:, None, 1:])
    with torch.no_grad():
        faces = torch.from_numpy(topology.faces).to(vertices.device)
        faces = faces.expand(len(vertices), -1, -1)
        solid = torch.cat([xy, camera[:, None, :1] * vertices[..., 2:]], dim=-1)
        normals = Meshes(solid, faces).verts_normals_padded()
    xy = xy - normals[..., :2] * (fade / 2)
    # Of the faces near a pixel those in front are kept. What lies in front makes no difference to
    # a silhouette, so this depth puts the outline there, where surfaces are seen from the side.
    meshes = Meshes(torch.cat([xy, 1 + normals[..., 2:].abs()], dim=-1), faces)
    options = {"image_size": size, "cull_backfaces": True}
    near, _, _, distances = rasterize_meshes(
        meshes, blur_radius=fade**2, faces_per_pixel=FACES_PER_PIXEL, **options
    )
    with torch.no_grad():
        inside = rasterize_meshes(meshes, faces_per_pixel=1, **options)[0][..., 0] >= 0
    distances = torch.where(near >= 0, distances, fade**2).amin(-1)  # squared
    # The root's slope is infinite at 0; the least distance is a thousandth of the fade.
    outside = distances.clamp(min=(1e-3 * fade) ** 2).sqrt() / fade
    return torch.where(inside, 1, 1 - outside).clamp(0, 1)


@functools.lru_cache(maxsize=8)
def _topology(content, count):
    """Make the `Topology` of (F, 3) int32 faces given as bytes, over `count` vertices."""
    faces = np.frombuffer(content, np.int32).reshape(-1, 3)
    faces = np.concatenate([faces, _caps(faces)])
    owner = {edge: row for row, face in enumerate(faces.tolist()) for edge in _edges(face)}
    across = [[owner.get((b, a), len(faces)) for a, b in _edges(face)] for face in faces.tolist()]
    summing = incidence(faces, count, np.float32).tocsr()
    # Whole machine words: numpy converts any other index on every use.
    return Topology(faces.astype(np.intp), np.array(across, np.intp), summing)


def _edges(face):
    return zip(face, face[1:] + face[:1], strict=True)


def _caps(faces):
    """Return (N, 3) faces that close the holes, a fan over the rim of each."""
    edges = {edge for face in faces.tolist() for edge in _edges(face)}
    following = {b: a for a, b in sorted(edges) if (b, a) not in edges}
    caps = []
    while following:
        start, vertex = following.popitem()
        rim = [start]
        while vertex != start and vertex in following:
            rim.append(vertex)
            vertex = following.pop(vertex)
        caps += [(start, rim[k], rim[k + 1]) for k in range(1, len(rim) - 1)]
    return np.array(caps, np.int32).reshape(-1, 3)
