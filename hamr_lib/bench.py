"""`make bench`: what the renderer and the training loop cost here, and how the renderers agree.

    python -m hamr_lib.bench [renderer] [training]

prints a table and writes it to results/reference/bench.csv, and what the README shows of it to
results/reference/bench/. Times are the least of several runs; backends that are compared take
turns within one process, so that a busy machine is fair to both.
"""

import argparse
import platform
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from smplx.lbs import batch_rodrigues

from hamr_lib import bench_training
from hamr_lib.config import load_settings
from hamr_lib.files import ROOT, commit, write_aside
from hamr_lib.hand.anatomy import angles_to_axis_angle
from hamr_lib.hand.layer import load_hand
from hamr_lib.hand.sampling import sample_poses
from hamr_lib.render import silhouette
from hamr_lib.render.silhouette import draw_adjoint, draw_scenes, outline_scenes, topology_of
from hamr_lib.report.tables import write_table

REFERENCE = ROOT / "results" / "reference"
BATCH = 8
HANDS = 200
STARTS = 50
# How the names of the figures begin that the README shows.
SHOWN = ("training loop", "bare", "loop /", "inference", "pytorch3d /", "PyTorch3D on CUDA")
FILL = 0.85  # how far hands reach from the middle of the image to its border


# ------------------------------------------------------------------------------------ random hands


class Hands(NamedTuple):
    """Random hands in the middle of the image, and what they were made of."""

    hand: torch.nn.Module
    betas: torch.Tensor  # (B, 10)
    global_orient: torch.Tensor  # (B, 3)
    hand_pose: torch.Tensor  # (B, 45)
    camera: torch.Tensor  # (B, 3)

    def vertices(self, hand_pose=None):
        """(B, V, 3) metres, with another pose if one is given."""
        pose = self.hand_pose if hand_pose is None else hand_pose
        return self.hand(self.betas, self.global_orient, pose).vertices


def random_hands(count, seed=0):
    """Anatomical poses of the open hand, random shapes, seen from anywhere."""
    rng = np.random.default_rng(seed)
    hand = load_hand("open", pose_components=45)
    poses = torch.as_tensor(angles_to_axis_angle(sample_poses(rng, count)), dtype=torch.float32)
    turns = rng.normal(size=(count, 3))
    turns *= rng.uniform(0, np.pi, (count, 1)) / np.linalg.norm(turns, axis=1, keepdims=True)
    hands = Hands(
        hand,
        torch.as_tensor(rng.normal(size=(count, 10)), dtype=torch.float32),
        torch.as_tensor(turns, dtype=torch.float32),
        poses.reshape(count, 45) - hand.hand_mean,
        torch.zeros(count, 3),
    )
    with torch.no_grad():
        xy = hands.vertices()[..., :2]
    low, high = xy.amin(1), xy.amax(1)
    scale = 2 * FILL / (high - low).amax(1, keepdim=True)
    return hands._replace(camera=torch.cat([scale, -scale * (low + high) / 2], dim=1))


# --------------------------------------------------------------------------------------- agreement


def overlap(a, b):
    """(B,) IoU of the hard masks of two coverages (B, size, size)."""
    a, b = a > 0.5, b > 0.5
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


@torch.no_grad()
def mask_agreement(hands, size=128):
    """(B,) IoU of what the two backends draw."""
    vertices, faces = hands.vertices(), hands.hand.faces
    drawn = [silhouette(vertices, faces, hands.camera, size, b) for b in ("deodr", "pytorch3d")]
    return overlap(*drawn)


def gradient_agreement(hands, size=64):
    """The cosine between the two backends' gradients of the L1 loss against another hand's mask.

    Returns:
        dict of (B,) cosines: "camera" and "pose" (the 45 numbers).
    """
    faces = hands.hand.faces
    with torch.no_grad():
        other = hands.vertices(hands.hand_pose + 0.2 * torch.sin(torch.arange(45.0)))
        mask = silhouette(other, faces, hands.camera * 0.95 + 0.05, size, "deodr")
    gradients = {}
    for backend in ("deodr", "pytorch3d"):
        camera, pose = (t.clone().requires_grad_() for t in (hands.camera, hands.hand_pose))
        drawn = silhouette(hands.vertices(pose), faces, camera, size, backend)
        (drawn - mask).abs().mean((1, 2)).sum().backward()
        gradients[backend] = camera.grad, pose.grad
    return {
        name: torch.nn.functional.cosine_similarity(a, b)
        for name, a, b in zip(("camera", "pose"), *gradients.values(), strict=True)
    }


def finite_differences(hands, backend, size=64, step=0.5, seed=0):
    """Slopes of a smooth function of the picture: by the gradient, and by differences.

    A picture is made of pixels, so a difference over much less than one pixel sees single pixels
    switch; over half a pixel, and over many hands, it measures the slope.

    Args:
        hands: `Hands`.
        backend: the backend's name.
        size: pixels.
        step: pixels, half of what a difference moves the hand's rim.
        seed: of the random weights of the picture.

    Returns:
        two (7, B) tensors: gradient and difference, for scale, tx, ty, turns about the three axes,
        and the curl of all fingers.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(len(hands.camera), 1, 5, 5, generator=generator)
    weights = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[:, 0]
    with torch.no_grad():
        start = hands.vertices()
        middle = (start.amin(1, keepdim=True) + start.amax(1, keepdim=True)) / 2
    curl = torch.zeros(45)
    curl[2::3] = 1

    def value(amounts):
        turned = (
            hands.vertices(hands.hand_pose + amounts[:, 6:] * curl) - middle
        ) @ batch_rodrigues(amounts[:, 3:6]).transpose(1, 2) + middle
        change = torch.cat([hands.camera[:, :1] * amounts[:, :1], amounts[:, 1:3]], dim=1)
        drawn = silhouette(turned, hands.hand.faces, hands.camera + change, size, backend)
        return (drawn * weights).sum((1, 2))

    amounts = torch.zeros(len(weights), 7, requires_grad=True)
    value(amounts).sum().backward()
    differences = []
    with torch.no_grad():
        for column in range(7):
            moved = torch.zeros(7)
            moved[column] = step * 2 / size
            differences.append(
                (value(amounts + moved) - value(amounts - moved)) / (2 * moved.sum())
            )
    return amounts.grad.T, torch.stack(differences)


def fit_from_random_starts(vertices, faces, camera, backend, size=32, steps=150, rate=0.05, seed=0):
    """Fit scale, translation and rotation to masks, from starts that are far off.

    A start is up to a quarter too large or small (in the logarithm), 0.2 crop units off either way
    and 15 degrees turned about a random axis in space. Adam minimises the L1 loss. A small picture
    finds its way from further off, since an outline pixel is then a larger part of the hand.

    Args:
        vertices: (B, V, 3) metres.
        faces: (F, 3).
        camera: (B, 3); fitted are hands a quarter smaller than it shows them.
        backend, size: as in `silhouette`.
        steps: of Adam, whose rate falls from `rate` to nearly nothing.
        seed: of the starts.

    Returns:
        two (B,) IoU of hard masks at 128 pixels, by DEODR: before and after.
    """
    count = len(vertices)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator) * 2 - 1

    vertices = vertices - (vertices.amin(1, keepdim=True) + vertices.amax(1, keepdim=True)) / 2
    camera = torch.cat([camera[:, :1] * 0.75, torch.zeros(count, 2)], dim=1)
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    turn = axis * torch.rand(count, 1, generator=generator) * np.radians(15)
    amounts = torch.cat([0.25 * uniform(count, 1), 0.2 * uniform(count, 2), turn], dim=1)
    amounts.requires_grad_()

    def draw(amounts, size, backend):
        turned = vertices @ batch_rodrigues(amounts[:, 3:]).transpose(1, 2)
        moved = torch.cat([camera[:, :1] * amounts[:, :1].exp(), amounts[:, 1:3]], dim=1)
        return silhouette(turned, faces, moved, size, backend)

    with torch.no_grad():
        rest = torch.zeros_like(amounts)
        mask, fine = draw(rest, size, backend), draw(rest, 128, "deodr")
        before = overlap(draw(amounts, 128, "deodr"), fine)
    optimiser = torch.optim.Adam([amounts], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, rate / 50)
    for _ in range(steps):
        optimiser.zero_grad()
        (draw(amounts, size, backend) - mask).abs().mean((1, 2)).sum().backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return before, overlap(draw(amounts, 128, "deodr"), fine)


# ------------------------------------------------------------------------------------------- speed


def least_times(functions, repeats):
    """The least seconds of each of some functions that take turns, after one unmeasured turn."""
    times = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, spent in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            if turn:
                spent.append(time.perf_counter() - started)
    return [min(spent) for spent in times]


def silhouette_step(vertices, faces, camera, size, backend):
    """A function that draws silhouettes and takes the gradient, once a call."""
    vertices, camera = (t.detach().clone().requires_grad_() for t in (vertices, camera))
    gradient = torch.rand(len(vertices), size, size, device=vertices.device)

    def step():
        vertices.grad = camera.grad = None
        silhouette(vertices, faces, camera, size, backend).backward(gradient)
        if vertices.is_cuda:
            torch.cuda.synchronize()

    return step


def bare_deodr(vertices, faces, camera, size):
    """A function that makes the DEODR calls alone: whole meshes, scenes and outlines ready."""
    topology = topology_of(faces, vertices.shape[1])
    scenes = outline_scenes(vertices.numpy(), camera.numpy(), topology, size)
    for scene in scenes:  # put back the faces that were culled, for DEODR to cull
        drawn = {tuple(face) for face in scene.faces.tolist()}
        left = np.array([f for f in topology.faces.tolist() if tuple(f) not in drawn], np.uint32)
        scene.faces = np.concatenate([scene.faces, left])
        scene.edgeflags = np.concatenate([scene.edgeflags, np.zeros(left.shape, bool)])
        scene.faces_uv = np.zeros_like(scene.faces)
        scene.textured = scene.shaded = np.zeros(len(scene.faces), bool)
    gradient = torch.rand(len(vertices), size, size).numpy()

    def calls():
        images, depths = draw_scenes(scenes, size)
        draw_adjoint(scenes, images, depths, gradient, vertices.shape[1])

    return calls


def soft_silhouette_step(vertices, faces, camera, size):
    """A function that draws with PyTorch3D's own recipe, and takes the gradient, once a call.

    That is one rasterisation at 10 faces a pixel and the blend of its `SoftSilhouetteShader`, with
    the default `BlendParams`. (Our backend "pytorch3d" rasterises twice.)
    """
    from pytorch3d.renderer import BlendParams, rasterize_meshes, sigmoid_alpha_blend
    from pytorch3d.renderer.mesh.rasterizer import Fragments
    from pytorch3d.structures import Meshes

    xy = -(camera[:, None, :1] * vertices[..., :2] + camera[:, None, 1:])
    z = vertices[..., 2:] - vertices[..., 2:].amin() + 1
    points = torch.cat([xy, z], dim=-1).requires_grad_()
    gradient = torch.rand(len(points), size, size)
    blend = BlendParams()
    radius = float(np.log(1 / 1e-4 - 1) * blend.sigma)  # as in PyTorch3D's tutorials

    def step():
        points.grad = None
        meshes = Meshes(points, faces.expand(len(points), -1, -1))
        fragments = Fragments(*rasterize_meshes(meshes, size, radius, faces_per_pixel=10))
        white = torch.ones(*fragments.pix_to_face.shape, 3)
        sigmoid_alpha_blend(white, fragments, blend)[..., 3].backward(gradient)

    return step


def renderer_speed(hands):
    """Rows: forward and backward of a batch of 8 with each backend."""
    with torch.no_grad():
        vertices = hands.vertices()[:BATCH]
    faces, camera = hands.hand.faces, hands.camera[:BATCH]
    for size, repeats in ((64, 3), (256, 1)):
        step = silhouette_step(vertices, faces, camera, size, "deodr")
        ours, bare = least_times([step, bare_deodr(vertices, faces, camera, size)], 100)
        slow = silhouette_step(vertices, faces, camera, size, "pytorch3d")
        recipe = soft_silhouette_step(vertices, faces, camera, size)
        theirs, plain = least_times([slow, recipe], repeats)
        where = f"batch {BATCH}, {len(faces)} faces, {size} px"
        yield f"deodr, {where}", ours * 1e3, "ms"
        yield f"pytorch3d, {where}", theirs * 1e3, "ms"
        yield f"PyTorch3D's own soft silhouette, {where}", plain * 1e3, "ms"
        yield f"pytorch3d / deodr, {size} px", theirs / ours, "times"
        yield f"PyTorch3D's own soft silhouette / deodr, {size} px", plain / ours, "times"
        yield f"deodr / bare DEODR calls, {size} px", ours / bare, "times"
    if torch.cuda.is_available():
        yield from _cuda_speed()


def _cuda_speed():
    hands = random_hands(32)
    with torch.no_grad():
        vertices, faces, camera = hands.vertices(), hands.hand.faces, hands.camera
    vertices, faces, camera = vertices.cuda(), faces.cuda(), camera.cuda()
    for size in (64, 128, 256):
        step = silhouette_step(vertices, faces, camera, size, "pytorch3d")
        (spent,) = least_times([step], 20)
        yield f"PyTorch3D on CUDA, batch 32, {size} px", spent * 1e3 / 32, "ms an image"
    settings = load_settings("paper", train__batch_size=32, hand__model="open")
    bare = bench_training.Bare(settings, bench_training.noise_crops(settings, hands), hands.hand)
    (spent,) = least_times([bare.step], 20)
    yield "network's step on CUDA, paper profile, batch 32", spent * 1e3 / 32, "ms an image"


def renderer_agreement(hands):
    """Rows: how the backends' masks and gradients agree, and what each can fit."""
    found = mask_agreement(hands)
    yield f"IoU of both backends, {HANDS} hands, 128 px, mean", found.mean().item(), ""
    yield f"IoU of both backends, {HANDS} hands, 128 px, least", found.min().item(), ""
    for name, cosine in gradient_agreement(hands).items():
        yield f"cosine of gradients for {name}, {HANDS} hands, median", cosine.median().item(), ""
    for backend, count in (("deodr", HANDS), ("pytorch3d", HANDS // 4)):
        gradient, difference = finite_differences(random_hands(count, seed=1), backend)
        cosine = torch.nn.functional.cosine_similarity(gradient, difference)
        yield f"{backend}: cosine with finite differences, least of 7", cosine.min().item(), ""
        slope = (gradient * difference).sum(1) / (gradient**2).sum(1)
        yield f"{backend}: differences / gradient, median of 7", slope.median().item(), "times"
    starts = random_hands(STARTS, seed=2)
    with torch.no_grad():
        vertices = starts.vertices()
    for backend in ("deodr", "pytorch3d"):
        _, after = fit_from_random_starts(vertices, starts.hand.faces, starts.camera, backend)
        good = (after >= 0.97).sum().item()
        yield f"{backend}: fits of {STARTS} that reach IoU 0.97", good, "fits"
        yield f"{backend}: least IoU of {STARTS} fits", after.min().item(), ""


# -------------------------------------------------------------------------------------------- main


def machine():
    """The processor and how many of it, and the GPU if there is one."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass  # not Linux: the short name serves
    parts = [f"{torch.get_num_threads()} threads of {name}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def renderer():
    """Rows: the renderer's speed, and how its backends agree."""
    hands = random_hands(HANDS)
    yield from renderer_speed(hands)
    yield from renderer_agreement(hands)


SECTIONS = {"renderer": renderer, "training": lambda: bench_training.rows(random_hands)}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m hamr_lib.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all unless named")
    sections = parser.parse_args(arguments).sections or list(SECTIONS)
    where = machine(), commit()  # before bench.csv changes
    for section in sections:
        rows = []
        for name, value, unit in SECTIONS[section]():
            print(f"{section}: {name}: {value:.4g} {unit}".rstrip(), flush=True)
            rows.append((section, name, value, unit, *where))
        save(section, rows)
    speed(REFERENCE / "bench.csv", REFERENCE / "bench")


def speed(path, out_dir):
    """What the README shows of bench.csv: the table `speed`."""
    rows = pd.read_csv(path, keep_default_na=False)
    rows = rows[rows.name.str.startswith(SHOWN)]
    table = pd.DataFrame(
        {
            "what": rows.name,
            "measured": [
                f"{value:{'.3g' if value < 1000 else '.0f'}} {unit}"
                for value, unit in zip(rows.value, rows.unit, strict=True)
            ],
            "commit": rows.commit,
        }
    )
    caption = f"Measured by `make bench`, on {'; '.join(rows.machine.unique())}."
    return write_table(table, caption, out_dir, "speed")


def save(section, rows, path=REFERENCE / "bench.csv"):
    """Write a section's rows to bench.csv; the other sections keep their last figures."""
    table = pd.DataFrame(rows, columns=["section", "name", "value", "unit", "machine", "commit"])
    if path.exists():
        before = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([before[before["section"] != section], table])
    with write_aside(path) as aside:
        table.to_csv(aside, index=False, float_format="%.6g")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
