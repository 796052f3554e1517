"""RHD, the Rendered Hand-pose Dataset (Zimmermann and Brox, ICCV 2017), read and written.

    RHD_published_v2/{training,evaluation}/color/00000.png   RGB
                                          /mask/00000.png    part of each pixel, see `PARTS`
                                          /depth/00000.png   metres in two bytes, see `decode_depth`
                                          /anno_{training,evaluation}.pickle

The pickle maps an index to `uv_vis` (42, 3): pixels and whether the joint is visible; `xyz`
(42, 3): metres, camera frame; and `K` (3, 3). Joints 0-20 are the left hand, 21-41 the right;
within a hand the wrist, then thumb to little finger, each from *tip to base*.
"""

import pickle
from pathlib import Path

import numpy as np

from hamr_lib.camera import project_pinhole
from hamr_lib.data.frame import Frame, Frames, list_images, read_image, write_image
from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside
from hamr_lib.hand.pickles import load_pickle
from hamr_lib.joints import BONES, FINGERS, FROM_RHD, MIDDLE_MCP, NUM_JOINTS, WRIST

FOLDER = "RHD_published_v2"
SPLITS = {"training": 41258, "evaluation": 2728}  # images as published
MAX_DEPTH = 5.0  # metres, of the two depth bytes' full scale

# The id of each pixel in `mask/`: 0 background, 1 person, then per hand the parts of the thumb to
# the little finger, each from tip to base, and the palm.
HAND_PARTS = tuple((finger, part) for finger in FINGERS for part in ("tip", "middle", "base"))
HAND_PARTS += (("palm", "palm"),)
FIRST_PART = {"left": 2, "right": 2 + len(HAND_PARTS)}  # 2-17 left, 18-33 right
LAST_PART = FIRST_PART["right"] + len(HAND_PARTS) - 1
_SHAPES = {"uv_vis": (2 * NUM_JOINTS, 3), "xyz": (2 * NUM_JOINTS, 3), "K": (3, 3)}


class RHD(Frames):
    """RHD's frames: the hand with more mask pixels is the sample's, left only if strictly more.

    Args:
        root: the folder that holds `RHD_published_v2`.
        split: "training" or "evaluation".
        mask: where the hand's mask is read from: "mask", the part ids; or "depth", the depth map
            (see `mask_from_depth`), as the paper parsed it.

    Raises:
        HamrError: for a folder or key that is missing, labels of a wrong shape or NaN, or other
            numbers of images than of labels; and, on reading a sample, for an unreadable image.
    """

    def __init__(self, root, split, mask="mask"):
        if split not in SPLITS:
            raise HamrError(f"split={split!r}; expected one of {', '.join(SPLITS)}")
        if mask not in ("mask", "depth"):
            raise HamrError(f"mask={mask!r}; expected mask or depth")
        super().__init__(split_folder(root, split))
        self.split, self.mask = split, mask
        labels = read_annotations(annotation_path(root, split))
        self.ids, self.uv_vis, self.xyz, self.K = labels
        for name in ("color", "mask", "depth") if mask == "depth" else ("color", "mask"):
            count = len(list_images(self.root / name))
            if count != len(self.ids):
                raise HamrError(
                    f"{self.root / name} has {count} images, but the annotations are for "
                    f"{len(self.ids)}"
                )

    def __len__(self):
        return len(self.ids)

    def _image_and_masks(self, index):
        """The image (H, W, 3) and, by side, the pixels (H, W) bool of each hand."""
        name = f"{self.ids[index]:05d}.png"
        image = read_image(self.root / "color" / name)
        parts = read_image(self.root / "mask" / name, "L")
        if parts.shape != image.shape[:2]:
            raise HamrError(f"{name}: a mask of {parts.shape} for an image of {image.shape[:2]}")
        if parts.max() > LAST_PART:
            raise HamrError(f"mask/{name} holds part {parts.max()}; expected 0 to {LAST_PART}")
        return image, {
            side: (parts >= first) & (parts < first + len(HAND_PARTS))
            for side, first in FIRST_PART.items()
        }

    def frame(self, index: int) -> Frame:
        image, masks = self._image_and_masks(index)
        side = "left" if masks["left"].sum() > masks["right"].sum() else "right"
        joints = np.array(FROM_RHD) + (0 if side == "left" else NUM_JOINTS)
        joints_3d, K = self.xyz[index, joints], self.K[index]
        mask = masks[side]
        if self.mask == "depth":
            path = self.root / "depth" / f"{self.ids[index]:05d}.png"
            depth = decode_depth(read_image(path))
            mask = mask_from_depth(depth, joints_3d, K)
        joints_2d, visible = self.uv_vis[index, joints, :2], self.uv_vis[index, joints, 2] == 1
        key = f"{self.split}/{self.ids[index]:05d}"
        return Frame(image, side, joints_3d, joints_2d, K, mask, key, visible)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split below the folder that holds `RHD_published_v2`."""
    return Path(root) / FOLDER / split


def annotation_path(root: Path, split: str) -> Path:
    """The annotations of a split."""
    return split_folder(root, split) / f"anno_{split}.pickle"


def read_annotations(path: Path) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Read and check an annotation pickle.

    Returns:
        ids: list of N int, in order. uv_vis (N, 42, 3), xyz (N, 42, 3) metres and K (N, 3, 3),
        float32, joints in RHD's own order.
    """
    annotations = load_pickle(path)
    if not isinstance(annotations, dict):
        raise HamrError(f"{path}: expected a dict by image index, got {type(annotations).__name__}")
    if not annotations:
        raise HamrError(f"{path} holds no annotations")
    if not all(type(key) is int and 0 <= key < 100_000 for key in annotations):
        raise HamrError(f"{path}: expected a dict by image index, 0 to 99999")
    ids = sorted(annotations)
    columns = {key: np.empty((len(ids), *shape), np.float32) for key, shape in _SHAPES.items()}
    for row, index in enumerate(ids):
        for key, shape in _SHAPES.items():
            columns[key][row] = _numbers(
                annotations[index], key, shape, f"{path}: annotation {index}"
            )
    K = columns["K"]
    bad = (K[:, 0, 0] <= 0) | (K[:, 1, 1] <= 0) | (K[:, 2] != (0, 0, 1)).any(1)
    if bad.any():
        first = int(np.argmax(bad))
        raise HamrError(
            f"{path}: annotation {ids[first]}: expected K with positive focal lengths and the last "
            f"row 0, 0, 1, got {K[first].tolist()}"
        )
    return ids, *columns.values()


def _numbers(annotation, key, shape, where):
    """One array of an annotation, checked to be finite numbers of this shape."""
    if not isinstance(annotation, dict) or key not in annotation:
        raise HamrError(f"{where} has no {key!r}")
    value = annotation[key]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise HamrError(f"{where}: {key} is {kind}, expected an array of numbers")
    if value.shape != shape:
        raise HamrError(f"{where}: {key} has shape {value.shape}, expected {shape}")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise HamrError(f"{where}: {key} holds NaN or infinity")
    return value


def decode_depth(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB of `depth/` -> (H, W) float32 metres: (red * 256 + green) / 65535 * 5."""
    value = pixels[..., 0].astype(np.float32) * 256 + pixels[..., 1]
    return value * np.float32(MAX_DEPTH / 65535)


def encode_depth(depth: np.ndarray) -> np.ndarray:
    """The inverse of `decode_depth`; what is farther than 5 m is written as 5 m."""
    value = np.rint(np.clip(depth, 0, MAX_DEPTH) * (65535 / MAX_DEPTH)).astype(np.uint16)
    return np.dstack([value >> 8, value & 255, np.zeros_like(value)]).astype(np.uint8)


def mask_from_depth(depth: np.ndarray, joints_3d: np.ndarray, K: np.ndarray) -> np.ndarray:
    """The hand's pixels, parsed from the depth map as the paper does (Section 4.1).

    The paper does not give its rule; ours: a pixel belongs to the hand if its point in space is
    near the hand's skeleton: within 0.3 of the length from wrist to middle MCP (about 28 mm on an
    adult) of a bone of the palm, or 0.17 (16 mm) of a bone of a finger.

    Args:
        depth: (H, W) metres along the optical axis.
        joints_3d: (21, 3) metres, camera frame.
        K: (3, 3) intrinsics.

    Returns:
        (H, W) bool.
    """
    size = np.linalg.norm(joints_3d[MIDDLE_MCP] - joints_3d[WRIST])
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]]
    near = np.abs(depth - np.median(joints_3d[:, 2])) < 4 * size  # spares most of the work below
    rays = np.stack([u[near], v[near], np.ones(near.sum())], -1) @ np.linalg.inv(K).T
    points = rays * depth[near][:, None]
    inside = np.zeros(len(points), bool)
    for parent, child in BONES:
        start, bone = joints_3d[parent], joints_3d[child] - joints_3d[parent]
        along = np.clip((points - start) @ bone / (bone @ bone), 0, 1)
        distance = np.linalg.norm(points - start - along[:, None] * bone, axis=1)
        inside |= distance < (0.3 if parent == WRIST else 0.17) * size
    mask = np.zeros(depth.shape, bool)
    mask[near] = inside
    return mask


def part_id(side: str, finger: str, part: str = "palm") -> int:
    """The id of a part in `mask/`: ("left", "thumb", "tip") is 2, ("left", "palm") is 17."""
    return FIRST_PART[side] + HAND_PARTS.index((finger, part))


def annotation(joints_3d: np.ndarray, K: np.ndarray, visible: np.ndarray) -> dict[str, np.ndarray]:
    """One image's annotation, from joints in our order.

    Args:
        joints_3d: (2, 21, 3) metres, camera frame: the left hand, then the right.
        K: (3, 3) intrinsics.
        visible: (2, 21) bool.
    """
    xyz = np.asarray(joints_3d, float)[:, FROM_RHD].reshape(-1, 3)
    uv = project_pinhole(xyz, np.asarray(K, float))
    uv_vis = np.column_stack([uv, np.asarray(visible)[:, FROM_RHD].ravel()])
    values = {"uv_vis": uv_vis, "xyz": xyz, "K": K}
    return {key: np.asarray(value, np.float32) for key, value in values.items()}


def write_sample(
    root: Path, split: str, index: int, image: np.ndarray, parts: np.ndarray, depth: np.ndarray
) -> None:
    """Write the three images of a sample; `color/` comes last, so that it says the sample is whole.

    Args:
        image: (H, W, 3) uint8 RGB.
        parts: (H, W) uint8 ids, see `part_id`.
        depth: (H, W) metres along the optical axis.
    """
    folder, name = split_folder(root, split), f"{index:05d}.png"
    write_image(folder / "mask" / name, parts)
    write_image(folder / "depth" / name, encode_depth(depth))
    write_image(folder / "color" / name, image)


def write_annotations(root: Path, split: str, annotations: dict[int, dict]) -> None:
    """Write {index: `annotation(...)`} of a split."""
    with write_aside(annotation_path(root, split)) as aside:
        aside.write_bytes(pickle.dumps(dict(sorted(annotations.items())), protocol=4))
