"""The localiser: what it learns from coloured blobs, its geometry, and runs to be trusted."""

import numpy as np
import pytest
import torch
from tiny import blob_settings

from hamr_lib import checkpoint, localiser
from hamr_lib.backbone import PretrainedStem
from hamr_lib.data.rhd import RHD
from hamr_lib.errors import HamrError
from hamr_lib.localiser import Find


def probabilities(*blobs, size=64):
    """(3, size, size): certain background but for blobs (class, x0, y0, x1, y1)."""
    found = np.full((3, size, size), 0.02, np.float32)
    found[0] = 0.96
    for code, x0, y0, x1, y1 in blobs:
        found[:, y0 : y1 + 1, x0 : x1 + 1] = 0.05
        found[code, y0 : y1 + 1, x0 : x1 + 1] = 0.9
    return found


@pytest.fixture(scope="module")
def trained(tiny_localiser):
    return localiser.load_localiser(tiny_localiser)


# --- learning -----------------------------------------------------------------------------------


def test_it_learns_to_find_blobs_and_their_side(trained, blobs):
    network, threshold = trained
    frames = RHD(blobs, "evaluation")
    rows = localiser.evaluate(network, threshold, blob_settings(), frames, "blobs")
    values = rows.set_index("metric").value
    # A chance answer would find a blob here and there and be right about half of the sides.
    assert values["hands_found"] > 0.8 and values["finds_right"] > 0.8
    assert values["side_accuracy"] > 0.9 and values["box_iou"] > 0.55
    assert rows.set_index("metric").n["hands_found"] == 16  # 4 images of each kind


def test_no_hand_where_there_is_none(trained):
    network, threshold = trained
    noise = np.random.default_rng(5).normal(110, 12, (90, 140, 3)).clip(0, 255).astype(np.uint8)
    assert localiser.find_hands(network, threshold, noise) == []


def test_what_is_looked_at_can_be_narrowed(trained, blobs):
    network, threshold = trained
    image, _, joints = RHD(blobs, "evaluation").both_hands(2)
    found = localiser.find_hands(network, threshold, image)
    assert {f.side for f in found} == {"left", "right"}
    # Scores come with the most certain first.
    assert found[0].score >= found[1].score >= threshold
    for side, points in zip(localiser.SIDES, joints, strict=True):
        low, high = points.min(0), points.max(0)
        air = 0.2 * (high - low).max()  # as `recover` leaves around a box
        around = (*(low - air), *(high + air))
        [found] = localiser.find_hands(network, threshold, image, around)
        assert found.side == side


def test_an_interrupted_run_ends_as_an_unbroken_one(blobs, tmp_path, monkeypatch):
    frames = RHD(blobs, "training")
    settings = blob_settings(steps=4, save_every=2, batch_size=2, image_size=32, channels=4)
    localiser.fit(settings, tmp_path / "whole", frames)
    calls = []

    def dies(scores, hands, loss=localiser.segmentation_loss):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt("power cut")
        return loss(scores, hands)

    with monkeypatch.context() as patched:
        patched.setattr(localiser, "segmentation_loss", dies)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            localiser.fit(settings, tmp_path / "cut", frames)
    path = tmp_path / "cut" / "checkpoints" / "localiser.ckpt"
    assert checkpoint.read(path)["hamr"]["step"] == 2
    with pytest.raises(HamrError, match="its training did not end"):
        localiser.load_localiser(path)
    history = localiser.fit(settings, tmp_path / "cut", frames)
    assert [row["step"] for row in history] == [2, 4]
    whole = checkpoint.read(tmp_path / "whole" / "checkpoints" / "localiser.ckpt")
    again = checkpoint.read(path)
    assert whole["hamr"]["threshold"] == again["hamr"]["threshold"]
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(again["state_dict"][key], value, rtol=0, atol=0)
    # A finished run is not trained again, and not mistaken for another one.
    monkeypatch.setattr(localiser, "_trainer", None)
    assert localiser.fit(settings, tmp_path / "cut", frames) == history
    other = blob_settings(steps=4, save_every=2, batch_size=2, image_size=32, channels=8)
    with pytest.raises(HamrError, match="localiser.channels=4, but this run asks for 8"):
        localiser.fit(other, tmp_path / "cut", frames)


def test_it_starts_from_the_blocks_of_a_trained_stem():
    settings = blob_settings(channels=4)
    torch.manual_seed(0)
    stem = PretrainedStem(8)  # of another width, and with a scale more
    with torch.no_grad():
        for weight in stem.parameters():
            weight.add_(torch.randn_like(weight))
    network = localiser.HandSegmenter(settings.localiser)
    before = network.stem.lateral[0].weight.clone()
    network.start_from(stem)
    ours, theirs = network.stem.blocks.state_dict(), stem.blocks.state_dict()
    assert len(ours) > 100
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert torch.equal(network.stem.lateral[0].weight, before)


def test_settings_that_cannot_be(blobs, tmp_path):
    with pytest.raises(HamrError, match="steps=5 is not a multiple of localiser.save_every=2"):
        localiser.fit(blob_settings(steps=5, save_every=2), tmp_path, RHD(blobs, "training"))


def test_files_that_are_no_localiser(tiny_checkpoint, tiny_localiser, tmp_path):
    with pytest.raises(HamrError, match="is no localiser"):
        localiser.load_localiser(tiny_checkpoint)
    with pytest.raises(HamrError, match="holds a localiser: expected a network"):
        checkpoint.load_model(tiny_localiser)
    with pytest.raises(HamrError, match="none.ckpt is missing"):
        localiser.load_localiser(tmp_path / "none.ckpt")


def test_a_released_localiser_finds_the_same(trained, tiny_localiser, blobs, tmp_path):
    checkpoint.save_release(tiny_localiser, tmp_path / "localiser.pt")
    assert (tmp_path / "localiser.pt").stat().st_size < 5e6
    network, threshold = localiser.load_localiser(tmp_path / "localiser.pt")
    image = RHD(blobs, "evaluation").both_hands(0)[0]
    [found] = localiser.find_hands(network, threshold, image)
    [expected] = localiser.find_hands(*trained, image)
    assert localiser.overlap(found.box, expected.box) > 0.9 and found.side == expected.side


def test_the_loss_of_known_answers():
    hands = torch.zeros(2, 8, 8, dtype=torch.long)
    hands[0, :4], hands[1, :, :4] = 1, 2
    nothing = localiser.segmentation_loss(torch.zeros(2, 3, 4, 4), hands)
    assert nothing == pytest.approx(np.log(3) + 0.5 * np.log(2), rel=1e-5)
    right = 50 * torch.nn.functional.one_hot(hands[:, ::2, ::2], 3).permute(0, 3, 1, 2).float()
    assert localiser.segmentation_loss(right, hands) < 1e-6
    # Without any hand there is no side to be wrong about, and nothing to divide by.
    empty = localiser.segmentation_loss(torch.zeros(1, 3, 4, 4), torch.zeros_like(hands[:1]))
    assert empty == pytest.approx(np.log(3), rel=1e-5)


# --- views --------------------------------------------------------------------------------------


def test_a_mirrored_view_swaps_the_sides():
    image = np.zeros((40, 60, 3), np.uint8)
    hands = np.zeros((40, 60), np.uint8)
    hands[10:20, 5:15], hands[10:20, 40:50] = 1, 2
    image[..., 0] = 100 * hands
    middle = np.array([29.5, 19.5])
    view, labels, inside = localiser.turned(image, hands, middle, 60.0, 0.0, True, 60)
    assert (labels[20:30, 45:55] == 2).all() and (labels[20:30, 10:20] == 1).all()
    np.testing.assert_array_equal(view[:, ::-1][10:50, :, 0], image[..., 0])
    # The square is as wide as the photo and higher: beyond it is nothing.
    assert inside[10:50].all() and not inside[:10].any() and not inside[50:].any()


def test_a_turned_view_turns_clockwise():
    image = np.zeros((41, 41, 3), np.uint8)
    hands = np.zeros((41, 41), np.uint8)
    hands[2:6, 18:23] = 2  # above the middle
    _, labels, _ = localiser.turned(
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
        centre, side = localiser.hand_square(hands, rng, (0.1, 1.0))
        assert 0.1 - 1e-6 <= 39 / side <= 1.0 + 1e-6
        assert abs(centre - [114.5, 69.5]).max() < side / 2
        square = localiser.empty_square(hands, rng)
        if square is None:
            continue
        empty += 1
        centre, side = square
        low, high = (np.floor(centre - side / 2).astype(int), np.ceil(centre + side / 2))
        assert not hands[low[1] : int(high[1]), low[0] : int(high[0])].any()
    assert empty > 30
    assert localiser.empty_square(np.ones((50, 50), np.uint8), rng) is None


def test_batches_are_a_function_of_seed_and_step(blobs):
    frames = RHD(blobs, "training")
    make = localiser.FrameBatches
    one, two = (make(frames, np.arange(20), blob_settings(batch_size=3))[7] for _ in range(2))
    assert torch.equal(one["image"], two["image"]) and torch.equal(one["hands"], two["hands"])
    other = make(frames, np.arange(20), blob_settings(batch_size=3))[8]
    assert not torch.equal(one["image"], other["image"])


# --- from pixels to hands -----------------------------------------------------------------------


def test_a_component_is_a_box_in_the_photo():
    found = localiser._components(probabilities((2, 10, 20, 29, 49)), np.array([99.5, 49.5]), 128.0)
    # The square reaches from 35.5 to 163.5 and from -14.5 to 113.5, two pixels a cell; the box is
    # narrower than the mask by the flesh: 3.5 % of 60 pixels.
    inset = localiser.FLESH * 60
    expected = (55.5 + inset, 25.5 + inset, 95.5 - inset, 85.5 - inset)
    assert len(found) == 1 and found[0].side == "right"
    np.testing.assert_allclose(found[0].box, expected, atol=1e-3)
    assert found[0].score == pytest.approx(0.95, abs=1e-5)


def test_touching_hands_of_different_sides_are_two():
    both = probabilities((1, 10, 20, 29, 49), (2, 30, 20, 50, 49))
    found = localiser._components(both, np.array([31.5, 31.5]), 64.0)
    assert sorted(f.side for f in found) == ["left", "right"]
    # A few pixels of the other class are a mistake and no second hand.
    mixed = probabilities((1, 10, 20, 29, 49), (2, 10, 20, 12, 30))
    [one] = localiser._components(mixed, np.array([31.5, 31.5]), 64.0)
    assert one.side == "left" and one.box[2] - one.box[0] > 15


def test_a_pen_across_a_hand_does_not_make_two_of_it_and_specks_are_none():
    crossed = probabilities((1, 10, 20, 29, 33), (1, 10, 35, 29, 49), (2, 60, 60, 60, 60))
    [found] = localiser._components(crossed, np.array([31.5, 31.5]), 64.0)
    assert found.box[3] - found.box[1] > 25


def test_matching_is_one_to_one_and_knows_false_finds():
    truth = [((0, 0, 10, 10), "left", True), ((20, 0, 30, 10), "right", True),
             ((40, 0, 50, 10), "left", False)]  # fmt: skip
    finds = [
        Find((0, 0, 10, 10), "left", 0.9),
        Find((0, 0, 10, 9), "right", 0.8),  # on the same hand once more
        Find((40, 0, 50, 10), "left", 0.7),  # on a hand that is not scored
        Find((20, 0, 30, 4), "right", 0.6),  # overlaps by less than half
    ]
    hands, false = localiser.match(finds, truth, (60, 60))
    assert [round(iou, 3) for iou, _ in hands] == [1.0, 0.4]
    assert [f.score for f in false] == [0.8, 0.6]
    assert localiser.match([], truth, (60, 60)) == ([(0.0, None), (0.0, None)], [])


def test_only_hands_that_are_shown_are_scored():
    hands = np.zeros((100, 100), np.uint8)
    hands[10:30, 10:30], hands[0:5, 90:95] = 1, 2
    joints = np.zeros((2, 21, 2))
    joints[0] = np.linspace([11, 12], [29, 28], 21)
    joints[1] = np.linspace([90, 2], [140, 4], 21)  # most of them outside
    left, right = localiser.true_hands(hands, joints)
    assert left == ((11.0, 12.0, 29.0, 28.0), "left", True)
    assert right[1:] == ("right", False) and right[0][2] == 99.5
