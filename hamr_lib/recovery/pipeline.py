"""`recover`: from a photo to the meshes of its hands.

Hands are found by MediaPipe, or a box says where one is. The network sees a crop of each; the mesh
is then laid onto its heat maps, onto MediaPipe's landmarks, or onto both. A box goes through the
same rule as the labels of the data sets (`data.crops`).
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from hamr_lib.data.crops import BOX_FACTOR, crop_square, cut
from hamr_lib.errors import HamrError
from hamr_lib.hand.anatomy import MIRROR
from hamr_lib.joints import NUM_JOINTS
from hamr_lib.model.checkpoint import pretrained
from hamr_lib.model.hamr import Output, load_model
from hamr_lib.recovery import refine
from hamr_lib.recovery.detect import SIDES, Find, find_hands, find_in_box
from hamr_lib.recovery.photo import PhotoError, read_photo
from hamr_lib.recovery.result import Recovery

EVIDENCE = ("network", "landmarks", "both")
# A square much larger than the network's image is first shrunk to this many times its size.
FINEST = 8
# When to crop again (see `_look`): where joints take up less of a box's side than this, or lie
# further beside its middle; but not where they are next to nothing.
LOOKS, SMALL, BESIDE, LEAST = 3, 0.8, 0.12, 0.25
FARTHEST = 20  # longer sides of the photo that a box may reach
OPENCV_LARGEST = 32767  # pixels a side of what OpenCV resamples


class NoHandError(PhotoError):
    """No hand was found in a photo."""


class Look(NamedTuple):
    """What the network says of one hand."""

    box: tuple[float, float, float, float]  # as it was given or found
    seen: tuple[float, float, float, float]  # that the network was shown
    side: str
    output: Output  # (1, ...)
    find: Find | None  # what MediaPipe says of it


def recover(image, box=None, side="auto", checkpoint=None, device=None, evidence="both"):
    """Recover the hands of a photo.

    Args:
        image: a path, a PIL image, or (H, W, 3) uint8 RGB; see `photo.read_photo`.
        box: (x0, y0, x1, y1) pixels of the upright photo, around the hand from wrist to
            fingertips. It may reach beyond the photo's border. None has the hands found.
        side: "left", "right", or "auto", which takes MediaPipe's word for it, or, where MediaPipe
            sees no hand in a box, the side as which the network sees it the more clearly. With a
            side and no box, the hands of that side are taken; where all are of the other one, the
            most certain, and it is taken for the side that was given.
        checkpoint: path of a checkpoint; None takes `checkpoint.pretrained()`.
        device: "cpu", "cuda" or another of torch's; None takes a GPU if there is one.
        evidence: what the mesh is laid onto: the heat maps of the "network", MediaPipe's
            "landmarks", or "both". Where MediaPipe sees no hand in a box it is the network alone.

    Returns:
        list of `Recovery`, one a hand, the most certain first (with a box: one).

    Raises:
        NoHandError: where no hand was found.
        HamrError: naming the argument or file, its value and what was expected.
    """
    box = checked_box(box)
    for name, value, choices in (("side", side, (*SIDES, "auto")),
                                 ("evidence", evidence, EVIDENCE)):  # fmt: skip
        if value not in choices:
            raise HamrError(f"{name}={value!r}: expected one of {', '.join(choices)}")
    model, path = load_network(checkpoint, device)
    photo = read_photo(image)
    if box is None:
        finds = of_side(find_hands(photo), side)
        if not finds:
            raise NoHandError("no hand was found; if there is one, give the box around it")
        looks = [look_at(model, photo, found) for found in finds]
    else:
        looks = [look_in_box(model, photo, box, side, evidence)]
    return [recovery_of(model, photo, look, path, evidence) for look in looks]


def recover_frame(frame, checkpoint=None):
    """The labelled hand of a `data.frame.Frame`, from the one crop of the evaluation, with what was
    recovered after each `earlier` iteration."""
    model, path = load_network(checkpoint)
    box = frame_box(frame)
    photo, side = read_photo(frame.image), frame.side
    output = _see(model, photo, box, (side,), all_iterations=True)
    look, done = Look(box, box, side, output, None), ()
    for estimate in output.estimates:
        done = (*done, _result(model, photo, look, estimate, path, "network", done))
    return done[-1]


def frame_box(frame):
    """The square box (x0, y0, x1, y1), pixels, whose crop is that of a labelled frame."""
    center, width = crop_square(frame)
    reach = width / BOX_FACTOR / 2
    return (*(center - reach), *(center + reach))


def of_side(finds, side):
    """The finds of a side; where none is, the most certain one as of that side."""
    chosen = [found for found in finds if side in ("auto", found.side)]
    return chosen or [found._replace(side=side) for found in finds[:1]]


def look_at(model, photo, found):
    """The `Look` at a `Find`."""
    output = _see(model, photo, found.box, (found.side,))
    return Look(found.box, found.box, found.side, output, found)


def look_in_box(model, photo, box, side, evidence):
    """The `Look` at the hand in a box, where MediaPipe may see one, too."""
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = box
    reach = FARTHEST * max(height, width)
    if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1 or max(map(abs, box)) > reach:
        raise PhotoError(
            f"box={box} lies outside the photo, which has {width} x {height} pixels, or is more "
            f"than {FARTHEST} times as large"
        )
    found = find_in_box(photo, box) if evidence != "network" else None
    if found is None:
        return _look(model, photo, box, SIDES if side == "auto" else (side,))
    look = look_at(model, photo, found._replace(side=found.side if side == "auto" else side))
    return look._replace(box=box, find=found)


def _look(model, photo, box, sides):
    """See the hand in a box, and again where its joints lie if the box does not fit them.

    The network was trained on boxes that fit their hands. People draw them wider: then the first
    crop finds the hand, and another one its fingers.
    """
    seen = box
    for _ in range(LOOKS):
        output = _see(model, photo, seen, sides)
        row = sides.index(clearer_side(output.heatmaps[-1])) if len(sides) > 1 else 0
        output = Output(
            [maps[row : row + 1] for maps in output.heatmaps],
            [type(e)(*(part[row : row + 1] for part in e)) for e in output.estimates],
        )
        center, width = square_of(seen)
        flip = [-1 if sides[row] == "left" else 1, 1]
        joints = output.estimates[-1].joints_2d[0].double().cpu().numpy() * flip * width / 2
        around = (*(center + joints.min(0)).tolist(), *(center + joints.max(0)).tolist())
        if _fits(seen, around):
            break
        seen, last = around, seen
    else:
        seen = last
    return Look(box, seen, sides[row], output, None)


def _fits(box, around):
    """Whether a box fits the joints found in it, or these are so far off that nothing was found.

    A box that is too small fits: the margin of its crop makes up for it.
    """
    (centre, width), (middle, extent) = square_of(box), square_of(around)
    share, beside = extent / width, np.abs(middle - centre).max() / width * BOX_FACTOR
    lost = share < LEAST or share > 1 / LEAST or beside > 0.5
    return lost or (share > SMALL and beside < BESIDE)


def clearer_side(heatmaps):
    """The side as which the network's heat maps see a hand the more clearly.

    The network knows right hands alone. Shown a left one as it is, it finds fewer joints where it
    expects them than in its mirror image.

    Args:
        heatmaps: (2, M, h, h), M >= 21: of a hand shown as a left and as a right one (`SIDES`).
    """
    left, right = heatmaps[:, :NUM_JOINTS].float().amax((2, 3)).mean(1).tolist()
    return "left" if left > right else "right"


def _see(model, photo, box, sides, all_iterations=False):
    """`model.Output` of a hand in a photo: one row for each of the sides as which it is shown."""
    crops = [_cut(photo, *square_of(box), model.image_size, side == "left") for side in sides]
    device = next(model.parameters()).device
    crops = torch.from_numpy(np.stack(crops)).to(device).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return model(crops, all_iterations)


def _cut(photo, center, side, size, mirror):
    """`data.crops.cut`, in little memory however large the photo."""
    factor = max(1, int(side / (FINEST * size)))
    if factor > 1 or max(photo.shape) > OPENCV_LARGEST:
        limits = photo.shape[1::-1]
        low = np.clip(np.floor(center - side / 2) - 1, 0, limits).astype(int)
        high = np.clip(np.ceil(center + side / 2) + 2, 0, limits).astype(int)
        photo = np.ascontiguousarray(photo[low[1] : high[1], low[0] : high[0]])
        photo = np.asarray(Image.fromarray(photo).reduce(factor))
        center, side = (center - low + 0.5) / factor - 0.5, side / factor
    return cut(photo, center, side, size, mirror)


def square_of(box):
    """Centre (2,) and side of the network crop for a box, pixels; see `data.crops`."""
    x0, y0, x1, y1 = box
    return np.array([x0 + x1, y0 + y1]) / 2, BOX_FACTOR * max(x1 - x0, y1 - y0)


def recovery_of(model, photo, look, path, evidence):
    """Lay the mesh of a `Look` onto the evidence; a `Recovery`."""
    used, landmarks, world = "network", None, None
    if look.find and evidence != "network":
        center, width = square_of(look.seen)
        flip = [-1 if look.side == "left" else 1, 1]
        used, landmarks = evidence, (look.find.landmarks - center) * 2 / width * flip
        # Seen as the other hand its depths are another's: only its place in the photo is used.
        if look.find.side == look.side:
            world = look.find.world * [*flip, 1]
    with torch.inference_mode():
        estimate = refine.lay(model, look.output, used, landmarks, world)
    return _result(model, photo, look, estimate, path, used)


def _result(model, photo, look, estimate, path, evidence, earlier=()):
    """An `Estimate` (1, ...) of a look as a `Recovery`, in pixels of the photo."""
    center, width = square_of(look.seen)
    faces = model.hand.faces.cpu().numpy()
    maps = look.output.heatmaps[-1][:, :NUM_JOINTS].float()
    heatmaps = maps[0].cpu().numpy()
    # The network took a left hand for a right one: everything sideways is turned back.
    left = look.side == "left"
    flip = -1.0 if left else 1.0
    if left:
        faces, heatmaps = faces[:, ::-1], heatmaps[..., ::-1]

    def numbers(tensor):
        return tensor[0].double().cpu().numpy()

    s, tx, ty = numbers(estimate.camera)
    # Crop units are half sides of the square from its middle.
    camera = np.array([s, flip * tx, ty]) * width / 2 + [0, *center]
    joints_3d = numbers(estimate.joints_3d) * [flip, 1, 1]
    pose = numbers(estimate.hand_pose)
    return Recovery(
        side=look.side,
        box=look.box,
        score=look.find.score if look.find else None,
        confidence=numbers(refine.confidence(maps, estimate.joints_2d)),
        evidence=evidence,
        square=(*center.tolist(), width),
        joints_2d=camera[0] * joints_3d[:, :2] + camera[1:],
        joints_3d=joints_3d,
        vertices=numbers(estimate.vertices) * [flip, 1, 1],
        faces=faces,
        camera=camera,
        betas=numbers(estimate.betas),
        global_orient=numbers(estimate.global_orient) * (MIRROR if left else 1),
        hand_pose=mirrored_pose(pose) if left else pose,
        heatmaps=heatmaps,
        hand=model.hand.name,
        checkpoint=path,
        photo=photo,
        earlier=earlier,
    )


def mirrored_pose(hand_pose):
    """Pose numbers of the mirrored hand: axis-angle ones turn over, coefficients stay."""
    return hand_pose * np.tile(MIRROR, 15) if len(hand_pose) == 45 else hand_pose


def checked_box(box):
    """A box as four finite floats (x0, y0, x1, y1) with x0 < x1 and y0 < y1; None stays None."""
    if box is None:
        return None
    expected = "expected (x0, y0, x1, y1) pixels with x0 < x1 and y0 < y1"
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise HamrError(f"box: {expected}, got {type(box).__name__} with {error}") from error
    if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
        raise HamrError(f"box={box}: {expected}")
    return x0, y0, x1, y1


def load_network(checkpoint=None, device=None):
    """A trained network with a mesh, kept until another one is asked for, and its path as text.

    Raises:
        HamrError: for a checkpoint or a device that cannot be used.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise HamrError(f"device={device!r} cannot be used: {reason}") from error
    try:
        path = pretrained() if checkpoint is None else Path(checkpoint)
        # The time tells a file that was written anew under its old name.
        written = path.stat().st_mtime_ns if path.is_file() else None
    except (TypeError, ValueError, OSError) as error:
        raise HamrError(f"checkpoint={checkpoint!r}: expected the path of a file") from error
    return _loaded(path, written, str(place)), str(path)


@functools.lru_cache(maxsize=1)
def _loaded(path, _, device):
    model, _ = load_model(path, device)
    if not model.mesh:
        raise HamrError(f"checkpoint {path} is of a network without a mesh: expected one with it")
    return model
