"""Check meshes and sizes before compiled code, which would end the process, reads them."""

import numpy as np

from hamr_lib.errors import HamrError


def check_faces(faces, count: int) -> np.ndarray:
    """Return faces as (F, 3) int32, rows of `count` vertices; refuse others."""
    faces = np.asarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3 or len(faces) == 0:
        raise HamrError(f"faces has shape {faces.shape}, expected (F, 3) with at least one face")
    if not np.issubdtype(faces.dtype, np.integer):
        raise HamrError(f"faces is {faces.dtype}, expected integers")
    low, high = faces.min(), faces.max()
    if low < 0 or high >= count:
        bad = low if low < 0 else high
        raise HamrError(f"faces has index {bad}, expected 0 to {count - 1} for {count} vertices")
    return np.ascontiguousarray(faces, np.int32)


def check_size(size) -> int:
    """Return a whole number of pixels, at least 1; refuse others."""
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise HamrError(f"size is {size!r}, expected a whole number of pixels, at least 1")
    return int(size)
