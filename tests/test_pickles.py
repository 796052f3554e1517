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


def read(tmp_path, content):
    path = tmp_path / "stranger.pkl"
    path.write_bytes(content)
    return load_pickle(path)


def short(text):
    """SHORT_BINUNICODE of protocol 4."""
    return b"\x8c" + struct.pack("B", len(text)) + text.encode()


class TestReads:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_all_that_data_sets_hold(self, tmp_path, protocol):
        arrays = [
            np.arange(6.0).reshape(2, 3),
            np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
            np.arange(4, dtype=">i2"),
            np.array([True, False]),
            np.zeros((0, 3)),
            np.array(2.5),
        ]
        dense = np.array([[0, 1.5, 0], [2, 0, 0]])
        kinds = ("csc_matrix", "csr_matrix", "csc_array", "csr_array")
        sparse = [getattr(scipy.sparse, kind)(dense) for kind in kinds]
        plain = {0: [1, (2.5, "text"), None, True], "bytes": b"\x00\xff", "empty": b"",
                 "int": np.int64(-3), "float": np.float32(0.5)}  # fmt: skip
        value = {"arrays": arrays, "sparse": sparse, "plain": plain, "sets": [{3}, frozenset([3])]}
        got = read(tmp_path, pickle.dumps(value, protocol=protocol))
        for ours, array in zip(got["arrays"], arrays, strict=True):
            assert ours.dtype == array.dtype.newbyteorder("=") and ours.shape == array.shape
            np.testing.assert_array_equal(ours, array)
            assert ours.flags.writeable
        for ours, matrix in zip(got["sparse"], sparse, strict=True):
            assert type(ours) is type(matrix)
            np.testing.assert_array_equal(ours.toarray(), dense)
        assert got["plain"] == plain and got["sets"] == [[3], [3]]  # none is hashed
        assert type(got["plain"]["int"]) is np.int64 and type(got["plain"]["float"]) is np.float32

    def test_python_2_array(self, tmp_path):
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
        np.testing.assert_array_equal(read(tmp_path, content), [1.0, 2.0])

    @pytest.mark.parametrize("protocol", [0, 1, 2, 4])
    def test_chumpy(self, tmp_path, monkeypatch, protocol):
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
        content = pickle.dumps({"leaf": leaf, "picked": picked, "flat": flat}, protocol=protocol)
        got = read(tmp_path, content)
        np.testing.assert_array_equal(got["leaf"], leaf.x)
        np.testing.assert_array_equal(got["picked"], [[11, 0], [5, 6]])
        np.testing.assert_array_equal(got["flat"], [3])


class _Reduce:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class TestRefuses:
    """Each hostile pickle would make the canary file; none may, and each error names its reason."""

    @pytest.fixture
    def canary(self, tmp_path):
        path = tmp_path / "canary"
        yield path
        assert not path.exists()

    def refused(self, tmp_path, content, match):
        with pytest.raises(HamrError, match=match) as caught:
            read(tmp_path, content)
        assert "stranger.pkl" in str(caught.value)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_calls(self, tmp_path, canary, protocol):
        attack = _Reduce(os.system, f"touch {canary}")
        pickle.loads(pickle.dumps(attack))  # Python's own unpickler runs it: this test can fail
        canary.unlink()
        name = f"refused the pickled name '{os.system.__module__}.system'"
        self.refused(tmp_path, pickle.dumps(attack, protocol=protocol), name)
        for function in (eval, exec):
            attack = _Reduce(function, f"open({str(canary)!r}, 'w')")
            self.refused(tmp_path, pickle.dumps(attack, protocol=protocol), function.__name__)

    @pytest.mark.parametrize(
        "name",
        [
            "numpy load", "numpy memmap", "numpy.testing runstring", "numpy._core._methods _dump",
            "numpy dtype.type", "numpy core.multiarray._reconstruct", "numpy ndarray.tofile",
            "numpy.core.multiarray _reconstruct.__globals__", "scipy.sparse csc_matrix.__init__",
            "chumpy.ch Ch.__init__.__globals__", "chumpy.ch MatVecMult", "posix system",
            "builtins getattr", "builtins dict.get", "__builtin__ apply", "copyreg __newobj__",
            "_codecs encode.__self__", "functools partial", "torch load",
            "hamr_lib.hand.pickles load_pickle",
        ],
    )  # fmt: skip
    def test_names(self, tmp_path, canary, name):
        """By STACK_GLOBAL (where dots are followed), by GLOBAL, and by INST."""
        module, name = name.split()
        call = short(f"touch {canary}") + b"\x85R."
        lines = f"{module}\n{name}\n".encode()
        for content in (
            b"\x80\x04" + short(module) + short(name) + b"\x93" + call,
            b"\x80\x02c" + lines + call,
            b"(" + short(f"touch {canary}") + b"i" + lines + b".",
        ):
            self.refused(tmp_path, content, f"refused the pickled name '{module}.{name}'")

    @pytest.mark.parametrize(
        "target",
        [b"numpy\ndtype", b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct",
         b"builtins\nset", b"_codecs\nencode", b"chumpy.ch\nCh", b"scipy.sparse\ncsc_matrix"],
    )  # fmt: skip
    def test_state_of_shared_names(self, tmp_path, canary, target):
        """BUILD on an allowed name itself must not change what the next file reads."""
        for state in (b"}U\x05_callU\x04evils", b"N}U\x05_callU\x04evils\x86"):
            self.refused(tmp_path, b"\x80\x02c" + target + b"\n" + state + b"b.", "refused")
        np.testing.assert_array_equal(read(tmp_path, pickle.dumps(np.ones(2))), [1, 1])

    def test_keys_that_take_forever_to_hash(self, tmp_path):
        """Tuples of a tuple twice, sixty deep, as a key, in a set, in a frozen set."""
        deep = b")" + b"2\x86" * 60
        for content in (
            b"}" + deep + b"K\x01s.",
            b"}(" + deep + b"K\x01u.",
            b"(" + deep + b"K\x01d.",
        ):
            message = "refused a key that is neither text nor a number"
            self.refused(tmp_path, b"\x80\x02" + content, message)
        by_name = b"cbuiltins\nset\n(" + deep + b"l\x85R."
        for content in (b"\x8f(" + deep + b"\x90.", b"(" + deep + b"\x91.", by_name):
            read(tmp_path, b"\x80\x04" + content)  # a list: nothing is hashed

    def test_other_damage(self, tmp_path):
        whole = pickle.dumps({0: {"xyz": np.ones((42, 3))}})
        for size in (0, 1, 20, len(whole) // 2, len(whole) - 1):
            self.refused(tmp_path, whole[:size], "truncated")
        self.refused(tmp_path, b"not a pickle", "not a readable pickle")
        loop = []
        loop.append(loop)
        self.refused(tmp_path, pickle.dumps(loop), "Recursion")
        self.refused(tmp_path, b"\x80\x02c" + b"a" * 100_000 + b"\nb\n.", "'a{100}'")  # short
        with pytest.raises(HamrError, match="none.pkl is missing"):
            load_pickle(tmp_path / "none.pkl")
        with pytest.raises(HamrError, match="cannot read"):
            load_pickle(tmp_path)

    def test_nested_in_an_annotation(self, tmp_path, canary):
        attack = _Reduce(os.system, f"touch {canary}")
        annotation = {0: {"uv_vis": np.zeros((42, 3)), "xyz": [attack], "K": np.eye(3)}}
        self.refused(tmp_path, pickle.dumps(annotation), "system")
        inside = np.empty(1, object)
        inside[0] = attack
        self.refused(tmp_path, pickle.dumps(inside), "array type 'O8'|system")
        twice = _Reduce(dict, [("a", _Reduce(list, [attack]))])
        self.refused(tmp_path, pickle.dumps(twice), "builtins.dict|system")

    def test_extension_codes_and_persistent_names(self, tmp_path, canary):
        self.refused(tmp_path, b"\x80\x02\x82\x01.", "unregistered extension")
        self.refused(tmp_path, b"Pos.system\n.", "persistent")

    def test_state_of_stand_ins(self, tmp_path, canary):
        """A stand-in takes state as data: methods in it are not called, classes not replaced."""
        leaf = b"\x80\x04" + short("chumpy.ch") + short("Ch") + b"\x93)\x81"
        system = short("posix") + short("system") + b"\x93"
        for key in ("build", "__class__", "__setstate__", "x"):
            content = leaf + b"}" + short(key) + system + b"sb."
            self.refused(tmp_path, content, "posix.system")
            content = leaf + b"}" + short(key) + short("text") + b"s" + short("x") + b"Nsb."
            self.refused(tmp_path, content, "expected a numeric array")  # only its x is looked at
        by_attribute = leaf + b"N}" + short("build") + short("evil") + b"s\x86b."
        self.refused(tmp_path, by_attribute, "tuple")

    def test_arrays_that_would_read_foreign_memory(self, tmp_path):
        """A dtype whose fields hide objects in raw bytes; sizes and indices that point outside."""
        hidden = (
            b"\x80\x02cnumpy\ndtype\nU\x02V8K\x00K\x01\x87R(K\x03U\x01|N"
            b"U\x01a\x85}U\x01acnumpy\ndtype\nU\x02O8K\x00K\x01\x87RK\x00\x86sK\x08K\x01K\x00tb."
        )
        self.refused(tmp_path, hidden, "refused the array type 'V8'")
        fields = hidden.replace(b"V8", b"f8", 1)
        self.refused(tmp_path, fields, "refused the array type")
        dtype, state = np.zeros(0).__reduce__()[2][2], (1, (1000,))
        for protocol in (2, 4):
            content = pickle.dumps(_Forged(state + (dtype, False, b"12345678")), protocol=protocol)
            self.refused(tmp_path, content, "has 8 bytes")
        matrix = scipy.sparse.csc_matrix(np.eye(3))
        matrix.indices[1] = 1_000_000
        self.refused(tmp_path, pickle.dumps(matrix), "indices|index")

    def test_sizes_that_are_only_claimed(self, tmp_path):
        """Arrays, byte arrays and memo places of gigabytes in files of some bytes."""
        for code in ("S0", "U0", "V0", "O8", "U1000000000"):
            dtype = b"cnumpy\ndtype\nU" + bytes([len(code)]) + code.encode() + b"\x85R"
            content = (
                b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
                b"(K\x01J\x00\xca\x9a;\x85" + dtype + b"\x89U\x00tb."
            )
            self.refused(tmp_path, content, "refused the array type")
        size = struct.pack("<Q", 1 << 40)
        for content in (b"\x96" + size + b"abc.", b"\x8e" + size + b"abc.", b"\x8d" + size + b"a."):
            self.refused(tmp_path, b"\x80\x05" + content, "not a readable pickle")
        assert read(tmp_path, b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1
        nested = [0.0]
        for _ in range(60):
            nested = [nested, nested]
        assert len(read(tmp_path, pickle.dumps(nested))) == 2  # shared, not multiplied

    def test_the_same_bytes_as_many_arrays(self, tmp_path):
        """A thousand arrays of one megabyte that the file holds once."""
        array = np.zeros(1 << 20, np.uint8)
        reduced = array.__reduce__()
        shared = reduced[2][4]
        arrays = [_Forged((*reduced[2][:4], shared)) for _ in range(1000)]
        content = pickle.dumps(arrays, protocol=4)
        assert len(content) < 1.2e6
        self.refused(tmp_path, content, "far larger than the file")


class _Forged:
    """Pickles as an ndarray with a state of our choice."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return (np.ndarray([]).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state)
