"""Which data sets are there, and are they what they should be.

A real set under `data/raw` is used if it is complete; one that is there and incomplete stops the
run, named with what it lacks. Where there is none, the open stand-in of the same format under
`data/open/<profile>` is used, held to the counts that the profile asks for.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from hamr_lib.camera import project_pinhole
from hamr_lib.data import dexter, rhd, stb
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT
from hamr_lib.joints import MIDDLE_MCP, WRIST
from hamr_lib.render.draw2d import contact_sheet, draw_skeleton, fit

TITLES = {"rhd": "RHD", "stb": "STB", "dexter": "Dexter+Object"}
_STB = tuple(name for names in stb.SPLITS.values() for name in names)
SPLITS = {
    "rhd": ("training", "evaluation"),
    "stb": ("training", "evaluation"),
    "dexter": ("evaluation",),
}


@dataclass(frozen=True)
class DataSet:
    """One data set on disk: where it is, and how many samples it should have."""

    name: str  # its format: "rhd", "stb" or "dexter"
    title: str  # what tables call it: "RHD", or "open-rhd" for its stand-in
    root: Path
    expected: dict  # images by split
    sequences: dict = field(default_factory=dict)  # images by sequence, where it has sequences
    camera: str = "SK"  # of STB's cameras
    notice: str = ""  # why this one was taken, if that needs saying

    @property
    def splits(self):
        """Its splits; Dexter+Object has no training split."""
        return SPLITS[self.name]

    @property
    def is_stand_in(self):
        """Whether its images are rendered."""
        return self.title != TITLES[self.name]

    def load(self, split, data):
        """The frames of a split, read as the `Data` settings say."""
        if split not in self.splits:
            raise HamrError(f"{self.title} has no split {split!r}; it has {', '.join(self.splits)}")
        if self.name == "rhd":
            return rhd.RHD(self.root, split, mask=data.rhd_mask)
        if self.name == "stb":
            return stb.STB(self.root, split, root_shift=data.stb_root, camera=self.camera)
        return dexter.Dexter(self.root)

    def missing(self):
        """What the set lacks, in words, from its files' names alone; an empty list if nothing."""
        if not self.root.is_dir():
            return [f"the folder {self.root}"]
        return _MISSING[self.name](self)


def published(name, folder=ROOT / "data", camera="SK"):
    """The real set of this name, wherever it may or may not be; of STB, one camera's images."""
    root, title = Path(folder) / "raw" / name, TITLES[name]
    if name == "rhd":
        return DataSet(name, title, root, dict(rhd.SPLITS))
    if name == "stb":
        return _sequences(name, title, root, dict.fromkeys(_STB, stb.FRAMES), camera)
    return _sequences(name, title, root, dexter.FRAMES)


def stand_in(name, settings, folder=ROOT / "data"):
    """The open stand-in of this name that the settings ask for, rendered or not."""
    asked, title = settings.data.open, f"open-{name}"
    root = Path(folder) / "open" / settings.profile / title
    if name == "rhd":
        frames = {"training": asked.rhd_training, "evaluation": asked.rhd_evaluation}
        return DataSet(name, title, root, frames)
    if name == "stb":
        return _sequences(name, title, root, dict.fromkeys(_STB, asked.stb_frames))
    return _sequences(name, title, root, dict.fromkeys(dexter.FRAMES, asked.dexter_frames))


def _sequences(name, title, root, frames, camera="SK"):
    """A set of sequences, from how many frames each has."""
    if name == "dexter":
        return DataSet(name, title, root, {"evaluation": sum(frames.values())}, dict(frames))
    images = {key: count * len(stb.IMAGES[camera]) for key, count in frames.items()}
    expected = {split: sum(images[key] for key in keys) for split, keys in stb.SPLITS.items()}
    return DataSet(name, title, root, expected, images, camera)


def find_sets(settings, folder=ROOT / "data"):
    """Choose each data set, as `settings.data.sets` says: auto, real or open.

    Returns:
        {"rhd", "stb", "dexter"} -> `DataSet`, whose `notice` says why a real set was not taken.

    Raises:
        HamrError: naming what the set that should be used lacks. Under auto, a real set that is
            there but incomplete is such a set: no stand-in takes its place.
    """
    sets = {}
    for name in TITLES:
        real = published(name, folder, settings.data.stb_camera)
        substitute, notice = stand_in(name, settings, folder), ""
        if settings.data.sets != "open":
            missing = real.missing()
            if not missing:
                sets[name] = real
                continue
            problem = f"{real.title} is not complete: it lacks {_listed(missing)}"
            if settings.data.sets == "real" or os.path.lexists(real.root):
                raise HamrError(
                    f"data.sets is {settings.data.sets!r}, but {problem}. Complete {real.root} or "
                    "remove it, or set data.sets to 'open' to use the stand-ins"
                )
            notice = f"{problem}. {substitute.title} is used in its place."
        if name == "stb" and settings.data.stb_camera != substitute.camera:
            raise HamrError(
                f"data.stb_camera is {settings.data.stb_camera!r}, but {substitute.title} has "
                f"images of {substitute.camera} alone. {notice}".strip()
            )
        missing = substitute.missing()
        if missing:
            raise HamrError(
                f"{substitute.title} is not complete: it lacks {_listed(missing)}; "
                f"`make data PROFILE={settings.profile}` renders it. {notice}".strip()
            )
        sets[name] = replace(substitute, notice=notice)
    return sets


def _listed(missing, most=4):
    more = f" and {len(missing) - most} more" if len(missing) > most else ""
    return "; ".join(missing[:most]) + more


def _count(folder, start="", suffix=".png"):
    """How many images a folder holds; 0 if there is no such folder."""
    if not folder.is_dir():
        return 0
    names = (path.name for path in folder.iterdir())
    return sum(n.startswith(start) and n.endswith(suffix) and not n.startswith(".") for n in names)


def _absent(path):
    """A file's path, as a list of none or one, if it is not there."""
    return [] if path.is_file() else [str(path)]


def _short(where, found, expected):
    """The words for a wrong count, as a list of none or one."""
    return [] if found == expected else [f"{where}: {found:,} of {expected:,} images"]


def _missing_rhd(dataset):
    missing = []
    for split, count in dataset.expected.items():
        missing += _absent(rhd.annotation_path(dataset.root, split))
        for kind in ("color", "mask", "depth"):
            folder = rhd.split_folder(dataset.root, split) / kind
            missing += _short(folder, _count(folder), count)
    return missing


def _missing_stb(dataset):
    missing = []
    for name, count in dataset.sequences.items():
        missing += _absent(stb.label_path(dataset.root, name, dataset.camera))
        folder = stb.image_path(dataset.root, name, 0).parent
        found = sum(_count(folder, f"{image}_") for image in stb.IMAGES[dataset.camera])
        missing += _short(folder, found, count)
    return missing


def _missing_dexter(dataset):
    missing = []
    for name, count in dataset.sequences.items():
        missing += _absent(dexter.annotation_path(dataset.root, name))
        folder = dexter.sequence_folder(dataset.root, name) / "color"
        missing += _short(folder, _count(folder, suffix=""), count)
    return missing


_MISSING = {"rhd": _missing_rhd, "stb": _missing_stb, "dexter": _missing_dexter}


@dataclass(frozen=True)
class Report:
    """What `check_set` found. NaN or an empty tuple where there is nothing to say."""

    title: str
    root: Path
    found: bool  # the folder is there
    missing: tuple  # what it lacks, in words
    samples: dict  # by split, as read
    expected: dict  # images by split
    skipped: int  # frames left out, since fewer than two joints are labelled
    checked: int  # samples whose images were read
    problems: tuple  # what could not be read, in words, with file and index
    left_share: float  # share of left hands
    tips_only: bool
    depth: tuple  # metres, nearest and farthest joint
    palm: float  # metres, median from wrist to middle MCP: shows a wrong unit at once
    outside: float  # share of labelled joints that lie outside their image
    reprojection: tuple  # pixels, median and largest, 3-D labels against the set's own 2-D ones

    @property
    def complete(self):
        """Nothing missing and nothing unreadable."""
        return self.found and not self.missing and not self.problems

    def row(self):
        """The report as a row of a table."""

        def of(counts):
            return " + ".join(f"{counts[k]:,}" if k in counts else "?" for k in self.expected)

        return {
            "set": self.title,
            "found": self.found,
            "complete": self.complete,
            "samples": of(self.samples),
            "skipped": self.skipped,
            "images expected": of(self.expected),
            "checked": self.checked,
            "unreadable": len(self.problems),
            "left hands": self.left_share,
            "labels": "fingertips" if self.tips_only else "21 joints",
            "nearest (m)": self.depth[0],
            "farthest (m)": self.depth[1],
            "palm (mm)": 1000 * self.palm,
            "outside the image": self.outside,
            "reprojection median (px)": self.reprojection[0],
            "reprojection max (px)": self.reprojection[1],
            "lacks": _listed(self.missing),
        }


def check_set(dataset, data, limit=200):
    """Read a data set and report on it; nothing raises, whatever its state.

    Args:
        dataset: a `DataSet`, from `find_sets`, `published` or `stand_in`.
        data: the `Data` settings.
        limit: how many samples of each split to read, evenly spread; None reads all of them.

    Returns:
        A `Report`.
    """
    samples, problems, frames, errors, skipped = {}, [], [], [], 0
    found = dataset.root.is_dir()
    for split in dataset.splits if found else ():
        try:
            reader = dataset.load(split, data)
        except HamrError as error:
            problems.append(f"{split}: {error}")
            continue
        samples[split] = len(reader)
        skipped += getattr(reader, "skipped", 0)
        try:
            errors.append(_reprojection(dataset, reader))
        except HamrError as error:
            problems.append(f"{split}: {error}")
        for index in spread(len(reader), limit):
            try:
                frames.append(_Labels(reader[index]))
            except HamrError as error:
                problems.append(f"{split}: {error}")
    depths = np.concatenate([f.depths for f in frames]) if frames else np.full(1, np.nan)
    palms = [f.palm for f in frames if np.isfinite(f.palm)]
    errors = np.concatenate(errors) if errors else np.empty(0)
    return Report(
        title=dataset.title,
        root=dataset.root,
        found=found,
        missing=tuple(dataset.missing()),
        samples=samples,
        expected=dataset.expected,
        skipped=skipped,
        checked=len(frames),
        problems=tuple(problems),
        left_share=float(np.mean([f.left for f in frames])) if frames else np.nan,
        tips_only=dataset.name == "dexter",
        depth=(float(depths.min()), float(depths.max())) if len(depths) else (np.nan, np.nan),
        palm=float(np.median(palms)) if palms else np.nan,
        outside=float(np.concatenate([f.outside for f in frames]).mean()) if frames else np.nan,
        reprojection=(
            (float(np.median(errors)), float(errors.max())) if len(errors) else (np.nan, np.nan)
        ),
    )


class _Labels:
    """What a report needs of a frame, so that its image need not be kept."""

    def __init__(self, frame):
        height, width = frame.image.shape[:2]
        labelled = np.isfinite(frame.joints_2d).all(1)
        u, v = frame.joints_2d[labelled].T
        self.left = frame.side == "left"
        self.depths = frame.joints_3d[labelled, 2]
        self.palm = np.linalg.norm(frame.joints_3d[MIDDLE_MCP] - frame.joints_3d[WRIST])
        # The image reaches half a pixel beyond the centres of its outermost pixels.
        self.outside = (u < -0.5) | (v < -0.5) | (u > width - 0.5) | (v > height - 0.5)


def _reprojection(dataset, reader):
    """Pixels between the projected 3-D labels and the 2-D labels the set itself has: all of RHD's
    joints, and Dexter+Object's tips in its depth image. STB has 3-D labels alone."""
    if dataset.name == "rhd":
        uv = [project_pinhole(xyz, K) for xyz, K in zip(reader.xyz, reader.K, strict=True)]
        return np.linalg.norm(np.array(uv) - reader.uv_vis[..., :2], axis=-1).ravel()
    if dataset.name == "stb":
        return np.empty(0)
    errors = []
    for name in dexter.SEQUENCES:
        tips = dexter.read_annotations(dataset.root, name)
        labels = dexter.read_annotations_2d(dataset.root, name)
        if len(labels) != len(tips):
            raise HamrError(f"{name} has 3-D labels of {len(tips)} frames, 2-D of {len(labels)}")
        labelled = np.isfinite(tips).all(-1)
        uv = project_pinhole(tips[labelled], dexter.K_DEPTH)
        errors.append(np.linalg.norm(uv - labels[labelled], axis=-1))
    return np.concatenate(errors)


def report_table(reports):
    """A data frame with one row a report."""
    return pd.DataFrame([report.row() for report in reports]).set_index("set")


def spread(count, limit):
    """At most `limit` indices below `count`, evenly spread; all of them if it is None."""
    if limit is None or limit >= count:
        return range(count)
    return [i * count // limit for i in range(limit)]


def overlay_sheet(reader, count=16, columns=8, size=160):
    """Labels drawn over evenly spread samples, each cut out around its hand.

    Returns:
        (rows * size, columns * size, 3) uint8 RGB.
    """
    images = []
    for index in spread(len(reader), count):
        frame = reader[index]
        image, joints, bounds = frame.image, frame.joints_2d, frame.image.shape[1::-1]
        labelled = joints[np.isfinite(joints).all(1)]
        if len(labelled):
            low, high = labelled.min(0), labelled.max(0)
            centre, half = (low + high) / 2, 0.8 * (high - low).max() + 10
            left, top = np.clip(centre - half, 0, np.subtract(bounds, 2)).astype(int)
            right, bottom = np.clip(centre + half, (left + 2, top + 2), bounds).astype(int)
            image, joints = image[top:bottom, left:right], joints - (left, top)
        # Scaled before it is drawn upon, so that the lines are as fine on every image.
        scale = size / max(image.shape[:2])
        image = fit(image, size)
        images.append(draw_skeleton(image, (joints + 0.5) * scale - 0.5, thickness=1))
    return contact_sheet(images, columns, size)
