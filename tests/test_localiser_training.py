"""How the localiser learns: views, loss, runs to be trusted, and its scores."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import blob_settings

from hamr_lib.data.rhd import RHD
from hamr_lib.errors import HamrError
from hamr_lib.model import checkpoint
from hamr_lib.model.backbone import PretrainedStem
from hamr_lib.recovery import localiser, localiser_training
from hamr_lib.recovery.localiser import Find


def test_it_learns_to_find_blobs_and_their_side(tiny_localiser, blobs):
    finder = localiser.load_localiser(tiny_localiser)
    frames = RHD(blobs, "evaluation")
    rows = localiser_training.evaluate(finder, None, blob_settings(), frames, "blobs")
    values = rows.set_index("metric").value
    # A chance answer would find a blob here and there and be right about half of the sides.
    assert values["hands_found"] > 0.8 and values["finds_right"] > 0.8
    assert values["side_accuracy"] > 0.9 and values["box_iou"] > 0.55
    assert rows.set_index("metric").n["hands_found"] == 16  # 4 images of each kind


def test_hands_in_photographs_are_scored(monkeypatch):
    """Two hands of one photograph, one of another: found beside the other one, exactly, not."""
    image, joints = np.zeros((200, 300, 3), np.uint8), np.full((21, 2), np.nan)

    def frame(x, side, image):
        seen = joints.copy()
        seen[:12] = np.linspace([x, 20], [x + 50, 70], 12)
        return SimpleNamespace(image=image, side=side, joints_2d=seen)

    found = Find((100.0, 20.0, 150.0, 70.0), "left", 0.9)
    calls = []
    monkeypatch.setattr(
        localiser_training, "find", lambda *args: calls.append(1) or [found] * (len(calls) < 2)
    )
    frames = [frame(10, "right", image), frame(100, "left", image), frame(10, "left", image + 1)]
    rows = localiser_training.evaluate_photographs(None, None, blob_settings(), frames)
    rows = rows.set_index("metric")
    assert len(calls) == 2  # a photograph is searched once
    assert rows.value.to_dict() == {
        "box_iou": 1.0, "hands_found": pytest.approx(1 / 3), "side_accuracy": 1.0,
    }  # fmt: skip
    assert rows.n.to_dict() == {"box_iou": 1, "hands_found": 3, "side_accuracy": 1}
    assert (rows.dataset == "BSDS500 hands").all()


def test_an_interrupted_run_ends_as_an_unbroken_one(blobs, tmp_path, monkeypatch):
    frames = RHD(blobs, "training")
    settings = blob_settings(steps=4, save_every=2, batch_size=2, image_size=32, channels=4)
    localiser_training.fit(settings, tmp_path / "whole", frames)
    calls = []

    def dies(scores, hands, loss=localiser_training.segmentation_loss):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt("power cut")
        return loss(scores, hands)

    with monkeypatch.context() as patched:
        patched.setattr(localiser_training, "segmentation_loss", dies)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            localiser_training.fit(settings, tmp_path / "cut", frames)
    path = tmp_path / "cut" / "checkpoints" / "localiser.ckpt"
    assert checkpoint.read(path)["hamr"]["step"] == 2
    with pytest.raises(HamrError, match="its training did not end"):
        localiser.load_localiser(path)
    history = localiser_training.fit(settings, tmp_path / "cut", frames)
    assert [row["step"] for row in history] == [2, 4]
    whole = checkpoint.read(tmp_path / "whole" / "checkpoints" / "localiser.ckpt")
    again = checkpoint.read(path)
    assert whole["hamr"]["threshold"] == again["hamr"]["threshold"]
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(again["state_dict"][key], value, rtol=0, atol=0)
    # A finished run is not trained again, and not mistaken for another one.
    monkeypatch.setattr(localiser_training, "_trainer", None)
    assert localiser_training.fit(settings, tmp_path / "cut", frames) == history
    other = blob_settings(steps=4, save_every=2, batch_size=2, image_size=32, channels=8)
    with pytest.raises(HamrError, match="localiser.channels=4, but this run asks for 8"):
        localiser_training.fit(other, tmp_path / "cut", frames)


def test_a_model_that_was_trained_further_gets_a_new_localiser(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(localiser_training, "choose_threshold", lambda *args: 0.5)
    frames = RHD(blobs, "training")
    settings = blob_settings(steps=2, save_every=1, batch_size=2, image_size=32, channels=4)
    stem = PretrainedStem(8)
    model = SimpleNamespace(pose_module=SimpleNamespace(stem=stem))
    first = localiser_training.fit(settings, tmp_path / "run", frames, model)
    with torch.no_grad():
        next(stem.blocks.parameters()).mul_(1.5)
    second = localiser_training.fit(settings, tmp_path / "run", frames, model)
    assert second != first
    assert localiser_training.fit(settings, tmp_path / "new", frames, model) == second


def test_settings_that_cannot_be(blobs, tmp_path):
    with pytest.raises(HamrError, match="steps=5 is not a multiple of localiser.save_every=2"):
        localiser_training.fit(
            blob_settings(steps=5, save_every=2), tmp_path, RHD(blobs, "training")
        )


def test_the_loss_of_known_answers():
    hands = torch.zeros(2, 8, 8, dtype=torch.long)
    hands[0, :4], hands[1, :, :4] = 1, 2
    nothing = localiser_training.segmentation_loss(torch.zeros(2, 3, 4, 4), hands)
    assert nothing == pytest.approx(np.log(3) + 0.5 * np.log(2), rel=1e-5)
    right = 50 * torch.nn.functional.one_hot(hands[:, ::2, ::2], 3).permute(0, 3, 1, 2).float()
    assert localiser_training.segmentation_loss(right, hands) < 1e-6
    # Without any hand there is no side to be wrong about, and nothing to divide by.
    empty = localiser_training.segmentation_loss(
        torch.zeros(1, 3, 4, 4), torch.zeros_like(hands[:1])
    )
    assert empty == pytest.approx(np.log(3), rel=1e-5)


def test_a_mirrored_view_swaps_the_sides():
    image = np.zeros((40, 60, 3), np.uint8)
    hands = np.zeros((40, 60), np.uint8)
    hands[10:20, 5:15], hands[10:20, 40:50] = 1, 2
    image[..., 0] = 100 * hands
    middle = np.array([29.5, 19.5])
    view, labels, inside = localiser_training.turned(image, hands, middle, 60.0, 0.0, True, 60)
    assert (labels[20:30, 45:55] == 2).all() and (labels[20:30, 10:20] == 1).all()
    np.testing.assert_array_equal(view[:, ::-1][10:50, :, 0], image[..., 0])
    # The square is as wide as the photo and higher: beyond it is nothing.
    assert inside[10:50].all() and not inside[:10].any() and not inside[50:].any()


def test_a_turned_view_turns_clockwise():
    image = np.zeros((41, 41, 3), np.uint8)
    hands = np.zeros((41, 41), np.uint8)
    hands[2:6, 18:23] = 2  # above the middle
    _, labels, _ = localiser_training.turned(
        image, hands, np.array([20.0, 20.0]), 41.0, np.pi / 2, False, 41
    )
    ys, xs = np.nonzero(labels)
    assert xs.mean() > 30 and abs(ys.mean() - 20) < 1 and set(labels[ys, xs]) == {2}


def test_hands_take_up_the_asked_share_and_empty_squares_are_empty():
    hands = np.zeros((200, 300), np.uint8)
    hands[50:90, 100:130] = 1
    rng = np.random.default_rng(0)
    empty = 0
    for _ in range(50):
        centre, side = localiser_training.hand_square(hands, rng, (0.1, 1.0))
        assert 0.1 - 1e-6 <= 39 / side <= 1.0 + 1e-6
        assert abs(centre - [114.5, 69.5]).max() < side / 2
        square = localiser_training.empty_square(hands, rng)
        if square is None:
            continue
        empty += 1
        centre, side = square
        low, high = (np.floor(centre - side / 2).astype(int), np.ceil(centre + side / 2))
        assert not hands[low[1] : int(high[1]), low[0] : int(high[0])].any()
    assert empty > 30
    assert localiser_training.empty_square(np.ones((50, 50), np.uint8), rng) is None


def test_batches_are_a_function_of_seed_and_step(blobs):
    frames = RHD(blobs, "training")
    make = localiser_training.FrameBatches
    one, two = (make(frames, np.arange(20), blob_settings(batch_size=3))[7] for _ in range(2))
    assert torch.equal(one["image"], two["image"]) and torch.equal(one["hands"], two["hands"])
    other = make(frames, np.arange(20), blob_settings(batch_size=3))[8]
    assert not torch.equal(one["image"], other["image"])


def test_matching_is_one_to_one_and_knows_false_finds():
    truth = [((0, 0, 10, 10), "left", True), ((20, 0, 30, 10), "right", True),
             ((40, 0, 50, 10), "left", False)]  # fmt: skip
    finds = [
        Find((0, 0, 10, 10), "left", 0.9),
        Find((0, 0, 10, 9), "right", 0.8),  # on the same hand once more
        Find((40, 0, 50, 10), "left", 0.7),  # on a hand that is not scored
        Find((20, 0, 30, 4), "right", 0.6),  # overlaps by less than half
    ]
    hands, false = localiser_training.match(finds, truth, (60, 60))
    assert [round(iou, 3) for iou, _ in hands] == [1.0, 0.4]
    assert [f.score for f in false] == [0.8, 0.6]
    assert localiser_training.match([], truth, (60, 60)) == ([(0.0, None), (0.0, None)], [])


def test_only_hands_that_are_shown_are_scored():
    hands = np.zeros((100, 100), np.uint8)
    hands[10:30, 10:30], hands[0:5, 90:95] = 1, 2
    joints = np.zeros((2, 21, 2))
    joints[0] = np.linspace([11, 12], [29, 28], 21)
    joints[1] = np.linspace([90, 2], [140, 4], 21)  # most of them outside
    left, right = localiser_training.true_hands(hands, joints)
    assert left == ((11.0, 12.0, 29.0, 28.0), "left", True)
    assert right[1:] == ("right", False) and right[0][2] == 99.5
