"""MANO's files: read as smplx reads them, mended where known to be wrong, refused where broken."""

import pickle
import sys
import types

import numpy as np
import pytest
import scipy.sparse
import smplx
import torch

from hamr_lib.config import load_settings
from hamr_lib.errors import HamrError
from hamr_lib.hand.layer import MANO_TIPS, load_hand, mirrored
from hamr_lib.joints import FINGERS, MANO_NAMES, NAMES

PARENTS = [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
B = 4


def inputs(components, seed=0):
    rng = np.random.default_rng(seed)
    betas, orient, pose = (torch.tensor(rng.normal(size=(B, n))) for n in (10, 3, components))
    return betas, orient, 0.5 * pose


def made_up_mano(seed=0):
    """Arrays of MANO's names and shapes (778 vertices), of no hand in particular."""
    rng = np.random.default_rng(seed)
    regressor = rng.random((16, 778)) * (rng.random((16, 778)) < 0.05)
    weights = rng.random((778, 16)) ** 8
    return {
        "v_template": 0.1 * rng.normal(size=(778, 3)),
        "shapedirs": 0.01 * rng.normal(size=(778, 3, 10)),
        "posedirs": 0.001 * rng.normal(size=(778, 3, 135)),
        "J_regressor": scipy.sparse.csc_matrix(regressor / regressor.sum(1, keepdims=True)),
        "kintree_table": np.array([[2**32 - 1, *PARENTS[1:]], range(16)], dtype=np.uint32),
        "weights": weights / weights.sum(1, keepdims=True),
        "f": rng.integers(778, size=(1538, 3)).astype(np.uint32),
        "hands_mean": 0.3 * rng.normal(size=45),
        "hands_components": np.linalg.qr(rng.normal(size=(45, 45)))[0],
        "hands_coeffs": rng.normal(size=(100, 45)),
        "J": rng.normal(size=(16, 3)),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


@pytest.fixture
def mano(tmp_path, monkeypatch):
    """A function that writes a MANO-shaped file where the real one would lie."""
    for name in ("chumpy", "chumpy.ch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    ch = type("Ch", (), {"__module__": "chumpy.ch"})
    sys.modules["chumpy.ch"].Ch = ch

    def write(arrays, side="right", place="", wrapped=True):
        arrays = dict(arrays)
        if wrapped:  # as in the real file, these are chumpy's objects
            for key in ("shapedirs", "posedirs"):
                if key in arrays:
                    leaf = ch()
                    leaf.__dict__.update(x=arrays[key])
                    arrays[key] = leaf
        path = tmp_path / "raw" / "mano" / place / f"MANO_{side.upper()}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(arrays, protocol=2))
        return path

    return write


class TestMano:
    @pytest.mark.parametrize("components", [6, 45])
    def test_as_smplx_reads_it_itself(self, mano, tmp_path, components):
        arrays = made_up_mano()
        options = {"num_pca_comps": components, "use_pca": components < 45, "batch_size": B}
        theirs = smplx.MANO(str(mano(arrays, wrapped=False)), dtype=torch.float64, **options)
        mano(arrays)
        ours = load_hand("mano", pose_components=components, joints="kinematic", root=tmp_path)
        betas, orient, pose = inputs(components)
        wanted = theirs(betas=betas, global_orient=orient, hand_pose=pose)
        got = ours.double()(betas, orient, pose)
        # load_hand gives float32, so its arrays are rounded once.
        np.testing.assert_allclose(got.vertices, wanted.vertices.detach(), atol=1e-6)
        back = [NAMES.index(name) for name in MANO_NAMES]
        np.testing.assert_allclose(got.joints[:, back], wanted.joints.detach(), atol=1e-6)
        tips = [NAMES.index(f"{finger} tip") for finger in FINGERS]
        np.testing.assert_array_equal(got.joints[:, tips], got.vertices[:, list(MANO_TIPS)])

    @pytest.mark.parametrize("flawed", [True, False])
    def test_left_files_known_flaw_is_mended(self, mano, tmp_path, flawed):
        """The left file's shapes were not mirrored in x; one that is sound stays as it is."""
        right = made_up_mano()
        left = mirrored(right)
        if flawed:
            left["shapedirs"] = right["shapedirs"]
        mano(right)
        mano(left, side="left")
        ours = load_hand("mano", side="left", pose_components=45, root=tmp_path).double()
        other = load_hand("mano", pose_components=45, root=tmp_path).double()
        betas = inputs(45)[0]
        zero = torch.zeros(B, 3).double()
        flip = torch.tensor([-1.0, 1.0, 1.0]).double()
        # At zero pose neither side's pose blend shapes have a say.
        got, wanted = (h(betas, zero, -h.hand_mean.expand(B, -1)).vertices for h in (ours, other))
        np.testing.assert_allclose(got, wanted * flip, atol=1e-6)

    def test_auto_takes_it(self, mano, tmp_path, capsys):
        path = mano(made_up_mano(), place="mano_v1_2/models")
        hand = load_hand("auto", root=tmp_path)
        assert hand.name == "mano" and str(path) in capsys.readouterr().out

    def test_files_that_are_missing_or_broken(self, mano, tmp_path):
        def refused(message, **arguments):
            with pytest.raises(HamrError, match=message):
                load_hand("mano", root=tmp_path, **arguments)

        refused("MANO_RIGHT.pkl is missing .*mano.is.tue")
        assert load_settings("paper").hand.model == "mano"  # never another hand in its place
        mano(made_up_mano(), side="left")
        refused(r"MANO_RIGHT.pkl is missing \(the left hand", side="left")
        arrays = made_up_mano()
        del arrays["posedirs"]
        path = mano(arrays)
        refused("MANO_RIGHT.pkl: posedirs: expected")
        path.write_bytes(path.read_bytes()[:9000])
        refused("MANO_RIGHT.pkl")
        path.write_bytes(pickle.dumps([1, 2, 3]))
        refused("expected a dictionary of arrays, got list")

    @pytest.mark.parametrize(
        "key, value",
        [
            ("weights", np.zeros((700, 16))),
            ("hands_mean", np.zeros(48)),
            ("J_regressor", scipy.sparse.csc_matrix(np.ones((16, 777)))),
            ("shapedirs", np.full((778, 3, 10), np.nan)),
            ("hands_coeffs", np.zeros((5, 44))),
            ("f", [[0, 1, 2]] * 1538),
            ("f", np.full((1538, 3), 778)),
            ("f", np.full((1538, 3), -1)),
            ("f", np.zeros((1538, 3))),
            ("kintree_table", np.array([[-1, 0, 1, 3, *PARENTS[4:]], range(16)])),
            ("kintree_table", np.array([PARENTS, range(1, 17)])),
            ("weights", np.full((778, 16), 0.1)),
            ("J_regressor", np.tile([6.0, -5, *[0] * 776], (16, 1))),
            ("v_template", np.full((778, 3), 1e6)),
        ],
    )
    def test_arrays_that_do_not_fit(self, mano, tmp_path, key, value):
        mano(made_up_mano() | {key: value})
        with pytest.raises(HamrError, match=f"MANO_RIGHT.pkl: {key}: expected"):
            load_hand("mano", root=tmp_path)
