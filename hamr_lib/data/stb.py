"""STB, the Stereo Tracking Benchmark (Zhang et al., ICIP 2017), read and written.

    images/B1Counting/SK_color_0.png   640x480, a depth camera's colour image ("SK")
                     /BB_left_0.png    a stereo pair's images ("BB")
                     /BB_right_0.png
    labels/B1Counting_SK.mat           handPara (3, 21, frames) millimetres
          /B1Counting_BB.mat

Six backgrounds, "Counting" and "Random" each; all left hands. There are 3-D labels only: no masks,
and 2-D is their projection. SK's labels are in the frame of its depth camera, BB's in that of the
left one. Zimmermann & Brox evaluate BB, left and right (6,000 images); others SK. Joints: the
palm's centre, then little, ring, middle, index and thumb, each from base to tip.
"""

from pathlib import Path

import cv2
import numpy as np
import scipy.io

from hamr_lib.camera import project_pinhole
from hamr_lib.data.frame import Frame, Frames, read_image, write_image
from hamr_lib.data.matfile import read_mat
from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside
from hamr_lib.joints import FROM_STB, MIDDLE_MCP, NUM_JOINTS, RING_MCP, TO_STB, WRIST

SPLITS = {
    "training": tuple(f"B{b}{kind}" for b in range(2, 7) for kind in ("Counting", "Random")),
    "evaluation": ("B1Counting", "B1Random"),
}
FRAMES = 1500  # of each sequence as published

K_SK = np.array([[607.92271, 0, 314.78337], [0, 607.88192, 236.42484], [0, 0, 1]])
K_BB = np.array([[822.79041, 0, 318.47345], [0, 822.79041, 250.31296], [0, 0, 1]])
BASELINE_BB = 0.120054  # metres from the stereo pair's left camera to its right
# STB's own text: these take coordinates "relative to color camera to those relative to depth
# camera". So depth = R colour + t, and a label goes the other way, colour = R' (depth - t).
R_SK = cv2.Rodrigues(np.array([0.00531, -0.01196, 0.00301]))[0]
T_SK = np.array([-24.0381, -0.4563, -1.2326])  # millimetres

# How the palm's centre becomes a wrist: a joint, and how many times the way from it to the palm.
# The two that others have published; and the palm as it is, which is no wrist.
ROOT_SHIFTS = {"ring": (RING_MCP, 2.0), "middle": (MIDDLE_MCP, 2.2), "palm": (WRIST, 1.0)}
IMAGES = {"SK": ("SK_color",), "BB": ("BB_left", "BB_right")}  # by camera, per frame


class STB(Frames):
    """STB's images, in the order of `SPLITS`; of BB, each left one is followed by its right one.

    Args:
        root: the folder that holds `images` and `labels`.
        split: "training" or "evaluation".
        root_shift: a key of `ROOT_SHIFTS`.
        camera: "SK" or "BB".

    Raises:
        HamrError: for missing or broken labels or NaN in them; and, on reading, a broken image.
    """

    def __init__(self, root, split, root_shift="ring", camera="SK"):
        if split not in SPLITS:
            raise HamrError(f"split={split!r}; expected one of {', '.join(SPLITS)}")
        if root_shift not in ROOT_SHIFTS:
            raise HamrError(f"root_shift={root_shift!r}; expected one of {', '.join(ROOT_SHIFTS)}")
        if camera not in IMAGES:
            raise HamrError(f"camera={camera!r}; expected one of {', '.join(IMAGES)}")
        super().__init__(root)
        self.camera, self.K = camera, K_SK if camera == "SK" else K_BB
        labels = [read_labels(root, name, camera) for name in SPLITS[split]]
        joints = palm_to_wrist(np.concatenate(labels), root_shift)
        views = [joints - (BASELINE_BB * view, 0, 0) for view in range(len(IMAGES[camera]))]
        self.joints_3d = np.stack(views, axis=1).reshape(-1, NUM_JOINTS, 3).astype(np.float32)
        self.keys = [
            f"{name}/{image}_{i}"
            for name, label in zip(SPLITS[split], labels, strict=True)
            for i in range(len(label))
            for image in IMAGES[camera]
        ]

    def __len__(self):
        return len(self.keys)

    def frame(self, index: int) -> Frame:
        key = self.keys[index]
        image = read_image(self.root / "images" / f"{key}.png")
        joints_3d, K = self.joints_3d[index], self.K.astype(np.float32)
        return Frame(image, "left", joints_3d, project_pinhole(joints_3d, K), K, None, key)


def label_path(root: Path, sequence: str, camera: str = "SK") -> Path:
    """The label file of a sequence."""
    return Path(root) / "labels" / f"{sequence}_{camera}.mat"


def image_path(root: Path, sequence: str, index: int, camera: str = "SK") -> Path:
    """One image of a sequence; of BB, the left one."""
    return Path(root) / "images" / sequence / f"{IMAGES[camera][0]}_{index}.png"


def read_labels(root: Path, sequence: str, camera: str = "SK") -> np.ndarray:
    """(frames, 21, 3) metres in the frame of the camera that took the images; our joint order,
    but joint 0 is still the palm's centre."""
    path = label_path(root, sequence, camera)
    raw = read_mat(path, "handPara")
    if raw.ndim != 3 or raw.shape[:2] != (3, NUM_JOINTS) or not raw.size:
        raise HamrError(f"{path}: handPara has shape {raw.shape}, expected (3, 21, frames)")
    bad = np.flatnonzero(~np.isfinite(raw).all((0, 1)))
    if len(bad):
        raise HamrError(f"{path}: handPara of frame {bad[0]} holds NaN or infinity")
    points = raw.transpose(2, 1, 0)[:, FROM_STB]
    return (depth_to_color(points) if camera == "SK" else points) / 1000


def depth_to_color(points: np.ndarray) -> np.ndarray:
    """(..., 3) millimetres, SK's depth camera -> SK's colour camera."""
    return (points - T_SK) @ R_SK


def color_to_depth(points: np.ndarray) -> np.ndarray:
    """(..., 3) millimetres, SK's colour camera -> SK's depth camera."""
    return points @ R_SK.T + T_SK


def palm_to_wrist(joints: np.ndarray, root_shift: str) -> np.ndarray:
    """(..., 21, 3) whose joint 0 is the palm's centre -> the same with a wrist there."""
    anchor, times = ROOT_SHIFTS[root_shift]
    joints = joints.copy()
    base = joints[..., anchor, :]
    joints[..., WRIST, :] = base + times * (joints[..., WRIST, :] - base)
    return joints


def write_color(root: Path, sequence: str, index: int, image: np.ndarray) -> None:
    """Write one SK colour image, (480, 640, 3) uint8 RGB."""
    write_image(image_path(root, sequence, index), image)


def write_labels(root: Path, sequence: str, joints_3d: np.ndarray) -> None:
    """Write a sequence's SK labels.

    Args:
        joints_3d: (frames, 21, 3) metres in SK's colour camera, our order, joint 0 the wrist. The
            palm is put where the default root shift, "ring", finds exactly this wrist again.
    """
    joints = np.array(joints_3d, float)
    joints[:, WRIST] = (joints[:, WRIST] + joints[:, RING_MCP]) / 2
    raw = color_to_depth(joints * 1000)[:, TO_STB].transpose(2, 1, 0)
    with write_aside(label_path(root, sequence)) as aside:
        scipy.io.savemat(aside, {"handPara": raw})
        # SciPy puts the time into the file's free text; the same labels shall be the same bytes.
        with open(aside, "r+b") as file:
            file.write(b"MATLAB 5.0 MAT-file, written by hamr_lib".ljust(116))
