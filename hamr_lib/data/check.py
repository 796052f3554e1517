"""Are data sets what they should be: read back, compared with what is known, and shown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hamr_lib.camera import project_pinhole
from hamr_lib.config import Data
from hamr_lib.data import dexter
from hamr_lib.data.frame import Frames
from hamr_lib.data.registry import DataSet, listed
from hamr_lib.errors import HamrError
from hamr_lib.joints import MIDDLE_MCP, WRIST
from hamr_lib.render.draw2d import contact_sheet, draw_skeleton, fit


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
    left_fraction: float
    tips_only: bool
    depth: tuple  # metres, nearest and farthest joint
    palm: float  # metres, median from wrist to middle MCP: shows a wrong unit at once
    outside: float  # fraction of the labelled joints outside their image
    reprojection: tuple  # pixels, median and largest, 3-D labels against the set's own 2-D ones

    @property
    def complete(self) -> bool:
        """Nothing missing and nothing unreadable."""
        return self.found and not self.missing and not self.problems

    def row(self) -> dict:
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
            "left hands": self.left_fraction,
            "labels": "fingertips" if self.tips_only else "21 joints",
            "nearest (m)": self.depth[0],
            "farthest (m)": self.depth[1],
            "palm (mm)": 1000 * self.palm,
            "outside the image": self.outside,
            "reprojection median (px)": self.reprojection[0],
            "reprojection max (px)": self.reprojection[1],
            "lacks": listed(self.missing),
        }


def check_set(dataset: DataSet, data: Data, limit: int | None = 200) -> Report:
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
        left_fraction=float(np.mean([f.left for f in frames])) if frames else np.nan,
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


def report_table(reports: Iterable[Report]) -> pd.DataFrame:
    """A data frame with one row a report."""
    return pd.DataFrame([report.row() for report in reports]).set_index("set")


def spread(count: int, limit: int | None) -> Sequence[int]:
    """At most `limit` indices below `count`, evenly spread; all of them if it is None."""
    if limit is None or limit >= count:
        return range(count)
    return [i * count // limit for i in range(limit)]


def overlay_sheet(reader: Frames, count: int = 16, columns: int = 8, size: int = 160) -> np.ndarray:
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
