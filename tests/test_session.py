"""A session of limited time, with tiny parts in the place of the renderer and the bench."""

import json

import pytest
import torch
from test_train import crops_of
from tiny import TinyHand, tiny_settings

from hamr_lib import bench, session
from hamr_lib.model import checkpoint
from hamr_lib.model.hamr import HAMR

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The settings of what is rendered, in order."""
    settings, crops, rendered = tiny_settings(steps=8), crops_of(tmp_path), []
    monkeypatch.setattr(session, "load_settings", lambda profile: settings)
    monkeypatch.setattr(session, "hand_of", lambda settings: TinyHand())
    monkeypatch.setattr(session, "training_crops", lambda settings: crops)
    monkeypatch.setattr(
        session, "render_open_sets", lambda settings, processes: rendered.append(settings)
    )
    monkeypatch.setattr(bench, "noise_crops", lambda settings, count: None)
    return rendered


def steps_of(path):
    """Steps that a checkpoint's run has taken, and the settings of its training."""
    about = checkpoint.read(path)["hamr"]
    return about["step"], about["settings"]["train"]


def test_a_session_trains_on_other_images_and_then_on_the_profiles_own(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "loop_and_bare", lambda *args, turns: ([0.01], [0.01]))
    history = session.session(tmp_path, "tiny", minutes=3, benched=False)
    part, whole = (settings.data.open for settings in tiny)
    assert part.rhd_training == whole.rhd_training and part.seed != whole.seed
    assert part.rhd_evaluation < whole.rhd_evaluation
    # There is time for more than the eight steps that the profile asks for.
    (first, before), (main, after) = (
        steps_of(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("first", "main")
    )
    assert first == main == history[-1]["step"] == 8
    assert after["learning_rate"] < before["learning_rate"]
    about = json.loads((tmp_path / "session.json").read_text())
    assert about["profile"] == "tiny" and about["log"] == history
    state = checkpoint.read(tmp_path / "model.pt")["state_dict"]
    best = checkpoint.read(tmp_path / "main" / "checkpoints" / "best.ckpt")["state_dict"]
    assert state.keys() == best.keys()


def test_a_session_takes_as_many_steps_as_the_time_gives(tiny, tmp_path, monkeypatch):
    # Of 5970 seconds the first run has 0.6. A step takes 900, and a tenth more with what is beside.
    monkeypatch.setattr(bench, "loop_and_bare", lambda *args, turns: ([900.0, 1000.0, 800.0], [1]))
    history = session.session(tmp_path / "one", "tiny", minutes=100, benched=False)
    assert steps_of(tmp_path / "one" / "first" / "checkpoints" / "last.ckpt")[0] == 3
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5]
    # Without any time left there is a network of one step all the same.
    session.session(tmp_path / "none", "tiny", minutes=0.5, benched=False)
    assert steps_of(tmp_path / "none" / "main" / "checkpoints" / "last.ckpt")[0] == 1
    assert (tmp_path / "none" / "model.pt").is_file()


def test_the_main_run_begins_with_the_weights_of_the_first(tiny, tmp_path):
    settings = tiny_settings()
    first, other = HAMR(settings.model, TinyHand()), HAMR(settings.model, TinyHand())
    path = tmp_path / "last.ckpt"
    checkpoint.save_model(path, first, checkpoint.describe(settings, "", TinyHand(), 1, {}))
    session.Resumed(path).prepare(other, settings, None)
    for name, weight in first.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight)


@pytest.mark.slow
def test_a_whole_session_of_the_smoke_profile(tmp_path):
    session.main([str(tmp_path), "--profile", "smoke", "--minutes", "10", "--no-bench"])
    assert (tmp_path / "model.pt").is_file() and (tmp_path / "main" / "log.csv").is_file()
