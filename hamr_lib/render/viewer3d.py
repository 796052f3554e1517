"""One hand in a k3d plot: in a notebook, or as an HTML file that needs no network."""

import base64
import functools
import html
import re
from pathlib import Path

import k3d
import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside
from hamr_lib.joints import BONES

COMPRESSION = 4  # of pages, 1 to 9: more takes twice the time for 4 % of their size


class Scene:
    """A k3d `plot` of a `mesh` with faces (F, 3), its joints and bones, as the camera sees it."""

    def __init__(self, faces: np.ndarray):
        bare = {"grid_auto_fit": False, "grid_visible": False, "menu_visibility": False}
        self.plot = k3d.plot(height=460, camera_auto_fit=False, axes_helper=0.0, **bare)
        faces, nothing = faces.astype(np.uint32), np.zeros((21, 3), np.float32)
        # White, since k3d multiplies the colours of vertices by that of the mesh.
        self.mesh = k3d.mesh(nothing[:3], faces, color=0xFFFFFF, flat_shading=False, side="double")
        dark = {"color": 0x202020, "shader": "mesh"}
        self.joints = k3d.points(nothing, point_size=0.006, **dark)
        bones = np.array(BONES, np.uint32)
        self.bones = k3d.lines(nothing, bones, indices_type="segment", width=0.0012, **dark)
        self.target = k3d.mesh(nothing[:3], faces, opacity=0.35, side="double")
        self.target.visible = False
        for thing in (self.mesh, self.joints, self.bones, self.target):
            self.plot += thing
        # From 30 cm before the hand, y down.
        self.plot.camera = [0, -0.08, -0.3, 0, -0.08, 0, 0, -1, 0]

    def show(self, vertices: np.ndarray, joints: np.ndarray, colours: np.ndarray) -> None:
        """Draw vertices (V, 3) and joints (21, 3), metres, in colours (V, 3) or (3,) of [0, 1]."""
        self.mesh.vertices = np.asarray(vertices, np.float32)
        self.mesh.colors = _packed(np.rint(255 * np.broadcast_to(colours, np.shape(vertices))))
        self.joints.positions = self.bones.vertices = np.asarray(joints, np.float32)

    def show_target(self, vertices, faces, colour) -> None:
        """Draw a second hand (V, 3), transparent, in a colour (3,) of 255; None draws none."""
        self.target.visible = vertices is not None
        if vertices is not None:
            self.target.vertices = np.asarray(vertices, np.float32)
            self.target.indices = faces.astype(np.uint32)
            self.target.color = int(_packed(colour))

    def look_at(self, vertices: np.ndarray) -> None:
        """Move the camera to 30 cm in front of the centre of vertices (V, 3)."""
        x, y, z = (np.min(vertices, 0) + np.max(vertices, 0)).astype(float) / 2
        self.plot.camera = [x, y, z - 0.3, x, y, z, 0, -1, 0]

    def show_skeleton(self, visible: bool) -> None:
        """Show joints and bones; they lie inside the hand, which then becomes transparent."""
        self.joints.visible = self.bones.visible = visible
        self.mesh.opacity = 0.6 if visible else 1.0


def _packed(colours):
    """Pack RGB (..., 3) of 255 into one number each, as k3d takes colours."""
    return np.asarray(colours, np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def write_html(path: str | Path, plot: k3d.Plot, title: str) -> None:
    """Write a plot as one HTML file with k3d's code inside; a `HamrError` for another ending."""
    if Path(path).suffix != ".html":
        raise HamrError(f"{path}: expected a name that ends in .html")
    page, empty = _empty_page()
    named = f"<title>{html.escape(title)}</title>"
    page = re.sub("<title>.*?</title>", lambda _: named, page, count=1)
    with write_aside(path) as aside:
        aside.write_text(page.replace(empty, _data(plot)))


def _data(plot):
    return base64.b64encode(plot.get_binary_snapshot(COMPRESSION)).decode()


@functools.cache
def _empty_page():
    """Return k3d's page of an empty plot, and the data in it."""
    plot = k3d.plot()
    return plot.get_snapshot(COMPRESSION), _data(plot)
