"""The schedule, the optimiser and what watches a run, against theory."""

import pytest
import torch
from tiny import tiny_settings

from hamr_lib.errors import HamrError
from hamr_lib.model.backbone import PretrainedStem
from hamr_lib.training.schedule import WARM_STEPS, cosine, make_optimizer, trapezoid
from hamr_lib.training.watch import Progress, Watch


def test_an_exploding_loss_is_told_from_a_bad_batch():
    watch = Watch([str(i) for i in range(300)])
    for step in range(200):
        watch.put(step, torch.tensor([step]), torch.tensor(1.0 + step % 2))
        watch.check()
    assert watch.mean == pytest.approx(1.5, abs=0.02)
    watch.put(200, torch.tensor([200]), torch.tensor(900.0))
    watch.check()
    watch.put(201, torch.tensor([201]), torch.tensor(20000.0))
    with pytest.raises(HamrError, match="step 201: the loss is 20000"):
        watch.check()
    early = Watch(["a"])
    for step, loss in enumerate((1.0, 20000.0)):  # the first steps may do as they like
        early.put(step, torch.tensor([0]), torch.tensor(loss))
        early.check()


def test_schedules():
    rates = [cosine(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[52] == pytest.approx(0.5, abs=0.02) and 0 < rates[-1] < 1e-3
    rates = [trapezoid(step, 1000) for step in range(1000)]
    assert rates[0] == 1 / WARM_STEPS and set(rates[WARM_STEPS - 1 : 601]) == {1.0}
    assert rates[700] == 0.5 and rates[999] == pytest.approx(1 / 800, rel=1e-3)
    # A longer run does the same for as long as this one's rate does not fall.
    assert rates[:601] == [trapezoid(step, 5000) for step in range(601)]


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_pretrained_blocks_have_a_rate_of_their_own(optimizer):
    network = PretrainedStem(8, pretrained=False)
    train = tiny_settings(optimizer=optimizer, learning_rate=1e-3, stem_rate=0.2).train
    rates = [group["lr"] for group in make_optimizer(network, train).param_groups]
    assert rates == pytest.approx([1e-3, 2e-4])


def test_progress_is_lines_and_few_of_them(monkeypatch, capsys):
    clock = iter(range(0, 10**9))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))  # a second a step
    progress = Progress(20000)
    for step in range(1, 20001):
        progress.show(step)
    lines = capsys.readouterr().err.splitlines()
    assert 40 <= len(lines) <= 55
    half = next(line for line in lines if int(line.split()[1]) >= 10000)
    hours, minutes, _ = half.split(" passed, ")[1].split(" left")[0].split(":")
    assert 60 * int(hours) + int(minutes) == pytest.approx(10000 / 60, abs=8)
