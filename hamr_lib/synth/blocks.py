"""Render a block of a stand-in: a few samples that share a process and a batch of bodies."""

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import threadpoolctl
import torch

from hamr_lib.data import dexter, rhd, stb
from hamr_lib.files import read_arrays, write_aside
from hamr_lib.hand import anatomy, sampling
from hamr_lib.synth import people, scene, skin
from hamr_lib.synth.things import sample_things
from hamr_lib.synth.views import sample_view

BLOCK = 8  # samples; a fixed number, since a batch of bodies is computed together
RHD_SHAPE, VGA = (320, 320), (480, 640)
ENOUGH = 13  # joints of the hand that an image must show
CLOSEST = 0.1  # metres from the camera to a hand
HOLD = 15  # frames from one pose of a sequence to the next


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


def blocks_of(dataset) -> list[Block]:
    """List the blocks of a `registry.DataSet`."""
    if dataset.name == "rhd":
        counts = {(split, ""): count for split, count in dataset.expected.items()}
    elif dataset.name == "stb":
        counts = {
            (split, sequence): dataset.expected[split] // len(sequences)
            for split, sequences in stb.SPLITS.items()
            for sequence in sequences
        }
    else:
        frames = dataset.expected["evaluation"] // len(dexter.SEQUENCES)
        counts = {("evaluation", sequence): frames for sequence in dexter.SEQUENCES}
    return [
        Block(dataset.name, split, sequence, start, min(start + BLOCK, count))
        for (split, sequence), count in counts.items()
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


def read_labels(root: Path, block: Block) -> dict[str, np.ndarray]:
    """Read the labels of a rendered block."""
    return read_arrays(labels_path(root, block))


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
    phenotypes, arms, sides = sample_people(factors, block)
    vertices, joints = people.pose_people(phenotypes, arms)
    labels = {"joints": [], "visible": [], "K": []}
    for row, side in enumerate(sides):
        index = block.start + row
        # Two numbers after the words: a block's own generator has one.
        rng = block.generator(factors.seed, index, 1)
        person = scene.dressed(vertices[row], joints[row], skin.sample_look(rng, factors), factors)
        view, K, things = _find_view(rng, person, side, factors, block.split)
        shot = scene.photograph(
            rng, rng, person, side, view, K, RHD_SHAPE, factors, block.split, things
        )
        rhd.write_sample(root, block.split, index, shot.image, shot.parts, shot.depth)
        both = [view(hand) for hand in person.joints]
        labels["joints"].append(both)
        labels["visible"].append(
            [scene.seen_joints(hand, K, RHD_SHAPE, shot.depth) for hand in both]
        )
        labels["K"].append(K)
    return {key: np.array(values) for key, values in labels.items()}


def _find_view(rng, person, side, factors, split):
    """Draw a camera that shows the hand: view, K and objects; bad ones are drawn again."""
    focal = RHD_SHAPE[0] * np.exp(rng.uniform(np.log(0.7), np.log(2.5)))
    K = np.array([[focal, 0, 159.5], [0, focal, 159.5], [0, 0, 1]])
    cluttered, held = factors.objects and rng.random() < 0.35, rng.random() < 0.6
    best = (-1,)
    for _ in range(12):
        # One in five is a close-up, where the hand may be larger than the image.
        near = rng.random() < 0.2
        length = np.exp(rng.uniform(*np.log((220, 400) if near else (105, 290))))
        view = sample_view(rng, person, side, K, RHD_SHAPE, length)
        hand, things, seen = view(person.joints[side]), [], 0
        if at_arms_length(view, person):
            if cluttered:
                things = sample_things(rng, hand, held, split)
            seen = scene.glimpse(person, view, K, RHD_SHAPE, side, things).sum()
        if seen > best[0]:
            best = (seen, view, things)
        if seen >= ENOUGH:
            break
    return best[1], K, best[2]


def at_arms_length(view, person) -> bool:
    """Tell whether each hand is wholly in front of the camera, at a distance, or wholly behind."""
    depths = [view(hand)[:, 2] for hand in person.joints]
    return all((z > CLOSEST).all() or (z < 0).all() for z in depths)


def _moving_hand(root, factors, block):
    """Render frames of a left hand that moves; person, light and objects stay the same.

    Each block draws the plan of the whole sequence again, then renders its own frames.
    """
    rng, side = block.generator(factors.seed), 0
    K = stb.K_SK if block.name == "stb" else dexter.K_COLOR
    held = block.name == "dexter" and factors.objects
    [phenotype], look = people.sample_phenotypes(rng, 1), skin.sample_look(rng, factors)
    idle = sampling.sample_poses(rng, 1)[0]
    (start, other), ends = _front_arms(rng, idle), [_front_arms(rng, idle)[0] for _ in range(3)]
    fingers = _fingers(rng, block)
    pair = (start._replace(fingers=fingers(0)), other)
    vertices, joints = people.pose_people([phenotype], [pair])
    first = scene.dressed(vertices[0], joints[0], look, factors)
    length, best = rng.uniform(120, 200), (-1,)
    for _ in range(30):
        view = sample_view(rng, first, side, K, VGA, length, centred=True)
        seen = scene.glimpse(first, view, K, VGA, side).sum()
        best = max(best, (seen, view), key=lambda pair: pair[0])
    view, thing_seed = best[1], int(rng.integers(2**31))
    # Both sequences of one of STB's places share a background; Dexter's six have one each.
    place = block._replace(sequence=block.sequence[:2] if block.name == "stb" else block.sequence)
    frames = np.arange(block.start, block.stop)
    arms = [
        (_drifting(start, ends, frame)._replace(fingers=fingers(frame)), other) for frame in frames
    ]
    vertices, joints = people.pose_people([phenotype] * len(arms), arms)
    write = functools.partial((stb if block.name == "stb" else dexter).write_color, root)
    labels = []
    for row, frame in enumerate(frames):
        person = scene.dressed(vertices[row], joints[row], look, factors)
        hand = view(person.joints[side])
        things = []
        if held:
            things = sample_things(np.random.default_rng(thing_seed), hand, True, block.split)
        shot = scene.photograph(
            place.generator(factors.seed, 2), block.generator(factors.seed, int(frame), 1),
            person, side, view, K, VGA, factors, block.split, things,
        )  # fmt: skip
        write(block.sequence, int(frame), shot.image)
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

    def mixed(of):
        towards = zip(weights, ends, strict=True)
        return of(start) + sum(weight * (of(end) - of(start)) for weight, end in towards)

    return start._replace(
        target=mixed(lambda arm: arm.target), twist=mixed(lambda arm: arm.twist),
        wrist=mixed(lambda arm: arm.wrist),
    )  # fmt: skip


def _fingers(rng, block):
    """Return a function from a frame to the fingers' angles (22,) radians.

    The hand goes from one pose to the next in `HOLD` frames.
    """
    random = sampling.sample_poses(rng, 128)
    if block.name == "dexter":
        grasps = [angles for name, angles in anatomy.GESTURES.items() if _is_grasp(name)]
        stations = anatomy.blend(np.array(grasps)[rng.integers(len(grasps), size=128)], random, 0.1)
    elif block.sequence.endswith("Counting"):
        counting = [anatomy.GESTURES[name] for name in anatomy.COUNTING]
        stations = anatomy.blend(np.array(counting)[np.arange(128) % 5], random, 0.12)
    else:
        stations = random

    def at(frame):
        number, t = divmod(frame / HOLD, 1)
        a, b = stations[int(number) % 128], stations[(int(number) + 1) % 128]
        return anatomy.blend(a, b, t * t * (3 - 2 * t))

    return at


def _is_grasp(name):
    return name.startswith(("grasp", "precision", "cylinder", "tripod", "letter C"))
