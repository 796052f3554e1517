"""Settings: the paper's numbers, and that nothing misspelt gets through."""

import dataclasses

import pytest

from hamr_lib.config import (
    PROFILES,
    VARIANTS,
    Settings,
    from_dict,
    load_comparison,
    load_run,
    load_settings,
)
from hamr_lib.errors import HamrError


def test_the_paper_profile_has_the_paper_s_numbers():
    s = load_settings("paper")
    assert s.data.sets == "real"
    weights = [getattr(s.losses, k) for k in (
        "joints_3d", "joints_2d", "geometric", "camera", "heatmap", "silhouette"
    )]  # fmt: skip
    assert weights == [1000, 1, 1, 0.1, 100, 10]
    assert (s.train.learning_rate, s.train.plateau_factor) == (2e-4, 0.7)
    assert (s.model.image_size, s.model.maps, s.model.hidden, s.model.dropout) == (
        256,
        64,
        2048,
        0.4,
    )
    assert s.augment.scale == (0.9, 1.2) and s.augment.rotation == 60
    assert s.augment.noise**2 == pytest.approx(0.01)  # N(0, 0.01)
    assert (s.losses.joints_3d_kind, s.losses.joints_2d_kind) == ("squared", "squared")
    assert (s.losses.camera_offset, s.losses.camera_scale) == ("metres", "full")
    assert (s.data.rhd_mask, s.hand.model, s.hand.pose_components) == ("depth", "mano", 6)


@pytest.mark.parametrize("profile", [p.stem for p in PROFILES.glob("*.yaml")])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_profile_takes_every_variant_and_survives_a_round_trip(profile, variant):
    settings = load_settings(profile, variant)
    assert from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("trian: {steps: 3}", "unknown setting 'trian'"),
        ("train: {stepz: 3}", "unknown setting 'stepz'"),
        ("train: {steps: many}", "expected int, got 'many'"),
        ("train: {steps: true}", "expected int, got True"),
        ("train: {optimizer: adam}", "expected one of rmsprop, adamw"),
        ("augment: {scale: [1.0]}", "expected a list of 2"),
        ("train: 3", "expected a mapping"),
        ("train: {", "is not YAML"),
        ("base: cqu", "unknown profile 'cqu'"),
    ],
)
def test_bad_profiles_are_refused(tmp_path, text, complaint):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(HamrError, match=complaint) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_unknown_names_are_refused():
    with pytest.raises(HamrError, match="unknown profile 'cup'.*cpu"):
        load_settings("cup")
    with pytest.raises(HamrError, match="unknown variant 'no-mush'"):
        load_settings("smoke", "no-mush")
    with pytest.raises(HamrError, match="unknown setting 'lr'"):
        load_settings("smoke", train__lr=1.0)
    with pytest.raises(HamrError, match="<variant>-s<seed>"):
        load_run("smoke", "no-mesh")


def test_a_run_is_a_variant_with_its_seed_and_the_ablations_budget():
    main, run = load_run("smoke"), load_run("smoke", "no-mesh-s2")
    assert main == load_settings("smoke")
    assert not run.model.mesh and run.train.seed == 2
    assert run.train.steps == main.study.ablation_steps


def test_an_ablation_is_lifted_for_as_long_as_the_study_says(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: long\nstudy: {lift_steps: 7}\n")
    assert load_run(path).train.lift_steps > 7
    assert load_run(path, "pose-6-s0").train.lift_steps == 7
    assert load_run(path, "no-lifting-s0").train.lift_steps == 0
    assert load_comparison(path, "hamr").train.lift_steps == 7


@pytest.mark.parametrize("profile", sorted(p.stem for p in PROFILES.glob("*.yaml")))
def test_every_budget_is_a_multiple_of_what_lies_between_validations(profile):
    runs = load_run(profile), load_run(profile, "full-s0"), load_comparison(profile, "hamr")
    for run in runs:
        assert run.train.steps % run.train.validate_every == 0


def test_a_comparison_begins_anew_and_an_ablation_where_the_profile_does():
    assert load_run("photos", "no-coarse-s1").train.start == load_settings("photos").train.start
    assert load_run("photos", "anew-s1").train.start == ""
    assert load_comparison("photos", "hamr").train.start == ""


def test_a_profile_says_what_differs_from_its_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: smoke\ntrain: {steps: 18}\nstudy: {ablations: []}\n")
    mine, base = load_settings(path), load_settings("smoke")
    train = dataclasses.replace(base.train, steps=18)
    study = dataclasses.replace(base.study, ablations=())
    assert mine == dataclasses.replace(base, profile="mine", train=train, study=study)


def test_a_base_that_goes_round_in_circles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hamr_lib.config.PROFILES", tmp_path)
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}")
    with pytest.raises(HamrError, match="b.yaml: base: 'a' is itself based on 'b'"):
        load_settings("a")


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().train.seed = 1
