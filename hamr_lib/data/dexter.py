"""Dexter+Object (Sridhar et al., ECCV 2016), read and written; for evaluation only.

    data/Grasp1/color/Color_0001.bmp       640x480 (any file names; they are taken in order)
               /annotations/Grasp13D.txt   a line a frame: "x, y, z;" for each of the thumb, index,
                                           middle, ring and little fingertip, then of three
                                           corners of the object
               /annotations/Grasp12D.txt   the same as "u, v;" in the depth image (320x240)

Left hands. Positions are millimetres in the depth camera's frame, but with x to the *left* and y
*up*; a tip that could not be labelled has z = 32001, the camera's value for "no depth" (one at or
behind the camera is taken for missing too). The labels are taken to the colour camera by the
calibration that the set comes with.
"""

from pathlib import Path

import numpy as np

from hamr_lib.camera import project_pinhole
from hamr_lib.data.frame import Frames, list_images, write_image
from hamr_lib.errors import HamrError
from hamr_lib.files import numbers, read_bytes, write_text
from hamr_lib.joints import FINGERS, NUM_JOINTS, TIPS

# Images of each sequence as published, 3,145 together; about 3,014 of them are annotated.
SEQUENCES = {"Grasp1": 356, "Grasp2": 648, "Occlusion": 354, "Rigid": 531, "Pinch": 458,
             "Rotate": 798}  # fmt: skip
SPLITS = {"evaluation": SEQUENCES}
MISSING = 32001
K_COLOR = np.array([[587.45209, 0, 325], [0, 600.67456, 249], [0, 0, 1]])
K_DEPTH = np.array([[224.502, 0, 160], [0, 230.494, 120], [0, 0, 1]])
# Depth camera to colour camera, both x right, y down: colour = R depth + t, millimetres.
R_COLOR = np.array([[0.9999, 0.0034, 0.0161], [-0.0033, 1.0, -0.0079], [-0.0162, 0.0079, 0.9998]])
T_COLOR = np.array([19.0473, -1.8514, -4.7501])
_TO_CAMERA = np.array([-1, -1, 1])  # x left, y up <-> x right, y down


class Dexter(Frames):
    """The frames below `root`/data: only fingertips, and of these only the labelled, are not NaN.

    A frame with fewer than two labelled tips is skipped: one tip, aligned by itself, says nothing.
    """

    def __init__(self, root: Path):
        paths, tips = [], []
        for name in SEQUENCES:
            tips.append(read_annotations(root, name))
            paths += list_images(files(root, name)[1][0], len(tips[-1]))
        self.tips = np.concatenate(tips)
        kept = np.flatnonzero(np.isfinite(self.tips).all(2).sum(1) >= 2)
        if not len(kept):
            raise HamrError(f"{root} has no frame with two labelled fingertips")
        self.skipped = len(paths) - len(kept)
        paths = [paths[i] for i in kept]
        joints_3d = np.full((len(kept), NUM_JOINTS, 3), np.nan, np.float32)
        joints_3d[:, TIPS] = (self.tips[kept] @ R_COLOR.T + T_COLOR) / 1000
        keys = [f"{path.parent.parent.name}/{path.stem}" for path in paths]
        super().__init__(root, paths, keys, joints_3d, K_COLOR)

    def reprojection(self) -> np.ndarray:
        """Measure the pixels between projected 3-D and 2-D labels, in the depth image."""
        paths = [annotation_path(self.root, name, "2D") for name in SEQUENCES]
        labels = np.concatenate([_read_lines(path, 2) for path in paths])
        if len(labels) != len(self.tips):
            counts = f"2-D labels of {len(labels)} frames, 3-D ones of {len(self.tips)}"
            raise HamrError(f"{self.root} has {counts}")
        labelled = np.isfinite(self.tips).all(-1)
        uv = project_pinhole(self.tips[labelled], K_DEPTH)
        return np.linalg.norm(uv - labels[labelled], axis=-1)


def annotation_path(root: Path, sequence: str, kind: str = "3D") -> Path:
    """Return the path of a sequence's annotations, `kind` "3D" or "2D"."""
    return Path(root) / "data" / sequence / "annotations" / f"{sequence}{kind}.txt"


def files(root: Path, sequence: str, camera: str = "") -> tuple[Path, list[Path]]:
    """Return the path of a sequence's 3-D labels, and the pattern of its images."""
    return annotation_path(root, sequence), [Path(root) / "data" / sequence / "color" / "*.*"]


def read_annotations(root: Path, sequence: str) -> np.ndarray:
    """Read tips (frames, 5, 3): millimetres, depth camera (x right, y down), NaN where missing."""
    tips = _read_lines(annotation_path(root, sequence), 3)
    tips[(tips[..., 2] <= 0) | (tips[..., 2] == MISSING)] = np.nan
    return tips * _TO_CAMERA


def _read_lines(path, count):
    """Read the fingertips' points of `count` numbers, which come first in each line."""
    rows = []
    for number, line in enumerate(read_bytes(path).decode(errors="replace").splitlines(), 1):
        points = [point.split(",") for point in line.split(";")[: len(FINGERS)]]
        try:
            row = np.array(points, float)
        except ValueError:  # no numbers, or points of other lengths
            row = None
        rows.append(numbers(f"{path}, line {number}", row, (len(FINGERS), count)))
    if not rows:
        raise HamrError(f"{path} is empty")
    return np.array(rows)


def write_color(root: Path, sequence: str, index: int, image: np.ndarray) -> None:
    """Write one colour image, (480, 640, 3) uint8 RGB."""
    write_image(Path(root) / "data" / sequence / "color" / f"image_{index:05d}.png", image)


def write_annotations(root: Path, sequence: str, tips: np.ndarray) -> None:
    """Write 3-D and 2-D labels of tips (frames, 5, 3): metres, colour camera, NaN where missing."""
    points = (np.asarray(tips, float) * 1000 - T_COLOR) @ np.linalg.inv(R_COLOR).T
    missing = np.isnan(points).any(-1, keepdims=True)
    pixels = np.where(missing, -1, project_pinhole(points, K_DEPTH))
    points = np.where(missing, (0, 0, MISSING), points * _TO_CAMERA)
    for kind, values, absent in (("3D", points, (0, 0, MISSING)), ("2D", pixels, (-1, -1))):
        corners = np.broadcast_to(absent, (len(values), 3, len(absent)))  # the object's: not known
        lines = (
            " ".join(", ".join(f"{x:.4f}" for x in point) + ";" for point in frame)
            for frame in np.concatenate([values, corners], axis=1)
        )
        write_text(annotation_path(root, sequence, kind), "\n".join(lines) + "\n")
