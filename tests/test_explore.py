"""The widgets of `explore_mesh` and both interactive notebooks, driven as code drives them."""

import functools
import io
import unittest.mock
from types import SimpleNamespace

import nbformat
import numpy as np
import papermill
import pytest
import trimesh
from PIL import Image
from tiny import draw_frames

from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT
from hamr_lib.joints import NAMES
from hamr_lib.notebooks import run_notebook
from hamr_lib.widgets import browser as browser_module
from hamr_lib.widgets import explorer as module
from hamr_lib.widgets.upload import Upload


def picture(image):
    """What an image widget shows: (H, W, 3)."""
    return np.array(Image.open(io.BytesIO(image.value)))


@pytest.fixture(scope="module", params=["right", "left"])
def built(request):
    return module.Explorer("open", request.param)


@pytest.fixture
def explorer(built):
    """A hand whose sliders and target are put back after each test."""
    yield built
    built.controls["target"].value = module.NO_TARGET
    built.reset()


@pytest.mark.parametrize("control, value", [
    ("beta 0", 2.0), ("component 0", 2.0), ("turn about z", 40.0), ("camera s", 5.0)
])  # fmt: skip
def test_a_slider_moves_what_is_drawn(explorer, control, value):
    before = explorer._scene.mesh.vertices.copy()
    silhouette = picture(explorer._image)
    code = explorer.code.value
    explorer.controls[control].value = value
    # The camera moves the picture alone, everything else the mesh as well.
    moved = np.abs(explorer._scene.mesh.vertices - before).max()
    assert moved == 0 if control.startswith("camera") else 0.002 < moved < 0.3
    assert (picture(explorer._image) != silhouette).any(2).sum() > 100
    assert (explorer.code.value == code) == control.startswith("camera")


def test_the_palm_is_seen_with_the_fingers_up(explorer):
    explorer.gesture.value = "open"
    _, joints = explorer.mesh()
    tip = joints[NAMES.index("middle tip")]
    assert tip[1] < -0.1 and abs(tip[0]) < 0.02  # y points down
    thumb = joints[NAMES.index("thumb tip"), 0]
    assert thumb > 0.05 if explorer.hand.side == "right" else thumb < -0.05
    # Fingers bend towards the palm, hence towards the viewer.
    explorer.gesture.value = "fist"
    _, joints = explorer.mesh()
    assert joints[NAMES.index("middle PIP"), 2] < -0.02


def test_joints_without_anatomical_axes_turn_about_the_axes_of_the_hand(monkeypatch):
    """MANO's angles have no names. The open hand stands in for its files, which cannot be here."""

    def unnamed(name, *args, **options):
        hand = explore_load_hand("open", *args, **options)
        hand.name = "mano"
        return hand

    explore_load_hand = module.load_hand
    monkeypatch.setattr(module, "load_hand", unnamed)
    hand = module.Explorer("mano")
    before = hand.mesh()[1]
    hand.controls["ring PIP z"].value = 60.0
    moved = np.linalg.norm(hand.mesh()[1] - before, axis=1)
    assert moved[NAMES.index("ring tip")] > 0.02 and moved[NAMES.index("index tip")] < 1e-4
    assert len(hand.parameters()[2]) == 45 and not hasattr(hand, "gesture")


# --- fitting ------------------------------------------------------------------------------------


def test_the_losses_against_a_target_are_those_of_the_training(explorer):
    """Moved by half a crop unit, the 2-D part is that much, and the rest by the camera's scale."""
    assert explorer.loss_terms() == {}
    explorer.controls["target"].value = "relaxed"
    terms = explorer.loss_terms()
    assert terms.pop("geometric") < 0.05  # of the hand alone, whatever the target
    assert set(terms) == {"joints_3d", "joints_2d", "camera", "silhouette"}
    # The silhouette's soft rim differs from itself by nothing; rounding is all there is.
    assert max(terms.values()) < 1e-4
    explorer.controls["camera tx"].value += 0.5
    terms = explorer.loss_terms()
    assert terms["joints_2d"] == pytest.approx(0.5**2, abs=1e-3)
    metres = 0.5 / explorer.controls["camera s"].value
    assert terms["camera"] == pytest.approx(metres**2 / 3, rel=1e-2)
    assert terms["joints_3d"] < 1e-9
    explorer.controls["turn about z"].value = 30.0
    moved = explorer.loss_terms()
    assert moved["joints_3d"] > 1e-4 and moved["silhouette"] > 0.01
    assert "joints_3d" in explorer.terms.value


def test_a_fit_comes_near_its_target_and_is_watched(explorer):
    explorer.controls["target"].value = "random hand 1"
    before = explorer.loss_terms()
    shown = []
    explorer._image.observe(lambda change: shown.append(change["new"]), "value")
    explorer.fit(60)
    explorer._image.unobserve_all("value")
    assert len(set(shown)) >= 10
    after = explorer.loss_terms()
    assert after["joints_3d"] < before["joints_3d"] / 10
    assert after["joints_2d"] < before["joints_2d"] / 3
    names = {}  # the fitted hand as code
    exec(explorer.code.value, names)
    mesh = names["mesh"]
    vertices = (mesh.vertices - mesh.joints[:, :1])[0].numpy()
    np.testing.assert_allclose(vertices, explorer.mesh()[0], atol=1e-4)


def test_the_other_side_is_the_mirrored_hand():
    joints = []
    for side in ("right", "left"):
        hand = module.Explorer("open", side)
        hand.controls["index PIP flexion"].value = 60.0
        joints.append(hand.mesh()[1])
    np.testing.assert_allclose(joints[1], joints[0] * [-1, 1, 1], atol=2e-3)


def test_save(explorer, tmp_path):
    vertices, _ = explorer.mesh()
    explorer.path.value = str(tmp_path / "hand.obj")
    explorer.save()
    assert explorer.message.value.startswith(f"saved {tmp_path}/hand.obj<br><a download=")
    mesh = trimesh.load_mesh(tmp_path / "hand.obj", process=False)
    np.testing.assert_allclose(mesh.extents, np.ptp(vertices, axis=0), atol=1e-5)
    assert mesh.volume > 1e-4  # cubic metres, and positive: the outside is outside
    explorer.path.value = str(tmp_path / "<img src=x>.stl")
    explorer.save()
    assert "expected a name that ends in" in explorer.message.value
    assert "&lt;img src=x&gt;.stl" in explorer.message.value


def test_the_name_of_an_upload_is_text_and_a_name(tmp_path, tiny_checkpoint):
    """A browser says what a file is called: neither markup nor a folder is taken from that."""
    upload = Upload(tiny_checkpoint, tmp_path / "out")
    upload.box.value, upload.side.value = "50,20,120,90", "left"
    content = io.BytesIO()
    Image.fromarray(draw_frames(1)[0].image).save(content, "PNG")
    for data in (b"no image", content.getvalue()):
        upload.photo = "../..\\<img src=x onerror=alert(1)>.png", data
        upload._changed()
        assert "&lt;img" in upload.message.value and "<img" not in upload.message.value
    links = upload.found.children[-1].value
    assert links.count("<a ") == 5 and "<img" not in links
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert len(list((tmp_path / "out").iterdir())) == 5
    upload.webcam.trouble = "<img src=x>"
    assert "<img" not in upload.message.value


# --- predictions --------------------------------------------------------------------------------


@pytest.fixture
def browser(browsed, monkeypatch):
    folder, frames = browsed
    found = SimpleNamespace(title="open-rhd", load=lambda split, data: frames)
    monkeypatch.setattr(browser_module.registry, "find_sets", lambda settings: {"rhd": found})
    monkeypatch.setattr(browser_module, "results_dir", lambda profile, run: folder)
    return browser_module.Browser("smoke")


def test_what_is_shown_is_what_was_evaluated(browser, browsed):
    """The network runs anew for the sample that is shown, and must say what it said before."""
    browser.controls["order"].value = "file order"
    for index in (2, 8):  # a right hand and a left one
        browser.controls["place"].value = index
        frame, [*_, recovery] = browser._recovered[1]
        assert frame is browsed[1][index]
        np.testing.assert_allclose(
            recovery.joints_2d, browser.predictions["pixels"][index], atol=0.02
        )
        flip = [-1, 1, 1] if frame.side == "left" else [1, 1, 1]
        np.testing.assert_allclose(
            recovery.joints_3d * flip, browser.predictions["joints_3d"][index], atol=1e-5
        )


def test_worst_and_best_first_and_each_iteration(browser):
    for measure, worse in (("3-D error (mm)", 1), ("2-D error (px)", 1), ("IoU", -1)):
        browser.controls["measure"].value = measure
        browser.controls["order"].value = "worst first"
        worst_first = browser.order.copy()
        assert (np.diff(worse * browser.values[worst_first]) <= 0).all()
        browser.controls["order"].value = "best first"
        assert (np.diff(worse * browser.values[browser.order]) >= 0).all()
        assert set(browser.order) == set(worst_first)
    assert browser.controls["iteration"].max == 2 == browser.controls["iteration"].value
    last = browser._scene.mesh.vertices.copy()
    browser.controls["iteration"].value = 1
    assert np.abs(browser._scene.mesh.vertices - last).max() > 1e-4


# --- the notebooks ------------------------------------------------------------------------------


def execute(notebook, target, **parameters):
    """Execute a notebook; what it printed.

    nbclient sometimes waits for ever for a cell that shows widgets (its issue 312): such a wait
    ends, and the notebook is executed once more.
    """
    bounded = functools.partial(papermill.execute_notebook, execution_timeout=300)
    with unittest.mock.patch.object(papermill, "execute_notebook", bounded):
        for last in (False, True):
            try:
                run_notebook(ROOT / "notebooks" / f"{notebook}.ipynb", target, parameters)
                break
            except HamrError as error:
                if last or "timed out" not in str(error):
                    raise
    cells = nbformat.read(target, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_recover_photo_runs(tiny_checkpoint, tmp_path):
    Image.fromarray(draw_frames(1)[0].image).save(tmp_path / "mine.png")
    done = execute(
        "recover_photo", tmp_path / "done.ipynb", photo=str(tmp_path / "mine.png"),
        box=[50, 20, 120, 90], side="left", checkpoint=str(tiny_checkpoint),
        out=str(tmp_path / "out"),
    )  # fmt: skip
    assert "a left hand, fitted to network" in done and f"by {tiny_checkpoint}" in done
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_explore_mesh_runs(tmp_path):
    done = execute("explore_mesh", tmp_path / "done.ipynb", hand="open", run="never-trained-s0")
    assert "no run 'never-trained-s0' was evaluated yet" in done and "hand = load_hand" in done
