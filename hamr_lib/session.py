"""Train for a limited time on a machine that starts empty and is taken away again.

    python -m hamr_lib.session OUT [--profile gpu] [--minutes 14] [--no-bench]

All cores but two render. While they render a first part of the training images, the machine is
benchmarked; while they render the whole, the network trains on the first part; then it goes on
with the whole, for as many steps as the time gives. OUT receives at once what is made: both runs
(`first`, `main`) with a checkpoint a minute, bench.csv, and at the end model.pt and session.json.
"""

import argparse
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from hamr_lib import bench
from hamr_lib.config import load_settings
from hamr_lib.data.registry import training_crops
from hamr_lib.files import commit, write_json
from hamr_lib.hand.layer import load_hand
from hamr_lib.model import checkpoint
from hamr_lib.study import machine
from hamr_lib.synth.sets import render_open_sets
from hamr_lib.training.loop import fit
from hamr_lib.training.task import Task
from hamr_lib.training.watch import Stopped

FIRST = 8  # the first part is one of so many
RESERVE = 40  # seconds at the end, for what is brought back


class Resumed(Task):
    """HAMR that begins with the weights of a checkpoint."""

    def __init__(self, path):
        self.path = path

    def prepare(self, network, settings, generator):
        """See `Task`: fill the network from the checkpoint."""
        state = checkpoint.read(self.path)["state_dict"]
        checkpoint.load_state(self.path, network, state)


def session(out, profile="gpu", minutes=14.0, sections=("network", "silhouette")):
    """Render, measure and train within `minutes`; returns the history of the main run.

    Args:
        out: folder that receives everything.
        profile: as in `load_settings`.
        sections: of `bench`; none skips it.
    """
    out, ends = Path(out), time.monotonic() + 60 * minutes
    settings = load_settings(profile)
    asked = settings.data.open
    # Another seed: no image of the first part may be among those that validate the whole.
    part = replace(asked, rhd_training=-(-asked.rhd_training // FIRST), seed=asked.seed + 1)
    first = replace(settings, profile=f"{profile}-first", data=replace(settings.data, open=part))
    options = settings.hand
    hand = load_hand(options.model, pose_components=options.pose_components, joints=options.joints)
    processes = max(1, os.cpu_count() - 2)
    begun = out / "first"
    begun.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as background:
        rendering = background.submit(render_open_sets, first, processes=processes)
        if sections:
            bench.main(list(sections))
            shutil.copy(bench.REFERENCE / "bench.csv", out)
        crops = bench.noise_crops(settings, settings.train.batch_size)
        seconds, _ = bench.loop_and_bare(settings, crops, hand, turns=4)
        rendering.result()
        rendering = background.submit(render_open_sets, settings, processes=processes)
        rendering.add_done_callback(lambda _: (begun / "stop").touch())
        _train(first, begun, hand, Task(), (ends - time.monotonic()) / 2)
        rendering.result()
    left = ends - time.monotonic() - RESERVE
    every = settings.train.validate_every
    steps = max(1, int(left / max(seconds) / every)) * every
    train = replace(settings.train, steps=min(steps, settings.train.steps))
    main = replace(settings, train=train)
    history = _train(main, out / "main", hand, Resumed(begun / "checkpoints" / "last.ckpt"), left)
    made = [out / "main" / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    checkpoint.save_release(next(path for path in made if path.is_file()), out / "model.pt")
    about = {"profile": profile, "commit": commit(), "machine": machine(), "steps": train.steps}
    write_json(out / "session.json", {**about, "seconds_a_step": max(seconds), "log": history})
    return history


def _train(settings, folder, hand, task, seconds):
    """Train for as long as there is time; the history, or None of a run that was stopped."""
    try:
        return fit(settings, folder, *training_crops(settings), hand, task, seconds / 60)
    except Stopped as error:
        print(error, file=sys.stderr)
        return None


def main(arguments=None):
    """The command line described at the top."""
    parser = argparse.ArgumentParser(prog="python -m hamr_lib.session", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", default="gpu")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--no-bench", action="store_true")
    asked = parser.parse_args(arguments)
    sections = () if asked.no_bench else ("network", "silhouette")
    session(asked.out, asked.profile, asked.minutes, sections)


if __name__ == "__main__":
    main()
