"""Read pickles of others (RHD's annotations, MANO's model files) without running them.

A pickle is a program that may import and call anything. Here it may name only what `_ALLOWED`
lists, and a name makes a `_Record` of what the file says. Values are built from the records after
the whole file is read: NumPy's own unpickling takes any bytes for pointers if the file says so.
Nothing is hashed but plain keys, since the hash of a nested tuple can take forever.
"""

import functools
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

_KEYS = (str, bytes, int, float, bool, type(None))
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
# "module name" as Python 2 and 3, NumPy 1 and 2, and all protocols write it.
_ALLOWED = re.compile(
    r"numpy (ndarray|dtype)|numpy\._?core\.multiarray (_reconstruct|scalar)"
    r"|numpy\._?core\.numeric (_frombuffer)|_codecs (encode)|copy_?reg (_reconstructor)"
    r"|(?:builtins|__builtin__) (set|frozenset|bytes|object)"
    r"|chumpy\.ch (Ch)|chumpy\.reordering (Select)"
    r"|scipy\.sparse(?:\._?cs[cr])? (cs[cr]_(?:matrix|array))"
)


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
        return _Builder(limit=(1 << 20) + 4 * len(content)).build(described)
    except HamrError as error:
        raise HamrError(f"{path}: {error}") from error
    # What a broken pickle raises is not bounded: it is whatever the broken step met.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise HamrError(f"{path} is not a readable pickle, or truncated: {reason}") from error


class _Record:
    """A call that the file describes: what is named, with which arguments and state."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name, *args):
        self.name, self.args, self.state = name, args, None


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python, whose instructions can be replaced one by one."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module, name):
        found = _ALLOWED.fullmatch(f"{module} {name}")
        if not found:
            asked = f"{module}.{name}"[:100]
            raise HamrError(f"refused the pickled name '{asked}'; expected arrays and containers")
        return functools.partial(_Record, found[found.lastindex])

    def load_build(self):
        """Give a record its state; nothing else takes one, the allowed names least of all."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Record):
            raise HamrError(f"refused to set the state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].state = state

    def load_empty_dict(self):
        self.append(_Dict())

    def load_dict(self):
        items = self.pop_mark()
        self.append(_Dict())
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][key] = value

    def load_bytearray8(self):
        """Read no more than there is; Python's would first allocate what the file claims."""
        self.append(self.read(struct.unpack("<Q", self.read(8))[0]))

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.EMPTY_DICT[0]: load_empty_dict,
        pickle.DICT[0]: load_dict,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.NEWOBJ[0]: dispatch[pickle.REDUCE[0]],
        pickle.EMPTY_SET[0]: dispatch[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: dispatch[pickle.APPENDS[0]],
        pickle.FROZENSET[0]: dispatch[pickle.LIST[0]],
    }


class _Dict(dict):
    """A dict of plain keys."""

    def __setitem__(self, key, value):
        if type(key) not in _KEYS:
            raise HamrError("refused a key that is neither text nor a number")
        super().__setitem__(key, value)


class _Follower(_Unpickler):
    """Follows a pickle of torch and makes nothing but its plain containers."""

    dispatch = dict(_Unpickler.dispatch)

    def find_class(self, module, name):
        return lambda *args: _Dict()

    def persistent_load(self, pid):
        return None

    def load_build(self):
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build


def check_keys(content: bytes) -> None:
    """Refuse a pickle of torch with a key that is no text or number, for torch would hash it."""
    _Follower(io.BytesIO(content)).load()


class _Builder:
    """Builds the values that records describe; what is met twice is built once.

    Args:
        limit: bytes that all arrays together may take. A small file can name the same bytes as
            the content of any number of arrays.
    """

    def __init__(self, limit):
        self.left, self.done = limit, {}

    def build(self, value):
        if isinstance(value, _KEYS):
            return value
        if not isinstance(value, (dict, list, tuple, _Record)):
            raise HamrError(f"refused a {type(value).__name__} as a value")
        if id(value) not in self.done:
            # Keeping `value` beside its result keeps its id from being used again.
            self.done[id(value)] = (value, self._construct(value))
        return self.done[id(value)][1]

    def _construct(self, value):
        if isinstance(value, dict):
            return {key: self.build(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.build, value))
        built = self._called(value.name, value.args, value.state)
        self.left -= len(built) if isinstance(built, bytes) else getattr(built, "nbytes", 0)
        if self.left < 0:
            raise HamrError("its arrays together are far larger than the file")
        return built

    def _called(self, name, args, state):
        if name == "_reconstructor":  # of protocols 0 and 1: its first argument is what it makes
            made = args[0]
            name, args = (made.args[0] if isinstance(made, functools.partial) else "value"), ()
        state = self.build(state)
        if name == "_reconstruct":  # its arguments are an array type, which is ours in any case
            _, shape, dtype, fortran, content = state
            return _array(content, dtype, shape, "F" if fortran else "C")
        if name in ("Ch", "Select"):
            return _chumpy(name, state)
        if name.startswith("cs"):
            return _sparse(name, state)
        args = self.build(args)
        if name == "dtype":
            return _dtype(args[0], state)
        if name == "_frombuffer":
            return _array(*args)
        if name == "scalar":
            return _array(args[1], args[0], (), "C")[()]
        if name == "encode":  # by which Python 3 writes bytes in protocol 2
            return args[0].encode("latin1")
        if name in ("set", "frozenset") and len(args) == 1:
            return args[0]
        if name == "bytes" and not args:  # by which protocols 0 to 2 write empty bytes
            return b""
        raise HamrError(f"refused to construct a {name}")


def _dtype(code, state):
    order, *structure = state[1:5] if state else ["=", None, None, None]
    if not _NUMBERS.fullmatch(code) or order not in ("<", ">", "|", "=") or any(structure):
        raise HamrError(f"refused the array type {code[:40]!r}; expected plain numbers")
    return np.dtype(code).newbyteorder(order)


def _array(content, dtype, shape, order):
    if isinstance(content, str):  # the bytes of a Python 2 pickle
        content = content.encode("latin1")
    if not isinstance(dtype, np.dtype):
        raise HamrError(f"expected an array type, got {type(dtype).__name__}")
    if len(content) != dtype.itemsize * math.prod(shape):
        raise HamrError(f"an array of {dtype} has {len(content)} bytes, other than its shape")
    array = np.ndarray(shape, dtype, buffer=content, order=order)
    return array.astype(dtype.newbyteorder("="), order="K")  # a copy of our own, native order


def _sparse(name, state):
    arrays = [state[key] for key in ("data", "indices", "indptr")]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise HamrError("a sparse matrix whose parts are no arrays")
    shape = state.get("_shape", state.get("shape"))
    matrix = getattr(scipy.sparse, name)(tuple(arrays), shape=shape)
    # SciPy trusts its indices: one that points outside would read or write foreign memory.
    matrix.check_format(full_check=True)
    return matrix


def _chumpy(name, state):
    """`Ch` holds its array as `x`; `Select` is the elements `idxs` of the flattened `a`."""
    parts = [state[key] for key in (["x"] if name == "Ch" else ["a", "idxs"])]
    for part in parts:
        if not isinstance(part, np.ndarray):
            got = type(part).__name__
            raise HamrError(f"expected a numeric array in a chumpy array, got {got}")
    if name == "Ch":
        return parts[0]
    chosen = parts[0].ravel()[parts[1]]
    return chosen.reshape(state.get("preferred_shape", chosen.shape))
