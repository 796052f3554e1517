"""Measure what training, inference, the silhouette and `recover` cost on this machine.

    python -m hamr_lib.bench [network] [silhouette] [recover --photos FOLDER]

prints a table and writes it to results/reference/bench.csv and bench/speed.md. Times are medians
of `torch.utils.benchmark`, that of `hamr recover` on 100 photos a single run. The training loop and
the bare network take turns in one process.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch.utils.benchmark import Timer

from hamr_lib.config import load_settings
from hamr_lib.data.augment import centre_crop
from hamr_lib.data.crops import Crops, stored_size
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import best_device
from hamr_lib.files import ROOT, commit, write_text
from hamr_lib.hand.layer import load_hand
from hamr_lib.model.hamr import HAMR
from hamr_lib.render import silhouette
from hamr_lib.render.examples import random_hands
from hamr_lib.report.tables import write_table
from hamr_lib.study import machine
from hamr_lib.training.loop import Run, channels_last, start_fabric
from hamr_lib.training.task import Task

REFERENCE = ROOT / "results" / "reference"
SMALL = 100  # photos of 320 x 320 pixels
WINDOW = 4  # steps of one loop before it is the other's turn
LEARNING_RATE = 1e-6  # too low to learn: a network that learns from noise draws larger hands
# Name, profile, batch size, turns of each loop.
NETWORKS = [("reference", "reference", 32, 12), ("paper size", "paper", 8, 3)]


def network(networks=NETWORKS):
    """Rows: the training loop beside the bare network, and crop to mesh."""
    for name, profile, count, turns in networks:
        settings = load_settings(profile, train__batch_size=count, hand__model="open")
        hand = load_hand("open", pose_components=settings.hand.pose_components)
        where = f"{name}, {settings.model.image_size} px, batch"
        crops = noise_crops(settings, count)
        loop, bare = map(np.array, loop_and_bare(settings, crops, hand, turns))
        yield f"training loop, {where} {count}", count / np.median(loop), "images/s"
        yield f"bare network, {where} {count}", count / np.median(bare), "images/s"
        yield f"loop / bare network, {where} {count}", np.median(bare / loop), "times"
        model = HAMR(settings.model, hand).to(best_device(), memory_format=torch.channels_last)
        model.eval()

        @torch.inference_mode()
        def mesh(images, look, crops=crops):
            batch = centre_crop(crops.batch(np.arange(images)), crops.image_size)
            image = channels_last(batch["image"].to(best_device()))
            return look(image).estimates[-1].vertices.cpu()

        for images in (1, count):
            spent = 1e3 * median(partial(mesh, images, model)) / images
            yield f"crop to mesh, {where} {images}", spent, "ms an image"
            if settings.evaluate.upright:
                spent = 1e3 * median(partial(mesh, images, model.upright)) / images
                yield f"crop to mesh, two looks, {where} {images}", spent, "ms an image"


def noise_crops(settings, count, seed=0):
    """Crops of noise in memory, labelled with random hands; what they show costs nothing."""
    hands, size = random_hands(count, seed), settings.model.image_size
    stored = stored_size(size, settings.augment)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, stored, stored), np.uint8)
    with torch.no_grad():
        joints = hands.hand(hands.betas, hands.global_orient, hands.hand_pose).joints
    flat = hands.camera[:, None, :1] * joints[..., :2] + hands.camera[:, None, 1:]
    every = np.ones((count, 21), bool)
    labels = {
        "joints_2d": flat.numpy(), "joints_3d": (joints - joints[:, :1]).numpy(),
        "valid_2d": every, "valid_3d": every, "has_mask": every[:, 0], "left": ~every[:, 0],
        "root": np.tile(np.float32([0, 0, 0.5]), (count, 1)), "has_root": every[:, 0],
        "center": np.full((count, 2), size / 2, np.float32),
        "side": np.full(count, size, np.float32),
    }  # fmt: skip
    rows = np.stack([np.zeros(count, int), np.arange(count)], axis=1)
    return Crops([pixels], rows, labels, [str(i) for i in range(count)], "noise", size)


def loop_and_bare(settings, crops, hand, turns):
    """Seconds a step, one a turn, of the training loop and of the bare network, which take turns.

    The loop loads, augments, watches and averages as well.
    """
    steps = (WINDOW + 2) * turns + 2  # `Timer.timeit` warms up with two calls
    train = {"steps": steps, "validate_every": steps, "learning_rate": LEARNING_RATE}
    settings = replace(settings, train=replace(settings.train, **train, average=0.999))
    torch.manual_seed(0)
    fabric = start_fabric(settings.train)
    run, other = (
        Run(fabric, settings, HAMR(settings.model, hand), Task(), crops, crops) for _ in range(2)
    )
    batches = iter(run.batches())
    bare = bare_step(other, run.augmented(next(batches)))
    timers = timer(lambda: run.step(next(batches))), timer(bare)
    times = [[one.timeit(WINDOW).median for one in timers] for _ in range(turns)]
    return zip(*times, strict=True)


def bare_step(run, batch):
    """A function that takes one step on one batch that is ready: all that a loop cannot spare."""
    image, settings = channels_last(batch["image"]), run.settings

    def step():
        losses = run.task.losses(run.network, run.model(image), batch, settings)
        auxiliary = run.task.auxiliary_losses(run.network, settings, run.generator)
        run.fabric.backward(sum(auxiliary.values(), losses["total"]))
        if settings.train.clip:
            torch.nn.utils.clip_grad_norm_(run.network.parameters(), settings.train.clip)
        run.optimizer.step()
        run.optimizer.zero_grad()

    return step


def timer(function):
    """torch's timer of a function, with as many threads as torch has."""
    return Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())


def median(function):
    """Median seconds of a call, over as many calls as fit into two seconds."""
    return timer(function).blocked_autorange(min_run_time=2.0).median


def silhouettes(count=8, sizes=(64, 256)):
    """Rows: forward and backward of DEODR's silhouette and of PyTorch3D's own soft one."""
    hands = random_hands(count)
    deodr, pytorch3d = (partial(silhouette, backend=name) for name in ("deodr", "pytorch3d"))
    drawn = {"DEODR, CPU": (deodr, "cpu"), "PyTorch3D, CPU": (soft_silhouette, "cpu")}
    if torch.cuda.is_available():
        drawn["PyTorch3D, CUDA"] = pytorch3d, "cuda"
    for size in sizes:
        times = {}
        for name, (draw, device) in drawn.items():
            mesh = (
                hands.vertices().detach().to(device).requires_grad_(),
                hands.hand.faces.to(device),
            )
            options = *mesh, hands.camera.to(device), size
            weights = torch.rand(count, size, size).to(device)
            times[name] = median(lambda d=draw, o=options, w=weights: d(*o).backward(w))
            yield f"{name}, batch {count}, {size} px", 1e3 * times[name] / count, "ms an image"
        ratio = times["PyTorch3D, CPU"] / times["DEODR, CPU"]
        yield f"PyTorch3D / DEODR, CPU, {size} px", ratio, "times"


def soft_silhouette(vertices, faces, camera, size):
    """Draw (B, size, size) as PyTorch3D's tutorials do; our backend rasterises twice instead."""
    from pytorch3d import renderer, structures

    xy = -(camera[:, None, :1] * vertices[..., :2] + camera[:, None, 1:])
    z = vertices[..., 2:] - vertices[..., 2:].amin() + 1
    meshes = structures.Meshes(torch.cat([xy, z], dim=-1), faces.expand(len(xy), -1, -1))
    blur = float(np.log(1 / 1e-4 - 1) * renderer.BlendParams().sigma)
    settings = renderer.RasterizationSettings(size, blur, faces_per_pixel=10)
    rasterizer = renderer.MeshRasterizer(renderer.FoVOrthographicCameras(), settings)
    return renderer.MeshRenderer(rasterizer, renderer.SoftSilhouetteShader())(meshes)[..., 3]


def recovering(folder):
    """Rows: from a photo of 12 megapixels to meshes, and the whole command, on photos of hands."""
    from hamr_lib.recovery import command  # here, as other sections need no MediaPipe
    from hamr_lib.recovery.photo import read_photo
    from hamr_lib.recovery.pipeline import recover

    paths, _ = command.list_photos([Path(folder)])
    photos = [Image.fromarray(read_photo(path)) for path in paths[:SMALL]]
    with tempfile.TemporaryDirectory() as scratch:
        large, small = Path(scratch, "large.jpg"), Path(scratch, "small")
        ImageOps.pad(photos[0], (4000, 3000)).save(large)
        small.mkdir()
        for i in range(SMALL):
            ImageOps.pad(photos[i % len(photos)], (320, 320)).save(small / f"{i}.png")
        yield "photo of 12 MP to meshes, warm, no files", median(lambda: recover(large)), "s"
        for name, photo, runs in (
            ("one photo", paths[0], 5),
            (f"{SMALL} photos of 320 px", small, 1),
        ):
            run = [sys.executable, "-m", "hamr_lib", "recover", photo, "--out", f"{scratch}/out"]
            times = []
            for _ in range(runs):
                started = time.perf_counter()
                code = subprocess.run(run, capture_output=True).returncode
                times.append(time.perf_counter() - started)
                if code not in (command.DONE, command.PARTLY):
                    raise HamrError(
                        f"{folder}: expected photos of hands; hamr recover ends with {code}"
                    )
            yield f"command, {name}, start to all files", np.median(times), "s"


def main(arguments: list[str] | None = None) -> None:
    """The command line described at the top."""
    parser = argparse.ArgumentParser(prog="python -m hamr_lib.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", help="all unless named")
    parser.add_argument("--photos", help="folder of photos of hands, which `recover` needs")
    asked = parser.parse_args(arguments)
    known = {"network": network, "silhouette": silhouettes}
    if asked.photos:
        known["recover"] = lambda: recovering(asked.photos)
    threads, here = torch.get_num_threads(), machine()
    place = f"{threads} threads of {here['cpu']}, GPU: {here['gpu'] or 'none'}"
    for section in asked.sections or known:
        if section not in known:
            parser.error(f"section {section!r}: expected {', '.join(known)}")
        rows = []
        for name, value, unit in known[section]():
            print(f"{name:62} {value:10.4g} {unit}", flush=True)
            rows.append((section, name, value, unit, place, commit()))
        save(rows, REFERENCE)


def save(rows: list[tuple], folder: Path) -> None:
    """Write a section's rows to bench.csv, where others keep theirs, and the table `speed`."""
    columns = ["section", "name", "value", "unit", "machine", "commit"]
    table, path = pd.DataFrame(rows, columns=columns), folder / "bench.csv"
    if path.exists():
        before = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([before[before["section"] != rows[0][0]], table])
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
    table["value"] = [f"{value:{'.3g' if value < 1000 else '.0f'}}" for value in table.value]
    shown, machines = table[["name", "value", "unit", "commit"]], "; ".join(table.machine.unique())
    write_table(shown, folder / "bench", "speed", machines=machines)


if __name__ == "__main__":
    main()
