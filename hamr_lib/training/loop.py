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

from hamr_lib.config import Settings, Train
from hamr_lib.data.augment import augment, centre_crop
from hamr_lib.data.crops import Crops, EvenBatches, StepBatches
from hamr_lib.errors import HamrError
from hamr_lib.files import digest, write_aside
from hamr_lib.model import checkpoint
from hamr_lib.training.schedule import SCHEDULES, WeightAverage, make_optimizer
from hamr_lib.training.task import Task
from hamr_lib.training.watch import Diverged, Progress, Stopped, Watch

SAVE_SECONDS = 60.0  # from one checkpoint to the next
AGREE = 10  # steps after which several processes agree whether to save or stop


def fit(
    settings: Settings,
    run_dir: Path | str,
    train_crops: Crops,
    val_crops: Crops,
    hand: torch.nn.Module,
    task: Task | None = None,
    minutes: float = math.inf,
) -> list[dict]:
    """Train one network, or resume where an earlier call ended.

    Args:
        train_crops, val_crops: held apart by `Crops.split`.
        task: None for HAMR.
        minutes: time limit of this call.

    Returns:
        The rows of log.csv: step, learning_rate, train_* and val_* parts of the loss (unweighted,
        and total), val_<val_metric>, images_per_second.

    Raises:
        HamrError: another run's settings, data or task; a broken checkpoint; `Diverged`, `Stopped`.
    """
    task, run_dir, train = task or Task(), Path(run_dir), settings.train
    ends, asked, saved = time.monotonic() + 60 * minutes, run_dir / "stop", None
    last, best = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    data = digest(train_crops.digest, val_crops.digest)
    if last.is_file():
        saved = checkpoint.read(last, task.name)
        checkpoint.check_same_run(last, saved["hamr"], settings, data)
        checkpoint.check_hand(last, saved["hamr"], hand)
        if "run" not in saved:
            raise HamrError(f"{last} holds a network alone: delete it to train anew")
        if saved["hamr"]["step"] == train.steps:
            write_records(run_dir, saved["hamr"]["history"], saved["run"]["errors"])
            return saved["hamr"]["history"]

    fabric = start_fabric(train)
    torch.manual_seed(train.seed)
    network = task.build(settings, hand, train_crops)
    if not saved:
        generator = torch.Generator().manual_seed(seed_of(train.seed, 0, 2))
        task.prepare(network, settings, generator)
    run = Run(fabric, settings, network, task, train_crops, val_crops)
    if saved:
        run.load(last, saved)
    progress, save_at = Progress(train.steps, run.done), time.monotonic() + SAVE_SECONDS
    shown = ("train_total", "val_total", f"val_{task.val_metric}", "images_per_second")
    for batch in run.batches():
        run.step(batch)
        row = run.validate() if run.done % train.validate_every == 0 else None
        stop = save = False
        if fabric.world_size == 1 or run.done % AGREE == 0:
            now = time.monotonic()
            stop, save = fabric.broadcast((now > ends or asked.is_file(), now > save_at))
        if row or stop or save:
            metrics = run.history[-1] if run.history else {}
            about = checkpoint.describe(settings, data, hand, run.done, metrics, task.name)
            if row and run.is_best() and fabric.is_global_zero:
                checkpoint.save_model(best, run.validated, about)
            run.save(last, about)
            save_at = time.monotonic() + SAVE_SECONDS
        if fabric.is_global_zero:
            if row:
                write_records(run_dir, run.history, run.errors)
            progress.show(run.done, "".join(f", {k} {row[k]:.4g}" for k in shown if row))
        if stop:
            asked.unlink(missing_ok=True)
            if run.done < train.steps:
                raise Stopped(f"{run_dir} stopped at step {run.done} of {train.steps}: run again")
    return run.history


def start_fabric(train: Train) -> Fabric:
    """Start Lightning's Fabric on the devices of `settings.train`, or on torchrun's."""
    devices, nodes = train.devices, train.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    cuda, half = torch.cuda.is_available(), train.precision == "bf16"
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


class Run:
    """The state of a run after `done` steps: the network, its optimiser, and what was measured.

    `model` wraps the `network` for precision and several devices. What is `validated` and saved is
    the average of weights, or the network. `history` holds the rows of log.csv, `errors` the
    `val_metric` of each validation sample, (N,) a row.
    """

    def __init__(self, fabric, settings, network, task, train_crops, val_crops):
        self.fabric, self.settings, self.task = fabric, settings, task
        self.train_crops, self.val_crops = train_crops, val_crops
        train = settings.train
        if fabric.device.type == "cuda" and fabric.world_size > 1:
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(fabric.device, memory_format=torch.channels_last).train()
        self.average = WeightAverage(network, train.average) if train.average else None
        self.validated = self.average.module if self.average else network
        if train.compile:
            network.compile()
        optimizer = make_optimizer(network, train)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=train.plateau_factor, patience=train.plateau_patience
        )
        self.model, self.optimizer = fabric.setup(network, optimizer)
        self.watch, self.generator = Watch(train_crops.keys), torch.Generator()
        self.done, self.history, self.errors = 0, [], []
        self.sums, self.seconds, self.mark = {}, 0.0, time.monotonic()

    def batches(self):
        """Load the training batches from here to the end, this process's part of each."""
        train, fabric = self.settings.train, self.fabric
        parts = train.batch_size, train.seed, fabric.global_rank, fabric.world_size
        return self._loader(StepBatches(self.train_crops, *parts), range(self.done, train.steps))

    def _loader(self, batches, order):
        workers = self.settings.train.workers
        options = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
        # An item is a batch already.
        loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=order, **options)
        return self.fabric.setup_dataloaders(loader, use_distributed_sampler=False)

    def augmented(self, batch):
        """Augment a training batch, as the network sees it."""
        rank, own, count = self.fabric.global_rank, len(batch["index"]), self.fabric.world_size
        size, dice = self.settings.model.image_size, self._seeded(batch["step"], 0)
        part = slice(rank * own, (rank + 1) * own)
        return augment(batch, self.settings.augment, size, dice, part, count * own)

    def step(self, batch):
        """Take one step of the optimiser on one of `batches`."""
        self.watch.check()
        settings, step, train = self.settings, batch["step"], self.settings.train
        if train.schedule in SCHEDULES:
            factor = SCHEDULES[train.schedule](step, train.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = train.learning_rate * group["rate"] * factor
        batch = self.augmented(batch)
        torch.manual_seed(seed_of(train.seed, step, 1 + self.fabric.global_rank))  # dropout's
        output = self.model(channels_last(batch["image"]))
        parts = self.task.losses(self.network, output, batch, settings)
        # The same in all processes, whose gradients are averaged.
        auxiliary = self.task.auxiliary_losses(self.network, settings, self._seeded(step, 0, 1))
        total = sum(auxiliary.values(), parts["total"])
        self.watch.put(step, batch["index"], total)
        self.fabric.backward(total)
        if train.clip:
            weights = [w for group in self.optimizer.param_groups for w in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.network)
        add(self.sums, {**parts, **auxiliary, "steps": torch.ones_like(total)})
        self.done = step + 1

    def _seeded(self, *purpose):
        return self.generator.manual_seed(seed_of(self.settings.train.seed, *purpose))

    @torch.no_grad()
    def validate(self):
        """Measure the validated module on all validation samples; returns the new row."""
        self._stop_clock()
        settings, task, fabric, module = self.settings, self.task, self.fabric, self.validated
        if fabric.world_size > 1:  # each process has seen its own part of the batches
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
        module.eval()
        train, parts = settings.train, (fabric.global_rank, fabric.world_size)
        batches = EvenBatches(self.val_crops, train.batch_size, *parts)
        sums, errors = {}, torch.zeros(len(self.val_crops), device=fabric.device)
        for batch in self._loader(batches, range(len(batches))):
            batch = centre_crop(batch, settings.model.image_size)
            with fabric.autocast():
                output = module(channels_last(batch["image"]))
                losses = task.losses(module, output, batch, settings)
                errors[batch["index"]] = task.error(module, output, batch)
            losses["count"] = torch.ones_like(losses["total"])
            add(sums, {k: len(batch["index"]) * loss for k, loss in losses.items()})
        self.network.train()
        trained, measured = self._reduced(self.sums), self._reduced(sums)
        steps, count = trained.pop("steps"), measured.pop("count")
        errors = fabric.all_reduce(errors, reduce_op="sum").cpu()
        error = errors.nanmean().item()
        if not np.isfinite(error):
            raise Diverged(
                f"val_{task.val_metric} is {error}: expected a finite network and labels in some "
                "validation samples"
            )
        before = self.history[-1]["step"] if self.history else 0
        row = {
            "step": self.done,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **{f"train_{name}": value / steps for name, value in trained.items()},
            "images_per_second": (self.done - before) * train.batch_size / self.seconds,
            **{f"val_{name}": value / count for name, value in measured.items()},
            f"val_{task.val_metric}": error,
        }
        self.history.append(row)
        self.errors.append(errors)
        if train.schedule == "plateau":
            self.plateau.step(row["val_total"])
        self.sums, self.seconds, self.mark = {}, 0.0, time.monotonic()
        return row

    def is_best(self):
        """Tell whether the last validation has the least error of all."""
        errors = [row[f"val_{self.task.val_metric}"] for row in self.history]
        return errors[-1] == min(errors)

    def _reduced(self, sums):
        return {k: self.fabric.all_reduce(v, reduce_op="sum").item() for k, v in sums.items()}

    def _stop_clock(self):
        self.watch.check()  # waits for the device: the time is of finished work
        now = time.monotonic()
        self.seconds, self.mark = self.seconds + now - self.mark, now

    def save(self, path, about):
        """Write last.ckpt, from which `load` resumes. All processes call this."""
        self._stop_clock()
        run = {
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
            "watch": [self.watch.mean, self.watch.count],
            "sums": self._reduced(self.sums),
            "seconds": self.seconds,
            "errors": self.errors,
        }
        if self.average:
            run["network"] = self.network.state_dict()
            run["averaged"] = self.average.n_averaged
        if self.fabric.is_global_zero:
            hamr = {**about, "history": self.history}
            state = self.validated.state_dict()
            checkpoint.save(path, {"hamr": hamr, "state_dict": state, "run": run})
        self.mark = time.monotonic()

    def load(self, path, content):
        """Resume from the content of a last.ckpt; a `HamrError` where it does not fit."""
        try:
            run = content["run"]
            checkpoint.load_state(path, self.validated, content["state_dict"])
            if self.average:
                checkpoint.load_state(path, self.network, run["network"])
                self.average.n_averaged = run["averaged"]
            self.optimizer.load_state_dict(run["optimizer"])
            self.plateau.load_state_dict(run["plateau"])
            self.watch = Watch(self.train_crops.keys, run["watch"])
            self.done, self.history = content["hamr"]["step"], list(content["hamr"]["history"])
            self.errors, self.seconds = list(run["errors"]), run["seconds"]
            torch.stack([*self.errors, torch.zeros(len(self.val_crops))])  # of one shape, or raises
            first = 1.0 if self.fabric.is_global_zero else 0.0  # the sums are of all processes
            device = self.fabric.device
            self.sums = {k: torch.tensor(first * v, device=device) for k, v in run["sums"].items()}
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
            raise HamrError(
                f"{path}: the state of its run is damaged; delete it to train anew"
            ) from None


def write_records(run_dir, history, errors):
    """Write log.csv and validation.npz."""
    with write_aside(run_dir / "log.csv") as aside:
        pd.DataFrame(history).to_csv(aside, index=False)
    steps = [row["step"] for row in history]
    with write_aside(run_dir / "validation.npz") as aside:
        np.savez_compressed(aside, step=steps, error=torch.stack(errors).numpy())


def channels_last(image):
    """Bring images (B, 3, S, S) to the memory order that the network has."""
    return image.contiguous(memory_format=torch.channels_last)


def seed_of(*parts):
    """Derive a seed from whole numbers, the run's first."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def add(sums, values):
    """Add scalars by name to sums, without waiting for the device."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value.detach().float()
