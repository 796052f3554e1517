"""Check arguments before compiled code, which would end the process, reads them."""

import numpy as np

from hamr_lib.errors import HamrError


def check(good: bool, name: str, value, expected: str) -> None:
    """Raise a `HamrError` that names an argument and what it is, unless it is good."""
    if not good:
        if getattr(value, "ndim", 0):
            value = f"{value.dtype} {tuple(value.shape)} on {getattr(value, 'device', 'cpu')}"
        raise HamrError(f"{name} is {value}, expected {expected}")


def check_size(size) -> None:
    """Refuse a side that is no whole number of pixels, at least 1."""
    check(isinstance(size, (int, np.integer)) and size >= 1, "size", size, "whole pixels, from 1")


def check_faces(faces, count: int) -> np.ndarray:
    """Return faces as (F, 3) int32, rows of `count` vertices; refuse others."""
    faces = np.asarray(faces)
    shaped = faces.ndim == 2 and faces.shape[1] == 3 and len(faces) > 0
    whole = np.issubdtype(faces.dtype, np.integer)
    check(shaped and whole, "faces", faces, "integers (F, 3), F at least 1")
    for index in (faces.min(), faces.max()):
        check(0 <= index < count, "an index in faces", index, f"0 to {count - 1}")
    return np.ascontiguousarray(faces, np.int32)
