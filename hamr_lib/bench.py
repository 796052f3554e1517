"""Measure what training, inference and the silhouette cost on this machine.

    python -m hamr_lib.bench [network] [silhouette] [recover --photos FOLDER]

prints a table and writes it to results/reference/bench.csv and bench/speed.md. Times are medians
of `torch.utils.benchmark`; what is compared takes turns in one process.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.benchmark import Timer

from hamr_lib.config import load_settings
from hamr_lib.data.augment import centre_crop
from hamr_lib.data.crops import Crops, stored_size
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import best_device
from hamr_lib.files import ROOT, commit, write_aside
from hamr_lib.hand.layer import load_hand
from hamr_lib.losses import hamr_losses
from hamr_lib.model.hamr import HAMR
from hamr_lib.render import silhouette
from hamr_lib.render.agreement import random_hands
from hamr_lib.report.tables import write_table
from hamr_lib.study import machine
from hamr_lib.training.loop import precision, start_fabric
from hamr_lib.training.run import Run, channels_last
from hamr_lib.training.schedule import make_optimizer
from hamr_lib.training.task import Task

REFERENCE = ROOT / "results" / "reference"
COLUMNS = ["section", "name", "value", "unit", "machine", "commit"]
WINDOW = 4  # steps of one loop before it is the other's turn
# So low that no network learns from the noise: one that does recovers larger hands, which take
# longer to draw.
LEARNING_RATE = 1e-6
# Name, profile, overrides, turns of each loop.
NETWORKS = [
    ("reference", "reference", {"train__batch_size": 32}, 12),
    ("paper size", "paper", {"train__batch_size": 8}, 3),
]


# --------------------------------------------------------------------------- training and inference


def network(networks=NETWORKS):
    """Rows: the training loop beside the bare network, and crop to mesh."""
    for name, profile, overrides, turns in networks:
        settings = load_settings(profile, **overrides, hand__model="open")
        hand = load_hand("open", pose_components=settings.hand.pose_components)
        count = settings.train.batch_size
        crops = noise_crops(settings, count)
        where = f"{name}, {settings.model.image_size} px, batch {count}"
        loop, bare = loop_and_bare(settings, crops, hand, turns)
        yield f"training loop, {where}", count / statistics.median(loop), "images/s"
        yield f"bare network, {where}", count / statistics.median(bare), "images/s"
        ratio = statistics.median(b / a for a, b in zip(loop, bare, strict=True))
        yield f"loop / bare network, {where}", ratio, "times"
        for size in (1, count):
            spent = inference(settings, crops, hand, size)
            where = f"{name}, {settings.model.image_size} px, batch {size}"
            yield f"crop to mesh, {where}", 1e3 * spent / size, "ms an image"


def noise_crops(settings, count, seed=0):
    """Crops of noise in memory, labelled with random hands; what they show costs nothing."""
    hands, size = random_hands(count, seed), settings.model.image_size
    stored = stored_size(size, settings.augment)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 4, stored, stored), dtype=np.uint8)
    with torch.no_grad():
        joints = hands.hand(hands.betas, hands.global_orient, hands.hand_pose).joints
    flat = hands.camera[:, None, :1] * joints[..., :2] + hands.camera[:, None, 1:]
    everywhere, every = np.ones((count, 21), bool), np.ones(count, bool)
    labels = {
        "joints_2d": flat.numpy(),
        "joints_3d": (joints - joints[:, :1]).numpy(),
        "valid_2d": everywhere,
        "valid_3d": everywhere,
        "has_mask": every,
        "root": np.tile(np.float32([0, 0, 0.5]), (count, 1)),
        "has_root": every,
        "center": np.full((count, 2), size / 2, np.float32),
        "side": np.full(count, size, np.float32),
        "left": ~every,
    }
    rows = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    return Crops([pixels], rows, labels, [str(i) for i in range(count)], "noise", size)


def loop_and_bare(settings, crops, hand, turns):
    """Seconds a step of the training loop and of the bare network, which take turns.

    Returns:
        two lists, of one time a turn; the loop loads, augments, watches and averages as well.
    """
    steps = (WINDOW + 2) * turns + 2  # `Timer.timeit` warms up with two calls
    train = replace(
        settings.train,
        steps=steps,
        validate_every=steps,
        learning_rate=LEARNING_RATE,
        average=0.999,
    )
    settings = replace(settings, train=train)
    torch.manual_seed(0)
    fabric = start_fabric(settings.train)
    run = Run(fabric, settings, HAMR(settings.model, hand), Task(), crops, crops)
    batches = iter(run.batches())
    first = next(batches)
    bare = bare_step(settings, run.augmented(first), HAMR(settings.model, hand))
    timers = [
        Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        for step in (lambda: run.step(next(batches)), bare)
    ]
    run.step(first)
    bare()
    times = [[timer.timeit(WINDOW).median for timer in timers] for _ in range(turns)]
    return [list(column) for column in zip(*times, strict=True)]


def bare_step(settings, batch, network, generator=None):
    """A function that takes one step on one batch that is ready: all that a loop cannot spare."""
    device = best_device()
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(network, settings.train)
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    image, task, generator = channels_last(batch["image"]), Task(), generator or torch.Generator()
    half = precision(settings.train) == "bf16"

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = network(image)
        losses = hamr_losses(output, batch, settings.losses, network.hand.faces)
        losses |= task.auxiliary_losses(network, settings, generator)
        (losses["total"] + losses.get("lifting", 0)).backward()
        if settings.train.clip:
            torch.nn.utils.clip_grad_norm_(weights, settings.train.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.inference_mode()
def inference(settings, crops, hand, count):
    """Seconds from `count` stored crops to their meshes on the CPU."""
    device, size = best_device(), settings.model.image_size
    network = HAMR(settings.model, hand).to(device, memory_format=torch.channels_last).eval()

    def answer():
        batch = centre_crop(crops.batch(np.arange(count)), size)
        return network(channels_last(batch["image"].to(device))).estimates[-1].vertices.cpu()

    return median_seconds(answer)


def median_seconds(function, seconds=2.0):
    """Median time of a call, over as many calls as fit."""
    timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median


# ------------------------------------------------------------------------------------- silhouettes


def silhouettes(count=8, sizes=(64, 256)):
    """Rows: forward and backward of DEODR's silhouette and of PyTorch3D's own soft one."""
    hands = random_hands(count)
    with torch.no_grad():
        mesh = hands.vertices(), hands.hand.faces, hands.camera
    for size in sizes:
        deodr = median_seconds(silhouette_step(*mesh, size, "deodr"))
        soft = median_seconds(soft_silhouette_step(*mesh, size))
        yield f"DEODR, CPU, batch {count}, {size} px", 1e3 * deodr / count, "ms an image"
        yield f"PyTorch3D, CPU, batch {count}, {size} px", 1e3 * soft / count, "ms an image"
        yield f"PyTorch3D / DEODR, CPU, {size} px", soft / deodr, "times"
        if torch.cuda.is_available():
            cuda = [t.cuda() for t in mesh]
            spent = median_seconds(silhouette_step(*cuda, size, "pytorch3d"))
            yield f"PyTorch3D, CUDA, batch {count}, {size} px", 1e3 * spent / count, "ms an image"


def silhouette_step(vertices, faces, camera, size, backend):
    """A function that draws silhouettes and takes the gradient."""
    vertices, camera = (t.clone().requires_grad_() for t in (vertices, camera))
    gradient = torch.rand(len(vertices), size, size, device=vertices.device)

    def step():
        vertices.grad = camera.grad = None
        silhouette(vertices, faces, camera, size, backend).backward(gradient)

    return step


def soft_silhouette_step(vertices, faces, camera, size):
    """The same with PyTorch3D's own recipe: one rasterisation at 10 faces a pixel, and its
    `SoftSilhouetteShader`'s blend. (Our backend "pytorch3d" rasterises twice.)"""
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


# ----------------------------------------------------------------------------------------- recover


def recovering(folder):
    """Rows: a photo of 12 megapixels, the command from its start to the first file, 100 photos.

    Args:
        folder: photos of hands.
    """
    # Here, so that the other sections do without MediaPipe.
    from hamr_lib.recovery.photo import SUFFIXES, read_photo
    from hamr_lib.recovery.pipeline import NoHandError, recover

    paths = [p for p in sorted(Path(folder).iterdir()) if p.suffix.lower() in SUFFIXES]
    if not paths:
        raise HamrError(f"{folder} holds no photo: expected files {', '.join(SUFFIXES)}")

    def meshes(photo):
        with suppress(NoHandError):
            recover(photo)

    with tempfile.TemporaryDirectory() as scratch:
        large = Path(scratch) / "large.jpg"
        Image.fromarray(read_photo(paths[0])).resize((4000, 3000)).save(large)
        meshes(large)  # loads the networks
        yield "photo of 12 MP to meshes, warm", median_seconds(lambda: meshes(large)), "s"
        command = [sys.executable, "-m", "hamr_lib", "recover", large, "--out", f"{scratch}/out"]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        yield "start of the command to its result", time.perf_counter() - started, "s"
    started = time.perf_counter()
    for index in range(100):
        meshes(paths[index % len(paths)])
    yield "100 photos to meshes, warm", time.perf_counter() - started, "s"


# ------------------------------------------------------------------------------------------- main


def main(arguments=None):
    """The command line described at the top."""
    parser = argparse.ArgumentParser(prog="python -m hamr_lib.bench", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", help="network, silhouette, recover; all unless named"
    )
    parser.add_argument("--photos", help="folder of photos of hands, which `recover` needs")
    asked = parser.parse_args(arguments)
    known = {"network": network, "silhouette": silhouettes}
    if asked.photos:
        known["recover"] = lambda: recovering(asked.photos)
    here = machine()
    gpu = [here["gpu"]] if here["gpu"] else []
    where = ", ".join([f"{torch.get_num_threads()} threads of {here['cpu']}", *gpu]), commit()
    print(f"on {where[0]}, commit {where[1]}")
    for section in asked.sections or known:
        if section not in known:
            parser.error(f"section {section!r}: expected {', '.join(known)}")
        rows = []
        for name, value, unit in known[section]():
            print(f"{name:62} {value:10.4g} {unit}", flush=True)
            rows.append((section, name, value, unit, *where))
        save(section, rows, REFERENCE / "bench.csv")
    speed(REFERENCE / "bench.csv", REFERENCE / "bench")


def save(section, rows, path):
    """Write a section's rows to bench.csv; other sections keep their last figures."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    if path.exists():
        before = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([before[before["section"] != section], table])
    with write_aside(path) as aside:
        table.to_csv(aside, index=False, float_format="%.6g")


def speed(path, out_dir):
    """Write bench.csv as the table `speed`, which the documentation shows."""
    rows = pd.read_csv(path, keep_default_na=False)
    values = [
        f"{value:{'.3g' if value < 1000 else '.0f'}} {unit}"
        for value, unit in zip(rows.value, rows.unit, strict=True)
    ]
    table = pd.DataFrame({"what": rows.name, "measured": values, "commit": rows.commit})
    caption = f"Measured by `make bench`, on {'; '.join(rows.machine.unique())}."
    return write_table(table, caption, out_dir, "speed")


if __name__ == "__main__":
    main()
