"""The differentiable silhouette, by DEODR on the CPU or PyTorch3D on either device."""

import functools
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

from hamr_lib.errors import HamrError
from hamr_lib.render.backends import choose, deodr_scene, load_deodr
from hamr_lib.render.checks import check_faces, check_size

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
        backend: "deodr", "pytorch3d", or "auto": PyTorch3D for CUDA tensors and DEODR for others,
            or whichever of the two is installed.

    Returns:
        (B, size, size) coverage in [0, 1], of the dtype and on the device of `vertices`.

    Raises:
        HamrError: naming the argument that is wrong, or how to install a backend.
    """
    topology = _check(vertices, faces, camera, size)
    draw = {"deodr": _deodr, "pytorch3d": _pytorch3d}[choose(backend, vertices.is_cuda)]
    with torch.autocast(vertices.device.type, enabled=False):
        return draw(vertices.float(), camera.float(), topology, size).to(vertices.dtype)


# ------------------------------------------------------------------------------------------ DEODR


def _deodr(vertices, camera, topology, size):
    return _Deodr.apply(vertices, camera, topology, size)


class _Deodr(torch.autograd.Function):
    """DEODR's antialiased drawing and its adjoint, for a batch.

    DEODR holds the interpreter's lock and takes a fraction of a millisecond a hand, so neither
    threads nor processes would make it faster. The arithmetic around it is numpy's, since waking
    torch's threads would take longer than the work.
    """

    @staticmethod
    def forward(ctx, vertices, camera, topology, size):
        points, weak = vertices.detach().cpu().numpy(), camera.detach().cpu().numpy()
        _check_finite(np.isfinite(points), np.isfinite(weak))
        scenes = outline_scenes(points, weak, topology, size)
        images, depths = draw_scenes(scenes, size)
        ctx.scenes, ctx.images, ctx.depths = scenes, images, depths
        ctx.save_for_backward(vertices, camera)
        return torch.from_numpy(images[..., 0].astype(np.float32)).to(vertices.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        vertices, camera = ctx.saved_tensors
        points, weak = vertices.detach().cpu().numpy(), camera.detach().cpu().numpy()
        moved = draw_adjoint(
            ctx.scenes, ctx.images, ctx.depths, gradient.cpu().numpy(), vertices.shape[1]
        )
        # pixel = (s X + t) size / 2 + constant, from Eq. 4-5
        moved *= gradient.shape[-1] / 2
        to_vertices = np.zeros_like(points)
        np.multiply(weak[:, None, :1], moved, out=to_vertices[..., :2], casting="same_kind")
        to_camera = np.concatenate(
            [(moved * points[..., :2]).sum((1, 2))[:, None], moved.sum(1)], axis=1
        )
        return (
            torch.from_numpy(to_vertices).to(vertices.device),
            torch.from_numpy(to_camera.astype(np.float32)).to(vertices.device),
            None,
            None,
        )


def outline_scenes(vertices, camera, topology, size):
    """Make DEODR's scene of each mesh: its front faces, and which of their edges are outlines.

    DEODR fades an outline over `FADE` pixels beyond it, which enlarges every hand by half a pixel.
    So the surface is first moved inwards along its normals by half of `FADE`. At the outline a
    normal lies in the image plane and turns with the surface. The shift therefore does not change
    the gradient.

    Args:
        vertices: (B, V, 3) float32 metres.
        camera: (B, 3) float32.
        topology: `Topology`.
        size: pixels.

    Returns:
        B scenes; None for a mesh that is not visible.
    """
    batch = len(vertices)
    half = np.float32(size / 2)
    # Planes of (V, B) pixels: the batch side by side, so that gathering corners copies whole rows.
    x, y, z = np.ascontiguousarray(vertices.transpose(2, 1, 0)) * (camera[:, 0] * half)
    x += (camera[:, 1] + 1) * half - np.float32(0.5)
    y += (camera[:, 2] + 1) * half - np.float32(0.5)
    a, b, c = topology.faces.T
    (xu, yu, zu), (xv, yv, zv) = _sides(a, b, c, x, y, z)
    across = (yu * zv - zu * yv, zu * xv - xu * zv, xu * yv - yu * xv)
    nx, ny, nz = (topology.incidence @ part for part in across)
    inwards = np.float32(-FADE / 2) / (np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-20))
    x += inwards * nx
    y += inwards * ny

    (xu, yu), (xv, yv) = _sides(a, b, c, x, y)
    front = np.zeros((batch, len(a) + 1), bool)
    front[:, :-1] = (xu * yv - yu * xv < -MIN_AREA).T  # y points down
    points = np.ascontiguousarray(np.stack([x.T, y.T]))
    low, high = points.min(-1), points.max(-1)
    reaches_in = ((high > -FADE) & (low < size - 1 + FADE)).all(0)
    ij = np.ascontiguousarray(points.transpose(1, 2, 0), np.float64)
    ones, depths = np.ones((len(x), 1)), np.ones(len(x))
    scenes = []
    for i in range(batch):
        kept = np.flatnonzero(front[i])
        if not reaches_in[i] or len(kept) == 0:
            scenes.append(None)
            continue
        corners = topology.faces.take(kept, axis=0).astype(np.uint32)
        edges = ~front[i].take(topology.across.take(kept, axis=0))
        # All is white and equally deep: what lies in front makes no difference.
        scenes.append(deodr_scene(ij[i], depths, corners, ones, edges, (size, size)))
    return scenes


def _sides(a, b, c, *planes):
    """Return the sides ab and ac of every face, in each plane of vertex coordinates."""
    corners = [plane.take(a, axis=0) for plane in planes]
    return (
        [plane.take(b, axis=0) - corner for plane, corner in zip(planes, corners, strict=True)],
        [plane.take(c, axis=0) - corner for plane, corner in zip(planes, corners, strict=True)],
    )


def draw_scenes(scenes, size):
    """Draw `outline_scenes`: (B, size, size, 1) images and (B, size, size) depth buffers."""
    _, compiled = load_deodr()
    images, depths = np.zeros((len(scenes), size, size, 1)), np.zeros((len(scenes), size, size))
    for scene, image, depth in zip(scenes, images, depths, strict=True):
        if scene is not None:
            compiled.renderSceneCpp(scene, FADE, image, depth, False, None, None, False)
    return images, depths


def draw_adjoint(scenes, images, depths, gradient, count):
    """Backpropagate a gradient (B, size, size) of the images to (B, count, 2) of the points."""
    _, compiled = load_deodr()
    # The adjoint overwrites the picture and its gradient: both are copies.
    images, gradient = images.copy(), gradient.astype(np.float64, order="C")[..., None]
    moved = np.zeros((len(scenes), count, 2))
    for i, scene in enumerate(scenes):
        if scene is None:
            continue
        scene.uv_b, scene.shade_b = np.zeros((1, 2)), np.zeros(1)
        scene.colors_b, scene.texture_b = np.zeros_like(scene.colors), scene.texture
        scene.ij_b = np.zeros_like(scene.ij)
        compiled.renderSceneBCpp(
            scene, FADE, images[i], depths[i], gradient[i], False, None, None, None, False
        )
        moved[i] = scene.ij_b
    return moved


# -------------------------------------------------------------------------------------- PyTorch3D


def _pytorch3d(vertices, camera, topology, size):
    """Draw the same by PyTorch3D's rasteriser, from the distance of pixels to the nearest face.

    The usual blend of soft rasterisation multiplies over all faces near a pixel. That makes seams
    inside the hand translucent and, with faces as small as ours, hands fat. Here the nearest face
    alone counts, and its distance fades as DEODR's outlines do.
    """
    from pytorch3d.renderer import rasterize_meshes
    from pytorch3d.structures import Meshes

    _check_finite(torch.isfinite(vertices), torch.isfinite(camera))
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


# --------------------------------------------------------------------------------- faces and checks


def topology_of(faces, count: int) -> Topology:
    """Return the `Topology` of faces (F, 3) over `count` vertices; made once for each mesh."""
    rows = faces.cpu().numpy() if isinstance(faces, torch.Tensor) else faces
    return _topology(check_faces(rows, count).tobytes(), count)


@functools.lru_cache(maxsize=8)
def _topology(content, count):
    """Make the `Topology` of (F, 3) int32 faces given as bytes, over `count` vertices."""
    faces = np.frombuffer(content, np.int32).reshape(-1, 3)
    faces = np.concatenate([faces, _caps(faces)])
    owner = {}
    for row, (a, b, c) in enumerate(faces.tolist()):
        owner[a, b] = owner[b, c] = owner[c, a] = row
    nothing = len(faces)
    across = [
        [owner.get((b, a), nothing), owner.get((c, b), nothing), owner.get((a, c), nothing)]
        for a, b, c in faces.tolist()
    ]
    ones = np.ones(faces.size, np.float32)
    starts = np.arange(0, faces.size + 1, 3)
    incidence = scipy.sparse.csc_array((ones, faces.ravel(), starts), shape=(count, len(faces)))
    # Whole machine words: numpy converts any other index on every use.
    return Topology(faces.astype(np.intp), np.array(across, np.intp), incidence.tocsr())


def _caps(faces):
    """Return (N, 3) faces that close the holes, a fan over the rim of each."""
    edges = {
        (a, b) for face in faces.tolist() for a, b in zip(face, face[1:] + face[:1], strict=True)
    }
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


def _check(vertices, faces, camera, size):
    """Return the faces' `Topology`; refuse a bad argument by its name."""
    for name, value, shape in (("vertices", vertices, "(B, V, 3)"), ("camera", camera, "(B, 3)")):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = getattr(value, "dtype", type(value).__name__)
            raise HamrError(f"{name} is {kind}, expected a float tensor {shape}")
        if value.ndim != shape.count(",") + 1 or value.shape[-1] != 3 or 0 in value.shape[1:]:
            raise HamrError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
    if len(camera) != len(vertices):
        raise HamrError(
            f"camera has shape {tuple(camera.shape)}, expected ({len(vertices)}, 3) as vertices"
        )
    if camera.device != vertices.device:
        raise HamrError(f"camera is on {camera.device}, expected {vertices.device} as vertices")
    check_size(size)
    if isinstance(faces, torch.Tensor):
        if faces.device != vertices.device:
            raise HamrError(f"faces is on {faces.device}, expected {vertices.device} as vertices")
    return topology_of(faces, vertices.shape[1])


def _check_finite(vertices, camera):
    """Raise `HamrError` unless all of both arrays of booleans are true."""
    for name, finite in (("vertices", vertices), ("camera", camera)):
        if not finite.all():
            raise HamrError(f"{name} has NaN or infinite values, expected finite ones")
