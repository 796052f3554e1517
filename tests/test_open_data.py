"""The stand-ins: repeatable, resumable, labelled where the hands are, and split without overlap."""

import dataclasses
from unittest.mock import Mock

import numpy as np
import pytest

from hamr_lib import synth
from hamr_lib.config import Data, OpenData, Settings
from hamr_lib.data import check, dexter, registry, rhd, stb
from hamr_lib.errors import HamrError
from hamr_lib.joints import BONES, TIPS
from hamr_lib.synth import backgrounds, camera, lights, people, sets

FACTORS = OpenData(rhd_training=10, rhd_evaluation=2, stb_frames=1, dexter_frames=2)
SETTINGS = Settings(profile="test", data=Data(sets="open", open=FACTORS))
SPLITS = ("training", "evaluation")


def contents(folder):
    """{file: bytes} of everything rendered; the card and marker name the seed and are left out."""
    paths = [p for p in folder.rglob("*.*") if p.name not in ("README.md", "rendered.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    synth.render_open_sets(SETTINGS, folder, processes=2)
    return folder


def loaded(rendered, name, split="evaluation"):
    return registry.stand_in(name, SETTINGS, rendered).load(split, SETTINGS.data)


def test_every_set_is_complete_and_passes_its_check(rendered):
    for dataset in registry.find_sets(SETTINGS, rendered).values():
        assert not dataset.missing()
        assert check.check_set(dataset, SETTINGS.data).problems == ()
        assert "CC0" in (dataset.root / "README.md").read_text()


@pytest.mark.slow
def test_one_seed_gives_the_same_bytes_whatever_the_processes_and_interruptions(rendered, tmp_path):
    dataset = registry.stand_in("rhd", SETTINGS, tmp_path)
    first, second, evaluation = sets.blocks_of(dataset)
    # An interrupted run: one block is whole, another has an image but no labels yet.
    assert not sets.begun(dataset, FACTORS)
    sets.render_block(dataset.root, FACTORS, second)
    sets.render_block(dataset.root, FACTORS, evaluation)
    evaluation.labels_path(dataset.root).unlink()
    kept = rhd.split_folder(dataset.root, "training") / "color" / "00009.png"
    written = kept.stat().st_mtime_ns
    synth.render_open_sets(SETTINGS, tmp_path, processes=1)
    assert kept.stat().st_mtime_ns == written
    again = contents(tmp_path)
    assert len(again) == 12 * 3 + 2 + 12 * 2 + 6 * 4
    assert again == contents(rendered)


def test_an_incomplete_real_set_stops_before_anything_is_rendered(tmp_path):
    settings = Settings(profile="test", data=Data(sets="auto", open=FACTORS))
    (tmp_path / "raw" / "dexter").mkdir(parents=True)
    with pytest.raises(HamrError, match=r"Dexter\+Object is not complete.*raw/dexter or remove it"):
        synth.render_open_sets(settings, tmp_path, processes=1)
    assert not (tmp_path / "open").exists()


def test_other_settings_are_rendered_again_and_never_mixed(rendered, tmp_path, capsys):
    dataset = registry.stand_in("rhd", SETTINGS, tmp_path)
    block = sets.blocks_of(dataset)[1]
    sets.begun(dataset, FACTORS)
    sets.render_block(dataset.root, FACTORS, block)
    other = dataclasses.replace(FACTORS, seed=2)
    assert not sets.begun(dataset, other)
    assert "rendered again" in capsys.readouterr().out
    assert contents(dataset.root) == {}
    sets.render_block(dataset.root, other, block)
    name = "open-rhd/RHD_published_v2/training/color/00008.png"
    assert contents(dataset.root.parent)[name] != contents(rendered / "open/test")[name]
    # A folder that someone else filled is left alone.
    foreign = registry.stand_in("stb", SETTINGS, tmp_path)
    foreign.root.mkdir(parents=True)
    (foreign.root / "mine.txt").write_text("mine")
    with pytest.raises(HamrError, match="was not rendered here"):
        sets.begun(foreign, FACTORS)


def test_labels_lie_on_the_hand_and_its_parts(rendered):
    folder = rhd.split_folder(registry.stand_in("rhd", SETTINGS, rendered).root, "training")
    on_hand, on_finger = [], []
    for index, frame in enumerate(loaded(rendered, "rhd", "training")):
        lengths = np.linalg.norm(np.diff(frame.joints_3d[np.array(BONES)], axis=1), axis=-1)
        assert 0.008 < lengths.min() and lengths.max() < 0.125
        pixels = np.rint(frame.joints_2d).astype(int)
        inside = ((pixels > 2) & (pixels < 317)).all(1)
        on_hand.append(frame.mask[tuple(pixels[inside].T[::-1])].mean())
        parts = rhd.read_image(folder / "mask" / f"{index:05d}.png", "L")
        for finger, joint in zip(rhd.FINGERS, np.array(TIPS) - 1, strict=True):
            if inside[joint] and frame.visible[joint]:
                u, v = pixels[joint]
                wanted = [rhd.part_id(frame.side, finger, part) for part in ("tip", "middle")]
                on_finger.append(np.isin(parts[v - 2 : v + 3, u - 2 : u + 3], wanted).any())
    # Some joints are hidden by the other hand, a thing, or the sleeve: most are not.
    assert np.mean(on_hand) > 0.7
    assert len(on_finger) > 10 and np.mean(on_finger) > 0.8


def test_sequences_hold_left_hands_as_the_formats_want_them(rendered):
    frames = loaded(rendered, "stb", "training")
    assert len(frames) == len(stb.SPLITS["training"])
    for frame in frames:
        assert frame.side == "left" and frame.image.shape == (480, 640, 3)
        # The wrist that the reader finds is the true one: it is a palm's length from its knuckles.
        assert 0.04 < np.linalg.norm(frame.joints_3d[9] - frame.joints_3d[0]) < 0.12
        assert ((frame.joints_2d > -60) & (frame.joints_2d < 700)).all()
    tips = loaded(rendered, "dexter")
    assert len(tips) == 2 * len(dexter.SEQUENCES)
    for frame in tips:
        assert np.isfinite(frame.joints_3d).all(1).nonzero()[0].tolist() == sorted(TIPS)
    # Two frames after another: the hand moves, but by little.
    assert 0 < np.linalg.norm(tips[1].joints_3d[4] - tips[0].joints_3d[4]) < 0.02


@pytest.mark.parametrize(
    ("depths", "photographed"),
    [((0.5, 0.2), True), ((0.5, 0.05), False), ((-0.1, 0.5), False)],  # near the lens; half behind
)
def test_a_hand_around_the_camera_is_not_photographed(depths, photographed):
    hands = np.zeros((2, 21, 3))
    hands[:, 1:, 2], hands[:, 0, 2] = 1, depths
    person = sets.scene.Person(None, hands, None, None)
    assert sets.at_arms_length(lambda points: points, person) == photographed


def test_left_mirrors_right():
    """With the same angles, all distances within the two hands are the same."""
    shape = dict.fromkeys(people.rigged()[0].phenotype_labels, 0.5)
    arms, _ = people.sample_arms(np.random.default_rng(0), np.zeros((2, 22)))
    _, joints = people.pose_people([shape], [arms])
    left, right = (np.linalg.norm(h[:, None] - h[None], axis=-1) for h in joints[0])
    np.testing.assert_allclose(left, right, atol=2e-4)


def test_splits_share_no_person_or_pose():
    drawn = {}
    for split in SPLITS:
        block = sets.Block("rhd", split, "", 0, 8)
        phenotypes, arms, _ = sets.sample_people(FACTORS, block)
        fingers = [tuple(arm.fingers) for pair in arms for arm in pair]
        drawn[split] = {tuple(p.values()) for p in phenotypes} | set(fingers)
        assert len(drawn[split]) == 24
        # Hands rest in training images only.
        resting = dataclasses.replace(FACTORS, resting=1.0)
        arms = sets.sample_people(resting, block)[1]
        same = fingers == [tuple(arm.fingers) for pair in arms for arm in pair]
        assert same == (split == "evaluation")
    assert not drawn["training"] & drawn["evaluation"]


def test_splits_share_no_photograph_or_place(tmp_path, monkeypatch):
    assert not set(backgrounds.photographs("training")) & set(backgrounds.photographs("evaluation"))
    assert len(set(lights.PLACES["training"]) | set(lights.PLACES["evaluation"])) == 14 + 4
    # An image asks for those of its own split.
    photographs, places = (
        Mock(wraps=wrapped) for wrapped in (backgrounds.photographs, lights.read_place)
    )
    monkeypatch.setattr(backgrounds, "photographs", photographs)
    monkeypatch.setattr(lights, "read_place", places)
    sets.render_block(tmp_path, FACTORS, sets.Block("rhd", "evaluation", "", 0, 8))
    assert {call.args for call in photographs.mock_calls} == {("evaluation",)}
    assert {call.args[0] for call in places.mock_calls} <= set(lights.PLACES["evaluation"])


def test_a_mixed_spectrum_changes_only_what_is_coarse():
    image = np.random.default_rng(0).uniform(0.2, 0.8, (320, 320, 3)).astype(np.float32)
    mixed = camera.mixed_spectrum(np.random.default_rng(1), image, "training")
    change = np.abs(np.fft.rfft2(mixed - image, axes=(0, 1)))
    y, x = np.fft.fftfreq(320, 1 / 320), np.fft.rfftfreq(320, 1 / 320)
    coarse = np.maximum(np.abs(y)[:, None], x[None]) <= 5
    assert change[coarse].sum() > 0
    assert (change[~coarse] ** 2).sum() < 0.02 * (change[coarse] ** 2).sum()


def test_a_place_lights_what_faces_its_lamps_and_is_seen_where_the_camera_looks():
    place = lights.read_place("sunset")
    # The world's up is z; a camera that looks level has it at -y, and forward at z.
    around = lights.Surroundings(*place, np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], float))
    sky, ground = around.view((40, 60), 30)[[0, -1]].mean((1, 2))
    assert sky > ground + 0.1
    up, down = around.light_from(np.array([[0, -1.0, 0], [0, 1.0, 0]])).sum(1)
    assert up > 1.5 * down
    # Light and picture agree on where the sun is: looking there, it is in the middle.
    sun, colour = around.lamps[0]
    assert np.linalg.norm(sun) == pytest.approx(1) and (colour > 0).all()
    x = people.unit(np.cross([0, 0, 1.0], sun))
    at_sun = around._replace(to_camera=np.stack([x, np.cross(sun, x), sun]))
    picture = at_sun.view((64, 64), 40).mean(2)
    assert picture[24:40, 24:40].mean() > 1.2 * picture.mean()


def test_a_users_photographs_are_split_and_join_the_identity_if_all_are_readable(
    tmp_path, monkeypatch
):
    packaged = backgrounds.identity()
    monkeypatch.setenv("BACKGROUNDS", str(tmp_path))
    for number in range(12):
        image = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        rhd.write_image(tmp_path / f"{number}.png", image)
    listed = backgrounds.photographs.__wrapped__  # not from the cache
    monkeypatch.setattr(backgrounds, "photographs", listed)
    training, evaluation = ({p for p in listed(s) if p.parent == tmp_path} for s in SPLITS)
    assert training and evaluation and not training & evaluation
    assert len(training | evaluation) == 12
    assert backgrounds.identity() != packaged
    # Whatever its name says, only listed formats are read: this one would start Ghostscript.
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(HamrError, match="cannot read .*script.png"):
        listed("training")
    monkeypatch.setenv("BACKGROUNDS", str(tmp_path / "nowhere"))
    with pytest.raises(HamrError, match="nowhere"):
        listed("training")


@pytest.mark.parametrize(
    "factor",
    ["people", "textures", "objects", "lights", "lens", "photographs", "environments", "spectrum"],
)
def test_every_factor_changes_the_picture(factor, tmp_path):
    # Some factors are in a fraction of the images only, so more of them are drawn for those.
    rare = factor in ("objects", "environments", "spectrum")
    block = sets.Block("rhd", "training", "", 0, 8 if rare else 1)
    images = []
    for value in (True, False):
        asked, folder = dataclasses.replace(FACTORS, **{factor: value}), tmp_path / str(value)
        sets.render_block(folder, asked, block)
        images.append([rhd.read_image(path) for path in sorted(folder.rglob("color/*.png"))])
    assert len(images[0]) == block.stop and not np.array_equal(*images)
