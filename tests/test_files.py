"""Files appear whole or not at all."""

import pytest

from hamr_lib.errors import HamrError
from hamr_lib.files import digest, read_json, write_aside, write_json


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


def test_a_full_disk_is_named(tmp_path):
    target = tmp_path / "file.json"
    with pytest.raises(HamrError, match=f"cannot write {target}: No space left"):
        with write_aside(target):
            raise OSError(28, "No space left on device")


def test_json_round_trip_and_errors(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 2]})
    assert read_json(path) == {"b": [1, 2]}
    path.write_text('{"b": [1,')
    with pytest.raises(HamrError, match="is not JSON"):
        read_json(path)
    with pytest.raises(HamrError, match="is missing"):
        read_json(tmp_path / "none.json")


def test_digest_is_stable_and_sensitive():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
