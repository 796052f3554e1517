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

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import scipy.io

from hamr_lib.data.frame import Frames, write_image
from hamr_lib.errors import HamrError, one_of
from hamr_lib.files import numbers, read_bytes, write_aside
from hamr_lib.joints import FROM_STB, MIDDLE_MCP, NUM_JOINTS, RING_MCP, TO_STB, WRIST

# Frames as published.
SPLITS = {
    split: {f"B{b}{kind}": 1500 for b in backgrounds for kind in ("Counting", "Random")}
    for split, backgrounds in {"training": range(2, 7), "evaluation": (1,)}.items()
}
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
# Types of elements in a MATLAB 5 file.
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8",
            12: "<i8", 13: "<u8"}  # fmt: skip
_MATRIX, _COMPRESSED = 14, 15
_LARGEST = 1 << 25  # bytes of a file, and of what is unpacked from it; STB's have 756 KB


class STB(Frames):
    """STB's images, in the order of `SPLITS`; of BB, each left one is followed by its right one.

    Args:
        root: the folder that holds `images` and `labels`.
        split: "training" or "evaluation".
        root_shift: a key of `ROOT_SHIFTS`.
        camera: "SK" or "BB".
    """

    def __init__(self, root: Path, split: str, root_shift: str = "ring", camera: str = "SK"):
        one_of("split", split, SPLITS)
        one_of("root_shift", root_shift, ROOT_SHIFTS)
        one_of("camera", camera, IMAGES)
        labels = {name: read_labels(root, name, camera) for name in SPLITS[split]}
        joints = palm_to_wrist(np.concatenate(list(labels.values())), root_shift)
        views = [joints - (BASELINE_BB * view, 0, 0) for view in range(len(IMAGES[camera]))]
        joints_3d = np.stack(views, axis=1).reshape(-1, NUM_JOINTS, 3).astype(np.float32)
        counts = {name: len(label) for name, label in labels.items()}
        keys = [
            f"{s}/{im}_{i}" for s, n in counts.items() for i in range(n) for im in IMAGES[camera]
        ]
        paths = [Path(root) / "images" / f"{key}.png" for key in keys]
        super().__init__(root, paths, keys, joints_3d, K_SK if camera == "SK" else K_BB)


def label_path(root: Path, sequence: str, camera: str = "SK") -> Path:
    """Return the path of a sequence's labels."""
    return Path(root) / "labels" / f"{sequence}_{camera}.mat"


def files(root: Path, sequence: str, camera: str) -> tuple[Path, list[Path]]:
    """Return the path of a sequence's labels, and the patterns of its images."""
    folder = Path(root) / "images" / sequence
    return label_path(root, sequence, camera), [folder / f"{n}_*.png" for n in IMAGES[camera]]


def read_labels(root: Path, sequence: str, camera: str = "SK") -> np.ndarray:
    """Read joints (frames, 21, 3): metres, frame of the images' camera; joint 0 is the palm's."""
    path = label_path(root, sequence, camera)
    raw = numbers(f"{path}: handPara", read_mat(path, "handPara"), (3, NUM_JOINTS, None))
    points = raw.transpose(2, 1, 0)[:, FROM_STB]
    return ((points - T_SK) @ R_SK if camera == "SK" else points) / 1000


def read_mat(path: Path, name: str) -> np.ndarray:
    """Read the real numeric array `name` of a MATLAB 5 file as float64, in the file's shape.

    SciPy's reader can end the process on a damaged file (a segmentation fault where a tag's type is
    unknown). This one checks each tag and size before it uses them, and reads nothing but numbers.
    """
    content, left = read_bytes(path, _LARGEST), _LARGEST
    try:
        if content[126:128] != b"IM":
            raise ValueError("it has no little-endian header")
        rest = memoryview(content)[128:]
        while rest:
            kind, body, rest = _element(rest, align=1)
            if kind == _COMPRESSED:
                unpacked = zlib.decompressobj().decompress(body, left)
                left -= len(unpacked)
                if left < 1:
                    raise ValueError(f"it unpacks to more than {_LARGEST} bytes")
                kind, body, _ = _element(memoryview(unpacked), align=1)
            if kind != _MATRIX:
                raise ValueError(f"element of type {kind}")
            _, flags, body = _element(body)
            _, shape, body = _element(body)
            _, label, body = _element(body)
            if label == name.encode():
                break
        else:
            raise ValueError(f"it has no {name!r}")
        if not 6 <= flags[0] <= 15 or flags[1] & 8:
            raise ValueError(f"{name} holds no real numbers")
        kind, data, _ = _element(body)
        values = np.frombuffer(data, _NUMBERS[kind]).astype(float)
        return values.reshape(np.frombuffer(shape, "<i4"), order="F")
    except (ValueError, LookupError, struct.error, zlib.error, OverflowError) as error:
        raise HamrError(f"{path} is not a readable MATLAB 5 file: {error}") from error


def _element(content, align=8):
    """Split off the first element: (type, body, what follows)."""
    kind, size = struct.unpack_from("<II", content)
    start, end = 8, 8 + size + -size % align
    if kind >> 16:  # a small element: size and type share four bytes
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
    if start + size > min(end, len(content)):
        raise ValueError(f"element of {size} bytes, {len(content) - start} are left")
    return kind, content[start : start + size], content[end:]


def palm_to_wrist(joints: np.ndarray, root_shift: str) -> np.ndarray:
    """Put a wrist in the place of the palm's centre, joint 0 of (..., 21, 3)."""
    anchor, times = ROOT_SHIFTS[root_shift]
    joints = joints.copy()
    base = joints[..., anchor, :]
    joints[..., WRIST, :] = base + times * (joints[..., WRIST, :] - base)
    return joints


def write_color(root: Path, sequence: str, index: int, image: np.ndarray) -> None:
    """Write one SK colour image, (480, 640, 3) uint8 RGB."""
    write_image(Path(root) / "images" / sequence / f"SK_color_{index}.png", image)


def write_labels(root: Path, sequence: str, joints_3d: np.ndarray) -> None:
    """Write a sequence's SK labels, of joints (frames, 21, 3) in metres, SK's colour camera.

    The palm is put where the root shift "ring" finds the wrist, joint 0, again.
    """
    joints = np.array(joints_3d, float)
    joints[:, WRIST] = (joints[:, WRIST] + joints[:, RING_MCP]) / 2
    raw = (joints * 1000 @ R_SK.T + T_SK)[:, TO_STB].transpose(2, 1, 0)
    with write_aside(label_path(root, sequence)) as aside:
        scipy.io.savemat(aside, {"handPara": raw})
        # SciPy puts the time into the file's free text; the same labels shall be the same bytes.
        with open(aside, "r+b") as file:
            file.write(b"MATLAB 5.0 MAT-file, written by hamr_lib".ljust(116))
