"""The methods compared with: each runs through the one interface, and each idea against theory."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from saved_results import drawn_sets, small_settings
from tiny import STILL, TinyHand, draw_frames

from hamr_lib import baselines, study
from hamr_lib.baselines import bodynet, common, deeplab, iqbal, pavlakos, zimmermann
from hamr_lib.config import from_dict, load_comparison, load_settings
from hamr_lib.data.augment import centre_crop
from hamr_lib.data.crops import load_crops
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import predict
from hamr_lib.joints import WRIST
from hamr_lib.model import checkpoint
from hamr_lib.model.hamr import load_model
from hamr_lib.model.heatmaps import soft_argmax
from hamr_lib.training.loop import fit
from hamr_lib.training.task import Task
from hamr_lib.training.watch import Diverged
from hamr_lib.variants import COMPARISONS

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]
TRAINED = [name for name in COMPARISONS if name not in ("mean-pose", "untrained")]


def quick(**train_settings):
    """Settings under which a method is trained in a moment."""
    values = small_settings().to_dict()
    values["train"].update({"steps": 4, "batch_size": 4, "validate_every": 2, **train_settings})
    values["losses"]["silhouette_size"] = 16
    return from_dict(values)


SETTINGS = quick()


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Training, validation and test sets of drawn hands; some samples lack labels."""
    cache = tmp_path_factory.mktemp("crops")
    frames = draw_frames(16, seed=9)
    for frame in frames[:6]:
        frame.mask = None
    frames[3].joints_3d[4] = np.nan
    frames[8].joints_3d[WRIST] = np.nan
    frames[9].joints_2d[7] = np.nan
    training = load_crops(frames, "training", 32, SETTINGS.augment, cache=cache)
    return *training.split(0.25, 0), drawn_sets(cache, SETTINGS)


@pytest.fixture
def tiny_hand(monkeypatch):
    monkeypatch.setattr(baselines, "hand_of", lambda settings: TinyHand())


@pytest.mark.parametrize("name", COMPARISONS)
def test_each_trains_and_answers(name, crops, tmp_path, tiny_hand):
    *training, sets = crops
    table = baselines.run(name, SETTINGS, tmp_path, *training, sets)
    assert set(table.method) == {name} and np.isfinite(table.value).all()
    joints, masks = name != "deeplab", name not in ("zimmermann", "iqbal")
    assert ("auc" in set(table.metric)) == joints and ("miou" in set(table.metric)) == masks
    for dataset, _ in sets:
        found = predict.load_predictions(predict.predictions_path(tmp_path, dataset))
        assert ("joints_3d" in found) == ("pixels" in found) == joints

    about = json.loads((tmp_path / "about.json").read_text())
    assert about["deviations"].endswith(".") and about["reference"]
    assert about["method"] == name and about["steps"] == (4 if name in TRAINED else 0)
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert (cost["parameters"] > 0) == (cost["gflop"] > 0) == (name != "mean-pose")
    assert cost["ms_an_image"] > 0


def test_hamr_with_the_budget_of_the_others_is_trained_as_the_main_run_is(crops, tmp_path):
    settings = quick()
    train = dataclasses.replace(settings.train, lift_steps=2, lift_beside=2)
    model = dataclasses.replace(settings.model, joint_features=True)
    settings = dataclasses.replace(settings, model=model, train=train)
    method = baselines.METHODS["hamr"].fit(settings, *crops[:2], TinyHand(), tmp_path / "method")
    fit(settings, tmp_path / "main", *crops[:2], TinyHand())
    theirs = checkpoint.read(tmp_path / "main" / "checkpoints" / "best.ckpt")["state_dict"]
    for name, weight in method.network.state_dict().items():
        assert torch.equal(weight.cpu(), theirs[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, steps",
    [("zimmermann", 240), ("pavlakos", 120), ("bodynet", 240), ("iqbal", 240), ("hmr", 40),
     ("boukhayma", 40), ("smplify", 240)],
)  # fmt: skip
def test_each_learns_a_few_samples_by_heart(name, steps, tmp_path, tiny_hand):
    """Eight samples, no augmentation: far better than the mean hand."""
    settings = quick(steps=steps, validate_every=steps, batch_size=8, learning_rate=3e-3,
                     optimizer="adamw", schedule="cosine", clip=1.0)  # fmt: skip
    model = dataclasses.replace(settings.model, dropout=0.0, rotation="6d")
    losses = dataclasses.replace(
        settings.losses, heatmap_kind="cross_entropy", heatmap=10.0, silhouette=0.0
    )
    settings = dataclasses.replace(settings, augment=STILL, model=model, losses=losses)
    eight = load_crops(draw_frames(8), "eight", 32, STILL, cache=tmp_path / "cache")
    sets = {("open-rhd", "evaluation"): eight}
    tables = (
        baselines.run(method, settings, tmp_path / method, eight, eight, sets)
        for method in (name, "mean-pose")
    )
    ours, floor = (table.set_index("metric").value for table in tables)
    if name == "smplify":  # its hand is fitted to what is learnt: the joints in the image
        assert ours["auc_2d_heatmaps"] > 0.8 and ours["epe_2d"] < 0.6 * floor["epe_2d"]
    else:
        assert ours["epe_mean"] < 0.75 * floor["epe_mean"]


def test_deeplab_learns_a_mask():
    """Bright discs on dark noise, by the losses alone: most of their pixels are found."""
    torch.manual_seed(0)
    grid, middle = torch.linspace(-1, 1, 64), torch.rand(8, 2, 1, 1) - 0.5
    inside = (grid - middle[:, 0]) ** 2 + (grid[:, None] - middle[:, 1]) ** 2 < 0.25
    image = 0.3 * torch.rand(8, 3, 64, 64) + 0.6 * inside[:, None]
    batch = {"image": image, "mask": inside.float(), "has_mask": torch.ones(8, dtype=torch.bool)}
    method, network = deeplab.DeepLab(), deeplab.Mask(SETTINGS.model).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(25):
        output = network(image)
        optimiser.zero_grad()
        method.losses(network, output, batch, SETTINGS)["total"].backward()
        optimiser.step()
    batch["has_mask"][0] = False
    unknown, *errors = method.error(network, output.detach(), batch)
    assert unknown.isnan() and sum(errors) / 7 < 6 < 100 * inside.float().mean()  # percent wrong


def test_the_learning_rate_is_chosen_on_the_validation_crops(crops, tmp_path, monkeypatch):
    """Trials end at made-up errors, one of them in a loss that diverges; the least error wins."""
    study = dataclasses.replace(SETTINGS.study, search_steps=2, search_rates=(0.5, 1.0, 2.0, 4.0))
    settings, tried = dataclasses.replace(SETTINGS, study=study), []

    def trial(settings, folder, *rest):
        folder.mkdir(parents=True)
        tried.append(settings.train.learning_rate)
        assert settings.train.steps == 2
        if len(tried) == 4:
            raise Diverged("too fast")
        return [{"val_joints_3d_mm": 9.0}, {"val_joints_3d_mm": [3.0, 2.0, 4.0][len(tried) - 1]}]

    monkeypatch.setattr(common, "fit", trial)
    for _ in range(2):  # the second time from search.csv
        found = common.search_rate(Task(), settings, *crops[:2], TinyHand(), tmp_path)
        rate = SETTINGS.train.learning_rate
        assert tried == [0.5 * rate, rate, 2 * rate, 4 * rate]
        assert found.train.learning_rate == rate and found.train.steps == SETTINGS.train.steps
    assert not (tmp_path / "search").exists()
    assert common.search_rate(Task(), SETTINGS, *crops[:2], TinyHand(), tmp_path) == SETTINGS


def test_a_comparison_is_no_hamr(crops, tmp_path, tiny_hand):
    *training, sets = crops
    baselines.run("hmr", SETTINGS, tmp_path, *training, sets)
    best = tmp_path / "checkpoints" / "best.ckpt"
    with pytest.raises(HamrError, match="holds a network of 'hmr', expected one of 'hamr'"):
        load_model(best)
    with pytest.raises(HamrError, match="holds a network of 'hmr', expected one of 'boukhayma'"):
        baselines.run("boukhayma", SETTINGS, tmp_path, *training, sets)


def test_which_run_fits_which_method():
    assert baselines.to_run(load_settings("cpu"), "hmr") == ("hmr",)
    # What is trained has a run of its own.
    assert baselines.to_run(load_settings("cpu"), "") == ("mean-pose", "untrained")
    assert study.comparison_runs(load_settings("reference")) == TRAINED
    assert study.comparison_runs(load_settings("smoke")) == []
    assert baselines.to_run(load_settings("smoke"), "") == tuple(COMPARISONS)
    with pytest.raises(HamrError, match="unknown method 'magic'"):
        load_comparison("smoke", "magic")


def test_the_mean_pose_is_the_mean_of_the_labels(crops):
    training = crops[0]
    method = baselines.MeanPose.fit(SETTINGS, training, None, None, None)
    answer = method.estimate(torch.zeros(3, 3, 32, 32))
    for name in ("joints_3d", "joints_2d"):
        values = training.labels[name].copy()
        values[~training.labels[f"valid_{name[-2:]}"]] = np.nan
        expected = np.tile(np.nanmean(values, axis=0), (3, 1, 1))
        np.testing.assert_allclose(answer[name], expected, atol=1e-6)
    masked = training.subset(np.flatnonzero(training.labels["has_mask"]))
    masks = centre_crop(masked.batch(range(len(masked))), 32)["mask"]
    expected = masks.mean(0).reshape(16, 2, 16, 2).mean((1, 3))
    assert answer["mask"].shape == (3, 16, 16)
    assert (answer["mask"][0] - expected).abs().mean() < 0.03


def test_it_needs_every_joint_labelled_once(crops):
    training = crops[0]
    labels = {k: v.copy() for k, v in training.labels.items()}
    broken = type(training)(training.pixels, training.rows, labels, training.keys, "", 32)
    labels["valid_2d"][:, 7] = False
    with pytest.raises(HamrError, match="joints_2d is labelled in no training sample"):
        baselines.MeanPose.fit(SETTINGS, broken, None, None, None)
    labels["valid_3d"][:, 5] = False
    with pytest.raises(HamrError, match="no training sample labels both wrist and index MCP"):
        common.mean_lengths(broken)


def test_mean_places_are_exact_for_a_gaussian():
    """In the plane and in space: the logits of a Gaussian well inside the grid."""
    flat, deep = torch.arange(24.0), torch.arange(16.0)
    z, y, x = middle = torch.tensor([7.3, 11.8, 12.45])  # in cells
    square = (deep[:, None, None] - z) ** 2 + (flat[:, None] - y) ** 2 + (flat - x) ** 2
    maps = (-square / (2 * 1.5)).expand(2, 21, 16, 24, 24)
    found, share = soft_argmax(maps, (deep, flat, flat))
    assert found.shape == (2, 21, 3)
    torch.testing.assert_close(found, middle.expand(2, 21, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(share.sum(dim=(2, 3, 4)), torch.ones(2, 21))
    joints = bodynet.volume_joints(maps)
    expected = torch.tensor([2 * (12.45 + 0.5) / 24 - 1, 2 * (11.8 + 0.5) / 24 - 1])
    torch.testing.assert_close(joints[0, 5, :2], expected, atol=1e-4, rtol=0)
    assert joints[..., 2].abs().max() < 1e-6  # all as deep as the wrist


def test_iqbal_focal_length_of_a_crop(crops):
    """f = s Z: what a pinhole of 300 pixels is in crop units, whose half side is one."""
    side = np.median(crops[0].labels["side"])
    assert iqbal.focal_length(crops[0]).item() == pytest.approx(2 * 300 / side, rel=0.1)


def test_the_lifting_of_zimmermann_takes_maps_of_either_stride(crops):
    values = SETTINGS.to_dict()
    values["model"].update({"stem": "hand_landmark", "map_stride": 8, "image_size": 96, "depth": 2})
    network = zimmermann.Zimmermann().build(from_dict(values), TinyHand(), crops[0]).eval()
    heatmaps, canonical, _ = network(torch.rand(1, 3, 96, 96))
    assert heatmaps[-1].shape[2:] == (12, 12) and canonical.shape == (1, 21, 3)


def test_pavlakos_second_stage_sees_maps_alone(crops):
    """Features change nothing; joints change rotation and pose, the silhouette only the shape."""
    network = pavlakos.Pavlakos().build(SETTINGS, TinyHand(), crops[0]).eval()
    for stream in (network.regressor.pose, network.regressor.shape):
        torch.nn.init.normal_(stream[-1].weight)
    channels = SETTINGS.model.channels
    joined = torch.rand(1, channels + 22, 8, 8)

    @torch.no_grad()
    def change(part):
        other = joined.clone()
        other[:, part] = torch.rand_like(other[:, part])
        return [(network.regressor(x, None, None)[0][0]) for x in (joined, other)]

    for part, pose, shape in (
        (slice(channels), False, False),
        (slice(channels, channels + 21), True, False),
        (slice(channels + 21, None), False, True),
    ):
        before, after = change(part)
        assert ((before != after)[:-10] == pose).all() and ((before != after)[-10:] == shape).all()


def test_labels_that_lack_reach_no_loss(crops, tmp_path):
    """A batch with NaN where nothing is labelled: losses and gradients stay finite."""
    training = crops[0]
    for name in TRAINED:
        task = baselines.METHODS[name]()
        torch.manual_seed(0)
        network = task.build(SETTINGS, TinyHand(), training).train()
        batch = centre_crop(training.batch(range(4)), 32)
        batch["valid_3d"][0] = False
        batch["valid_3d"][1, WRIST] = False
        batch["valid_2d"][2, 3:] = False
        batch["has_mask"][:] = torch.tensor([False, True, True, False])
        losses = task.losses(network, network(batch["image"]), batch, SETTINGS)
        losses["total"].backward()
        assert all(loss.isfinite() for loss in losses.values()), name
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        assert grads and all(g.isfinite().all() for g in grads), name
        batch["has_mask"][:] = False
        for key in ("valid_2d", "valid_3d"):
            batch[key][:] = False
        nothing = task.losses(network, network(batch["image"]), batch, SETTINGS)
        if name not in ("hamr", "boukhayma"):  # these have terms that need no label
            assert nothing["total"] == 0, name
