"""Finding data sets and reporting on them: complete, incomplete, broken and absent ones."""

import dataclasses
import shutil

import numpy as np
import pytest

from hamr_lib.config import Data, OpenData, Settings
from hamr_lib.data import dexter, rhd, stb
from hamr_lib.data.check import check_set, report_table
from hamr_lib.data.registry import find_sets, published, stand_in
from hamr_lib.errors import HamrError
from hamr_lib.render.draw2d import draw_skeleton

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
    for module in (rhd, stb, dexter):
        splits = {split: dict.fromkeys(parts, 1) for split, parts in module.SPLITS.items()}
        monkeypatch.setattr(module, "SPLITS", splits)


class TestFindSets:
    def test_stand_ins_where_nothing_else_is(self, folder):
        sets = find_sets(SETTINGS, folder)
        assert [s.title for s in sets.values()] == ["open-rhd", "open-stb", "open-dexter"]
        assert sets["rhd"].notice.endswith("raw/rhd is missing: open-rhd in place of RHD")
        assert [len(sets["rhd"].load(s, SETTINGS.data)) for s in sets["rhd"].splits] == [3, 2]
        assert len(sets["stb"].load("training", SETTINGS.data)) == 10
        assert len(sets["dexter"].load("evaluation", SETTINGS.data)) == 12
        with pytest.raises(HamrError, match="open-dexter: split='training'"):
            sets["dexter"].load("training", SETTINGS.data)
        # The settings reach the readers.
        data = dataclasses.replace(SETTINGS.data, rhd_mask="depth", stb_root="palm")
        assert sets["rhd"].load("training", data).mask == "depth"
        palm = sets["stb"].load("training", data)[0].joints_3d
        np.testing.assert_allclose(palm[0], (hand()[0] + hand()[13]) / 2, atol=1e-6)

    def test_each_complete_real_set_is_taken(self, folder, few):
        write_rhd(folder / "raw/rhd", dict.fromkeys(rhd.SPLITS, 1))
        write_dexter(folder / "raw/dexter", 1)
        sets = find_sets(SETTINGS, folder)
        assert [s.title for s in sets.values()] == ["RHD", "open-stb", "Dexter+Object"]
        assert sets["rhd"].root == folder / "raw/rhd" and sets["rhd"].notice == ""
        assert all(s.title.startswith("open-") for s in find_sets(asking("open"), folder).values())
        with pytest.raises(HamrError, match="'real', but STB is not complete.*raw/stb"):
            find_sets(asking("real"), folder)
        write_stb(folder / "raw/stb", 1)
        titles = [s.title for s in find_sets(asking("real"), folder).values()]
        assert titles == ["RHD", "STB", "Dexter+Object"]

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("rhd/RHD_published_v2/training/mask/00000.png", "training/mask/.*: 0 of 1 images"),
            ("rhd/RHD_published_v2/training/anno_training.pickle", "training/anno_training.pickle"),
            ("stb/labels/B3Random_SK.mat", "labels/B3Random_SK.mat"),
            ("stb/images/B3Random/SK_color_0.png", "images/B3Random/.*: 0 of 1 images"),
            ("dexter/data/Rigid/annotations/Rigid3D.txt", "Rigid/annotations/Rigid3D.txt"),
            ("dexter/data/Rigid/color/image_00000.png", "Rigid/color/.*: 0 of 1 images"),
        ],
    )
    def test_an_incomplete_real_set_stops_the_run(self, folder, few, path, words):
        name = path.split("/")[0]
        write = {"rhd": write_rhd, "stb": write_stb, "dexter": write_dexter}[name]
        write(folder / "raw" / name, dict.fromkeys(rhd.SPLITS, 1) if name == "rhd" else 1)
        (folder / "raw" / path).unlink()
        with pytest.raises(HamrError, match=f"'auto', but .* is not complete.*{words}"):
            find_sets(SETTINGS, folder)
        assert find_sets(asking("open"), folder)[name].title == f"open-{name}"

    def test_a_broken_link_in_its_place_stops_it_too(self, folder):
        (folder / "raw").mkdir()
        (folder / "raw" / "stb").symlink_to("nowhere")
        with pytest.raises(HamrError, match="is not complete.*raw/stb or remove it"):
            find_sets(SETTINGS, folder)

    def test_the_camera_of_stb(self, folder, few):
        asked = dataclasses.replace(SETTINGS, data=Data(stb_camera="BB", open=ASKED))
        with pytest.raises(HamrError, match="open-stb: data.stb_camera='BB': expected one of SK"):
            find_sets(asked, folder)
        root = folder / "raw/stb"
        write_stb(root, 1)
        with pytest.raises(HamrError, match="STB is not complete.*B2Counting_BB.mat"):
            find_sets(asked, folder)
        for name in (name for names in stb.SPLITS.values() for name in names):
            shutil.copy(stb.label_path(root, name), stb.label_path(root, name, "BB"))
            for side in ("left", "right"):
                images = root / "images" / name
                shutil.copy(images / "SK_color_0.png", images / f"BB_{side}_0.png")
        found = find_sets(asked, folder)["stb"]
        assert len(found.load("evaluation", asked.data)) == 4 == found.expected["evaluation"]

    def test_incomplete_stand_in(self, folder):
        (folder / "open/tiny/open-stb/images/B6Random/SK_color_0.png").unlink()
        with pytest.raises(HamrError, match="B6Random/.*: 0 of 1 images; `make data PROFILE=tiny`"):
            find_sets(SETTINGS, folder)
        with pytest.raises(HamrError, match="open-rhd is not complete: it lacks the folder"):
            find_sets(SETTINGS, folder / "elsewhere")


class TestCheckSet:
    def test_complete_sets(self, folder):
        names = ("rhd", "stb", "dexter")
        reports = [check_set(stand_in(n, SETTINGS, folder), SETTINGS.data) for n in names]
        table = report_table(reports)
        assert table.found.all() and table.complete.all() and not any(r.problems for r in reports)
        counts = ["3 + 2", "10 + 2", "12"]
        assert table.samples.tolist() == table["images expected"].tolist() == counts
        assert table.checked.tolist() == [5, 12, 12]
        assert table["left hands"].tolist() == [0.4, 1, 1]  # of RHD the first of each split
        assert table.labels.tolist() == ["21 joints", "21 joints", "fingertips"]
        np.testing.assert_allclose(table["nearest (m)"], [0.6, 0.6, 0.63], atol=1e-6)
        np.testing.assert_allclose(table["farthest (m)"], 0.63, atol=1e-6)
        np.testing.assert_allclose(table["palm (mm)"], [90, 90, np.nan], atol=1e-3)
        assert (table["outside the image"] == 0).all()
        errors = table["reprojection max (px)"]
        assert np.isnan(errors["open-stb"])  # it has no 2-D labels of its own
        assert errors.max() < 1e-3

    def test_reprojection_and_labels_outside(self, folder):
        """Pixels of one joint moved by (3, 4); then the hand's five tips out of the image."""
        labels = {i: rhd.annotation(np.stack([hand()] * 2), K, np.ones((2, 21))) for i in range(2)}
        labels[0]["uv_vis"][3, :2] += (3, 4)
        dataset = stand_in("rhd", SETTINGS, folder)
        rhd.write_annotations(dataset.root, "evaluation", labels)
        row = check_set(dataset, SETTINGS.data).row
        assert row["reprojection max (px)"] == pytest.approx(5, abs=1e-3)
        for label in labels.values():
            label["uv_vis"][[1, 5, 9, 13, 17, 22, 26, 30, 34, 38], 1] = -0.6
        rhd.write_annotations(dataset.root, "evaluation", labels)
        row = check_set(dataset, SETTINGS.data).row
        assert row["outside the image"] == pytest.approx(2 * 5 / (5 * 21))
        assert row["complete"]  # labels outside the image are reported, not refused

    def test_broken_and_absent_sets(self, folder):
        root = folder / "open/tiny/open-rhd/RHD_published_v2"
        for name in ("color/00001.png", "mask/00002.png"):
            path = root / "training" / name
            path.write_bytes(path.read_bytes()[:60])
        (root / "evaluation" / "anno_evaluation.pickle").write_bytes(b"not a pickle")
        report = check_set(stand_in("rhd", SETTINGS, folder), SETTINGS.data)
        assert not report.row["complete"] and report.row["lacks"] == ""
        assert report.row["checked"] == 1 and report.row["samples"] == "3 + ?"
        first, second, third = report.problems
        assert "sample 1" in first and "color/00001.png" in first
        assert "sample 2" in second and "mask/00002.png" in second
        assert third.startswith("evaluation: ")
        row = check_set(published("stb", folder), SETTINGS.data).row
        assert not row["found"] and not row["complete"] and row["checked"] == 0
        assert row["lacks"] == f"the folder {folder / 'raw' / 'stb'}" and row["samples"] == "? + ?"


def test_a_skeleton_is_drawn_where_its_joints_are():
    image, joints = np.full((200, 200, 3), 30, np.uint8), np.full((21, 2), np.nan)
    np.testing.assert_array_equal(draw_skeleton(image, joints), image)
    for end in (180, 1e9):
        joints[[0, 5]] = [[20, 100], [end, 100]]
        drawn = draw_skeleton(image, joints)
        assert (image == 30).all()  # the given image is left as it was
        assert drawn[100, 150].tolist() == [86, 180, 233]  # the bone wrist to index MCP
        assert (drawn[:80] == 30).all() and (drawn[120:] == 30).all()
    assert drawn[100, 20].tolist() == [255, 255, 255]  # the wrist
