"""Read pickles of others (RHD's annotations, MANO's model files) without running them.

A pickle is a program that may import and call anything. Here it may name only what `_ALLOWED`
lists, and each name stands for a function or class of this file. Tuples become lists: a list is no
key of a dictionary, and the hash of a nested tuple can take forever.
"""

import io
import pickle
import re
from pathlib import Path

import numpy as np
import scipy.sparse

from hamr_lib.errors import HamrError
from hamr_lib.files import read_bytes


def load_pickle(path: Path):
    """Read a pickle of numeric arrays and plain containers; nothing in the file is ever run.

    SciPy's CSC matrices, NumPy's scalars, and `Ch` and `Select` of chumpy, in which MANO's files
    wrap some arrays, become arrays; tuples become lists. Strings of Python 2 are Latin-1.

    Raises:
        HamrError: naming the file, and the name it asks for if that is not allowed.
    """
    content = read_bytes(path)
    try:
        return _Unpickler(content).load()
    except HamrError as error:
        raise HamrError(f"{path}: {error}") from error
    # What a broken pickle raises is not bounded: it is whatever the broken step met.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise HamrError(f"{path} is not a readable pickle, or truncated: {reason}") from error


def check_keys(content: bytes) -> None:
    """Refuse a pickle of torch with a tuple as a key, for torch would hash it."""
    _Follower(content).load()


class _Type:
    """A type of plain numbers. NumPy's own takes any bytes for pointers if its state says so."""

    def __init__(self, code, *_):
        self.code, self.order = code, "="
        if not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise HamrError(f"refused the array type {code[:40]!r}; expected plain numbers")

    def __setstate__(self, state):
        self.order, *structure = state[1:5]
        if any(structure):
            raise HamrError(f"refused the array type {self.code!r} with a structure")


class _Array(np.ndarray):
    """An array whose contents are in its state: NumPy's, a sparse matrix's, or chumpy's."""

    def __new__(cls, *_):
        return super().__new__(cls, 0)

    def __setstate__(self, state):
        if isinstance(state, list):
            _, shape, dtype, fortran, content = state
            if isinstance(content, str):  # the bytes of a Python 2 pickle
                content = content.encode("latin1")
            type_ = np.dtype(dtype.code).newbyteorder(dtype.order)
            array = np.ndarray(shape, type_, content, order="F" if fortran else "C")
        else:
            parts = {name: part for name, part in state.items() if isinstance(part, _Array)}
            if "indptr" in parts:
                array = _dense(parts, *map(int, state["_shape"]))
            elif "idxs" in parts:  # chumpy's `Select`: elements of the flattened `a`
                array = parts["a"].ravel()[parts["idxs"]]
                array = array.reshape(state.get("preferred_shape", array.shape))
            else:
                array = parts["x"]
        array = array.astype(array.dtype.newbyteorder("="))
        super().__setstate__((1, array.shape, array.dtype, False, array.tobytes()))


def _dense(parts, rows, columns):
    if rows * columns > 1 << 20:
        raise HamrError(f"refused a sparse matrix of {rows} x {columns}")
    arrays = tuple(parts[name] for name in ("data", "indices", "indptr"))
    matrix = scipy.sparse.csc_matrix(arrays, shape=(rows, columns))
    # SciPy trusts its indices: one that points outside would read or write foreign memory.
    matrix.check_format(full_check=True)
    return matrix.toarray()


def _scalar(dtype, content):
    array = _Array()
    array.__setstate__([1, [], dtype, False, content])
    return array


# Python 2 and 3, NumPy 1 and 2, and the versions of SciPy have names of their own.
_ALLOWED = {
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": _Type,
    "scipy.sparse.csc.csc_matrix": _Array,
    "scipy.sparse._csc.csc_matrix": _Array,
    "chumpy.ch.Ch": _Array,
    "chumpy.reordering.Select": _Array,
    "_codecs.encode": lambda text, _: text,  # by which Python 3 writes bytes in protocol 2
    "copyreg._reconstructor": lambda made, *_: made(),  # of protocols 0 and 1
    "copy_reg._reconstructor": lambda made, *_: made(),
    "builtins.object": None,
    "__builtin__.object": None,
    "builtins.set": set,
    "__builtin__.set": set,
}


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python, whose instructions can be replaced one by one."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content), encoding="latin1")
        # Bytes for all arrays: a file can name the same bytes as those of any number of them.
        self.left = (1 << 20) + 4 * len(content)

    def find_class(self, module, name):
        if f"{module}.{name}" not in _ALLOWED:
            asked = f"{module}.{name}"[:100]
            raise HamrError(f"refused the pickled name '{asked}'; expected arrays and containers")
        return _ALLOWED[f"{module}.{name}"]

    def load_build(self):
        """Give a state to an array or its type; nothing else takes one, no class least of all."""
        made = self.stack[-2]
        if not isinstance(made, _Type | _Array):
            raise HamrError(f"refused to set the state of a {type(made).__name__}")
        super().load_build()
        self.left -= getattr(made, "nbytes", 0)
        if self.left < 0:
            raise HamrError("its arrays together are far larger than the file")

    def load_short_list(self, count):
        self.stack[-count:] = [self.stack[-count:]]

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: load_build,
        # Python's would first allocate what the file claims.
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,
        pickle.EMPTY_TUPLE[0]: pickle._Unpickler.load_empty_list,
        pickle.TUPLE1[0]: lambda self: self.load_short_list(1),
        pickle.TUPLE2[0]: lambda self: self.load_short_list(2),
        pickle.TUPLE3[0]: lambda self: self.load_short_list(3),
        pickle.TUPLE[0]: pickle._Unpickler.load_list,
    }


class _Follower(_Unpickler):
    """Follows a pickle of torch and makes nothing but its plain containers."""

    def find_class(self, module, name):
        return lambda *_: {}

    def persistent_load(self, pid):
        return None

    dispatch = _Unpickler.dispatch | {pickle.BUILD[0]: lambda self: self.stack.pop()}
