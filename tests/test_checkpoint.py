import dataclasses
import functools
import operator
import os
import subprocess
import sys
import zipfile
from unittest.mock import Mock

import pytest
import torch
from tiny import TinyHand, tiny_settings

from hamr_lib.errors import HamrError
from hamr_lib.model import checkpoint
from hamr_lib.model.hamr import HAMR, load_model

METRICS = {"val_joints_3d_mm": 12.5}


@pytest.fixture
def saved(tmp_path):
    settings, hand = tiny_settings(), TinyHand()
    path = tmp_path / "best.ckpt"
    torch.manual_seed(0)
    made = HAMR(settings.model, hand)
    made(torch.rand(4, 3, 32, 32))  # so that the normalisations have seen something
    description = checkpoint.describe(settings, "data123", hand, 40, METRICS)
    checkpoint.save_model(path, made, description)
    return path, settings, hand, made.eval()


def loads(monkeypatch, hand):
    """Let `load_model` find this hand; the mock that it asks for it."""
    monkeypatch.setattr("hamr_lib.model.hamr.load_hand", asked := Mock(return_value=hand))
    return asked


def test_a_model_comes_back_as_it_was(saved, monkeypatch):
    path, settings, hand, made = saved
    asked = loads(monkeypatch, TinyHand())
    loaded, found = load_model(path)
    asked.assert_called_once_with("tiny", pose_components=6, joints="regressed")
    assert found == settings and not loaded.training and loaded.metrics == METRICS
    stored = torch.load(path, weights_only=True)["state_dict"]  # MANO's may not be passed on
    assert not [key for key in stored if "hand" in key.split(".")]
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = loaded(image).estimates[-1], made(image).estimates[-1]
    torch.testing.assert_close(ours.joints_3d, theirs.joints_3d)
    torch.testing.assert_close(ours.camera, theirs.camera)


def test_a_missing_truncated_or_foreign_file_is_named(saved, tmp_path):
    path = saved[0]
    with pytest.raises(HamrError, match=r"none\.ckpt is missing"):
        checkpoint.read(tmp_path / "none.ckpt")
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(HamrError, match=r"best\.ckpt is no readable checkpoint"):
            checkpoint.read(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(HamrError, match=r"best\.ckpt is no checkpoint of HAMR"):
        checkpoint.read(path)


WEIGHT = "pose_module.maps.0.weight"  # (21, 8, 1, 1)
BAD_VALUES = [
    *((["hamr", key], None) for key in checkpoint.DESCRIPTION),
    (["hamr", "format"], 1),
    (["hamr", "hand_fingerprint"], ...),
    (["hamr", "hand_fingerprint"], torch.full((21, 3), torch.nan)),
    (["hamr", "hand"], "claw"),
    (["hamr", "settings", "model"], 3),
    (["hamr", "settings", "model", "hidden"], 10**9),
    (["hamr", "settings", "model", "dropout"], torch.nan),
    (["state_dict"], ...),
    (["state_dict"], {}),
    (["state_dict", 5], torch.zeros(1)),
    (["state_dict", "more"], torch.zeros(1)),
    (["state_dict", WEIGHT], ...),
    (["state_dict", WEIGHT], "weights"),
    (["state_dict", WEIGHT], torch.zeros(21, 8, 1, 1).to_sparse()),
    (["state_dict", WEIGHT], torch.zeros(21, 8, 1, 1, device="meta")),
    (["state_dict", WEIGHT], torch.full((21, 8, 1, 1), torch.inf)),
    (["state_dict", WEIGHT], torch.zeros(8, 21, 1, 1)),
    (["state_dict", WEIGHT], torch.zeros(1).expand(10**6, 10**6)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place, value", BAD_VALUES)
def test_a_wrong_value_is_refused_in_our_words(saved, monkeypatch, place, value):
    path, content = saved[0], torch.load(saved[0], weights_only=True)
    *above, last = place
    node = functools.reduce(operator.getitem, above, content)
    if value is ...:
        del node[last]
    else:
        node[last] = value
    torch.save(content, path)
    if place != ["hamr", "hand"]:
        loads(monkeypatch, TinyHand())
    with pytest.raises(HamrError) as refused:
        load_model(path)
    message = str(refused.value)
    assert len(message) < 1000 and "\n" not in message
    assert "weights_only" not in message and "torch.load" not in message


class Intruder:
    ran = False

    def __reduce__(self):
        return setattr, (Intruder, "ran", True)


@pytest.mark.parametrize("kind", ["compressed", "older", "bomb", "code"])
def test_a_file_that_would_harm_its_reader_is_refused(saved, kind):
    path, bomb = saved[0], ()
    content = torch.load(path, weights_only=True)
    if kind == "code":
        content["state_dict"] = Intruder()
    if kind == "bomb":  # a key of nested tuples, whose hash takes for ever
        for _ in range(12):
            bomb = (bomb, bomb)
        content["hamr"]["metrics"] = {bomb: 1.0}
    torch.save(content, path, _use_new_zipfile_serialization=kind != "older")
    if kind == "compressed":  # entries that would be inflated
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, entry in entries.items():
                archive.writestr(name, entry)
    with pytest.raises(HamrError, match=r"best\.ckpt is no readable checkpoint"):
        load_model(path)
    assert not Intruder.ran


@pytest.mark.parametrize(
    "other, data, told",
    [
        (tiny_settings({"channels": 16}), "data123", "model.channels=8, but .* model.channels=16"),
        (tiny_settings(seed=3), "data123", "train.seed=0, but this run asks for train.seed=3"),
        (tiny_settings(), "other", "data='data123', but this run asks for data='other'"),
    ],
)
def test_other_settings_or_data_are_refused_by_name(saved, other, data, told):
    described = checkpoint.read(saved[0])["hamr"]
    with pytest.raises(HamrError, match=told):
        checkpoint.check_same_run(saved[0], described, other, data)
    del described["settings"]["model"]["pooled_features"]  # a setting newer than the checkpoint
    # Where a run computes, and what is done with it afterwards, may change.
    moved = dataclasses.replace(tiny_settings(devices=4, nodes=2, workers=3), profile="elsewhere")
    checkpoint.check_same_run(saved[0], described, moved, "data123")


def test_another_hand_is_refused(saved, monkeypatch):
    other, renamed = TinyHand(seed=1), TinyHand()
    renamed.name = "mano"
    for hand, told in (
        (other, r"another 'tiny' hand: a test pose differs by \d"),
        (renamed, "trained with the 'tiny' hand, not 'mano'"),
    ):
        loads(monkeypatch, hand)
        with pytest.raises(HamrError, match=told):
            load_model(saved[0])


def test_release_in_half_precision(saved, tmp_path, monkeypatch):
    path, _, hand, made = saved
    release = tmp_path / "release.ckpt"
    checkpoint.save_release(path, release)
    assert release.stat().st_size < 0.75 * path.stat().st_size
    loads(monkeypatch, hand)
    loaded = load_model(release)[0]
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    image = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = loaded(image).estimates[-1], made(image).estimates[-1]
    assert (ours.joints_3d - theirs.joints_3d).norm(dim=-1).max() < 1e-4  # a tenth of a millimetre
    # Too large a file, or a weight beyond a half's range, is refused and nothing is written.
    monkeypatch.setattr(checkpoint, "RELEASE_MB", 0.001)
    with pytest.raises(HamrError, match="expected at most"):
        checkpoint.save_release(path, tmp_path / "large.ckpt")
    content = checkpoint.read(path)
    content["state_dict"]["pose_module.maps.0.weight"][0, 0] = 1e6
    checkpoint.save(path, content)
    with pytest.raises(HamrError, match="pose_module.maps.0.weight does not fit half precision"):
        checkpoint.save_release(path, tmp_path / "large.ckpt")
    assert not (tmp_path / "large.ckpt").exists()


def test_loading_a_model_needs_no_package_of_training():
    code = (
        "import sys, hamr_lib.model.hamr\n"
        "from hamr_lib.config import Model\n"
        "hamr_lib.model.hamr.PoseModule(Model(stem='hand_landmark'), pretrained=False)\n"
        "print(sys.modules.keys() & {'lightning', 'mediapipe', 'tflite'})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_which_checkpoint_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "ROOT", tmp_path)
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "pretrained.pt")

    def touch(profile, time):
        path = tmp_path / "results" / profile / "runs" / "main" / "checkpoints" / "best.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time, time))
        return path

    touch("smoke", 9)
    with pytest.raises(HamrError, match="no trained network"):
        checkpoint.pretrained()
    checkpoint.SHIPPED.touch()
    assert checkpoint.pretrained() == checkpoint.SHIPPED
    own, _ = touch("cpu", 2), touch("gpu", 1)
    assert checkpoint.pretrained() == own
