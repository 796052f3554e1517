"""Finding hands in a whole photo, in the spirit of Zimmermann and Brox's HandSegNet (ICCV 2017).

A small network says of each pixel of the photo, fitted into a square, whether it is background, a
left hand or a right hand. Connected pixels are a hand: they give its box and, by majority, its
side; hands of different sides that touch are told apart by the pixels' class. The photo is looked
at again twice and four times as finely, since a hand may be a twentieth of it; and each find once
more from near, which tells its outline and its side better, or that it is none.

How it learns that and how well is in `localiser_training`, which photos need not wait for.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hamr_lib.data.crops import cut
from hamr_lib.errors import HamrError
from hamr_lib.model import checkpoint
from hamr_lib.model.backbone import PretrainedStem

SIDES = ("left", "right")  # classes 1 and 2; 0 is the background
SCALES = 3  # of the stem, down to 1/16: a fifth of its weights, and enough for this
# A mask's box reaches beyond the joints' box by this share of its longer side on each side: the
# flesh. The median over the training hands of open-rhd.
FLESH = 0.035
SMALLEST = 0.02  # share of the square's side: what is smaller each way is no hand
SPLIT = 0.25  # connected pixels of both classes are two hands if each has at least this share
LEVELS = (1, 2, 4)  # how finely a photo is looked at, times the network's own image
NEAR = 2.0  # side of the second look's square, times the longer side of the first box
AGAIN = 0.3  # overlap from which the second look has found the same as the first
PART = 0.5  # share of the smaller of two boxes from which one is a part of the other
MATCH = 0.5  # overlap from which a box counts as having found a hand


class Find(NamedTuple):
    """A hand found in a photo."""

    box: tuple[float, float, float, float]  # (x0, y0, x1, y1) pixels, as of the hand's joints
    side: str  # "left" or "right"
    score: float  # mean probability of its pixels to be a hand's


class HandSegmenter(nn.Module):
    """An image to scores of background, left and right hand, at a quarter of its side."""

    def __init__(self, options):
        super().__init__()
        self.image_size = options.image_size
        self.stem = PretrainedStem(options.channels, SCALES)
        self.head = nn.Conv2d(options.channels, 1 + len(SIDES), 1)
        for module in self.modules():
            # EfficientNet's own (0.01) is for long runs: a short one would end on stale statistics.
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.05

    def start_from(self, stem):
        """Take over what the blocks of another `PretrainedStem` have learnt of hands."""
        own = self.stem.blocks
        own.load_state_dict(stem.blocks[: len(own)].state_dict())

    def forward(self, image):
        """(B, 3, S, S) in [0, 1] -> (B, 3, S/4, S/4) scores before the softmax."""
        return self.head(self.stem(image))


# --- finding ------------------------------------------------------------------------------------


@torch.inference_mode()
def candidates(network, photo, within=None):
    """What may be hands in a photo: a list of `Find` for each of `LEVELS`, some of the same hand.

    Args:
        network: `HandSegmenter`.
        photo: (H, W, 3) uint8 RGB.
        within: (x0, y0, x1, y1) pixels, to look there alone; None looks at the whole photo.
    """
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = within or (-0.5, -0.5, width - 0.5, height - 0.5)
    centre = np.array([x0 + x1, y0 + y1]) / 2
    square = max(x1 - x0, y1 - y0)
    levels = []
    for level in LEVELS:
        [whole] = _segment(network, photo, [(centre, square)], level)
        finds = []
        for found in _components(whole, centre, square):
            box = np.array(found.box)
            look = ((box[:2] + box[2:]) / 2, NEAR * (box[2:] - box[:2]).max())
            # Looking again makes no sense of a hand that fills the frame already.
            if level > 1 or look[1] <= square:
                near = _components(_segment(network, photo, [look])[0], *look)
                found = max(near, key=lambda other: overlap(other.box, box), default=None)
                if found is None or overlap(found.box, box) <= AGAIN:
                    continue
            finds.append(found)
        levels.append(finds)
    return levels


def distinct(levels, threshold):
    """Each hand once, of `candidates` with a score of at least the threshold, best scores first.

    On the same level the more certain find counts; and a find on an earlier level more than its
    parts, or what it is a part of, on a later one: from near, fingers look like hands.
    """
    kept = []
    for finds in levels:
        before = list(kept)
        for found in sorted(finds, key=lambda found: -found.score):
            if (
                found.score >= threshold
                and all(overlap(found.box, other.box) < MATCH for other in kept)
                and all(_shared(found.box, other.box) < PART for other in before)
            ):
                kept.append(found)
    return sorted(kept, key=lambda found: -found.score)


def _segment(network, photo, squares, level=1):
    """Probabilities (N, 3, S, S) of squares (centre, side) of a photo, S = level * image_size."""
    size = level * network.image_size
    crops = np.stack([cut(photo, *square, size) for square in squares])
    device = next(network.parameters()).device
    image = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255
    scores = F.interpolate(network(image), (size, size), mode="bilinear")
    return scores.softmax(1).cpu().numpy()


def _components(probabilities, centre, square):
    """`Find`s of one square: probabilities (3, S, S), its centre and side in the photo's pixels."""
    size = probabilities.shape[-1]
    hand = probabilities[0] < 0.5
    # What lies across a hand (a pen, a thread) does not make two of it.
    reach = np.ones((size // 32 * 2 + 1,) * 2, np.uint8)
    closed = cv2.morphologyEx(hand.astype(np.uint8), cv2.MORPH_CLOSE, reach)
    count, labels = cv2.connectedComponents(closed)
    finds = []
    for label in range(1, count):
        part = (labels == label) & hand
        right = probabilities[2] > probabilities[1]
        share = right[part].mean() if part.any() else 0.0
        pieces = [part & right, part & ~right] if SPLIT < share < 1 - SPLIT else [part]
        for piece in pieces:
            found = _find(probabilities, piece, centre, square)
            if found is not None:
                finds.append(found)
    return finds


def _find(probabilities, piece, centre, square):
    """The `Find` of the pixels (S, S) bool of one hand; None where they are too few."""
    size = len(piece)
    if len(SIDES) * piece.sum() < (SMALLEST * size) ** 2:
        return None
    # Of a class's pixels the largest connected ones: specks of it elsewhere would stretch the box.
    _, labels, stats, _ = cv2.connectedComponentsWithStats(piece.astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    piece = np.isin(labels, 1 + np.flatnonzero(areas > 0.1 * areas.max()))
    ys, xs = np.nonzero(piece)
    low, high = np.array([xs.min(), ys.min()]) - 0.5, np.array([xs.max(), ys.max()]) + 0.5
    if (high - low).max() < SMALLEST * size:
        return None
    inset = np.minimum(FLESH * (high - low).max(), (high - low) / 4)
    step = square / size
    first = centre - square / 2 + step / 2  # the photo's pixel under the square's first one
    box = (*(first + (low + inset) * step), *(first + (high - inset) * step))
    _, left, right = probabilities[:, piece].mean(1)
    return Find(
        tuple(float(value) for value in box),
        SIDES[int(right > left)],
        float(left + right),
    )


def overlap(a, b):
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    inner, *areas = _areas(a, b)
    return inner / (sum(areas) - inner)


def _shared(a, b):
    """Intersection of two boxes over the smaller of them."""
    inner, *areas = _areas(a, b)
    return inner / min(areas)


def _areas(a, b):
    """Of the intersection of two boxes, and of each."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    inner = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return inner, (a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()


def pretrained_localiser():
    """The localiser that `recover` takes by default; see `checkpoint.pretrained`."""
    return checkpoint.pretrained(
        "localiser.ckpt", "localiser.pt", lambda path: checkpoint.read(path)["hamr"]["threshold"]
    )


def load_localiser(path, device="cpu"):
    """Read a trained localiser.

    Returns:
        (`HandSegmenter` in evaluation mode on `device`, the threshold for `distinct`)

    Raises:
        HamrError: for a missing or broken file, one that is no localiser, or one whose training
            did not end.
    """
    content = checkpoint.read(path)
    description = content["hamr"]
    if description.get("kind") != "localiser":
        raise HamrError(f"{path} is no localiser: expected one, as 02_train writes it")
    if description["threshold"] is None:
        raise HamrError(f"{path}: its training did not end; `make train` goes on with it")
    settings = checkpoint.stored_settings(path, description)
    network = HandSegmenter(settings.localiser)
    checkpoint.load_state(path, network, checkpoint.model_state(content))
    return network.to(device).eval(), description["threshold"]
