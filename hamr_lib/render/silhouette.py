"""The differentiable silhouette, by DEODR on the CPU or PyTorch3D on either device."""

import functools
import importlib
import warnings

import numpy as np
import torch

from hamr_lib.errors import HamrError, one_of
from hamr_lib.render.drawing import check, check_faces, check_size, deodr_scene, incidence

# Pixels over which an outline fades: the least that leaves no gap between pixel centres.
FADE = 1.0
# PyTorch3D keeps so many faces a pixel, so it fades over less: within half a pixel of an outline
# there are seldom more, and an outline whose face is lost has no gradient.
FACES_PER_PIXEL = 10
NARROW_FADE = 0.5
# Twice the area in pixels^2 below which a face counts as seen from the side.
MIN_AREA = 1e-6


def silhouette(
    vertices: torch.Tensor, faces, camera: torch.Tensor, size: int, backend: str = "auto"
) -> torch.Tensor:
    """Draw the fraction of each pixel that a mesh covers, differentiably (Section 3.1).

    Holes, such as the wrist of a hand, are closed. Outlines fade over about a pixel. A mesh wholly
    outside the image covers nothing, and its gradients are zero.

    Args:
        vertices: (B, V, 3) float, metres.
        faces: (F, 3) int, counterclockwise seen from outside.
        camera: (B, 3) float, weak perspective (s, tx, ty) in crop units.
        size: side of the square image, pixels.
        backend: as in `choose_backend`.

    Returns:
        (B, size, size) coverage in [0, 1], of the dtype and on the device of `vertices`.

    Raises:
        HamrError: naming the argument that is wrong, or how to install PyTorch3D.
    """
    device = getattr(vertices, "device", None)
    for name, value, dims in (("vertices", vertices, "(B, V, 3)"), ("camera", camera, "(B, 3)")):
        good = isinstance(value, torch.Tensor) and value.is_floating_point()
        good = good and value.ndim == dims.count(",") + 1 and value.shape[-1] == 3
        good = good and value.device == device and len(value) == len(vertices)
        good = good and 0 not in value.shape[1:]
        check(good, name, value, f"floats {dims} on {device}, one B for vertices and camera")
        check(value.isfinite().all(), name, "NaN or infinite", "finite numbers")
    check_size(size)
    if isinstance(faces, torch.Tensor):
        check(faces.device == device, "faces", faces, f"a tensor on {device}, as vertices")
        faces = faces.cpu().numpy()
    count = vertices.shape[1]
    topology = _topology(check_faces(faces, count).tobytes(), count)
    draw = {"deodr": _Deodr.apply, "pytorch3d": _pytorch3d}[choose_backend(backend, device.type)]
    with torch.autocast(vertices.device.type, enabled=False):
        return draw(vertices.float(), camera.float(), topology, size).to(vertices.dtype)


def choose_backend(name: str, device: str) -> str:
    """Choose "deodr" or "pytorch3d"; "auto" is PyTorch3D on the device "cuda" and DEODR on others.

    Where PyTorch3D is missing, "auto" warns and takes DEODR.
    """
    one_of("backend", name, ("auto", "deodr", "pytorch3d"))
    if name == "deodr" or (name == "auto" and device != "cuda"):
        return "deodr"
    if has_pytorch3d():
        return "pytorch3d"
    if name == "pytorch3d":
        raise HamrError("PyTorch3D is not installed: pip install easypytorch3d (Linux wheels)")
    warnings.warn("PyTorch3D is not installed, DEODR draws on the CPU instead", stacklevel=3)
    return "deodr"


def has_pytorch3d() -> bool:
    """Tell whether PyTorch3D can be imported."""
    try:
        importlib.import_module("pytorch3d.renderer")
    except (ImportError, OSError):  # OSError: a wheel whose shared libraries are missing
        return False
    return True


class _Deodr(torch.autograd.Function):
    """DEODR's antialiased drawing and its adjoint, in numpy, which wakes no threads of torch."""

    @staticmethod
    def forward(ctx, vertices, camera, topology, size):
        points, weak = vertices.detach().cpu().numpy(), camera.detach().cpu().numpy()
        ctx.scenes = [_scene(*mesh, *topology, size) for mesh in zip(points, weak, strict=True)]
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


def _scene(vertices, camera, faces, across, incidence, size):
    """Make DEODR's scene of a mesh (V, 3) under a camera (3,); None if it is not visible.

    DEODR fades an outline over `FADE` pixels beyond it, which enlarges every hand by half a pixel.
    So the surface is first moved inwards along its normals by half of `FADE`. The shift does not
    change the gradient: at the outline a normal lies in the image plane.
    """
    half = np.float32(size / 2)
    points = vertices * (camera[0] * half)
    points[:, :2] += (camera[1:] + 1) * half - np.float32(0.5)
    a, b, c = (points.take(corner, axis=0) for corner in faces.T)
    normals = incidence @ np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True) + np.float32(1e-20)
    points[:, :2] += np.float32(-FADE / 2) / length * normals[:, :2]
    x, y = np.ascontiguousarray(points[:, :2].T)
    a, b, c = faces.T
    area = (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])
    front = np.append(area < -MIN_AREA, False)  # y points down
    kept = np.flatnonzero(front)
    outside = min(x.max(), y.max()) <= -FADE or max(x.min(), y.min()) >= size - 1 + FADE
    if outside or not len(kept):
        return None
    outlines, faces = ~front.take(across.take(kept, axis=0)), faces.take(kept, axis=0)
    # All is white and equally deep: what lies in front makes no difference.
    xy, ones = np.ascontiguousarray(points[:, :2], np.float64), np.ones((len(points), 1))
    mesh = xy, ones[:, 0], faces.astype(np.uint32), ones, outlines
    return deodr_scene(*mesh, (size, size), backface_culling=True)


def _pytorch3d(vertices, camera, topology, size):
    """Draw the same by PyTorch3D's rasteriser, from the distance of pixels to the nearest face."""
    from pytorch3d.renderer import rasterize_meshes
    from pytorch3d.structures import Meshes

    fade = NARROW_FADE * 2 / size  # pixels in units of half the image
    # PyTorch3D's x points left and y up, and it sees only positive depths.
    xy = -(camera[:, None, :1] * vertices[..., :2] + camera[:, None, 1:])
    with torch.no_grad():
        faces = torch.from_numpy(topology[0]).to(vertices.device)
        faces = faces.expand(len(vertices), -1, -1)
        solid = torch.cat([xy, camera[:, None, :1] * vertices[..., 2:]], dim=-1)
        normals = Meshes(solid, faces).verts_normals_padded()
    xy = xy - normals[..., :2] * (fade / 2)
    # Of the faces near a pixel those in front are kept: this depth puts those there that are seen
    # from the side, at the outline.
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
    """Close a mesh of (F, 3) int32 faces, given as bytes, over `count` vertices.

    Returns:
        faces (F', 3) with a cap on each hole; across (F', 3), the face beyond edge (k, k + 1), or
        F' where there is none; and the matrix (V, F') float32 that sums over a vertex's faces.
    """
    faces = np.frombuffer(content, np.int32).reshape(-1, 3)
    faces = np.concatenate([faces, _caps(faces)])
    owner = {edge: row for row, face in enumerate(faces.tolist()) for edge in _edges(face)}
    across = [[owner.get((b, a), len(faces)) for a, b in _edges(face)] for face in faces.tolist()]
    summing = incidence(faces, count, np.float32).tocsr()
    # Whole machine words: numpy converts any other index on every use.
    return faces.astype(np.intp), np.array(across, np.intp), summing


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
