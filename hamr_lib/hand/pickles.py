"""Reading pickles from strangers (RHD's annotations, MANO's model files) without running them.

A pickle is a program that may import and call anything. Here it may name only what `_GLOBALS`
lists, by exact module and name, and every name gives a stand-in of ours: nothing of NumPy, SciPy
or chumpy is called while the file is read. The stand-ins merely record what the file says; once
it is read, `load_pickle` checks the records and builds the arrays. (NumPy's own unpickling is not
safe either: a crafted dtype state lets plain bytes pass for object pointers.)
"""

import pickle
import re

import numpy as np
import scipy.sparse

from hamr_lib.errors import HamrError

# Numbers, booleans, strings and lists of objects. No structured, subarray or void dtypes.
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}|O[48]?")


def load_pickle(path):
    """Read a pickle of arrays and plain containers; nothing in the file is ever run.

    NumPy arrays and scalars, `scipy.sparse` CSC, CSR and COO matrices, dicts (ordered ones become
    plain), lists, tuples, sets, strings and numbers are read. chumpy's `Ch` and `Select`, in which
    MANO's files wrap some arrays, become the arrays they stand for. Byte strings of Python 2
    pickles are read as Latin-1 text.

    Raises:
        HamrError: naming the file, and the name it asks for if that is not one of the above.
    """
    try:
        with open(path, "rb") as file:
            return _resolve(_Unpickler(file, encoding="latin1").load(), {})
    except HamrError as error:
        raise HamrError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise HamrError(f"{path} is missing") from error
    except OSError as error:
        raise HamrError(f"cannot read {path}: {error.strerror or error}") from error
    # What a broken pickle raises is not bounded: it is whatever the broken step met.
    except Exception as error:
        raise HamrError(
            f"{path} is not a readable pickle, it may be truncated: {type(error).__name__}: {error}"
        ) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise HamrError(
                f"refused the pickled name '{module}.{name}'; expected only NumPy arrays, SciPy "
                "sparse matrices, chumpy arrays and plain containers"
            ) from None


class _Function:
    """A callable that a pickle can call, but not change with its BUILD instruction."""

    __slots__ = ("_call",)

    def __init__(self, call):
        object.__setattr__(self, "_call", call)

    def __call__(self, *args):
        return self._call(*args)

    def __setattr__(self, name, value):
        raise HamrError(f"refused to set {name!r} on a function")

    def __setstate__(self, state):
        raise HamrError("refused to set the state of a function")


class _Record:
    """Something the file describes; `build` makes the real value once the file is read."""

    __slots__ = ("state",)

    def __setstate__(self, state):
        self.state = state


class _Dtype(_Record):
    __slots__ = ("code", "order")

    def __init__(self, code, align=False, copy=False):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise HamrError(f"refused the array type {code!r}; expected plain numbers or strings")
        self.code, self.order = code, "="

    def __setstate__(self, state):
        order, subarray, names, fields = state[1:5]
        if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise HamrError(f"refused the array type {state!r}; expected plain numbers or strings")
        self.order = order

    def build(self):
        if self.code.startswith("O"):
            return np.dtype(object)
        return np.dtype(self.code).newbyteorder(self.order)


class _Array(_Record):
    __slots__ = ()

    def build(self, resolve):
        _, shape, dtype, fortran, content = self.state
        return _array(content, dtype, shape, "F" if fortran else "C", resolve)


class _Buffer(_Record):
    """An array as protocol 5 writes it."""

    __slots__ = ()

    def build(self, resolve):
        content, dtype, shape, order = self.state
        return _array(content, dtype, shape, order, resolve)


class _Sparse(_Record):
    __slots__ = ()

    def build(self, resolve):
        state = dict(resolve(self.state))
        shape = state["_shape"] if "_shape" in state else state["shape"]
        if self.cls in (scipy.sparse.coo_matrix, scipy.sparse.coo_array):
            coords = state["coords"] if "coords" in state else (state["row"], state["col"])
            return self.cls((state["data"], tuple(coords)), shape=shape)
        matrix = self.cls((state["data"], state["indices"], state["indptr"]), shape=shape)
        # SciPy trusts its indices: one that points outside would read or write foreign memory.
        matrix.check_format(full_check=True)
        return matrix


class _Ch(_Record):
    """`chumpy.ch.Ch`: a leaf that holds its array as `x`."""

    __slots__ = ()

    def build(self, resolve):
        return np.asarray(resolve(self.state)["x"])


class _Select(_Record):
    """`chumpy.reordering.Select`: the elements `idxs` of the flattened `a`, maybe reshaped."""

    __slots__ = ()

    def build(self, resolve):
        state = resolve(self.state)
        chosen = np.asarray(state["a"]).ravel()[state["idxs"]]
        return chosen.reshape(state.get("preferred_shape", chosen.shape))


def _sparse(cls):
    return type(f"_Sparse_{cls.__name__}", (_Sparse,), {"__slots__": (), "cls": cls})


def _dtype_of(dtype):
    if not isinstance(dtype, _Dtype):
        raise HamrError(f"expected an array type, got {type(dtype).__name__}")
    return dtype.build()


def _array(content, dtype, shape, order, resolve):
    dtype = _dtype_of(dtype)
    if dtype.hasobject:
        array = np.empty(len(content), object)
        for i, value in enumerate(content):
            array[i] = resolve(value)
        return array.reshape(shape, order=order)
    if isinstance(content, str):  # the bytes of a Python 2 pickle
        content = content.encode("latin1")
    if len(content) != dtype.itemsize * np.prod(shape, dtype=object):
        raise HamrError(f"an array of shape {shape} and type {dtype} has {len(content)} bytes")
    array = np.ndarray(shape, dtype, buffer=content, order=order)
    return array.astype(dtype.newbyteorder("="), order="K")  # a copy of our own, native order


def _scalar(dtype, content):
    return _array(content, dtype, (), "C", None)[()]


def _buffer(content, dtype, shape, order):
    record = _Buffer()
    record.state = (content, dtype, shape, order)
    return record


def _reconstruct_array(subtype, shape, code):
    if subtype is not _NDARRAY:
        raise HamrError("refused an array type of its own; expected numpy.ndarray")
    return _Array()


def _reconstruct_object(cls, base, state):
    """What `copyreg._reconstructor` does (protocols 0 and 1), for our own stand-ins alone."""
    if not (isinstance(cls, type) and issubclass(cls, _Record)):
        raise HamrError(f"refused to construct a {cls!r}")
    return cls()


def _encode(text, encoding="latin1"):
    """`_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise HamrError(f"refused the encoding {encoding!r}; expected latin1")
    return text.encode("latin1")


def _no_bytes():
    """`bytes()`, by which Python 3 writes an empty byte string in protocols 0 to 2."""
    return b""


def _plain_ordered_dict(items=()):
    return dict(items)


def _resolve(value, done):
    """Build what the stand-ins in `value` describe; a value met twice is built once."""
    if isinstance(value, (dict, list, tuple, set, frozenset, _Record)):
        key = id(value)
        if key not in done:
            # Keeping `value` beside its result keeps its id from being used again.
            done[key] = (value, _build(value, lambda part: _resolve(part, done)))
        return done[key][1]
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, bytearray)):
        return value
    if isinstance(value, np.generic):
        return value
    raise HamrError(f"refused a {type(value).__name__} as a value")


def _build(value, resolve):
    if isinstance(value, dict):
        return {resolve(k): resolve(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(resolve(v) for v in value)
    if isinstance(value, _Dtype):
        return value.build()
    return value.build(resolve)


_NDARRAY = object()  # named by a pickle only as an argument of `_reconstruct`
_GLOBALS = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Function(_Dtype),
    ("chumpy.ch", "Ch"): _Ch,
    ("chumpy.reordering", "Select"): _Select,
    ("_codecs", "encode"): _Function(_encode),
    ("collections", "OrderedDict"): _Function(_plain_ordered_dict),
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Function(_reconstruct_array)
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Function(_scalar)
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _Function(_buffer)
for _module in ("builtins", "__builtin__"):  # Python 3's and Python 2's name of it
    for _type in (set, frozenset, complex):
        _GLOBALS[_module, _type.__name__] = _Function(_type)
    _GLOBALS[_module, "object"] = object()
    _GLOBALS[_module, "bytes"] = _Function(_no_bytes)
for _module in ("copyreg", "copy_reg"):
    _GLOBALS[_module, "_reconstructor"] = _Function(_reconstruct_object)
for _format in ("csc", "csr", "coo"):
    for _kind in ("matrix", "array"):
        _class = getattr(scipy.sparse, f"{_format}_{_kind}")
        for _module in ("scipy.sparse", f"scipy.sparse.{_format}", f"scipy.sparse._{_format}"):
            _GLOBALS[_module, _class.__name__] = _sparse(_class)
