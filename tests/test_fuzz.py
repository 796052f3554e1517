"""Damaged files of every kind that is read: the answer is a result or a `HamrError`, and no more.

One good file of each kind is mutated, by its bytes and by its values, with a seed. A child process
reads each mutation under a limit of memory and of its own processor time. The slow lane reads some
hundred of each kind; `FUZZ=20000 pytest tests/test_fuzz.py` reads as many as you like.
"""

import faulthandler
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import mutate_bytes, mutate_text, mutate_values

from hamr_lib.errors import HamrError

SECONDS = 20  # of processor time for one file
MEMORY = 3 << 30  # bytes, on top of what is taken before the first mutation
MESSAGE = 2000  # characters of the longest message
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
             "socket.connect", "ctypes.dlopen", "webbrowser.open")  # fmt: skip


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for its own."""


# --- one good file of each kind, and how it is read ----------------------------------------------


def picture(side=48):
    return np.random.default_rng(0).integers(0, 255, (side, side + 16, 3), np.uint8)


class Kind:
    """A kind of file: `path` of the good one, which `read` reads; `values` of it, if it has any."""

    def __init__(self, folder):
        self.folder = folder

    def write_values(self, values):
        """Write the file with other values in it."""
        raise NotImplementedError


class Png(Kind):
    """An image of a data set or a background."""

    suffix, save = "png", {}

    def __init__(self, folder):
        from PIL import Image

        self.path = folder / f"image.{self.suffix}"
        Image.fromarray(picture()).save(self.path, **self.save)

    def read(self):
        from hamr_lib.data.frame import read_image

        read_image(self.path)


class Jpeg(Png):
    suffix, save = "jpg", {"quality": 90}


class Photo(Kind):
    """A user's photo; the kinds below are this in other formats."""

    suffix, save = "jpg", {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6" + bytes(7)}

    def __init__(self, folder):
        import pillow_heif
        from PIL import Image

        pillow_heif.register_heif_opener()
        self.path = folder / f"photo.{self.suffix}"
        Image.fromarray(picture()).save(self.path, **self.save)

    def read(self):
        from hamr_lib.recovery.photo import read_photo

        photo = read_photo(self.path)
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3 and photo.size


def photos_in(suffixes):
    """A kind of photo for each format."""
    return [type(suffix.title(), (Photo,), {"suffix": suffix, "save": {}}) for suffix in suffixes]


class Video(Kind):
    def __init__(self, folder):
        import cv2

        self.path = folder / "video.mp4"
        writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
        for _ in range(5):
            writer.write(np.ascontiguousarray(picture()[:, :64]))
        writer.release()

    def read(self):
        from hamr_lib.recovery.container import open_video

        video = open_video(self.path)
        for _ in range(20):
            if not video.read()[0]:
                return


class Annotations(Kind):
    """RHD's pickle."""

    def __init__(self, folder):
        from hamr_lib.data import rhd

        self.path = folder / "anno.pickle"
        rng = np.random.default_rng(0)
        K = np.array([[300.0, 0, 160], [0, 300, 160], [0, 0, 1]])
        joints = rng.normal(size=(2, 21, 3)) * 0.1 + [0, 0, 0.6]
        self.values = {i: rhd.annotation(joints, K, np.ones((2, 21), bool)) for i in range(3)}
        self.write_values(self.values)

    def write_values(self, values):
        self.path.write_bytes(pickle.dumps(values, protocol=random.Random(0).choice([2, 4])))

    def read(self):
        from hamr_lib.data import rhd

        rhd.read_annotations(self.path)


class Mano(Kind):
    def __init__(self, folder):
        from test_mano import made_up_mano

        self.root, self.path = folder, folder / "raw" / "mano" / "MANO_RIGHT.pkl"
        self.path.parent.mkdir(parents=True)
        self.values = made_up_mano()
        self.write_values(self.values)

    write_values = Annotations.write_values

    def read(self):
        from hamr_lib.hand import mano

        mano.load_mano(self.root, "right")


class Mat(Kind):
    """STB's labels."""

    def __init__(self, folder):
        from hamr_lib.data import stb

        self.root, self.path = folder, stb.label_path(folder, "B1Counting")
        joints = np.random.default_rng(0).normal(size=(4, 21, 3)) * 0.1 + [0, 0, 0.6]
        stb.write_labels(folder, "B1Counting", joints)

    def read(self):
        from hamr_lib.data import stb

        stb.read_labels(self.root, "B1Counting")


class Dexter(Kind):
    text = True

    def __init__(self, folder):
        from hamr_lib.data import dexter

        self.root, self.path = folder, dexter.annotation_path(folder, "Grasp1")
        self.path.parent.mkdir(parents=True)
        tips = np.random.default_rng(0).uniform(-200, 500, (6, 5, 3)).round(2)
        lines = (";".join(",".join(map(str, tip)) for tip in row) + ";" for row in tips)
        self.path.write_text("\n".join(lines) + "\n")

    def read(self):
        from hamr_lib.data import dexter

        dexter.read_annotations(self.root, "Grasp1")


class Checkpoint(Kind):
    def __init__(self, folder):
        from tiny import TinyHand, tiny_settings

        from hamr_lib.model import checkpoint, hamr

        hamr.load_hand = lambda name, **options: TinyHand(options.get("pose_components", 6))
        self.path, settings, hand = folder / "best.ckpt", tiny_settings(), TinyHand()
        described = checkpoint.describe(settings, "data", hand, 40, {"val_joints_3d_mm": 12.5})
        checkpoint.save_model(self.path, hamr.HAMR(settings.model, hand), described)
        self.values = torch.load(self.path, weights_only=True)

    def write_values(self, values):
        torch.save(values, self.path)

    def read(self):
        from hamr_lib.model.hamr import load_model

        network, _ = load_model(self.path)
        with torch.no_grad():
            network(torch.zeros(1, 3, network.image_size, network.image_size))


class Predictions(Kind):
    def __init__(self, folder):
        from hamr_lib.evaluation.predict import REQUIRED

        self.path = folder / "predictions-open-rhd.npz"
        self.write_values({name: np.zeros((4, 21, 3), np.float32) for name in REQUIRED})

    def write_values(self, values):
        np.savez(self.path, **values)

    def read(self):
        from hamr_lib.evaluation.predict import load_predictions

        load_predictions(self.path)


class Profile(Kind):
    text = True

    def __init__(self, folder):
        from hamr_lib.config import PROFILES

        self.path = folder / "mine.yaml"
        self.path.write_text("base: cpu\n" + (PROFILES / "smoke.yaml").read_text())

    def read(self):
        from hamr_lib.config import load_settings

        load_settings(self.path)


KINDS = {kind.__name__.lower(): kind for kind in (
    Png, Jpeg, Annotations, Mano, Mat, Dexter, Checkpoint, Predictions, Profile, Video, Photo,
    *photos_in(["webp", "tif", "heic", "avif", "gif", "bmp", "ppm", "jp2"]),
)}  # fmt: skip


# --- the child process ----------------------------------------------------------------------------

WATCHED = []  # what of `FORBIDDEN` the last file led to


def mutate(kind, good, seed):
    """Write the mutation of this number in the place of the good file."""
    rng = random.Random(seed)
    if hasattr(kind, "values") and rng.random() < 0.5:
        kind.write_values(mutate_values(rng, kind.values))
    elif hasattr(kind, "text") and rng.random() < 0.7:
        kind.path.write_bytes(mutate_text(rng, good))
    else:
        kind.path.write_bytes(mutate_bytes(rng, good))


def limit_memory():
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


def read_mutations(name, folder, first, count):
    """Print a line of JSON for each mutation that ended in anything but a result or a refusal."""
    folder.mkdir()
    kind = KINDS[name](folder)
    good = kind.path.read_bytes()
    kind.read()  # the good one; and all that is imported on the way
    limit_memory()
    for seed in range(first, first + count):
        mutate(kind, good, seed)
        print(json.dumps({"begun": f"{name} {seed}"}), flush=True)
        WATCHED.clear()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        problem = None
        try:
            kind.read()
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


def hang(*_):
    raise Hang(f"it took more than {SECONDS} s")


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


def main():
    """Read mutations of the kinds that the command line names."""
    faulthandler.enable()
    torch.set_num_threads(1)
    sys.addaudithook(lambda event, _: WATCHED.append(event) if event in FORBIDDEN else None)
    signal.signal(signal.SIGVTALRM, hang)
    folder, first, count, *names = sys.argv[1:]
    for name in names:
        read_mutations(name, Path(folder) / name, int(first), int(count))


if __name__ == "__main__":
    main()
