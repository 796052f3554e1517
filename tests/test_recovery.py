"""Recovering a hand from a photo: reading any image, the geometry there and back, the files."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from hamr_lib.data.rhd import RHD
from hamr_lib.errors import HamrError
from hamr_lib.model.hamr import START_SCALE, Output
from hamr_lib.recovery import result
from hamr_lib.recovery.localiser import Find, overlap
from hamr_lib.recovery.result import NoHandError, read_photo, recover, recover_frame


def photo(height=240, width=320, seed=0):
    """Smooth coloured noise, like nothing else when turned, mirrored or shifted."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


BOX = (90.0, 60.0, 190.0, 180.0)


# --- reading photos -----------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    """A camera stores the upright scene turned, and says in EXIF how; see the TIFF standard."""
    upright = photo(30, 40)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), upright)


def test_transparency_lies_on_white(tmp_path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0] = (200, 100, 0, 255)
    pixels[1] = (200, 100, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_photo(tmp_path / "a.png")
    assert read[0, 0].tolist() == [200, 100, 0] and read[1, 0].tolist() == [255, 255, 255]


def test_a_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert read_photo(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_keep_their_upper_half(tmp_path, name):
    grey = np.array([[0, 257 * 100, 257 * 200, 65535]], np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 4 1 65535\n" + grey.astype(">u2").tobytes())
    else:
        cv2.imwrite(str(tmp_path / name), grey)
    read = read_photo(tmp_path / name)
    assert read.shape == (1, 4, 3)
    assert read[0, :, 0].tolist() == [0, 100, 200, 255] and (read == read[..., :1]).all()


def test_sixteen_bit_colour(tmp_path):
    colour = np.array([[[0, 257 * 100, 65535]]], np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), colour[..., ::-1])
    assert read_photo(tmp_path / "a.png").tolist() == [[[0, 100, 255]]]


def test_grey_and_one_bit_and_pil_images():
    grey = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert read_photo(grey).tolist() == [[[7] * 3, [9] * 3]]
    assert read_photo(Image.new("1", (1, 1), 1)).tolist() == [[[255] * 3]]
    assert read_photo(Image.new("CMYK", (1, 1), (0, 0, 0, 0))).tolist() == [[[255] * 3]]


def test_a_photo_larger_than_pillow_accepts(tmp_path, monkeypatch):
    """Pillow refuses from 179 million pixels on; phones take 200 million."""
    Image.new("1", (11, 10), 1).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "huge.png")
    assert read_photo(tmp_path / "huge.png").shape == (10, 11, 3)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_what_is_no_photo(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    whole = tmp_path / "whole.png"
    Image.fromarray(photo()).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    Image.new("F", (2, 2)).save(tmp_path / "float.tif")
    for name, complaint in [
        ("text.jpg", "not an image"),
        ("cut.png", "cannot be read"),
        ("float.tif", "floating-point"),
        ("none.png", "does not exist"),
        (".", "cannot be read"),
    ]:
        with pytest.raises(HamrError, match=complaint) as raised:
            read_photo(tmp_path / name)
        assert str(tmp_path) in str(raised.value)
    for array in (photo()[..., 0], photo() / 255, np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(HamrError, match=r"expected an \(H, W, 3\) uint8 array"):
            read_photo(array)
    with pytest.raises(HamrError, match="expected a path"):
        read_photo(3)


def test_a_photo_with_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "LARGEST", 100)
    Image.new("1", (11, 10)).save(tmp_path / "a.png")
    with pytest.raises(HamrError, match="a.png has 11 x 10 pixels"):
        read_photo(tmp_path / "a.png")


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ({"box": None, "localiser": "no.ckpt"}, "no.ckpt is missing"),
        ({"box": None, "localiser": __file__}, "test_recovery.py is no readable checkpoint"),
        ({"side": "both"}, "side: expected 'left', 'right' or 'auto', got 'both'"),
        ({"box": (0, 0, 5)}, "expected .x0, y0, x1, y1. pixels"),
        ({"box": (5, 0, 5, 9)}, "x0 < x1"),
        ({"box": (0, 0, np.nan, 9)}, "box="),
        ({"box": "abcd"}, "box='abcd'"),
        ({"box": (400, 0, 500, 90)}, "outside the photo, which has 320 x 240 pixels"),
        ({"box": (0, -90, 100, -1)}, "outside the photo"),
        ({"checkpoint": "nowhere.pt"}, "nowhere.pt is missing"),
        ({"checkpoint": __file__}, "test_recovery.py is no readable checkpoint"),
        ({"device": "gpu"}, "device='gpu' cannot be used"),
    ],
)
def test_a_bad_argument_is_told(tiny_checkpoint, arguments, complaint):
    good = {"image": photo(), "box": BOX, "side": "right", "checkpoint": tiny_checkpoint}
    with pytest.raises(HamrError, match=complaint):
        recover(**{**good, **arguments})


# --- finding hands ------------------------------------------------------------------------------


@pytest.fixture
def find(tiny_checkpoint, tiny_localiser, blobs, monkeypatch):
    """`recover` on an image of blobs: 0 shows a left hand, 1 a right one, 2 both.

    The side is what the labels say, for the network is untrained.
    """

    def run(index, *args, **kwargs):
        image, _, joints = RHD(blobs, "evaluation").both_hands(index)

        def see(model, photo, box, sides):
            """What the network says, but that its maps are higher for the labelled side."""
            output = truly(model, photo, box, sides)
            boxes = dict(zip(("left", "right"), joints, strict=True))
            near = [overlap(box, (*boxes[s].min(0), *boxes[s].max(0))) for s in sides]
            maps = output.heatmaps[-1] + 100 * torch.tensor(near).view(-1, 1, 1, 1)
            return output._replace(heatmaps=[maps])

        truly = result._see
        monkeypatch.setattr(result, "_see", see)
        found = recover(image, *args, checkpoint=tiny_checkpoint, localiser=tiny_localiser,
                        **kwargs)  # fmt: skip
        return found, [(*j.min(0), *j.max(0)) for j in joints]

    return run


def test_hands_are_found_with_their_side(find):
    for index, side in ((0, "left"), (1, "right")):
        [found], boxes = find(index)
        assert found.side == side
        assert overlap(found.box, boxes[side == "right"]) > 0.5
    both, boxes = find(2)
    assert {r.side for r in both} == {"left", "right"}
    for one in both:
        assert overlap(one.box, boxes[one.side == "right"]) > 0.5


def test_the_clearer_maps_tell_the_side():
    maps = torch.zeros(2, 30, 16, 16)
    maps[0, :21, 3, 4], maps[1, :21, 8, 8] = 5.0, 7.0
    maps[0, 21:] = 50.0  # maps beyond the joints say nothing
    assert result.clearer_side(maps) == "right"
    assert result.clearer_side(maps.flip(0)[:, :21]) == "left"


def test_a_side_chooses_among_the_hands_or_overrules(find):
    [found], _ = find(2, side="right")
    assert found.side == "right"
    # Only a left hand is there: the caller knows better than the localiser.
    [found], boxes = find(0, side="right")
    assert found.side == "right" and overlap(found.box, boxes[0]) > 0.5


def test_a_box_without_a_side(find):
    _, (left, right) = find(2)
    for box, side in ((left, "left"), (right, "right")):
        [found], _ = find(2, box)
        assert found.side == side and found.box == pytest.approx(box)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "box, again",
    [
        ((148, 117, 192, 163), 0),  # fits
        ((90, 60, 250, 220), 1),  # four times as large
        ((165, 120, 205, 160), 1),  # beside the hand
        ((155, 125, 185, 155), 0),  # too small, which the margin of a crop makes up for
        ((0, 0, 300, 240), 0),  # so large that whatever was found is hardly a hand
    ],
)
def test_a_box_that_does_not_fit_is_looked_at_again(tiny_checkpoint, monkeypatch, box, again, side):
    """The network stands for one that knows where the joints are, whatever box it is shown."""
    hand, boxes, truly = (150.0, 120.0, 190.0, 160.0), [], result._see

    def see(model, photo, box, sides):
        boxes.append(box)
        centre, width = result._square(box)
        joints = np.resize(np.reshape(hand, (2, 2)), (21, 2))
        flat = (joints - centre) / (width / 2) * [-1 if side == "left" else 1, 1]
        output = truly(model, photo, box, sides)
        [estimate] = output.estimates
        return output._replace(estimates=[estimate._replace(joints_2d=torch.tensor(flat)[None])])

    monkeypatch.setattr(result, "_see", see)
    [found] = recover(photo(), box, side, tiny_checkpoint)
    assert len(boxes) == 1 + again and boxes[0] == box and found.box == box
    assert boxes[1:] == [pytest.approx(hand)] * again
    centre, width = result._square(boxes[-1])
    assert found.square == pytest.approx((*centre, width))


@pytest.mark.parametrize("sides, count", [(("left", "left"), 1), (("left", "right"), 2)])
@pytest.mark.parametrize("apart", [0.0, 60.0])
def test_a_hand_that_is_found_twice_is_one(
    tiny_checkpoint, tiny_localiser, monkeypatch, sides, count, apart
):
    """The network stands for one that sees a hand wherever it is shown a part of it."""
    boxes = [(80.0, 100.0, 130.0, 150.0), (88.0 + apart, 108.0, 122.0 + apart, 142.0)]
    truly, said = result._see, iter(sides)

    def see(model, photo, box, sides):
        output = truly(model, photo, box, sides)
        centre, width = result._square(box)
        corners = np.array([[80.0, 100.0], [130.0, 150.0]]) + [apart * (box != boxes[0]), 0]
        flat = (np.resize(corners, (21, 2)) - centre) / (width / 2)
        joints = np.stack([flat * [-1 if side == "left" else 1, 1] for side in sides])
        [estimate] = output.estimates
        return output._replace(estimates=[estimate._replace(joints_2d=torch.tensor(joints))])

    finds = [Find(box, "left", 1.0) for box in boxes]
    monkeypatch.setattr(result, "candidates", lambda *args: [finds])
    monkeypatch.setattr(result, "clearer_side", lambda maps: next(said))
    monkeypatch.setattr(result, "_see", see)
    found = recover(photo(), checkpoint=tiny_checkpoint, localiser=tiny_localiser)
    assert [hand.box for hand in found] == boxes[: 2 if apart else count]
    assert [hand.side for hand in found] == list(sides[: len(found)])


def test_a_find_is_a_hand_if_the_network_sees_it_too(monkeypatch):
    """Joints that are 0.05 crop units off; maps with one peak, or with none, spread by 0.58."""
    clear, flat = torch.zeros(2, 21, 16, 16), torch.zeros(2, 21, 16, 16)
    clear[:, :, 5, 6] = 30.0
    finds = [Find((0.0, 0.0, size, size), "left", score) for size, score in
             ((10.0, 0.9), (20.0, 0.8), (30.0, 0.3))]  # fmt: skip
    maps = {10.0: flat, 20.0: clear, 30.0: clear}

    def look(model, photo, box, sides):
        return result._Look(box, box, Output([maps[box[2]]], []), "right")

    monkeypatch.setattr(result, "_look", look)
    model = SimpleNamespace(metrics={"val_joints_2d": 0.05})
    [one, none] = result.seen(model, None, [finds, finds[:1]], 0.5)
    assert list(one) == [finds[1]._replace(side="right")] and none == {}
    # A network that was never validated cannot tell.
    [one] = result.seen(SimpleNamespace(metrics={}), None, [finds], 0.5)
    assert [found.box for found in one] == [finds[0].box, finds[1].box]


def test_no_hand_is_no_mesh(tiny_checkpoint, tiny_localiser):
    noise = np.random.default_rng(7).normal(110, 12, (90, 140, 3)).clip(0, 255).astype(np.uint8)
    with pytest.raises(NoHandError, match="no hand was found; if there is one, give the box"):
        recover(noise, checkpoint=tiny_checkpoint, localiser=tiny_localiser)


# --- geometry -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def right(tiny_checkpoint):
    [found] = recover(photo(), BOX, "right", tiny_checkpoint)
    return found


def test_shapes_and_root(right):
    assert right.joints_2d.shape == (21, 2) and right.joints_3d.shape == (21, 3)
    assert right.betas.shape == (10,) and right.global_orient.shape == (3,)
    assert right.heatmaps.shape == (21, 16, 16) and right.mask.shape == (240, 320)
    assert np.abs(right.joints_3d[0]).max() < 1e-6
    assert right.earlier == ()  # see test_a_frame_comes_with_its_earlier_iterations


@pytest.fixture
def one_view(monkeypatch):
    """Photos are seen once and nothing is fitted, as the evaluation sees its crops."""
    monkeypatch.setattr(result, "add_views", lambda model, output, crop: output.estimates)
    monkeypatch.setattr(result, "fit", lambda model, estimate: estimate)


@pytest.mark.parametrize("side", ["left", "right"])
def test_other_views_are_of_the_crop_that_was_seen(tiny_checkpoint, monkeypatch, side):
    seen, crops, truly = [], [], result._see

    def see(model, photo, box, sides):
        seen.append(result._crop(model, photo, box, side))
        return truly(model, photo, box, sides)

    def add_views(model, output, crop):
        crops.append(crop)
        return output.estimates

    monkeypatch.setattr(result, "_see", see)
    monkeypatch.setattr(result, "fit", lambda model, estimate: estimate)
    monkeypatch.setattr(result, "add_views", add_views)
    recover(photo(), BOX, side, tiny_checkpoint)
    [crop], size = crops, seen[-1].shape[-1]
    edge = (crop.shape[-1] - size) // 2
    middle = crop[None, :, edge : edge + size, edge : edge + size].float() / 255
    assert edge > 0 and (middle - seen[-1]).abs().max() < 1.5 / 255


def test_a_frame_comes_with_its_earlier_iterations(blobs, tiny_checkpoint, one_view):
    frame = RHD(blobs, "evaluation")[0]
    found = recover_frame(frame, tiny_checkpoint)
    [before] = found.earlier  # the smoke profile iterates twice
    assert np.abs(before.joints_3d - found.joints_3d).max() > 1e-4
    [same] = recover(frame.image, found.box, frame.side, tiny_checkpoint)
    np.testing.assert_allclose(found.vertices, same.vertices, atol=1e-6)


def test_the_start_estimate_lies_in_the_middle_of_the_box(tiny_checkpoint, tmp_path, one_view):
    """A network that regresses nothing says where it starts: the wrist in the middle."""
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["state_dict"]["regression.layers.6.weight"].zero_()
    torch.save(content, tmp_path / "zero.pt")
    [found] = recover(photo(), BOX, "right", tmp_path / "zero.pt")
    np.testing.assert_allclose(found.joints_2d[0], [140, 120], atol=1e-3)
    # The crop's side is 1.4 times the box's longer one, 120 pixels; half of it is one crop unit.
    np.testing.assert_allclose(found.camera, [START_SCALE * 1.4 * 60, 140, 120], atol=1e-3)


def test_a_mirrored_photo_of_the_other_hand_gives_the_mirrored_hand(tiny_checkpoint, right):
    box = (319 - BOX[2], BOX[1], 319 - BOX[0], BOX[3])
    [left] = recover(photo()[:, ::-1], box, "left", tiny_checkpoint)
    np.testing.assert_allclose(left.joints_2d, [319, 0] + right.joints_2d * [-1, 1], atol=1e-3)
    np.testing.assert_allclose(left.joints_3d, right.joints_3d * [-1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(left.vertices, right.vertices * [-1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(left.heatmaps, right.heatmaps[..., ::-1], atol=1e-6)
    assert (left.mask != right.mask[:, ::-1]).mean() < 1e-3
    # Mirroring turns a surface inside out unless its faces turn too.
    assert left.mesh().volume == pytest.approx(right.mesh().volume, rel=1e-6) and (
        right.mesh().volume > 0
    )


def test_the_same_photo_as_the_other_hand_is_another_answer(tiny_checkpoint, right):
    [left] = recover(photo(), BOX, "left", tiny_checkpoint)
    assert np.abs(left.joints_3d * [-1, 1, 1] - right.joints_3d).max() > 1e-3


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
    crop = result._cut(ramps, center, width, size, mirror).astype(float)
    steps = (np.arange(size) + 0.5 - size / 2) * width / size
    red = 20 + slope * (center[0] + (-steps if mirror else steps))
    green = 30 + slope * (center[1] + steps)
    # Half a grey level of rounding in the photo, half in the crop.
    assert np.abs(crop[..., 0] - red).max() <= 1.01
    assert np.abs(crop[..., 1] - green[:, None]).max() <= 1.01
    assert np.abs((crop[..., 0] - red).mean()) < 0.25


def test_beyond_the_photo_the_crop_is_black():
    white = np.full((1000, 1200, 3), 255, np.uint8)
    for width in (64, 640):
        crop = result._cut(white, np.array([-0.5, 500.0]), width, 16, False)
        assert (crop[:, :7] == 0).all() and (crop[:, 9:] == 255).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_parameters_give_the_mesh_back(tiny_checkpoint, side):
    from hamr_lib.hand.layer import load_hand

    [found] = recover(photo(), BOX, side, tiny_checkpoint)
    hand = load_hand(found.hand, side, pose_components=len(found.hand_pose))
    numbers = (found.betas, found.global_orient, found.hand_pose)
    mesh = hand(*(torch.tensor(v, dtype=torch.float32)[None] for v in numbers))
    vertices = (mesh.vertices - mesh.joints[:, :1])[0].numpy()
    np.testing.assert_allclose(vertices, found.vertices, atol=1e-5)
    np.testing.assert_array_equal(hand.faces.numpy(), found.faces)


def test_the_mask_is_what_the_projected_triangles_cover(right):
    pixels = right.camera[0] * right.vertices[:, :2] + right.camera[1:]
    expected = np.zeros((240, 320), np.uint8)
    for triangle in pixels[right.faces]:
        corners = np.rint(triangle * 256).astype(int)
        cv2.fillConvexPoly(expected, corners, 1, shift=8)
    union = (expected > 0) | right.mask
    assert right.mask.sum() > 1000
    # OpenCV also fills the pixels that an outline touches.
    assert ((expected > 0) & right.mask).sum() / union.sum() > 0.9
    assert (right.mask & ~(expected > 0)).sum() < 5


# --- files --------------------------------------------------------------------------------------


def test_the_saved_files_hold_the_recovery(tmp_path, right):
    paths = right.save(tmp_path / "new", "photo.v2")
    assert [path.name for path in paths] == [
        "photo.v2_overlay.png", "photo.v2.glb", "photo.v2.obj", "photo.v2.json", "photo.v2.html"
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(p.name for p in paths)
    obj = trimesh.load(paths[2], process=False)
    np.testing.assert_allclose(obj.vertices, right.vertices, atol=1e-6)
    np.testing.assert_array_equal(obj.faces, right.faces)
    # A viewer of GLB looks along -z with y up: the same hand, upright, at the same size.
    glb = trimesh.load_mesh(paths[1])
    np.testing.assert_allclose(
        np.sort(glb.vertices, axis=0), np.sort(right.vertices * [1, -1, -1], axis=0), atol=1e-6
    )
    assert 0.05 < np.ptp(glb.vertices, axis=0).max() < 0.5  # metres
    assert glb.volume == pytest.approx(right.mesh().volume, rel=1e-4)
    stored = json.loads(paths[3].read_text())
    for name in ("joints_2d", "joints_3d", "camera", "betas", "global_orient", "hand_pose", "box"):
        np.testing.assert_allclose(stored[name], getattr(right, name))
    assert stored["side"] == "right" and stored["hand"] == "open"
    assert stored["checkpoint"] == right.checkpoint
    page = paths[4].read_text()
    assert "<title>A right hand, recovered by HAMR</title>" in page and 'src="http' not in page


def test_the_page_may_be_left_out(tmp_path, right):
    assert [path.suffix for path in right.save(tmp_path, "a", html=False)] == [
        ".png", ".glb", ".obj", ".json"
    ]  # fmt: skip
    with pytest.raises(HamrError, match="expected a name that ends in .html"):
        right.save_html(tmp_path / "a.htm")


def test_the_overlay_changes_the_photo_where_the_hand_is(right):
    changed = (right.overlay() != photo()).any(2)
    assert changed[right.mask].mean() > 0.95
    near = cv2.dilate(right.mask.astype(np.uint8), np.ones((9, 9))) > 0
    assert not changed[~near].any()


def test_the_overlay_of_a_large_photo_is_shrunk(tiny_checkpoint, monkeypatch, right):
    monkeypatch.setattr(result, "OVERLAY", 160)
    small = right.overlay()
    assert small.shape == (120, 160, 3)
    halved = cv2.resize(photo(), (160, 120), interpolation=cv2.INTER_AREA)
    changed = (small != halved).any(2)
    inside = cv2.resize(right.mask.astype(np.uint8) * 255, (160, 120), cv2.INTER_AREA) == 255
    assert changed[inside].mean() > 0.95


def test_an_unwritable_target(tmp_path, right):
    (tmp_path / "file").write_text("")
    with pytest.raises(HamrError, match="file"):
        right.save(tmp_path / "file", "a")


def test_write_mesh_knows_three_formats(tmp_path, right):
    for kind in ("obj", "ply", "glb"):
        result.write_mesh(tmp_path / f"a.{kind}", right.mesh())
        assert len(trimesh.load_mesh(tmp_path / f"a.{kind}").faces) == len(right.faces)
    with pytest.raises(HamrError, match="a.stl: expected a name that ends in"):
        result.write_mesh(tmp_path / "a.stl", right.mesh())
