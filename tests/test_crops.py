import numpy as np
import pytest
import torch
from tiny import K, draw_frames

from hamr_lib.camera import crop_to_pixels, crop_units_to_grid
from hamr_lib.config import Augment
from hamr_lib.data.augment import centre_crop
from hamr_lib.data.crops import (
    BOX_FACTOR,
    TIPS_SPAN,
    Crops,
    EvenBatches,
    StepBatches,
    crop_frame,
    crop_square,
    cut,
    folder_identity,
    load_crops,
    stored_size,
)
from hamr_lib.errors import HamrError
from hamr_lib.joints import TIPS


def blob(height, width, at, sigma=4.0):
    """(H, W, 3) uint8 with a soft dot at pixel `at` (x, y)."""
    y, x = np.mgrid[:height, :width]
    dot = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2))
    return np.repeat(dot.round().astype(np.uint8)[..., None], 3, 2)


def centre_of(image):
    weight = image[..., 0].astype(float)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("side", [30.0, 64.0, 100.3, 333.0])
@pytest.mark.parametrize("mirror", [False, True])
def test_cut_puts_pixels_where_the_camera_module_says(side, mirror):
    center, at = np.array([201.3, 188.8]), np.array([201.3 + 0.21 * side, 188.8 - 0.13 * side])
    drawn = cut(blob(400, 400, at, sigma=side / 20), center, side, 64, mirror)
    assert drawn.shape == (64, 64, 3)
    unit = (at - center) * 2 / side * ([-1, 1] if mirror else [1, 1])
    assert np.abs(centre_of(drawn) - crop_units_to_grid(unit, 64)).max() < 0.08


def test_cut_is_exact_where_pixels_coincide_and_black_beyond_the_photo():
    image = np.random.default_rng(0).integers(1, 255, (20, 30, 3), np.uint8)
    # A square of 8 pixels around (9.5, 7.5) holds pixels 6-13 and 4-11.
    assert np.array_equal(cut(image, [9.5, 7.5], 8, 8), image[4:12, 6:14])
    assert np.array_equal(cut(image, [9.5, 7.5], 8, 8, mirror=True), image[4:12, 6:14][:, ::-1])
    # Shrunk by two, every pixel is the mean of four.
    means = image[4:12, 6:14].reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(cut(image, [9.5, 7.5], 8, 4) - means).max() <= 0.5
    corner = cut(image, [0, 0], 8, 8)
    assert corner[:3].max() == 0 and corner[4:, 4:].min() > 0


def test_fingertips_alone_are_given_the_size_of_a_hand():
    frame = draw_frames(1)[0]
    rest = [j for j in range(21) if j not in TIPS[1:]]
    frame.joints_2d[rest], frame.joints_3d[rest] = np.nan, np.nan
    depth = frame.joints_3d[TIPS[1], 2]
    assert crop_square(frame)[1] == pytest.approx(BOX_FACTOR * TIPS_SPAN * K[0, 0] / depth)
    labels = crop_frame(frame, 32, 32)[1]
    assert not labels["has_root"] and labels["valid_3d"].sum() == 4
    restored = labels["joints_3d"] + labels["root"]
    np.testing.assert_allclose(restored[list(TIPS[1:])], frame.joints_3d[list(TIPS[1:])], rtol=1e-5)
    assert labels["joints_3d"][labels["valid_3d"]].mean(0) == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_and_pixels_of_a_frame(tmp_path, side):
    frames = draw_frames(3, side=side)
    frames[1].mask = None
    frames[2].joints_2d[4], frames[2].joints_3d[7] = np.nan, np.nan
    crops = load_crops(frames, "test", 48, Augment(), cache=tmp_path)
    batch = crops.batch([0, 1, 2])
    flip = -1 if side == "left" else 1
    assert batch["left"].all() == (side == "left")
    assert batch["has_mask"].tolist() == [True, False, True]
    assert batch["valid_2d"].sum(1).tolist() == [21, 21, 20] and not batch["valid_2d"][2, 4]
    assert batch["valid_3d"].sum(1).tolist() == [21, 21, 20] and not batch["valid_3d"][2, 7]
    assert all(torch.isfinite(v).all() for v in batch.values())
    mirrored = frames[0].joints_3d * [flip, 1, 1]
    np.testing.assert_allclose(batch["joints_3d"][0], mirrored - mirrored[0], atol=1e-6)
    np.testing.assert_allclose(batch["joints_3d"][0] + batch["root"][0], mirrored, atol=1e-6)
    # Back from crop units to the photo's pixels.
    there = batch["joints_2d"] * torch.tensor([flip, 1])
    there = crop_to_pixels(there, batch["center"], batch["side"])
    np.testing.assert_allclose(there[0], frames[0].joints_2d, atol=1e-3)
    # The square is around the middle of the labelled joints, and so many times as wide as they.
    low, high = batch["joints_2d"][0].aminmax(dim=0)
    torch.testing.assert_close(low, -high, atol=1e-5, rtol=0)
    assert high.max() == pytest.approx(1 / BOX_FACTOR, rel=1e-4)
    # The bright bones run through the joints, in the image and in the mask alike.
    seen = centre_crop(batch, 48)
    pixel = crop_units_to_grid(batch["joints_2d"][0], 48).round().long()
    assert seen["image"][0, 0, pixel[:, 1], pixel[:, 0]].min() > 0.5
    assert seen["mask"][0, pixel[:, 1], pixel[:, 0]].min() > 0.5
    assert seen["mask"][1].max() == 0


def test_the_cache_is_used_and_knows_what_it_holds(tmp_path):
    frames = draw_frames(5)
    first = load_crops(frames, "a", 32, cache=tmp_path)
    second = load_crops([None] * 5, "a", 32, cache=tmp_path)  # nothing is read
    assert first.digest == second.digest and first.keys == [frame.key for frame in frames]
    assert isinstance(second.pixels[0], np.memmap)
    # A new identity, size or margin is cut anew; the digest is of the contents alone.
    assert load_crops(frames, "b", 32, cache=tmp_path).digest == first.digest
    assert load_crops(frames, "a", 16, cache=tmp_path).digest != first.digest
    wide = load_crops(frames, "a", 32, Augment(), cache=tmp_path)
    assert wide.pixels[0].shape[-1] == stored_size(32, Augment()) > 32


def test_a_failure_leaves_no_cache_behind(tmp_path):
    frames = draw_frames(3)
    frames[1].joints_2d[:] = np.nan
    with pytest.raises(HamrError, match="drawn/00001: a crop needs 2 labelled joints_2d"):
        load_crops(frames, "a", 32, cache=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(HamrError, match="no frames"):
        load_crops([], "a", 32, cache=tmp_path)
    load_crops(frames[:1], "a", 32, cache=tmp_path)
    stored = next(tmp_path.rglob("pixels.npy"))
    stored.write_bytes(stored.read_bytes()[:200])
    with pytest.raises(HamrError, match="is a broken cache: delete it"):
        load_crops(frames[:1], "a", 32, cache=tmp_path)


def test_folder_identity_sees_every_change(tmp_path):
    (tmp_path / "a").mkdir()
    seen = {folder_identity(tmp_path)}
    for name, text in (("x", "1"), ("x", "12"), ("y", "")):
        (tmp_path / "a" / name).write_text(text)
        seen |= {folder_identity(tmp_path), folder_identity(tmp_path)}
    assert len(seen) == 4
    with pytest.raises(HamrError, match="nowhere is missing"):
        folder_identity(tmp_path / "nowhere")


def fake_crops(count, size=4):
    """Crops whose every pixel is the sample's number."""
    pixels = np.zeros((count, 4, size, size), np.uint8) + np.arange(count)[:, None, None, None]
    rows = np.stack([np.zeros(count, int), np.arange(count)], 1)
    labels = {"joints_2d": np.arange(count, dtype=np.float32)[:, None, None].repeat(21, 1)}
    keys = [f"f{i}" for i in range(count)]
    return Crops([pixels.astype(np.uint8)], rows, labels, keys, f"fake{count}", size)


def test_subset_and_join_keep_pixels_labels_and_keys_together():
    joined = Crops.join([fake_crops(5).subset([4, 2]), fake_crops(7)])
    assert len(joined) == 9
    order = [8, 0, 3, 1]
    batch = joined.batch(order)
    expected = [6, 4, 1, 2]
    assert batch["image"][:, 0, 0, 0].tolist() == expected
    assert batch["mask"][:, 0, 0].tolist() == expected
    assert batch["joints_2d"][:, 0, 0].tolist() == expected
    assert batch["index"].tolist() == order
    assert [joined.keys[i] for i in order] == ["f6", "f4", "f1", "f2"]
    assert joined.digest != Crops.join([fake_crops(7), fake_crops(5).subset([4, 2])]).digest
    with pytest.raises(HamrError, match="different sizes"):
        Crops.join([fake_crops(2), fake_crops(2, size=6)])


def test_split_is_seeded_complete_and_in_runs():
    crops = fake_crops(40)
    train, val = crops.split(0.25, seed=1)
    assert len(val) == 10 and sorted(train.keys + val.keys) == sorted(crops.keys)
    assert [part.digest for part in crops.split(0.25, seed=1)] == [train.digest, val.digest]
    assert crops.split(0.25, seed=2)[1].keys != val.keys
    # Of a long set whole runs of neighbours are held out.
    long = Crops(crops.pixels, np.zeros((6000, 2), int), {}, [str(i) for i in range(6000)], "x", 4)
    held = np.array([int(k) for k in long.split(0.1, seed=0)[1].keys])
    assert len(held) == 600 and (np.diff(held) > 1).sum() + 1 <= 12
    with pytest.raises(HamrError, match="empty"):
        crops.split(0.0, seed=0)


def test_steps_see_every_sample_equally_often_and_depend_on_seed_and_step_only():
    crops = fake_crops(10)
    batches = StepBatches(crops, 4, seed=0)
    seen = np.concatenate([batches.indices(step) for step in range(5)])  # two passes of ten
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    fresh = StepBatches(crops, 4, seed=0)
    assert np.array_equal(fresh.indices(3), seen[12:16])
    assert not np.array_equal(StepBatches(crops, 4, seed=1).indices(3), seen[12:16])
    big = StepBatches(crops, 32, seed=0)  # a batch larger than the set
    assert np.bincount(big.indices(0)).min() == 3
    halves = [StepBatches(crops, 4, 0, rank, 2)[3]["index"].tolist() for rank in (0, 1)]
    assert sum(halves, []) == list(seen[12:16])
    with pytest.raises(HamrError, match="a multiple of the 3"):
        StepBatches(crops, 4, 0, 0, 3)
    with pytest.raises(HamrError, match="batch_size=1: expected .* at least 2"):
        StepBatches(crops, 1, seed=0)


def test_even_batches_hold_everything_once():
    crops = fake_crops(11)
    parts = [EvenBatches(crops, 4, rank, 2) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == 3
    seen = [parts[rank][i]["index"].tolist() for i in range(3) for rank in (0, 1)]
    assert sum(seen, []) == list(range(11)) and min(map(len, seen)) >= 1
    with pytest.raises(HamrError, match="cannot be cut among 4"):
        EvenBatches(fake_crops(3), 4, 0, 4)
