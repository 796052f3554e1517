"""The open stand-ins, rendered into the real sets' own file formats.

A set is rendered in chunks, side by side in processes. Every sample is drawn from (seed, set, split,
index) alone, so that neither the number of processes nor an interruption changes a byte. A chunk is
done when its labels are written; when all are, the labels are put together in the real format.
"""

import functools
import json
import multiprocessing
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch

from ..data import check, dexter, rhd, stb
from ..errors import HamrError
from ..files import digest, read_json, write_aside, write_json
from ..joints import TIPS
from ..poses import COUNTING, GESTURES, blend, sample_poses
from . import backgrounds, scene
from .people import SIDES, draw_arm, draw_identity, pose_people

VERSION = 1  # raise when the same settings would render other images
CHUNK = 32  # samples between two signs of life
RHD_SHAPE = (320, 320)
VGA = (480, 640)
ENOUGH = 9  # joints of the hand that must be seen


def render_open_sets(settings, folder=check.ROOT / "data", processes=None):
    """Render every stand-in that the settings ask for and that is not there yet.

    Args:
        settings: `Settings`. A set whose real files are complete and wanted needs no stand-in.
        folder: the project's data folder.
        processes: how many render side by side; None for one a core.

    Raises:
        HamrError: for a full disk or bad background folder, naming it.
    """
    for name in check.TITLES:
        real = check.published(name, folder)
        if settings.data.sets == "real" or (settings.data.sets == "auto" and not real.missing()):
            continue
        _render_set(check.stand_in(name, settings, folder), settings, processes)


def _render_set(dataset, settings, processes):
    factors = settings.data.open
    jobs = _JOBS[dataset.name](dataset, factors)
    asked = {k: v for k, v in asdict(factors).items() if not k.startswith(("rhd_", "stb_", "dex"))}
    identity = digest(VERSION, asked, [job[1:] for job in jobs], backgrounds.identity())
    marker = dataset.root / "rendered.json"
    state = read_json(marker) if marker.is_file() else {}
    if state.get("identity") != identity:
        if state:
            print(f"{dataset.title}: the settings changed; rendering it anew")
        shutil.rmtree(dataset.root, ignore_errors=True)
        state = {"identity": identity, "complete": False}
        write_json(marker, state)
    if state["complete"]:
        print(f"{dataset.title}: already rendered")
        return
    chunks = dataset.root / "chunks"
    todo = [job for job in jobs if not _labels_path(chunks, job).is_file()]
    work = functools.partial(_render_chunk, dataset.name, dataset.root, factors)
    total, started = sum(len(job[3]) for job in todo), time.monotonic()
    done, shown = 0, started
    # Fresh processes: threads of torch or OpenCV do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes or os.cpu_count(), initializer=_one_thread) as pool:
        for count in pool.imap_unordered(work, todo):
            done += count
            now = time.monotonic()
            if now - shown > 20:
                shown, left = now, (now - started) * (total / done - 1)
                print(f"{dataset.title}: {done} of {total} images, {left / 60:.1f} min left", flush=True)
    _FINISH[dataset.name](dataset.root, {job: _read_labels(chunks, job) for job in jobs})
    seconds = time.monotonic() - started
    write_json(marker, {**state, "complete": True, "images_per_second": round(total / seconds, 1)})
    shutil.rmtree(chunks, ignore_errors=True)
    print(f"{dataset.title}: {total} images rendered, {total / seconds:.1f} a second")


# --- jobs: (set, split, sequence or "", indices), and how each is rendered ----------------------


def _rhd_jobs(dataset, factors):
    return [
        ("rhd", split, "", range(first, min(first + CHUNK, count)))
        for split, count in dataset.expected.items()
        for first in range(0, count, CHUNK)
    ]


def _stb_jobs(dataset, factors):
    return [
        ("stb", split, name, range(factors.stb_frames))
        for split, names in stb.SPLITS.items()
        for name in names
    ]


def _dexter_jobs(dataset, factors):
    return [("dexter", "evaluation", name, range(factors.dexter_frames)) for name in dexter.SEQUENCES]


_JOBS = {"rhd": _rhd_jobs, "stb": _stb_jobs, "dexter": _dexter_jobs}


def _one_thread():
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _labels_path(chunks, job):
    _, split, sequence, indices = job
    return chunks / f"{split}-{sequence}-{indices.start:06d}.npz"


def _read_labels(chunks, job):
    with np.load(_labels_path(chunks, job)) as stored:
        return dict(stored)


def _render_chunk(name, root, factors, job):
    labels = _RENDER[name](root, factors, job)
    with write_aside(_labels_path(root / "chunks", job)) as aside:
        np.savez(aside, **labels)
    return len(job[3])


def _generator(factors, job, *more):
    """The random numbers of one sample or sequence: no two splits share a seed."""
    name, split, sequence, _ = job
    words = np.frombuffer(f"{name}/{split}/{sequence}".encode(), np.uint8)
    return np.random.default_rng([factors.seed, len(words), *words.tolist(), *more])


def _render_rhd(root, factors, job):
    """Third-person images: somebody new, somewhere new, each time."""
    _, split, _, indices = job
    people = []
    generators = [_generator(factors, job, i) for i in indices]
    drawn = [
        (draw_identity(rng, factors), [draw_arm(rng), draw_arm(rng)], sample_poses(rng, 2))
        for rng in generators
    ]
    identities, arms, hands = zip(*drawn, strict=True)
    people = pose_people(identities, arms, np.stack(hands))
    labels = {"joints": [], "visible": [], "K": []}
    for rng, person, index in zip(generators, people, indices, strict=True):
        shot = _third_person(rng, person, factors, split)
        rhd.write_sample(root, split, index, shot.image, shot.parts, shot.depth)
        labels["joints"].append([shot.joints[side] for side in SIDES])
        labels["visible"].append([shot.visible[side] for side in SIDES])
        labels["K"].append(shot.K)
    return {key: np.array(values) for key, values in labels.items()}


def _third_person(rng, person, factors, split):
    """A picture in which a hand is seen; views that the body hides are drawn again."""
    focal = RHD_SHAPE[0] * np.exp(rng.uniform(np.log(0.8), np.log(2.5)))
    K = np.array([[focal, 0, 159.5], [0, focal, 159.5], [0, 0, 1]])
    side = rng.choice(list(SIDES))
    cluttered = factors.objects and rng.uniform() < 0.35
    best = None
    for _ in range(10):
        length = np.exp(rng.uniform(np.log(60), np.log(260)))
        view = scene.draw_view(rng, person, side, K, RHD_SHAPE, length)
        hand = view(person.joints[side])
        things = scene.draw_things(rng, hand, rng.uniform() < 0.5) if cluttered else []
        seen = scene.glimpse(person, view, K, RHD_SHAPE, side, things).sum()
        if best is None or seen > best[0]:
            best = seen, view, things
        if seen >= ENOUGH:
            break
    return scene.photograph(rng, person, *best[1:2], K, RHD_SHAPE, factors, split, best[2])


def _render_stb(root, factors, job):
    """A left hand before a camera that stands still, moving smoothly; one background a B."""
    _, split, sequence, indices = job
    rng = _generator(factors, job)
    counting = sequence.endswith("Counting")
    hands = _motion(rng, len(indices), [GESTURES[name] for name in COUNTING] if counting else None)
    place = _generator(factors, ("stb", split, sequence[:2], indices))
    scenery = int(place.integers(2**31))
    return _sequence(
        root, factors, split, rng, hands, stb.K_SK, scenery, indices, held=False,
        write=functools.partial(stb.write_color, root, sequence),
    )  # fmt: skip


def _render_dexter(root, factors, job):
    """A left hand of somebody not seen in training, holding something."""
    _, split, sequence, indices = job
    rng = _generator(factors, job)
    grasps = [v for name, v in GESTURES.items() if "grasp" in name or name in ("pinch", "relaxed")]
    hands = _motion(rng, len(indices), grasps)
    return _sequence(
        root, factors, split, rng, hands, dexter.K_COLOR, int(rng.integers(2**31)), indices,
        held=True, write=functools.partial(dexter.write_color, root, sequence),
    )  # fmt: skip


_RENDER = {"rhd": _render_rhd, "stb": _render_stb, "dexter": _render_dexter}


def _motion(rng, frames, stations, hold=12):
    """(frames, 22) angles that go smoothly from pose to pose, `hold` frames each way."""
    count = frames // hold + 2
    if stations is None:
        keys = sample_poses(rng, count)
    else:
        keys = np.array([stations[i % len(stations)] for i in range(count)])
    time = np.arange(frames) / hold
    share = time % 1
    eased = share**2 * (3 - 2 * share)
    return blend(keys[time.astype(int)], keys[time.astype(int) + 1], eased)


def _sequence(root, factors, split, rng, hands, K, scenery, indices, held, write):
    """Frames of one moving left hand; the camera, the person and the light stay."""
    identity = draw_identity(rng, factors)
    start, end = [draw_arm(rng) for _ in range(2)], draw_arm(rng)
    rest = sample_poses(rng, 1)[0]
    share = (1 - np.cos(np.arange(len(hands)) * 2 * np.pi / 120)) / 2 * 0.25
    arms = [
        ({k: (1 - t) * start[0][k] + t * end[k] for k in end}, start[1]) for t in share
    ]  # fmt: skip
    both = np.stack([hands, np.broadcast_to(rest, hands.shape)], axis=1)
    people = []
    for first in range(0, len(hands), CHUNK):
        part = slice(first, first + CHUNK)
        people += pose_people([identity] * len(hands[part]), arms[part], both[part])
    for _ in range(40):
        length = rng.uniform(110, 200)
        view = scene.draw_view(rng, people[0], "left", K, VGA, length)
        if scene.glimpse(people[0], view, K, VGA, "left").sum() >= ENOUGH:
            break
    thing = int(rng.integers(2**31))
    labels = []
    for index, person in zip(indices, people, strict=True):
        # The camera follows so that the hand stays in the picture.
        moved = person.joints["left"].mean(0) - people[0].joints["left"].mean(0)
        following = view._replace(center=view.center + moved)
        things = []
        if held and factors.objects:
            hand = following(person.joints["left"])
            things = scene.draw_things(np.random.default_rng(thing), hand, held=True)
        shot = scene.photograph(
            np.random.default_rng(scenery), person, following, K, VGA, factors, split, things
        )
        write(index, shot.image)
        labels.append(shot.joints["left"])
    return {"joints": np.array(labels)}


# --- putting the labels together in the real formats --------------------------------------------


def _finish_rhd(root, labels):
    annotations = {}
    for (_, split, _, indices), found in labels.items():
        for i, index in enumerate(indices):
            annotations.setdefault(split, {})[index] = rhd.annotation(
                found["joints"][i], found["K"][i], found["visible"][i]
            )
    for split, content in annotations.items():
        rhd.write_annotations(root, split, content)


def _finish_stb(root, labels):
    for (_, _, sequence, _), found in labels.items():
        stb.write_labels(root, sequence, found["joints"])


def _finish_dexter(root, labels):
    for (_, _, sequence, _), found in labels.items():
        dexter.write_annotations(root, sequence, found["joints"][:, list(TIPS)])


_FINISH = {"rhd": _finish_rhd, "stb": _finish_stb, "dexter": _finish_dexter}
