"""The restricted unpickler: what it reads, and that nothing in a hostile pickle ever runs."""

import contextlib
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
    @pytest.mark.parametrize(
        "array",
        [
            np.arange(6.0).reshape(2, 3),
            np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
            np.arange(4, dtype=">i2"),
            np.array([True, False]),
            np.zeros((0, 3)),
            np.array(2.5),
        ],
        ids=lambda a: f"{a.dtype.str}-{a.shape}",
    )
    def test_arrays(self, tmp_path, array, protocol):
        got = read(tmp_path, pickle.dumps(array, protocol=protocol))
        assert got.dtype == array.dtype.newbyteorder("=") and got.shape == array.shape
        np.testing.assert_array_equal(got, array)
        assert got.flags.writeable

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_containers_and_scalars(self, tmp_path, protocol):
        value = {
            0: [1, (2.5, "text"), None, True],
            "bytes": b"\x00\xff",
            "empty": b"",
            "int": np.int64(-3),
            "float": np.float32(0.5),
        }
        got = read(tmp_path, pickle.dumps(value, protocol=protocol))
        assert got == value
        assert type(got["int"]) is np.int64 and type(got["float"]) is np.float32
        for made in ({3}, frozenset([3])):
            assert read(tmp_path, pickle.dumps(made, protocol=protocol)) == [3]  # none is hashed

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("kind", ["csc_matrix", "csr_matrix", "csc_array", "csr_array"])
    def test_sparse(self, tmp_path, kind, protocol):
        dense = np.array([[0, 1.5, 0], [2, 0, 0]])
        got = read(tmp_path, pickle.dumps(getattr(scipy.sparse, kind)(dense), protocol=protocol))
        assert type(got) is getattr(scipy.sparse, kind)
        np.testing.assert_array_equal(got.toarray(), dense)

    def test_a_value_met_twice_is_one_value(self, tmp_path):
        array = np.ones(3)
        got = read(tmp_path, pickle.dumps([array, array, np.ones(3)]))
        assert got[0] is got[1] and got[0] is not got[2]

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

    def test_the_canary_can_be_made(self, tmp_path):
        """The attack works on Python's own unpickler, so that the tests below can fail."""
        path = tmp_path / "made"
        pickle.loads(pickle.dumps(_Reduce(os.system, f"touch {path}")))
        assert path.exists()

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_system(self, tmp_path, canary, protocol):
        content = pickle.dumps(_Reduce(os.system, f"touch {canary}"), protocol=protocol)
        self.refused(tmp_path, content, f"refused the pickled name '{os.system.__module__}.system'")

    @pytest.mark.parametrize("function", [eval, exec], ids=["eval", "exec"])
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_evaluation(self, tmp_path, canary, function, protocol):
        attack = _Reduce(function, f"open({str(canary)!r}, 'w')")
        self.refused(tmp_path, pickle.dumps(attack, protocol=protocol), function.__name__)

    def test_nested_in_an_annotation(self, tmp_path, canary):
        attack = _Reduce(os.system, f"touch {canary}")
        annotation = {0: {"uv_vis": np.zeros((42, 3)), "xyz": [attack], "K": np.eye(3)}}
        self.refused(tmp_path, pickle.dumps(annotation), "system")
        inside = np.empty(1, object)
        inside[0] = attack
        self.refused(tmp_path, pickle.dumps(inside), "array type 'O8'|system")
        twice = _Reduce(dict, [("a", _Reduce(list, [attack]))])
        self.refused(tmp_path, pickle.dumps(twice), "builtins.dict|system")

    @pytest.mark.parametrize(
        "name",
        [
            ("numpy", "load"),
            ("numpy", "fromfile"),
            ("numpy", "memmap"),
            ("numpy", "f2py"),
            ("numpy", "frompyfunc"),
            ("numpy", "vectorize"),
            ("numpy.testing", "runstring"),
            ("numpy.testing._private.utils", "runstring"),
            ("numpy.f2py", "compile"),
            ("numpy.core.multiarray", "fromstring"),
            ("numpy._core._methods", "_dump"),
            ("numpy.core", "multiarray"),
            ("numpy", "dtype.type"),
            ("numpy", "core.multiarray._reconstruct"),
            ("numpy", "core.multiarray.os.system"),
            ("numpy.core.multiarray", "_reconstruct.__globals__"),
            ("numpy", "ndarray.tofile"),
            ("scipy.sparse", "load_npz"),
            ("scipy.sparse", "csc_matrix.__init__"),
            ("chumpy.ch", "Ch.__init__.__globals__"),
            ("chumpy.ch", "MatVecMult"),
            ("chumpy.utils", "os.system"),
            ("posix", "system"),
            ("nt", "system"),
            ("subprocess", "Popen"),
            ("builtins", "getattr"),
            ("builtins", "__import__"),
            ("builtins", "dict.get"),
            ("__builtin__", "apply"),
            ("copyreg", "__newobj__"),
            ("_codecs", "encode.__self__"),
            ("functools", "partial"),
            ("operator", "attrgetter"),
            ("torch", "load"),
            ("torch.storage", "_load_from_bytes"),
            ("hamr_lib.hand.pickles", "load_pickle"),
        ],
        ids=".".join,
    )
    def test_names(self, tmp_path, canary, name):
        """By STACK_GLOBAL (protocol 4, where dots are followed) and by GLOBAL (protocol 2)."""
        call = short(f"touch {canary}") + b"\x85R."
        by_stack = b"\x80\x04" + short(name[0]) + short(name[1]) + b"\x93" + call
        self.refused(tmp_path, by_stack, f"refused the pickled name '{name[0]}.{name[1]}'")
        by_name = b"\x80\x02c" + "\n".join(name).encode() + b"\n" + call
        self.refused(tmp_path, by_name, f"refused the pickled name '{name[0]}.{name[1]}'")
        by_instance = b"(" + short(f"touch {canary}") + b"i" + "\n".join(name).encode() + b"\n."
        self.refused(tmp_path, by_instance, f"refused the pickled name '{name[0]}.{name[1]}'")

    def test_extension_codes_and_persistent_names(self, tmp_path, canary):
        self.refused(tmp_path, b"\x80\x02\x82\x01.", "unregistered extension")
        self.refused(tmp_path, b"Pos.system\n.", "persistent")

    @pytest.mark.parametrize(
        "target",
        [
            b"cnumpy\ndtype\n",
            b"cnumpy.core.multiarray\n_reconstruct\n",
            b"cbuiltins\nset\n",
            b"c_codecs\nencode\n",
            b"cchumpy.ch\nCh\n",
            b"cscipy.sparse\ncsc_matrix\n",
            b"cnumpy\nndarray\n",
        ],
        ids=lambda t: t.decode().split("\n")[1],
    )
    def test_state_of_shared_names(self, tmp_path, canary, target):
        """BUILD on an allowed name itself must not change what the next file reads."""
        for state in (b"}U\x05_callU\x04evils", b"N}U\x05_callU\x04evils\x86"):
            with pytest.raises(HamrError, match="stranger.pkl"):
                read(tmp_path, b"\x80\x02" + target + state + b"b.")
        np.testing.assert_array_equal(read(tmp_path, pickle.dumps(np.ones(2))), [1, 1])
        assert read(tmp_path, pickle.dumps({1})) == [1]

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

    def test_other_damage(self, tmp_path):
        whole = pickle.dumps({0: {"xyz": np.ones((42, 3))}})
        for size in (0, 1, 20, len(whole) // 2, len(whole) - 1):
            self.refused(tmp_path, whole[:size], "truncated")
        self.refused(tmp_path, b"not a pickle", "not a readable pickle")
        loop = []
        loop.append(loop)
        self.refused(tmp_path, pickle.dumps(loop), "Recursion")
        with pytest.raises(HamrError, match="none.pkl is missing"):
            load_pickle(tmp_path / "none.pkl")
        with pytest.raises(HamrError, match="cannot read"):
            load_pickle(tmp_path)

    @pytest.mark.parametrize("write", [b"s", b"\x85u", b"\x85d"], ids=["s", "u", "d"])
    def test_keys_that_take_forever_to_hash(self, tmp_path, write):
        """Tuples of a tuple twice, sixty deep, as a key, in a set, in a frozen set."""
        laughs = b")" + b"2\x86" * 60
        if write == b"s":
            content = b"\x80\x02}" + laughs + b"K\x01s."
        elif write.endswith(b"u"):
            content = b"\x80\x02}(" + laughs + b"K\x01u."
        else:
            content = b"\x80\x02(" + laughs + b"K\x01d."
        self.refused(tmp_path, content, "refused a key that is neither text nor a number")
        for content in (b"\x80\x04\x8f(" + laughs + b"\x90.", b"\x80\x04(" + laughs + b"\x91."):
            read(tmp_path, content)  # a list: nothing is hashed
        by_name = b"\x80\x02cbuiltins\nset\n(" + laughs + b"l\x85R."
        read(tmp_path, by_name)

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

    def test_messages_are_short(self, tmp_path):
        name = "a" * 100_000
        for content in (
            b"\x80\x02c" + name.encode() + b"\nb\n.",
            b"\x80\x02cnumpy\ndtype\nX" + struct.pack("<I", len(name)) + name.encode() + b"\x85R.",
        ):
            with pytest.raises(HamrError) as caught:
                read(tmp_path, content)
            assert len(str(caught.value)) < 1000

    def test_changed_bytes(self, tmp_path):
        """Some hundred single changes of a file with all that is read: values or our error."""
        rng = np.random.default_rng(0)
        value = {0: {"a": np.eye(3), "m": scipy.sparse.csc_matrix(np.eye(4)), "t": ("b", 1.5)}}
        for protocol in (0, 2, 4):
            whole = pickle.dumps(value, protocol=protocol)
            for _ in range(150):
                changed = bytearray(whole)
                changed[rng.integers(len(whole))] = rng.integers(256)
                with contextlib.suppress(HamrError):
                    read(tmp_path, bytes(changed))


class _Forged:
    """Pickles as an ndarray with a state of our choice."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return (np.ndarray([]).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state)
