"""Train for a limited time on a machine that starts empty and is taken away again.

    python -m hamr_lib.session OUT [--profile gpu] [--minutes 14] [--no-bench]

All cores but two render. They first render the training images of another seed. While they render
those of the profile, the network trains on the first, without the silhouette loss where PyTorch3D
is missing: a GPU would wait for the CPU to draw. Then it goes on with the profile's own images and
losses. Both take as many steps as the time gives. OUT receives both runs (`first`, `main`) with a
checkpoint a minute, bench.csv, and at the end model.pt and session.json.
"""

import argparse
import copy
import os
import shutil
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from hamr_lib import bench
from hamr_lib.config import load_settings
from hamr_lib.data.registry import training_crops
from hamr_lib.files import commit, write_json
from hamr_lib.hand.layer import hand_of
from hamr_lib.model import checkpoint
from hamr_lib.render.silhouette import has_pytorch3d
from hamr_lib.study import machine
from hamr_lib.synth.sets import render_open_sets
from hamr_lib.training.loop import fit
from hamr_lib.training.task import Task
from hamr_lib.training.watch import Stopped

FIRST = 0.6  # of the time that training has, for the first run
SLOWER = 0.4  # factor on the learning rate of the main run, which goes on from a trained network
RESERVE = 30  # seconds at the end, for what is brought back


class Resumed(Task):
    """HAMR that begins with the weights of a checkpoint."""

    def __init__(self, path):
        self.path = path

    def prepare(self, network, settings, generator):
        """See `Task`: fill the network from the checkpoint."""
        state = checkpoint.read(self.path)["state_dict"]
        checkpoint.load_state(self.path, network, state)


def session(
    out: Path, profile: str = "gpu", minutes: float = 14.0, benched: bool = True
) -> list[dict] | None:
    """Render, measure by `bench`, and train; returns the history of the main run.

    None is that of a run that the time stopped.
    """
    out, ends = Path(out), time.monotonic() + 60 * minutes
    settings = load_settings(profile)
    # Another seed: no image of the first run may be among those that validate the main run.
    seed = settings.data.open.seed + 1
    few = replace(settings.data.open, seed=seed, rhd_evaluation=2, stb_frames=1, dexter_frames=1)
    first = replace(settings, profile=f"{profile}-first", data=replace(settings.data, open=few))
    if not has_pytorch3d():
        first = replace(first, losses=replace(settings.losses, silhouette=0.0))
    hand = hand_of(settings.hand)
    processes = max(1, os.cpu_count() - 2)
    with ThreadPoolExecutor(1) as background:
        rendering = background.submit(render_open_sets, first, processes=processes)
        if benched:
            bench.main(["network", "silhouette"])
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(bench.REFERENCE / "bench.csv", out)
        rendering.result()
        rendering = background.submit(render_open_sets, settings, processes=processes)
        _train(first, out / "first", hand, Task(), FIRST * (ends - time.monotonic() - RESERVE))
        rendering.result()
    train = replace(settings.train, learning_rate=SLOWER * settings.train.learning_rate)
    main = replace(settings, train=train)
    again = Resumed(out / "first" / "checkpoints" / "last.ckpt")
    history = _train(main, out / "main", hand, again, ends - time.monotonic() - RESERVE)
    best, last = (out / "main" / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    checkpoint.save_release(best if best.is_file() else last, out / "model.pt")
    about = {"profile": profile, "commit": commit(), "machine": machine()}
    write_json(out / "session.json", {**about, "log": history})
    return history


def _train(settings, folder, hand, task, seconds):
    """Train for as long as there is time."""
    ends = time.monotonic() + seconds
    crops = training_crops(settings)
    noise = bench.noise_crops(settings, settings.train.batch_size)
    step, _ = bench.loop_and_bare(settings, noise, copy.deepcopy(hand), turns=3)
    left = ends - time.monotonic()
    # The average of a run is a little slower than its steps alone.
    steps = max(1, min(int(0.9 * left / statistics.median(step)), settings.train.steps))
    every = max(1, steps // 5)
    train = replace(settings.train, steps=steps // every * every, validate_every=every)
    print(f"{folder.name}: {train.steps} steps of {statistics.median(step):.3f} s", flush=True)
    try:
        return fit(replace(settings, train=train), folder, *crops, hand, task, left / 60)
    except Stopped as error:
        print(error, file=sys.stderr)
        return None


def main(arguments: list[str] | None = None) -> None:
    """The command line described at the top."""
    parser = argparse.ArgumentParser(prog="python -m hamr_lib.session", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", default="gpu")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--no-bench", action="store_false", dest="benched")
    session(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
