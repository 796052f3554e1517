"""Finding hands: what a localiser that has learnt coloured blobs finds, and its geometry."""

import cv2
import numpy as np
import pytest
import torch
from tiny import blob_settings

from hamr_lib.data.rhd import RHD
from hamr_lib.errors import HamrError
from hamr_lib.model import checkpoint
from hamr_lib.model.backbone import PretrainedStem
from hamr_lib.model.hamr import load_model
from hamr_lib.recovery import localiser
from hamr_lib.recovery.localiser import Find


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


def find_hands(network, threshold, photo):
    return localiser.distinct(localiser.candidates(network, photo), threshold)


def test_no_hand_where_there_is_none(trained):
    network, threshold = trained
    noise = np.random.default_rng(5).normal(110, 12, (90, 140, 3)).clip(0, 255).astype(np.uint8)
    assert find_hands(network, threshold, noise) == []


def test_what_is_looked_at_can_be_narrowed(trained, blobs):
    network, threshold = trained
    image, _, joints = RHD(blobs, "evaluation").both_hands(2)
    found = find_hands(network, threshold, image)
    assert {f.side for f in found} == {"left", "right"}
    # Scores come with the most certain first.
    assert found[0].score >= found[1].score >= threshold
    for side, points in zip(localiser.SIDES, joints, strict=True):
        low, high = points.min(0), points.max(0)
        air = 0.2 * (high - low).max()  # as `recover` leaves around a box
        around = (*(low - air), *(high + air))
        [found, *_] = localiser.distinct(localiser.candidates(network, image, around), threshold)
        assert found.side == side


def test_a_hand_far_away_is_found_from_near(trained, blobs, monkeypatch):
    network, threshold = trained
    image, _, joints = RHD(blobs, "evaluation").both_hands(1)
    photo = np.random.default_rng(5).normal(110, 12, (320, 320, 3)).clip(0, 255).astype(np.uint8)
    photo[200:264, 100:164] = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    [found] = find_hands(network, threshold, photo)
    small = joints[1] / 2 + (100, 200)
    assert localiser.overlap(found.box, (*small.min(0), *small.max(0))) > 0.5
    monkeypatch.setattr(localiser, "LEVELS", (1,))
    assert find_hands(network, threshold, photo) == []


def test_what_a_second_look_does_not_see_is_none(trained, blobs, monkeypatch):
    """The first look at each level sees a hand in the middle, the second one nothing or a hand."""
    near = probabilities((2, 16, 16, 47, 47))

    def segment(network, photo, squares, level=1):
        centre, side = squares[0]
        whole = side == max(photo.shape)
        return [probabilities((2, 24, 24, 39, 39)) if whole else near]

    monkeypatch.setattr(localiser, "_segment", segment)
    photo = np.zeros((640, 640, 3), np.uint8)
    assert [len(finds) for finds in localiser.candidates(None, photo)] == [1, 1, 1]
    near = probabilities()
    assert [len(finds) for finds in localiser.candidates(None, photo)] == [0, 0, 0]


def test_each_hand_counts_once():
    hand, finger = (0.0, 0.0, 100.0, 100.0), (60.0, 0.0, 90.0, 40.0)
    beside, around = (110.0, 0.0, 200.0, 100.0), (-200.0, -200.0, 300.0, 300.0)

    def kept(*levels, threshold=0.5):
        finds = [[Find(box, "left", score) for box, score in level] for level in levels]
        return [found.box for found in localiser.distinct(finds, threshold)]

    # A finger seen from near is a part of the hand that was seen before, however certain.
    assert kept([(hand, 0.6)], [(finger, 0.9), (beside, 0.7)]) == [beside, hand]
    assert kept([(hand, 0.6)], [(around, 0.9)]) == [hand]
    # What is not certain enough hides nothing.
    assert kept([(hand, 0.4)], [(finger, 0.9)]) == [finger]
    # On one level a small hand may lie before a large one; of two alike the more certain counts.
    assert kept([(hand, 0.6), (finger, 0.9)]) == [finger, hand]
    assert kept([(hand, 0.6), ((0.0, 0.0, 100.0, 90.0), 0.7)]) == [(0.0, 0.0, 100.0, 90.0)]


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


def test_files_that_are_no_localiser(tiny_checkpoint, tiny_localiser, tmp_path):
    with pytest.raises(HamrError, match="is no localiser"):
        localiser.load_localiser(tiny_checkpoint)
    with pytest.raises(HamrError, match="holds a localiser, expected"):
        load_model(tiny_localiser)
    with pytest.raises(HamrError, match="none.ckpt is missing"):
        localiser.load_localiser(tmp_path / "none.ckpt")


def test_a_released_localiser_finds_the_same(trained, tiny_localiser, blobs, tmp_path):
    checkpoint.save_release(tiny_localiser, tmp_path / "localiser.pt")
    assert (tmp_path / "localiser.pt").stat().st_size < 5e6
    network, threshold = localiser.load_localiser(tmp_path / "localiser.pt")
    image = RHD(blobs, "evaluation").both_hands(0)[0]
    [found] = find_hands(network, threshold, image)
    [expected] = find_hands(*trained, image)
    assert localiser.overlap(found.box, expected.box) > 0.9 and found.side == expected.side


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
