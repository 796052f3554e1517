"""Measure the hands of a set: the numbers behind the distributions of `01_data`."""

import numpy as np

from hamr_lib.data.crops import Crops
from hamr_lib.joints import BONES, MIDDLE_MCP, TIPS


def statistics(crops: Crops, images: int = 1000) -> dict[str, np.ndarray]:
    """Measure distance, size, bend, view and lightness (of at most so many images) of a set.

    Returns:
        {measure with its unit: (n,) numbers}, over the samples that have the labels for it: a mask
        for the lightness, the wrist for all others but the side of the crop.
    """
    labels = crops.labels
    whole = labels["has_root"] & labels["valid_3d"].all(1)
    joints, root = labels["joints_3d"][whole], labels["root"][whole]
    bones = np.stack([joints[:, child] - joints[:, parent] for parent, child in BONES], axis=1)
    fingers = np.linalg.norm(bones, axis=-1).reshape(-1, 5, 4)[:, 1:, 1:].sum(2)  # beyond the palm
    tips, bases = joints[:, TIPS[1:]], joints[:, [tip - 3 for tip in TIPS[1:]]]
    reach = np.linalg.norm(tips - bases, axis=-1) / fingers.clip(1e-9)
    # Out of the palm of a right hand: from the wrist, the index is to the little finger's left.
    index, little = joints[:, TIPS[1] - 3], joints[:, TIPS[4] - 3]
    palm, sight = np.cross(index, little), -root
    cosine = (palm * sight).sum(1) / (np.linalg.norm(palm, axis=1) * np.linalg.norm(sight, axis=1))
    along = joints[:, MIDDLE_MCP]

    masked = np.flatnonzero(labels["has_mask"])
    masked = masked[np.linspace(0, len(masked) - 1, min(images, len(masked))).astype(int)]
    lightness = []
    for start in range(0, len(masked), 100):
        batch = crops.batch(masked[start : start + 100])
        red, green, blue = batch["image"].float().unbind(1)
        grey, weight = 0.299 * red + 0.587 * green + 0.114 * blue, batch["mask"].float()
        lightness.append((grey * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1))
    return {
        "distance of the hand (m)": np.linalg.norm(root, axis=1),
        "side of the crop in the photo (px)": labels["side"],
        "wrist to middle knuckle (mm)": 1000 * np.linalg.norm(along, axis=1),
        "how straight the fingers are (1: stretched)": reach.mean(1),
        "palm's turn from the camera (degrees)": np.degrees(np.arccos(cosine.clip(-1, 1))),
        "direction of the hand in the image (degrees)": np.degrees(
            np.arctan2(along[:, 0], -along[:, 1])
        ),
        "lightness of the hand (0-255)": np.concatenate(lightness) if lightness else np.zeros(0),
    }
