import csv
import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from tiny import TinyHand, draw_frames, tiny_settings

from hamr_lib.config import Augment, load_settings
from hamr_lib.data.augment import centre_crop
from hamr_lib.data.crops import load_crops
from hamr_lib.errors import HamrError
from hamr_lib.model import checkpoint
from hamr_lib.model.hamr import HAMR
from hamr_lib.training import loop

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    return crops_of(tmp_path_factory.mktemp("crops"))


def fit(run_dir, crops, settings=None):
    return loop.fit(settings or tiny_settings(), run_dir, *crops, TinyHand())


def timeless(history):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]


def weights(run_dir, name="last"):
    return checkpoint.read(run_dir / "checkpoints" / f"{name}.ckpt")


@pytest.fixture(scope="module")
def unbroken(crops, tmp_path_factory):
    """A finished run of 12 steps, validated every 4, with dropout and augmentation."""
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
        ours, theirs = weights(run_dir, name), weights(whole_dir, name)
        assert same(ours["state_dict"], theirs["state_dict"])
        assert ours["hamr"]["step"] == theirs["hamr"]["step"]
    assert same(weights(run_dir)["optimizer_states"], weights(whole_dir)["optimizer_states"])
    assert same(weights(run_dir)["hamr"]["plateau"], weights(whole_dir)["hamr"]["plateau"])


def test_what_a_run_leaves(unbroken, crops):
    run_dir, history = unbroken
    assert [row["step"] for row in history] == [4, 8, 12]
    with open(run_dir / "log.csv") as file:
        logged = list(csv.DictReader(file))
    parts = {"joints_3d", "joints_2d", "geometric", "camera", "heatmap", "silhouette", "total"}
    assert parts <= {k.removeprefix("train_") for k in logged[0]}
    assert parts | {"joints_3d_mm"} <= {k.removeprefix("val_") for k in logged[0]}
    for row, expected in zip(logged, history, strict=True):
        assert {k: float(v) for k, v in row.items()} == expected
        weighted = tiny_settings().losses
        total = sum(getattr(weighted, k) * expected[f"val_{k}"] for k in parts - {"total"})
        assert expected["val_total"] == pytest.approx(total, rel=1e-5)
    last, best = weights(run_dir)["hamr"], weights(run_dir, "best")["hamr"]
    assert last["step"] == 12 and last["seed"] == 0 and last["hand"] == "tiny"
    lowest = min(history, key=lambda row: row["val_joints_3d_mm"])
    assert best["step"] == lowest["step"] and best["metrics"] == lowest
    assert not list(run_dir.rglob(".*part*"))


def test_validation_figures_are_those_of_the_saved_network(unbroken, crops):
    """The error in the log, computed anew and one sample at a time from the checkpoint."""
    run_dir, history = unbroken
    network = HAMR(tiny_settings().model, TinyHand())
    network.load_state_dict(checkpoint.model_state(weights(run_dir)))
    network.eval()
    errors = []
    for i in range(len(crops[1])):
        batch = centre_crop(crops[1].batch([i]), 32)
        with torch.no_grad():
            found = network(batch["image"]).estimates[-1].joints_3d
        errors.append((found - batch["joints_3d"]).norm(dim=-1).mean().item() * 1000)
    assert history[-1]["val_joints_3d_mm"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_the_same_settings_give_the_same_run(unbroken, crops, tmp_path):
    assert_same_run(tmp_path, fit(tmp_path, crops), unbroken)
    other = fit(tmp_path / "other", crops, tiny_settings(seed=1))
    assert timeless(other) != timeless(unbroken[1])


@pytest.mark.parametrize("kill_at", [3, 5, 8, 10])
def test_a_killed_run_goes_on_to_the_same_end(unbroken, crops, tmp_path, monkeypatch, kill_at):
    class Killed(Exception):
        pass

    step = loop.Training.training_step

    def dying_step(self, batch, batch_idx):
        if batch["step"] == kill_at:
            raise Killed
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "training_step", dying_step)
        with pytest.raises(Killed):
            fit(tmp_path, crops)
    saved = tmp_path / "checkpoints" / "last.ckpt"
    assert saved.is_file() == (kill_at >= 4)
    if saved.is_file():
        assert checkpoint.read(saved)["hamr"]["step"] == kill_at // 4 * 4
    # What a killed process may also leave: dice thrown elsewhere, and a half-written file.
    torch.rand(7)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / ".last.1.part.ckpt").write_bytes(b"half")
    assert_same_run(tmp_path, fit(tmp_path, crops), unbroken)


@pytest.mark.parametrize("lost", ["last.ckpt", "log.csv"])
def test_a_kill_while_saving(unbroken, crops, tmp_path, monkeypatch, lost):
    """The process dies just before a file of the second validation is renamed into place."""
    replace = os.replace
    seen = []

    def dying_replace(source, target):
        seen.append(os.path.basename(target))
        if seen.count(lost) == 2:
            raise KeyError("killed")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying_replace)
        with pytest.raises(KeyError):
            fit(tmp_path, crops)
    assert_same_run(tmp_path, fit(tmp_path, crops), unbroken)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4


def crops_of(folder):
    frames = draw_frames(20)
    return load_crops(frames, "drawn", 32, Augment(), cache=folder / "cache").split(0.25, seed=0)


SCRIPT = """
import json, os, signal, sys, warnings
from pathlib import Path
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import test_train
from hamr_lib import train

folder, options, kill_at, frozen = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
step = train.Training.training_step
def stepping(self, batch, batch_idx):
    if batch["step"] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
train.Training.training_step = stepping
if frozen:
    train.HAMR = test_train.frozen
settings = test_train.tiny_settings(**options)
history = train.fit(settings, folder / "run", *test_train.crops_of(folder), test_train.TinyHand())
if os.environ.get("RANK") == "0":
    (folder / "history.json").write_text(json.dumps(history))
"""


def run_script(folder, options, kill_at=-1, processes=1, frozen=False):
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=os.path.dirname(__file__)))
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(folder), json.dumps(options), json.dumps(kill_at), json.dumps(frozen)]
    return subprocess.run(
        [*start, str(script), *arguments], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=os.path.dirname(os.path.dirname(__file__)),
    )  # fmt: skip


def frozen(*arguments):
    """A network whose normalisations and dropout do nothing; Lightning keeps each part's mode."""
    network = HAMR(*arguments)
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Dropout)):
            module.eval()
    return network


def test_a_killed_process_goes_on(tmp_path):
    """A real SIGKILL in the middle of training; AdamW, clipping and the cosine schedule."""
    options = {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01, "clip": 1.0}
    killed = run_script(tmp_path, options, kill_at=6)
    assert killed.returncode == -9, killed.stderr
    assert weights(tmp_path / "run")["hamr"]["step"] == 4
    settings, crops = tiny_settings(**options), crops_of(tmp_path)
    whole = tmp_path / "whole", fit(tmp_path / "whole", crops, settings)
    assert_same_run(tmp_path / "run", fit(tmp_path / "run", crops, settings), whole)
    rates = [row["learning_rate"] for row in whole[1]]  # of the last step before each row
    expected = [2e-4 * (1 + math.cos(math.pi * (step - 1) / 11)) / 2 for step in (3, 7, 11)]
    assert rates == pytest.approx(expected)


def test_two_processes_train_like_one(tmp_path, monkeypatch):
    """Two processes over gloo, half the batch each, against one with the whole batch.

    Each process normalises by its own half batch and drops its own units, so both are switched
    off here; what is left (data, augmentation, losses, gradients, steps) has to agree.
    """
    options = {"schedule": "cosine"}
    ran = run_script(tmp_path, options, processes=2, frozen=True)
    assert ran.returncode == 0, ran.stderr
    pair = json.loads((tmp_path / "history.json").read_text())
    monkeypatch.setattr(loop, "HAMR", frozen)
    single = fit(tmp_path / "single", crops_of(tmp_path), tiny_settings(**options))
    for one, two in zip(timeless(single), timeless(pair), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_a_finished_run_returns_at_once(unbroken, crops, monkeypatch):
    run_dir, history = unbroken
    monkeypatch.setattr(loop, "_trainer", None)  # nothing may be trained
    assert fit(run_dir, crops) == history


def test_another_configuration_is_refused(unbroken, crops):
    run_dir, _ = unbroken
    with pytest.raises(HamrError, match="train.learning_rate=0.0002, but this run asks for"):
        fit(run_dir, crops, tiny_settings(learning_rate=1e-3))
    with pytest.raises(HamrError, match="was trained on data"):
        fit(run_dir, (crops[1], crops[0]))
    with pytest.raises(HamrError, match="steps=10 is not a positive multiple of .*every=4"):
        fit(run_dir, crops, tiny_settings(steps=10))


def test_a_loss_that_is_no_number_stops_the_run(unbroken, crops, tmp_path, monkeypatch):
    losses = loop.hamr_losses
    calls = []

    def poisoned(output, batch, *rest):
        parts = losses(output, batch, *rest)
        calls.append(batch)
        if batch.get("step") == 6:
            parts["total"] = parts["total"] * float("nan")
        return parts

    monkeypatch.setattr(loop, "hamr_losses", poisoned)
    with pytest.raises(HamrError) as error:
        fit(tmp_path, crops)
    message = str(error.value)
    assert "training stopped at step 6: the loss is nan" in message and "last.ckpt" in message
    steps = {b["step"]: b["index"].tolist() for b in calls if "step" in b}
    named = ", ".join(f"{i} ({crops[0].keys[i]})" for i in steps[6])
    before = ", ".join(f"{i} ({crops[0].keys[i]})" for i in steps[5])
    assert f"Samples of this batch: {named}; of the batch before: {before}." in message
    kept = weights(tmp_path)
    assert kept["hamr"]["step"] == 4
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())
    # With the cause gone, the run ends where it would have ended.
    monkeypatch.setattr(loop, "hamr_losses", losses)
    assert_same_run(tmp_path, fit(tmp_path, crops), unbroken)


def test_an_exploding_loss_is_told_from_a_bad_batch():
    watch = loop.Watch()
    for step in range(200):
        watch.put(step, torch.tensor([step]), torch.tensor(1.0 + step % 2))
        assert watch.check() is None
    assert watch.mean == pytest.approx(1.5, abs=0.02)
    watch.put(200, torch.tensor([200]), torch.tensor(900.0))
    assert watch.check() is None
    watch.put(201, torch.tensor([201]), torch.tensor(20000.0))
    assert watch.check() == (201, 20000.0, torch.tensor([201]), torch.tensor([200]))
    early = loop.Watch()
    for step, loss in enumerate((1.0, 20000.0)):  # the first steps may do as they like
        early.put(step, torch.tensor([0]), torch.tensor(loss))
        assert early.check() is None


def test_cosine_schedule():
    rates = [loop.cosine(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1 and rates[52] == pytest.approx(0.5, abs=0.02)
    assert 0 < rates[-1] < 1e-3 and rates[5:] == sorted(rates[5:], reverse=True)


def test_trapezoid_schedule():
    rates = [loop.trapezoid(step, 1000) for step in range(1000)]
    assert rates[0] == 1 / loop.WARM_STEPS and rates[99] == 0.5
    assert set(rates[loop.WARM_STEPS - 1 : 601]) == {1.0}
    assert rates[700] == 0.5 and rates[601:] == sorted(rates[601:], reverse=True)
    assert rates[999] == pytest.approx(1 / 800, rel=1e-3)
    # A longer run does the same for as long as this one's rate does not fall.
    assert rates[:601] == [loop.trapezoid(step, 5000) for step in range(601)]


def test_a_finished_run_may_be_given_more_steps(crops, tmp_path):
    """Its last steps, at a falling rate, are dropped: it ends as one that had them at first."""
    options = {"schedule": "trapezoid", "optimizer": "adamw", "validate_every": 3}
    whole = tmp_path / "whole", fit(tmp_path / "whole", crops, tiny_settings(steps=15, **options))
    short = fit(tmp_path, crops, tiny_settings(steps=9, **options))
    assert weights(tmp_path, "held")["hamr"]["step"] == 3 and len(short) == 3
    assert_same_run(tmp_path, fit(tmp_path, crops, tiny_settings(steps=15, **options)), whole)
    # No way back: 12 steps would have ended in a fall that this run never made.
    with pytest.raises(HamrError, match="train.steps=15, but this run asks for train.steps=12"):
        fit(tmp_path, crops, tiny_settings(steps=12, **options))


def test_a_run_begins_from_the_network_that_it_names(unbroken):
    path = unbroken[0] / "checkpoints" / "best.ckpt"
    settings = tiny_settings(start=str(path))
    network = HAMR(settings.model, TinyHand())
    loop.Task().prepare(network, settings)
    begun = checkpoint.model_state(weights(unbroken[0], "best"))
    assert same(dict(network.state_dict()), begun)
    # How images are normalised may change; what the weights are of may not.
    other = dataclasses.replace(settings.model, own_statistics=0.3)
    other = dataclasses.replace(settings, model=other)
    assert same(loop.start_weights(str(path), network, other), begun)
    other = dataclasses.replace(settings.model, hidden=16)
    with pytest.raises(HamrError, match="best.ckpt is of Model.*expected Model.*hidden=16"):
        loop.Task().prepare(HAMR(other, TinyHand()), dataclasses.replace(settings, model=other))
    with pytest.raises(HamrError, match="none.ckpt is missing"):
        loop.Task().prepare(network, tiny_settings(start="none.ckpt"))


def test_what_is_validated_and_saved_leans_to_the_start_and_training_does_not(
    unbroken, crops, tmp_path
):
    path = unbroken[0] / "checkpoints" / "best.ckpt"
    begun = checkpoint.model_state(weights(unbroken[0], "best"))
    alone = fit(tmp_path / "alone", crops, tiny_settings(start=str(path)))
    settings = tiny_settings(start=str(path), start_share=0.25)
    history = fit(tmp_path / "leans", crops, settings)
    for name in ("state_dict", "optimizer_states"):  # the training itself is the same to the bit
        assert same(*(weights(tmp_path / run)[name] for run in ("alone", "leans")))
    for row, other in zip(history, alone, strict=True):
        assert row["train_total"] == other["train_total"]
        assert row["val_total"] != other["val_total"]
    # Ended at once after the first validation, the last weights are those that the best lean from.
    short = dataclasses.replace(settings, train=dataclasses.replace(settings.train, steps=4))
    [row] = fit(tmp_path / "short", crops, short)
    own = checkpoint.model_state(weights(tmp_path / "short"))
    saved = checkpoint.model_state(weights(tmp_path / "short", "best"))
    for name, weight in saved.items():
        wanted = own[name]
        if weight.is_floating_point():
            wanted = 0.75 * wanted.double() + 0.25 * begun[name].double()
        torch.testing.assert_close(weight.double(), wanted.double(), rtol=1e-6, atol=1e-7)
    # What was validated is what was saved.
    network = HAMR(settings.model, TinyHand())
    checkpoint.load_state(path, network, saved)
    batch = centre_crop(crops[1].batch(range(len(crops[1]))), settings.model.image_size)
    with torch.no_grad():
        output = network.eval()(batch["image"])
    error = float(loop.joints_error(output.estimates[-1].joints_3d, batch))
    assert row["val_joints_3d_mm"] == pytest.approx(error, rel=1e-4)
    assert alone[0]["val_joints_3d_mm"] != pytest.approx(error, rel=1e-4)
    with pytest.raises(HamrError, match="train.start_share=1.5: expected a share from 0 to 1"):
        fit(tmp_path, crops, tiny_settings(start_share=1.5))


def test_lifting_comes_before_the_first_image_and_once(crops, tmp_path, monkeypatch):
    for name in ("lift_steps", "lift_beside"):
        with pytest.raises(HamrError, match=f"{name}=2: expected 0 where model.places is off"):
            fit(tmp_path, crops, tiny_settings(**{name: 2}))
    settings = tiny_settings(lift_steps=2, lift_beside=2)
    model = dataclasses.replace(settings.model, places=True)
    settings = dataclasses.replace(settings, model=model)
    whole = tmp_path / "whole", fit(tmp_path / "whole", crops, settings)
    step = loop.Training.training_step

    def dying_step(self, batch, batch_idx):
        if batch["step"] == 5:
            raise KeyboardInterrupt("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(loop.Training, "training_step", dying_step)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, crops, settings)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "lift", lambda *args: pytest.fail("lifted twice"))
    assert_same_run(tmp_path, fit(tmp_path, crops, settings), whole)
    # What is lifted beside the images is told apart from what they are judged by.
    monkeypatch.undo()
    row = whole[1][-1]
    assert 0 < row["train_lifting"] and "val_lifting" not in row
    alone = dataclasses.replace(settings, train=dataclasses.replace(settings.train, lift_beside=0))
    assert fit(tmp_path / "alone", crops, alone)[-1]["train_total"] != row["train_total"]


def test_the_plateau_lowers_the_rate(crops, tmp_path, monkeypatch):
    """With a loss that never improves, patience 0 multiplies the rate by 0.7 a validation."""
    monkeypatch.setattr(loop.Training, "_means", flat(loop.Training._means))
    history = fit(tmp_path, crops, tiny_settings(plateau_patience=0))
    rates = [row["learning_rate"] for row in history]  # the first validation sets the mark
    assert rates == pytest.approx([2e-4, 2e-4, 0.7 * 2e-4])


def flat(means):
    return lambda self, prefix: {k: 1.0 for k in means(self, prefix)}


def test_progress_is_lines_and_few_of_them(monkeypatch, capsys):
    clock = iter(range(0, 10**9))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))  # a second a step
    progress = loop.Progress(tiny_settings(steps=20000).train)
    progress.start(0)
    for step in range(1, 20001):
        progress.show(step)
    lines = capsys.readouterr().err.splitlines()
    assert 40 <= len(lines) <= 55
    assert lines[24].startswith("step 10") and "left" in lines[24]
    half = next(line for line in lines if int(line.split()[1]) >= 10000)
    hours, minutes, _ = half.split(" passed, ")[1].split(" left")[0].split(":")
    assert 60 * int(hours) + int(minutes) == pytest.approx(10000 / 60, abs=8)


def test_bfloat16_trains_too(crops, tmp_path):
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    settings = tiny_settings(precision="bf16", steps=4)
    history = fit(tmp_path, crops, settings)
    assert math.isfinite(history[-1]["val_total"])
    assert {v.dtype for v in weights(tmp_path)["state_dict"].values()} <= {
        torch.float32, torch.int64
    }  # fmt: skip


def test_gradients_are_clipped_under_the_fused_optimiser(crops, tmp_path, monkeypatch):
    norms, clip = [], loop.Training.configure_gradient_clipping

    def norm(network):
        return torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item()

    def spy(self, optimizer, **options):
        norms.append(norm(self.network))
        clip(self, optimizer, **options)
        norms.append(norm(self.network))
        assert self.optimizers().param_groups[0]["fused"]

    monkeypatch.setattr(loop.Training, "configure_gradient_clipping", spy)
    fit(tmp_path, crops, tiny_settings(optimizer="adamw", precision="bf16", clip=0.5, steps=4))
    assert min(norms[::2]) > 1 and norms[1::2] == pytest.approx([0.5] * 4, rel=1e-3)


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu", "paper"])
def test_what_the_profiles_optimise_with_works_together(profile, crops, tmp_path):
    chosen = load_settings(profile).train
    names = ("optimizer", "learning_rate", "weight_decay", "schedule", "precision", "clip")
    options = {name: getattr(chosen, name) for name in names}
    history = fit(tmp_path, crops, tiny_settings(**{**options, "steps": 4}))
    assert math.isfinite(history[-1]["train_total"])


def test_a_few_samples_are_learnt_by_heart(tmp_path):
    """Eight samples, no augmentation: joints to 6 mm, where the mean hand is over 40 mm off."""
    plain = Augment(scale=(1.0, 1.0), rotation=0.0, brightness=(1.0, 1.0), contrast=(1.0, 1.0),
                    saturation=(1.0, 1.0), hue=(1.0, 1.0), noise=0.0)  # fmt: skip
    settings = tiny_settings(steps=400, validate_every=200, batch_size=8, learning_rate=3e-3,
                             optimizer="adamw", schedule="cosine")  # fmt: skip
    settings = dataclasses.replace(
        settings, augment=plain, model=dataclasses.replace(settings.model, dropout=0.0)
    )
    eight = load_crops(draw_frames(8), "eight", 32, plain, cache=tmp_path / "cache")
    history = loop.fit(settings, tmp_path, eight, eight, TinyHand())
    labels = eight.batch(range(8))["joints_3d"]
    mean_pose = (labels - labels.mean(0)).norm(dim=-1).mean().item() * 1000
    assert mean_pose > 40
    assert history[-1]["val_joints_3d_mm"] < 6, history
    assert history[-1]["val_joints_2d"] < 0.05  # crop units: 2.5 % of the crop's side
