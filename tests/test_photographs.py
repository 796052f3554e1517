"""Hands in photographs: the labels we keep, and what is made of them."""

from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from hamr_lib import recover
from hamr_lib.data import photographs
from hamr_lib.data.crops import BOX_FACTOR, load_crops
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import scores
from hamr_lib.joints import NAMES
from hamr_lib.model.hamr import load_model
from hamr_lib.report import tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """BSDS500 as its archive unpacks, in noise of its photographs' sizes."""
    rng = np.random.default_rng(0)
    for name in sorted(set(labels().photograph)):
        wide = labels()[labels().photograph == name].x.max() > 321
        noise = rng.integers(0, 256, (321, 481, 3) if wide else (481, 321, 3), dtype=np.uint8)
        path = tmp_path / "bsds" / "images" / "train" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), noise)
    monkeypatch.setenv("BACKGROUNDS", str(tmp_path / "bsds"))
    return tmp_path / "bsds"


def labels():
    return pd.read_csv(photographs.LABELS, dtype={"photograph": str})


def test_labels_are_of_hands_in_photographs():
    table = labels()
    assert set(table.joint) <= set(NAMES) and set(table.side) == {"left", "right"}
    assert not table.duplicated(["photograph", "hand", "joint"]).any()
    assert table[["x", "y"]].ge(0).all(axis=None) and table[["x", "y"]].lt(481).all(axis=None)
    for _, hand in table.groupby(["photograph", "hand"]):
        assert hand.side.nunique() == 1 and len(hand) >= 10
        assert np.ptp(hand[["x", "y"]], axis=0).max() > 20  # pixels: not too small to be marked
    assert table.groupby(["photograph", "hand"]).ngroups == 20


def test_hands_become_frames(folder):
    frames = photographs.Photographs(photographs.find_photographs("nowhere"))
    assert len(frames) == 20
    for frame in frames:
        seen = np.isfinite(frame.joints_2d).all(1)
        rows = labels().query(f"photograph == '{frame.key[:-1]}' and hand == '{frame.key[-1]}'")
        assert [NAMES[i] for i in np.flatnonzero(seen)] == list(rows.joint)
        np.testing.assert_allclose(frame.joints_2d[seen], rows[["x", "y"]], atol=1e-4)
        assert (frame.joints_2d[seen] < frame.image.shape[1::-1]).all()
        assert np.isnan(frame.joints_3d).all() and frame.mask is None


def test_a_network_is_scored_in_shares_of_the_box(folder, tmp_path, tiny_checkpoint, monkeypatch):
    """A tenth of the box beside every label is right from 0.1 to 0.3 of 0 to 0.3: two thirds."""
    _, settings = load_model(tiny_checkpoint)
    frames = photographs.Photographs(photographs.find_photographs("nowhere"))
    crops = load_crops(frames, "test", settings.model.image_size, cache=tmp_path / "cache")
    # A box is 1 / BOX_FACTOR of its crop, which is two units wide.
    beside = torch.from_numpy(crops.labels["joints_2d"]) + torch.tensor([0.2 / BOX_FACTOR, 0])
    far = torch.full_like(beside, 9.0)
    answer = {"joints_2d": beside, "peaks_2d": far}
    monkeypatch.setattr(scores, "load_crops", lambda *args, **named: crops)
    monkeypatch.setattr(scores, "network_estimator", lambda *args: lambda image: answer)
    recovered = iter(frames)

    def recover(image, box, side, checkpoint):
        frame = next(recovered)
        assert (image == frame.image).all() and side == frame.side and checkpoint == tiny_checkpoint
        x0, y0, x1, y1 = box
        joints = frame.joints_2d + [0, (x1 - x0) / 5]  # a fifth of the box below
        assert np.nanmin(joints, 0)[0] >= x0 and x1 - x0 == pytest.approx(y1 - y0)
        return [SimpleNamespace(joints_2d=np.nan_to_num(joints))]

    monkeypatch.setattr(scores, "recover", recover)
    rows = scores.evaluate_photographs(tiny_checkpoint, tmp_path / "runs" / "main")
    rows = rows.set_index("metric")
    # The step from 0.09 or to 0.11 may count by half, as a tenth is or is not within a tenth.
    assert rows.value["auc_2d_box"] == pytest.approx(2 / 3, abs=0.005 / 0.3 + 1e-6)
    assert rows.value["auc_2d_box_recover"] == pytest.approx(1 / 3, abs=0.005 / 0.3 + 1e-6)
    assert rows.value["auc_2d_box_heatmaps"] == 0 and (rows.n == 20).all()
    assert (rows.dataset == "BSDS500 hands").all() and (rows.source == "measured").all()
    shown = tables.photographs(tmp_path)
    assert shown.hands.tolist() == [20]
    assert "by eye" in (tmp_path / "tables" / "photographs.md").read_text()


def test_without_photographs_there_is_no_score(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(photographs, "find_photographs", dict)
    assert scores.evaluate_photographs(tiny_checkpoint, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_photographs_that_are_missing_or_others_are_named(folder):
    path = next(folder.rglob("302003.jpg"))
    cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
    frames = photographs.Photographs(photographs.find_photographs("nowhere"))
    index = [name for (name, _), _ in frames.hands].index("302003")
    with pytest.raises(HamrError, match="302003.jpg has 30 x 20 pixels: expected BSDS500's own"):
        frames[index]
    path.unlink()
    with pytest.raises(HamrError, match="302003.jpg is missing"):
        photographs.find_photographs("nowhere")


# Tips and PIP joints in the photographs of `example_photographs`, marked by eye on enlargements.
MARKED = {
    "IMG-1842.jpg": {
        "thumb tip": (30, 153), "index PIP": (75, 121), "index tip": (61, 66),
        "middle PIP": (103, 112), "middle tip": (92, 52), "ring PIP": (128, 119),
        "ring tip": (122, 63), "little PIP": (152, 144), "little tip": (152, 97),
    },
    "IMG-1843.jpg": {
        "thumb tip": (37, 143), "index PIP": (88, 114), "index tip": (84, 56),
        "middle PIP": (117, 108), "middle tip": (119, 46), "ring PIP": (140, 120),
        "ring tip": (148, 62), "little PIP": (164, 142), "little tip": (172, 100),
    },
    "IMG-1844.jpg": {
        "thumb tip": (52, 134), "index PIP": (99, 109), "index tip": (113, 53),
        "middle PIP": (129, 110), "middle tip": (148, 51), "ring PIP": (148, 125),
        "ring tip": (170, 72), "little PIP": (161, 148), "little tip": (183, 111),
    },
    "hand.png": {
        "thumb tip": (29, 100), "index PIP": (75, 71), "index tip": (63, 30),
        "middle PIP": (101, 62), "middle tip": (92, 18), "ring PIP": (125, 66),
        "ring tip": (122, 23), "little PIP": (146, 81), "little tip": (148, 45),
    },
}  # fmt: skip


@pytest.mark.parametrize("path", photographs.example_photographs(), ids=lambda path: path.name)
def test_the_shipped_networks_find_a_real_hand(path):
    """One left hand, its joints where they are to a sixth of a finger's length."""
    [hand] = recover(path)
    assert hand.side == "left"
    marks = MARKED[path.name]
    joints = hand.joints_2d[[NAMES.index(name) for name in marks]]
    off = np.linalg.norm(joints - list(marks.values()), axis=1)
    assert off.mean() < 0.06 * np.ptp(hand.joints_2d, axis=0).max()
