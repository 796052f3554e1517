"""A wheel alone, without the checkout, recovers a photo."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import trimesh
from PIL import Image

from hamr_lib.data.photographs import example_photographs
from hamr_lib.files import ROOT

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs a command where the wheel of this checkout is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("hamr_lib", "notebooks/profiles"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    away = folder / "away"
    away.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "BACKGROUNDS"} | {
        "PYTHONPATH": str(folder / "target"), "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip

    def run(*command):
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ("--no-deps", "--no-index")  # the other packages are those of this environment
    run(*PIP, "wheel", *options, "--no-build-isolation", "-w", folder, folder / "source")
    [wheel] = folder.glob("*.whl")
    run(*PIP, "install", *options, "--target", folder / "target", wheel)
    shutil.rmtree(folder / "source")
    shutil.copy(example_photographs()[0], away / "photo.jpg")
    return folder, run


@pytest.mark.slow
@pytest.mark.parametrize("command", [["hamr"], [sys.executable, "-m", "hamr_lib"]])
def test_the_command_of_a_wheel_recovers_a_photo(installed, command, tmp_path):
    folder, run = installed
    if command == ["hamr"]:
        command = [folder / "target" / "bin" / "hamr"]
    run(*command, "recover", "photo.jpg", "--out", tmp_path)
    stored = json.loads((tmp_path / "photo.json").read_text())
    assert stored["side"] == "left" and stored["checkpoint"].startswith(str(folder / "target"))
    assert len(trimesh.load_mesh(tmp_path / "photo.glb").faces) > 1000
    overlay = Image.open(tmp_path / "photo_overlay.png")
    assert list(overlay.size) == stored["photo_size"]


@pytest.mark.slow
def test_a_wheel_is_a_library(installed):
    folder, run = installed
    code = "import hamr_lib; print(hamr_lib.__file__); [hand] = hamr_lib.recover('photo.jpg')\n"
    code += "from hamr_lib.config import load_settings; load_settings('reference')\n"
    code += "print(hand.side, hand.joints_3d.shape, [p.name for p in hand.save('out', 'a')])"
    where, hand = run(sys.executable, "-c", code).splitlines()[-2:]
    assert where.startswith(str(folder / "target"))
    assert hand.startswith("left (21, 3) ['a.glb'")
