"""Reading pickles of others (RHD's annotations, MANO's model files) without running them.

A pickle is a program that may import and call anything. Here it may name only what `_GLOBALS`
lists, and each name gives a stand-in of ours that records what the file says. Nothing of NumPy,
SciPy or chumpy is called before the file is read and its records are checked: NumPy's own
unpickling takes any bytes for pointers if the file says so. Nothing is hashed but plain keys, since
the hash of a nested tuple can take forever.
"""

import io
import math
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import scipy.sparse

from hamr_lib.errors import HamrError
from hamr_lib.files import read_bytes

_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")  # plain numbers only
_KEYS = (str, bytes, int, float, bool, type(None))


def load_pickle(path: Path):
    """Read a pickle of numeric arrays and plain containers; nothing in the file is ever run.

    NumPy arrays and scalars of numbers, `scipy.sparse` CSC and CSR matrices, dicts, lists, tuples,
    strings, bytes and numbers are read; sets become lists. chumpy's `Ch` and `Select`, in which
    MANO's files wrap some arrays, become arrays. Strings of Python 2 are read as Latin-1.

    Raises:
        HamrError: naming the file, and the name it asks for if that is not one of the above.
    """
    content = read_bytes(path)
    try:
        described = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        return _Builder(limit=(1 << 20) + 4 * len(content))(described)
    except HamrError as error:
        raise HamrError(f"{path}: {error}") from error
    # What a broken pickle raises is not bounded: it is whatever the broken step met.
    except Exception as error:
        raise HamrError(
            f"{path} is not a readable pickle, it may be truncated: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python, whose instructions can be replaced one by one."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module, name):
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise HamrError(
                f"refused the pickled name '{f'{module}.{name}'[:100]}'; expected only NumPy "
                "arrays, SciPy sparse matrices, chumpy arrays and plain containers"
            ) from None

    def load_build(self):
        """Give a record its state; nothing else takes one, the allowed names least of all."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Record):
            raise HamrError(f"refused to set the state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].state = state

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def load_setitems(self):
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        _set_items(self.stack[-1], items)

    def load_bytearray8(self):
        """Read no more than there is; Python's would first allocate what the file claims."""
        self.append(self.read(struct.unpack("<Q", self.read(8))[0]))

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.EMPTY_SET[0]: dispatch[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: dispatch[pickle.APPENDS[0]],
        pickle.FROZENSET[0]: dispatch[pickle.LIST[0]],
    }


def _set_items(target, items):
    if type(target) is not dict or any(type(key) not in _KEYS for key in items[::2]):
        raise HamrError("refused a key that is neither text nor a number")
    target.update(zip(items[::2], items[1::2], strict=True))


class _Follower(_Unpickler):
    """Follows a pickle of torch and makes nothing but its plain containers."""

    dispatch = dict(_Unpickler.dispatch)

    def find_class(self, module, name):
        return lambda *args: {}

    def persistent_load(self, pid):
        return None

    def load_build(self):
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build


def check_keys(content: bytes):
    """Refuse a pickle of torch with a key that is no text or number, for torch would hash it."""
    _Follower(io.BytesIO(content)).load()


class _Record:
    """Something the file describes; `build` makes the value once the file is read."""

    __slots__ = ("state",)


class _Dtype(_Record):
    __slots__ = ("code",)

    def __init__(self, code, align=False, copy=False):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise HamrError(f"refused the array type {str(code)[:40]!r}; expected plain numbers")
        self.code, self.state = code, (3, "=", None, None, None)

    def build(self, build):
        order, subarray, names, fields = self.state[1:5]
        if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise HamrError(f"refused a structured array type {self.code}; expected plain numbers")
        return np.dtype(self.code).newbyteorder(order)


class _Array(_Record):
    __slots__ = ()

    def __init__(self, *state):
        self.state = state

    def build(self, build):
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, _Dtype):
            raise HamrError(f"expected an array type, got {type(dtype).__name__}")
        dtype = build(dtype)
        if isinstance(content, str):  # the bytes of a Python 2 pickle
            content = content.encode("latin1")
        if len(content) != dtype.itemsize * math.prod(shape):
            raise HamrError(f"an array of {dtype} has {len(content)} bytes, other than its shape")
        array = np.ndarray(shape, dtype, buffer=content, order="F" if fortran else "C")
        return array.astype(dtype.newbyteorder("="), order="K")  # a copy of our own, native order


class _Scalar(_Array):
    __slots__ = ()

    def build(self, build):
        return super().build(build)[()]


class _Sparse(_Record):
    __slots__ = ()

    def build(self, build):
        state = build(self.state)
        arrays = [state[key] for key in ("data", "indices", "indptr")]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise HamrError("a sparse matrix whose parts are no arrays")
        matrix = self.cls(tuple(arrays), shape=state.get("_shape", state.get("shape")))
        # SciPy trusts its indices: one that points outside would read or write foreign memory.
        matrix.check_format(full_check=True)
        return matrix


class _Ch(_Record):
    """`chumpy.ch.Ch`: a leaf that holds its array as `x`."""

    __slots__ = ()

    def build(self, build):
        return _an_array(build(self.state)["x"])


class _Select(_Record):
    """`chumpy.reordering.Select`: the elements `idxs` of the flattened `a`, maybe reshaped."""

    __slots__ = ()

    def build(self, build):
        state = build(self.state)
        chosen = _an_array(state["a"]).ravel()[_an_array(state["idxs"])]
        return chosen.reshape(state.get("preferred_shape", chosen.shape))


def _an_array(value):
    if not isinstance(value, np.ndarray):
        raise HamrError(f"expected a numeric array in a chumpy array, got {type(value).__name__}")
    return value


def _reconstruct_array(subtype, shape, code):
    if subtype is not _NDARRAY:
        raise HamrError("refused an array type of its own; expected numpy.ndarray")
    return _Array()


def _reconstruct_object(cls, base, state):
    """What `copyreg._reconstructor` does (protocols 0 and 1), for our own stand-ins alone."""
    if not (isinstance(cls, type) and issubclass(cls, _Record)):
        raise HamrError(f"refused to construct a {type(cls).__name__}")
    return cls()


def _encode(text, encoding="latin1"):
    """`_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    return text.encode("latin1")


class _Builder:
    """Builds what the records in a value describe; what is met twice is built once.

    Args:
        limit: bytes that all arrays together may take. A small file can name the same bytes as
            the content of any number of arrays.
    """

    def __init__(self, limit):
        self.left, self.done = limit, {}

    def __call__(self, value):
        if isinstance(value, (dict, list, tuple, _Record)):
            if id(value) not in self.done:
                # Keeping `value` beside its result keeps its id from being used again.
                self.done[id(value)] = (value, self.build(value))
            return self.done[id(value)][1]
        if isinstance(value, _KEYS):
            return value
        raise HamrError(f"refused a {type(value).__name__} as a value")

    def build(self, value):
        if isinstance(value, dict):
            return {key: self(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self, value))
        built = value.build(self)
        self.left -= getattr(built, "nbytes", 0)
        if self.left < 0:
            raise HamrError("its arrays together are far larger than the file")
        return built


_NDARRAY = object()  # named by a pickle only as an argument of `_reconstruct`
_GLOBALS = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("chumpy.ch", "Ch"): _Ch,
    ("chumpy.reordering", "Select"): _Select,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct_array
    _GLOBALS[f"{_core}.multiarray", "scalar"] = lambda dtype, content: _Scalar(
        1, (), dtype, False, content
    )
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = lambda content, dtype, shape, order: _Array(
        1, shape, dtype, order == "F", content
    )
for _module in ("builtins", "__builtin__"):  # Python 3's and Python 2's name of it
    _GLOBALS[_module, "set"] = _GLOBALS[_module, "frozenset"] = lambda items=(): list(items)
    _GLOBALS[_module, "bytes"] = lambda: b""  # by which protocols 0 to 2 write empty bytes
    _GLOBALS[_module, "object"] = object()
for _module in ("copyreg", "copy_reg"):
    _GLOBALS[_module, "_reconstructor"] = _reconstruct_object
for _format in ("csc", "csr"):
    for _kind in ("matrix", "array"):
        _class = getattr(scipy.sparse, f"{_format}_{_kind}")
        _record = type(f"_Sparse_{_class.__name__}", (_Sparse,), {"__slots__": (), "cls": _class})
        for _module in ("scipy.sparse", f"scipy.sparse.{_format}", f"scipy.sparse._{_format}"):
            _GLOBALS[_module, _class.__name__] = _record
