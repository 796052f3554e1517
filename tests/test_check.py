"""Finding data sets and reporting on them: complete, incomplete, broken and absent ones."""

import dataclasses

import numpy as np
import pytest

from hamr_lib.config import Data, OpenData, Settings
from hamr_lib.data import dexter, rhd, stb
from hamr_lib.data.check import check_set, overlay_sheet, report_table, spread
from hamr_lib.data.registry import find_sets, published, stand_in
from hamr_lib.errors import HamrError
from hamr_lib.render.draw2d import contact_sheet, draw_skeleton

ASKED = OpenData(rhd_training=3, rhd_evaluation=2, stb_frames=1, dexter_frames=2)
SETTINGS = Settings(profile="tiny", data=Data(open=ASKED))
K = np.array([[300.0, 0, 159.5], [0, 300, 159.5], [0, 0, 1]])


def asking(sets):
    return dataclasses.replace(SETTINGS, data=Data(sets=sets, open=ASKED))


def hand(x=0.0, z=0.6):
    """(21, 3) metres: a spread hand, 90 mm from wrist to middle MCP."""
    points = [[x, 0.05, z]]
    for across in (-0.04, -0.02, 0, 0.02, 0.04):
        points += [[x + across, -0.04 - 0.02 * k, z + 0.01 * k] for k in range(4)]
    return np.array(points)


def write_rhd(root, counts):
    for split, count in counts.items():
        labels = {}
        for i in range(count):
            parts = np.zeros((320, 320), np.uint8)
            parts[100:110, 100:110] = 17 if i == 0 else 33
            labels[i] = rhd.annotation(np.stack([hand(-0.2), hand(0.1)]), K, np.ones((2, 21)))
            image = np.full((320, 320, 3), 90, np.uint8)
            rhd.write_sample(root, split, i, image, parts, parts / 40)
        rhd.write_annotations(root, split, labels)


def write_stb(root, frames):
    for names in stb.SPLITS.values():
        for name in names:
            stb.write_labels(root, name, np.repeat(hand()[None], frames, 0))
            for i in range(frames):
                stb.write_color(root, name, i, np.zeros((480, 640, 3), np.uint8))


def write_dexter(root, frames):
    for name in dexter.SEQUENCES:
        tips = np.repeat(hand()[None, 4::4], frames, 0)
        tips[:, 1] = np.nan
        dexter.write_annotations(root, name, tips)
        for i in range(frames):
            dexter.write_color(root, name, i, np.zeros((480, 640, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    """All three stand-ins, as `SETTINGS` ask for them."""
    write_rhd(tmp_path / "open/tiny/open-rhd", {"training": 3, "evaluation": 2})
    write_stb(tmp_path / "open/tiny/open-stb", 1)
    write_dexter(tmp_path / "open/tiny/open-dexter", 2)
    return tmp_path


@pytest.fixture
def few(monkeypatch):
    """Let the published sets be tiny, so that a test can write complete ones."""
    monkeypatch.setattr(rhd, "SPLITS", {"training": 2, "evaluation": 1})
    monkeypatch.setattr(stb, "FRAMES", 1)
    monkeypatch.setattr(dexter, "FRAMES", dict.fromkeys(dexter.SEQUENCES, 1))


class TestFindSets:
    def test_published_counts(self, tmp_path):
        assert published("rhd", tmp_path).expected == {"training": 41258, "evaluation": 2728}
        assert published("stb", tmp_path).expected == {"training": 15000, "evaluation": 3000}
        both = published("stb", tmp_path, "BB").expected
        assert both == {"training": 30000, "evaluation": 6000}
        found = published("dexter", tmp_path)
        assert found.expected == {"evaluation": 3145} and found.sequences == {
            "Grasp1": 356, "Grasp2": 648, "Occlusion": 354, "Pinch": 458, "Rigid": 531,
            "Rotate": 798,
        }  # fmt: skip
        assert published("stb", tmp_path).root == tmp_path / "raw" / "stb"

    def test_stand_ins_where_nothing_else_is(self, folder):
        sets = find_sets(SETTINGS, folder)
        assert {name: s.title for name, s in sets.items()} == {
            "rhd": "open-rhd", "stb": "open-stb", "dexter": "open-dexter",
        }  # fmt: skip
        assert sets["stb"].root == folder / "open/tiny/open-stb"
        assert sets["rhd"].notice.endswith("raw/rhd is missing: open-rhd in place of RHD")
        assert [len(sets["rhd"].load(s, SETTINGS.data)) for s in sets["rhd"].splits] == [3, 2]
        assert len(sets["stb"].load("training", SETTINGS.data)) == 10
        assert len(sets["dexter"].load("evaluation", SETTINGS.data)) == 12
        with pytest.raises(HamrError, match="open-dexter has no split 'training'"):
            sets["dexter"].load("training", SETTINGS.data)

    def test_settings_reach_the_readers(self, folder):
        data = dataclasses.replace(SETTINGS.data, rhd_mask="depth", stb_root="palm")
        sets = find_sets(SETTINGS, folder)
        assert sets["rhd"].load("training", data).mask == "depth"
        palm = sets["stb"].load("training", data)[0].joints_3d
        wrist = sets["stb"].load("training", SETTINGS.data)[0].joints_3d
        np.testing.assert_allclose(wrist, hand(), atol=1e-6)
        np.testing.assert_allclose(palm[0], (hand()[0] + hand()[13]) / 2, atol=1e-6)

    def test_each_complete_real_set_is_taken(self, folder, few):
        write_rhd(folder / "raw/rhd", rhd.SPLITS)
        write_dexter(folder / "raw/dexter", 1)
        sets = find_sets(SETTINGS, folder)
        assert [s.title for s in sets.values()] == ["RHD", "open-stb", "Dexter+Object"]
        assert sets["rhd"].root == folder / "raw/rhd" and sets["rhd"].notice == ""
        sets = find_sets(asking("open"), folder)
        assert [s.title for s in sets.values()] == ["open-rhd", "open-stb", "open-dexter"]
        assert not any(s.notice for s in sets.values())

    def test_real_sets_or_an_error(self, folder, few):
        real = asking("real")
        write_rhd(folder / "raw/rhd", rhd.SPLITS)
        with pytest.raises(HamrError, match="'real', but STB is not complete.*raw/stb"):
            find_sets(real, folder)
        write_stb(folder / "raw/stb", 1)
        write_dexter(folder / "raw/dexter", 1)
        titles = [s.title for s in find_sets(real, folder).values()]
        assert titles == ["RHD", "STB", "Dexter+Object"]

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("rhd/RHD_published_v2/training/mask/00001.png", "training/mask: 1 of 2 images"),
            ("rhd/RHD_published_v2/evaluation/depth/00000.png", "evaluation/depth: 0 of 1 images"),
            ("rhd/RHD_published_v2/training/anno_training.pickle", "training/anno_training.pickle"),
            ("stb/labels/B3Random_SK.mat", "labels/B3Random_SK.mat"),
            ("stb/images/B3Random/SK_color_0.png", "images/B3Random: 0 of 1 images"),
            ("dexter/data/Rigid/annotations/Rigid3D.txt", "Rigid/annotations/Rigid3D.txt"),
            ("dexter/data/Rigid/color/image_00000.png", "Rigid/color: 0 of 1 images"),
        ],
    )
    def test_an_incomplete_real_set_stops_the_run(self, folder, few, path, words):
        write_rhd(folder / "raw/rhd", rhd.SPLITS)
        write_stb(folder / "raw/stb", 1)
        write_dexter(folder / "raw/dexter", 1)
        assert [s.title for s in find_sets(SETTINGS, folder).values()][1] == "STB"
        (folder / "raw" / path).unlink()
        for sets in ("auto", "real"):
            with pytest.raises(HamrError, match=f"'{sets}', but .* is not complete.*{words}"):
                find_sets(asking(sets), folder)
        name = path.split("/")[0]
        assert find_sets(asking("open"), folder)[name].title == f"open-{name}"

    @pytest.mark.parametrize("name", ["rhd", "stb", "dexter"])
    def test_an_empty_folder_or_a_file_in_its_place_stops_it_too(self, folder, name):
        (folder / "raw").mkdir()
        (folder / "raw" / name).mkdir()
        with pytest.raises(HamrError, match=f"is not complete.*raw/{name} or remove it"):
            find_sets(SETTINGS, folder)
        (folder / "raw" / name).rmdir()
        (folder / "raw" / name).symlink_to(folder / "nowhere")
        with pytest.raises(HamrError, match=f"is not complete.*raw/{name} or remove it"):
            find_sets(SETTINGS, folder)

    def test_dexter_as_published(self, folder):
        """3,145 images by sequence, 131 of them without labels: complete, and 3,014 samples."""
        root, unlabelled = folder / "raw" / "dexter", 131
        for name, count in dexter.FRAMES.items():
            tips = np.repeat(hand()[None, 4::4], count, 0)
            tips[: unlabelled if name == "Grasp2" else 0] = np.nan
            dexter.write_annotations(root, name, tips)
            color = dexter.sequence_folder(root, name) / "color"
            color.mkdir(parents=True)
            for i in range(count):
                (color / f"Color_{i + 1:04d}.bmp").touch()
        found = find_sets(SETTINGS, folder)["dexter"]
        assert found.title == "Dexter+Object"
        frames = found.load("evaluation", SETTINGS.data)
        assert len(frames) == 3014 and frames.paths[356].name == "Color_0132.bmp"
        report = check_set(found, SETTINGS.data, limit=0)
        assert report.skipped == 131 and report.complete
        assert report.row()["samples"] == "3,014" and report.row()["images expected"] == "3,145"

    def test_the_camera_of_stb(self, folder, few):
        asked = dataclasses.replace(SETTINGS, data=Data(stb_camera="BB", open=ASKED))
        with pytest.raises(HamrError, match="'BB', but open-stb has images of SK alone"):
            find_sets(asked, folder)
        write_stb(folder / "raw/stb", 1)
        with pytest.raises(HamrError, match="STB is not complete.*B2Counting_BB.mat"):
            find_sets(asked, folder)
        for names in stb.SPLITS.values():
            for name in names:
                label = stb.label_path(folder / "raw/stb", name)
                stb.label_path(folder / "raw/stb", name, "BB").write_bytes(label.read_bytes())
                for side in ("left", "right"):
                    image = stb.image_path(folder / "raw/stb", name, 0).read_bytes()
                    (folder / f"raw/stb/images/{name}/BB_{side}_0.png").write_bytes(image)
        found = find_sets(asked, folder)["stb"]
        assert len(found.load("evaluation", asked.data)) == 4 == found.expected["evaluation"]

    def test_incomplete_stand_in(self, folder):
        (folder / "open/tiny/open-stb/images/B6Random/SK_color_0.png").unlink()
        with pytest.raises(HamrError, match="B6Random: 0 of 1 images; `make data PROFILE=tiny`"):
            find_sets(SETTINGS, folder)
        with pytest.raises(HamrError, match="open-rhd is not complete: it lacks the folder"):
            find_sets(SETTINGS, folder / "elsewhere")


class TestCheckSet:
    def test_rhd(self, folder):
        report = check_set(stand_in("rhd", SETTINGS, folder), SETTINGS.data)
        assert report.found and report.complete and report.problems == ()
        assert report.samples == report.expected == {"training": 3, "evaluation": 2}
        assert report.checked == 5 and report.left_share == 0.4  # the first of each split
        assert report.depth == pytest.approx((0.6, 0.63), abs=1e-6)
        assert report.palm == pytest.approx(0.09, abs=1e-6)
        assert report.reprojection[1] < 1e-3 and report.outside == 0

    def test_stb_and_dexter(self, folder):
        report = check_set(stand_in("stb", SETTINGS, folder), SETTINGS.data)
        assert report.complete and report.left_share == 1 and report.checked == 12
        assert np.isnan(report.reprojection).all()  # it has no 2-D labels of its own
        report = check_set(stand_in("dexter", SETTINGS, folder), SETTINGS.data)
        assert report.complete and report.tips_only and np.isnan(report.palm)
        assert report.reprojection[1] < 1e-3
        assert report.depth == pytest.approx((0.63, 0.63), abs=1e-6)

    def test_reprojection_and_labels_outside(self, folder):
        """Pixels of one joint moved by (3, 4); the hand's five tips moved out of the image."""
        root = folder / "open/tiny/open-rhd"
        labels = {i: rhd.annotation(np.stack([hand()] * 2), K, np.ones((2, 21))) for i in range(2)}
        labels[0]["uv_vis"][3, :2] += (3, 4)
        for i in range(2):
            labels[i]["uv_vis"][[1, 5, 9, 13, 17, 22, 26, 30, 34, 38], 1] = -0.6
        rhd.write_annotations(root, "evaluation", labels)
        dataset = stand_in("rhd", SETTINGS, folder)
        report = check_set(dataset, SETTINGS.data)
        assert report.outside == pytest.approx(2 * 5 / (5 * 21))
        assert report.complete  # labels outside the image are reported, not refused
        assert report.reprojection[1] > 100
        for i in range(2):
            labels[i] = rhd.annotation(np.stack([hand()] * 2), K, np.ones((2, 21)))
        labels[0]["uv_vis"][3, :2] += (3, 4)
        rhd.write_annotations(root, "evaluation", labels)
        assert check_set(dataset, SETTINGS.data).reprojection[1] == pytest.approx(5, abs=1e-3)

    def test_broken_set(self, folder):
        root = folder / "open/tiny/open-rhd/RHD_published_v2"
        for name in ("color/00001.png", "mask/00002.png"):
            path = root / "training" / name
            path.write_bytes(path.read_bytes()[:60])
        (root / "evaluation" / "anno_evaluation.pickle").write_bytes(b"not a pickle")
        report = check_set(stand_in("rhd", SETTINGS, folder), SETTINGS.data)
        assert not report.complete and report.missing == () and report.checked == 1
        assert len(report.problems) == 3
        assert "sample 1" in report.problems[0] and "color/00001.png" in report.problems[0]
        assert "sample 2" in report.problems[1] and "mask/00002.png" in report.problems[1]
        assert report.problems[2].startswith("evaluation: ")
        assert report.samples == {"training": 3}

    def test_absent_set(self, tmp_path):
        report = check_set(published("stb", tmp_path), SETTINGS.data)
        assert not report.found and not report.complete and report.checked == 0
        assert report.missing == (f"the folder {tmp_path / 'raw' / 'stb'}",)
        assert report.row()["samples"] == "? + ?"
        assert report.row()["images expected"] == "15,000 + 3,000"

    def test_incomplete_set_says_what_it_lacks(self, folder):
        report = check_set(
            dataclasses.replace(
                stand_in("rhd", SETTINGS, folder), expected={"training": 5, "evaluation": 2}
            ),
            SETTINGS.data,
        )
        assert not report.complete and len(report.missing) == 3
        assert report.missing[0].endswith("training/color: 3 of 5 images")

    def test_table(self, folder):
        names = ("rhd", "stb", "dexter")
        table = report_table(
            check_set(stand_in(name, SETTINGS, folder), SETTINGS.data, limit=1) for name in names
        )
        assert list(table.index) == ["open-rhd", "open-stb", "open-dexter"]
        assert table["samples"].tolist() == ["3 + 2", "10 + 2", "12"]
        assert table["checked"].tolist() == [2, 2, 1] and table["complete"].all()


class TestDrawing:
    def test_spread(self):
        assert list(spread(3, None)) == [0, 1, 2] and list(spread(3, 5)) == [0, 1, 2]
        assert spread(100, 4) == [0, 25, 50, 75]

    def test_skeleton(self):
        image = np.full((200, 200, 3), 30, np.uint8)
        joints = np.full((21, 2), np.nan)
        np.testing.assert_array_equal(draw_skeleton(image, joints), image)
        joints[[0, 5]] = [[20, 100], [180, 100]]
        drawn = draw_skeleton(image, joints)
        assert (image == 30).all()  # the given image is left as it was
        assert drawn[100, 100].tolist() == [86, 180, 233]  # the bone wrist to index MCP
        assert drawn[100, 20].tolist() == [255, 255, 255]  # the wrist
        assert (drawn[:80] == 30).all() and (drawn[120:] == 30).all()
        joints[5] = [1e9, 100]
        assert draw_skeleton(image, joints)[100, 150].tolist() == [86, 180, 233]

    def test_contact_sheet(self):
        images = [np.full((20, 40, 3), 10 * i, np.uint8) for i in range(5)]
        sheet = contact_sheet(images, columns=2, size=10)
        assert sheet.shape == (30, 20, 3)
        assert sheet[0, 0, 0] == 0 and sheet[0, 10, 0] == 10 and sheet[20, 0, 0] == 40
        assert (sheet[5:10] == 255).all() and (sheet[20:, 10:] == 255).all()

    def test_overlay_sheet(self, folder):
        for name in ("rhd", "stb", "dexter"):
            reader = stand_in(name, SETTINGS, folder).load("evaluation", SETTINGS.data)
            sheet = overlay_sheet(reader, count=2, columns=2, size=96)
            assert sheet.shape == (96, 192, 3)
            drawn = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
            assert (230, 159, 0) in drawn  # the thumb, which all three sets label
