"""How the localiser learns to find hands, and how well it does.

It is trained on the whole images of RHD (or its stand-in), which label both hands, and on frames
cut from them: hands from afar and filling the frame, turned, mirrored, and frames without a hand.
A run is a function of settings and data: what a step sees is drawn from (seed, step).
"""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import lightning
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.io import TorchCheckpointIO

from hamr_lib.data import registry
from hamr_lib.data.augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    draw,
)
from hamr_lib.data.photographs import TITLE, Photographs, find_photographs
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics
from hamr_lib.evaluation.predict import best_device
from hamr_lib.evaluation.scores import COLUMNS, write_rows
from hamr_lib.files import commit, digest
from hamr_lib.model import checkpoint
from hamr_lib.model.backbone import PretrainedStem
from hamr_lib.model.hamr import load_model
from hamr_lib.recovery.localiser import (
    MATCH,
    SIDES,
    HandSegmenter,
    candidates,
    distinct,
    load_localiser,
    overlap,
)
from hamr_lib.recovery.result import seen
from hamr_lib.render.draw2d import contact_sheet
from hamr_lib.render.draw2d import fit as fit_image
from hamr_lib.training.loop import precision
from hamr_lib.training.schedule import cosine
from hamr_lib.training.watch import Progress

PIXELS = 100  # of a hand that is shown at all
COLOURS = {"left": (86, 180, 233), "right": (230, 159, 0)}
GRID = np.arange(0.5, 0.96, 0.025)  # thresholds to choose from
ENOUGH = 200  # held-out images to choose by


def fit(settings, run_dir, frames, model=None):
    """Train a localiser, or go on where an earlier call was interrupted.

    When the model it began from has been trained further since, it is trained anew.

    HandSegNet started from the weights of a network for people's poses. Ours starts from the stem
    of a network that has learnt hands.

    Args:
        settings: `Settings`; its sections `localiser`, `augment` (colours) and `data.validation`.
        run_dir: folder of the run; receives checkpoints/localiser.ckpt.
        frames: `data.rhd.RHD` of the training split. A share of them is held out: on it the
            threshold is chosen.
        model: a trained `hamr.HAMR`, which sees what is found, too (`result.seen`). None, or one
            with a stem of another kind, has the localiser start from what ImageNet taught.

    Returns:
        list of dicts, one a checkpoint: step and loss.

    Raises:
        HamrError: for settings or data other than the run's, a broken checkpoint, or a loss that
            is not finite.
    """
    options, seed = settings.localiser, settings.train.seed
    if options.steps % options.save_every:
        raise HamrError(
            f"localiser.steps={options.steps} is not a multiple of "
            f"localiser.save_every={options.save_every}"
        )
    training, validation = split(frames, settings)
    path = Path(run_dir) / "checkpoints" / "localiser.ckpt"
    torch.manual_seed(seed)
    network = HandSegmenter(options)
    if model is not None and isinstance(model.pose_module.stem, PretrainedStem):
        network.start_from(model.pose_module.stem)
    identity = {
        "data_digest": digest(frames.split, len(frames), frames.uv_vis.astype(float).sum().item()),
        "start": _digest_of_weights(network.stem),
    }
    before = None
    if path.is_file():
        content = checkpoint.read(path)
        _check_same(path, content["hamr"], settings, identity)
        # One that began from a network that was then trained on is of no use to it.
        if content["hamr"].get("start") == identity["start"]:
            before = content["hamr"]
            checkpoint.load_state(path, network, checkpoint.model_state(content))
    if before and before["threshold"] is not None:
        return before["history"]

    module = Training(settings, path, network, identity, before)
    if not before or before["step"] < options.steps:
        batches = FrameBatches(frames, training, settings)
        _trainer(settings).fit(
            module, datamodule=FrameData(batches), ckpt_path=str(path) if before else None,
            weights_only=True,
        )  # fmt: skip
    network.eval()
    threshold = choose_threshold(network, model, frames, validation[:ENOUGH], seed)
    content = checkpoint.read(path)
    content["hamr"] = {**content["hamr"], "threshold": threshold}
    checkpoint.save(path, content)
    return module.history


def split(frames, settings):
    """Indices of the training and of the held-out images, as `data.validation` says."""
    order = np.random.default_rng([settings.train.seed, 1]).permutation(len(frames))
    held = max(1, round(settings.data.validation * len(frames)))
    if held >= len(frames):
        raise HamrError(f"{len(frames)} images cannot be split into training and validation")
    return order[held:], order[:held]


def find(finder, model, photo):
    """The hands of a photo (H, W, 3) uint8, as list of `Find`: those of `result.recover`, which
    only goes on to take finds whose meshes come out alike for one.

    Args:
        finder: (network, threshold) as `load_localiser` gives them.
        model: `hamr.HAMR`; None leaves it at what the localiser finds.
    """
    network, threshold = finder
    return distinct(_candidates(network, model, photo, threshold), threshold)


def _candidates(network, model, photo, threshold, within=None):
    levels = candidates(network, photo, within)
    return levels if model is None else seen(model, photo, levels, threshold)


def examples(finder, model, frames, indices):
    """A sheet of images with the found hands' boxes (h, w, 3) uint8: left ones blue, right ones
    orange, the labelled joints' boxes white."""
    sheet = []
    for index in indices:
        image, hands, joints = frames.both_hands(int(index))
        boxes = [(box, (255, 255, 255)) for box, _, _ in true_hands(hands, joints)]
        for found in find(finder, model, image):
            boxes.append((found.box, COLOURS[found.side]))
        drawn = fit_image(image, 320)
        scale = len(drawn) / len(image)
        for box, colour in boxes:
            corners = np.rint((np.array(box) + 0.5) * scale - 0.5).astype(int).tolist()
            cv2.rectangle(drawn, corners[:2], corners[2:], colour, 2)
        sheet.append(drawn)
    return contact_sheet(sheet, columns=4, size=240)


def _check_same(path, before, settings, identity):
    """Refuse to go on from a localiser of other settings or data."""
    if before.get("kind") != "localiser":
        raise HamrError(f"{path} is no localiser: expected one, or no such file")
    ours = settings.to_dict()
    for key in ("localiser", "augment"):
        old, new = before["settings"][key], ours[key]
        for name in new:
            if old.get(name) != new[name]:
                raise HamrError(
                    f"{path} was trained with {key}.{name}={old.get(name)!r}, but this run asks "
                    f"for {new[name]!r}: use the same settings or another folder"
                )
    for name, old, new in (
        ("seed", before["seed"], settings.train.seed),
        ("data", before["data_digest"], identity["data_digest"]),
    ):
        if old != new:
            raise HamrError(
                f"{path} was trained with {name} {old}, but this run has {new}: use the same or "
                "another folder"
            )


def _digest_of_weights(module):
    weights = (weight.numpy().tobytes() for weight in module.state_dict().values())
    return hashlib.sha256(b"".join(weights)).hexdigest()[:12]


class FrameBatches(torch.utils.data.Dataset):
    """The batches of a training run: [step] -> image and hands, a pure function of (seed, step).

    image (B, S, S, 3) uint8 RGB; hands (B, S, S) uint8: 0 background, 1 left hand, 2 right hand.
    """

    def __init__(self, frames, indices, settings):
        self.frames, self.indices = frames, indices
        self.options, self.seed = settings.localiser, settings.train.seed
        self.threads = ThreadPoolExecutor()  # decoding takes as long as half a step

    def __getitem__(self, step):
        rngs = np.random.default_rng([self.seed, 2, step]).spawn(self.options.batch_size)
        views = self.threads.map(self._view, rngs)
        image, hands = (torch.from_numpy(np.stack(part)) for part in zip(*views, strict=True))
        return {"step": step, "image": image, "hands": hands}

    def _sample(self, rng):
        return self.frames.both_hands(int(rng.choice(self.indices)))[:2]

    def _view(self, rng):
        options = self.options
        image, hands = self._sample(rng)
        chosen = empty_square(hands, rng) if rng.random() < options.negatives else None
        if chosen is None:
            chosen = hand_square(hands, rng, options.zoom)
        centre, side = chosen
        angle = math.radians(rng.uniform(-options.rotation, options.rotation))
        mirror = rng.random() < 0.5
        view, labels, inside = turned(image, hands, centre, side, angle, mirror, options.image_size)
        # Beyond the photo is black, as beside a photo that is not square; or another photo.
        if rng.random() < 0.5 and inside.mean() < 0.9:
            other, its_hands = self._sample(rng)
            centre = (np.array(other.shape[1::-1]) - 1) / 2
            side = rng.uniform(0.6, 1.0) * min(other.shape[:2])
            other, its_hands, _ = turned(
                other, its_hands, centre, side, 0.0, rng.random() < 0.5, options.image_size
            )
            view = np.where(inside[..., None], view, other)
            labels = np.where(inside, labels, its_hands)
        return view, labels


def hand_square(hands, rng, zoom):
    """A square (centre, side) around one of the hands, which takes up a share of it from `zoom`;
    of an image that shows none, the whole."""
    shown = [side for side in (1, 2) if (hands == side).sum() >= PIXELS]
    if not shown:
        return (np.array(hands.shape[::-1]) - 1) / 2, float(max(hands.shape))
    ys, xs = np.nonzero(hands == rng.choice(shown))
    low, high = np.array([xs.min(), ys.min()]), np.array([xs.max(), ys.max()])
    longest = (high - low).max()
    side = longest / rng.uniform(*zoom)
    play = max(side - longest, 0.2 * longest) / 2
    return (low + high) / 2 + rng.uniform(-play, play, 2), float(side)


def empty_square(hands, rng):
    """A square (centre, side) of an image that shows no hand; None where none was met with."""
    height, width = hands.shape
    for _ in range(10):
        side = rng.uniform(0.25, 0.8) * min(height, width)
        x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
        # Turned by any angle the square reaches this far.
        more = side * (math.sqrt(2) - 1) / 2
        low = np.maximum([y - more, x - more], 0).astype(int)
        high = np.ceil([y + side + more, x + side + more]).astype(int)
        if not hands[low[0] : high[0], low[1] : high[1]].any():
            return np.array([x + side / 2, y + side / 2]), float(side)
    return None


def turned(image, hands, centre, side, angle, mirror, size):
    """A square of an image, turned clockwise by angle radians and perhaps mirrored, at `size`
    pixels.

    Returns:
        image (size, size, 3) uint8, hands (size, size) uint8 with the sides swapped if mirrored,
        and inside (size, size) bool, where the photo reaches.
    """
    shrink = max(1.0, side / size)
    if shrink > 1:  # averaged first: warping alone would alias
        shape = [max(1, round(n / shrink)) for n in image.shape[1::-1]]
        ratio = np.array(shape) / image.shape[1::-1]
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        hands = cv2.resize(hands, shape, interpolation=cv2.INTER_NEAREST)
        centre, side = (centre + 0.5) * ratio - 0.5, side / shrink
    step = side / size
    # Where a step to the right and one down in the view lead in the image.
    across = step * np.array([math.cos(angle), -math.sin(angle)]) * (-1 if mirror else 1)
    down = step * np.array([math.sin(angle), math.cos(angle)])
    first = centre - (across + down) * (size - 1) / 2
    matrix = np.column_stack([across, down, first])

    def warp(pixels, flags):
        return cv2.warpAffine(pixels, matrix, (size, size), flags=flags | cv2.WARP_INVERSE_MAP)

    view = warp(image, cv2.INTER_LINEAR)
    labels = warp(hands, cv2.INTER_NEAREST)
    inside = warp(np.ones(hands.shape, np.uint8), cv2.INTER_NEAREST) > 0
    if mirror:
        labels = np.array([0, 2, 1], np.uint8)[labels]
    return view, labels, inside


def segmentation_loss(scores, hands):
    """How far scores are from labels, nats.

    The cross-entropy of the three classes over all pixels, and once more that of the side alone
    over the hands' pixels, each hand counting alike: else small hands and sides would drown in
    the background.

    Args:
        scores: (B, 3, h, h).
        hands: (B, S, S) long, S a multiple of h; each cell's label is the mean of its pixels'.
    """
    factor = hands.shape[-1] // scores.shape[-1]
    wanted = F.avg_pool2d(F.one_hot(hands, 3).permute(0, 3, 1, 2).float(), factor)
    classes = F.cross_entropy(scores, wanted)
    sides = wanted[:, 1:]
    each = -(F.log_softmax(scores[:, 1:], 1) * sides).sum((2, 3))  # (B, 2)
    area = sides.sum((2, 3))
    shown = area > 0
    mean = torch.where(shown, each / area.clamp_min(1e-6), 0).sum() / shown.sum().clamp_min(1)
    return classes + 0.5 * mean


class CheckpointIO(TorchCheckpointIO):
    """Lightning's way to files, through our own: aside and renamed, and never running code."""

    def save_checkpoint(self, content, path, storage_options=None):
        checkpoint.save(path, content)

    def load_checkpoint(self, path, map_location=None, weights_only=True):
        return checkpoint.read(path)


class FrameData(lightning.LightningDataModule):
    """The batches of the steps from here to the next checkpoint."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        first = self.trainer.global_step
        steps = range(first, first + self.batches.options.save_every)
        return torch.utils.data.DataLoader(self.batches, batch_size=None, sampler=steps)


class Training(lightning.LightningModule):
    """What happens in a step of `fit`."""

    def __init__(self, settings, path, network, identity, before):
        super().__init__()
        self.settings, self.path, self.identity = settings, path, identity
        self.network = network.to(memory_format=torch.channels_last)
        self.history = list(before["history"]) if before else []
        self.progress = Progress(settings.localiser.steps)
        self.losses = []

    def configure_optimizers(self):
        options = self.settings.localiser
        return torch.optim.AdamW(
            self.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )

    def on_train_batch_start(self, batch, batch_idx):
        options = self.settings.localiser
        for group in self.optimizers().param_groups:
            group["lr"] = options.learning_rate * cosine(batch["step"], options.steps)

    def training_step(self, batch, batch_idx):
        image = batch["image"].permute(0, 3, 1, 2).float() / 255
        image = self._coloured(image, batch["step"])
        scores = self.network(image.contiguous(memory_format=torch.channels_last))
        loss = segmentation_loss(scores.float(), batch["hands"].long())
        if not torch.isfinite(loss):
            raise HamrError(
                f"the localiser's training stopped at step {batch['step']}: the loss is {loss:g}"
            )
        self.losses.append(loss.detach())
        return loss

    def _coloured(self, image, step):
        """Colours and noise as for the network itself (Section 4.1)."""
        seed = np.random.SeedSequence([self.settings.train.seed, 3, step]).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        size = image.shape[-1]
        drawn = draw(self.settings.augment, len(image), size, generator).to(image.device)
        image = adjust_brightness(image.contiguous(), drawn.brightness)
        image = adjust_contrast(image, drawn.contrast)
        image = adjust_saturation(image, drawn.saturation)
        image = adjust_hue(image, drawn.hue)
        return image.add_(drawn.noise.view_as(image)).clamp_(0, 1)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.progress.show(self.trainer.global_step)

    def on_train_epoch_end(self):
        loss = torch.stack(self.losses).mean().item()
        self.history.append({"step": self.trainer.global_step, "loss": loss})
        self.losses = []
        self.trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, content):
        content["hamr"] = {
            "format": checkpoint.FORMAT,
            "kind": "localiser",
            "settings": self.settings.to_dict(),
            **self.identity,
            "seed": self.settings.train.seed,
            "commit": commit(),
            "step": self.trainer.global_step,
            "history": self.history,
            "threshold": None,  # until the training has ended
        }


def _trainer(settings):
    options = settings.localiser
    return lightning.Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision="bf16-mixed" if precision(settings.train) == "bf16" else "32-true",
        max_epochs=options.steps // options.save_every,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=1.0,
        plugins=[CheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


# --- evaluation ---------------------------------------------------------------------------------


def true_hands(hands, joints_2d):
    """The hands that an image shows.

    Args:
        hands: (H, W) uint8, as `data.rhd.RHD.both_hands` gives it; joints_2d (2, 21, 2).

    Returns:
        list of (box of the joints, cut at the photo's border; side; whether it is shown well
        enough to be scored: by `PIXELS` at least, whose own box overlaps that of the joints by
        half; a hand that hides behind something could not be found by its pixels).
    """
    limits = np.array(hands.shape[::-1]) - 0.5
    found = []
    for code, (side, joints) in enumerate(zip(SIDES, joints_2d, strict=True), start=1):
        if not (hands == code).any():
            continue
        box = np.concatenate([joints.min(0), joints.max(0)]).reshape(2, 2).clip(-0.5, limits)
        ys, xs = np.nonzero(hands == code)
        seen = (xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5)
        clear = len(xs) >= PIXELS and overlap(seen, box.ravel()) >= MATCH
        found.append((tuple(box.ravel().tolist()), side, bool(clear)))
    return found


def match(finds, truth, shape):
    """Pair finds with the true hands of an image, the best overlap first.

    Args:
        finds: list of `Find`; truth: as of `true_hands`; shape: (H, W) of the image.

    Returns:
        hands: list of (overlap, find or None), one for each true hand that is scored.
        false: finds that overlap no hand by half. Those on hands that are not scored are no errors.
    """
    limits = np.array(shape[::-1]) - 0.5
    boxes = [np.reshape(f.box, (2, 2)).clip(-0.5, limits).ravel() for f in finds]
    table = np.array([[overlap(box, true[0]) for box in boxes] for true in truth])
    table = table.reshape(len(truth), len(finds))
    pairs, free = {}, table.copy()
    while free.size and free.max() > 0:
        i, j = np.unravel_index(free.argmax(), free.shape)
        pairs[i] = j
        free[i], free[:, j] = 0, 0
    hands = []
    for i, (_, _, clear) in enumerate(truth):
        if clear:
            hands.append((table[i, pairs[i]], finds[pairs[i]]) if i in pairs else (0.0, None))
    good = {j for i, j in pairs.items() if table[i, j] >= MATCH or not truth[i][2]}
    return hands, [found for j, found in enumerate(finds) if j not in good]


def choose_threshold(network, model, frames, indices, seed):
    """The threshold with the best F1 of boxes, over images and hand-free squares cut from them."""
    rng = np.random.default_rng([seed, 4])
    right, wrong, hands = np.zeros((3, len(GRID)))
    for index in indices:
        image, labels, joints = frames.both_hands(int(index))
        truth = true_hands(labels, joints)
        found = _candidates(network, model, image, GRID[0])
        square, nothing = empty_square(labels, rng), []
        if square is not None:
            centre, side = square
            box = (*(centre - side / 2), *(centre + side / 2))
            nothing = _candidates(network, model, image, GRID[0], box)
        for i, threshold in enumerate(GRID):
            pairs, false = match(distinct(found, threshold), truth, labels.shape)
            hands[i] += len(pairs)
            right[i] += sum(iou >= MATCH for iou, _ in pairs)
            wrong[i] += len(false) + len(distinct(nothing, threshold))
    return float(GRID[np.argmax(2 * right / (hands + right + wrong).clip(1))])


def evaluate(finder, model, settings, frames, dataset):
    """How well hands are found in a set's whole images, as rows of `metrics.csv`.

    Returns:
        DataFrame with `scores.COLUMNS`: box_iou, the mean overlap of found boxes with the boxes
        of the joints; hands_found, the share of hands whose box is overlapped by half;
        side_accuracy, of those found; and finds_right, the share of finds that are on a hand.
        Intervals are from resampling hands (or finds).
    """
    ious, sides, finds_right = [], [], []
    for index in range(len(frames)):
        image, labels, joints = frames.both_hands(index)
        truth = true_hands(labels, joints)
        finds = find(finder, model, image)
        pairs, false = match(finds, truth, labels.shape)
        clear = [side for _, side, seen in truth if seen]
        for (iou, found), side in zip(pairs, clear, strict=True):
            ious.append(iou)
            hit = found is not None and iou >= MATCH
            sides.append(float(found.side == side) if hit else np.nan)
        finds_right += [0.0] * len(false) + [1.0] * (len(finds) - len(false))
    values = {**_hands(ious, sides), "finds_right": finds_right}
    return _rows(values, settings, dataset, frames.split)


def evaluate_photographs(finder, model, settings, frames):
    """How well the hands of `data.photographs.Photographs` are found, as rows of `metrics.csv`.

    As `evaluate`, without finds_right, for not every hand is labelled. A box is that of the joints
    that are seen.
    """
    ious, sides, finds = [], [], {}
    for frame in frames:
        points = frame.joints_2d[np.isfinite(frame.joints_2d).all(1)]
        truth = [((*points.min(0), *points.max(0)), frame.side, True)]
        pixels = frame.image.tobytes()
        if pixels not in finds:
            finds[pixels] = find(finder, model, frame.image)
        [(iou, found)], _ = match(finds[pixels], truth, frame.image.shape[:2])
        ious.append(iou)
        sides.append(float(found.side == frame.side) if iou >= MATCH else np.nan)
    return _rows(_hands(ious, sides), settings, TITLE, "evaluation")


def _hands(ious, sides):
    """The columns of the metrics that are taken over hands."""
    ious = np.array(ious)
    return {
        "box_iou": np.where(ious >= MATCH, ious, np.nan),
        "hands_found": (ious >= MATCH).astype(float),
        "side_accuracy": sides,
    }


def _rows(values, settings, dataset, split):
    """Means of columns by metric, as rows of `metrics.csv`; of one without a number, none."""
    rows = []
    for metric, column in values.items():
        column = np.reshape(column, (-1, 1))
        if not np.isfinite(column).any():
            continue
        draws = metrics.draw(len(column), settings.evaluate.bootstrap)
        low, high = metrics.interval(metrics.bootstrap([column], draws))
        rows.append({
            "dataset": dataset, "split": split, "method": "localiser", "metric": metric,
            "protocol": f"whole images, box IoU >= {MATCH}", "value": np.nanmean(column),
            "ci_low": low, "ci_high": high, "n": int(np.isfinite(column).sum()),
            "seeds": str(settings.train.seed), "source": "measured", "commit": commit(),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def evaluate_run(settings, run_dir):
    """Evaluate a run's localiser on RHD's (or its stand-in's) evaluation images, and on photographs
    where those are (see `data.photographs`).

    Returns:
        The rows of `localiser.csv`, which it writes into the run's folder; see `evaluate`.
    """
    found = registry.find_sets(settings)["rhd"]
    folder = Path(run_dir) / "checkpoints"
    finder = load_localiser(folder / "localiser.ckpt", best_device())
    model, _ = load_model(folder / "best.ckpt", best_device())
    frames = found.load("evaluation", settings.data)
    rows = [evaluate(finder, model, settings, frames, found.title)]
    paths = find_photographs()
    if paths:
        rows.append(evaluate_photographs(finder, model, settings, Photographs(paths)))
    rows = pd.concat(rows, ignore_index=True)
    return write_rows(Path(run_dir) / "localiser.csv", rows)
