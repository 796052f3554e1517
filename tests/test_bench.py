"""What `make bench` times is what the study does."""

import numpy as np
import pandas as pd
import pytest
import torch

from hamr_lib import bench, bench_training
from hamr_lib.camera import ground_truth_camera
from hamr_lib.config import load_settings
from hamr_lib.data.augment import centre_crop
from hamr_lib.losses import hamr_losses

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def small():
    """Settings, hands and crops small enough to time in a moment."""
    settings = load_settings("smoke", train__batch_size=4)
    hands = bench.random_hands(4)
    return settings, hands, bench_training.noise_crops(settings, hands)


def test_noise_crops_are_labelled_with_the_hands(small):
    settings, hands, crops = small
    batch = crops.batch(np.arange(4))
    camera = ground_truth_camera(
        batch["joints_3d"], batch["joints_2d"], batch["valid_2d"] & batch["valid_3d"]
    )
    torch.testing.assert_close(camera[:, 0], hands.camera[:, 0], rtol=1e-4, atol=0)
    assert batch["mask"].float().std() > 60  # of noise over 0 to 255: 74


def test_the_silhouette_apart_leaves_the_loss_whole(small):
    settings, hands, crops = small
    bare = bench_training.Bare(settings, crops, hands.hand)
    batch = centre_crop(bare.load(), settings.model.image_size)
    with torch.no_grad():
        output = bare.network(batch["image"])
        whole, *parts = (
            hamr_losses(output, batch, losses, hands.hand.faces)
            for losses in (settings.losses, *bench_training.silhouette_apart(settings.losses))
        )
    assert set(parts[1]) == {"silhouette", "total"} and "silhouette" not in parts[0]
    assert sum(part["total"] for part in parts).item() == pytest.approx(whole["total"].item())


def test_the_loop_and_the_bare_network_take_turns(small):
    settings, hands, crops = small
    loop, bare, ratio, parts = bench_training.loop_and_bare(settings, crops, hands.hand, 3)
    assert 0 < ratio < 2 and 0.3 < loop / bare / ratio < 3
    shares = {
        name: value for name, value, unit in bench_training._shares(parts, "x") if unit == "%"
    }
    assert sum(shares.values()) == pytest.approx(100)
    names = ("load", "augment", "forward", "losses", "silhouette", "backward", "step")
    assert set(shares) == {f"share of {name}, x" for name in names}


def test_what_is_taught_beside_the_images_is_a_part_of_a_step(small):
    settings, hands, crops = small
    settings = load_settings(
        "smoke", train__batch_size=4, train__lift_beside=8, model__joint_features=True
    )
    bare = bench_training.Bare(settings, crops, hands.hand)
    bare.step()
    assert bare.spent["lifting"] > 0


def test_a_section_is_written_beside_the_others(tmp_path):
    path = tmp_path / "bench.csv"
    row = ("n", 1.5, "ms", "machine", "commit")
    bench.save("renderer", [("renderer", *row)], path)
    bench.save("training", [("training", *row)], path)
    bench.save("renderer", [("renderer", "m", 2.0, *row[2:])], path)
    found = pd.read_csv(path)
    assert found.section.tolist() == ["training", "renderer"] and found.value.tolist() == [1.5, 2.0]


def test_the_readme_shows_some_of_the_figures(tmp_path):
    rows = [("training loop, here", 1017.9, "images a second"), ("share of load, here", 2.0, "%")]
    bench.save("training", [("training", *row, "a machine", "abc") for row in rows], tmp_path / "b")
    shown = bench.speed(tmp_path / "b", tmp_path)
    assert shown.values.tolist() == [["training loop, here", "1018 images a second", "abc"]]
    assert "on a machine." in (tmp_path / "speed.md").read_text()
