"""Files appear whole or not at all."""

import resource
import signal

import numpy as np
import pytest
import torch

from hamr_lib.data import frame
from hamr_lib.errors import HamrError
from hamr_lib.files import read_json, write_aside, write_json
from hamr_lib.model import checkpoint


def test_write_aside_renames_on_success_and_leaves_nothing_on_failure(tmp_path):
    target = tmp_path / "deep" / "file.npz"
    with write_aside(target) as aside:
        aside.write_text("whole")
        assert not target.exists() and aside.suffix == ".npz"
    assert target.read_text() == "whole"
    with pytest.raises(ZeroDivisionError), write_aside(target) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == ["file.npz"]


@pytest.fixture
def small_files():
    """No file may grow over 4 KB, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def save_checkpoint(path):
    checkpoint.save(path, {"weights": torch.zeros(10000)})


def save_picture(path):
    frame.write_image(path, np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))


@pytest.mark.parametrize(
    "write", [lambda path: write_json(path, "x" * 10000), save_checkpoint, save_picture]
)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, small_files, write):
    target = tmp_path / "file.png"
    with pytest.raises(HamrError, match=f"cannot write {target}"):
        write(target)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_the_way_is_told(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("folder", "file/below", "loop/below"):
        with pytest.raises(HamrError, match=f"cannot write .*{name}"):
            write_json(tmp_path / name, 1)
    write_json(tmp_path / ("ü" * 120 + ".json"), 1)  # 245 bytes, of 255 that a name may have


def test_json_that_is_none_is_told(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2]}
    (tmp_path / "a.json").write_text('{"b": [1,')
    with pytest.raises(HamrError, match="is not JSON"):
        read_json(tmp_path / "a.json")
