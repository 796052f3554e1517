"""Recovering hands: found ones, given boxes, the geometry there and back, the files."""

import itertools
import json
import os
import signal

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_photo import photo
from tiny import draw_frames

from hamr_lib.data.photographs import example_photographs
from hamr_lib.errors import HamrError
from hamr_lib.files import read_json, write_json
from hamr_lib.hand.layer import load_hand
from hamr_lib.joints import NAMES
from hamr_lib.model.hamr import START_SCALE
from hamr_lib.recovery import pipeline, refine, result
from hamr_lib.recovery.detect import overlap
from hamr_lib.recovery.meshfile import write_mesh
from hamr_lib.recovery.output import whole_set
from hamr_lib.recovery.photo import read_photo
from hamr_lib.recovery.pipeline import NoHandError, recover, recover_frame

BOX = (90.0, 60.0, 190.0, 180.0)


@pytest.fixture(scope="module")
def two_hands():
    """A photo of a left hand, and beside it its mirror image, a right one."""
    left = read_photo(example_photographs()[0])
    return np.hstack([left, left[:, ::-1]])


@pytest.fixture(scope="module")
def right(tiny_checkpoint):
    [found] = recover(photo(), BOX, "right", tiny_checkpoint)
    return found


@pytest.mark.parametrize(
    "name, values",
    [
        ("side", ["both"]),
        ("evidence", ["maps"]),
        ("box", [(0, 0, 5), (5, 0, 5, 9), (0, 0, np.nan, 9), (0, 0, 10**400, 9), "abcd", 7,
                 (400, 0, 500, 90), (-1e12, -1e12, 1e12, 1e12), (0, 0, 1e308, 1e308)]),
        ("checkpoint", ["nowhere.pt", __file__, 5]),
        ("device", ["gpu", "meta", 3.5]),
    ],
)  # fmt: skip
def test_a_bad_argument_is_told(tiny_checkpoint, name, values):
    good = {"image": photo(), "box": BOX, "side": "right", "checkpoint": tiny_checkpoint}
    for value in values:
        told = str(value) if name == "checkpoint" and value != 5 else f"{name}="
        with pytest.raises(HamrError) as raised:
            recover(**{**good, name: value})
        assert told in str(raised.value) and len(str(raised.value)) < 500


# --- finding hands ------------------------------------------------------------------------------


def test_hands_are_found_with_their_side(tiny_checkpoint, two_hands):
    found = {hand.side: hand for hand in recover(two_hands, checkpoint=tiny_checkpoint)}
    assert set(found) == {"left", "right"}
    width = two_hands.shape[1]
    x0, y0, x1, y1 = found["left"].box
    assert overlap(found["right"].box, (width - 1 - x1, y0, width - 1 - x0, y1)) > 0.9
    for hand in found.values():
        assert hand.score > 0.9 and hand.evidence == "both"
        assert hand.confidence.shape == (21,) and 0 <= hand.confidence.min()
        # Fitted to the landmarks, joints lie in their box even of a network that knows nothing.
        assert overlap(hand.box, (*hand.joints_2d.min(0), *hand.joints_2d.max(0))) > 0.7


def test_a_side_chooses_among_the_hands_or_overrules(tiny_checkpoint, two_hands, monkeypatch):
    [found] = recover(two_hands, side="right", checkpoint=tiny_checkpoint)
    assert found.side == "right" and found.box[0] > two_hands.shape[1] / 2
    # Only a left hand is there: the caller knows better. The depths of the landmarks are then no
    # evidence, with and without a box.
    photo, truly, depths = example_photographs()[0], refine.lay, []

    def lay(model, output, evidence, landmarks, world):
        depths.append(world)
        return truly(model, output, evidence, landmarks, world)

    monkeypatch.setattr(refine, "lay", lay)
    for side in ("left", "right"):
        [free] = recover(photo, side=side, checkpoint=tiny_checkpoint)
        [boxed] = recover(photo, free.box, side, tiny_checkpoint)
        assert free.side == boxed.side == side and free.evidence == boxed.evidence == "both"
    assert [depth is None for depth in depths] == [False, False, True, True]


@pytest.mark.parametrize("evidence", pipeline.EVIDENCE)
def test_a_box_chooses_a_hand(tiny_checkpoint, two_hands, evidence):
    for hand in recover(two_hands, checkpoint=tiny_checkpoint):
        [found] = recover(two_hands, hand.box, checkpoint=tiny_checkpoint, evidence=evidence)
        assert found.box == pytest.approx(hand.box) and found.evidence == evidence
        if evidence != "network":
            assert found.side == hand.side
            off = np.linalg.norm(found.joints_2d - hand.joints_2d, axis=1).mean()
            assert off < 0.2 * np.ptp(hand.joints_2d, axis=0).max()


def test_the_clearer_maps_tell_the_side():
    maps = torch.zeros(2, 30, 16, 16)
    maps[0, :21, 3, 4], maps[1, :21, 8, 8] = 5.0, 7.0
    maps[0, 21:] = 50.0  # maps beyond the joints say nothing
    assert pipeline.clearest(maps) == 1 and pipeline.clearest(maps.flip(0)[:, :21]) == 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("box, again", [
    ((148, 117, 192, 163), 0),  # fits
    ((90, 60, 250, 220), 1),  # four times as large
    ((165, 120, 205, 160), 1),  # beside the hand
    ((155, 125, 185, 155), 0),  # too small, which the margin of a crop makes up for
    ((0, 0, 300, 240), 0),  # so large that whatever was found is hardly a hand
])  # fmt: skip
def test_a_box_that_does_not_fit_is_cropped_again(tiny_checkpoint, monkeypatch, box, again, side):
    """The network stands for one that knows where the joints are, whatever box it is shown."""
    hand, boxes, truly = (150.0, 120.0, 190.0, 160.0), [], pipeline._see

    def see(model, photo, box, side):
        boxes.append(box)
        centre, width = pipeline.square_of(box)
        joints = np.resize(np.reshape(hand, (2, 2)), (21, 2))
        flat = (joints - centre) / (width / 2) * [-1 if side == "left" else 1, 1]
        found, output = truly(model, photo, box, side)
        estimate = output.estimates[0]._replace(joints_2d=torch.tensor(flat)[None])
        return found, output._replace(estimates=[estimate])

    monkeypatch.setattr(pipeline, "_see", see)
    [found] = recover(photo(), box, side, tiny_checkpoint, evidence="network")
    assert len(boxes) == 1 + again and boxes[0] == box and found.box == box
    assert boxes[1:] == [pytest.approx(hand)] * again
    centre, width = pipeline.square_of(boxes[-1])
    assert found.square == pytest.approx((*centre, width))


def test_no_hand_is_no_mesh(tiny_checkpoint):
    with pytest.raises(NoHandError, match="no hand was found; if there is one, give the box"):
        recover(photo(), checkpoint=tiny_checkpoint)


# --- geometry -----------------------------------------------------------------------------------


@pytest.fixture
def unfitted(monkeypatch):
    """Nothing is fitted, as the evaluation takes the network's word."""
    monkeypatch.setattr(refine, "lay", lambda model, output, *args: output.estimates[-1])


def test_a_frame_is_recovered_after_each_iteration(tiny_checkpoint, unfitted):
    [frame] = draw_frames(1, side="left")
    [before, found] = recover_frame(frame, tiny_checkpoint)  # the smoke profile iterates twice
    assert np.abs(before.joints_3d - found.joints_3d).max() > 1e-4
    [same] = recover(frame.image, found.box, frame.side, tiny_checkpoint)
    np.testing.assert_allclose(found.vertices, same.vertices, atol=1e-6)


def test_the_start_estimate_lies_in_the_middle_of_the_box(tiny_checkpoint, tmp_path, unfitted):
    """A network that regresses nothing says where it starts: the wrist in the middle."""
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["state_dict"]["regressor.layers.6.weight"].zero_()
    torch.save(content, tmp_path / "zero.pt")
    [found] = recover(photo(), BOX, "right", tmp_path / "zero.pt")
    np.testing.assert_allclose(found.joints_2d[0], [140, 120], atol=1e-3)
    # The crop's side is 1.4 times the box's longer one, 120 pixels; half of it is one crop unit.
    np.testing.assert_allclose(found.camera, [START_SCALE * 1.4 * 60, 140, 120], atol=1e-3)


def test_a_mirrored_photo_of_the_other_hand_gives_the_mirrored_hand(tiny_checkpoint, right):
    box = (319 - BOX[2], BOX[1], 319 - BOX[0], BOX[3])
    [left] = recover(photo()[:, ::-1], box, "left", tiny_checkpoint)
    np.testing.assert_allclose(left.joints_2d, [319, 0] + right.joints_2d * [-1, 1], atol=1e-3)
    np.testing.assert_allclose(left.vertices, right.vertices * [-1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(left.heatmaps, right.heatmaps[..., ::-1], atol=1e-6)
    assert (left.mask != right.mask[:, ::-1]).mean() < 1e-3
    # Mirroring turns a surface inside out unless its faces turn too.
    volumes = [trimesh.Trimesh(hand.vertices, hand.faces).volume for hand in (left, right)]
    assert volumes[0] == pytest.approx(volumes[1], rel=1e-6) and volumes[0] > 0
    [other] = recover(photo(), BOX, "left", tiny_checkpoint)
    assert np.abs(other.joints_3d * [-1, 1, 1] - right.joints_3d).max() > 1e-3


def test_a_shifted_photo_shifts_the_answer(tiny_checkpoint, right):
    """Black is what the crop finds beyond a photo's border, so a black frame changes nothing."""
    framed = cv2.copyMakeBorder(photo(), 13, 4, 7, 9, cv2.BORDER_CONSTANT)
    [found] = recover(framed, np.add(BOX, (7, 13, 7, 13)), "right", tiny_checkpoint)
    np.testing.assert_allclose(found.joints_2d, right.joints_2d + [7, 13], atol=1e-3)
    np.testing.assert_allclose(found.vertices, right.vertices, atol=1e-7)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("size, width", [(64, 32), (64, 160), (16, 1600)])
def test_the_crop_lies_where_it_should_however_large_the_photo(size, width, mirror):
    """Red rises along x and green along y by a known slope, which tells every pixel's place."""
    slope = 200 / 2000
    y, x = np.mgrid[:2000, :2000]
    ramps = np.stack([20 + slope * x, 30 + slope * y, 0 * x], axis=2).round().astype(np.uint8)
    center = np.array([1003.3, 991.7])
    crop = pipeline._cut(ramps, center, width, size, mirror).astype(float)
    steps = (np.arange(size) + 0.5 - size / 2) * width / size
    red = 20 + slope * (center[0] + (-steps if mirror else steps))
    green = 30 + slope * (center[1] + steps)
    # Half a grey level of rounding in the photo, half in the crop.
    assert np.abs(crop[..., 0] - red).max() <= 1.01
    assert np.abs(crop[..., 1] - green[:, None]).max() <= 1.01
    assert np.abs((crop[..., 0] - red).mean()) < 0.25


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_parameters_give_the_mesh_back(tiny_checkpoint, side):
    [found] = recover(photo(), BOX, side, tiny_checkpoint)
    assert found.evidence == "network" and found.score is None  # MediaPipe sees no hand there
    hand = load_hand(found.hand, side, pose_components=len(found.hand_pose))
    numbers = (found.betas, found.global_orient, found.hand_pose)
    mesh = hand(*(torch.tensor(v, dtype=torch.float32)[None] for v in numbers))
    vertices = (mesh.vertices - mesh.joints[:, :1])[0].numpy()
    np.testing.assert_allclose(vertices, found.vertices, atol=1e-5)
    np.testing.assert_array_equal(hand.faces.numpy(), found.faces)


def test_mask_and_overlay_lie_where_the_projected_triangles_do(right, monkeypatch):
    pixels = right.camera[0] * right.vertices[:, :2] + right.camera[1:]
    expected = np.zeros((240, 320), np.uint8)
    for triangle in pixels[right.faces]:
        cv2.fillConvexPoly(expected, np.rint(triangle * 256).astype(int), 1, shift=8)
    assert right.mask.sum() > 1000
    # OpenCV also fills the pixels that an outline touches.
    assert ((expected > 0) & right.mask).sum() / ((expected > 0) | right.mask).sum() > 0.9
    assert (right.mask & ~(expected > 0)).sum() < 5
    changed = (right.overlay() != photo()).any(2)
    near = cv2.dilate(right.mask.astype(np.uint8), np.ones((9, 9))) > 0
    assert changed[right.mask].mean() > 0.95 and not changed[~near].any()
    monkeypatch.setattr(result, "OVERLAY", 160)  # a large photo's is shrunk
    halved = cv2.resize(photo(), (160, 120), interpolation=cv2.INTER_AREA)
    changed = (right.overlay() != halved).any(2)
    inside = cv2.resize(right.mask.astype(np.uint8) * 255, (160, 120), cv2.INTER_AREA) == 255
    assert changed[inside].mean() > 0.95


# --- files --------------------------------------------------------------------------------------


def test_the_saved_files_hold_the_recovery(tmp_path, right):
    paths = right.save(tmp_path / "new", "photo.v2")
    ends = (".glb", ".html", ".json", ".obj", "_overlay.png")
    assert [path.name for path in paths] == [f"photo.v2{end}" for end in ends]
    assert sorted((tmp_path / "new").iterdir()) == paths
    stored = read_json(paths[2])
    for name in ("joints_2d", "joints_3d", "confidence", "camera", "betas", "global_orient",
                 "hand_pose", "box"):  # fmt: skip
        np.testing.assert_allclose(stored[name], getattr(right, name))
    assert stored["side"] == "right" and stored["hand"] == "open" and stored["score"] is None
    assert stored["checkpoint"] == right.checkpoint and stored["evidence"] == "network"
    assert stored["joint_names"] == list(NAMES) and stored["photo_size"] == [320, 240]
    assert "first pixel is (0, 0)" in stored["pixel_convention"]
    page = paths[1].read_text()
    assert "<title>A right hand, recovered by HAMR</title>" in page and 'src="http' not in page


def test_both_formats_of_meshes(tmp_path, right):
    """A viewer of GLB looks along -z with y up: the same hand, upright, at the same size."""
    for kind in ("obj", "glb"):
        write_mesh(tmp_path / f"a.{kind}", right.vertices, right.faces, "right hand")
        mesh = trimesh.load_mesh(tmp_path / f"a.{kind}", process=False)
        flip = [1, -1, -1] if kind == "glb" else 1
        np.testing.assert_allclose(mesh.vertices, right.vertices * flip, atol=1e-6)
        np.testing.assert_array_equal(mesh.faces, right.faces)
    with pytest.raises(HamrError, match="a.stl: expected a name that ends in"):
        write_mesh(tmp_path / "a.stl", right.vertices, right.faces)
    # Without a material and normals, viewers show dark metal.
    data = (tmp_path / "a.glb").read_bytes()
    gltf = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])  # the first chunk
    [mesh] = gltf["meshes"]
    assert "NORMAL" in mesh["primitives"][0]["attributes"]
    material = gltf["materials"][mesh["primitives"][0]["material"]]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0 and material["baseColorFactor"][0] > 0.7
    assert "right hand" in [node.get("name") for node in gltf["nodes"]]


@pytest.mark.parametrize("stem", ["../evil", "/abs", "a/b", "..", "", "a\0b"])
def test_a_stem_is_a_name(tmp_path, right, stem):
    with pytest.raises(HamrError, match="stem=.*expected a name without a folder"):
        right.save(tmp_path / "out", stem)
    assert not list(tmp_path.iterdir())


def test_the_files_of_two_hands(tmp_path, tiny_checkpoint, two_hands):
    hands = recover(two_hands, checkpoint=tiny_checkpoint)
    overlays = {
        "none": set(),
        "all": {"a_overlay.png"},
        "each": {"a_overlay.png", "a_hand1_overlay.png", "a_hand2_overlay.png"},
    }
    for kind, expected in overlays.items():
        expected = expected | {f"a{i}{end}" for i in ("", "_hand2") for end in
                               (".glb", ".obj", ".json")}  # fmt: skip
        paths = result.save_photo(hands, tmp_path / kind, "a", kind, html=False)
        assert {path.name for path in paths} == expected
        assert set(paths) == set((tmp_path / kind).iterdir())
    drawn = np.asarray(Image.open(tmp_path / "all" / "a_overlay.png"))
    for hand in hands:
        assert (drawn != two_hands).any(2)[hand.mask].mean() > 0.95


def test_what_stands_in_the_way_is_told(tmp_path, right):
    (tmp_path / "a.obj").mkdir()
    (tmp_path / "file").touch()
    for folder, stem, complaint in ((tmp_path, "a", "a.obj"), (tmp_path / "file", "a", "file"),
                                    (tmp_path, "b" * 250, "File name too long")):  # fmt: skip
        with pytest.raises(HamrError, match=complaint):
            right.save(folder, stem, html=False)
    assert {path.name for path in tmp_path.iterdir()} == {"a.obj", "file"}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), signal.SIGINT])
@pytest.mark.parametrize("when", range(1, 9))
def test_a_set_of_files_is_whole_or_as_it_was(tmp_path, monkeypatch, failure, when):
    """Three files are written and moved, two to where older ones are; the n-th step fails."""
    steps, truly = itertools.count(1), os.replace

    def replace(*paths):
        now = next(steps) == when
        if now and failure != signal.SIGINT:
            raise failure
        truly(*paths)
        if now:
            signal.raise_signal(failure)

    def save(text, names):
        with whole_set(tmp_path) as (aside, _):
            for name in names:
                write_json(aside / name, text)

    save("old", "ac")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace)
            with pytest.raises((KeyboardInterrupt, HamrError)):
                save("new", "abc")
    finally:
        signal.signal(signal.SIGINT, before)
    assert {path.name: read_json(path) for path in tmp_path.iterdir()} == {"a": "old", "c": "old"}
