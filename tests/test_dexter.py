"""The Dexter+Object reader against files made by hand, its writer, and bad files."""

import numpy as np
import pytest
from PIL import Image

from hamr_lib.data import dexter
from hamr_lib.data.dexter import Dexter
from hamr_lib.errors import HamrError
from hamr_lib.joints import NAMES

SEQUENCES = ["Grasp1", "Grasp2", "Occlusion", "Rigid", "Pinch", "Rotate"]
TIPS = ["thumb tip", "index tip", "middle tip", "ring tip", "little tip"]
CORNERS = " 1, 2, 400; 3, 4, 400; 0, 0, 32001;"
# The first frame's middle and little fingertips are missing.
LINES = [
    "10.5, -20, 350; -30, 40, 360; 0, 0, 32001; 5, 6.25, 380; -7, 8, 32001;" + CORNERS,
    "1, 1, 301;2, 2, 302;3, 3, 303;4, 4, 304;5, 5, 305;" + CORNERS,
]
# The set's calibration, as its loaders write it: K [R | t] takes depth to colour pixels.
K = np.array([[587.45209, 0, 325], [0, 600.67456, 249], [0, 0, 1]])
EXTRINSICS = np.array(
    [
        [0.9999, 0.0034, 0.0161, 19.0473],
        [-0.0033, 1.0000, -0.0079, -1.8514],
        [-0.0162, 0.0079, 0.9998, -4.7501],
    ]
)


def make(root, lines=LINES, suffix="png"):
    for number, name in enumerate(SEQUENCES):
        folder = root / "data" / name
        (folder / "color").mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        for i in range(2):
            pixels = np.full((480, 640, 3), (number, i, 200), np.uint8)
            Image.fromarray(pixels).save(folder / "color" / f"image_{i:04d}.{suffix}")
        (folder / "annotations" / f"{name}3D.txt").write_text("\n".join(lines) + "\n")
    return root / "data"


class TestReads:
    def test_sequences_and_images(self, tmp_path):
        make(tmp_path, suffix="bmp")
        frames = Dexter(tmp_path)
        assert len(frames) == 12
        keys = [frame.key for frame in frames]
        assert keys == [f"{name}/image_{i:04d}" for name in SEQUENCES for i in (0, 1)]
        assert frames[5].image[0, 0].tolist() == [2, 1, 200]
        assert frames[5].image.shape == (480, 640, 3)
        assert frames[0].side == "left" and frames[0].mask is None

    def test_tips_units_and_camera(self, tmp_path):
        make(tmp_path)
        frame = Dexter(tmp_path)[0]
        labelled = {"thumb tip": (10.5, -20, 350), "index tip": (-30, 40, 360),
                    "ring tip": (5, 6.25, 380)}  # fmt: skip
        # A tip behind the camera is missing, too.
        make(tmp_path / "b", [LINES[1].replace("3, 3, 303", "0, 0, 0"), LINES[1]])
        assert np.isnan(Dexter(tmp_path / "b")[0].joints_3d[NAMES.index("middle tip")]).all()
        for joint, name in enumerate(NAMES):
            if name not in labelled:
                assert np.isnan(frame.joints_3d[joint]).all(), name
                assert np.isnan(frame.joints_2d[joint]).all(), name
                continue
            x, y, z = labelled[name]
            point = EXTRINSICS @ (-x, -y, z, 1)  # the file has x to the left and y up
            np.testing.assert_allclose(frame.joints_3d[joint], point / 1000, atol=1e-6)
            pixel = K @ point
            np.testing.assert_allclose(frame.joints_2d[joint], pixel[:2] / pixel[2], atol=1e-3)
        assert frame.joints_3d.dtype == frame.joints_2d.dtype == np.float32
        second = Dexter(tmp_path)[1].joints_3d
        assert np.flatnonzero(np.isfinite(second[:, 0])).tolist() == [NAMES.index(t) for t in TIPS]
        depths = [(EXTRINSICS @ (-i, -i, 300 + i, 1))[2] / 1000 for i in range(1, 6)]
        np.testing.assert_allclose(second[[NAMES.index(t) for t in TIPS], 2], depths, atol=1e-6)

    def test_frames_with_fewer_than_two_tips_are_skipped(self, tmp_path):
        nothing = "0, 0, 32001;" * 8
        one = "1, 1, 301;" + "0, 0, 32001;" * 7
        two = "1, 1, 301;" * 2 + "0, 0, 32001;" * 6
        make(tmp_path)
        lines = [nothing, two]
        (tmp_path / "data/Grasp2/annotations/Grasp23D.txt").write_text("\n".join(lines))
        (tmp_path / "data/Pinch/annotations/Pinch3D.txt").write_text("\n".join([one, one]))
        frames = Dexter(tmp_path)
        assert len(frames) == 9 and frames.skipped == 3
        keys = [frames[i].key for i in (2, 3, 7)]
        assert keys == ["Grasp2/image_0001", "Occlusion/image_0000", "Rotate/image_0000"]
        assert np.isfinite(frames[2].joints_3d).all(1).sum() == 2
        make(tmp_path, [nothing, one])
        with pytest.raises(HamrError, match="no frame with two labelled fingertips"):
            Dexter(tmp_path)


def test_what_is_written_is_read(tmp_path):
    """The reader is tested on files made by hand: it tells whether the writer's are Dexter's."""
    tips = np.random.default_rng(0).uniform(-0.1, 0.1, (2, 5, 3)) + (0, 0, 0.4)
    tips[0, 3] = np.nan
    for name in SEQUENCES:
        dexter.write_annotations(tmp_path, name, tips)
        for i in range(2):
            dexter.write_color(tmp_path, name, i, np.full((480, 640, 3), (i, 5, 9), np.uint8))
    frames, places = Dexter(tmp_path), [NAMES.index(t) for t in TIPS]
    for frame, expected in ((frames[0], tips[0]), (frames[11], tips[1])):
        np.testing.assert_allclose(frame.joints_3d[places], expected, atol=1e-6)
    assert frames[11].image[0, 0].tolist() == [1, 5, 9]
    # The 2-D labels are in the depth camera's image.
    x, y, z = [float(n) for n in (dexter.annotation_path(tmp_path, "Pinch").read_text())
               .split(";")[0].split(",")]  # fmt: skip
    path = dexter.annotation_path(tmp_path, "Pinch", "2D")
    pixels = [[float(n) for n in point.split(",")] for point in path.read_text().split(";")[:5]]
    flat = (224.502 * -x / z + 160, 230.494 * -y / z + 120)
    np.testing.assert_allclose(pixels[0], flat, atol=1e-3)
    assert pixels[3] == [-1, -1] and frames.reprojection().max() < 1e-3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINES[0], "a, b, c;" * 8], "line 2: expected"),
        (["1, 2, 3; 4, 5, 6;", LINES[0]], "line 1: expected"),
        ([LINES[0].replace("10.5", "nan"), LINES[1]], "line 1: expected finite numbers"),
        (LINES[:1], "2 images, but labels for 1"),
        ([], "line 1: expected|is empty"),
    ],
)
def test_broken_annotations(tmp_path, lines, message):
    make(tmp_path, lines)
    with pytest.raises(HamrError, match=f"Grasp1.*{message}"):
        Dexter(tmp_path)


def test_missing_files(tmp_path):
    folder = make(tmp_path) / "Grasp2"
    for name, message in (
        ("color/image_0001.png", "Grasp2/color/.* 1 images"),
        ("annotations/Grasp23D.txt", "Grasp23D.txt is missing"),
    ):
        (folder / name).unlink()
        with pytest.raises(HamrError, match=message):
            Dexter(tmp_path)
