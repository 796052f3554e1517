"""What training and inference cost: the second half of `make bench`.

Everything runs on crops of noise with labels of random hands, held in memory: what an image shows
does not change what it costs. Loops that are compared take turns within one process.
"""

import dataclasses
import time

import numpy as np
import torch

from hamr_lib.config import load_settings
from hamr_lib.data.augment import augment, centre_crop
from hamr_lib.data.crops import Crops, stored_size
from hamr_lib.evaluation.predict import best_device
from hamr_lib.hand.layer import load_hand
from hamr_lib.losses import hamr_losses
from hamr_lib.model.hamr import HAMR
from hamr_lib.training import loop
from hamr_lib.training.run import Run
from hamr_lib.training.task import Task

WINDOW = 6  # steps of one loop before it is the other's turn
# So low that no network learns from the noise. One that does recovers larger hands, which take
# longer to draw, and would be compared with one that draws small ones.
LEARNING_RATE = 1e-6
# What is measured: its name, the profile, turns of both loops, and samples a batch.
SIZES = (("cpu profile", "cpu", 12, 32), ("paper size", "gpu", 3, 8))


def noise_crops(settings, hands, seed=0):
    """`Crops` of noise, labelled with `bench.Hands` (B of them)."""
    count, size = len(hands.camera), settings.model.image_size
    stored = stored_size(size, settings.augment)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 4, stored, stored), dtype=np.uint8)
    with torch.no_grad():
        joints = hands.hand(hands.betas, hands.global_orient, hands.hand_pose).joints
    flat = hands.camera[:, None, :1] * joints[..., :2] + hands.camera[:, None, 1:]
    everywhere = np.ones((count, 21), bool)
    labels = {
        "joints_2d": flat.numpy(),
        "joints_3d": (joints - joints[:, :1]).numpy(),
        "valid_2d": everywhere,
        "valid_3d": everywhere,
        "has_mask": np.ones(count, bool),
        "root": np.tile(np.float32([0, 0, 0.5]), (count, 1)),
        "has_root": np.ones(count, bool),
        "center": np.full((count, 2), size / 2, np.float32),
        "side": np.full(count, size, np.float32),
        "left": np.zeros(count, bool),
    }
    rows = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    return Crops([pixels], rows, labels, [str(i) for i in range(count)], "noise", size)


class Bare:
    """The network alone: forward, losses, backward and step, on one batch that is ready.

    What the study teaches it beside the images (`train.lift_beside`) is one of its losses.
    """

    def __init__(self, settings, crops, hand):
        torch.manual_seed(0)
        self.task, self.generator = Task(), torch.Generator().manual_seed(0)
        self.settings, self.device = settings, best_device()
        self.half = loop.precision(settings.train) == "bf16"
        self.network = HAMR(settings.model, hand)
        self.network.to(self.device, memory_format=torch.channels_last).train()
        weights = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, fused=True)
        self.crops, self.weights = crops, weights
        self.batch = self.augmented(self.load())
        self.spent = {}

    def load(self):
        batch = self.crops.batch(np.arange(self.settings.train.batch_size))
        return {key: value.to(self.device) for key, value in batch.items()}

    def augmented(self, batch):
        size, generator = self.settings.model.image_size, torch.Generator().manual_seed(0)
        batch = augment(batch, self.settings.augment, size, generator)
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        return {**batch, "image": image}

    def step(self):
        """One step; the seconds of each part are added up in `spent`."""
        clock = self._clock
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            output = clock("forward", lambda: self.network(self.batch["image"]))
            without, only = silhouette_apart(self.settings.losses)
            faces = self.network.hand.faces
            total = clock("losses", lambda: hamr_losses(output, self.batch, without, faces))
            total = total["total"]
            if only.silhouette:
                drawn = clock("silhouette", lambda: hamr_losses(output, self.batch, only, faces))
                total = total + drawn["total"]
            if self.settings.train.lift_beside:
                total = total + clock("lifting", self._beside)
        clock("backward", total.backward)
        clock("step", self._move)

    def _beside(self):
        return sum(self.task.auxiliary_losses(self.network, self.settings, self.generator).values())

    def _move(self):
        if self.settings.train.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.settings.train.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _clock(self, name, function):
        started = time.perf_counter()
        result = function()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.spent[name] = self.spent.get(name, 0) + time.perf_counter() - started
        return result


def silhouette_apart(losses):
    """`config.Losses` without the silhouette, and the silhouette's alone."""
    others = {
        field.name: 0.0
        for field in dataclasses.fields(losses)
        if field.type is float and field.name not in ("silhouette", "heatmap_variance")
    }
    return dataclasses.replace(losses, silhouette=0.0), dataclasses.replace(losses, **others)


def loop_and_bare(settings, crops, hand, turns):
    """Images a second of the training loop and of the bare network, taking turns.

    Returns:
        (loop, bare, ratio, `Bare`): medians over the turns; the ratio is that of each turn's two
        windows, which a machine that slows down for a while slows alike.
    """
    steps = WINDOW * turns
    short = dataclasses.replace(
        settings.train, steps=steps, validate_every=steps, learning_rate=LEARNING_RATE
    )
    settings = dataclasses.replace(settings, train=short)
    bare = Bare(settings, crops, hand)
    torch.manual_seed(0)
    fabric, network = loop.start_fabric(settings.train), HAMR(settings.model, hand)
    run = Run(fabric, settings, network, Task(), crops, crops)
    own, others, begun = [], [], time.perf_counter()
    for batch in run.batches():
        run.step(batch)
        if run.done % WINDOW:
            continue
        own.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for _ in range(WINDOW):
            bare.step()
        others.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    # The first turn also pays for compiling kernels and growing memory.
    own, others = np.array(own[1:]), np.array(others[1:])
    images = WINDOW * settings.train.batch_size
    loop_speed, alone = images / np.median(own), images / np.median(others)
    return loop_speed, alone, np.median(others / own), bare


class _OneByOne(torch.utils.data.Dataset):
    """Crops that are read and augmented one at a time, as the plain loop does."""

    def __init__(self, settings, crops):
        self.settings, self.crops = settings, crops

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        size, generator = self.settings.model.image_size, torch.Generator().manual_seed(index)
        batch = augment(self.crops.batch([index]), self.settings.augment, size, generator)
        return {key: value[0] for key, value in batch.items()}


def plain_loop(settings, crops, hand, steps):
    """Images a second of the loop one writes first, on the processor that the study would use.

    Single precision, eager, channels first, an optimiser that goes through the weights one by one,
    and samples one at a time through the loader.
    """
    torch.manual_seed(0)
    task, generator = Task(), torch.Generator().manual_seed(0)
    device, size = best_device(), settings.train.batch_size
    network = HAMR(settings.model, hand).to(device).train()
    weights = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, foreach=False)
    loader = torch.utils.data.DataLoader(_OneByOne(settings, crops), batch_size=size)
    times, begun = [], time.perf_counter()
    while len(times) <= steps:
        for batch in loader:
            batch = {key: value.to(device) for key, value in batch.items()}
            output = network(batch["image"])
            loss = hamr_losses(output, batch, settings.losses, network.hand.faces)["total"]
            beside = task.auxiliary_losses(network, settings, generator)
            loss = sum(beside.values(), loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            times.append(time.perf_counter() - begun)
            begun = time.perf_counter()
    return size / min(times[1:])


@torch.inference_mode()
def inference(settings, crops, hand, count, repeats):
    """Milliseconds an image from the stored crop to the mesh, in batches of `count`."""
    device, size = best_device(), settings.model.image_size
    network = HAMR(settings.model, hand).to(device, memory_format=torch.channels_last).eval()
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        batch = centre_crop(crops.batch(np.arange(count)), size)
        image = batch["image"].to(device).contiguous(memory_format=torch.channels_last)
        network(image).estimates[-1].vertices.cpu()
        times.append(time.perf_counter() - started)
    return 1000 * min(times[1:]) / count


def rows(random_hands):
    """Rows (name, value, unit) for the `cpu` profile, and for the paper's size.

    Args:
        random_hands: `bench.random_hands`.
    """
    for name, profile, turns, batch in SIZES:
        if torch.cuda.is_available():
            batch *= 2
        settings = load_settings(profile, train__batch_size=batch, hand__model="open")
        hand = load_hand("open", pose_components=settings.hand.pose_components)
        crops = noise_crops(settings, random_hands(batch))
        where = f"{name}, batch {batch}"
        own_loop, bare, ratio, parts = loop_and_bare(settings, crops, hand, turns)
        yield f"training loop, {where}", own_loop, "images a second"
        yield f"bare network, {where}", bare, "images a second"
        yield f"loop / bare network, {where}", ratio, "times"
        yield from _shares(parts, where)
        plain = plain_loop(settings, crops, hand, WINDOW)
        yield f"plain loop, {where}", plain, "images a second"
        yield f"loop / plain loop, {where}", own_loop / plain, "times"
        for count in (1, batch):  # so often that a slow moment of the machine does not cover all
            spent = inference(settings, crops, hand, count, 8 * turns)
            yield f"inference, crop to mesh, {name}, batch {count}", spent, "ms an image"


def _shares(bare, where):
    """Rows: how a step's time divides, each part measured by itself."""
    bare.spent = {}
    for _ in range(WINDOW):
        loaded = bare._clock("load", bare.load)
        bare._clock("augment", lambda loaded=loaded: bare.augmented(loaded))
        bare.step()
    whole = sum(bare.spent.values())
    for name, spent in bare.spent.items():
        yield f"share of {name}, {where}", 100 * spent / whole, "%"
    yield f"a step's parts together, {where}", 1000 * whole / WINDOW, "ms"
