"""`Recovery`: the mesh of one hand in a photo, its pictures and its files."""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import trimesh
from PIL import Image

from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside
from hamr_lib.joints import NAMES
from hamr_lib.recovery.output import plain_name, whole_set
from hamr_lib.render import rasterize, render
from hamr_lib.render.draw2d import draw_skeleton

OVERLAY = 1600  # pixels of an overlay's longer side at most
SKIN = (0.80, 0.62, 0.53)
# Camera frame (x right, y down, z away) to that of viewers (x right, y up, z near): what glTF
# prescribes, and what puts a hand upright on a screen.
TO_VIEWER = np.diag([1.0, -1.0, -1.0, 1.0])
PIXELS = "(u, v), u to the right and v down; the centre of the photo's first pixel is (0, 0)"
OVERLAYS = ("none", "each", "all")


@dataclass(frozen=True, eq=False)
class Recovery:
    """One hand recovered from a photo.

    3-D is in metres in the camera's frame (x right, y down, z away) with the wrist at the origin.
    A pixel (u, v) of the photo has its centre at whole numbers. Joints are in the order of
    `joints.NAMES`.
    """

    side: str  # "left" or "right"
    box: tuple[float, float, float, float]  # (x0, y0, x1, y1) pixels, as it was given or found
    score: float | None  # probability that there is a hand; None where it was not found
    confidence: np.ndarray  # (21,) what the joints' heat maps hold near `joints_2d`, 0 to 1
    evidence: str  # "network", "landmarks" or "both": what the mesh was laid onto
    square: tuple[float, float, float]  # centre (u, v) and side, pixels: what the network saw
    joints_2d: np.ndarray  # (21, 2) pixels of the photo
    joints_3d: np.ndarray  # (21, 3)
    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3) int, counterclockwise seen from outside
    # (3,) s in pixels a metre, tx and ty in pixels: joints_2d = s * joints_3d[:, :2] + (tx, ty)
    camera: np.ndarray
    # Parameters of `load_hand(hand, side, P)`, whose mesh is `vertices` but for its root. MANO's
    # left hand is not quite its right one mirrored; there they are those of the mirrored right.
    betas: np.ndarray  # (10,)
    global_orient: np.ndarray  # (3,) axis-angle
    hand_pose: np.ndarray  # (P,)
    heatmaps: np.ndarray  # (21, h, h) of the last stack, across `square`
    hand: str  # "open" or "mano"
    checkpoint: str  # path of the network's weights
    photo: np.ndarray = field(repr=False)  # (H, W, 3) uint8 RGB
    # After each iteration before; of `recover_frame` alone, for their meshes take their time.
    earlier: tuple["Recovery", ...] = field(default=(), repr=False)

    @functools.cached_property
    def mask(self):
        """(H, W) bool: the pixels of the photo that the mesh covers."""
        shape = self.photo.shape[:2]
        covered = rasterize(self.vertices, self.faces, self.weak_camera(shape), shape).pixel
        mask = np.zeros(shape, bool)
        mask.flat[covered] = True
        return mask

    def weak_camera(self, shape):
        """(3,) the camera in the renderer's crop units, the photo being drawn at (H, W) = shape.

        A pixel p of the photo is k p + (k - 1) / 2 of a drawing k times as large.
        """
        height, width = shape
        k = width / self.photo.shape[1]
        offset = k * self.camera[1:] + (k - 1) / 2
        middle = (np.array([width, height]) - 1) / 2
        return np.array([k * self.camera[0], *(offset - middle)]) * 2 / width

    def overlay(self):
        """(h, w, 3) uint8: mesh and joints over the photo, at most `OVERLAY` pixels a side."""
        return overlay([self])

    def mesh(self):
        """The mesh as a `trimesh.Trimesh`: metres, camera frame."""
        return trimesh.Trimesh(self.vertices, self.faces, process=False)

    def to_dict(self):
        """What the JSON file holds: plain numbers, in the units of the attributes."""
        values = {
            name: getattr(self, name)
            for name in (
                "joints_2d", "joints_3d", "confidence", "camera", "betas", "global_orient",
                "hand_pose", "box", "side", "score", "evidence", "hand", "checkpoint",
            )
        }  # fmt: skip
        values = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        height, width = self.photo.shape[:2]
        return values | {
            "joint_names": NAMES, "photo_size": [width, height], "pixel_convention": PIXELS,
        }  # fmt: skip

    def save(self, folder, stem, html=True, overlay=True):
        """Write `<stem>_overlay.png`, `.glb`, `.obj`, `.html` and `.json`: all of them, or none.

        OBJ and JSON are in the camera's frame; so are the vertices of the GLB, in a node that
        turns them upright as glTF's frame (y up) asks. The HTML shows the mesh, to be turned by
        the mouse, in any browser and without a network; it has about 1 MB.

        Args:
            folder: made if missing.
            stem: start of the files' names; no folder.
            html, overlay: False leaves that file out.

        Returns:
            The paths.

        Raises:
            HamrError: naming what could not be written.
        """
        plain_name("stem", stem)
        with whole_set(folder) as (aside, paths):
            if overlay:
                Image.fromarray(self.overlay()).save(aside / f"{stem}_overlay.png")
            self.write(aside, stem, html)
        return paths

    def write(self, folder, stem, html):
        """Write the files of `save` but the overlay into a folder."""
        for kind in ("glb", "obj"):
            write_mesh(folder / f"{stem}.{kind}", self.mesh(), f"{self.side} hand")
        if html:
            self.save_html(folder / f"{stem}.html")
        (folder / f"{stem}.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def save_html(self, path):
        """Write one HTML file that draws the mesh with its joints, without a network."""
        # Here, since k3d takes a second to import.
        from hamr_lib.render.viewer3d import Scene, write_html

        scene = Scene(self.faces)
        scene.show(self.vertices, self.joints_3d, np.tile(SKIN, (len(self.vertices), 1)))
        scene.show_skeleton(True)
        scene.look_at(self.vertices)
        write_html(path, scene.plot, f"A {self.side} hand, recovered by HAMR")


def hand_stems(stem, count):
    """What the files of a photo's hands are called, without their endings."""
    return [stem, *(f"{stem}_hand{i}" for i in range(2, count + 1))]


def save_photo(recoveries, folder, stem, overlay_kind="all", html=True):
    """Write the files of all hands of a photo: all of them, or none.

    Args:
        recoveries: the photo's, in the order of their names: `stem`, `stem_hand2`, ...
        folder, stem, html: as in `Recovery.save`.
        overlay_kind: "none"; "all", one picture `<stem>_overlay.png` of all hands; or "each", that
            one and `<stem>_hand<i>_overlay.png` of each hand.

    Returns:
        The paths.
    """
    plain_name("stem", stem)
    with whole_set(folder) as (aside, paths):
        if overlay_kind != "none":
            Image.fromarray(overlay(recoveries)).save(aside / f"{stem}_overlay.png")
        for i, recovery in enumerate(recoveries, start=1):
            if overlay_kind == "each":
                picture = Image.fromarray(recovery.overlay())
                picture.save(aside / f"{stem}_hand{i}_overlay.png")
        for recovery, name in zip(recoveries, hand_stems(stem, len(recoveries)), strict=True):
            recovery.write(aside, name, html)
    return paths


def overlay(recoveries, photo=None):
    """Draw meshes and joints over their photo.

    Args:
        recoveries: the hands of one photo, at least one unless there is a photo.
        photo: (H, W, 3) uint8; None takes that of the first hand.

    Returns:
        (h, w, 3) uint8, at most `OVERLAY` pixels a side.
    """
    photo = recoveries[0].photo if photo is None else photo
    height, width = photo.shape[:2]
    k = min(1.0, OVERLAY / max(height, width))
    shape = (max(1, round(k * height)), max(1, round(k * width)))
    picture = cv2.resize(photo, shape[::-1], interpolation=cv2.INTER_AREA) if k < 1 else photo
    for recovery in recoveries:
        camera = recovery.weak_camera(shape)
        mesh = render(
            recovery.vertices, recovery.faces, camera, shape, SKIN, background=picture / 255
        ).colour
        # The hand shows through, so that one sees how well the mesh lies on it.
        mesh = (255 * mesh).round().astype(np.uint8)
        picture = cv2.addWeighted(picture, 0.25, mesh, 0.75, 0)
    for recovery in recoveries:
        joints = recovery.joints_2d * k + (k - 1) / 2
        picture = draw_skeleton(picture, joints, max(1, round(np.ptp(joints, axis=0).max() / 80)))
    return picture


def write_mesh(path, mesh, name="hand"):
    """Write a mesh as OBJ, PLY or GLB, aside and renamed.

    Vertices are in metres of the camera's frame in all three. In a GLB they are those of a node
    that turns them upright as glTF's own frame (y up) asks; it has normals and a skin's material.

    Args:
        path: ends in .obj, .ply or .glb.
        mesh: `trimesh.Trimesh`.
        name: of the mesh and its node in a GLB.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind == "glb":
        mesh = mesh.copy()
        colour = [*(round(255 * value) for value in SKIN), 255]
        mesh.visual = trimesh.visual.TextureVisuals(
            material=trimesh.visual.material.PBRMaterial(
                name="skin", baseColorFactor=colour, metallicFactor=0.0, roughnessFactor=0.7
            )
        )
        scene = trimesh.Scene()
        scene.add_geometry(mesh, node_name=name, geom_name=name, transform=TO_VIEWER)
        data = scene.export(file_type="glb", include_normals=True)
    elif kind == "ply":
        data = mesh.export(file_type="ply")
    elif kind == "obj":
        data = mesh.export(file_type="obj", digits=7, include_normals=False).encode()
    else:
        raise HamrError(f"{path}: expected a name that ends in .obj, .ply or .glb")
    with write_aside(path) as aside:
        aside.write_bytes(data)
