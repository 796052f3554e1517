"""Reading one array of numbers from a MATLAB 5 file.

SciPy's reader can end the process on a damaged file (a segmentation fault where a tag's type is
unknown). This one checks each tag and size before it uses them, and reads nothing but numbers.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.files import read_bytes

_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8",
            12: "<i8", 13: "<u8"}  # fmt: skip
_MATRIX, _COMPRESSED = 14, 15
_LARGEST = 1 << 25  # bytes of a file, and of what is unpacked from it; STB's have 756 KB


def read_mat(path: Path, name: str) -> np.ndarray:
    """Read the real numeric array `name` as float64, of the shape that the file gives.

    Raises:
        HamrError: for a missing, damaged or far too large file, or one without this array.
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
