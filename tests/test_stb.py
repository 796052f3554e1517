"""The STB reader against files made by hand, its writer against STB's layout, and bad files."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.spatial.transform import Rotation

from hamr_lib.data import stb
from hamr_lib.data.stb import STB, read_mat
from hamr_lib.errors import HamrError
from hamr_lib.joints import NAMES

FINGERS = ("little", "ring", "middle", "index")
# STB's own order, written out: palm, then little to thumb, each from base to tip.
STB_ORDER = ["palm"]
STB_ORDER += [f"{f} {part}" for f in FINGERS for part in ("MCP", "PIP", "DIP", "tip")]
STB_ORDER += ["thumb CMC", "thumb MCP", "thumb IP", "thumb tip"]
TRAINING = [f"B{b}{kind}" for b in (2, 3, 4, 5, 6) for kind in ("Counting", "Random")]
EVALUATION = ["B1Counting", "B1Random"]

# The colour camera's axes seen from the depth camera, built without our code or OpenCV's.
ROTATION = Rotation.from_rotvec([0.00531, -0.01196, 0.00301])
TRANSLATION = [-24.0381, -0.4563, -1.2326]


def raw_labels(frames, seed=0):
    """(3, 21, frames) millimetres, about where STB's hands are."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-80, 80, (3, 21, frames))
    points[2] += 600
    return points


def make(root, sequences=TRAINING + EVALUATION, frames=2, **arrays):
    """Write a set as STB is laid out, with Pillow and SciPy alone."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(sequences):
        folder = root / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(frames):
            for prefix, red in (("SK_color", 10 * i), ("BB_left", 100), ("BB_right", 200)):
                pixels = np.zeros((480, 640, 3), np.uint8)
                pixels[..., 0], pixels[..., 2] = red, number
                Image.fromarray(pixels).save(folder / f"{prefix}_{i}.png", compress_level=1)
        content = arrays or {"handPara": raw_labels(frames, number)}
        for camera in ("SK", "BB"):
            scipy.io.savemat(root / "labels" / f"{name}_{camera}.mat", content)


class TestReads:
    def test_sequences_and_images(self, tmp_path):
        make(tmp_path, TRAINING)
        make(tmp_path, EVALUATION, frames=11)  # in numerical order
        assert STB(tmp_path, "evaluation")[10].image[0, 0, 0] == 100
        for split, names, count in (("training", TRAINING, 2), ("evaluation", EVALUATION, 11)):
            frames = STB(tmp_path, split)
            keys = [frame.key for frame in frames]
            assert keys == [f"{name}/SK_color_{i}" for name in names for i in range(count)]
        frame = STB(tmp_path, "evaluation")[1]
        assert frame.side == "left" and frame.mask is None
        assert frame.image.shape == (480, 640, 3) and frame.image[0, 0].tolist() == [10, 0, 0]

    @pytest.mark.parametrize(
        ("root_shift", "anchor", "times"),
        [("ring", "ring MCP", 2.0), ("middle", "middle MCP", 2.2), ("palm", "ring MCP", 1.0)],
    )
    def test_order_units_camera_and_root(self, tmp_path, root_shift, anchor, times):
        raw = raw_labels(2)
        make(tmp_path, handPara=raw)
        frame = STB(tmp_path, "evaluation", root_shift=root_shift)[1]
        # depth = R colour + t, inverted by solving it.
        moved = raw[:, :, 1] - np.array(TRANSLATION)[:, None]
        colour = np.linalg.solve(ROTATION.as_matrix(), moved)
        points = dict(zip(STB_ORDER, colour.T / 1000, strict=True))
        palm, base = points.pop("palm"), points[anchor]
        points["wrist"] = base + times * (palm - base)
        for joint, name in enumerate(NAMES):
            x, y, z = points[name]
            np.testing.assert_allclose(frame.joints_3d[joint], (x, y, z), atol=1e-6)
            u, v = 607.92271 * x / z + 314.78337, 607.88192 * y / z + 236.42484
            np.testing.assert_allclose(frame.joints_2d[joint], (u, v), atol=1e-3)
        assert frame.joints_3d.dtype == frame.joints_2d.dtype == frame.K.dtype == np.float32

    def test_stereo_pair(self, tmp_path):
        """BB's labels are in its left camera's frame; the right one is 120.054 mm beside it."""
        raw = raw_labels(2)
        make(tmp_path, handPara=raw)
        frames = STB(tmp_path, "evaluation", root_shift="palm", camera="BB")
        assert len(frames) == 8
        assert frames.keys[1:3] == ["B1Counting/BB_right_0", "B1Counting/BB_left_1"]
        for frame, red, moved in ((frames[2], 100, 0), (frames[3], 200, 0.120054)):
            assert frame.image[0, 0, 0] == red
            x, y, z = raw[:, 0, 1] / 1000 - (moved, 0, 0)
            np.testing.assert_allclose(frame.joints_3d[0], (x, y, z), atol=1e-6)
            u, v = 822.79041 * x / z + 318.47345, 822.79041 * y / z + 250.31296
            np.testing.assert_allclose(frame.joints_2d[0], (u, v), atol=1e-3)


def test_what_is_written_is_read(tmp_path):
    """The reader is tested on files made by hand: it tells whether the writer's are STB's."""
    rng = np.random.default_rng(1)
    joints = rng.uniform(-0.08, 0.08, (2, 21, 3)) + (0, 0, 0.6)
    image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for name in EVALUATION:
        stb.write_labels(tmp_path, name, joints)
    stb.write_color(tmp_path, "B1Random", 1, image)
    frame = STB(tmp_path, "evaluation")[3]
    np.testing.assert_allclose(frame.joints_3d, joints[1], atol=1e-6)
    np.testing.assert_array_equal(frame.image, image)


def broken(root, match, index=None, **arguments):
    """Opening a set, or reading the sample `index` of it, is refused with these words."""
    with pytest.raises(HamrError, match=match):
        frames = STB(root, **{"split": "evaluation"} | arguments)
        assert index is not None
        frames[index]


@pytest.mark.parametrize(
    "content",
    [
        {"hands": raw_labels(2)}, {"handPara": raw_labels(2)[:, :20]}, {"handPara": "text"},
        {"handPara": raw_labels(2) * 1j}, {"handPara": np.full((3, 21, 3), np.nan)},
    ],
)  # fmt: skip
def test_broken_labels(tmp_path, content):
    make(tmp_path, EVALUATION, frames=0, **content)
    broken(tmp_path, "B1Counting_SK.mat.*handPara")


def test_missing_and_truncated_files_and_arguments(tmp_path):
    broken(tmp_path, "labels/B1Counting_SK.mat is missing")
    make(tmp_path, EVALUATION)
    image = tmp_path / "images" / "B1Random" / "SK_color_0.png"
    image.unlink()
    broken(tmp_path, "sample 2 of .*cannot read .*SK_color_0.png: No such file", index=2)
    labels = tmp_path / "labels" / "B1Random_SK.mat"
    whole = labels.read_bytes()
    for size in (0, 60, 128, 200, 900):
        labels.write_bytes(whole[:size])
        broken(tmp_path, "B1Random_SK.mat is not a readable MATLAB")
    for key in ("root_shift", "camera", "split"):
        broken(tmp_path, f"{key}='other'", **{key: "other"})


class TestMatFiles:
    @pytest.mark.parametrize("kind", ["<f8", "<f4", "<i2", "u1"])
    def test_what_scipy_writes(self, tmp_path, kind):
        """Its small elements, its compression, its other variables."""
        array = (100 * np.random.default_rng(0).random((3, 21, 4))).astype(kind)
        content = {"other": {"a": 1}, "text": "words", "handPara": array}
        for compressed in (False, True):
            scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compressed)
            np.testing.assert_array_equal(read_mat(tmp_path / "a.mat", "handPara"), array)

    def test_unknown_types_of_numbers(self, tmp_path):
        """SciPy ends the process where byte 192, the type of the numbers, is 0x13."""
        path = tmp_path / "a.mat"
        scipy.io.savemat(path, {"handPara": raw_labels(2)})
        whole = path.read_bytes()
        for kind in (0x13, 0x78, 0x95, 0xFF):
            path.write_bytes(whole[:192] + bytes([kind]) + whole[193:])
            with pytest.raises(HamrError, match="not a readable MATLAB 5 file"):
                read_mat(path, "handPara")

    def test_bombs(self, tmp_path):
        path = tmp_path / "a.mat"
        header = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
        packed = zlib.compress(bytes(1 << 26))
        path.write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)
        with pytest.raises(HamrError, match="unpacks to more than"):
            read_mat(path, "handPara")
        big = scipy.io.savemat(path, {"handPara": np.zeros((3, 21, 1))}) or path.read_bytes()
        dims = struct.pack("<iii", 3, 21, 1)
        path.write_bytes(big.replace(dims, struct.pack("<iii", 3, 2**30, 2**30)))
        with pytest.raises(HamrError, match="not a readable MATLAB 5 file"):
            read_mat(path, "handPara")
