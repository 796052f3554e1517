"""`recover`: from a photo to the meshes of its hands.

MediaPipe finds the hands, or a box says where one is. The network sees a crop of each, cut by the
rule of the data sets (`data.crops`). The mesh is then fitted to the network's heat maps, to
MediaPipe's landmarks, or to both.
"""

import functools
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hamr_lib.camera import hand_tilt
from hamr_lib.data.crops import BOX_FACTOR, crop_square, cut
from hamr_lib.data.frame import Frame
from hamr_lib.errors import HamrError, one_of, quoted
from hamr_lib.hand.mano import MIRROR
from hamr_lib.joints import NUM_JOINTS
from hamr_lib.model.checkpoint import pretrained
from hamr_lib.model.hamr import HAMR, Estimate, Output, load_model
from hamr_lib.recovery import refine
from hamr_lib.recovery.detect import SIDES, Box, Detection, find_hands, find_in_box, shrunk
from hamr_lib.recovery.photo import PhotoError, read_photo
from hamr_lib.recovery.result import Recovery

EVIDENCE = ("network", "landmarks", "both")
FARTHEST = 20  # longer sides of the photo that a box may reach
# When to crop again (`_crop_again`): where joints take up less of a box's side than this, or lie
# further beside its middle; but not where they are next to nothing.
CROPS, SMALL, BESIDE, LEAST = 3, 0.8, 0.12, 0.25
# A square much larger than the network's image is first shrunk to this many times its size.
FINEST = 8
OPENCV_LARGEST = 32767  # pixels a side of what OpenCV resamples


class NoHandError(PhotoError):
    """No hand was found in a photo."""


def recover(
    image, box=None, side="auto", checkpoint=None, device=None, evidence="both"
) -> list[Recovery]:
    """Recover the hands of a photo.

    Args:
        image: a path, a PIL image, or (H, W, 3) uint8 RGB; see `photo.read_photo`.
        box: (x0, y0, x1, y1) pixels of the upright photo, around the hand from wrist to
            fingertips. It may reach beyond the photo's border. None has the hands found.
        side: "left", "right", or "auto": MediaPipe's word for it, or, where MediaPipe sees no hand
            in a box, the side as which the network sees it the more clearly. A side without a box
            takes the hands of that side; where there is none, the most certain hand as one of it.
            Where MediaPipe contradicts a side, its 3-D landmarks are no evidence, with and
            without a box.
        checkpoint: path of a checkpoint; None takes `checkpoint.pretrained()`.
        device: "cpu", "cuda" or another of torch's; None takes a GPU if there is one.
        evidence: what the mesh is fitted to: the heat maps of the "network", MediaPipe's
            "landmarks", or "both". Where MediaPipe sees no hand in a box it is the network alone.

    Returns:
        One `Recovery` a hand, the most certain first (with a box: one).

    Raises:
        NoHandError: where no hand was found.
        HamrError: naming the argument or file, its value and what was expected.
    """
    box = checked_box(box)
    one_of("side", side, (*SIDES, "auto"))
    one_of("evidence", evidence, EVIDENCE)
    model = load_network(checkpoint, device)
    photo = read_photo(image)
    if box is not None:
        return [recover_box(model, photo, box, side, evidence)]
    detections = of_side(find_hands(photo), side)
    if not detections:
        raise NoHandError("no hand was found; if there is one, give the box around it")
    return [recover_detection(model, photo, found, evidence) for found in detections]


def recover_frame(frame: Frame, checkpoint: str | Path | None = None) -> list[Recovery]:
    """Recover a labelled hand from the crop of its box by the network alone, unfitted.

    Returns:
        What is recovered after each iteration.
    """
    model, photo, box = load_network(checkpoint), read_photo(frame.image), frame_box(frame)
    _, output = _see(model, photo, box, frame.side, all_iterations=True)
    found = Detection(box, frame.side)
    return [
        _recovery(model, photo, found, box, output.heatmaps[-1], estimate, "network")
        for estimate in output.estimates
    ]


def frame_box(frame: Frame) -> Box:
    """Return the square box whose crop is that of a labelled frame."""
    center, width = crop_square(frame)
    reach = width / BOX_FACTOR / 2
    return (*(center - reach), *(center + reach))


def of_side(detections: list[Detection], side: str) -> list[Detection]:
    """Take the detections of a side; where none is, the most certain one as of that side."""
    chosen = [found for found in detections if side in ("auto", found.side)]
    return chosen or [found.as_side(side) for found in detections[:1]]


def recover_detection(model: HAMR, photo: np.ndarray, found: Detection, evidence: str) -> Recovery:
    """Recover a detected hand."""
    tilt = hand_tilt(torch.as_tensor(found.landmarks * _flip(found.side)[:2])[None])
    _, output = _see(model, photo, found.box, found.side, tilt.float())
    return _lay(model, photo, found, found.box, output, evidence)


def recover_box(model: HAMR, photo: np.ndarray, box: Box, side: str, evidence: str) -> Recovery:
    """Recover the hand in a box, where MediaPipe may see one, too."""
    (height, width), (x0, y0, x1, y1) = photo.shape[:2], box
    outside = x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1
    if outside or max(map(abs, box)) > FARTHEST * max(height, width):
        found = f"{width} x {height} pixels"
        raise PhotoError(f"box={box}: expected a box in the photo, which has {found}")
    found = find_in_box(photo, box) if evidence != "network" else None
    if found is None:
        side, seen, output = _crop_again(model, photo, box, side)
        return _lay(model, photo, Detection(box, side), seen, output, "network")
    return replace(recover_detection(model, photo, found.as_side(side), evidence), box=box)


def _crop_again(model, photo, box, side):
    """See the hand in a box, and again where its joints lie if the box does not fit them.

    People draw boxes wider than the network was trained on: then the first crop finds the hand, and
    another one its fingers. For a box that is too small, the margin of its crop makes up.
    """
    around = box
    for _ in range(CROPS):
        seen, (center, width) = around, square_of(around)
        found, output = _see(model, photo, seen, side)
        joints = center + _numbers(output.estimates[-1].joints_2d) * _flip(found)[:2] * width / 2
        around = (*joints.min(0).tolist(), *joints.max(0).tolist())
        middle, extent = square_of(around)
        size, beside = extent / width, np.abs(middle - center).max() / width * BOX_FACTOR
        lost = size < LEAST or size > 1 / LEAST or beside > 0.5
        if lost or (size > SMALL and beside < BESIDE):
            break
    return found, seen, output


def _see(model, photo, box, side, tilt=None, all_iterations=False):
    """The side of the hand in a box, and the network's `Output` (1, ...); see `HAMR.upright`.

    The network knows right hands alone. Shown a left one as it is, it finds fewer joints where it
    expects them than in its mirror image: "auto" takes the side with the higher heat maps.
    """
    sides = SIDES if side == "auto" else (side,)
    crops = [_cut(photo, *square_of(box), model.image_size, one == "left") for one in sides]
    device = next(model.parameters()).device
    crops = torch.from_numpy(np.stack(crops)).to(device).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        heatmaps, estimates = model.upright(crops, tilt, all_iterations)
    best = clearest(heatmaps[-1])
    heatmaps = [maps[best : best + 1] for maps in heatmaps]
    estimates = [Estimate(*(part[best : best + 1] for part in one)) for one in estimates]
    return sides[best], Output(heatmaps, estimates)


def clearest(heatmaps: torch.Tensor) -> int:
    """Find the image whose joints have the highest maps in (B, M, h, h), M >= 21."""
    return heatmaps[:, :NUM_JOINTS].float().amax((2, 3)).mean(1).argmax().item()


def _cut(photo, center, side, size, mirror):
    """`data.crops.cut`, in little memory however large the photo."""
    factor = max(1, int(side / (FINEST * size)))
    if factor > 1 or max(photo.shape) > OPENCV_LARGEST:
        limits = photo.shape[1::-1]
        low = np.clip(np.floor(center - side / 2) - 1, 0, limits).astype(int)
        high = np.clip(np.ceil(center + side / 2) + 1 + factor, 0, limits).astype(int)
        photo = shrunk(photo[low[1] : high[1], low[0] : high[0]], factor)
        center, side = (center - low + 0.5) / factor - 0.5, side / factor
    return cut(photo, center, side, size, mirror)


def square_of(box: Box) -> tuple[np.ndarray, float]:
    """Return the centre (2,) and side of the network crop for a box, pixels; see `data.crops`."""
    x0, y0, x1, y1 = box
    return np.array([x0 + x1, y0 + y1]) / 2, BOX_FACTOR * max(x1 - x0, y1 - y0)


def _flip(side):
    """(3,): what turns points of the network's right hand to those of a side."""
    return np.array([-1.0 if side == "left" else 1.0, 1, 1])


def _numbers(tensor):
    return tensor[0].double().cpu().numpy()


def _lay(model, photo, found, seen, output, evidence):
    """Fit the mesh to the evidence of a hand that was seen in a box."""
    landmarks = world = None
    if evidence != "network":
        center, width = square_of(seen)
        landmarks = (found.landmarks - center) * 2 / width * _flip(found.side)[:2]
        world = None if found.world is None else found.world * _flip(found.side)
    with torch.inference_mode():
        estimate = refine.lay(model, output, evidence, landmarks, world)
    return _recovery(model, photo, found, seen, output.heatmaps[-1], estimate, evidence)


def _recovery(model, photo, found, seen, maps, estimate, evidence):
    """Turn the network's right hand to the photo's pixels and to the hand's side."""
    (center, width), left = square_of(seen), found.side == "left"
    maps, faces = maps[:, :NUM_JOINTS].float(), model.hand.faces.cpu().numpy()
    s, tx, ty = _numbers(estimate.camera)  # crop units: half sides of the square from its middle
    return Recovery(
        side=found.side,
        box=found.box,
        score=found.score,
        confidence=_numbers(refine.confidence(maps, estimate.joints_2d)),
        evidence=evidence,
        square=(*center.tolist(), width),
        camera=np.array([s, -tx if left else tx, ty]) * width / 2 + [0, *center],
        faces=faces[:, ::-1] if left else faces,
        heatmaps=maps[0].cpu().numpy()[..., :: -1 if left else 1],
        hand=model.hand.name,
        checkpoint=model.path,
        photo=photo,
        **_hand_of(estimate, found.side),
    )


def _hand_of(estimate, side):
    """The hand of an `Estimate` (1, ...), turned to its side: values of a `Recovery` by name."""
    return {
        "joints_3d": _numbers(estimate.joints_3d) * _flip(side),
        "vertices": _numbers(estimate.vertices) * _flip(side),
        "betas": _numbers(estimate.betas),
        "global_orient": _turned(_numbers(estimate.global_orient), side),
        "hand_pose": _turned(_numbers(estimate.hand_pose), side),
    }


def _turned(vectors, side):
    """Mirror axis-angle numbers (3,) or (45,) of a left hand; PCA coefficients stay."""
    mirror = side == "left" and len(vectors) in (3, 45)
    return vectors * np.tile(MIRROR, len(vectors) // 3) if mirror else vectors


def with_parameters(model: HAMR, hand: Recovery, camera, rotation, hand_pose, betas) -> Recovery:
    """Give a recovered hand other parameters: rotation (3, 3), the rest as in `Recovery`."""
    flip, like = _flip(hand.side), next(model.parameters())
    turned = rotation * flip * flip[:, None], _turned(hand_pose, hand.side)
    parts = ((1.0, 0.0, 0.0), *turned, betas)
    with torch.inference_mode():
        estimate = model.compose(*(torch.as_tensor(part).to(like)[None] for part in parts))
    return replace(hand, camera=camera, **_hand_of(estimate, hand.side))


def checked_box(box) -> Box | None:
    """Return a box as four finite floats with x0 < x1 and y0 < y1; None stays None."""
    if box is None:
        return None
    with suppress(TypeError, ValueError, OverflowError):
        x0, y0, x1, y1 = (float(value) for value in box)
        if x0 < x1 and y0 < y1 and np.isfinite([x0, y0, x1, y1]).all():
            return x0, y0, x1, y1
    expected = "expected (x0, y0, x1, y1) pixels with x0 < x1 and y0 < y1"
    raise HamrError(f"box={quoted(box)}: {expected}")


def load_network(checkpoint: str | Path | None = None, device: str | None = None) -> HAMR:
    """Load a trained network with a mesh, which is kept until another one is asked for.

    Its attribute `path` is the name of its file.

    Raises:
        HamrError: for a checkpoint or a device that cannot be used.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise HamrError(f"device={quoted(device)} cannot be used: {problem}") from error
    try:
        path = pretrained() if checkpoint is None else Path(checkpoint)
        # The time tells a file that was written anew under its old name.
        written = path.stat().st_mtime_ns if path.is_file() else None
    except (TypeError, ValueError, OSError) as error:
        raise HamrError(f"checkpoint={quoted(checkpoint)}: expected the path of a file") from error
    return _loaded(path, written, str(place))


@functools.lru_cache(maxsize=1)
def _loaded(path, _, device):
    model, _ = load_model(path, device)
    if not model.mesh:
        raise HamrError(f"checkpoint {path} is of a network without a mesh: expected one with it")
    model.path = str(path)
    return model
