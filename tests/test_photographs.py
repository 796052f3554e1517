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
from hamr_lib.model.checkpoint import SHIPPED
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
    # The true photographs may be under data/raw.
    monkeypatch.setattr(photographs.find_photographs, "__defaults__", (tmp_path / "none",))
    return tmp_path / "bsds"


def labels():
    return pd.read_csv(photographs.LABELS, dtype={"photograph": str})


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


# Tips and PIP joints in two of `example_photographs`, marked by eye on enlargements.
MARKED = ("thumb tip", "index PIP", "index tip", "middle PIP", "middle tip", "ring PIP", "ring tip",
          "little PIP", "little tip")  # fmt: skip
PLACES = {
    "IMG-1842.jpg": [(30, 153), (75, 121), (61, 66), (103, 112), (92, 52), (128, 119), (122, 63),
                     (152, 144), (152, 97)],
    "hand.png": [(29, 100), (75, 71), (63, 30), (101, 62), (92, 18), (125, 66), (122, 23),
                 (146, 81), (148, 45)],
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_the_shipped_network_finds_a_real_hand(name):
    """One left hand, its joints where they are to a sixth of a finger's length."""
    [path] = [path for path in photographs.example_photographs() if path.name == name]
    [hand] = recover(path, checkpoint=SHIPPED)
    assert hand.side == "left"
    joints = hand.joints_2d[[NAMES.index(name) for name in MARKED]]
    off = np.linalg.norm(joints - PLACES[name], axis=1)
    assert off.mean() < 0.06 * np.ptp(hand.joints_2d, axis=0).max()
