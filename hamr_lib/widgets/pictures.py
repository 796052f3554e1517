"""What the widgets hand to the browser: pictures, plots, downloads, and what is wrong."""

import base64
import html
from pathlib import Path

import cv2
import numpy as np

from hamr_lib.recovery.result import SKIN, Recovery
from hamr_lib.render.viewer3d import Scene


def encode(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 RGB as PNG."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def problem(error: object) -> str:
    """Write an error, whatever text it holds, as HTML."""
    return f"<b>{html.escape(str(error))}</b>"


def download_link(path: str | Path) -> str:
    """Make a link by which a browser takes a file along, wherever the kernel runs."""
    name, content = html.escape(Path(path).name), base64.b64encode(Path(path).read_bytes())
    url = f"data:application/octet-stream;base64,{content.decode()}"
    return f'<a download="{name}" href="{url}">download {name}</a>'


def plot_recovery(recovery: Recovery):
    """Make a k3d plot of a recovered hand with its joints, seen as the camera saw it."""
    scene = Scene(recovery.faces)
    scene.show(recovery.vertices, recovery.joints_3d, SKIN)
    scene.show_skeleton(True)
    scene.look_at(recovery.vertices)
    return scene.plot
