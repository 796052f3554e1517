"""Training, Section 4.1: one Lightning module, one loop, and a run that can be trusted.

What is trained is a `Task`: HAMR, or a method that it is compared with.

A run is a function of its settings and data. Which samples a step sees, how they are augmented and
what dropout drops are drawn from (seed, step) alone, so that nothing random has to be saved, and a
run that was killed and taken up again computes what an unbroken one computes.

For Lightning, one epoch is `train.validate_every` steps. After each the network is validated, and
`best.ckpt`, `last.ckpt` and `log.csv` are written aside and renamed. A run that was killed in
between goes on from `last.ckpt`. Under the trapezoid schedule a run that has ended can be given
more steps: it goes on from `held.ckpt`, written before its learning rate began to fall.
"""

import csv
import dataclasses
import logging
import math
import os
import sys
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from hamr_lib.config import from_dict
from hamr_lib.data.augment import augment, centre_crop
from hamr_lib.data.crops import EvenBatches, StepBatches
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, digest, write_aside
from hamr_lib.losses import hamr_losses
from hamr_lib.model import checkpoint
from hamr_lib.model.backbone import parameter_groups
from hamr_lib.model.hamr import HAMR
from hamr_lib.training.pose_prior import lift, lifting_loss

EXPLODED = 1000.0  # times the running mean of the loss
SETTLED = 100  # steps before that mean is trusted
WARM_UP = 0.05  # share of the steps, with the cosine schedule
WARM_STEPS = 200  # with the trapezoid one, whose start must not depend on how long a run is
FALL = 0.4  # share of the steps over which the trapezoid's rate falls, which teaches most


class Task:
    """What a run trains and by what it is judged: HAMR, as it stands here.

    A comparison overrides all of it (`comparisons.common.Trained`), so that its network sees the
    same batches, augmentation, optimiser, precision and checkpoints.

    Attributes:
        name: kept in the checkpoints, which those of another name refuse.
        judged_by: the validation figure, least is best, by which best.ckpt is chosen.
        told: how a line of progress tells it.
    """

    name = "hamr"
    judged_by = "joints_3d_mm"
    told = "joints {:.1f} mm"

    def build(self, settings, hand, crops):
        """The network, newly drawn: a module of images (B, 3, S, S). `crops` it will train on."""
        return HAMR(settings.model, hand)

    def prepare(self, network, settings):
        """What a new network learns before its first image."""
        train = settings.train
        if train.start:
            checkpoint.load_state(
                ROOT / train.start, network, start_weights(train.start, network, settings)
            )
        for name in ("lift_steps", "lift_beside"):
            hands = getattr(train, name)
            if hands and not settings.model.places:
                raise HamrError(f"train.{name}={hands}: expected 0 where model.places is off")
        if not train.lift_steps:
            return
        print("before the images: lifting the places of joints", file=sys.stderr)
        progress = Progress(dataclasses.replace(train, steps=train.lift_steps), self)
        progress.start(0)
        generator = torch.Generator().manual_seed(_seed(train.seed, 0, 2))
        lift(network, settings, generator, progress.show)

    def beside(self, network, settings, generator):
        """What a network is taught beside a batch of images: losses by name, which are added."""
        hands = settings.train.lift_beside
        return {"lifting": lifting_loss(network, settings, hands, generator)} if hands else {}

    def losses(self, network, output, batch, settings):
        """The parts of the loss of its output, unweighted scalars by name, and their "total"."""
        return hamr_losses(output, batch, settings.losses, network.hand.faces)

    def error(self, network, output, batch):
        """The figure `judged_by`, a scalar: the mean over a batch."""
        return joints_error(output.estimates[-1].joints_3d, batch)


def start_weights(start, network, settings):
    """The weights of a checkpoint of HAMR, `train.start`, by name.

    Raises:
        HamrError: for a file that is no such checkpoint, or of a network with other settings (all
            but `own_statistics`, which changes no weight).
    """
    path = ROOT / start
    content = checkpoint.read(path)
    checkpoint.check_task(path, content["hamr"], Task.name)
    checkpoint.check_hand(path, content["hamr"], network.hand)
    theirs = from_dict(content["hamr"]["settings"], source=f"{path}: settings")
    own = settings.model.own_statistics
    if dataclasses.replace(theirs.model, own_statistics=own) != settings.model:
        raise HamrError(f"train.start={start} is of {theirs.model}, expected {settings.model}")
    return checkpoint.model_state(content)


@torch.no_grad()
def lean(network, start, share):
    """Move a network's weights towards those by name in `start`, in place, by a share of the way.

    Half of the way is what Wortsman et al. (CVPR 2022) advise for a network that is trained on with
    other data: it keeps more of what it knew.

    Returns:
        The weights as they were, by name.
    """
    weights = network.state_dict()
    own = {name: weight.clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        if weight.is_floating_point():
            weight.lerp_(start[name].to(weight), share)
    return own


def joints_error(joints_3d, batch):
    """Mean distance of joints (B, 21, 3) from their labels, millimetres."""
    error = (joints_3d.float() - batch["joints_3d"]).norm(dim=-1)
    valid = batch["valid_3d"]
    return 1000 * (error * valid).sum() / valid.sum().clamp(min=1)


def fit(settings, run_dir, train_crops, val_crops, hand, task=None):
    """Train one network, or go on where an earlier call was interrupted.

    Under `torchrun` the number of processes is torchrun's; otherwise `train.devices` and
    `train.nodes` say it.

    Args:
        settings: `Settings`.
        run_dir: folder of the run: checkpoints/best.ckpt, checkpoints/last.ckpt and log.csv.
        train_crops, val_crops: `data.crops.Crops`, held apart by `Crops.split`.
        hand: the module of `layer.load_hand`.
        task: the `Task`; None for HAMR.

    Returns:
        list of dicts, the rows of log.csv: step, learning_rate, train_* and val_* parts of the
        loss (unweighted, and total), val_joints_3d_mm (or what else the task is judged by),
        images_per_second.

    Raises:
        HamrError: for settings, data or a task other than the run's, a broken checkpoint, or a
            loss that is not finite or explodes.
    """
    task = task or Task()
    run_dir = Path(run_dir)
    every, steps = settings.train.validate_every, settings.train.steps
    if not 0 <= settings.train.start_share <= 1:
        raise HamrError(
            f"train.start_share={settings.train.start_share}: expected a share from 0 to 1"
        )
    if every < 1 or steps < 1 or steps % every:
        raise HamrError(
            f"train.steps={steps} is not a positive multiple of train.validate_every={every}"
        )
    data = digest(train_crops.digest, val_crops.digest)
    path, content = _latest(run_dir / "checkpoints", settings.train)
    before = content and content["hamr"]
    if before:
        checkpoint.check_task(path, before, task.name)
        checkpoint.check_same_run(path, before, settings, data, _may_differ(before, settings.train))
        checkpoint.check_hand(path, before, hand)
        if before["step"] >= steps:
            _write_log(run_dir, before["history"])
            return before["history"]

    # The optimiser's memory of weights that have died fades below 1e-38, where a processor that
    # does not take such numbers for zero needs a hundred times as long.
    torch.set_flush_denormal(True)
    torch.manual_seed(settings.train.seed)
    network = task.build(settings, hand, train_crops)
    if before:  # Lightning will do this again, but would not say what is wrong in plain words
        checkpoint.load_state(path, network, checkpoint.model_state(content))
    else:
        task.prepare(network, settings)
    start = None
    if settings.train.start and settings.train.start_share:
        start = start_weights(settings.train.start, network, settings)
    module = Training(settings, run_dir, network, hand, task, data, before, start)
    _trainer(settings).fit(
        module,
        datamodule=CropData(settings.train, train_crops, val_crops),
        ckpt_path=str(path) if before else None,
        weights_only=True,
    )
    return module.history


def _latest(folder, train):
    """The checkpoint that a run goes on from, path and content; (None, None) for a new run."""
    last, held = folder / "last.ckpt", folder / "held.ckpt"
    if not last.is_file():
        return None, None
    content = checkpoint.read(last)
    if content["hamr"]["settings"]["train"]["steps"] < train.steps and held.is_file():
        return held, checkpoint.read(held)
    return last, content


def _may_differ(before, train):
    """Settings that a run may change: where it computes, and steps that it has not felt yet."""
    felt = min(before["settings"]["train"]["steps"], train.steps)
    if train.schedule == "trapezoid" and before["step"] <= fall_begins(felt):
        return (*checkpoint.PLACES, "train.steps")
    return checkpoint.PLACES


class CropData(lightning.LightningDataModule):
    """The batches of a run, for this process's share of every batch."""

    def __init__(self, train, train_crops, val_crops):
        super().__init__()
        self.train, self.train_crops, self.val_crops = train, train_crops, val_crops

    def _loader(self, batches, order, workers):
        return torch.utils.data.DataLoader(
            batches,
            batch_size=None,  # an item is a batch already
            sampler=order,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
        )

    def train_dataloader(self):
        """The batches of the steps from here to the next validation."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        first = self.trainer.global_step
        return self._loader(
            StepBatches(self.train_crops, self.train.batch_size, self.train.seed, rank, world),
            range(first, first + self.train.validate_every),
            self.train.workers,
        )

    def val_dataloader(self):
        """The whole validation set, in order."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = EvenBatches(self.val_crops, self.train.batch_size, rank, world)
        return self._loader(batches, range(len(batches)), self.train.workers)


class Training(lightning.LightningModule):
    """What happens in a step, at a validation, and when a run is saved."""

    def __init__(
        self, settings, run_dir, network, hand, task, data_digest, before=None, start=None
    ):
        super().__init__()
        self.settings, self.run_dir, self.data_digest = settings, run_dir, data_digest
        self.hand, self.task = hand, task
        self.network = network.to(memory_format=torch.channels_last)
        if settings.train.compile:
            self.network.compile()
        self.before, self.start = before, start
        self.history = list(before["history"]) if before else []
        self.watch = Watch(before["watch"] if before else None)
        self.progress = Progress(settings.train, task)
        self.generator = torch.Generator()
        self.sums, self.count = {}, 0

    # --- batches -------------------------------------------------------------------------------

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Augment on the device, before mixed precision is switched on."""
        size = self.settings.model.image_size
        if not self.trainer.training:
            return centre_crop(batch, size)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        own = len(batch["image"])
        self.generator.manual_seed(_seed(self.settings.train.seed, batch["step"], 0))
        return augment(
            batch,
            self.settings.augment,
            size,
            self.generator,
            part=slice(rank * own, (rank + 1) * own),
            count=world * own,
        )

    def losses(self, batch):
        """The network's output for a batch, and the parts of its loss."""
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        output = self.network(image)
        return output, self.task.losses(self.network, output, batch, self.settings)

    def _add(self, parts, weight=1):
        """Add parts of the loss to the running sums, without waiting for the device."""
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0) + weight * value.detach().float()
        self.count += weight

    def _means(self, prefix):
        """The means since the last call, over all processes."""
        names = sorted(self.sums)
        stacked = torch.stack(
            [
                *(self.sums[name].double() for name in names),
                torch.tensor(self.count, dtype=torch.float64, device=self.device),
            ]
        )
        total = self.trainer.strategy.reduce(stacked, reduce_op="sum").tolist()
        self.sums, self.count = {}, 0
        return {f"{prefix}{name}": v / total[-1] for name, v in zip(names, total, strict=False)}

    # --- training ------------------------------------------------------------------------------

    def configure_optimizers(self):
        train = self.settings.train
        parameters = parameter_groups(self.network, train.stem_rate)
        for group in parameters:
            group["lr"] = train.learning_rate * group["rate"]
        if train.optimizer == "rmsprop":
            optimizer = torch.optim.RMSprop(
                parameters, lr=train.learning_rate, weight_decay=train.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(
                parameters,
                lr=train.learning_rate,
                weight_decay=train.weight_decay,
                fused=True,
            )
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=train.plateau_factor, patience=train.plateau_patience
        )
        if self.before:
            self.plateau.load_state_dict(self.before["plateau"])
        return optimizer

    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        """As Lightning does it, which refuses fused optimisers for the sake of float16's scaler.

        The optimiser has the weights in a list; asking the network's modules takes 8 ms of a step.
        """
        if gradient_clip_val:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, gradient_clip_val)

    def on_train_start(self):
        self.progress.start(self.trainer.global_step)

    def on_train_epoch_start(self):
        self.chunk_started, self.chunk_first = time.monotonic(), self.trainer.global_step

    def on_train_batch_start(self, batch, batch_idx):
        train = self.settings.train
        self._check_losses()
        # Dropout draws from (seed, step, process) as well; see the top of this file. The device's
        # own generator, since torch.manual_seed takes a millisecond to record who called it.
        cuda = self.device.type == "cuda"
        dice = torch.cuda.default_generators[self.device.index] if cuda else torch.default_generator
        dice.manual_seed(_seed(train.seed, batch["step"], 1 + self.global_rank))
        if train.schedule in SCHEDULES:
            share = SCHEDULES[train.schedule](batch["step"], train.steps)
            for group in self.optimizers().param_groups:
                group["lr"] = train.learning_rate * group["rate"] * share

    def training_step(self, batch, batch_idx):
        parts = self.losses(batch)[1]
        # The same for all processes, whose gradients are averaged.
        self.generator.manual_seed(_seed(self.settings.train.seed, batch["step"], 0, 1))
        beside = self.task.beside(self.network, self.settings, self.generator)
        self._add({**parts, **beside})
        total = sum(beside.values(), parts["total"])
        self.watch.put(batch["step"], batch["index"], total)
        return total

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.is_global_zero:
            self.progress.show(self.trainer.global_step)

    def _check_losses(self):
        """Stop where the loss is not finite or explodes; see `Watch`."""
        bad = self.watch.check()
        if bad is None:
            return
        crops = self.trainer.datamodule.train_crops
        step, loss, indices, earlier = bad
        saved = self.run_dir / "checkpoints" / "last.ckpt"
        raise HamrError(
            f"training stopped at step {step}: the loss is {loss:g} (running mean "
            f"{self.watch.mean:g}). Samples of this batch: {_name(crops, indices)}; of the batch "
            f"before: {_name(crops, earlier)}. "
            + (f"The last good checkpoint is {saved}" if saved.is_file() else "Nothing was saved")
        )

    # --- validation ----------------------------------------------------------------------------

    def on_validation_start(self):
        self._check_losses()  # waits for the device: the time below is of finished work
        seconds = time.monotonic() - self.chunk_started
        images = (self.trainer.global_step - self.chunk_first) * self.settings.train.batch_size
        self.row = {
            "step": self.trainer.global_step,
            "learning_rate": self.optimizers().param_groups[0]["lr"],
            **self._means("train_"),
            "images_per_second": images / seconds,
        }
        if self.start:
            share = self.settings.train.start_share
            self.own = lean(self.network, self.start, share)

    def validation_step(self, batch, batch_idx):
        output, parts = self.losses(batch)
        parts[self.task.judged_by] = self.task.error(self.network, output, batch)
        self._add(parts, weight=len(batch["image"]))

    def on_validation_epoch_end(self):
        self.row |= self._means("val_")
        self.history.append(self.row)
        if self.settings.train.schedule == "plateau":
            self.plateau.step(self.row["val_total"])

    def on_validation_end(self):
        """Save what was validated, if it is the best; then the training's own weights are back."""
        judged_by = f"val_{self.task.judged_by}"
        best = min(row[judged_by] for row in self.history)
        if self.trainer.is_global_zero and self.row[judged_by] == best:
            path = self.run_dir / "checkpoints" / "best.ckpt"
            checkpoint.save_model(path, self.network, self._description())
        if self.start:
            self.network.load_state_dict(self.own)

    # --- saving --------------------------------------------------------------------------------

    def on_train_epoch_end(self):
        """Write last and log, after best. A kill between any two leaves a run to go on from."""
        folder = self.run_dir / "checkpoints"
        train, step = self.settings.train, self.trainer.global_step
        if train.schedule == "trapezoid":
            if step <= fall_begins(train.steps) < step + train.validate_every:
                self.trainer.save_checkpoint(folder / "held.ckpt")
        self.trainer.save_checkpoint(folder / "last.ckpt")
        if self.trainer.is_global_zero:
            _write_log(self.run_dir, self.history)
            self.progress.show(self.trainer.global_step, self.row)

    def _description(self):
        step, row = self.trainer.global_step, self.row
        return checkpoint.describe(
            self.settings, self.data_digest, self.hand, step, row, self.task.name
        )

    def on_save_checkpoint(self, content):
        content["hamr"] = {
            **self._description(),
            "history": self.history,
            "watch": self.watch.state(),
            "plateau": self.plateau.state_dict(),
        }


class Watch:
    """Looks at each loss one step late, so that the device never waits to be looked at."""

    def __init__(self, state=None):
        self.mean, self.seen = state or (0.0, 0)
        self.pending = None
        self.earlier = None

    def put(self, step, indices, loss):
        """Remember the loss of a step; on a GPU it is fetched while the step goes on."""
        loss = loss.detach()
        if loss.is_cuda:
            loss = loss.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        else:
            ready = None
        self.pending = step, indices, loss, ready

    def check(self):
        """None if the last loss was good, else (step, loss, its indices, those before)."""
        if self.pending is None:
            return None
        step, indices, loss, ready = self.pending
        if ready is not None:
            ready.synchronize()
        loss = loss.item()
        if not math.isfinite(loss) or (self.seen >= SETTLED and loss > EXPLODED * self.mean):
            return step, loss, indices, self.earlier
        self.seen += 1
        self.mean += (loss - self.mean) * max(0.01, 1 / self.seen)
        self.pending, self.earlier = None, indices
        return None

    def state(self):
        """Plain values, from which an interrupted run goes on."""
        return [self.mean, self.seen]


class Progress:
    """Now and then a line, with an estimate of what is left: fit for a terminal and for a log."""

    def __init__(self, train, task=None):
        self.train, self.task = train, task or Task()

    def start(self, step):
        """Begin counting time at this step."""
        self.first, self.started = step, time.monotonic()
        self.shown = self.started

    def show(self, step, row=None):
        """Print a line if it has been a while, or if there is a validation to tell of."""
        now = time.monotonic()
        done = step - self.first
        if done < 1 or (row is None and now - self.shown < 30):
            return
        elapsed = now - self.started
        left = elapsed * (self.train.steps - step) / done
        # At most some fifty lines between validations, however long the run.
        if row is None and now - self.shown < (elapsed + left) / 50:
            return
        self.shown = now
        text = f"step {step} of {self.train.steps}, {_clock(elapsed)} passed, {_clock(left)} left"
        if row:
            text += (
                f", train loss {row['train_total']:.4g}, validation loss {row['val_total']:.4g}, "
                f"{self.task.told.format(row[f'val_{self.task.judged_by}'])}, "
                f"{row['images_per_second']:.1f} images/s"
            )
        print(text, file=sys.stderr, flush=True)


class CheckpointIO(TorchCheckpointIO):
    """Lightning's way to files, through our own: aside and renamed, and never running code."""

    def save_checkpoint(self, content, path, storage_options=None):
        checkpoint.save(path, content)

    def load_checkpoint(self, path, map_location=None, weights_only=True):
        return checkpoint.read(path)


def cosine(step, steps):
    """The share of the learning rate at a step: up in a straight line, then half a cosine down."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def trapezoid(step, steps):
    """The share of the learning rate at a step: up in a straight line, level, and 1 - sqrt down.

    All but the end is the same however long the run; and it ends as well as the cosine does, best
    with a long fall that is steep at first (Hägele et al. 2024).
    """
    begins = fall_begins(steps)
    fallen = max(0, step - begins) / (steps - begins)
    return min(1, (step + 1) / WARM_STEPS, 1 - math.sqrt(fallen))


def fall_begins(steps):
    """The last step of the trapezoid's level part."""
    return steps - max(1, round(FALL * steps))


SCHEDULES = {"cosine": cosine, "trapezoid": trapezoid}


def _trainer(settings):
    train = settings.train
    quiet()
    devices, nodes = train.devices, train.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    cuda = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = cuda
    return lightning.Trainer(
        accelerator="cuda" if cuda else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy() if devices * nodes > 1 else "auto",
        sync_batchnorm=cuda and devices * nodes > 1,
        use_distributed_sampler=False,  # the batches know their process
        precision="bf16-mixed" if precision(train) == "bf16" else "32-true",
        max_epochs=train.steps // train.validate_every,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=train.clip or None,
        plugins=[CheckpointIO()],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def quiet():
    """A run tells its own progress; Lightning's banners, tips and warnings would drown it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for noise in (
        "does not have many workers",  # they would take a CPU's cores away
        "resuming from a checkpoint",  # always at the end of an epoch
        "You have overridden `on_after_batch_transfer`",  # as intended
        "LeafSpec",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", f".*{noise}")


def precision(train):
    """The precision a run will have: bf16 where asked for and the processor has it."""
    if train.precision == "bf16" and not torch.cuda.is_available():
        if not torch.cpu._is_avx512_bf16_supported():
            print(
                "train.precision=bf16: this processor has no bf16, training in 32", file=sys.stderr
            )
            return "32"
    return train.precision


def _seed(*parts):
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _name(crops, indices):
    if indices is None:
        return "none"
    return ", ".join(f"{i} ({crops.keys[i]})" for i in indices.tolist())


def _write_log(run_dir, history):
    with write_aside(run_dir / "log.csv") as aside, open(aside, "w", newline="") as file:
        writer = csv.DictWriter(file, history[0].keys())
        writer.writeheader()
        writer.writerows(history)


def _clock(seconds):
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds) % 60:02d}"
