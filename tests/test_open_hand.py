import numpy as np
import pytest
import torch

from hamr_lib.errors import HamrError
from hamr_lib.hand import anatomy, sampling
from hamr_lib.hand import open_hand as module
from hamr_lib.hand.layer import Hand


def millimetres(a, b):
    return 1000 * np.linalg.norm(a - b, axis=-1)


def test_skin_is_shared_out_looks_outside_and_is_open_at_the_forearm_alone(open_hand_data):
    weights = open_hand_data["weights"]
    assert weights.min() >= 0 and (weights.max(0) > 0.75).all()  # each bone has its own flesh
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    faces = open_hand_data["f"].astype(int)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    # Consistently turned: no directed edge twice. The edges without a partner ring the forearm.
    directed = {tuple(edge) for edge in edges}
    assert len(directed) == len(edges)
    border = [a for a, b in directed if (b, a) not in directed]
    assert 0 < len(border) < 40
    assert -0.03 < open_hand_data["v_template"][border, 1].max() < -0.01
    a, b, c = (open_hand_data["v_template"][faces[:, k]] for k in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    assert 2e-4 < volume < 5e-4  # cubic metres: a third of a litre


def test_pose_components(open_hand_data):
    components, coeffs = open_hand_data["hands_components"], open_hand_data["hands_coeffs"]
    np.testing.assert_allclose(components @ components.T, np.eye(45), atol=1e-9)
    np.testing.assert_allclose(coeffs.mean(0), 0, atol=1e-9)
    spread = coeffs.std(0)
    assert (np.diff(spread) <= 1e-9).all()
    covariance = coeffs.T @ coeffs / len(coeffs)
    np.testing.assert_allclose(covariance, np.diag(spread**2), atol=1e-9)
    # 22 angles, rotations of which are nearly linear: far fewer components than 45 matter.
    share = np.cumsum(spread**2) / (spread**2).sum()
    assert share[5] > 0.8 and share[21] > 0.99
    # They are what the sampler's own poses are made of.
    sampled = sampling.sample_poses(np.random.default_rng(99), 500)
    vectors = anatomy.angles_to_axis_angle(sampled).reshape(500, 45) - open_hand_data["hands_mean"]
    np.testing.assert_allclose((vectors @ components.T).std(0)[:6], spread[:6], rtol=0.15)


def test_shapes_of_people_it_has_not_seen(open_hand_data, anny_hand):
    vertices, joints = module.people(anny_hand, 600, seed=99)
    basis = open_hand_data["shapedirs"].reshape(-1, 10)
    offset = (vertices - open_hand_data["v_template"]).reshape(600, -1)
    betas = np.linalg.lstsq(basis, offset.T)[0]
    rebuilt = open_hand_data["v_template"] + (basis @ betas).T.reshape(600, -1, 3)
    assert millimetres(rebuilt, vertices).mean() < 0.1
    assert open_hand_data["shape_variance"].sum() > 0.999
    np.testing.assert_allclose(betas.std(1), 1, atol=0.25)  # unit variance
    # Positive first betas are larger hands.
    size = np.linalg.norm(vertices[:, open_hand_data["tips"][2]] - joints[:, 0], axis=1)
    assert np.corrcoef(size, betas[0])[0, 1] > 0.95
    assert 0.16 < np.median(size) < 0.21


def test_regressor_finds_joints_at_rest_and_posed(open_hand_data, anny_hand):
    regressor = open_hand_data["J_regressor"]
    np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-9)
    assert regressor.min() >= 0
    bent = anatomy.anny_pose(sampling.sample_poses(np.random.default_rng(77), 150), "right")
    for pose, mean, worst in ((None, 0.4, 5), (bent, 0.8, 7)):
        vertices, joints = module.people(anny_hand, 150, 77, pose)
        error = millimetres(regressor @ vertices, joints)
        assert error.mean() < mean and error.max() < worst


def test_poses_as_anny_does(open_hand_data, anny_hand):
    """Anny posed by bones, and the open hand posed by axis-angle, are the same mesh."""
    angles = np.stack(
        [*list(anatomy.GESTURES.values())[:8], *sampling.sample_poses(np.random.default_rng(5), 8)]
    )
    phenotype = {label: torch.full((16,), 0.5) for label in anny_hand.phenotype_labels}
    bones = {k: torch.as_tensor(v) for k, v in anatomy.anny_pose(angles, "right").items()}
    with torch.no_grad():
        wanted = anny_hand(pose_parameters=bones, phenotype_kwargs=phenotype)["vertices"].numpy()
        rest = anny_hand(phenotype_kwargs=phenotype)["vertices"][0].numpy()
        # This one person's hand as the template, so that only the posing is compared.
        data = open_hand_data | {"v_template": rest}
        hand = Hand(data, "open", "right", 45, "kinematic")
        vectors = anatomy.angles_to_axis_angle(angles).reshape(16, 45)
        pose = torch.tensor(vectors - data["hands_mean"])
        none = torch.zeros(16, 10, dtype=torch.float64)
        got = hand(none, none[:, :3], pose).vertices.numpy()
    assert millimetres(got, wanted).mean() < 0.3
    assert millimetres(got, wanted).max() < 1


def test_the_cache_is_built_once_and_a_damaged_file_is_named(
    open_hand_data, monkeypatch, tmp_path, capsys
):
    built = []
    monkeypatch.setattr(module, "build", lambda: built.append(1) or open_hand_data)
    first, second = module.open_hand(tmp_path), module.open_hand(tmp_path)
    assert len(built) == 1 and capsys.readouterr().out.count("building the open hand") == 1
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(HamrError, match=f"{path.name} is damaged"):
        module.open_hand(tmp_path)
