"""The restricted unpickler: what it reads, and that nothing in a hostile pickle ever runs."""

import os
import pickle
import struct
import sys
import types

import numpy as np
import pytest
import scipy.sparse

from hamr_lib.errors import HamrError
from hamr_lib.hand.pickles import load_pickle

PROTOCOLS = range(5)  # the fifth stores arrays in another way


@pytest.fixture
def read(tmp_path):
    def read(content):
        (tmp_path / "stranger.pkl").write_bytes(content)
        return load_pickle(tmp_path / "stranger.pkl")

    return read


@pytest.fixture
def refused(read, tmp_path):
    """Refuse a pickle for this reason; none may make the canary file."""

    def refused(content, match):
        with pytest.raises(HamrError, match=f"stranger.pkl.*({match})"):
            read(content)

    yield refused
    assert not (tmp_path / "canary").exists()


def short(text):
    """SHORT_BINUNICODE of protocol 4."""
    return b"\x8c" + struct.pack("B", len(text)) + text.encode()


class Forged:
    """Pickles as a call of `function` with arguments, and a state of our choice."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def forged_array(*state):
    return Forged(np.ndarray([]).__reduce__()[0], np.ndarray, (0,), b"b", state=state)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_that_data_sets_hold(read, protocol):
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(4, dtype=">i2"),
        np.array([True, False]),
        np.array(2.5),
        np.array([[0, 1.5, 0], [2, 0, 0]]),
    ]
    plain = {0: [1, [2.5, "text"], None, True], "set": {3}, "scalar": np.float32(0.5)}
    stored = [*arrays[:-1], scipy.sparse.csc_matrix(arrays[-1])]
    got = read(pickle.dumps({"arrays": stored, "plain": plain, "pair": (1, 2)}, protocol=protocol))
    for ours, array in zip(got["arrays"], arrays, strict=True):
        assert ours.dtype == array.dtype.newbyteorder("=") and ours.shape == array.shape
        np.testing.assert_array_equal(ours, array)
        assert ours.flags.writeable
    assert got["plain"] == plain and got["pair"] == [1, 2]


def test_python_2_array(read):
    """The protocol-2 bytes Python 2 and NumPy 1 write for array([1., 2.]): a byte string."""
    raw = np.array([1.0, 2.0]).tobytes()
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + struct.pack("B", len(raw))
        + raw
        + b"tb."
    )
    np.testing.assert_array_equal(read(content), [1.0, 2.0])


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_chumpy(read, monkeypatch, protocol):
    """Classes with chumpy's names and state, as in MANO's files, without chumpy."""
    for module in ("chumpy", "chumpy.ch", "chumpy.reordering"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    ch = type("Ch", (), {"__module__": "chumpy.ch"})
    select = type("Select", (ch,), {"__module__": "chumpy.reordering"})
    sys.modules["chumpy.ch"].Ch = ch
    sys.modules["chumpy.reordering"].Select = select
    leaf, picked, flat = ch(), select(), select()
    leaf.x, leaf._dirty_vars = np.arange(12.0).reshape(3, 4), set()
    picked.a, picked.idxs, picked.preferred_shape = leaf, np.array([11, 0, 5, 6]), (2, 2)
    flat.a, flat.idxs = leaf, np.array([3])
    got = read(pickle.dumps([leaf, picked, flat], protocol=protocol))
    for ours, expected in zip(got, (leaf.x, [[11, 0], [5, 6]], [3]), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_calls_are_refused(refused, tmp_path, protocol):
    canary = tmp_path / "canary"
    attack = Forged(os.system, f"touch {canary}")
    pickle.loads(pickle.dumps(attack))  # Python's own unpickler runs it: this test can fail
    canary.unlink()
    inside = np.empty(1, object)
    inside[0] = attack
    for content in (attack, {0: {"xyz": [attack], "K": np.eye(3)}}, inside):
        refused(pickle.dumps(content, protocol=protocol), "posix.system|array type 'O8'")


@pytest.mark.parametrize(
    "name",
    ["numpy load", "numpy dtype.type", "chumpy.ch MatVecMult", "posix system", "builtins getattr",
     "numpy.core.multiarray _reconstruct.__globals__", "hamr_lib.hand.pickles load_pickle"],
)  # fmt: skip
def test_names_are_refused(refused, tmp_path, name):
    """By STACK_GLOBAL (where dots are followed), by GLOBAL, and by INST."""
    module, name = name.split()
    argument = short(f"touch {tmp_path / 'canary'}")
    lines = f"{module}\n{name}\n".encode()
    for content in (
        b"\x80\x04" + short(module) + short(name) + b"\x93" + argument + b"\x85R.",
        b"\x80\x02c" + lines + argument + b"\x85R.",
        b"(" + argument + b"i" + lines + b".",
    ):
        refused(content, f"refused the pickled name '{module}.{name}'")
    refused(b"\x80\x02\x82\x01.", "unregistered extension")
    refused(b"Pos.system\n.", "persistent")


@pytest.mark.parametrize(
    "target",
    [b"numpy\ndtype", b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct",
     b"builtins\nset", b"_codecs\nencode", b"chumpy.ch\nCh"],
)  # fmt: skip
def test_shared_names_take_no_state(read, refused, target):
    """BUILD on an allowed name itself must not change what the next file reads."""
    for state in (b"}U\x05_callU\x04evils", b"N}U\x05_callU\x04evils\x86"):
        refused(b"\x80\x02c" + target + b"\n" + state + b"b.", "refused to set the state")
    np.testing.assert_array_equal(read(pickle.dumps(np.ones(2))), [1, 1])


def test_state_is_data(refused):
    """No method in a state is called, and no class is replaced by it."""
    leaf = b"\x80\x04" + short("chumpy.ch") + short("Ch") + b"\x93)\x81"
    system = short("posix") + short("system") + b"\x93"
    for key in ("__class__", "__setstate__", "x"):
        refused(leaf + b"}" + short(key) + system + b"sb.", "posix.system")
        text = b"}" + short(key) + short("text") + b"s" + short("x") + b"Nsb."
        refused(leaf + text, "KeyError: 'x'")  # only an array is looked at


def test_what_takes_forever_to_hash_or_to_list(refused):
    """Tuples of a tuple twice, sixty deep, as a key, in a set, in a frozen set, as an array."""
    deep = b")" + b"2\x86" * 60
    for content in (b"}" + deep + b"K\x01s.", b"}(" + deep + b"K\x01u.", b"(" + deep + b"K\x01d."):
        refused(b"\x80\x02" + content, "unhashable")
    by_name = b"cbuiltins\nset\n(" + deep + b"l\x85R."
    for content in (b"\x8f(" + deep + b"\x90.", b"(" + deep + b"\x91.", by_name):
        refused(b"\x80\x04" + content, "unhashable")
    for module, name, keys in (
        ("chumpy.ch", "Ch", ["x"]),
        ("chumpy.reordering", "Select", ["a", "idxs"]),
        ("scipy.sparse._csc", "csc_matrix", ["data", "indices", "indptr"]),
    ):
        state = b"".join(short(key) + deep + b"s" for key in keys)
        made = b"\x80\x04" + short(module) + short(name) + b"\x93)\x81"
        refused(made + b"}" + state + b"b.", "KeyError")


def test_damage(refused, tmp_path):
    whole = pickle.dumps({0: {"xyz": np.ones((42, 3))}})
    for size in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        refused(whole[:size], "truncated")
    refused(b"not a pickle", "not a readable pickle")
    refused(b"\x80\x02c" + b"a" * 100_000 + b"\nb\n.", "'a{100}'")  # short
    with pytest.raises(HamrError, match="none.pkl is missing"):
        load_pickle(tmp_path / "none.pkl")
    with pytest.raises(HamrError, match="cannot read"):
        load_pickle(tmp_path)


def test_arrays_that_would_read_foreign_memory(refused):
    """A dtype whose fields hide objects in raw bytes; sizes and indices that point outside."""
    hidden = (
        b"\x80\x02cnumpy\ndtype\nU\x02V8K\x00K\x01\x87R(K\x03U\x01|N"
        b"U\x01a\x85}U\x01aK\x00sK\x08K\x01K\x00tb."
    )
    refused(hidden, "refused the array type 'V8'")
    refused(hidden.replace(b"V8", b"f8", 1), "refused the array type")
    dtype = np.zeros(0).__reduce__()[2][2]
    array = forged_array(1, (1000,), dtype, False, b"12345678")
    refused(pickle.dumps(array), "buffer is too small")
    matrix = scipy.sparse.csc_matrix(np.eye(3))
    matrix.indices[1] = 1_000_000
    refused(pickle.dumps(matrix), "indices|index")
    matrix = scipy.sparse.csc_matrix((10**6, 10**6))
    matrix.data, matrix.indices = np.ones(1), np.zeros(1, int)
    refused(pickle.dumps(matrix), "refused a sparse matrix")


def test_sizes_that_are_only_claimed(read, refused):
    """Arrays, byte arrays and memo places of gigabytes in files of some bytes."""
    for code in ("S0", "U0", "V0", "O8", "U1000000000"):
        dtype = b"cnumpy\ndtype\nU" + bytes([len(code)]) + code.encode() + b"\x85R"
        content = (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"(K\x01J\x00\xca\x9a;\x85" + dtype + b"\x89U\x00tb."
        )
        refused(content, "refused the array type")
    size = struct.pack("<Q", 1 << 40)
    for content in (b"\x96" + size + b"abc.", b"\x8e" + size + b"abc.", b"\x8d" + size + b"a."):
        refused(b"\x80\x05" + content, "not a readable pickle")
    assert read(b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1
    nested = [0.0]
    for _ in range(60):
        nested = [nested, nested]
    assert len(read(pickle.dumps(nested))) == 2  # shared, not multiplied


def test_the_same_bytes_many_times(refused):
    """A thousand arrays of one megabyte that the file holds once."""
    state = np.zeros(1 << 20, np.uint8).__reduce__()[2]
    content = pickle.dumps([forged_array(*state) for _ in range(1000)])
    assert len(content) < 1.2e6
    refused(content, "far larger than the file")
