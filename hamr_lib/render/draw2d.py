"""Draw skeletons on images, and sheets of many small images."""

import cv2
import numpy as np

from hamr_lib.joints import BONES, FINGERS

# Okabe and Ito's palette for colour-blind readers: one colour for each finger.
_COLOURS = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167)
FINGER_COLOURS = dict(zip(FINGERS, _COLOURS, strict=True))
_SUBPIXEL = 4  # bits after the point in OpenCV's fixed-point coordinates


def draw_skeleton(image: np.ndarray, joints_2d: np.ndarray, thickness: int = 2) -> np.ndarray:
    """Draw 21 joints over a copy of an image (H, W, 3) uint8 RGB.

    Joints (21, 2) and thickness are in pixels; joints that are NaN and their bones are left out.
    """
    image = np.ascontiguousarray(image).copy()
    # Labels far outside would overflow OpenCV's integers, and would not be seen anyway.
    points = np.clip(np.asarray(joints_2d, float), -1e4, 1e4)
    seen = np.isfinite(points).all(1)
    fixed = np.rint(np.where(seen[:, None], points, 0) * 2**_SUBPIXEL).astype(int).tolist()
    colours = [(255, 255, 255), *(FINGER_COLOURS[f] for f in FINGERS for _ in range(4))]
    smooth = {"lineType": cv2.LINE_AA, "shift": _SUBPIXEL}
    for parent, child in BONES:
        if seen[parent] and seen[child]:
            cv2.line(image, fixed[parent], fixed[child], colours[child], thickness, **smooth)
    for joint in np.flatnonzero(seen):
        radius = (thickness + 1) << _SUBPIXEL
        cv2.circle(image, fixed[joint], radius, (0, 0, 0), -1, **smooth)
        cv2.circle(image, fixed[joint], radius * 2 // 3, colours[joint], -1, **smooth)
    return image


def contact_sheet(images, columns: int = 8, size: int = 160) -> np.ndarray:
    """Lay images (H, W, 3) uint8 out in rows on white, each in a square of `size` pixels."""
    rows = -(-len(images) // columns)
    sheet = np.full((rows * size, columns * size, 3), 255, np.uint8)
    for i, image in enumerate(images):
        small = fit(image, size)
        top, left = i // columns * size, i % columns * size
        sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
    return sheet


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Scale (H, W, 3) uint8 so that its longer side has `size` pixels."""
    scale = size / max(image.shape[:2])
    height, width = (max(1, round(scale * n)) for n in image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)
