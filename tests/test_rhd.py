"""The RHD reader against files made by hand, its writer against RHD's layout, and bad files."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from hamr_lib.data import rhd
from hamr_lib.data.rhd import RHD
from hamr_lib.errors import HamrError
from hamr_lib.joints import BONES, NAMES

# RHD's own order within one hand, written out: wrist, then each finger from tip to base.
RHD_ORDER = [
    "wrist",
    "thumb tip", "thumb IP", "thumb MCP", "thumb CMC",
    "index tip", "index DIP", "index PIP", "index MCP",
    "middle tip", "middle DIP", "middle PIP", "middle MCP",
    "ring tip", "ring DIP", "ring PIP", "ring MCP",
    "little tip", "little DIP", "little PIP", "little MCP",
]  # fmt: skip
K = np.array([[300.0, 0, 160], [0, 310, 150], [0, 0, 1]])


def label(shift=0.0):
    """Labels whose every number tells which joint it belongs to."""
    joint = np.arange(42.0)
    uv_vis = np.stack([joint + shift, 100 + joint, joint % 2], axis=1)
    xyz = np.stack([joint / 1000, -joint / 1000, 0.5 + joint / 100 + shift], axis=1)
    return {"uv_vis": uv_vis, "xyz": xyz, "K": K}


def parts_image(left, right):
    """A mask with so many pixels of each hand, and one of the person."""
    parts = np.zeros((320, 320), np.uint8)
    parts.flat[0] = 1
    parts.flat[10 : 10 + left] = np.arange(left) % 16 + 2
    parts.flat[5000 : 5000 + right] = np.arange(right) % 16 + 18
    return parts


def make(root, split, samples, labels=None):
    """Write a set as RHD is laid out, with Pillow and pickle alone."""
    folder = root / "RHD_published_v2" / split
    for name in ("color", "mask", "depth"):
        (folder / name).mkdir(parents=True)
    for i, parts in enumerate(samples):
        image = np.zeros((320, 320, 3), np.uint8)
        image[:, :, 0], image[7, 9] = i, (200, 100, 50)
        depth = np.zeros((320, 320, 3), np.uint8)
        depth[3, 4] = (0x12, 0x34, 0)
        for name, pixels in (("color", image), ("mask", parts), ("depth", depth)):
            Image.fromarray(pixels).save(folder / name / f"{i:05d}.png")
    labels = {i: label(i) for i in range(len(samples))} if labels is None else labels
    (folder / f"anno_{split}.pickle").write_bytes(pickle.dumps(labels, protocol=2))
    return folder


class TestReads:
    def test_hand_order_and_units(self, tmp_path):
        make(tmp_path, "training", [parts_image(40, 30), parts_image(30, 40)])
        left, right = RHD(tmp_path, "training")
        assert (left.side, right.side) == ("left", "right")
        for frame, first, shift in ((left, 0, 0), (right, 21, 1)):
            for place, name in enumerate(RHD_ORDER):
                joint, ours = first + place, NAMES.index(name)
                assert frame.joints_2d[ours] == pytest.approx([joint + shift, 100 + joint])
                xyz = [joint / 1000, -joint / 1000, 0.5 + joint / 100 + shift]
                assert frame.joints_3d[ours] == pytest.approx(xyz, abs=1e-6)
            assert frame.joints_2d.shape == (21, 2) and frame.joints_3d.shape == (21, 3)
            assert frame.joints_2d.dtype == frame.joints_3d.dtype == np.float32
            # The third number of `uv_vis` is 1 for each odd joint of RHD's own order.
            seen = {NAMES.index(n) for i, n in enumerate(RHD_ORDER) if (first + i) % 2}
            assert frame.visible.dtype == bool and set(np.flatnonzero(frame.visible)) == seen
            np.testing.assert_array_equal(frame.K, K)
            assert frame.image.dtype == np.uint8 and frame.image.shape == (320, 320, 3)
            assert frame.image[7, 9].tolist() == [200, 100, 50]  # red, green, blue
        assert (left.key, right.key) == ("training/00000", "training/00001")

    def test_left_only_with_strictly_more_pixels(self, tmp_path):
        counts = [(5, 5), (6, 5), (5, 6), (0, 0), (1, 0)]
        make(tmp_path, "training", [parts_image(*pair) for pair in counts])
        found = [(frame.side, frame.mask.sum()) for frame in RHD(tmp_path, "training")]
        assert found == [("right", 5), ("left", 6), ("right", 6), ("right", 0), ("left", 1)]

    def test_ids_of_parts(self, tmp_path):
        """2 to 17 are the left hand, 18 to 33 the right one, 0 and 1 are nobody's."""
        for split, more, first in (("training", 2, 2), ("evaluation", 33, 18)):
            parts = np.zeros((320, 320), np.uint8)
            parts[0, :34], parts[1, :3] = np.arange(34), more
            make(tmp_path, split, [parts])
            mask = RHD(tmp_path, split)[0].mask
            assert mask.dtype == bool and mask.shape == (320, 320)
            assert np.flatnonzero(mask[0]).tolist() == list(range(first, first + 16))
        ids = [rhd.part_id("left", "thumb", "tip"), rhd.part_id("left", "index", "tip")]
        ids += [rhd.part_id("left", "little", "base"), rhd.part_id("left", "palm")]
        assert ids == [2, 5, 16, 17] and rhd.part_id("right", "palm") == 33


def flat_hand(x, z=0.6):
    """A hand spread in a plane before the camera, middle finger up: (21, 3) metres, our order."""
    points = [[x, 0.05, z]]
    for finger, across in enumerate((-0.04, -0.02, 0, 0.02, 0.04)):
        for k in range(4):
            points.append([x + across * (1 + 0.15 * k), -0.045 - 0.025 * k + 0.01 * finger, z])
    return np.array(points)


def test_the_depth_map_s_mask_is_the_hand_and_nothing_else(tmp_path):
    """Balls of 7 mm along the bones of both hands before a wall, drawn as discs; the sample's own
    hand is to be found, neither the other hand beside it nor the wall."""
    hands = {"left": flat_hand(-0.2), "right": flat_hand(0.0)}
    depth = np.full((320, 320), 0.9)
    drawn = {side: np.zeros((320, 320), bool) for side in hands}
    v, u = np.mgrid[:320, :320]
    for side, joints in hands.items():
        for parent, child in BONES:
            for x, y, z in np.linspace(joints[parent], joints[child], 25):
                centre = 300 * x / z + 160, 310 * y / z + 150
                disc = np.hypot(u - centre[0], v - centre[1]) < 0.007 * 305 / z
                drawn[side] |= disc
                depth[disc] = z - 0.007
    order = [NAMES.index(name) for name in RHD_ORDER]
    xyz = np.concatenate([joints[order] for joints in hands.values()])
    labels = {0: {"uv_vis": np.zeros((42, 3)), "xyz": xyz, "K": K}}
    folder = make(tmp_path, "training", [parts_image(1, 9)], labels)
    value = np.rint(depth / 5 * 65535).astype(int)
    pixels = np.stack([value // 256, value % 256, 0 * value], -1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "depth" / "00000.png")
    mask = RHD(tmp_path, "training", mask="depth")[0].mask
    assert (mask & drawn["right"]).sum() / (mask | drawn["right"]).sum() > 0.95
    assert not (mask & drawn["left"]).any()


def test_what_is_written_is_read(tmp_path):
    """The reader is tested on files made by hand: it tells whether the writer's are RHD's."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (320, 320, 3), dtype=np.uint8)
    parts, depth = parts_image(3, 8), rng.uniform(0, 6, (320, 320))
    joints = np.stack([flat_hand(-0.1), flat_hand(0.1)])
    visible = np.arange(42).reshape(2, 21) % 3 == 0
    rhd.write_sample(tmp_path, "evaluation", 0, image, parts, depth)
    rhd.write_annotations(tmp_path, "evaluation", {0: rhd.annotation(joints, K, visible)})
    frame = RHD(tmp_path, "evaluation")[0]
    assert frame.side == "right" and frame.key == "evaluation/00000"
    np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_array_equal(frame.mask, parts >= 18)
    np.testing.assert_array_equal(frame.visible, visible[1])
    np.testing.assert_allclose(frame.joints_3d, joints[1], atol=1e-6)
    flat = joints[1] @ K.T
    np.testing.assert_allclose(frame.joints_2d, flat[:, :2] / flat[:, 2:], atol=1e-3)
    pixels = np.array(Image.open(tmp_path / "RHD_published_v2/evaluation/depth/00000.png"))
    metres = (pixels[..., 0] * 256.0 + pixels[..., 1]) / 65535 * 5
    assert np.abs(metres - depth.clip(max=5)).max() <= 5 / 65535 / 2 + 1e-9
    np.testing.assert_allclose(rhd.decode_depth(pixels), metres, rtol=1e-6)


def broken(root, match, index=None, **arguments):
    """Opening a set, or reading the sample `index` of it, is refused with these words."""
    with pytest.raises(HamrError, match=match):
        frames = RHD(root, **{"split": "training"} | arguments)
        assert index is not None
        frames[index]


def test_missing_files_wrong_counts_and_arguments(tmp_path):
    broken(tmp_path, "anno_training.pickle is missing")
    folder = make(tmp_path, "training", [parts_image(0, 1)] * 3)
    (folder / "depth" / "00001.png").unlink()
    assert len(RHD(tmp_path, "training")) == 3  # the depth is not asked for
    broken(tmp_path, r"depth/\*.png: 2 images, but labels for 3", mask="depth")
    broken(tmp_path, "mask='parts'", mask="parts")
    broken(tmp_path, "split='train'", split="train")
    (folder / "color" / "00001.png").rename(folder / "color" / "00007.png")
    broken(tmp_path, "sample 1 of .*cannot read .*color/00001.png", index=1)
    for path in (folder / "color").iterdir():
        path.unlink()
    broken(tmp_path, "color/.*0 images")


class Attack:
    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.parametrize(
    "change",
    [
        {"K": np.ones(3)}, {"uv_vis": np.ones((21, 3))}, {"xyz": np.full((42, 3), np.nan)},
        {"xyz": np.full((42, 3), 1e300)}, {"K": "eye"}, {"K": [[1, 0, 0], [0, 1], [0]]},
        {"K": np.zeros((3, 3))}, {"K": np.diag([1, 1, 2])}, {"K": None}, {"xyz": np.array(0.5)},
    ],
)  # fmt: skip
def test_arrays_of_an_annotation(tmp_path, change):
    make(tmp_path, "training", [parts_image(0, 1)] * 2, {0: label(), 1: label() | change})
    broken(tmp_path, f"anno_training.pickle: annotation 1: {next(iter(change))}: expected")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "expected a dict"), ([label()], "expected a dict"), ({"0": 1}, "expected a dict"),
        ({True: label()}, "expected a dict"), ({10**5000: label()}, "expected a dict"),
        ({0: None}, "annotation 0: uv_vis: expected"),
        ({0: {"uv_vis": label()["uv_vis"]}}, "annotation 0: xyz: expected"),
        ({0: label() | {"K": np.full((3, 3), "one")}}, "refused the array type"),
        ({0: label() | {"K": Attack()}}, f"refused the pickled name '{os.system.__module__}.sys"),
    ],
)  # fmt: skip
def test_annotations_that_are_none(tmp_path, monkeypatch, labels, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "training", [parts_image(0, 1)], labels)
    broken(tmp_path, f"anno_training.pickle.*{message}")
    assert not (tmp_path / "canary").exists()


def test_images_of_other_formats_or_sizes(tmp_path):
    """Only the formats of data sets are decoded: not PostScript, which would be run."""
    folder = make(tmp_path, "training", [parts_image(0, 2000)] * 2)
    path = folder / "mask" / "00001.png"
    for mask in (np.zeros((100, 320), np.uint8), np.full((320, 320), 34, np.uint8)):
        Image.fromarray(mask).save(path)
        broken(tmp_path, r"expected \(320, 320\), 0 to 33", index=1)
    path.write_bytes(path.read_bytes()[:60])
    broken(tmp_path, "sample 1 of .*cannot read .*mask/00001.png", index=1)
    for kind in ("EPS", "TIFF", "GIF"):
        Image.new("RGB", (320, 320)).save(folder / "color" / "00001.png", kind)
        broken(tmp_path, "cannot read .*color/00001.png.*expected PNG, BMP, JPEG", index=1)
    assert RHD(tmp_path, "training")[0].side == "right"
