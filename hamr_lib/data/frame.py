"""One labelled photograph, whatever file format it came from, and reading and writing images."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from hamr_lib.camera import project_pinhole
from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside

FORMATS = ("PNG", "BMP", "JPEG")  # of the data sets; no other decoder sees a file


@dataclass(eq=False)
class Frame:
    """One hand in one image. Joints in the order of `joints.NAMES`; a missing label is NaN."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    side: str  # "left" or "right"
    joints_3d: np.ndarray  # (21, 3) float32 metres, camera frame: x right, y down, z away
    joints_2d: np.ndarray  # (21, 2) float32 pixels
    K: np.ndarray  # (3, 3) float32 intrinsics of this image
    mask: np.ndarray | None  # (H, W) bool, this hand's pixels; None where a set has no masks
    key: str  # its name within the set, such as "training/00012"
    visible: np.ndarray | None = None  # (21,) bool; None where a set does not say: all labelled


class Frames(Dataset):
    """A data set of `Frame`s; what cannot be read is an error that names the index.

    As it stands, of left hands with 3-D labels alone, (N, 21, 3) float32 metres in the camera's
    frame, under the intrinsics K (3, 3). A reader of more overrides `frame`.
    """

    skipped = 0  # frames of the set that are left out

    def __init__(self, root, paths, keys, joints_3d=None, K=None):
        self.root, self.paths, self.keys = Path(root), paths, keys
        self.joints_3d, self.K = joints_3d, K

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {self.root}, which has {len(self)}")
        try:
            return self.frame(index)
        except HamrError as error:
            raise HamrError(f"sample {index} of {self.root}: {error}") from error

    def frame(self, index: int) -> Frame:
        """Read one frame."""
        image, joints_3d = read_image(self.paths[index]), self.joints_3d[index]
        K = self.K.astype(np.float32)
        joints_2d = project_pinhole(joints_3d, K)
        return Frame(image, "left", joints_3d, joints_2d, K, None, self.keys[index])

    def reprojection(self) -> np.ndarray:
        """Measure the pixels between projected 3-D labels and the set's own 2-D ones, if any."""
        return np.empty(0)


def read_image(path: Path, mode: str = "RGB") -> np.ndarray:
    """Decode an image file of `FORMATS`: (H, W, 3) uint8 RGB, or (H, W) uint8 with mode "L"."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return np.array(image.convert(mode))
    except Exception as error:  # what Pillow raises for a broken file is not bounded
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise HamrError(f"cannot read {path}: {reason}; expected {', '.join(FORMATS)}") from error


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB, or (H, W) uint8, as a PNG, whole or not at all."""
    # OpenCV's default PNG settings are its fastest: explicit levels take two to four times longer.
    _, content = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)
    with write_aside(path) as aside:
        content.tofile(aside)


def list_images(pattern: Path, expected: int | None = None) -> list[Path]:
    """List the images of a pattern such as color/*.png by number; there are `expected` labels."""
    paths = [p for p in pattern.parent.glob(pattern.name) if not p.name.startswith(".")]
    if expected not in (None, len(paths)):
        raise HamrError(f"{pattern}: {len(paths)} images, but labels for {expected}")
    return sorted(paths, key=lambda path: (len(path.name), path.name))
