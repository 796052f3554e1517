"""A hand's mesh from a photo of your own: `recover`, and the files that a recovery leaves.

Where the hands are and which ones they are is said by the caller, or found by the localiser. A
box goes through the same rule as the labels of the data sets (`data.crops`), so that the network
sees a photo just as it saw its training images.
"""

import contextlib
import functools
import math
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import trimesh
from PIL import Image, ImageOps, UnidentifiedImageError

from hamr_lib.data.crops import BOX_FACTOR, crop_square, cut
from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside, write_json
from hamr_lib.hand.anatomy import MIRROR
from hamr_lib.joints import NUM_JOINTS
from hamr_lib.model.checkpoint import pretrained
from hamr_lib.model.hamr import Estimate, Output, load_model
from hamr_lib.recovery.localiser import (
    SIDES,
    candidates,
    distinct,
    load_localiser,
    pretrained_localiser,
)
from hamr_lib.recovery.refine import fit, read_maps
from hamr_lib.recovery.views import add_views, views_size
from hamr_lib.render import rasterize, render
from hamr_lib.render.draw2d import draw_skeleton

# Phones take up to 200 million pixels; a file that claims far more is a mistake or a trap.
LARGEST = 2**28
OVERLAY = 1600  # pixels of an overlay's longer side at most
# A square much larger than the network's image is first shrunk to this many times its size.
FINEST = 8
# When to look again (see `_look`): where joints take up less of a box's side than this, or lie
# further beside its middle; but not where they are next to nothing.
LOOKS, SMALL, BESIDE, LEAST = 3, 0.8, 0.12, 0.25
# Two looks at hands of one side whose joints are, on average, no further apart than this share of
# their box's side are of the same hand.
SAME = 0.2
# A find is a hand where the joints' heat maps are spread, on average, by less than this many times
# what the network's joints are off on its validation images.
SHARP = 3.0
OPENCV_LARGEST = 32767  # pixels a side of what OpenCV resamples
# The files of a recovery, after its stem.
ENDINGS = ("_overlay.png", ".glb", ".obj", ".json", ".html")
SKIN = (0.80, 0.62, 0.53)
# Camera frame (x right, y down, z away) to that of viewers (x right, y up, z near): what glTF
# prescribes, and what puts a hand upright on a screen.
TO_VIEWER = np.diag([1.0, -1.0, -1.0, 1.0])


class PhotoError(HamrError):
    """One photo is at fault; others may be fine."""


class NoHandError(PhotoError):
    """No hand was found in a photo."""


@dataclass(frozen=True, eq=False)
class Recovery:
    """One hand recovered from a photo.

    3-D is in metres in the camera's frame (x right, y down, z away) with the wrist at the origin.
    A pixel (u, v) of the photo has its centre at whole numbers.
    """

    side: str  # "left" or "right"
    box: tuple[float, float, float, float]  # (x0, y0, x1, y1) pixels, as it was given or found
    square: tuple[float, float, float]  # centre (u, v) and side, pixels: what the network saw
    joints_2d: np.ndarray  # (21, 2) pixels of the photo
    joints_3d: np.ndarray  # (21, 3)
    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3) int, counterclockwise seen from outside
    # (3,) s in pixels a metre, tx and ty in pixels: joints_2d = s * joints_3d[:, :2] + (tx, ty)
    camera: np.ndarray
    # Parameters of `load_hand(hand, side, P)`, whose mesh is `vertices` but for its root. MANO's
    # left hand is not quite its right one mirrored; there they are those of the mirrored right.
    betas: np.ndarray  # (10,)
    global_orient: np.ndarray  # (3,) axis-angle
    hand_pose: np.ndarray  # (P,)
    heatmaps: np.ndarray  # (21, h, h) of the last stack, across `square`
    hand: str  # "open" or "mano"
    checkpoint: str  # path of the network's weights
    photo: np.ndarray = field(repr=False)  # (H, W, 3) uint8 RGB
    # After each iteration before; of `recover_frame` alone, for their meshes take their time.
    earlier: tuple["Recovery", ...] = field(default=(), repr=False)

    @functools.cached_property
    def mask(self):
        """(H, W) bool: the pixels of the photo that the mesh covers."""
        shape = self.photo.shape[:2]
        covered = rasterize(self.vertices, self.faces, self.weak_camera(shape), shape).pixel
        mask = np.zeros(shape, bool)
        mask.flat[covered] = True
        return mask

    def weak_camera(self, shape):
        """(3,) the camera in the renderer's crop units, the photo being drawn at (H, W) = shape.

        A pixel p of the photo is k p + (k - 1) / 2 of a drawing k times as large.
        """
        height, width = shape
        k = width / self.photo.shape[1]
        offset = k * self.camera[1:] + (k - 1) / 2
        middle = (np.array([width, height]) - 1) / 2
        return np.array([k * self.camera[0], *(offset - middle)]) * 2 / width

    def overlay(self):
        """(h, w, 3) uint8: mesh and joints over the photo, at most `OVERLAY` pixels a side."""
        height, width = self.photo.shape[:2]
        k = min(1.0, OVERLAY / max(height, width))
        shape = (max(1, round(k * height)), max(1, round(k * width)))
        small = cv2.resize(self.photo, shape[::-1], interpolation=cv2.INTER_AREA)
        camera = self.weak_camera(shape)
        mesh = render(self.vertices, self.faces, camera, shape, SKIN, background=small / 255).colour
        # The hand shows through, so that one sees how well the mesh lies on it.
        picture = cv2.addWeighted(small, 0.25, (255 * mesh).round().astype(np.uint8), 0.75, 0)
        joints = self.joints_2d * k + (k - 1) / 2
        return draw_skeleton(picture, joints, max(1, round(max(shape) / 400)))

    def mesh(self):
        """The mesh as a `trimesh.Trimesh`: metres, camera frame."""
        return trimesh.Trimesh(self.vertices, self.faces, process=False)

    def to_dict(self):
        """What the JSON file holds: plain numbers, in the units of the attributes."""
        values = {
            name: getattr(self, name)
            for name in (
                "joints_2d", "joints_3d", "camera", "betas", "global_orient", "hand_pose", "box",
                "side", "hand", "checkpoint",
            )
        }  # fmt: skip
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }

    def save(self, folder, stem, html=True):
        """Write `<stem>_overlay.png`, `<stem>.glb`, `.obj`, `.json` and `.html`, none by half.

        OBJ and JSON are in the camera's frame; so are the vertices of the GLB, in a node that
        turns them upright as glTF's frame (y up) asks. The HTML shows the mesh, to be turned by
        the mouse, in any browser and without a network; it has about 1 MB.

        Args:
            folder: made if missing.
            stem: start of the files' names.
            html: False leaves the HTML out.

        Returns:
            The paths.

        Raises:
            HamrError: naming what could not be written.
        """
        paths = [Path(folder) / f"{stem}{ending}" for ending in ENDINGS]
        with write_aside(paths[0]) as aside:
            Image.fromarray(self.overlay()).save(aside)
        for path in paths[1:3]:
            write_mesh(path, self.mesh())
        write_json(paths[3], self.to_dict())
        if not html:
            return paths[:4]
        self.save_html(paths[4])
        return paths

    def save_html(self, path):
        """Write one HTML file that draws the mesh with its joints, without a network."""
        from hamr_lib.render.viewer3d import (  # here, since k3d takes a second to import
            Scene,
            write_html,
        )

        scene = Scene(self.faces)
        scene.show(self.vertices, self.joints_3d, np.tile(SKIN, (len(self.vertices), 1)))
        scene.show_skeleton(True)
        scene.look_at(self.vertices)
        write_html(path, scene.plot, f"A {self.side} hand, recovered by HAMR")


def recover(image, box=None, side="auto", checkpoint=None, device=None, localiser=None):
    """Recover the hands of a photo.

    Args:
        image: a path, a PIL image, or (H, W, 3) uint8 RGB. EXIF rotation, transparency (laid on
            white), grey, palettes and 16 bits are handled by `read_photo`.
        box: (x0, y0, x1, y1) pixels of the upright photo, around the hand from wrist to
            fingertips. It may reach beyond the photo's border. Where it is too large for the hand
            that is found in it, the network looks again. None has the hands found.
        side: "left", "right", or "auto", which takes the side as which the network itself sees a
            hand the more clearly. With a side and no box, the hands found that look like that side
            are taken; where all look like the other one, the most certain, and it is taken for
            the side that was given.
        checkpoint: path of a checkpoint; None takes `checkpoint.pretrained()`.
        device: "cpu", "cuda" or another of torch's; None takes a GPU if there is one.
        localiser: path of what finds hands; None takes `localiser.pretrained_localiser()`. It is
            not read where a box is given.

    Returns:
        list of `Recovery`, one a hand, the most certain first (with a box: one).

    Raises:
        NoHandError: where no hand was found.
        HamrError: naming the argument or file, its value and what was expected.
    """
    box = _checked_box(box)
    if side not in ("left", "right", "auto"):
        raise HamrError(f"side: expected 'left', 'right' or 'auto', got {side!r}")
    path = Path(checkpoint) if checkpoint is not None else pretrained()
    model = _model(_loaded_network, path, device)
    finder = None
    if box is None:
        finder = _model(_loaded_localiser, Path(localiser or pretrained_localiser()), device)
    photo = read_photo(image)
    height, width = photo.shape[:2]
    if box is None:
        sides = SIDES
        looks = _distinct(_find(model, finder, photo))
        if not looks:
            raise NoHandError("no hand was found; if there is one, give the box around it")
    else:
        x0, y0, x1, y1 = box
        if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
            raise PhotoError(
                f"box={box} lies outside the photo, which has {width} x {height} pixels"
            )
        sides = SIDES if side == "auto" else (side,)
        looks = [_look(model, photo, box, sides)]
    chosen = [look for look in looks if side in ("auto", look.side)]
    chosen = chosen or [looks[0]._replace(side=side)]
    return [_recovery(model, photo, _fitted(model, photo, look, sides), path) for look in chosen]


def recover_frame(frame, checkpoint=None):
    """The labelled hand of a `data.frame.Frame`, from the one crop of the evaluation, with what was
    recovered after each `earlier` iteration."""
    path = Path(checkpoint) if checkpoint is not None else pretrained()
    model = _model(_loaded_network, path, None)
    box = frame_box(frame)
    photo, side = read_photo(frame.image), frame.side
    output = _see(model, photo, box, (side,), all_iterations=True)
    return _recovery(model, photo, _Look(box, box, output, side), path)


def frame_box(frame):
    """The square box (x0, y0, x1, y1), pixels, whose crop is that of a labelled frame."""
    center, width = crop_square(frame)
    reach = width / BOX_FACTOR / 2
    return (*(center - reach), *(center + reach))


class _Look(NamedTuple):
    """What the network says of a hand in a box."""

    box: tuple[float, float, float, float]  # as it was given or found
    seen: tuple[float, float, float, float]  # that the network was shown at last
    output: Output  # a row for each of the sides as which it was shown
    side: str  # as which it is seen the more clearly


def _look(model, photo, box, sides):
    """See the hand in a box, and again where its joints lie if the box does not fit them.

    The network was trained on boxes that fit their hands. People draw them wider, and the localiser
    beside the hand: then the first look finds the hand, and another one its fingers.
    """
    seen = box
    for _ in range(LOOKS):
        output = _see(model, photo, seen, sides)
        side = clearer_side(output.heatmaps[-1]) if sides == SIDES else sides[0]
        look = _Look(box, seen, output, side)
        joints = _joints_of(look, sides)
        around = (*joints.min(0).tolist(), *joints.max(0).tolist())
        if _fits(seen, around):
            break
        seen = around
    return look


def _fitted(model, photo, look, sides):
    """A look at the hand as of its side alone, in which all `views.VIEWS` have their say, and which
    is laid onto the maps of them all."""
    row, (center, width) = sides.index(look.side), _square(look.seen)
    size = views_size(model.image_size)
    width *= size / model.image_size
    crop = _cut(photo, center, width, size, mirror=look.side == "left")
    device = next(model.parameters()).device
    crop = torch.from_numpy(crop).to(device).permute(2, 0, 1)
    output = Output(
        [maps[row : row + 1] for maps in look.output.heatmaps],
        [Estimate(*(part[row : row + 1] for part in look.output.estimates[-1]))],
    )
    with torch.no_grad():
        estimate = fit(model, *add_views(model, output, crop))
    return look._replace(output=output._replace(estimates=[estimate]))


def _joints_of(look, sides):
    """(21, 2) pixels: the joints of a look at a hand that was shown as each of the sides."""
    center, width = _square(look.seen)
    flip = [-1 if look.side == "left" else 1, 1]
    joints = look.output.estimates[-1].joints_2d[sides.index(look.side)]
    return center + joints.double().cpu().numpy() * flip * width / 2


def _find(model, finder, photo):
    """The localiser's finds that the network sees, too, as `_Look`s, the most certain first."""
    network, threshold = finder
    levels = seen(model, photo, candidates(network, photo), threshold)
    looks = {found: look for level in levels for found, look in level.items()}
    return [looks[found] for found in distinct(levels, threshold)]


def seen(model, photo, levels, threshold):
    """Those of `localiser.candidates` that the network sees, too.

    Shown what is no hand, its heat maps have no clear peaks. One that was never validated sees
    everything.

    Args:
        model: `hamr.HAMR`.
        photo: (H, W, 3) uint8 RGB.
        levels: as `candidates` gives them.
        threshold: the least score to look at.

    Returns:
        list of {`Find`: `_Look`}, one a level; the side of a find is that as which it is seen.
    """
    limit = SHARP * model.metrics.get("val_joints_2d", math.inf)
    kept = []
    for finds in levels:
        kept.append({})
        for found in finds:
            if found.score < threshold:
                continue
            look = _look(model, photo, found.box, SIDES)
            row = SIDES.index(look.side)
            _, variance = read_maps(look.output.heatmaps[-1][row : row + 1])
            if variance.sqrt().mean().item() < limit:
                kept[-1][found._replace(side=look.side)] = look
    return kept


def _distinct(looks):
    """Without looks at a hand that was seen before: two finds may be parts of one hand."""
    kept = []
    for look in looks:
        joints = _joints_of(look, SIDES)
        near = SAME * np.ptp(joints, axis=0).max()
        apart = (
            np.linalg.norm(joints - _joints_of(other, SIDES), axis=1).mean()
            for other in kept
            if other.side == look.side
        )
        if all(distance >= near for distance in apart):
            kept.append(look)
    return kept


def _fits(box, around):
    """Whether a box fits the joints found in it, or these are so far off that nothing was found.

    A box that is too small fits: the margin of its crop makes up for it.
    """
    (centre, width), (middle, extent) = _square(box), _square(around)
    share, beside = extent / width, np.abs(middle - centre).max() / width * BOX_FACTOR
    lost = share < LEAST or share > 1 / LEAST or beside > 0.5
    return lost or (share > SMALL and beside < BESIDE)


def _see(model, photo, box, sides, all_iterations=False):
    """`hamr.Output` of a hand in a photo: one row for each of the sides as which it is shown."""
    crops = torch.cat([_crop(model, photo, box, side) for side in sides])
    with torch.no_grad():
        return model(crops, all_iterations)


def clearer_side(heatmaps):
    """The side as which the network's heat maps see a hand the more clearly.

    The network knows right hands alone. Shown a left one as it is, it finds fewer joints where it
    expects them than in its mirror image. (The localiser has a side for each hand it finds as well,
    to tell hands apart that touch; `tables/localiser.md` of a run says how often that is right.)

    Args:
        heatmaps: (2, M, h, h), M >= 21: of a hand shown as a left and as a right one (`SIDES`).
    """
    left, right = heatmaps[:, :NUM_JOINTS].float().amax((2, 3)).mean(1).tolist()
    return "left" if left > right else "right"


def _crop(model, photo, box, side):
    """(1, 3, S, S) in [0, 1]: the network crop of a hand, a left one mirrored."""
    crop = _cut(photo, *_square(box), model.image_size, mirror=side == "left")
    device = next(model.parameters()).device
    return torch.from_numpy(crop).to(device).permute(2, 0, 1)[None].float() / 255


def _square(box):
    """Centre (2,) and side of the network crop for a box, pixels; see `data.crops`."""
    x0, y0, x1, y1 = box
    return np.array([x0 + x1, y0 + y1]) / 2, BOX_FACTOR * max(x1 - x0, y1 - y0)


def read_photo(image):
    """An image from anywhere as (H, W, 3) uint8 RGB, upright.

    Args:
        image: a path, a PIL image, or (H, W, 3) uint8 RGB, which is given back as it is. Of a
            file, the first frame is read and turned as its EXIF says; what is transparent is laid
            on white, 16 bits become 8, grey and palettes become colours.

    Raises:
        PhotoError: naming the file or argument and what is wrong with it.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise PhotoError(
                f"image: expected an (H, W, 3) uint8 array, got {image.shape} {image.dtype}"
            )
        return np.ascontiguousarray(image)
    if isinstance(image, Image.Image):
        return _to_rgb(image, "image")
    if not isinstance(image, (str, os.PathLike)):
        raise PhotoError(
            f"image: expected a path, a PIL image or an (H, W, 3) uint8 array, got {type(image)}"
        )
    try:
        with _no_limit(), Image.open(image) as opened:
            if opened.width * opened.height > LARGEST:
                raise PhotoError(
                    f"{image} has {opened.width} x {opened.height} pixels: at most {LARGEST} "
                    "pixels are read"
                )
            return _to_rgb(opened, image)
    except FileNotFoundError as error:
        raise PhotoError(f"{image} does not exist") from error
    except UnidentifiedImageError as error:
        raise PhotoError(f"{image} is not an image of a format that Pillow reads") from error
    # What Pillow raises for broken files is spread over all of these.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise PhotoError(f"{image} cannot be read as an image: {error}") from error


@contextlib.contextmanager
def _no_limit():
    """Our own limit in place of Pillow's, which takes phone photos for attacks."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image, name):
    """A PIL image -> (H, W, 3) uint8."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise PhotoError(f"{name}: expected 8 or 16 bits a channel, got floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits, for which Pillow also uses its 32-bit mode
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise PhotoError(
                f"{name}: expected 8 or 16 bits a channel, got values from {grey.min()} to "
                f"{grey.max()}"
            )
        return np.repeat((grey / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _checked_box(box):
    if box is None:
        return None
    expected = "expected (x0, y0, x1, y1) pixels with x0 < x1 and y0 < y1"
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise HamrError(f"box={box!r}: {expected}") from error
    if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
        raise HamrError(f"box={box!r}: {expected}")
    return x0, y0, x1, y1


def _model(load, path, device):
    """What a file holds, by one of the two functions below, kept until another one is asked for."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise HamrError(f"device={device!r} cannot be used: {reason}") from error
    # The time tells a file that was written anew under its old name.
    return load(path, path.stat().st_mtime_ns if path.is_file() else None, str(device))


@functools.lru_cache(maxsize=1)
def _loaded_network(path, _, device):
    model, _ = load_model(path, device)
    if not model.mesh:
        raise HamrError(f"checkpoint {path} is of a network without a mesh: expected one with it")
    return model


@functools.lru_cache(maxsize=1)
def _loaded_localiser(path, _, device):
    return load_localiser(path, device)


def _recovery(model, photo, look, path):
    """What a `_Look` as of one side says, as a `Recovery`."""
    output, side = look.output, look.side
    center, width = _square(look.seen)
    faces = model.hand.faces.cpu().numpy()
    heatmaps = output.heatmaps[-1][0, :NUM_JOINTS].float().cpu().numpy()
    # The network took a left hand for a right one: everything sideways is turned back.
    flip = -1.0 if side == "left" else 1.0
    if side == "left":
        faces, heatmaps = faces[:, ::-1], heatmaps[..., ::-1]

    def numbers(tensor):
        return tensor[0].double().cpu().numpy()

    recoveries = []
    for estimate in output.estimates:
        s, tx, ty = numbers(estimate.camera)
        # Crop units are half sides of the square from its middle.
        camera = np.array([s, flip * tx, ty]) * width / 2 + [0, *center]
        joints_3d = numbers(estimate.joints_3d) * [flip, 1, 1]
        pose = numbers(estimate.hand_pose)
        recoveries.append(
            Recovery(
                side=side,
                box=look.box,
                square=(*center.tolist(), width),
                joints_2d=camera[0] * joints_3d[:, :2] + camera[1:],
                joints_3d=joints_3d,
                vertices=numbers(estimate.vertices) * [flip, 1, 1],
                faces=faces,
                camera=camera,
                betas=numbers(estimate.betas),
                global_orient=numbers(estimate.global_orient) * (MIRROR if side == "left" else 1),
                hand_pose=_other_side(pose) if side == "left" else pose,
                heatmaps=heatmaps,
                hand=model.hand.name,
                checkpoint=str(path),
                photo=photo,
                earlier=tuple(recoveries),
            )
        )
    return recoveries[-1]


def _other_side(hand_pose):
    """Pose numbers of the mirrored hand: axis-angle ones turn over, coefficients stay."""
    return hand_pose * np.tile(MIRROR, 15) if len(hand_pose) == 45 else hand_pose


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


def write_mesh(path, mesh):
    """Write a mesh as OBJ, PLY or GLB, aside and renamed.

    Vertices are in metres of the camera's frame in all three. In a GLB they are those of a node
    that turns them upright as glTF's own frame (y up) asks.

    Args:
        path: ends in .obj, .ply or .glb.
        mesh: `trimesh.Trimesh`.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind == "glb":
        scene = trimesh.Scene()
        scene.add_geometry(mesh, node_name="hand", geom_name="hand", transform=TO_VIEWER)
        data = scene.export(file_type="glb", include_normals=True)
    elif kind == "ply":
        data = mesh.export(file_type="ply")
    elif kind == "obj":
        data = mesh.export(file_type="obj", digits=7, include_normals=False).encode()
    else:
        raise HamrError(f"{path}: expected a name that ends in .obj, .ply or .glb")
    with write_aside(path) as aside:
        aside.write_bytes(data)
