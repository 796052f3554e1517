"""Damaged files of every kind that is read: the answer is a result or a `HamrError`, and no more.

One good file of each kind is mutated, by its bytes and by its values, with a seed. A child process
reads each mutation under a limit of memory and of its own processor time. The slow lane reads some
hundred of each kind; `FUZZ=20000 pytest tests/test_fuzz.py` reads as many as you like.
"""

import faulthandler
import functools
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pillow_heif
import pytest
import torch
from mutations import mutate_bytes, mutate_text, mutate_values
from PIL import Image
from test_mano import made_up_mano
from test_video import write
from tiny import TinyHand, tiny_settings

from hamr_lib.config import PROFILES, load_settings
from hamr_lib.data import dexter, rhd, stb
from hamr_lib.data.frame import read_image
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import REQUIRED, load_predictions
from hamr_lib.hand.mano import load_mano
from hamr_lib.model import checkpoint, hamr
from hamr_lib.recovery.photo import read_photo
from hamr_lib.recovery.video import open_video

SECONDS = 20  # of processor time for one file
MEMORY = 3 << 30  # bytes, on top of what is taken before the first mutation
MESSAGE = 2000  # characters of the longest message
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
             "socket.connect", "ctypes.dlopen", "webbrowser.open")  # fmt: skip
RNG = np.random.default_rng(0)
JOINTS = RNG.normal(size=(4, 21, 3)) * 0.1 + [0, 0, 0.6]
PICTURE = RNG.integers(0, 255, (48, 64, 3), np.uint8)


class Good(NamedTuple):
    """One good file."""

    path: Path
    read: Callable[[], Any]
    values: Any = None  # in it, which `write` puts there
    write: Callable[[Any], None] | None = None
    text: bool = False


# --- one good file of each kind, made in a folder -------------------------------------------------


def image(suffix, folder):
    """An image of a data set or a background."""
    path = folder / f"image.{suffix}"
    Image.fromarray(PICTURE).save(path)
    return Good(path, lambda: read_image(path))


def photo(suffix, folder):
    """A user's photo."""
    pillow_heif.register_heif_opener()
    turned = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6" + bytes(7)
    path = folder / f"photo.{suffix}"
    Image.fromarray(PICTURE).save(path, **({"exif": turned} if suffix == "jpg" else {}))

    def read():
        pixels = read_photo(path)
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) and pixels.size

    return Good(path, read)


def video(folder):
    path = folder / "video.mp4"
    write(path, [PICTURE] * 5)

    def read():
        opened = open_video(path)
        for _ in range(20):
            opened.read()

    return Good(path, read)


def pickled(path, values, read):
    def save(values):
        path.write_bytes(pickle.dumps(values, protocol=4))

    path.parent.mkdir(parents=True, exist_ok=True)
    save(values)
    return Good(path, read, values, save)


def annotations(folder):
    """RHD's labels."""
    K = np.array([[300.0, 0, 160], [0, 300, 160], [0, 0, 1]])
    values = {i: rhd.annotation(JOINTS[:2], K, np.ones((2, 21), bool)) for i in range(3)}
    path = folder / "anno.pickle"
    return pickled(path, values, lambda: rhd.read_annotations(path))


def mano(folder):
    path = folder / "raw" / "mano" / "MANO_RIGHT.pkl"
    return pickled(path, made_up_mano(), lambda: load_mano(folder, "right"))


def mat(folder):
    """STB's labels."""
    stb.write_labels(folder, "B1Counting", JOINTS)
    path = stb.label_path(folder, "B1Counting")
    return Good(path, lambda: stb.read_labels(folder, "B1Counting"))


def dexter_labels(folder):
    path = dexter.annotation_path(folder, "Grasp1")
    path.parent.mkdir(parents=True)
    tips = RNG.uniform(-200, 500, (6, 5, 3)).round(2)
    lines = (";".join(",".join(map(str, tip)) for tip in row) + ";" for row in tips)
    path.write_text("\n".join(lines) + "\n")
    return Good(path, lambda: dexter.read_annotations(folder, "Grasp1"), text=True)


def network(folder):
    """A checkpoint."""
    hamr.load_hand = lambda name, **options: TinyHand(options.get("pose_components", 6))
    path, settings, hand = folder / "best.ckpt", tiny_settings(), TinyHand()
    described = checkpoint.describe(settings, "data", hand, 40, {"val_joints_3d_mm": 12.5})
    checkpoint.save_model(path, hamr.HAMR(settings.model, hand), described)

    def read():
        loaded, _ = hamr.load_model(path)
        with torch.no_grad():
            loaded(torch.zeros(1, 3, loaded.image_size, loaded.image_size))

    values = torch.load(path, weights_only=True)
    return Good(path, read, values, lambda values: torch.save(values, path))


def predictions(folder):
    path = folder / "predictions-open-rhd.npz"
    np.savez(path, **{name: np.zeros((4, 21, 3), np.float32) for name in REQUIRED})
    return Good(path, lambda: load_predictions(path))


def profile(folder):
    path = folder / "mine.yaml"
    path.write_text("base: cpu\n" + (PROFILES / "smoke.yaml").read_text())
    return Good(path, lambda: load_settings(path), text=True)


PHOTOS = ("jpg", "png", "webp", "tif", "heic", "avif", "gif", "bmp", "ppm", "jp2")
KINDS = {
    **{f.__name__: f for f in (annotations, mano, mat, dexter_labels, network, predictions,
                               profile, video)},
    **{f"image-{suffix}": functools.partial(image, suffix) for suffix in ("png", "jpg")},
    **{f"photo-{suffix}": functools.partial(photo, suffix) for suffix in PHOTOS},
}  # fmt: skip


# --- the child process ----------------------------------------------------------------------------

WATCHED = []  # what of `FORBIDDEN` the last file led to


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for its own."""


def hang(*_):
    raise Hang(f"it took more than {SECONDS} s")


def mutate(good, data, seed):
    """Write the mutation of this number in the place of the good file."""
    rng = random.Random(seed)
    if good.write and rng.random() < 0.5:
        good.write(mutate_values(rng, good.values))
    elif good.text and rng.random() < 0.7:
        good.path.write_bytes(mutate_text(rng, data))
    else:
        good.path.write_bytes(mutate_bytes(rng, data))


def read_mutations(name, folder, first, count):
    """Print a line of JSON for each mutation that ended in anything but a result or a refusal."""
    folder.mkdir()
    good = KINDS[name](folder)
    data = good.path.read_bytes()
    good.read()  # and all that is imported on the way
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    for seed in range(first, first + count):
        mutate(good, data, seed)
        print(json.dumps({"begun": f"{name} {seed}"}), flush=True)
        WATCHED.clear()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        problem = None
        try:
            good.read()
        except HamrError as error:
            if len(str(error)) > MESSAGE:
                problem = f"a message of {len(str(error))} characters: {str(error)[:200]}"
        except BaseException:
            problem = traceback.format_exc()[-1500:]
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if WATCHED:
            problem = f"it did {WATCHED}"
        if problem:
            print(json.dumps({"problem": f"{name} {seed}: {problem}"}), flush=True)


def main(folder, first, count, *names):
    """Read mutations of the kinds that are named."""
    faulthandler.enable()
    torch.set_num_threads(1)
    sys.addaudithook(lambda event, _: WATCHED.append(event) if event in FORBIDDEN else None)
    signal.signal(signal.SIGVTALRM, hang)
    for name in names:
        read_mutations(name, Path(folder) / name, int(first), int(count))


# --- the test -------------------------------------------------------------------------------------


def fuzz(names, folder, first, count):
    """Problems with `count` mutations of each kind, from number `first` on, as texts."""
    command = [sys.executable, __file__, str(folder), str(first), str(count), *names]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = [line["problem"] for line in lines if "problem" in line]
    begun = [line["begun"] for line in lines if "begun" in line]
    if done.returncode:
        found.append(f"{begun[-1:]}: the process ended: {done.stderr[-1500:]}")
    assert found or len(begun) == count * len(names)
    return found


def test_a_few_damaged_files_of_each_kind(tmp_path):
    problems = fuzz(KINDS, tmp_path, 0, 10)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_some_hundred_damaged_files(name, tmp_path):
    problems = fuzz([name], tmp_path, 10, int(os.environ.get("FUZZ", 300)))
    assert not problems, "\n".join(problems)


if __name__ == "__main__":
    main(*sys.argv[1:])
