"""Render a block of a stand-in: a few samples that share a process and a batch of bodies."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import threadpoolctl
import torch

from hamr_lib.data import dexter, rhd, stb
from hamr_lib.data.registry import PARTS, DataSet
from hamr_lib.files import write_aside
from hamr_lib.hand import anatomy, sampling
from hamr_lib.synth import people, scene, skin
from hamr_lib.synth.things import sample_things
from hamr_lib.synth.views import sample_view

BLOCK = 8  # samples; a fixed number, since a batch of bodies is computed together
RHD_SHAPE, VGA = (320, 320), (480, 640)
ENOUGH = 13  # joints of the hand that an image must show
CLOSEST = 0.1  # metres from the camera to a hand
HOLD = 15  # frames from one pose of a sequence to the next
GRASPS = ("grasp", "precision", "cylinder", "tripod", "letter C")  # how names of gestures begin


class Block(NamedTuple):
    """Samples of one split (and sequence) that are rendered together."""

    name: str  # "rhd", "stb" or "dexter"
    split: str
    sequence: str  # "" for RHD
    start: int
    stop: int

    def generator(self, seed: int, *more: int) -> np.random.Generator:
        """Random numbers of this block; of one of its samples with its index in `more`."""
        words = f"{self.name}/{self.split}/{self.sequence}".encode()
        return np.random.default_rng([seed, len(words), *words, *more])


def blocks_of(dataset: DataSet) -> list[Block]:
    """List the blocks of a stand-in."""
    return [
        Block(dataset.name, split, "" if part == split else part, start, min(start + BLOCK, count))
        for split, parts in PARTS[dataset.name].items()
        for part in parts
        for count in [dataset.frames[part]]
        for start in range(0, count, BLOCK)
    ]


def one_thread():
    """Use one thread in this process: there is a process for each core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)  # NumPy's


def labels_path(root: Path, block: Block) -> Path:
    """Return the file whose existence marks a block as rendered."""
    return root / "blocks" / f"{block.split}-{block.sequence}-{block.start:06d}.npz"


def render_block(job: tuple) -> int:
    """Render (root, factors, block), images first and labels last; return the number of samples."""
    root, factors, block = job
    labels = (_third_person if block.name == "rhd" else _moving_hand)(root, factors, block)
    with write_aside(labels_path(root, block)) as aside:
        np.savez(aside, **labels)
    return block.stop - block.start


def sample_people(factors, block):
    """Draw the people of a block of RHD's stand-in: another person in each image.

    Returns:
        phenotypes (see `people.sample_phenotypes`), pairs of arms, and sides (0 left, 1 right) of
        the hands that are photographed.
    """
    rng = block.generator(factors.seed, block.start)
    # The evaluation images do not depend on how many training hands are at rest.
    resting = factors.resting if block.split == "training" else 0.0
    fingers = sampling.sample_poses(rng, 2 * BLOCK, resting).reshape(BLOCK, 2, -1)
    fingers = fingers[: block.stop - block.start]
    arms, sides = zip(*(people.sample_arms(rng, pair) for pair in fingers), strict=True)
    return people.sample_phenotypes(rng, len(arms)), arms, sides


def _third_person(root, factors, block):
    """Render images of other people each."""
    phenotypes, arms, sides = sample_people(factors, block)
    vertices, joints = people.pose_people(phenotypes, arms)
    labels = {"joints": [], "visible": [], "K": []}
    for row, side in enumerate(sides):
        index = block.start + row
        # Two numbers after the words: a block's own generator has one.
        rng = block.generator(factors.seed, index, 1)
        person = scene.dressed(vertices[row], joints[row], skin.sample_look(rng, factors), factors)
        view, things = _find_view(rng, person, side, factors, block.split)
        shot = scene.photograph(rng, rng, person, side, view, factors, block.split, things)
        rhd.write_sample(root, block.split, index, shot.image, shot.parts, shot.depth)
        both = [view(hand) for hand in person.joints]
        labels["joints"].append(both)
        labels["visible"].append([scene.seen_joints(hand, view, shot.depth) for hand in both])
        labels["K"].append(view.K)
    return {key: np.array(values) for key, values in labels.items()}


def _find_view(rng, person, side, factors, split):
    """Draw a camera that shows the hand, and objects; bad ones are drawn again."""
    focal = RHD_SHAPE[0] * np.exp(rng.uniform(np.log(0.7), np.log(2.5)))
    K = np.array([[focal, 0, 159.5], [0, focal, 159.5], [0, 0, 1]])
    cluttered, held = factors.objects and rng.random() < 0.35, rng.random() < 0.6
    best = (-1,)
    for _ in range(12):
        # One in five is a close-up, where the hand may be larger than the image.
        near = rng.random() < 0.2
        length = np.exp(rng.uniform(*np.log((220, 400) if near else (105, 290))))
        view, things, seen = sample_view(rng, person, side, K, RHD_SHAPE, length), [], 0
        if at_arms_length(view, person):
            if cluttered:
                things = sample_things(rng, view(person.joints[side]), held, split)
            seen = scene.glimpse(person, side, view, things).sum()
        best = max(best, (seen, view, things), key=lambda found: found[0])
        if seen >= ENOUGH:
            break
    return best[1:]


def at_arms_length(view, person) -> bool:
    """Tell whether each hand is wholly in front of the camera, at a distance, or wholly behind."""
    depths = [view(hand)[:, 2] for hand in person.joints]
    return all((z > CLOSEST).all() or (z < 0).all() for z in depths)


def _moving_hand(root, factors, block):
    """Render frames of a left hand that moves; person, light and objects stay the same.

    Each block draws the plan of the whole sequence again, then renders its own frames.
    """
    rng, side = block.generator(factors.seed), 0
    reader, K = (stb, stb.K_SK) if block.name == "stb" else (dexter, dexter.K_COLOR)
    [phenotype], look = people.sample_phenotypes(rng, 1), skin.sample_look(rng, factors)
    idle = sampling.sample_poses(rng, 1)[0]
    (start, other), ends = _front_arms(rng, idle), [_front_arms(rng, idle)[0] for _ in range(3)]
    fingers = _fingers(rng, block)
    pair = (start._replace(fingers=fingers(0)), other)
    vertices, joints = people.pose_people([phenotype], [pair])
    first = scene.dressed(vertices[0], joints[0], look, factors)
    length = rng.uniform(120, 200)
    views = [sample_view(rng, first, side, K, VGA, length, centred=True) for _ in range(30)]
    view = max(views, key=lambda view: scene.glimpse(first, side, view).sum())
    thing_seed = int(rng.integers(2**31))
    # Both sequences of one of STB's places share a background; Dexter's six have one each.
    place = block._replace(sequence=block.sequence[:2] if reader is stb else block.sequence)
    frames = range(block.start, block.stop)
    arms = [(_drifting(start, ends, i)._replace(fingers=fingers(i)), other) for i in frames]
    vertices, joints = people.pose_people([phenotype] * len(arms), arms)
    labels = []
    for row, frame in enumerate(frames):
        person, things = scene.dressed(vertices[row], joints[row], look, factors), []
        hand = view(person.joints[side])
        if factors.objects and reader is dexter:
            things = sample_things(np.random.default_rng(thing_seed), hand, True, block.split)
        light, lens = place.generator(factors.seed, 2), block.generator(factors.seed, frame, 1)
        shot = scene.photograph(light, lens, person, side, view, factors, block.split, things)
        reader.write_color(root, block.sequence, frame, shot.image)
        labels.append(hand)
    return {"joints": np.array(labels)}


def _front_arms(rng, fingers):
    """Draw a left arm held out to the front, with any palm direction; the right one hangs."""
    target = np.array([rng.uniform(-0.1, 0.4), -rng.uniform(0.6, 0.9), rng.uniform(-0.1, 0.4)])
    left = people.sample_arm(rng, "left", fingers, target)
    return left, people.hanging_arm(rng, "right", fingers)


def _drifting(start, ends, frame):
    """Return the arm at a frame: it sways about `start` towards three other poses."""
    weights = 0.22 * np.sin(frame * 2 * np.pi / np.array([97, 151, 233]))

    def mixed(part):
        at = getattr(start, part)
        return at + sum(w * (getattr(e, part) - at) for w, e in zip(weights, ends, strict=True))

    return start._replace(**{part: mixed(part) for part in ("target", "twist", "wrist")})


def _fingers(rng, block):
    """Return a function from a frame to the fingers' angles (22,) radians.

    The hand goes from one pose to the next in `HOLD` frames.
    """
    stations = sampling.sample_poses(rng, 128)
    if block.name == "dexter":
        grasps = [angles for name, angles in anatomy.GESTURES.items() if name.startswith(GRASPS)]
        grasps = np.array(grasps)[rng.integers(len(grasps), size=128)]
        stations = anatomy.blend(grasps, stations, 0.1)
    elif block.sequence.endswith("Counting"):
        counting = np.array([anatomy.GESTURES[name] for name in anatomy.COUNTING])
        stations = anatomy.blend(counting[np.arange(128) % 5], stations, 0.12)

    def at(frame):
        number, t = divmod(frame / HOLD, 1)
        a, b = stations[int(number) % 128], stations[(int(number) + 1) % 128]
        return anatomy.blend(a, b, t * t * (3 - 2 * t))

    return at
