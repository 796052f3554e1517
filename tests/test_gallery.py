"""The gallery: which samples it shows, and that it needs nothing but itself."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from hamr_lib.config import load_settings
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import predict, scores
from hamr_lib.recovery.pipeline import recover_frame
from hamr_lib.report import gallery


def write(browsed, monkeypatch, target):
    """Write the gallery of a run that was evaluated on drawn frames; its path."""
    folder, frames = browsed
    found = SimpleNamespace(title="open-rhd", load=lambda split, data: frames)
    monkeypatch.setattr(gallery.registry, "find_sets", lambda settings: {"rhd": found})
    (target / "runs").mkdir()
    (target / "runs" / "main").symlink_to(folder)
    return gallery.write_gallery(load_settings("smoke"), target)


def test_best_median_and_worst_are_shown(browsed, monkeypatch, tmp_path):
    text = write(browsed, monkeypatch, tmp_path).read_text()
    predictions = predict.load_predictions(predict.predictions_path(browsed[0], "open-rhd"))
    errors = scores.errors(predictions, scores.main_protocol(predictions)).mean(1)
    shown = re.findall(r"<b>(\w+) of 12</b><br>([\w/]+), (left|right) hand, (\d+) mm", text)
    order = np.argsort(errors)
    for (name, key, _, millimetres), index in zip(shown, order[[0, 6, 11]], strict=True):
        assert name in ("best", "median", "worst")
        assert key == predictions["keys"][index] and int(millimetres) == round(errors[index])
    assert "rendered stand-in" in text and "http" not in text


def test_predictions_of_other_data_are_refused(browsed, monkeypatch, tmp_path):
    for frame in browsed[1]:
        monkeypatch.setattr(frame, "key", "evaluation/99999")
    with pytest.raises(HamrError, match="is now evaluation/99999"):
        write(browsed, monkeypatch, tmp_path)


def test_the_turntable_shows_the_whole_mesh_from_all_sides(browsed, tiny_checkpoint):
    recovery = recover_frame(browsed[1][0], tiny_checkpoint)[-1]
    views = np.split(gallery.turntable(recovery), gallery.VIEWS, axis=1)
    for view in views:
        assert view.shape == (gallery.SIZE, gallery.SIZE, 3)
        border = np.concatenate([view[0], view[-1], view[:, 0], view[:, -1]])
        assert (border == 255).all() and (view < 250).any(2).mean() > 0.02
    assert all((a != b).any() for a, b in zip(views, views[1:], strict=False))
