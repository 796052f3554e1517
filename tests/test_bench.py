"""What `make bench` times is what the study does."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from hamr_lib import bench
from hamr_lib.camera import ground_truth_camera
from hamr_lib.config import load_settings
from hamr_lib.data.photographs import example_photographs
from hamr_lib.evaluation.metrics import iou
from hamr_lib.model.hamr import HAMR
from hamr_lib.render import silhouette
from hamr_lib.render.examples import random_hands
from hamr_lib.training.loop import Run, seed_of, start_fabric
from hamr_lib.training.task import Task

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def small():
    """Settings and crops small enough to time in a moment."""
    settings = load_settings(
        "smoke", train__batch_size=4, train__lift_beside=4, model__joint_features=True
    )
    return settings, bench.noise_crops(settings, 4)


def test_noise_crops_are_labelled_with_the_hands(small):
    batch = small[1].batch(np.arange(4))
    labels = (batch[name] for name in ("joints_3d", "joints_2d"))
    camera = ground_truth_camera(*labels, batch["valid_2d"] & batch["valid_3d"])
    torch.testing.assert_close(camera[:, 0], random_hands(4).camera[:, 0], rtol=1e-4, atol=0)


def test_the_bare_step_moves_the_weights_as_the_loop_does(small):
    """The same network on the same batch: what is timed as bare leaves out no part of a step."""
    settings, crops = small
    fabric = start_fabric(settings.train)
    torch.manual_seed(0)
    network = HAMR(settings.model, bench.load_hand("open", pose_components=6))
    start = {k: v.clone() for k, v in network.state_dict().items()}
    run, other = (Run(fabric, settings, network, Task(), crops, crops) for _ in range(2))
    batch = next(iter(run.batches()))
    seen = run.augmented(batch)
    other.generator.manual_seed(seed_of(0, 0, 0, 1))
    torch.manual_seed(seed_of(0, 0, 1))  # dropout's
    bench.bare_step(other, seen)()
    bare = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(start)
    run.step(batch)
    assert any(not torch.equal(bare[k], start[k]) for k in start)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, bare[name], rtol=1e-3, atol=1e-5)


def test_every_section_gives_rows(small):
    rows = [*bench.network([("tiny", "smoke", 4, 2)]), *bench.silhouettes(2, [16])]
    assert all(np.isfinite(value) and value > 0 for _, value, _ in rows)
    loop, bare, ratio = (value for _, value, _ in rows[:3])
    assert loop / bare == pytest.approx(ratio, rel=0.9)


def test_the_soft_silhouette_is_that_of_deodr():
    hands = random_hands(2)
    mesh = hands.vertices(), hands.hand.faces, hands.camera, 64
    drawn = bench.soft_silhouette(*mesh), silhouette(*mesh, "deodr")
    assert min(iou(*(image.detach().numpy() > 0.5 for image in drawn))[0]) > 0.9


@pytest.mark.slow
def test_recover_is_measured_on_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "median", lambda function: function() and 1.0)
    shutil.copy(example_photographs()[0], tmp_path)
    monkeypatch.setattr(bench, "SMALL", 2)
    rows = list(bench.recovering(tmp_path))
    assert len(rows) == 3 and all(seconds > 0 for _, seconds, _ in rows)


def test_a_section_is_written_beside_the_others(tmp_path):
    row = ("n", 1017.9, "ms", "a machine", "abc")
    bench.save([("renderer", *row)], tmp_path)
    bench.save([("training", *row)], tmp_path)
    bench.save([("renderer", "m", 2.0, *row[2:])], tmp_path)
    found = pd.read_csv(tmp_path / "bench.csv")
    assert found.section.tolist() == ["training", "renderer"]
    assert found.value.tolist() == [1017.9, 2]
    shown = (tmp_path / "bench" / "speed.md").read_text()
    assert "1018" in shown and "on a machine." in shown
