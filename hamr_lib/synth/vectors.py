"""Arithmetic of small vectors."""

import numpy as np


def unit(vector: np.ndarray) -> np.ndarray:
    """Scale a vector (3,), or vectors (3, N), to length one."""
    x, y, z = vector
    return vector / np.sqrt(x * x + y * y + z * z)
