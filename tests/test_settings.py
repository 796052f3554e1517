"""Settings: the paper's numbers, and that nothing misspelt gets through."""

import os

import pytest

from hamr_lib.config import PROFILES, Model, from_dict, load_comparison, load_run, load_settings
from hamr_lib.errors import HamrError
from hamr_lib.losses import PARTS
from hamr_lib.variants import VARIANTS


def test_the_paper_profile_has_the_paper_s_numbers():
    s = load_settings("paper")
    assert s.data.sets == "real"
    assert [getattr(s.losses, part) for part in PARTS] == [1000, 1, 1, 0.1, 100, 10]
    assert (s.train.learning_rate, s.train.plateau_factor) == (2e-4, 0.7)
    m = s.model
    assert (m.image_size, m.maps, m.hidden, m.dropout) == (256, 64, 2048, 0.4)
    assert s.augment.scale == (0.9, 1.2) and s.augment.rotation == 60
    assert s.augment.noise**2 == pytest.approx(0.01)  # N(0, 0.01)
    assert (s.losses.joints_3d_kind, s.losses.joints_2d_kind) == ("squared", "squared")
    assert (s.losses.camera_offset, s.losses.camera_scale) == ("metres", "full")
    assert (s.data.rhd_mask, s.hand.model, s.hand.pose_components) == ("depth", "mano", 6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_changes_what_it_names(variant):
    settings = load_settings("reference", variant).to_dict()
    for key, value in VARIANTS[variant].changes.items():
        section, name = key.split(".")
        found = settings[section][name]
        assert (tuple(found) if isinstance(found, list) else found) == value


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("trian: {steps: 3}", "unknown setting 'trian'"),
        ("train: {stepz: 3}", "unknown setting 'train.stepz'"),
        ("train: {steps: 5, validate_every: 2}", "multiple of validate_every"),
        ("train: {learning_rate: .nan}", "finite"),
        ("train: {steps: " + 5000 * "9" + "}", "not YAML"),
        ("train: {optimizer: adam}", "'rmsprop' or 'adamw'"),
        ("train: {lift_beside: 2}", "model.joint_features"),
        ("model: {image_size: 100}", "multiple of 64"),
        ("augment: {scale: [2, 1]}", "augment.scale"),
        ("data: {open: {people: 1}}", "data.open.people"),
        ("study: {ablations: [nope]}", "got 'nope'"),
        ("study: {ablations: [no-mesh, no-mesh]}", "once"),
        ("- train", "expected a mapping"),
        ("{1: 2}", "Keys should be strings"),
        ("train: {steps: 1}\ntrain: {steps: 2}", "'train' twice"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
        (10000 * "[", "not YAML"),
        ("a: &a {b: 1}\nc: *a", "alias"),
        (200000 * " ", "at most"),
        ("base: cqu", "unknown profile 'cqu'"),
        ("base: [cpu]", "unknown profile"),
        (b"\xff\xfe\x00", "not YAML"),
    ],
)
def test_bad_profiles_are_refused_in_a_short_sentence(tmp_path, text, complaint):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(HamrError, match=complaint) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_profile_that_cannot_be_read_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe", "folder", "missing", "x" * 300):
        with pytest.raises(HamrError, match=f"{name[-30:]}.yaml(: | is missing)"):
            load_settings(tmp_path / f"{name}.yaml")


def test_unknown_names_are_refused():
    for name in ("cup", "", "../cpu", "cpu\n", "a\0b", "smoke;ls", 5):
        with pytest.raises(HamrError, match="profile"):
            load_settings(name)
    with pytest.raises(HamrError, match="unknown setting 'stackz'"):
        Model(stackz=2)
    with pytest.raises(HamrError, match="unknown variant 'no-mush'"):
        load_settings("smoke", "no-mush")
    with pytest.raises(HamrError, match="unknown setting 'train.lr'"):
        load_settings("smoke", train__lr=1.0)
    with pytest.raises(HamrError, match="<variant>-s<seed>"):
        load_run("smoke", "no-mesh")


def test_an_ablation_is_lifted_for_as_long_as_the_study_says(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: reference\nstudy: {lift_steps: 7}\n")
    assert load_run(path).train.lift_steps > 7
    run = load_run(path, "pose-6-s2")
    assert (run.train.lift_steps, run.train.seed, run.hand.pose_components) == (7, 2, 6)
    assert run.train.steps == run.study.ablation_steps
    assert load_run(path, "no-lifting-s0").train.lift_steps == 0
    assert load_comparison(path, "hamr").train.lift_steps == 7


@pytest.mark.parametrize("profile", sorted(p.stem for p in PROFILES.glob("*.yaml")))
def test_every_budget_is_a_multiple_of_what_lies_between_validations(profile):
    assert from_dict(load_settings(profile).to_dict()) == load_settings(profile)
    runs = load_run(profile), load_run(profile, "full-s0"), load_comparison(profile, "hamr")
    for run in runs:
        assert run.train.steps % run.train.validate_every == 0


def test_a_base_that_goes_round_in_circles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hamr_lib.config.PROFILES", tmp_path)
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}")
    with pytest.raises(HamrError, match="b.yaml: base: 'a' is itself based on 'b'"):
        load_settings("a")


@pytest.mark.parametrize("there, name", [(True, "gpu"), (False, "cpu")])
def test_auto_is_what_the_machine_would_use(monkeypatch, there, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert load_settings("auto") == load_settings(name)
