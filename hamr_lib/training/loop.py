"""Training, Section 4.1: one plain loop for HAMR and every baseline.

A run is a function of its settings and data: the samples of a step, their augmentation and its
dropout are drawn from (seed, step). No random state is saved, and a run that was killed and
resumed computes what an unbroken run computes. A run's folder, each file written aside and renamed:

    checkpoints/last.ckpt   at every validation and every minute; a run resumes from it
    checkpoints/best.ckpt   the validated network with the least error
    log.csv                 losses, error and speed, a row a validation
    validation.npz          step (T,) and error (T, N), that of each validation sample

A file `stop` in this folder ends the run at the next step, as its time limit does.
"""

import logging
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric

from hamr_lib.errors import HamrError
from hamr_lib.files import digest, write_aside
from hamr_lib.model import checkpoint
from hamr_lib.training.run import Run, seed_of
from hamr_lib.training.task import Task
from hamr_lib.training.watch import Progress, Stopped

SAVE_SECONDS = 60.0  # from one checkpoint to the next, and at least 50 times what one takes
LOOK = 10  # steps after which several processes agree whether to save or stop


def fit(settings, run_dir, train_crops, val_crops, hand, task=None, minutes=math.inf):
    """Train one network, or resume where an earlier call ended.

    Args:
        train_crops, val_crops: `data.crops.Crops`, held apart by `Crops.split`.
        task: the `Task`; None for HAMR.
        minutes: time limit of this call.

    Returns:
        list of dicts, the rows of log.csv: step, learning_rate, train_* and val_* parts of the
        loss (unweighted, and total), val_<val_metric>, images_per_second.

    Raises:
        HamrError: another run's settings, data or task; a broken checkpoint; `Diverged`, `Stopped`.
    """
    task, run_dir, steps = task or Task(), Path(run_dir), settings.train.steps
    ends, asked = time.monotonic() + 60 * minutes, run_dir / "stop"
    last, best = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    data, saved = digest(train_crops.digest, val_crops.digest), None
    if last.is_file():
        saved = checkpoint.read(last, task.name)
        checkpoint.check_same_run(last, saved["hamr"], settings, data)
        checkpoint.check_hand(last, saved["hamr"], hand)
        if "run" not in saved:
            raise HamrError(f"{last} holds a network alone: delete it to train anew")
        if saved["hamr"]["step"] == steps:
            write_records(run_dir, saved["hamr"]["history"], saved["run"]["errors"])
            return saved["hamr"]["history"]

    fabric, seed = start_fabric(settings.train), settings.train.seed
    torch.manual_seed(seed)
    network = task.build(settings, hand, train_crops)
    if not saved:
        task.prepare(network, settings, torch.Generator().manual_seed(seed_of(seed, 0, 2)))
    run = Run(fabric, settings, network, task, train_crops, val_crops)
    if saved:
        run.load(last, saved)
    progress, save_at = Progress(steps, run.done), time.monotonic() + SAVE_SECONDS
    for batch in run.batches():
        run.step(batch)
        row = run.validate() if run.done % settings.train.validate_every == 0 else None
        stop = save = False
        if fabric.world_size == 1 or run.done % LOOK == 0:
            now = time.monotonic()
            stop, save = fabric.broadcast((now > ends or asked.is_file(), now > save_at))
        if row and run.is_best() and fabric.is_global_zero:
            checkpoint.save_model(best, run.validated, run.describe(hand, data))
        if row or stop or save:
            started = time.monotonic()
            run.save(last, hand, data)
            save_at = time.monotonic() + max(SAVE_SECONDS, 50 * (time.monotonic() - started))
        if fabric.is_global_zero:
            if row:
                write_records(run_dir, run.history, run.errors)
            progress.show(run.done, row and _told(row, task.val_metric))
        if stop:
            asked.unlink(missing_ok=True)
        if stop and run.done < steps:
            raise Stopped(f"{run_dir} stopped at step {run.done} of {steps}: run again to resume")
    return run.history


def start_fabric(train):
    """Start Lightning's Fabric on the devices of `settings.train`, or on torchrun's."""
    devices, nodes = train.devices, train.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    cuda = torch.cuda.is_available()
    half = train.precision == "bf16"
    if half and not cuda and not torch.cpu._is_avx512_bf16_supported():
        half = False
        print("train.precision=bf16: this processor has no bf16, trains in 32", file=sys.stderr)
    torch.backends.cudnn.benchmark = cuda
    # The optimiser's memory of dead weights falls below 1e-38, where some processors need a
    # hundred times as long unless such numbers count as zero.
    torch.set_flush_denormal(True)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision="bf16-mixed" if half else "32-true",
    )
    fabric.launch()
    return fabric


def write_records(run_dir, history, errors):
    """Write log.csv and validation.npz."""
    with write_aside(run_dir / "log.csv") as aside:
        pd.DataFrame(history).to_csv(aside, index=False)
    steps = [row["step"] for row in history]
    with write_aside(run_dir / "validation.npz") as aside:
        np.savez_compressed(aside, step=steps, error=torch.stack(errors).numpy())


def _told(row, metric):
    return (
        f", train loss {row['train_total']:.4g}, validation loss {row['val_total']:.4g}, "
        f"{metric} {row[f'val_{metric}']:.2f}, {row['images_per_second']:.1f} images/s"
    )
