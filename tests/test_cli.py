"""The command `hamr`: its options, bad input of every kind, and its exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from test_video import write

from hamr_lib.data.photographs import example_photographs
from hamr_lib.joints import NAMES
from hamr_lib.recovery import command
from hamr_lib.recovery.photo import read_photo

BOX = ("--box=20,10,80,70", "--side", "right")
FILES = {"glb", "html", "json", "obj", "overlay.png"}  # of one hand


def sets(folder):
    """The endings of the files in a folder, by the name of their photo."""
    found = {}
    for path in folder.iterdir():
        stem, ending = re.split("[._]", path.name, maxsplit=1)
        found.setdefault(stem, set()).add(ending)
    return found


@pytest.fixture
def photos(tmp_path):
    """A folder of three photos, one of them broken, and a file that is no photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("a.jpg", "b.PNG")):
        pixels = np.random.default_rng(i).integers(0, 256, (90, 120, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "c.png").write_text("not an image")
    (folder / "notes.txt").write_text("not meant to be one")
    return folder


@pytest.fixture
def hamr(tmp_path, tiny_checkpoint, capsys):
    """Run `hamr recover` into tmp_path/out; returns exit code, stdout and stderr."""

    def run(*arguments):
        options = ["--out", tmp_path / "out", "--checkpoint", tiny_checkpoint, *arguments]
        code = command.main(["recover", *map(str, options)])
        return code, *capsys.readouterr()

    return run


def test_one_photo(hamr, photos, tmp_path, tiny_checkpoint):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / "out" / f".hamr-{dead.pid}-x.part"  # of a run that was killed
    left.mkdir(parents=True)
    code, out, _ = hamr(photos / "a.jpg", BOX[0], "--side", "left", "--device", "cpu")
    assert code == command.DONE and sets(tmp_path / "out") == {"a": FILES}
    stored = json.loads((tmp_path / "out" / "a.json").read_text())
    assert stored["side"] == "left" and stored["box"] == [20, 10, 80, 70]
    assert stored["checkpoint"] == str(tiny_checkpoint) and str(tiny_checkpoint) in out


def test_a_folder_with_a_broken_photo_does_the_others(hamr, photos, tmp_path):
    (photos / "loop.png").symlink_to("loop.png")
    code, out, err = hamr(photos, *BOX)
    assert code == command.PARTLY and "2 of 4" in out and "0 left and 2 right hands" in out
    assert "a.jpg: 1 hand (right) ->" in out and "notes.txt" in err
    assert err.count("c.png") == 1  # a message names the file once
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"a", "b"}


@pytest.mark.parametrize("arguments, complaint", [
    (["c.png"], "c.png is not an image"),
    (["a.jpg", "--box=200,10,280,70"], "120 x 90 pixels"),
    (["a.jpg", "--box=0,0,1e308,1e308"], "120 x 90 pixels"),
    (["a.jpg", "--checkpoint", "no.pt"], "no.pt is missing"),
    (["a.jpg", "--device", "abacus"], "device='abacus'"),
    (["z.jpg"], "z.jpg: No such file"),
    (["a" * 300 + ".png"], "File name too long"),
    (["a.jpg", "--out", "notes.txt"], "cannot write into"),
    (["a.jpg", "--out", "notes.txt/x"], "cannot write into"),
    (["a.jpg", "--out", "loop"], "loop"),
    ([".", "--out", "."], "is a folder of photos"),
    (["empty"], "empty is a folder without photos"),
    (["pipe.png"], "pipe.png is not a file"),
])  # fmt: skip
def test_a_bad_argument_is_told(hamr, photos, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(photos)
    (photos / "empty").mkdir()
    (photos / "loop").symlink_to("loop")
    os.mkfifo("pipe.png")
    before = sorted(photos.iterdir())
    code, _, err = hamr(*BOX, *arguments)
    assert code == command.FAILED and complaint in err and err.count("error") == 1
    assert sorted(photos.iterdir()) == before and not list(tmp_path.glob("out/*"))


def test_names_that_a_terminal_cannot_show(photos, tmp_path, tiny_checkpoint):
    odd = os.path.join(os.fsencode(photos), b"caf\xe9.jpg")
    os.rename(photos / "a.jpg", odd)
    (photos / "c.png").unlink()
    Image.new("RGB", (90, 90)).save(photos / ("b" * 245 + ".png"))
    done = subprocess.run(
        [sys.executable, "-m", "hamr_lib", "recover", str(photos), *BOX,
         "--out", str(tmp_path / "out"), "--checkpoint", str(tiny_checkpoint)],
        capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == command.PARTLY and b"File name too long" in done.stderr
    assert b"caf\\xe9.jpg: 1 hand" in done.stdout and len(list(tmp_path.glob("out/*"))) == 10


def test_no_result_overwrites_a_photo_or_a_result(hamr, photos, tmp_path):
    (photos / "a.jpg").rename(photos / "a_overlay.png")
    (photos / "b.PNG").rename(photos / "a.png")
    before = (photos / "a_overlay.png").read_bytes()
    code, _, err = hamr(photos / "a.png", photos / "a_overlay.png", "--out", photos, *BOX)
    assert code == command.PARTLY and "a_overlay.png: another file" in err
    assert (photos / "a_overlay.png").read_bytes() == before
    Image.open(photos / "a.png").convert("RGB").save(photos / "a.jpg")
    code, out, err = hamr(photos / "a.png", photos / "a.jpg", *BOX)
    assert code == command.PARTLY and "1 of 2" in out and "another file" in err
    assert hamr(photos / "a.jpg", *BOX)[0] == command.DONE  # results of an earlier run go


# --- finding hands, and videos ------------------------------------------------------------------


@pytest.fixture(scope="module")
def left():
    return read_photo(example_photographs()[0])


@pytest.fixture(scope="module")
def noise(left):
    return np.random.default_rng(7).normal(110, 12, left.shape).clip(0, 255).astype(np.uint8)


def test_hands_are_found_in_photos(hamr, left, noise, tmp_path):
    Image.fromarray(np.hstack([left, left[:, ::-1]])).save(tmp_path / "two.png")
    code, out, _ = hamr(tmp_path / "two.png")
    assert code == command.DONE and "1 of 1" in out
    stored = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("out/*.json")}
    assert set(stored) == {"two", "two_hand2"}
    assert {found["side"] for found in stored.values()} == {"left", "right"}
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "text.png").write_text("not an image")
    code, out, err = hamr(tmp_path / "noise.png")
    assert code == command.NO_HAND and "noise.png: no hand was found" in err and "0 of 1" in out
    assert hamr(tmp_path / "two.png", tmp_path / "noise.png")[0] == command.PARTLY
    assert hamr(tmp_path / "text.png", tmp_path / "noise.png")[0] == command.FAILED


def test_a_video_gives_an_overlay_and_a_file_a_hand(hamr, left, noise, tmp_path):
    write(tmp_path / "clip.mp4", [left, left, noise])
    code, out, _ = hamr(tmp_path / "clip.mp4", "--frames")
    assert code == command.DONE and "clip.mp4: 1 hand (left) ->" in out
    frames = {f"clip-{i:06d}{end}" for i in (0, 1) for end in
              ("_overlay.png", ".glb", ".obj", ".json")}  # fmt: skip
    expected = {"clip_overlay.mp4", "clip_hand1.npz"} | frames
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    with np.load(tmp_path / "out" / "clip_hand1.npz") as track:
        assert track["frame"].tolist() == [0, 1] and track["time"][1] == pytest.approx(1 / 30)
        assert track["joints_3d"].shape == (2, 21, 3) and track["side"].tolist() == ["left"] * 2
        assert track["joint_names"].tolist() == list(NAMES) and track["hand"] == "open"
    write(tmp_path / "empty.mp4", [noise, noise])
    code, _, err = hamr(tmp_path / "empty.mp4", "--out", tmp_path / "none")
    assert code == command.NO_HAND and "no hand was found in any of its 2 frames" in err
    assert not list((tmp_path / "none").iterdir())


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    "", "recover", "recover a.jpg", "recover a.jpg --out x --box 1,2,3",
    "recover a.jpg --out x --box 1,2,3,d", "recover a.jpg --out x --side top",
])  # fmt: skip
def test_a_wrong_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        command.main(arguments.split())
    assert raised.value.code == command.USAGE
    assert "usage: hamr" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("moved", [1, 5, 8, 13])
def test_an_interrupt_leaves_whole_sets(hamr, photos, tmp_path, monkeypatch, kind, moved):
    """The signal comes after so many of the renamings by which two photos are written."""
    before = {name: signal.getsignal(name) for name in (kind, signal.SIGHUP, signal.SIGTERM)}
    if kind == signal.SIGINT:  # a shell's background jobs ignore it
        signal.signal(kind, signal.default_int_handler)
    moves, truly, threads = iter(range(1, 99)), os.replace, set(threading.enumerate())

    def replace(*paths):
        truly(*paths)
        if next(moves) == moved:
            signal.raise_signal(kind)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace)
            code, _, err = hamr(photos, *BOX)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        for thread in set(threading.enumerate()) - threads:  # as Python does at its end
            thread.join()
    assert code == command.INTERRUPTED and "interrupted" in err
    assert sets(tmp_path / "out") in [dict.fromkeys(done, FILES) for done in ("", "a", "ab")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGHUP", "SIGKILL"])
def test_what_a_killed_run_leaves_is_gone_after_the_next(photos, tmp_path, tiny_checkpoint, name):
    (photos / "c.png").unlink()
    for i in range(20):
        shutil.copy(photos / "a.jpg", photos / f"n{i}.jpg")
    out = tmp_path / "out"
    run = [sys.executable, "-m", "hamr_lib", "recover", photos, *BOX, "--out", out,
           "--checkpoint", tiny_checkpoint]  # fmt: skip
    process = subprocess.Popen(run, stdout=subprocess.PIPE)
    process.stdout.readline()  # the first photo is done
    process.send_signal(getattr(signal, name))
    process.communicate()
    assert process.returncode == (-9 if name == "SIGKILL" else command.INTERRUPTED)
    whole = {stem: files for stem, files in sets(out).items() if stem}
    assert whole and len(whole) < 22
    if name != "SIGKILL":
        assert all(files == FILES for files in whole.values()) and whole == sets(out)
    subprocess.run(run, check=True, capture_output=True)
    assert sets(out) == {path.stem: FILES for path in photos.glob("*.[jP]*")}


def test_help_says_what_there_is_and_does_not_wait_for_torch():
    code = (
        "import runpy, sys; sys.argv = ['hamr', 'recover', '--help']\n"
        "try: runpy.run_module('hamr_lib', run_name='__main__')\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("exit codes:")
    assert all(str(number) in words[1].split() for number in (0, 1, 2, 3, 4, 130))
    assert all(name in words[0] for name in (*NAMES, *command.PHOTOS, *command.VIDEOS))
