"""What the widgets hand to the browser: pictures, plots and downloads."""

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


def download_link(path: Path) -> str:
    """Make a link by which a browser takes a file along, wherever the kernel runs."""
    path = Path(path)
    content = base64.b64encode(path.read_bytes()).decode()
    url = f"data:application/octet-stream;base64,{content}"
    name = html.escape(path.name, quote=True)
    return f'<a download="{name}" href="{url}">download {name}</a>'


def plot_recovery(recovery: Recovery):
    """Make a k3d plot of a recovered hand with its joints, seen as the camera saw it."""
    scene = Scene(recovery.faces)
    scene.show(recovery.vertices, recovery.joints_3d, np.tile(SKIN, (len(recovery.vertices), 1)))
    scene.show_skeleton(True)
    return scene.plot
