"""Cut frames to crops once, keep them on disk, and read them in batches.

The crop rule
-------------
- The *network crop* is a square around the centre of the box of the labelled 2-D joints. Its side
  is `BOX_FACTOR` times the longer side of that box, so that all flesh stays inside.
- Where the wrist has no label (Dexter+Object marks fingertips only) that box says little about the
  hand: it is then taken to be at least as long as `TIPS_SPAN` metres appear at the labels' depth.
- What is stored is larger by the most that the augmentation can reach; beyond the photo's border it
  is black. The network crop is exactly its central `image_size` pixels.
- A left hand is mirrored: its pixels, mask, crop-unit x and metric x. The network sees right hands.
- 3-D labels are relative to the wrist; where it has no label, to the mean of the labelled joints,
  with `has_root` False. `joints_3d + root` is the (mirrored) position in the camera's frame.
- Missing joints are zero with `valid_2d` / `valid_3d` False, so that a NaN never reaches a sum.
"""

import functools
import hashlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

from hamr_lib.camera import pixels_to_crop
from hamr_lib.config import Augment
from hamr_lib.data.frame import Frame
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, digest, read_arrays, read_json, write_aside, write_json
from hamr_lib.joints import WRIST

CACHE = ROOT / "data" / "cache"
BOX_FACTOR = 1.4
TIPS_SPAN = 0.20  # metres
FINEST = 16  # times as fine as a crop that its drawing may be
RULE = 2  # raise whenever this file would cut other crops from the same frames
CHUNK = 256  # frames decoded at once: bounds the memory, whatever the size of the set


def stored_size(image_size: int, augment: Augment | None = None) -> int:
    """Return the side of a stored crop in pixels; without `augment`, it has no margin."""
    if augment is None:
        return image_size
    turn = math.radians(min(augment.rotation, 45.0))
    # How far from the centre, in half sides of the network crop, a corner of it can go.
    reach = (1 + 2 * augment.shift) * (math.cos(turn) + math.sin(turn)) / min(augment.scale[0], 1.0)
    return image_size + 2 * math.ceil(image_size * (reach - 1) / 2)


def crop_square(frame: Frame) -> tuple[np.ndarray, float]:
    """Return the network crop of a frame by the rule above: centre (2,) and side, in pixels."""
    labelled = np.isfinite(frame.joints_2d).all(1)
    points = frame.joints_2d[labelled].astype(np.float64)
    if len(points) < 2:
        raise HamrError(f"{frame.key}: a crop needs 2 labelled joints_2d, got {len(points)}")
    low, high = points.min(0), points.max(0)
    longest, depth = (high - low).max(), frame.joints_3d[:, 2]
    depth = depth[np.isfinite(depth)]
    if not labelled[WRIST] and depth.size and depth.mean() > 0:
        longest = max(longest, TIPS_SPAN * frame.K[0, 0] / depth.mean())
    if longest <= 0:
        raise HamrError(f"{frame.key}: all labelled joints_2d coincide at {points[0]}")
    return (low + high) / 2, BOX_FACTOR * longest


def cut(
    image: np.ndarray, center: np.ndarray, side: float, size: int, mirror: bool = False
) -> np.ndarray:
    """Cut a square out of an image and resample it; where it is shrunk, pixels are averages.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        center, side: of the square, (2,) pixels and pixels.
        size: pixels a side of the result, which is uint8 and black beyond the image.
        mirror: flip the result left to right.
    """
    # Sampled finely, then averaged, against aliasing. Only labels far outside a photo need a limit.
    finer = min(max(1, math.ceil(side / size - 1e-6)), FINEST)
    n = size * finer
    step = side / n
    # Pixel (i, j) of the drawing lies at `first + step * (i, j)` in the image.
    x, y = np.asarray(center, np.float64) + (0.5 - n / 2) * step
    along_x = [-step, 0, 2 * center[0] - x] if mirror else [step, 0, x]
    matrix = np.array([along_x, [0, step, y]])
    drawn = cv2.warpAffine(
        image, matrix, (n, n), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=0
    )
    return cv2.resize(drawn, (size, size), interpolation=cv2.INTER_AREA) if finer > 1 else drawn


def crop_frame(frame: Frame, image_size: int, size: int) -> tuple[np.ndarray, dict, str]:
    """Cut one frame: its stored pixels (4, size, size) uint8, colour then mask; labels; key."""
    center, side = crop_square(frame)
    left = frame.side == "left"
    flip, reach = -1.0 if left else 1.0, side * size / image_size
    pixels = np.zeros((4, size, size), np.uint8)
    pixels[:3] = cut(frame.image, center, reach, size, left).transpose(2, 0, 1)
    if frame.mask is not None:
        pixels[3] = cut(frame.mask.astype(np.uint8) * 255, center, reach, size, left)
    valid_2d = np.isfinite(frame.joints_2d).all(1)
    valid_3d = np.isfinite(frame.joints_3d).all(1)
    square = torch.from_numpy(center), torch.tensor(side).double()
    joints_2d = pixels_to_crop(torch.from_numpy(frame.joints_2d).double(), *square).numpy()
    joints_3d = frame.joints_3d.astype(np.float64) * [flip, 1, 1]
    has_root = bool(valid_3d[WRIST])
    root = joints_3d[WRIST] if has_root else joints_3d[valid_3d].sum(0) / max(valid_3d.sum(), 1)
    labels = {
        "joints_2d": np.where(valid_2d[:, None], joints_2d * [flip, 1], 0).astype(np.float32),
        "joints_3d": np.where(valid_3d[:, None], joints_3d - root, 0).astype(np.float32),
        "valid_2d": valid_2d,
        "valid_3d": valid_3d,
        "visible": valid_2d if frame.visible is None else valid_2d & frame.visible,
        "has_mask": np.bool_(frame.mask is not None),
        "root": root.astype(np.float32),
        "has_root": np.bool_(has_root),
        "center": center.astype(np.float32),
        "side": np.float32(side),
        "left": np.bool_(left),
    }
    return pixels, labels, frame.key


def folder_identity(folder: Path) -> str:
    """Digest the files below a folder: names, sizes and times, not contents."""
    if not Path(folder).is_dir():
        raise HamrError(f"{folder} is missing: expected a data set's folder")
    listing = []
    for path, below, names in os.walk(folder):
        below.sort()
        for file in (os.path.join(path, name) for name in sorted(names)):
            stat = os.stat(file)
            listing.append((file, stat.st_size, stat.st_mtime_ns))
    return digest(listing)


class Crops:
    """A set of stored crops: pixels mapped from disk, labels in memory, read in batches.

    `batch(indices)` gives a dict of tensors, B samples of stored size S:

    - image (B, 3, S, S) uint8 RGB; mask (B, S, S) uint8 coverage of 255; has_mask (B,) bool
    - joints_2d (B, 21, 2) crop units of the network crop; valid_2d (B, 21) bool
    - joints_3d (B, 21, 3) metres from the root; valid_3d (B, 21) bool
    - visible (B, 21) bool, of the labelled joints those that the set flags as visible
    - root (B, 3) metres, camera frame; has_root (B,) bool, False where it is no wrist
    - center (B, 2) and side (B,) pixels of the network crop in its frame; left (B,) bool, mirrored
    - index (B,) long, the sample's row in this set
    """

    def __init__(self, pixels, rows, labels, keys, digest, image_size):
        self.pixels, self.rows = pixels, rows  # (n, 4, S, S) arrays; (N, 2) which, and its row
        self.labels, self.keys = labels, keys  # {name: (N, ...)}, N names of frames
        self.digest, self.image_size = digest, image_size  # identity of the contents

    def __len__(self):
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Read the samples at `indices` (B,)."""
        indices = np.asarray(indices, dtype=np.int64)
        which, row = self.rows[indices].T
        pixels = torch.empty((len(indices), *self.pixels[0].shape[1:]), dtype=torch.uint8)
        for out, i, stored in zip(pixels.numpy(), which, row, strict=True):
            out[:] = self.pixels[i][stored]
        batch = {name: torch.from_numpy(values[indices]) for name, values in self.labels.items()}
        index = torch.from_numpy(indices)
        return {"image": pixels[:, :3], "mask": pixels[:, 3], "index": index, **batch}

    def subset(self, indices: Sequence[int]) -> "Crops":
        """Select the samples at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        labels = {name: values[indices] for name, values in self.labels.items()}
        identity = digest(self.digest, hashlib.sha256(indices.tobytes()).hexdigest())
        keys = [self.keys[i] for i in indices]
        return Crops(self.pixels, self.rows[indices], labels, keys, identity, self.image_size)

    def split(self, fraction: float, seed: int) -> tuple["Crops", "Crops"]:
        """Hold out a seeded fraction of the samples: (training set, validation set)."""
        # Whole runs of neighbours, which in a video (STB) are nearly the same.
        run = max(1, min(50, len(self) // 100))
        starts = np.arange(0, len(self), run)
        held = round(fraction * len(starts))
        if not 0 < held < len(starts):
            raise HamrError(f"data.validation={fraction} of {len(self)} samples: one set is empty")
        chosen = np.random.default_rng([seed, 17]).permutation(len(starts))[:held]
        mask = np.isin(np.arange(len(self)) // run, chosen)
        return self.subset(np.flatnonzero(~mask)), self.subset(np.flatnonzero(mask))

    @staticmethod
    def join(sets: list["Crops"]) -> "Crops":
        """Concatenate several sets."""
        shapes = {(s.image_size, s.pixels[0].shape[-1]) for s in sets}
        if len(shapes) != 1:
            raise HamrError(f"crops of different sizes cannot be joined: {sorted(shapes)}")
        pixels, rows = [], []
        for part in sets:
            rows.append(part.rows + [len(pixels), 0])
            pixels += part.pixels
        labels = {k: np.concatenate([s.labels[k] for s in sets]) for k in sets[0].labels}
        keys, identity = [key for s in sets for key in s.keys], digest([s.digest for s in sets])
        return Crops(pixels, np.concatenate(rows), labels, keys, identity, sets[0].image_size)


def load_crops(
    frames: Sequence[Frame],
    identity: object,
    image_size: int,
    augment: Augment | None = None,
    cache: str | Path = CACHE,
    name: str = "crops",
) -> Crops:
    """Load the crops of frames, cut once and afterwards read from the cache.

    Args:
        frames: anything with len() and [i] -> Frame, such as the readers in this package.
        identity: JSON-like, what decides the frames' contents: for a reader, its arguments and
            the `folder_identity` of what it reads.
        image_size: pixels a side of the network crop.
        augment: `settings.augment` if the crops are to be augmented; None stores no margin.
        cache, name: folder of all cached crops, and what to call this set there.
    """
    if len(frames) == 0:
        raise HamrError(f"{name}: no frames to cut crops from")
    size = stored_size(image_size, augment)
    key = digest(identity, len(frames), image_size, size, BOX_FACTOR, TIPS_SPAN, RULE)
    folder = Path(cache) / f"{name}-{image_size}-{key}"
    # meta.json is written last: where it is, the other two files are whole.
    if not (folder / "meta.json").is_file():
        _store(frames, folder, image_size, size, name)
    meta = read_json(folder / "meta.json")
    try:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        labels = read_arrays(folder / "labels.npz", ["keys"])
    except (OSError, ValueError, EOFError, HamrError) as error:
        raise HamrError(f"{folder} is a broken cache: delete it ({error})") from error
    keys = [str(key) for key in labels.pop("keys")]
    rows = np.stack([np.zeros(len(keys), np.int64), np.arange(len(keys))], axis=1)
    return Crops([pixels], rows, labels, keys, meta["digest"], image_size)


def _store(frames, folder, image_size, size, name):
    """Cut every frame and write pixels.npy, labels.npz and meta.json, in this order."""
    count, labels, keys = len(frames), [], []
    content, shown = hashlib.sha256(), time.monotonic()
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 4, size, size)}
    # Written as a plain stream, not through a memory map, where a full disk is a bus error.
    with (
        write_aside(folder / "pixels.npy") as aside,
        open(aside, "wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, count, CHUNK):
            chunk = range(first, min(first + CHUNK, count))
            for pixels, label, key in pool.map(
                lambda i: crop_frame(frames[i], image_size, size), chunk
            ):
                file.write(pixels)
                content.update(pixels)
                labels.append(label)
                keys.append(key)
            if time.monotonic() > shown + 30:
                shown = time.monotonic()
                print(f"{name}: {len(keys)} of {count} crops", flush=True)
    stacked = {k: np.stack([label[k] for label in labels]) for k in labels[0]}
    for values in stacked.values():
        content.update(np.ascontiguousarray(values))
    with write_aside(folder / "labels.npz") as aside:
        np.savez(aside, keys=np.array(keys), **stacked)
    meta = {"name": name, "digest": content.hexdigest()[:12]}
    write_json(folder / "meta.json", meta | {"image_size": image_size, "size": size})


@functools.lru_cache(maxsize=2)
def _order(seed, turn, count):
    return np.random.default_rng([seed, turn]).permutation(count)


class StepBatches(torch.utils.data.Dataset):
    """The batches of a training run: [step] is a dict of tensors, a function of seed and step.

    Samples come in a new order each pass, and a batch may span two passes. With several processes
    each gets its part of the same batch.
    """

    def __init__(self, crops, batch_size, seed, rank=0, world=1):
        # Batch normalisation has no variance of a single sample.
        if batch_size % world or batch_size < 2 * world:
            wanted = f"a multiple of the {world} process(es), of at least 2 samples each"
            raise HamrError(f"train.batch_size={batch_size}: expected {wanted}")
        self.crops, self.batch_size, self.seed = crops, batch_size, seed
        self.part = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def indices(self, step: int) -> np.ndarray:
        """Return (batch_size,) sample indices of a step, for all processes together."""
        count = len(self.crops)
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        return np.array([_order(self.seed, n // count, count)[n % count] for n in numbers])

    def __getitem__(self, step):
        return {"step": step, **self.crops.batch(self.indices(step)[self.part])}


class EvenBatches(torch.utils.data.Dataset):
    """All samples once, in order, in batches of nearly equal size, divided among processes."""

    def __init__(self, crops, batch_size, rank=0, world=1):
        self.crops = crops
        chunks = np.array_split(np.arange(len(crops)), math.ceil(len(crops) / batch_size))
        if len(chunks[-1]) < world:  # batch sizes differ by one at most: the last is a smallest
            raise HamrError(f"batches of {len(chunks[-1])} cannot be cut among {world} processes")
        self.parts = [np.array_split(chunk, world)[rank] for chunk in chunks]

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, i):
        return self.crops.batch(self.parts[i])
