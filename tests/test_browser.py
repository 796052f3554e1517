"""Both interactive notebooks and every HTML file, in a browser, as a person uses them."""

import numpy as np
import pytest
import trimesh
from browser import CHROMIUM, Chrome, jupyter_lab, prepare, run_all, until
from PIL import Image
from test_gallery import write
from tiny import draw_frames

from hamr_lib.data.photographs import example_photographs
from hamr_lib.recovery.photo import read_photo
from hamr_lib.recovery.pipeline import recover

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium on this machine (on Debian: apt install chromium)"
    ),
]


@pytest.fixture
def chrome(tmp_path):
    browser = Chrome(tmp_path / "chrome")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with jupyter_lab(folder) as address:
        yield folder, address


def drawn(picture, background=None):
    """Share of pixels that differ clearly from the background (else the top left pixel)."""
    background = picture[0, 0] if background is None else background
    return (np.abs(picture.astype(int) - background).max(2) > 20).mean()


def changed(before, after):
    """Share of pixels that differ clearly."""
    return (np.abs(before.astype(int) - after).max(2) > 20).mean()


# Elements of a notebook, as JavaScript finds them.
PLOT = "document.querySelectorAll('.jp-OutputArea canvas')[0]"
IMAGE = "document.querySelectorAll('.jp-OutputArea img.widget-image')[0]"


def slider(name):
    """The track of the slider with this label."""
    labels = "Array.from(document.querySelectorAll('.widget-slider .widget-label'))"
    return (
        f"{labels}.find(l => l.textContent == '{name}').closest('.widget-slider')"
        ".querySelector('.noUi-base')"
    )


def text(name, tag="*"):
    """The innermost element that holds just this text."""
    return (
        f"Array.from(document.querySelectorAll('.jp-OutputArea {tag}'))"
        f".filter(e => e.textContent.trim() == '{name}').pop()"
    )


def test_explore_mesh_answers_to_the_mouse(lab, chrome):
    folder, address = lab
    prepare("explore_mesh", folder, hand="open", run="never-trained-s0")
    run_all(chrome, address("explore_mesh.ipynb"))
    chrome.wait(f"!!({IMAGE}) && ({IMAGE}).complete && !!({PLOT})")
    chrome.wait(f"!!({slider('turn about z')})")
    mesh, silhouette = chrome.picture(PLOT), chrome.picture(IMAGE)
    assert drawn(mesh) > 0.02 and drawn(silhouette) > 0.05
    chrome.click(slider("turn about z"), along=0.7)
    chrome.wait(f"(s => s && s != window.shown)(({IMAGE}).src)")

    def both_moved():
        return (
            changed(mesh, chrome.picture(PLOT)) > 0.01
            and changed(silhouette, chrome.picture(IMAGE)) > 0.03
        )

    wait_for(both_moved)

    # Save, and take the file along through the browser.
    chrome.click(text("Save", "li.lm-TabBar-tab, .jp-OutputArea .lm-TabBar-tabLabel"))
    field = "Array.from(document.querySelectorAll('.widget-text input'))"
    field += ".find(i => i.value.endsWith('hand.obj'))"
    chrome.click(field)
    chrome.js(f"({field}).select()")
    chrome.call("Input.insertText", text=str(folder / "mine.obj"))
    chrome.click(text("save", "button"))
    chrome.wait(f"!!({text('download mine.obj', 'a')})")
    chrome.js(f"({text('download mine.obj', 'a')}).click()")
    downloaded = trimesh.load(chrome.downloaded("mine.obj"), process=False)
    assert 0.1 < np.ptp(downloaded.vertices, axis=0).max() < 0.4  # metres
    assert len(downloaded.faces) > 1000 and downloaded.volume > 1e-4


def wait_for(condition):
    until(condition, 60, condition.__name__)


@pytest.fixture
def both(tmp_path):
    """A photo of a left hand and, beside it, of its mirror image."""
    left = read_photo(example_photographs()[0])
    Image.fromarray(np.hstack([left, left[:, ::-1]])).save(tmp_path / "both.png")
    return tmp_path / "both.png"


def test_recover_photo_takes_an_uploaded_photo(lab, chrome, tiny_checkpoint, both, tmp_path):
    folder, address = lab
    photo = example_photographs()[0]
    prepare(
        "recover_photo", folder, photo=str(photo), checkpoint=str(tiny_checkpoint),
        out=str(tmp_path / "out"),
    )  # fmt: skip
    run_all(chrome, address("recover_photo.ipynb"))
    button = "document.querySelector('.jp-OutputArea button.widget-upload')"
    chrome.upload(button, both)
    chrome.wait(f"!!({text('download both_hand2.glb', 'a')})")
    chrome.wait(f"!!({IMAGE}) && ({IMAGE}).complete && !!({PLOT})")
    assert drawn(chrome.picture(IMAGE)) > 0.05
    wait_for(lambda: drawn(chrome.picture(PLOT)) > 0.005)
    chrome.js(f"({text('download both_hand2.glb', 'a')}).click()")
    mesh = trimesh.load_mesh(chrome.downloaded("both_hand2.glb"))
    assert 0.05 < np.ptp(mesh.vertices, axis=0).max() < 0.5
    # What is no photo, or shows no hand, is said in words, and leaves no mesh.
    (tmp_path / "text.png").write_text("not an image")
    chrome.upload(button, tmp_path / "text.png")
    chrome.wait("document.body.textContent.includes('text.png is not an image of a format')")
    noise = np.random.default_rng(7).normal(110, 12, (90, 140, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    chrome.upload(button, tmp_path / "noise.png")
    chrome.wait("document.body.textContent.includes('no hand was found; if there is one')")
    assert not chrome.js(f"!!({text('download noise.glb', 'a')})")


def test_recover_photo_takes_a_picture(lab, tiny_checkpoint, both, tmp_path):
    """With a camera that sees two hands; and a browser without a camera says so."""
    folder, address = lab
    frame = Image.new("RGB", (640, 640))
    frame.paste(Image.open(both).resize((640, 320)), (0, 160))
    frame.save(tmp_path / "camera.jpg", quality=95)
    (tmp_path / "camera.jpg").rename(tmp_path / "camera.mjpeg")
    prepare(
        "recover_photo", folder, photo=str(both), checkpoint=str(tiny_checkpoint),
        out=str(tmp_path / "out"),
    )  # fmt: skip
    button = text("webcam", "button")
    for camera in (None, tmp_path / "camera.mjpeg"):
        chrome = Chrome(tmp_path / f"chrome-{camera is None}", camera=camera)
        try:
            run_all(chrome, address("recover_photo.ipynb"))
            chrome.wait(f"!!({button})")
            chrome.click(button)
            if camera is None:
                chrome.wait("document.body.textContent.includes('the browser gives no camera:')")
                continue
            chrome.wait(f"!!({text('take the picture', 'button')})")
            chrome.click(text("take the picture", "button"))
            chrome.wait(f"!!({text('download webcam_hand2.glb', 'a')})")
            assert drawn(chrome.picture(IMAGE)) > 0.05
            assert not chrome.js("document.querySelector('.jp-OutputArea video').srcObject.active")
        finally:
            chrome.close()


def test_the_page_of_a_recovery_draws_without_a_network(chrome, tiny_checkpoint, tmp_path):
    image = draw_frames(1)[0].image
    [recovery] = recover(image, (40, 20, 120, 100), "right", tiny_checkpoint)
    recovery.save_html(tmp_path / "page.html")
    chrome.offline()
    chrome.open(f"file://{tmp_path}/page.html")
    chrome.wait("!!document.querySelector('canvas')")
    wait_for(lambda: drawn(chrome.picture()) > 0.01)
    before = chrome.picture()
    # Skin, under whatever light, is redder than it is blue.
    hand = before[(np.abs(before.astype(int) - before[0, 0]) > 20).any(2)]
    assert hand[:, 0].mean() > hand[:, 2].mean() + 15
    x, y = 700, 500
    for kind, at in (("mousePressed", x), ("mouseMoved", x + 150), ("mouseReleased", x + 150)):
        chrome.call(
            "Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left", buttons=1, clickCount=1
        )
    wait_for(lambda: changed(before, chrome.picture()) > 0.005)  # it turns
    assert chrome.requested() == [f"file://{tmp_path}/page.html"]


def test_the_gallery_turns_without_a_network(chrome, browsed, monkeypatch, tmp_path):
    path = write(browsed, monkeypatch, tmp_path)
    chrome.offline()
    chrome.open(f"file://{path}")
    assert chrome.js("Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)")
    tile = "document.querySelector('.turn')"
    assert drawn(chrome.picture(tile), background=(255, 255, 255)) > 0.02
    first = chrome.picture(tile)
    wait_for(lambda: changed(first, chrome.picture(tile)) > 0.01)
    assert chrome.requested() == [f"file://{path}"]
