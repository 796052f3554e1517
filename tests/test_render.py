"""The renderer against geometry: spheres have known outlines, areas, depths and slopes."""

import json
import re
import sys

import k3d
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import trimesh
from smplx.lbs import batch_rodrigues

from hamr_lib.errors import HamrError
from hamr_lib.evaluation.metrics import iou
from hamr_lib.files import ROOT
from hamr_lib.render import drawing, rasterize, render, silhouette, vertex_normals
from hamr_lib.render.examples import random_hands
from hamr_lib.render.silhouette import choose_backend
from hamr_lib.render.viewer3d import COMPRESSION, write_html

BOTH = pytest.mark.parametrize("backend", ["deodr", "pytorch3d"])
RADIUS = 0.1
K = np.array([[500, 0, 99.5], [0, 480, 79.5], [0, 0, 1.0]])


def ball(level):
    mesh = trimesh.creation.icosphere(subdivisions=level, radius=RADIUS)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


VERTICES, FACES = ball(4)


def balls(count=1, level=2):
    vertices, faces = ball(level)
    return torch.tensor(vertices, dtype=torch.float32).expand(count, -1, -1), torch.tensor(faces)


@pytest.mark.parametrize("middle", [(0, 0, 0.8), (0.1, -0.08, 0.5), (0.02, 0.03, 0.16)])
def test_every_pixel_sees_the_sphere_where_its_ray_meets_it(middle):
    seen = rasterize(VERTICES + middle, FACES, K, (160, 200))
    y, x = np.divmod(np.arange(160 * 200), 200)
    ray = np.stack([(x - 99.5) / 500, (y - 79.5) / 480, np.ones(x.size)], axis=1)
    b, a, c = ray @ middle, (ray**2).sum(1), np.dot(middle, middle) - RADIUS**2
    hits = b**2 - a * c
    depth = (b - np.sqrt(np.maximum(hits, 0))) / a
    drawn = np.zeros(x.size, bool)
    drawn[seen.pixel] = True
    # The facets lie a little inside the sphere.
    assert (drawn & (hits < 0)).sum() == 0
    assert (drawn != (hits > 0)).sum() < 0.02 * drawn.sum() + 10
    errors = np.abs(seen.depth - depth[seen.pixel])
    assert np.median(errors) < 2e-4 and np.quantile(errors, 0.95) < 2e-3
    # Interpolating the corners themselves gives the point that the pixel sees.
    pixels = seen.interpolate(VERTICES + middle) @ K.T
    np.testing.assert_allclose(
        pixels[:, :2] / pixels[:, 2:], np.stack([x, y], 1)[seen.pixel], atol=2e-3
    )


def test_a_weak_camera_projects_as_equations_4_and_5_in_any_depth_and_shape():
    shift = np.array([0.01, -0.02, -3.0])  # wholly behind where a pinhole would be
    seen = rasterize(VERTICES + shift, FACES, (5.0, 0.1, 0.2), (60, 100))
    mask = seen.image(np.ones(len(seen.pixel)))
    y, x = np.nonzero(mask)
    # 50 pixels a crop unit around the middle of the image.
    assert x.mean() == pytest.approx(49.5 + 50 * (5 * 0.01 + 0.1), abs=0.2)
    assert y.mean() == pytest.approx(29.5 + 50 * (5 * -0.02 + 0.2), abs=0.2)
    assert mask.sum() == pytest.approx(np.pi * (50 * 5 * RADIUS) ** 2, rel=0.02)
    assert seen.depth.min() == pytest.approx(-3 - RADIUS, abs=1e-3)  # the side that faces us


def test_the_nearer_of_two_meshes_hides_the_other():
    both = np.concatenate([VERTICES + (0, 0, 1), VERTICES * 0.5 + (0.02, 0, 0.7)])
    seen = rasterize(both, np.concatenate([FACES, FACES + len(VERTICES)]), K, 160)
    np.testing.assert_array_equal(seen.face >= len(FACES), seen.depth < 0.75)
    assert set(seen.face >= len(FACES)) == {False, True}


def test_faces_seen_from_behind_and_behind_or_too_near_a_pinhole_are_left_out():
    far, size = VERTICES + (0, 0, 1), (160, 200)
    assert rasterize(far, FACES[:, ::-1], K, size).depth.min() > 0.985  # its far side alone
    assert rasterize(far, FACES[:, ::-1], K, size, cull=False).depth.min() < 0.91
    assert len(rasterize(VERTICES - (0, 0, 1), FACES, K, 64).pixel) == 0
    assert len(rasterize(VERTICES, FACES, K, 64, cull=False).pixel) > 0  # the camera is inside
    seen = rasterize(VERTICES + (0, 0, 0.1), FACES, K, 64)
    assert (seen.depth > 0.01).all() and np.isfinite(seen.weights).all()


def test_normals_and_light():
    np.testing.assert_allclose(vertex_normals(VERTICES, FACES), VERTICES / RADIUS, atol=0.01)
    ball = VERTICES + (0, 0, 1), FACES, K, (160, 200)
    seen, colour = rasterize(*ball), render(*ball, colour=(0.5, 0.6, 0.7)).colour
    normals = (seen.interpolate(ball[0]) - (0, 0, 1)) / RADIUS
    toward = -drawing.LAMP_TRAVELS / np.linalg.norm(drawing.LAMP_TRAVELS)
    light = drawing.AMBIENT + drawing.LAMP * (normals @ toward).clip(0)  # Lambert's law
    expected = seen.image(light[:, None] * (0.5, 0.6, 0.7), background=1)
    np.testing.assert_allclose(colour, expected, atol=0.01)


def test_a_seam_has_values_of_its_own():
    corners = np.array([[-0.1, -0.1, 2], [0.1, -0.1, 2], [0.1, 0.1, 2], [-0.1, 0.1, 2]])
    seen = rasterize(corners, np.array([[0, 3, 2], [0, 2, 1]]), K, (160, 200))
    values = seen.interpolate(np.array([[1.0, 0], [0, 1]]), np.array([[0, 0, 0], [1, 1, 1]]))
    np.testing.assert_allclose(values, np.eye(2)[seen.face], atol=1e-6)
    assert set(seen.face) == {0, 1}


def test_supersampling_smooths_outlines_over_the_image_behind():
    behind = np.random.default_rng(0).random((160, 200, 3))
    plain, smooth = (
        render(VERTICES + (0, 0, 1), FACES, K, (160, 200), background=behind, supersample=n)
        for n in (1, 5)
    )
    assert set(np.unique(plain.coverage)) == {0, 1}
    assert ((smooth.coverage > 0) & (smooth.coverage < 1)).sum() > 100
    assert smooth.coverage.sum() == pytest.approx(np.pi * 500 * 480 * 0.1**2 / 0.99, rel=5e-3)
    empty = smooth.coverage == 0
    np.testing.assert_allclose(smooth.colour[empty], behind[empty])


@BOTH
@pytest.mark.parametrize("size", [32, 64])
def test_coverage_and_slopes_of_a_sphere_are_those_of_a_disc(backend, size):
    vertices, faces = balls(40)
    # Anywhere between the pixels, since a single picture sees its outline only where they are.
    rng = torch.Generator().manual_seed(0)
    camera = torch.rand(40, 3, generator=rng) * 0.2 + torch.tensor([5, -0.1, -0.1])
    camera.requires_grad_()
    drawn = silhouette(vertices, faces, camera, size, backend)
    assert drawn.shape == (40, size, size) and drawn.min() >= 0 and drawn.max() <= 1
    area = (torch.pi * (camera[:, 0] * RADIUS * size / 2) ** 2).detach()
    torch.testing.assert_close(drawn.sum((1, 2)), area, rtol=0.05, atol=0)
    # The facets of a ball lie inside it: 2 % of this one's disc.
    assert drawn.detach().sum() == pytest.approx(0.98 * area.sum().item(), rel=0.01)
    drawn.sum().backward()
    slope = camera.grad / area[:, None]
    # DEODR's adjoint leaves out that a growing outline also gets longer: 1/2 pixel of 8 or 16.
    assert slope[:, 0].mean() == pytest.approx(0.98 * 2 / 5.1, rel=0.1)
    # It lies where the camera says, and keeps its area when moved.
    pixel = torch.arange(size, dtype=torch.float32)
    for axis in (0, 1):
        middle = (drawn.sum(1 + axis) * pixel).sum(1) / drawn.sum((1, 2))
        expected = ((1 + camera[:, 1 + axis]) * size - 1) / 2
        torch.testing.assert_close(middle, expected, atol=0.1, rtol=0)
    assert slope[:, 1:].mean(0).abs().max() < 0.1


@BOTH
def test_a_hole_is_closed_and_the_dtype_kept(backend):
    vertices, faces = balls(level=3)
    open_faces = faces[(vertices[0, faces, 2] > -0.05).all(1)]  # the side that faces us is missing
    assert len(open_faces) < 0.8 * len(faces)
    camera = torch.tensor([[6, 0.01, 0.02]])
    drawn, whole = (silhouette(vertices, f, camera, 64, backend) for f in (open_faces, faces))
    double = silhouette(vertices.double(), faces, camera.double(), 64, backend)
    assert drawn.dtype == torch.float32 and double.dtype == torch.float64
    assert (drawn - whole).abs().sum() < 0.01 * whole.sum()


@BOTH
@pytest.mark.parametrize(
    "camera", [(6, 1.0, 0), (6, -0.9, 0.9), (6, 9, 0), (6, 1e4, -1e4), (1e4, 0, 0), (1e-6, 0, 0)]
)
def test_hands_partly_or_wholly_outside_give_finite_gradients(backend, camera):
    vertices, faces = balls(2)
    vertices = vertices.clone().requires_grad_()
    camera = torch.tensor([(6, 0, 0), camera], dtype=torch.float32).requires_grad_()
    drawn = silhouette(vertices, faces, camera, 32, backend)
    (drawn - 0.5).abs().sum().backward()
    assert drawn.isfinite().all()
    assert vertices.grad.isfinite().all() and camera.grad.isfinite().all()
    if camera[1, 1] > 2:
        assert drawn[1].sum() == 0 and camera.grad[1].abs().sum() == 0
    assert camera.grad[0].abs().sum() > 0  # its neighbour in the batch is not disturbed


@torch.no_grad()
def test_both_backends_draw_the_outline_of_the_picture():
    hands = random_hands(24)
    vertices, faces = hands.vertices(), hands.hand.faces
    drawn = [
        silhouette(vertices, faces, hands.camera, 128, backend).numpy() > 0.5
        for backend in ("deodr", "pytorch3d")
    ]
    found = iou(*drawn)[0]  # they differ along the outline, of which a slim hand has more
    assert np.median(found) >= 0.995 and found.min() >= 0.985
    pictures = [
        render(*(x.numpy() for x in (mesh, faces, camera)), 128, supersample=4, cull=False).coverage
        for mesh, camera in zip(vertices, hands.camera, strict=True)
    ]
    assert iou(drawn[0], np.stack(pictures) > 0.5)[0].min() >= 0.97


@pytest.mark.parametrize(
    ("backend", "count", "least"), [("deodr", 100, 0.95), ("pytorch3d", 8, 0.7)]
)
def test_gradients_agree_with_finite_differences(backend, count, least):
    """Slopes of a smooth function of the image: by scale, tx, ty, three turns and a curl.

    A difference moves the rim by half a pixel either way: over much less, single pixels switch.
    """
    hands, size, step = random_hands(count, seed=1), 64, 0.5
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 1, 5, 5, generator=generator)
    weights = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[:, 0]
    start = hands.vertices().detach()
    middle = (start.amin(1, keepdim=True) + start.amax(1, keepdim=True)) / 2
    curl = torch.tensor([0.0, 0, 1]).repeat(15)

    def value(amounts):
        curled = hands.vertices(hands.hand_pose + amounts[:, 6:] * curl) - middle
        turned = curled @ batch_rodrigues(amounts[:, 3:6]).transpose(1, 2) + middle
        change = torch.cat([hands.camera[:, :1] * amounts[:, :1], amounts[:, 1:3]], dim=1)
        drawn = silhouette(turned, hands.hand.faces, hands.camera + change, size, backend)
        return (drawn * weights).sum((1, 2))

    amounts = torch.zeros(count, 7, requires_grad=True)
    value(amounts).sum().backward()
    with torch.no_grad():
        moves = torch.eye(7) * step * 2 / size
        differences = [value(amounts + move) - value(amounts - move) for move in moves]
    gradient, difference = amounts.grad.T, torch.stack(differences) / (4 * step / size)
    assert torch.nn.functional.cosine_similarity(gradient, difference).min() >= least
    slope = (gradient * difference).sum(1) / (gradient**2).sum(1)
    assert slope.median() == pytest.approx(1, abs=0.1 if backend == "deodr" else 0.25)


@pytest.mark.slow
def test_the_notebook_runs_and_its_fits_from_random_starts_converge():
    plt.switch_backend("agg")
    cells = json.loads((ROOT / "notebooks" / "renderer.ipynb").read_text())["cells"]
    found = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), found)
            plt.close("all")
    assert found["before"].mean() < 0.7  # or the test would show nothing
    assert found["after"].min() >= 0.97


ARRAYS = {"vertices": np.eye(4, 3), "faces": np.array([[0, 1, 2]]), "camera": np.ones(3), "size": 8}
TENSORS = {"vertices": torch.eye(4, 3)[None], "faces": torch.tensor([[0, 1, 2]]),
           "camera": torch.ones(1, 3), "size": 8}  # fmt: skip
BAD = [
    *(("vertices", value) for value in (np.zeros((0, 3)), np.full((4, 3), np.nan))),
    *(("camera", value) for value in (np.zeros(4), np.full(3, np.inf))),
    *(("faces", np.array(value)) for value in ([[0, 1, 9]], [[0, 1, -1]], [[0.0, 1.0, 2.0]])),
    *(("faces", np.zeros(shape, int)) for shape in ((0, 3), (2, 4))),
    *(("size", value) for value in (0, 2.5)),
]
BAD_TENSORS = [
    *(("vertices", value) for value in (np.zeros((1, 4, 3)), torch.zeros(1, 4, 3).long())),
    *(("camera", value) for value in (torch.zeros(2, 3), torch.zeros(1, 3, device="meta"))),
    ("faces", torch.zeros(1, 3, dtype=torch.long, device="meta")),
    ("backend", "opengl"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_input_is_named(name, value):
    with pytest.raises(HamrError, match=f"{name}.*expected"):
        render(**ARRAYS | {name: value})
    if name in ("vertices", "camera"):
        value = torch.tensor(value, dtype=torch.float32)[None]
    with pytest.raises(HamrError, match=f"{name}.*expected"):
        silhouette(**TENSORS | {name: value})


@pytest.mark.parametrize(("name", "value"), BAD_TENSORS)
def test_bad_tensors_of_the_silhouette_are_named(name, value):
    with pytest.raises(HamrError, match=f"{name}.*expected"):
        silhouette(**TENSORS | {name: value})


def test_without_pytorch3d_deodr_draws_and_that_is_said(monkeypatch):
    assert [choose_backend("auto", device) for device in ("cpu", "cuda")] == ["deodr", "pytorch3d"]
    monkeypatch.setitem(sys.modules, "pytorch3d.renderer", None)  # makes its import fail
    assert choose_backend("auto", "cpu") == "deodr"
    with pytest.warns(UserWarning, match="PyTorch3D is not installed, DEODR draws"):
        assert choose_backend("auto", "cuda") == "deodr"
    with pytest.raises(HamrError, match="PyTorch3D is not installed: pip install"):
        silhouette(**TENSORS, backend="pytorch3d")


def test_a_page_is_k3ds_own_but_for_its_title(tmp_path):
    for places in ([[0, 0, 1]], [[1, 0, 0], [0, 2, 0]]):
        plot = k3d.plot(height=300)
        plot += k3d.points(places)
        write_html(tmp_path / "a.html", plot, "<A hand>")
        page, own = (tmp_path / "a.html").read_text(), plot.get_snapshot(COMPRESSION)
        assert page == re.sub("<title>.*?</title>", "<title>&lt;A hand&gt;</title>", own)
    with pytest.raises(HamrError, match="a.htm: expected a name that ends in .html"):
        write_html(tmp_path / "a.htm", plot, "A hand")
