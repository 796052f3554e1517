"""`gallery.html`: the best, the median and the worst sample of each test set, to be looked at.

One file without a network or WebGL: each mesh is drawn from all around beforehand, and a strip of
these pictures turns.
"""

import base64
import html
from pathlib import Path
from string import Template

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from hamr_lib.config import Settings
from hamr_lib.data import registry
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import load_predictions, predictions_path
from hamr_lib.evaluation.scores import errors, is_stand_in, main_protocol, row_means
from hamr_lib.files import write_aside
from hamr_lib.recovery.result import SKIN, Recovery
from hamr_lib.render import render
from hamr_lib.render.draw2d import fit
from hamr_lib.report.results import recover_sample

VIEWS = 24  # of a full turn
SIZE = 240  # pixels a side of each picture
PAGE = Path(__file__).with_suffix(".html")  # a template


def write_gallery(settings: Settings, results_dir: Path) -> Path:
    """Write `gallery.html`, samples ordered by their mean 3-D error; returns its path.

    The network runs anew for those that are shown, as the predictions hold no pictures of them.

    Raises:
        HamrError: where the main run was not evaluated, or on other data.
    """
    run = results_dir / "runs" / "main"
    parts = []
    for found in registry.find_sets(settings).values():
        predictions = load_predictions(predictions_path(run, found.title))
        error = row_means(errors(predictions, main_protocol(predictions)))
        order = np.argsort(error, kind="stable")[: np.isfinite(error).sum()]
        if not len(order):
            raise HamrError(f"{run}: no sample of {found.title} has a 3-D label to rank it by")
        kind = "rendered stand-in, not photographs" if is_stand_in(found.title) else "real"
        parts.append(f"<h2>{html.escape(found.title)} ({kind})</h2><section>")
        frames = found.load("evaluation", settings.data)
        for name, place in (("best", 0), ("median", len(order) // 2), ("worst", -1)):
            index = int(order[place])
            frame, steps = recover_sample(run, frames, predictions, index)
            parts.append(_row(f"{name} of {len(order)}", error[index], frame, steps[-1]))
        parts.append("</section>")
    profile, sizes = html.escape(settings.profile), {"size": SIZE, "strip": VIEWS * SIZE}
    page = Template(PAGE.read_text())
    text = page.substitute(profile=profile, rows="".join(parts), views=VIEWS, **sizes)
    path = results_dir / "gallery.html"
    with write_aside(path) as aside:
        aside.write_text(text)
    return path


def turntable(recovery: Recovery) -> np.ndarray:
    """Draw a recovered mesh from all around, side by side: (SIZE, VIEWS * SIZE, 3) uint8."""
    low, high = recovery.vertices.min(0), recovery.vertices.max(0)
    vertices = recovery.vertices - (low + high) / 2
    camera = np.array([0.9 / np.linalg.norm(vertices, axis=1).max(), 0.0, 0.0])
    angles, views = 2 * np.pi * np.arange(VIEWS)[:, None] / VIEWS, []
    for turn in Rotation.from_euler("y", angles).as_matrix():
        # The wrist is open: its inside is seen from behind.
        view = render(vertices @ turn.T, recovery.faces, camera, SIZE, SKIN, cull=False)
        views.append(np.rint(255 * view.colour).astype(np.uint8))
    return np.hstack(views)


def _row(name, error, frame, recovery):
    strip = f"background-image:url({_jpeg(turntable(recovery))})"
    text = f"{html.escape(frame.key)}, {frame.side} hand, {error:.0f} mm"
    return (
        f"<div><b>{name}</b><br>{text}</div>"
        f'<img class=tile alt="{name}: image" src="{_jpeg(fit(frame.image, SIZE))}">'
        f'<img class=tile alt="{name}: mesh" src="{_jpeg(fit(recovery.overlay(), SIZE))}">'
        f'<div class="tile turn" style="{strip}"></div>'
    )


def _jpeg(image):
    """(H, W, 3) uint8 as a data URL."""
    _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
