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

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8",
            13: "u8"}  # fmt: skip
_MATRIX, _COMPRESSED = 14, 15
_LARGEST = 1 << 25  # bytes of a file, and of all that is unpacked from it; STB's have 756 KB


def read_mat(path: Path, name: str) -> np.ndarray:
    """Read the real numeric array `name`.

    Returns:
        float64 array of the shape that the file gives.

    Raises:
        HamrError: for a missing, damaged or far too large file, or one without this array.
    """
    content = memoryview(read_bytes(path, _LARGEST))
    try:
        return _find(content, name)
    except (ValueError, struct.error, zlib.error, OverflowError) as error:
        raise HamrError(
            f"{path} is not a readable MATLAB 5 file; it may be truncated ({error})"
        ) from error
    except HamrError as error:
        raise HamrError(f"{path} {error}") from error


def _find(content, name):
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None:
        raise ValueError("no header")
    rest, seen, budget = content[128:], [], _LARGEST
    while rest:
        kind, body, rest = _element(rest, order, pad=False)
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(body, budget)
            budget -= len(unpacked)
            if budget < 1:
                raise ValueError(f"it unpacks to more than {_LARGEST} bytes")
            kind, body, _ = _element(memoryview(unpacked), order, pad=False)
        if kind != _MATRIX:
            raise ValueError(f"element of type {kind}")
        found, array = _matrix(body, order, name)
        if found == name:
            return array
        seen.append(found)
    raise HamrError(f"has no {name!r} (it has {', '.join(seen)[:200] or 'nothing'})")


def _matrix(body, order, wanted):
    """The name of a variable, and its array if it is the wanted one."""
    kind, flags, body = _element(body, order)
    if kind != 6 or len(flags) != 8:
        raise ValueError("no array flags")
    number_class, is_complex = flags[0 if order == "<" else 3], flags[1 if order == "<" else 2] & 8
    kind, dims, body = _element(body, order)
    shape = tuple(np.frombuffer(dims, order + "i4").tolist()) if kind == 5 else ()
    kind, label, body = _element(body, order)
    label = str(label, "latin1")
    if kind != 1 or not label.isidentifier():
        raise ValueError("no variable name")
    if label != wanted:
        return label, None
    if not 6 <= number_class <= 15 or is_complex or not shape or min(shape) < 0:
        raise HamrError(f"holds {wanted}, but not as real numbers (class {number_class})")
    kind, data, _ = _element(body, order)
    if kind not in _NUMBERS:
        raise ValueError(f"numbers of type {kind}")
    values = np.frombuffer(data, order + _NUMBERS[kind])
    return label, values.astype(float).reshape(shape, order="F")


def _element(content, order, pad=True):
    """Split off the first element: (type, body, what follows)."""
    kind, size = struct.unpack_from(order + "II", content)
    if kind >> 16:  # a small element: size and type share four bytes
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        if size > 4:
            raise ValueError(f"small element of {size} bytes")
    else:
        start = 8
        end = start + size + (-size % 8 if pad else 0)
    if start + size > len(content):
        raise ValueError(f"element of {size} bytes, {len(content) - start} are left")
    return kind, content[start : start + size], content[end:]
