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
from hamr_lib.files import write_text
from hamr_lib.recovery.result import SKIN, Recovery
from hamr_lib.render.draw2d import fit
from hamr_lib.report.meshes import draw_turned
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
            overlay = fit(steps[-1].overlay(), SIZE)
            pictures = fit(frame.image, SIZE), overlay, turntable(steps[-1])
            hand, mesh, turning = map(_jpeg, pictures)
            text = f"{html.escape(frame.key)}, {frame.side} hand, {error[index]:.0f} mm"
            parts.append(
                f"<div><b>{name} of {len(order)}</b><br>{text}</div>"
                f'<img class=tile alt="{name}: image" src="{hand}">'
                f'<img class=tile alt="{name}: mesh" src="{mesh}">'
                f'<div class="tile turn" style="background-image:url({turning})"></div>'
            )
        parts.append("</section>")
    words = {"profile": html.escape(settings.profile), "rows": "".join(parts)}
    words |= {"views": VIEWS, "size": SIZE, "strip": VIEWS * SIZE}
    path = results_dir / "gallery.html"
    write_text(path, Template(PAGE.read_text()).substitute(words))
    return path


def turntable(hand: Recovery) -> np.ndarray:
    """Draw a recovered mesh from all around, side by side: (SIZE, VIEWS * SIZE, 3) uint8."""
    turns = Rotation.from_euler("y", 2 * np.pi * np.arange(VIEWS)[:, None] / VIEWS)
    views = [draw_turned(hand.vertices, hand.faces, turn, SIZE, SKIN) for turn in turns]
    return np.rint(255 * np.hstack(views)).astype(np.uint8)


def _jpeg(image):
    """(H, W, 3) uint8 as a data URL."""
    _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
