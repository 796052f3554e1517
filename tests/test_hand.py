import pickle
import sys
import types

import numpy as np
import pytest
import scipy.sparse
import smplx
import torch
from scipy.spatial.transform import Rotation

from hamr_lib.config import load_settings
from hamr_lib.errors import HamrError
from hamr_lib.hand import anatomy
from hamr_lib.hand.layer import MANO_TIPS, Hand, load_hand, mirrored
from hamr_lib.joints import FINGERS, MANO_NAMES, NAMES

PARENTS = [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
B = 4


def open_layer(data, components=45, joints="kinematic", side="right"):
    """The open hand in float64, so that tests can be exact."""
    data = data if side == "right" else mirrored(data)
    return Hand(data, "open", side, components, joints, data["tips"])


def inputs(components, seed=0):
    rng = np.random.default_rng(seed)
    return (
        torch.tensor(rng.normal(size=(B, 10))),
        torch.tensor(rng.normal(size=(B, 3))),
        torch.tensor(0.5 * rng.normal(size=(B, components))),
    )


def skinned(data, betas, orient, pose):
    """MANO in plain NumPy, from the formulas of Romero et al. 2017, one hand at a time.

    Returns:
        vertices (V, 3) and the 16 kinematic joints (16, 3).
    """
    shaped = data["v_template"] + data["shapedirs"] @ betas
    rest = np.asarray(data["J_regressor"] @ shaped)
    turns = Rotation.from_rotvec(np.concatenate([orient, pose]).reshape(16, 3)).as_matrix()
    shaped = shaped + data["posedirs"] @ (turns[1:] - np.eye(3)).ravel()
    world = np.zeros((16, 4, 4))
    for j, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = turns[j]
        local[:3, 3] = rest[j] - (rest[parent] if parent >= 0 else 0)
        world[j] = local if parent < 0 else world[parent] @ local
    joints = world[:, :3, 3].copy()
    world[:, :3, 3] -= np.einsum("jab,jb->ja", world[:, :3, :3], rest)
    blended = np.einsum("vj,jab->vab", data["weights"], world)
    return np.einsum("vab,vb->va", blended[:, :3, :3], shaped) + blended[:, :3, 3], joints


def volume(vertices, faces):
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


class TestLayer:
    def test_against_plain_numpy(self, open_hand_data):
        # The open hand has no pose blend shapes; give it some, so that they are tested too.
        data = open_hand_data | {
            "posedirs": 1e-3 * np.random.default_rng(1).normal(size=(1649, 3, 135))
        }
        hand = open_layer(data)
        betas, orient, pose = inputs(45)
        mesh = hand(betas, orient, pose)
        assert mesh.vertices.shape == (B, 1649, 3) and mesh.joints.shape == (B, 21, 3)
        for i in range(B):
            vertices, joints = skinned(
                data, betas[i].numpy(), orient[i].numpy(), pose[i].numpy() + data["hands_mean"]
            )
            # smplx adds 1e-8 to every axis-angle number, hence not to the last bit.
            np.testing.assert_allclose(mesh.vertices[i], vertices, atol=1e-7)
            named = dict(zip(NAMES, mesh.joints[i].numpy(), strict=True))
            for name, joint in zip(MANO_NAMES, joints, strict=True):
                np.testing.assert_allclose(named[name], joint, atol=1e-7)
            for finger, tip in zip(FINGERS, data["tips"], strict=True):
                np.testing.assert_allclose(named[f"{finger} tip"], vertices[tip], atol=1e-7)

    def test_zero_pose_is_the_shaped_template(self, open_hand_data):
        hand = open_layer(open_hand_data)
        betas, _, _ = inputs(45)
        flat = -torch.tensor(open_hand_data["hands_mean"]).expand(B, -1)
        mesh = hand(betas, torch.zeros(B, 3).double(), flat)
        shaped = open_hand_data["v_template"] + np.einsum(
            "vck,bk->bvc", open_hand_data["shapedirs"], betas.numpy()
        )
        np.testing.assert_allclose(mesh.vertices, shaped, atol=1e-7)

    @pytest.mark.parametrize("joints", ["regressed", "kinematic"])
    def test_turning_the_hand_turns_everything(self, open_hand_data, joints):
        hand = open_layer(open_hand_data, joints=joints)
        betas, orient, pose = inputs(45)
        turn = torch.tensor(Rotation.from_rotvec(orient.numpy()).as_matrix())
        still = hand(betas, torch.zeros_like(orient), pose)
        by_vector, by_matrix = hand(betas, orient, pose), hand(betas, turn, pose)
        wrist = open_layer(open_hand_data)(betas, torch.zeros_like(orient), pose).joints[:, :1]
        for got, other, before in zip(by_vector, by_matrix, still, strict=True):
            wanted = (before - wrist) @ turn.transpose(1, 2) + wrist
            np.testing.assert_allclose(got, wanted, atol=1e-7)
            np.testing.assert_allclose(other, wanted, atol=1e-7)

    @pytest.mark.parametrize("components", [1, 6, 12, 44])
    def test_components_are_axis_angle_numbers(self, open_hand_data, components):
        betas, orient, coefficients = inputs(components)
        numbers = coefficients @ torch.tensor(open_hand_data["hands_components"][:components])
        np.testing.assert_allclose(
            open_layer(open_hand_data, components)(betas, orient, coefficients).vertices,
            open_layer(open_hand_data)(betas, orient, numbers).vertices,
            atol=1e-9,
        )

    def test_regressed_joints_are_eq_3(self, open_hand_data):
        args = inputs(45)
        mesh = open_layer(open_hand_data, joints="regressed")(*args)
        regressed = open_hand_data["J_regressor"] @ mesh.vertices.numpy()
        for j, name in enumerate(MANO_NAMES):
            np.testing.assert_allclose(
                mesh.joints[:, NAMES.index(name)], regressed[:, j], atol=1e-9
            )
        other = open_layer(open_hand_data)(*args).joints
        apart = (mesh.joints - other).norm(dim=-1)
        assert 1e-5 < apart.max() < 0.03  # two definitions, not one
        tips = [i for i, name in enumerate(NAMES) if name.endswith("tip")]
        assert apart[:, tips].max() == 0

    @pytest.mark.parametrize("joints", ["regressed", "kinematic"])
    @pytest.mark.parametrize("components", [6, 45])
    def test_the_skeleton_is_the_mesh_s(self, joints, components, open_hand_data):
        """With MANO's pose blend shapes too, and for either form of the orientation."""
        mano = {k: getattr(v, "toarray", lambda v=v: v)() for k, v in made_up_mano().items()}
        betas, orient, pose = inputs(components)
        matrix = torch.tensor(Rotation.from_rotvec(orient.numpy()).as_matrix())
        for hand in (
            open_layer(open_hand_data, components, joints),
            Hand(mano, "mano", "right", components, joints, np.array(MANO_TIPS)),
        ):
            for turn in (orient, matrix):
                expected = hand(betas, turn, pose).joints
                np.testing.assert_allclose(hand.skeleton(betas, turn, pose), expected, atol=1e-9)
        with pytest.raises(HamrError, match="betas: expected shape"):
            hand.skeleton(betas[:, :9], orient, pose)

    def test_its_poses_are_the_same_in_either_form(self, open_hand_data):
        """As coefficients and as axis-angle numbers; the sampler's 22 angles need no more."""
        coefficients, angles = (open_layer(open_hand_data, n) for n in (44, 45))
        assert angles.poses.shape == (4000, 45) and coefficients.poses.shape == (4000, 44)
        assert angles.poses.std() > 0.1
        zero = torch.zeros(B, 10).double()
        ours, theirs = (
            hand.skeleton(zero, zero[:, :3], hand.poses[:B]) for hand in (coefficients, angles)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    def test_gradients_reach_every_input_also_at_zero(self, open_hand_data):
        hand = open_layer(open_hand_data, components=6, joints="regressed").float()
        args = [torch.zeros(2, n, requires_grad=True) for n in (10, 3, 6)]
        hand(*args).joints.square().sum().backward()
        for value in args:
            assert torch.isfinite(value.grad).all() and value.grad.abs().min() > 0

    def test_left_mirrors_right(self, open_hand_data):
        right = open_layer(open_hand_data, 6, "regressed")
        left = open_layer(open_hand_data, 6, "regressed", side="left")
        betas, orient, pose = inputs(6)
        flip = torch.tensor([-1.0, 1.0, 1.0]).double()
        ours, theirs = right(betas, orient, pose), left(betas, orient * -flip, pose)
        np.testing.assert_allclose(theirs.vertices, ours.vertices * flip, atol=1e-7)
        np.testing.assert_allclose(theirs.joints, ours.joints * flip, atol=1e-7)
        sizes = volume(ours.vertices[0], right.faces), volume(theirs.vertices[0], left.faces)
        assert sizes[0] == pytest.approx(sizes[1]) and sizes[0] > 0  # both look outside

    def test_leaves_nothing_in_a_checkpoint(self, open_hand_data):
        hand = open_layer(open_hand_data)
        assert not hand.state_dict() and not list(hand.parameters())
        assert hand.weights.shape == (1649, 16) and hand.faces.dtype == torch.long
        np.testing.assert_allclose(hand.hand_mean, open_hand_data["hands_mean"])


class TestGestures:
    def joints(self, data, *names):
        angles = np.stack([anatomy.GESTURES[name] for name in names])
        vectors = anatomy.angles_to_axis_angle(angles).reshape(len(names), 45)
        zero = torch.zeros(len(names), 10).double()
        pose = torch.tensor(vectors - data["hands_mean"])
        return open_layer(data)(zero, zero[:, :3], pose).joints.numpy()

    def test_fist_brings_the_tips_to_the_palm(self, open_hand_data):
        opened, fist = self.joints(open_hand_data, "open", "fist")
        tips = [NAMES.index(f"{finger} tip") for finger in FINGERS[1:]]
        palm = (opened[0] + opened[NAMES.index("middle MCP")]) / 2
        near, far = (np.linalg.norm(pose[tips] - palm, axis=1) for pose in (fist, opened))
        assert (near < 0.6 * far).all()
        # They close on the palm's side, which for the right hand is -x.
        knuckles, middles = (
            [NAMES.index(f"{finger} {joint}") for finger in FINGERS[1:]] for joint in ("MCP", "PIP")
        )
        assert (fist[middles, 0] < fist[knuckles, 0] - 0.015).all()

    def test_pointing_extends_the_index_finger_only(self, open_hand_data):
        flat, point = self.joints(open_hand_data, "flat", "point")

        def reach(pose, finger):
            return np.linalg.norm(
                pose[NAMES.index(f"{finger} tip")] - pose[NAMES.index(f"{finger} MCP")]
            )

        share = {finger: reach(point, finger) / reach(flat, finger) for finger in FINGERS[1:]}
        assert share.pop("index") > 0.98
        assert max(share.values()) < 0.7


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


def tree(parent_of_3=2):
    """MANO's kinematic tree, with another parent of its fourth joint."""
    table = np.array([[-1, *PARENTS[1:]], range(16)])
    table[0, 3] = parent_of_3
    return table


def signed(shape):
    """Rows that sum up to 1, with numbers far below zero."""
    rows = np.zeros(shape)
    rows[:, :2] = (6, -5)
    return rows


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
        theirs = smplx.MANO(
            str(mano(arrays, wrapped=False)),
            num_pca_comps=components,
            use_pca=components < 45,
            batch_size=B,
            dtype=torch.float64,
        )
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

    def test_other_tips(self, mano, tmp_path):
        mano(made_up_mano())
        hand = load_hand("mano", tips=(744, 320, 443, 554, 671), root=tmp_path)
        mesh = hand(torch.zeros(1, 10), torch.zeros(1, 3), torch.zeros(1, 6))
        assert torch.equal(mesh.joints[0, NAMES.index("thumb tip")], mesh.vertices[0, 744])
        assert torch.equal(mesh.joints[0, NAMES.index("little tip")], mesh.vertices[0, 671])

    def test_auto_takes_it_and_says_so(self, mano, tmp_path, capsys):
        path = mano(made_up_mano(), place="mano_v1_2/models")
        assert load_hand("auto", root=tmp_path).name == "mano"
        assert capsys.readouterr().out == f"hand: {path}\n"

    def test_auto_without_it(self, capsys):
        hand = load_hand("auto")
        said = capsys.readouterr().out
        assert (hand.name == "open") == ("the open hand; no MANO in" in said)

    def test_missing(self, tmp_path):
        with pytest.raises(HamrError, match=r"raw/mano/MANO_RIGHT.pkl is missing: .*mano.is.tue"):
            load_hand(load_settings("paper").hand.model, root=tmp_path)  # never another hand

    def test_truncated(self, mano, tmp_path):
        path = mano(made_up_mano())
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(HamrError, match="MANO_RIGHT.pkl"):
            load_hand("mano", root=tmp_path)

    def test_a_key_is_missing(self, mano, tmp_path):
        arrays = made_up_mano()
        del arrays["posedirs"]
        mano(arrays)
        with pytest.raises(HamrError, match="MANO_RIGHT.pkl: expected 'posedirs' in it"):
            load_hand("mano", root=tmp_path)

    @pytest.mark.parametrize(
        "key,value,message",
        [
            (
                "weights",
                np.zeros((700, 16)),
                r"weights: expected .* \(778, 16\), got .* \(700, 16\)",
            ),
            ("shapedirs", np.full((778, 3, 10), np.nan), "shapedirs: expected finite numbers"),
            ("hands_mean", np.zeros(48), r"hands_mean: expected .* \(45,\)"),
            ("f", np.full((1538, 3), "a"), "refused the array type 'U1'"),
            ("f", [[0, 1, 2]] * 1538, "f: expected finite numbers .* got list"),
            ("f", np.full((1538, 3), 778), "f: expected vertices below 778"),
            ("f", np.full((1538, 3), -1), "f: expected vertices below 778"),
            ("f", np.zeros((1538, 3)), "f: expected whole numbers"),
            ("kintree_table", tree(parent_of_3=15), "kintree_table: expected MANO's parents"),
            ("kintree_table", tree(parent_of_3=3), "kintree_table: expected MANO's parents"),
            ("kintree_table", tree(parent_of_3=-1), "kintree_table: expected MANO's parents"),
            ("kintree_table", tree()[:, ::-1], "kintree_table: expected MANO's parents"),
            ("kintree_table", tree() * 1.0, "kintree_table: expected whole numbers"),
            ("weights", np.full((778, 16), 0.1), "weights: expected parts of each vertex"),
            ("weights", signed((778, 16)), "weights: expected parts of each vertex"),
            ("J_regressor", np.zeros((16, 778)), "J_regressor: expected parts of each joint"),
            ("J_regressor", signed((16, 778)), "J_regressor: expected parts of each joint"),
            (
                "J_regressor",
                scipy.sparse.csc_matrix((10**9, 778)),
                r"J_regressor: expected .* \(16, 778\), got .* \(1000000000, 778\)",
            ),
            ("v_template", np.full((778, 3), 1e6), "v_template: expected numbers up to 1000"),
            ("hands_coeffs", np.zeros((0, 45)), "hands_coeffs: expected finite numbers"),
        ],
    )
    def test_arrays_that_do_not_fit(self, mano, tmp_path, key, value, message):
        mano(made_up_mano() | {key: value})
        with pytest.raises(HamrError, match=f"MANO_RIGHT.pkl: {message}"):
            load_hand("mano", root=tmp_path)

    def test_not_a_dictionary(self, tmp_path):
        path = tmp_path / "raw" / "mano" / "MANO_RIGHT.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(pickle.dumps([1, 2, 3]))
        with pytest.raises(HamrError, match="expected a dictionary of arrays, got list"):
            load_hand("mano", root=tmp_path)

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
        np.testing.assert_allclose(
            ours(betas, zero, -ours.hand_mean.expand(B, -1)).vertices,
            other(betas, zero, -other.hand_mean.expand(B, -1)).vertices * flip,
            atol=1e-6,
        )

    def test_left_needs_right(self, mano, tmp_path):
        mano(made_up_mano(), side="left")
        with pytest.raises(HamrError, match=r"MANO_RIGHT.pkl is missing \(MANO's left hand"):
            load_hand("mano", side="left", root=tmp_path)


class TestArguments:
    @pytest.mark.parametrize(
        "wrong,message",
        [
            ({"name": "smpl"}, "name: expected one of auto, mano, open, got 'smpl'"),
            ({"side": "both"}, "side: expected one of right, left, got 'both'"),
            ({"joints": "both"}, "joints: expected one of regressed, kinematic, got 'both'"),
            ({"pose_components": 46}, "pose_components: expected 1 to 45, got 46"),
            ({"pose_components": 6.0}, "pose_components: expected 1 to 45, got 6.0"),
            ({"tips": (1, 2, 3)}, "tips: expected five vertices below 1649"),
            ({"tips": (0, 1, 2, 3, 1649)}, "tips: expected five vertices below 1649"),
        ],
    )
    def test_of_load_hand(self, wrong, message):
        with pytest.raises(HamrError, match=message):
            load_hand(**{"name": "open"} | wrong)

    @pytest.mark.parametrize(
        "which,shape,message",
        [
            (0, (2, 9), r"betas: expected shape \(2, 10\), got \(2, 9\)"),
            (1, (3, 3), r"global_orient: expected shape \(2, 3\) or \(2, 3, 3\), got \(3, 3\)"),
            (1, (2, 4), r"global_orient: expected shape \(2, 3\) or \(2, 3, 3\), got \(2, 4\)"),
            (2, (2, 45), r"hand_pose: expected shape \(2, 6\), got \(2, 45\)"),
            (2, (1, 6), r"hand_pose: expected shape \(2, 6\), got \(1, 6\)"),
        ],
    )
    def test_of_the_layer(self, open_hand_data, which, shape, message):
        args = [torch.zeros(2, n).double() for n in (10, 3, 6)]
        args[which] = torch.zeros(shape).double()
        with pytest.raises(HamrError, match=message):
            open_layer(open_hand_data, 6)(*args)

    def test_load_hand_gives_single_precision_on_either_side(self):
        for side in ("right", "left"):
            hand = load_hand("open", side)
            assert (hand.name, hand.side, hand.pose_components) == ("open", side, 6)
            mesh = hand(torch.zeros(1, 10), torch.zeros(1, 3), torch.zeros(1, 6))
            assert mesh.vertices.dtype == torch.float32
            # The thumb lies at +z on both; the palm looks to -x on the right, +x on the left.
            tip, base = (mesh.joints[0, NAMES.index(n)] for n in ("middle tip", "middle MCP"))
            assert (tip[0] < base[0]) == (side == "right")
