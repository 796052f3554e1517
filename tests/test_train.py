"""A run is a function of seed and step, whatever ends it, and computes what it says."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import STILL, TinyHand, draw_frames, tiny_settings

from hamr_lib.config import Augment, Model, load_settings
from hamr_lib.data.augment import centre_crop
from hamr_lib.data.crops import load_crops
from hamr_lib.errors import HamrError
from hamr_lib.losses import PARTS
from hamr_lib.model import checkpoint
from hamr_lib.model.backbone import PretrainedStem
from hamr_lib.model.hamr import HAMR
from hamr_lib.training import loop, task
from hamr_lib.training.loop import Run
from hamr_lib.training.schedule import SCHEDULES, WARM_STEPS, WeightAverage, make_optimizer
from hamr_lib.training.watch import Progress, Watch

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]
AVERAGED = {"average": 0.9}


def crops_of(folder):
    frames = draw_frames(20)
    return load_crops(frames, "drawn", 32, Augment(), cache=folder / "cache").split(0.25, seed=0)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    return crops_of(tmp_path_factory.mktemp("crops"))


def fit(run_dir, crops, settings=None, **options):
    return loop.fit(settings or tiny_settings(**AVERAGED), run_dir, *crops, TinyHand(), **options)


def timeless(history):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]


def saved(run_dir, name="last"):
    return checkpoint.read(run_dir / "checkpoints" / f"{name}.ckpt")


@pytest.fixture(scope="module")
def unbroken(crops, tmp_path_factory):
    """A finished run of 12 steps, validated every 4, with dropout, augmentation and averaging."""
    run_dir = tmp_path_factory.mktemp("unbroken")
    return run_dir, fit(run_dir, crops)


def same(a, b):
    """Equal to the last bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(run_dir, history, unbroken):
    whole_dir, whole = unbroken
    assert timeless(history) == timeless(whole)
    for name in ("last", "best"):
        ours, theirs = saved(run_dir, name), saved(whole_dir, name)
        for content in (ours, theirs):
            content.get("run", {}).pop("seconds", None)
        assert same(ours["state_dict"], theirs["state_dict"])
        assert same(ours.get("run"), theirs.get("run"))
        assert ours["hamr"]["step"] == theirs["hamr"]["step"]
    assert len(pd.read_csv(run_dir / "log.csv")) == len(whole)


def test_what_a_run_leaves(unbroken, crops):
    run_dir, history = unbroken
    assert [row["step"] for row in history] == [4, 8, 12]
    log = pd.read_csv(run_dir / "log.csv", float_precision="round_trip")
    assert log.to_dict("records") == history
    for row in history:
        total = sum(getattr(tiny_settings().losses, part) * row[f"val_{part}"] for part in PARTS)
        assert row["val_total"] == pytest.approx(total, rel=1e-5)
    stored = np.load(run_dir / "validation.npz")
    assert stored["error"].shape == (3, len(crops[1]))
    assert stored["error"].mean(1) == pytest.approx([row["val_joints_3d_mm"] for row in history])
    lowest = min(history, key=lambda row: row["val_joints_3d_mm"])
    best = saved(run_dir, "best")["hamr"]
    assert best["step"] == lowest["step"] and best["metrics"] == lowest
    assert not list(run_dir.rglob(".*part*"))


def test_validation_errors_are_those_of_the_saved_network(unbroken, crops):
    """Each sample's error, computed anew and by itself from the checkpoint."""
    run_dir, _ = unbroken
    network = HAMR(tiny_settings().model, TinyHand())
    network.load_state_dict(saved(run_dir)["state_dict"])
    errors = []
    for i in range(len(crops[1])):
        batch = centre_crop(crops[1].batch([i]), 32)
        with torch.no_grad():
            found = network.eval()(batch["image"]).estimates[-1].joints_3d
        errors.append((found - batch["joints_3d"]).norm(dim=-1).mean().item() * 1000)
    assert np.load(run_dir / "validation.npz")["error"][-1] == pytest.approx(errors, rel=1e-4)


def test_the_average_of_weights(crops, tmp_path):
    """It follows its recurrence, and training does not notice it."""
    network = torch.nn.BatchNorm1d(1)
    average, wanted = WeightAverage(network, decay=0.5), None
    for n, value in enumerate([3.0, 5.0, -1.0, 2.0] + 20 * [7.0]):
        network.weight.data.fill_(value)
        network.running_var.fill_(value)
        decay = min(0.5, (1 + n) / (10 + n))
        wanted = value if wanted is None else decay * wanted + (1 - decay) * value
        average.update_parameters(network)
        assert average.module.weight.item() == pytest.approx(wanted, rel=1e-6)
        assert average.module.running_var.item() == pytest.approx(wanted, rel=1e-6)
    with_average, without = (
        fit(tmp_path / str(decay), crops, tiny_settings(steps=4, average=decay))[0]
        for decay in (0.9, 0.0)
    )
    assert with_average["train_total"] == without["train_total"]
    assert with_average["val_total"] != without["val_total"]
    network = saved(tmp_path / "0.9")["run"]["network"]
    assert same(network, saved(tmp_path / "0.0")["state_dict"])


class Killed(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_end(unbroken, crops, tmp_path):
    """Between validations, by its time limit and by the file."""
    with pytest.raises(HamrError, match="stopped at step 1 of 12"):
        fit(tmp_path, crops, minutes=0)
    (tmp_path / "stop").touch()
    with pytest.raises(HamrError, match="stopped at step 2 of 12"):
        fit(tmp_path, crops)
    assert_same_run(tmp_path, fit(tmp_path, crops), unbroken)
    # A run that the file meets at its last step is whole, and the file does not stop another one.
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "stop").touch()
    assert len(fit(tmp_path / "one", crops, tiny_settings(steps=1, validate_every=1))) == 1
    assert not (tmp_path / "one" / "stop").exists()


@pytest.mark.parametrize("lost", ["best.ckpt", "last.ckpt", "log.csv"])
def test_a_kill_while_saving(unbroken, crops, tmp_path, monkeypatch, lost):
    """The process dies just before a file of the second validation is renamed into place."""
    replace, seen = os.replace, []

    def dying_replace(source, target):
        seen.append(os.path.basename(target))
        if seen.count(lost) == 2:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying_replace)
        with pytest.raises(Killed):
            fit(tmp_path, crops)
    assert_same_run(tmp_path, fit(tmp_path, crops), unbroken)


def test_pre_training_comes_once_and_before_the_first_image(crops, tmp_path, monkeypatch):
    settings = tiny_settings({"joint_features": True}, lift_steps=2, lift_beside=2)
    whole = tmp_path / "whole", fit(tmp_path / "whole", crops, settings)
    with pytest.raises(HamrError, match="stopped at step 1"):
        fit(tmp_path, crops, settings, minutes=0)
    monkeypatch.setattr(task, "lift", lambda *args: pytest.fail("pre-trained twice"))
    assert_same_run(tmp_path, fit(tmp_path, crops, settings), whole)
    assert whole[1][-1]["train_lifting"] > 0 and "val_lifting" not in whole[1][-1]


def frozen(*arguments):
    """A network whose normalisations and dropout do nothing."""
    network = HAMR(*arguments)
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Dropout)):
            module.train = lambda mode=True: None
            module.training = False
    return network


def run_in_processes(folder, options, kill_at=-1, processes=1):
    """Run `main` below; several processes train a network that is `frozen`."""
    start, root = [sys.executable], os.path.dirname(os.path.dirname(__file__))
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*start, __file__, str(folder), json.dumps(options), str(kill_at)], capture_output=True,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    )  # fmt: skip


def main(folder, options, kill_at):
    """Train in a process of its own, which kills itself before step `kill_at`."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, step = Path(folder), Run.step

    def stepping(self, batch):
        if batch["step"] == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, batch)

    Run.step = stepping
    if "RANK" in os.environ:
        task.HAMR = frozen
    history = fit(folder / "run", crops_of(folder), tiny_settings(**json.loads(options)))
    if os.environ.get("RANK") == "0":
        (folder / "history.json").write_text(json.dumps(history))


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path):
    """A real SIGKILL in the middle of training; AdamW, clipping and the cosine schedule."""
    options = {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01, "clip": 1.0}
    killed = run_in_processes(tmp_path, options, kill_at=6)
    assert killed.returncode == -9, killed.stderr
    assert saved(tmp_path / "run")["hamr"]["step"] == 4
    settings, crops = tiny_settings(**options), crops_of(tmp_path)
    whole = tmp_path / "whole", fit(tmp_path / "whole", crops, settings)
    assert_same_run(tmp_path / "run", fit(tmp_path / "run", crops, settings), whole)


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path, monkeypatch):
    """Over gloo, half the batch each, against one with the whole batch.

    Each process normalises by its own half and drops its own units: both are switched off here.
    """
    options = {"schedule": "cosine", **AVERAGED}
    ran = run_in_processes(tmp_path, options, processes=2)
    assert ran.returncode == 0, ran.stderr
    pair = json.loads((tmp_path / "history.json").read_text())
    monkeypatch.setattr(task, "HAMR", frozen)
    single = fit(tmp_path / "single", crops_of(tmp_path), tiny_settings(**options))
    for one, two in zip(timeless(single), timeless(pair), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    errors = [np.load(tmp_path / run / "validation.npz")["error"] for run in ("run", "single")]
    np.testing.assert_allclose(*errors, rtol=1e-4)


def test_a_finished_run_returns_at_once(unbroken, crops, monkeypatch):
    run_dir, history = unbroken
    monkeypatch.setattr(loop, "Run", None)  # nothing may be trained
    assert fit(run_dir, crops) == history


def test_another_run_is_refused(unbroken, crops, tmp_path):
    with pytest.raises(HamrError, match="was trained with data="):
        fit(unbroken[0], (crops[1], crops[0]))
    shutil.copytree(unbroken[0] / "checkpoints", tmp_path / "checkpoints")
    os.replace(tmp_path / "checkpoints" / "best.ckpt", tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(HamrError, match="holds a network alone"):
        fit(tmp_path, crops)


@pytest.mark.parametrize("key", ["optimizer", "network", "watch", "errors", "sums"])
@pytest.mark.parametrize("value", [None, {"state": "x"}])
def test_a_damaged_state_of_a_run_is_refused(unbroken, crops, tmp_path, key, value):
    content = saved(unbroken[0])
    content["hamr"]["step"] = 8
    content["run"][key] = value
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(HamrError, match=r"last\.ckpt: "):
        fit(tmp_path, crops)


def test_a_loss_that_is_no_number_stops_the_run(crops, tmp_path, monkeypatch):
    losses, seen = task.hamr_losses, {}

    def poisoned(output, batch, *rest):
        parts = losses(output, batch, *rest)
        seen[batch.get("step")] = batch["index"].tolist()
        if batch.get("step") == 6:
            parts["total"] = parts["total"] * float("nan")
        return parts

    monkeypatch.setattr(task, "hamr_losses", poisoned)
    with pytest.raises(HamrError, match="training stopped at step 6: the loss is nan") as error:
        fit(tmp_path, crops)
    now, before = (", ".join(f"{i} ({crops[0].keys[i]})" for i in seen[step]) for step in (6, 5))
    assert f"Samples of this batch: {now}; of the batch before: {before}" in str(error.value)
    assert all(torch.isfinite(v).all() for v in saved(tmp_path)["state_dict"].values())


def test_the_plateau_lowers_the_rate(crops, tmp_path, monkeypatch):
    """With a loss that never improves, patience 0 multiplies the rate by 0.7 a validation."""
    monkeypatch.setattr(Run, "_reduced", lambda self, sums: dict.fromkeys(sums, 1.0))
    history = fit(tmp_path, crops, tiny_settings(plateau_patience=0))
    rates = [row["learning_rate"] for row in history]  # the first validation sets the mark
    assert rates == pytest.approx([2e-4, 2e-4, 0.7 * 2e-4])


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu", "paper"])
def test_what_the_profiles_optimise_with_works_together(profile, crops, tmp_path):
    chosen = load_settings(profile).train
    names = ("optimizer", "learning_rate", "weight_decay", "schedule", "precision", "clip")
    options = {name: getattr(chosen, name) for name in names}
    history = fit(tmp_path, crops, tiny_settings(**{**options, "steps": 4}))
    assert math.isfinite(history[-1]["train_total"])
    factor = SCHEDULES[chosen.schedule](3, 4) if chosen.schedule in SCHEDULES else 1  # last step
    assert history[-1]["learning_rate"] == pytest.approx(factor * chosen.learning_rate)
    assert torch.bfloat16 not in {v.dtype for v in saved(tmp_path)["state_dict"].values()}


@pytest.mark.slow
def test_a_few_samples_are_learnt_by_heart(tmp_path):
    """Eight samples, no augmentation: joints to 6 mm, where the mean hand is over 40 mm off."""
    settings = tiny_settings({"dropout": 0.0}, steps=400, validate_every=200, batch_size=8,
                             learning_rate=3e-3, optimizer="adamw", schedule="cosine",
                             clip=5.0)  # fmt: skip
    settings = dataclasses.replace(settings, augment=STILL)
    eight = load_crops(draw_frames(8), "eight", 32, STILL, cache=tmp_path / "cache")
    history = fit(tmp_path, (eight, eight), settings)
    labels = eight.batch(range(8))["joints_3d"]
    assert (labels - labels.mean(0)).norm(dim=-1).mean().item() * 1000 > 40
    assert history[-1]["val_joints_3d_mm"] < 6, history
    assert history[-1]["val_joints_2d"] < 0.05  # crop units: 2.5 % of the crop's side


def test_schedules():
    rates = [SCHEDULES["cosine"](step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[52] == pytest.approx(0.5, abs=0.02) and 0 < rates[-1] < 1e-3
    rates, longer = (
        [SCHEDULES["trapezoid"](step, n) for step in range(1000)] for n in (1000, 5000)
    )
    assert rates[0] == 1 / WARM_STEPS and set(rates[WARM_STEPS - 1 : 601]) == {1.0}
    assert rates[700] == 0.5 and rates[999] == pytest.approx(1 / 800, rel=1e-3)
    assert rates[:601] == longer[:601]  # until the rate falls


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_pretrained_blocks_have_a_rate_of_their_own(optimizer):
    stem = PretrainedStem(Model(channels=8, stem="hand_landmark"), pretrained=False)
    network = torch.nn.Sequential(stem, torch.nn.Conv2d(8, 4, 1))
    train = tiny_settings(optimizer=optimizer, learning_rate=1e-3, stem_rate=0.2).train
    others, slow = make_optimizer(network, train).param_groups
    assert (others["lr"], slow["lr"]) == pytest.approx((1e-3, 2e-4))
    assert set(slow["params"]) == set(stem.blocks.parameters())
    trained = {p for p in network.parameters() if p.requires_grad}
    assert trained == {*others["params"], *slow["params"]}
    assert len(make_optimizer(network[1], train).param_groups) == 1


def test_an_exploding_loss_is_told_from_a_bad_batch():
    def watched(losses):
        watch = Watch([str(i) for i in range(len(losses))])
        for step, loss in enumerate(losses):
            watch.put(step, torch.tensor([step]), torch.tensor(loss))
            watch.check()
        return watch

    usual = [1.0 + step % 2 for step in range(200)]
    assert watched(usual).mean == pytest.approx(1.5, abs=0.02)
    watched([*usual, 900.0])
    watched([1.0, 20000.0])  # the first steps may do as they like
    with pytest.raises(HamrError, match="step 200: the loss is 20000"):
        watched([*usual, 20000.0])


def test_progress_is_few_lines(monkeypatch, capsys):
    clock = iter(range(0, 10**9))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))  # a second a step
    progress = Progress(20000)
    for step in range(1, 20001):
        progress.show(step)
    assert 40 <= len(capsys.readouterr().err.splitlines()) <= 55


if __name__ == "__main__":
    main(*sys.argv[1:])
