"""The state of a run: the network, its optimiser, one step, one validation, and what is saved."""

import time

import numpy as np
import torch

from hamr_lib.data.augment import augment, centre_crop
from hamr_lib.data.crops import EvenBatches, StepBatches
from hamr_lib.errors import HamrError
from hamr_lib.model import checkpoint
from hamr_lib.training.schedule import SCHEDULES, WeightAverage, make_optimizer
from hamr_lib.training.watch import Diverged, Watch


class Run:
    """A network in training.

    Attributes:
        done: number of steps done.
        network: the module that is trained; `model` wraps it for precision and several devices.
        validated: the module that is validated and saved: the average of weights, or `network`.
        history: a dict a validation, as `loop.fit` describes them.
        errors: `val_metric` of each validation sample, (N,) a validation.
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
        self.watch = Watch(train_crops.keys)
        self.generator = torch.Generator()
        self.done, self.history, self.errors = 0, [], []
        self.sums, self.seconds, self.mark = {}, 0.0, time.monotonic()

    # --- training ------------------------------------------------------------------------------

    def batches(self):
        """The training batches from here to the end, this process's part of each."""
        train, fabric = self.settings.train, self.fabric
        parts = fabric.global_rank, fabric.world_size
        batches = StepBatches(self.train_crops, train.batch_size, train.seed, *parts)
        return self._loader(batches, range(self.done, train.steps))

    def _loader(self, batches, order):
        workers = self.settings.train.workers
        loader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,  # an item is a batch already
            sampler=order,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
        )
        return self.fabric.setup_dataloaders(loader, use_distributed_sampler=False)

    def augmented(self, batch):
        """A training batch as the network sees it."""
        settings, rank, own = self.settings, self.fabric.global_rank, len(batch["index"])
        return augment(
            batch,
            settings.augment,
            settings.model.image_size,
            self._seeded(batch["step"], 0),
            part=slice(rank * own, (rank + 1) * own),
            count=self.fabric.world_size * own,
        )

    def step(self, batch):
        """One step of the optimiser on one of `batches`."""
        self.watch.check()
        settings, step, train = self.settings, batch["step"], self.settings.train
        if train.schedule in SCHEDULES:
            factor = SCHEDULES[train.schedule](step, train.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = train.learning_rate * group["rate"] * factor
        batch = self.augmented(batch)
        self._seed_dropout(step)
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
        _add(self.sums, {**parts, **auxiliary, "steps": torch.ones_like(total)})
        self.done = step + 1

    def _seeded(self, *purpose):
        return self.generator.manual_seed(seed_of(self.settings.train.seed, *purpose))

    def _seed_dropout(self, step):
        """Seed the device's own generator; torch.manual_seed takes a millisecond."""
        device = self.fabric.device
        cuda = device.type == "cuda"
        dice = torch.cuda.default_generators[device.index] if cuda else torch.default_generator
        dice.manual_seed(seed_of(self.settings.train.seed, step, 1 + self.fabric.global_rank))

    # --- validation ----------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self):
        """Measure the validated module on all validation samples; returns the new row."""
        self._stop_clock()
        settings, task, fabric = self.settings, self.task, self.fabric
        module = self.validated.eval()
        if fabric.world_size > 1:  # each process has seen its own part of the batches
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
        parts = settings.train.batch_size, fabric.global_rank, fabric.world_size
        batches = EvenBatches(self.val_crops, *parts)
        sums, errors = {}, torch.zeros(len(self.val_crops), device=fabric.device)
        for batch in self._loader(batches, range(len(batches))):
            batch = centre_crop(batch, settings.model.image_size)
            with fabric.autocast():
                output = module(channels_last(batch["image"]))
                losses = task.losses(module, output, batch, settings)
                errors[batch["index"]] = task.error(module, output, batch)
            losses["count"] = torch.ones_like(losses["total"])
            _add(sums, {k: len(batch["index"]) * loss for k, loss in losses.items()})
        self.network.train()
        trained, measured = self._means(self.sums, "steps"), self._means(sums, "count")
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
            **{f"train_{name}": value for name, value in trained.items()},
            "images_per_second": (self.done - before) * settings.train.batch_size / self.seconds,
            **{f"val_{name}": value for name, value in measured.items()},
            f"val_{task.val_metric}": error,
        }
        self.history.append(row)
        self.errors.append(errors)
        if settings.train.schedule == "plateau":
            self.plateau.step(row["val_total"])
        self.sums, self.seconds, self.mark = {}, 0.0, time.monotonic()
        return row

    def is_best(self):
        """Whether the last validation has the least error of all."""
        errors = [row[f"val_{self.task.val_metric}"] for row in self.history]
        return errors[-1] == min(errors)

    def _means(self, sums, count):
        """Sums by name, over all processes, divided by the one that counts."""
        sums = self._reduced(sums)
        return {name: value / sums[count] for name, value in sums.items() if name != count}

    def _reduced(self, sums):
        return {k: self.fabric.all_reduce(v, reduce_op="sum").item() for k, v in sums.items()}

    def _stop_clock(self):
        self.watch.check()  # waits for the device: the time is of finished work
        now = time.monotonic()
        self.seconds, self.mark = self.seconds + now - self.mark, now

    # --- saving --------------------------------------------------------------------------------

    def describe(self, hand, data):
        """The `hamr` part of a checkpoint."""
        row = self.history[-1] if self.history else {}
        return checkpoint.describe(self.settings, data, hand, self.done, row, self.task.name)

    def save(self, path, hand, data):
        """Write last.ckpt, from which `load` resumes. All processes call this."""
        self._stop_clock()
        run = {
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
            "watch": self.watch.state,
            "sums": self._reduced(self.sums),
            "seconds": self.seconds,
            "errors": self.errors,
        }
        if self.average:
            run["network"] = self.network.state_dict()
            run["averaged"] = self.average.n_averaged
        if self.fabric.is_global_zero:
            hamr = {**self.describe(hand, data), "history": self.history}
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


def channels_last(image):
    """Images (B, 3, S, S) in the memory order that the network has."""
    return image.contiguous(memory_format=torch.channels_last)


def seed_of(*parts):
    """A seed from whole numbers, the run's first."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _add(sums, values):
    """Add scalars by name to sums, without waiting for the device."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value.detach().float()
