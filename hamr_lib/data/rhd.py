"""RHD, the Rendered Hand-pose Dataset (Zimmermann and Brox, ICCV 2017), read and written.

    RHD_published_v2/{training,evaluation}/color/00000.png   RGB
                                          /mask/00000.png    part of each pixel, see `part_id`
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
from hamr_lib.errors import HamrError, one_of
from hamr_lib.files import numbers, write_aside
from hamr_lib.hand.pickles import load_pickle
from hamr_lib.joints import BONES, FINGERS, FROM_RHD, MIDDLE_MCP, NUM_JOINTS, WRIST

# Images as published.
SPLITS = {"training": {"training": 41258}, "evaluation": {"evaluation": 2728}}
MAX_DEPTH = 5.0  # metres, of the two depth bytes' full scale
# The id of each pixel in `mask/`: 0 background, 1 person, then per hand the parts of the thumb to
# the little finger, each from tip to base, and the palm: 2-17 left, 18-33 right.
HAND_PARTS = tuple((finger, part) for finger in FINGERS for part in ("tip", "middle", "base"))
HAND_PARTS += (("palm", "palm"),)
FIRST_PART = {"left": 2, "right": 18}
LAST_PART = 33
_SHAPES = {"uv_vis": (2 * NUM_JOINTS, 3), "xyz": (2 * NUM_JOINTS, 3), "K": (3, 3)}


class RHD(Frames):
    """RHD's frames: the hand with more mask pixels is the sample's, left only if strictly more.

    Args:
        root: the folder that holds `RHD_published_v2`.
        split: "training" or "evaluation".
        mask: where the hand's mask is read from: "mask", the part ids; or "depth", the depth map
            (see `mask_from_depth`), as the paper parsed it.
    """

    def __init__(self, root: Path, split: str, mask: str = "mask"):
        one_of("split", split, SPLITS)
        one_of("mask", mask, ("mask", "depth"))
        folder, self.mask = split_folder(root, split), mask
        ids, self.uv_vis, self.xyz, self.Ks = read_annotations(annotation_path(root, split))
        for name in dict.fromkeys(("color", "mask", mask)):
            list_images(folder / name / "*.png", len(ids))
        paths = [folder / "color" / f"{i:05d}.png" for i in ids]
        super().__init__(folder, paths, [f"{split}/{path.stem}" for path in paths])

    def frame(self, index: int) -> Frame:
        """Read one frame."""
        name = self.paths[index].name
        image, parts = read_image(self.paths[index]), read_image(self.root / "mask" / name, "L")
        if parts.shape != image.shape[:2] or parts.max() > LAST_PART:
            raise HamrError(
                f"mask/{name} is {parts.shape} of ids up to {parts.max()}; expected "
                f"{image.shape[:2]}, 0 to {LAST_PART}"
            )
        masks = {s: (parts >= i) & (parts < i + len(HAND_PARTS)) for s, i in FIRST_PART.items()}
        side = "left" if masks["left"].sum() > masks["right"].sum() else "right"
        joints = np.array(FROM_RHD) + (0 if side == "left" else NUM_JOINTS)
        joints_3d, K, mask = self.xyz[index, joints], self.Ks[index], masks[side]
        if self.mask == "depth":
            depth = decode_depth(read_image(self.root / "depth" / name))
            mask = mask_from_depth(depth, joints_3d, K)
        joints_2d, visible = self.uv_vis[index, joints, :2], self.uv_vis[index, joints, 2] == 1
        return Frame(image, side, joints_3d, joints_2d, K, mask, self.keys[index], visible)

    def reprojection(self) -> np.ndarray:
        """Measure the pixels between projected 3-D and 2-D labels, of all joints."""
        uv = [project_pinhole(xyz, K) for xyz, K in zip(self.xyz, self.Ks, strict=True)]
        return np.linalg.norm(np.array(uv) - self.uv_vis[..., :2], axis=-1).ravel()


def split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split below the folder that holds `RHD_published_v2`."""
    return Path(root) / "RHD_published_v2" / split


def annotation_path(root: Path, split: str) -> Path:
    """Return the path of a split's annotations."""
    return split_folder(root, split) / f"anno_{split}.pickle"


def files(root: Path, split: str, camera: str = "") -> tuple[Path, list[Path]]:
    """Return the path of a split's labels, and the patterns of its images."""
    folder = split_folder(root, split)
    return annotation_path(root, split), [folder / n / "*.png" for n in ("color", "mask", "depth")]


def read_annotations(path: Path) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Read and check an annotation pickle: N ids in order, and what they have, as float32.

    That is uv_vis (N, 42, 3), xyz (N, 42, 3) metres and K (N, 3, 3), joints in RHD's own order.
    """
    annotations = load_pickle(path)
    keys = list(annotations) if isinstance(annotations, dict) else []
    if not keys or not all(type(key) is int and 0 <= key < 100_000 for key in keys):
        raise HamrError(f"{path}: expected a dict of annotations by image index, 0 to 99999")
    ids = sorted(annotations)
    columns = {key: np.empty((len(ids), *shape), np.float32) for key, shape in _SHAPES.items()}
    for row, index in enumerate(ids):
        found = annotations[index] if isinstance(annotations[index], dict) else {}
        for key, shape in _SHAPES.items():
            where = f"{path}: annotation {index}: {key}"
            columns[key][row] = numbers(where, found.get(key), shape, largest=1e30)
    for index, K in zip(ids, columns["K"], strict=True):
        if K[0, 0] <= 0 or K[1, 1] <= 0 or (K[2] != (0, 0, 1)).any():
            raise HamrError(
                f"{path}: annotation {index}: K: expected positive focal lengths and the last row "
                f"0, 0, 1, got {K.tolist()}"
            )
    return ids, *columns.values()


def decode_depth(pixels: np.ndarray) -> np.ndarray:
    """Decode (H, W, 3) uint8 RGB to (H, W) float32 metres: (red * 256 + green) / 65535 * 5."""
    value = pixels[..., 0].astype(np.float32) * 256 + pixels[..., 1]
    return value * np.float32(MAX_DEPTH / 65535)


def encode_depth(depth: np.ndarray) -> np.ndarray:
    """Invert `decode_depth`; what is farther than 5 m is written as 5 m."""
    value = np.rint(np.clip(depth, 0, MAX_DEPTH) * (65535 / MAX_DEPTH)).astype(np.uint16)
    return np.dstack([value >> 8, value & 255, np.zeros_like(value)]).astype(np.uint8)


def mask_from_depth(depth: np.ndarray, joints_3d: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Parse the hand's pixels (H, W) bool from depth (H, W) in metres, as in Section 4.1.

    The paper does not give its rule. Ours: a pixel belongs to the hand if its point in space lies
    within 0.3 of the length from wrist to middle MCP (about 28 mm on an adult) of a bone of the
    palm, or 0.17 (16 mm) of a bone of a finger.
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
    """Return the id of a part in `mask/`: ("left", "thumb", "tip") is 2, ("left", "palm") is 17."""
    return FIRST_PART[side] + HAND_PARTS.index((finger, part))


def annotation(joints_3d: np.ndarray, K: np.ndarray, visible: np.ndarray) -> dict[str, np.ndarray]:
    """Make an image's annotation of joints (2, 21, 3), metres, and visible (2, 21): left, right."""
    xyz = np.asarray(joints_3d, float)[:, FROM_RHD].reshape(-1, 3)
    uv = project_pinhole(xyz, np.asarray(K, float))
    uv_vis = np.column_stack([uv, np.asarray(visible)[:, FROM_RHD].ravel()])
    values = {"uv_vis": uv_vis, "xyz": xyz, "K": K}
    return {key: np.asarray(value, np.float32) for key, value in values.items()}


def write_sample(
    root: Path, split: str, index: int, image: np.ndarray, parts: np.ndarray, depth: np.ndarray
) -> None:
    """Write image (H, W, 3), part ids (H, W) and depth (H, W) in metres, the image last."""
    pictures = {"mask": parts, "depth": encode_depth(depth), "color": image}
    for name, pixels in pictures.items():
        write_image(split_folder(root, split) / name / f"{index:05d}.png", pixels)


def write_annotations(root: Path, split: str, annotations: dict[int, dict]) -> None:
    """Write {index: `annotation(...)`} of a split."""
    with write_aside(annotation_path(root, split)) as aside:
        aside.write_bytes(pickle.dumps(dict(sorted(annotations.items())), protocol=4))
