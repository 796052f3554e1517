"""The command `hamr`: every option, every kind of bad input, and its exit codes."""

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from hamr_lib.data.photographs import example_photographs
from hamr_lib.recovery import command
from hamr_lib.recovery.photo import read_photo

BOX = "--box=20,10,80,70"


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
    code, out, _ = hamr(photos / "a.jpg", BOX, "--side", "left", "--device", "cpu")
    assert code == command.DONE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.glb", "a.html", "a.json", "a.obj", "a_overlay.png"
    ]  # fmt: skip
    stored = json.loads((tmp_path / "out" / "a.json").read_text())
    assert stored["side"] == "left" and stored["box"] == [20, 10, 80, 70]
    assert stored["checkpoint"] == str(tiny_checkpoint) and str(tiny_checkpoint) in out


def test_a_folder_with_a_broken_photo_does_the_others(hamr, photos, tmp_path):
    code, out, err = hamr(photos, BOX, "--side", "right")
    assert code == command.PARTLY
    assert "2 of 3" in out and "c.png" in err and "not an image" in err
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"a", "b"}


def test_no_photo_could_be_done(hamr, photos, tmp_path):
    code, _, err = hamr(photos / "c.png", BOX, "--side", "right")
    assert code == command.FAILED and "c.png is not an image" in err
    code, _, err = hamr(photos / "a.jpg", "--box=200,10,280,70", "--side", "right")
    assert code == command.FAILED and "outside the photo, which has 120 x 90 pixels" in err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["a.jpg", BOX, "--side", "right", "--checkpoint", "no.pt"], "no.pt is missing"),
        (["a.jpg", BOX, "--side", "right", "--device", "abacus"], "device='abacus'"),
        (["z.jpg", BOX, "--side", "right"], "z.jpg does not exist"),
        ([".", "a.jpg", BOX, "--side", "right"], "would overwrite one another"),
        (["a.jpg", BOX, "--side", "right", "--out", "notes.txt"], "cannot write into"),
        (["a.jpg", BOX, "--side", "right", "--out", "notes.txt/x"], "cannot write into"),
        ([".", BOX, "--side", "right", "--out", "."], "is a folder of photos"),
    ],
)
def test_a_bad_argument_stops_at_once(hamr, photos, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(photos)
    before = sorted(photos.iterdir())
    code, _, err = hamr(*arguments)
    assert code == command.FAILED and complaint in err and err.count("error") == 1
    assert sorted(photos.iterdir()) == before
    assert not list(tmp_path.glob("out/*"))


def test_other_files_of_a_folder_are_named(hamr, photos):
    _, out, err = hamr(photos, BOX, "--side", "right")
    assert "skipped, neither image nor video:" in err and "notes.txt" in err
    assert "a.jpg: 1 hand (right) ->" in out and "0 left and 2 right hands" in out
    assert err.count("c.png") == 1  # a message names the file once


def test_names_that_a_terminal_cannot_show(photos, tmp_path, tiny_checkpoint):
    odd = os.path.join(os.fsencode(photos), b"caf\xe9.jpg")
    os.rename(photos / "a.jpg", odd)
    (photos / "c.png").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "hamr_lib", "recover", str(photos), BOX, "--side", "right",
         "--out", str(tmp_path / "out"), "--checkpoint", str(tiny_checkpoint)],
        capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == command.DONE, done.stderr
    assert b"caf\\xe9.jpg: 1 hand" in done.stdout and len(list(tmp_path.glob("out/*"))) == 10


def test_odd_paths_are_told(hamr, photos, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for arguments, complaint in (
        ((photos / "a.jpg", "--out", tmp_path / "loop"), "loop"),
        ((tmp_path / ("a" * 300 + ".png"),), "File name too long"),
        ((photos / "a.jpg", "--box=0,0,1e308,1e308"), "outside the photo"),
        ((photos / "a.jpg", "--device", "meta"), "device='meta' cannot be used"),
    ):
        code, _, err = hamr(*arguments)
        assert code == command.FAILED and complaint in err
    os.mkfifo(tmp_path / "pipe.png")
    long = "b" * 245 + ".png"
    Image.new("RGB", (90, 90)).save(tmp_path / long)
    code, _, err = hamr(tmp_path / "pipe.png", tmp_path / long, photos / "a.jpg", BOX)
    assert code == command.PARTLY and "pipe.png is not a file" in err
    assert "File name too long" in err


def test_a_folder_without_photos(hamr, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = hamr(tmp_path / "empty", BOX, "--side", "right")
    assert code == command.FAILED and "empty is a folder without photos" in err


def test_a_photo_is_not_overwritten_by_the_result_of_another(hamr, photos):
    (photos / "a.jpg").rename(photos / "a_overlay.png")
    (photos / "b.PNG").rename(photos / "a.png")
    code, _, err = hamr(
        photos / "a.png", photos / "a_overlay.png", "--out", photos, BOX, "--side", "right"
    )
    assert code == command.FAILED and "would overwrite" in err


# --- finding hands, and videos ------------------------------------------------------------------


@pytest.fixture(scope="module")
def left():
    return read_photo(example_photographs()[0])


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(7).normal(110, 12, (160, 160, 3)).clip(0, 255).astype(np.uint8)


def test_hands_are_found_in_photos(hamr, left, tmp_path):
    Image.fromarray(left).save(tmp_path / "one.png")
    Image.fromarray(np.hstack([left, left[:, ::-1]])).save(tmp_path / "two.png")
    code, out, _ = hamr(tmp_path / "one.png", tmp_path / "two.png")
    assert code == command.DONE and "2 of 2" in out
    stored = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("out/*.json")}
    assert set(stored) == {"one", "two", "two_hand2"}
    assert stored["one"]["side"] == "left" and stored["one"]["evidence"] == "both"
    assert {stored[stem]["side"] for stem in ("two", "two_hand2")} == {"left", "right"}


def test_a_photo_without_a_hand_has_its_own_code(hamr, left, noise, tmp_path):
    Image.fromarray(noise).save(tmp_path / "noise.png")
    code, out, err = hamr(tmp_path / "noise.png")
    assert code == command.NO_HAND and "noise.png: no hand was found" in err and "0 of 1" in out
    assert not list((tmp_path / "out").iterdir())
    Image.fromarray(left).save(tmp_path / "one.png")
    code, _, _ = hamr(tmp_path / "one.png", tmp_path / "noise.png")
    assert code == command.PARTLY
    (tmp_path / "text.png").write_text("not an image")
    code, _, _ = hamr(tmp_path / "text.png", tmp_path / "noise.png")
    assert code == command.FAILED


def write_video(path, images):
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (width, height))
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()


def test_a_video_gives_an_overlay_and_a_file_a_hand(hamr, left, noise, tmp_path):
    left = left[: left.shape[0] // 2 * 2, : left.shape[1] // 2 * 2]
    noise = cv2.resize(noise, left.shape[1::-1])
    write_video(tmp_path / "clip.mp4", [left, left, noise])
    code, out, _ = hamr(tmp_path / "clip.mp4", "--frames")
    assert code == command.DONE and "clip.mp4: 1 hand (left) ->" in out
    frames = {f"clip-{i:06d}{end}" for i in (0, 1) for end in
              ("_overlay.png", ".glb", ".obj", ".json")}  # fmt: skip
    expected = {"clip_overlay.mp4", "clip_hand1.npz"} | frames
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    with np.load(tmp_path / "out" / "clip_hand1.npz") as track:
        assert track["frame"].tolist() == [0, 1] and track["time"][1] == pytest.approx(0.2)
        assert track["joints_3d"].shape == (2, 21, 3) and track["side"].tolist() == ["left"] * 2
    write_video(tmp_path / "empty.mp4", [noise, noise])
    code, _, err = hamr(tmp_path / "empty.mp4", "--out", tmp_path / "none")
    assert code == command.NO_HAND and "no hand was found in any of its 2 frames" in err
    assert not list((tmp_path / "none").iterdir())
    (tmp_path / "text.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    code, _, err = hamr(tmp_path / "text.mp4")
    assert code == command.FAILED and "text.mp4' is not a video that is read" in err


@pytest.mark.parametrize(
    "names", [("a.png", "a.jpg"), ("a.png", "a_hand2.png"), ("a.mp4", "a-000001.png"),
              ("a.mp4", "a-000001_hand2.png")],
)  # fmt: skip
def test_results_of_one_name(hamr, tmp_path, names):
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.touch()
    code, _, err = hamr(*paths)
    assert code == command.FAILED and "would overwrite one another" in err


def test_names_that_only_look_alike(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "a-2.png", "a-000001.png", "b_hand2.png")]
    for path in paths:
        path.touch()
    args = SimpleNamespace(out=tmp_path / "out", photos=paths)
    assert command.list_photos(paths) == (paths, [])
    command._check_names(paths, args)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_a_folder_takes_the_memory_of_one_photo(hamr, tmp_path):
    """Each photo is 6 MB decoded: kept, the ten would be 60 MB."""
    folder = tmp_path / "many"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3)).astype(np.uint8)
    large = Image.fromarray(pixels).resize((1600, 1200))
    for i in range(14):
        large.save(folder / f"{i}.jpg", quality=50)
    options = ("--box=200,100,900,900", "--side", "right")
    hamr(*(folder / f"{i}.jpg" for i in range(4)), *options)
    before = resident()
    code, _, _ = hamr(*(folder / f"{i}.jpg" for i in range(4, 14)), *options)
    assert code == command.DONE and resident() - before < 30e6


def resident():
    """Bytes of this process that are in memory; freed memory is given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["recover"],
        ["recover", "a.jpg"],
        ["recover", "a.jpg", "--out", "x", "--box", "1,2,3"],
        ["recover", "a.jpg", "--out", "x", "--box", "1,2,3,d"],
        ["recover", "a.jpg", "--out", "x", "--side", "top"],
        ["recover", "a.jpg", "--out", "x", "--sude", "left"],
    ],
)
def test_a_wrong_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        command.main(arguments)
    assert raised.value.code == command.USAGE
    assert "usage: hamr" in capsys.readouterr().err


def test_an_interrupt(hamr, photos, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "list_photos", interrupt)
    code, _, err = hamr(photos / "a.jpg", BOX, "--side", "right")
    assert code == command.INTERRUPTED and "interrupted" in err


def test_help_lists_the_exit_codes_and_does_not_wait_for_torch():
    code = (
        "import sys; from hamr_lib.recovery.command import main\n"
        "try: main(['recover', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = done.stdout.split("exit codes:")[1].split()
    for number in (
        command.DONE,
        command.FAILED,
        command.USAGE,
        command.PARTLY,
        command.INTERRUPTED,
    ):
        assert str(number) in codes


def test_python_dash_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "hamr_lib", "recover"], capture_output=True, text=True
    )
    assert done.returncode == command.USAGE and "usage: hamr recover" in done.stderr
