"""The command `hamr`: every option, every kind of bad input, and its exit codes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hamr_lib import cli

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
        code = cli.main(["recover", *map(str, options)])
        return code, *capsys.readouterr()

    return run


def test_one_photo(hamr, photos, tmp_path, tiny_checkpoint):
    code, out, _ = hamr(photos / "a.jpg", BOX, "--side", "left", "--device", "cpu")
    assert code == cli.DONE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.glb", "a.json", "a.obj", "a_overlay.png"
    ]  # fmt: skip
    stored = json.loads((tmp_path / "out" / "a.json").read_text())
    assert stored["side"] == "left" and stored["box"] == [20, 10, 80, 70]
    assert stored["checkpoint"] == str(tiny_checkpoint) and str(tiny_checkpoint) in out


def test_a_folder_with_a_broken_photo_does_the_others(hamr, photos, tmp_path):
    code, out, err = hamr(photos, BOX, "--side", "right")
    assert code == cli.PARTLY
    assert "2 of 3" in out and "c.png" in err and "not an image" in err
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"a", "b"}


def test_no_photo_could_be_done(hamr, photos, tmp_path):
    code, _, err = hamr(photos / "c.png", BOX, "--side", "right")
    assert code == cli.FAILED and "c.png is not an image" in err
    code, _, err = hamr(photos / "a.jpg", "--box=200,10,280,70", "--side", "right")
    assert code == cli.FAILED and "outside the photo, which has 120 x 90 pixels" in err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["a.jpg", "--side", "right"], "finding the hand in a photo is not built yet"),
        (["a.jpg", BOX], "telling left hands from right ones is not built yet"),
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
    assert code == cli.FAILED and complaint in err and err.count("error") == 1
    assert sorted(photos.iterdir()) == before
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_without_photos(hamr, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = hamr(tmp_path / "empty", BOX, "--side", "right")
    assert code == cli.FAILED and "empty is a folder without photos" in err


def test_a_photo_is_not_overwritten_by_the_result_of_another(hamr, photos):
    (photos / "a.jpg").rename(photos / "a_overlay.png")
    (photos / "b.PNG").rename(photos / "a.png")
    code, _, err = hamr(
        photos / "a.png", photos / "a_overlay.png", "--out", photos, BOX, "--side", "right"
    )
    assert code == cli.FAILED and "would overwrite" in err


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
        cli.main(arguments)
    assert raised.value.code == cli.USAGE
    assert "usage: hamr" in capsys.readouterr().err


def test_an_interrupt(hamr, photos, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "list_photos", interrupt)
    code, _, err = hamr(photos / "a.jpg", BOX, "--side", "right")
    assert code == cli.INTERRUPTED and "interrupted" in err


def test_help_lists_the_exit_codes_and_does_not_wait_for_torch():
    code = (
        "import sys; from hamr_lib.cli import main\n"
        "try: main(['recover', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = done.stdout.split("exit codes:")[1].split()
    for number in (cli.DONE, cli.FAILED, cli.USAGE, cli.PARTLY, cli.INTERRUPTED):
        assert str(number) in codes


def test_python_dash_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "hamr_lib", "recover"], capture_output=True, text=True
    )
    assert done.returncode == cli.USAGE and "usage: hamr recover" in done.stderr
