"""`Recovery`: the mesh of one hand in a photo, its pictures and its files."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from hamr_lib.data.frame import write_image
from hamr_lib.joints import NAMES
from hamr_lib.recovery.meshfile import SKIN, write_mesh
from hamr_lib.recovery.output import plain_name, whole_set
from hamr_lib.render import rasterize, render
from hamr_lib.render.draw2d import draw_skeleton, fit

OVERLAY = 1600  # pixels of an overlay's longer side at most
PIXELS = "(u, v), u to the right and v down; the centre of the photo's first pixel is (0, 0)"
IN_JSON = ("joints_2d", "joints_3d", "confidence", "camera", "betas", "global_orient", "hand_pose",
           "box", "side", "score", "evidence", "hand", "checkpoint")  # fmt: skip


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
    evidence: str  # "network", "landmarks" or "both": what the mesh was fitted to
    square: tuple[float, float, float]  # centre (u, v) and side, pixels: what the network saw
    joints_3d: np.ndarray  # (21, 3)
    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3) int, counterclockwise seen from outside
    camera: np.ndarray  # (3,) s in pixels a metre, tx and ty in pixels, see `joints_2d`
    # Parameters of `load_hand(hand, side, P)`, whose mesh is `vertices` but for its root. MANO's
    # left hand is not quite its right one mirrored; there they are those of the mirrored right.
    betas: np.ndarray  # (10,)
    global_orient: np.ndarray  # (3,) axis-angle
    hand_pose: np.ndarray  # (P,)
    heatmaps: np.ndarray  # (21, h, h) of the last stack, across `square`
    hand: str  # "open" or "mano"
    checkpoint: str  # path of the network's weights
    photo: np.ndarray = field(repr=False)  # (H, W, 3) uint8 RGB

    @property
    def joints_2d(self) -> np.ndarray:
        """(21, 2) pixels of the photo."""
        return self.camera[0] * self.joints_3d[:, :2] + self.camera[1:]

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """(H, W) bool: the pixels of the photo that the mesh covers."""
        shape = self.photo.shape[:2]
        covered = rasterize(self.vertices, self.faces, self.weak_camera(shape), shape).pixel
        mask = np.zeros(shape, bool)
        mask.flat[covered] = True
        return mask

    def weak_camera(self, shape: tuple[int, int]) -> np.ndarray:
        """Return the camera (3,) in crop units of the photo, drawn at (H, W) = shape.

        A pixel p of the photo is k p + (k - 1) / 2 of a drawing k times as large.
        """
        height, width = shape
        k = width / self.photo.shape[1]
        offset = k * self.camera[1:] + (k - 1) / 2
        middle = (np.array([width, height]) - 1) / 2
        return np.array([k * self.camera[0], *(offset - middle)]) * 2 / width

    def overlay(self) -> np.ndarray:
        """Draw mesh and joints over the photo: (h, w, 3) uint8, at most `OVERLAY` pixels a side."""
        return overlay([self])

    def save(self, folder: str | Path, stem: str, html: bool = True) -> list[Path]:
        """Write the files of this hand alone, as `save_photo` does."""
        return save_photo([self], folder, stem, html=html)

    def save_html(self, path: str | Path) -> None:
        """Write one HTML file that draws the mesh with its joints, without a network."""
        from hamr_lib.render.viewer3d import write_html  # here, as k3d takes long to import

        scene = _scene()
        scene.mesh.indices = self.faces.astype(np.uint32)
        scene.show(self.vertices, self.joints_3d, SKIN)
        scene.look_at(self.vertices)
        write_html(path, scene.plot, f"A {self.side} hand, recovered by HAMR")


@functools.cache  # making it takes as long as the rest
def _scene():
    """A k3d scene of a mesh, whose faces are set later, with its joints."""
    from hamr_lib.render.viewer3d import Scene

    scene = Scene(np.zeros((1, 3)))
    scene.show_skeleton(True)
    return scene


def _json(hand):
    """The numbers of a hand as JSON, in the units of the attributes."""
    values = {name: getattr(hand, name) for name in IN_JSON}
    values |= {k: v.tolist() for k, v in values.items() if isinstance(v, np.ndarray)}
    values |= {"joint_names": NAMES, "photo_size": list(hand.photo.shape[1::-1])}
    return json.dumps(values | {"pixel_convention": PIXELS}, indent=2) + "\n"


def save_photo(
    hands: Sequence[Recovery],
    folder: str | Path,
    stem: str,
    overlay_kind: str = "all",
    html: bool = True,
    keep: set[str] | None = None,
) -> list[Path]:
    """Write the files of all hands of a photo: all of them, or none.

    The first hand's are `<stem>.glb`, `.obj`, `.json` and `.html`, the second's `<stem>_hand2.*`.
    The command's help describes them (`command.RECOVER`).

    Args:
        folder: made if missing.
        stem: start of the files' names; no folder.
        overlay_kind: "none"; "all", one picture `<stem>_overlay.png` of all hands; or "each", that
            one and `<stem>_hand<i>_overlay.png` of each hand.
        html: False leaves that file out.
        keep: as in `whole_set`.

    Returns:
        The paths, sorted.

    Raises:
        HamrError: naming what could not be written.
    """
    plain_name(stem)
    with whole_set(folder, keep) as (aside, paths):
        if overlay_kind != "none":
            write_image(aside / f"{stem}_overlay.png", overlay(hands))
        for i, hand in enumerate(hands, start=1):
            name = stem if i == 1 else f"{stem}_hand{i}"
            if overlay_kind == "each":
                write_image(aside / f"{stem}_hand{i}_overlay.png", hand.overlay())
            for kind in ("glb", "obj"):
                path = aside / f"{name}.{kind}"
                write_mesh(path, hand.vertices, hand.faces, f"{hand.side} hand")
            if html:
                hand.save_html(aside / f"{name}.html")
            (aside / f"{name}.json").write_text(_json(hand))
    return paths


def overlay(hands: Sequence[Recovery], photo: np.ndarray | None = None) -> np.ndarray:
    """Draw meshes and joints over their photo.

    Args:
        hands: of one photo, at least one unless there is a photo.
        photo: (H, W, 3) uint8; None takes that of the first hand.

    Returns:
        (h, w, 3) uint8, at most `OVERLAY` pixels a side.
    """
    photo = hands[0].photo if photo is None else photo
    picture = fit(photo, OVERLAY) if max(photo.shape) > OVERLAY else photo
    shape, k = picture.shape[:2], picture.shape[1] / photo.shape[1]
    for hand in hands:
        camera = hand.weak_camera(shape)
        mesh = render(hand.vertices, hand.faces, camera, shape, SKIN, background=picture / 255)
        # The hand shows through, so that one sees how well the mesh lies on it.
        drawn = (255 * mesh.colour).round().astype(np.uint8)
        picture = cv2.addWeighted(picture, 0.25, drawn, 0.75, 0)
    for hand in hands:
        joints = hand.joints_2d * k + (k - 1) / 2
        picture = draw_skeleton(picture, joints, max(1, round(np.ptp(joints, axis=0).max() / 80)))
    return picture
