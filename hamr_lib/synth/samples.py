"""Supersampling: an image is rasterised at twice its resolution; flat pixels are shaded once."""

import cv2
import numpy as np


def thinned(fragments, depth: np.ndarray):
    """Choose the samples that are shaded.

    A pixel whose four samples lie within 4 mm of depth keeps one of them. Pixels along outlines
    keep all four.

    Args:
        fragments: `render.Fragments` at twice the resolution; depth: (2H, 2W) metres.

    Returns:
        `Fragments` of the kept samples, and (H W,) bool: the pixels that keep one.
    """
    a, b, c, d = (depth[i::2, j::2] for i in (0, 1) for j in (0, 1))
    farthest = np.maximum(np.maximum(a, b), np.maximum(c, d))
    nearest = np.minimum(np.minimum(a, b), np.minimum(c, d))
    even = farthest < nearest + np.float32(0.004)
    kept = np.empty(fragments.shape, bool)
    kept[::2, ::2] = True
    kept[::2, 1::2] = kept[1::2, ::2] = kept[1::2, 1::2] = ~even
    kept = np.flatnonzero(kept.ravel()[fragments.pixel])
    each = {k: getattr(fragments, k)[kept] for k in ("pixel", "face", "weights", "depth")}
    return fragments._replace(**each), even.ravel()


def pixel_of(samples) -> np.ndarray:
    """Return (N,) the flat index of the pixel that each sample lies in."""
    y, x = np.divmod(samples.pixel.astype(np.int32), np.int32(samples.shape[1]))
    return (y >> 1) * (samples.shape[1] >> 1) + (x >> 1)


def composed(samples, even, shown: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """Lay the colours (3, N) of the samples over a background: (H, W, 3) in [0, 1].

    `even` is the second result of `thinned`.
    """
    at = pixel_of(samples)
    alone = even[at]
    seen = np.zeros((4, len(even)), np.float32)
    seen[:3, at[alone]] = shown[:, alone]
    seen[3, at[alone]] = 1
    # Each of the others covers a quarter of a pixel.
    quarter, where = shown[:, ~alone], at[~alone]
    for channel in range(4):
        weights = quarter[channel] / 4 if channel < 3 else np.full(len(where), 0.25)
        seen[channel] += np.bincount(where, weights, len(even)).astype(np.float32)
    seen = cv2.merge(list(seen.reshape(4, *backdrop.shape[:2])))
    return seen[..., :3] + (1 - seen[..., 3:]) * backdrop
