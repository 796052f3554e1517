"""Are data sets what they should be: read back, compared with what is known, and shown."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from hamr_lib.config import Data
from hamr_lib.data.crops import crop_square, cut
from hamr_lib.data.frame import Frame, Frames
from hamr_lib.data.registry import DataSet, listed
from hamr_lib.errors import HamrError
from hamr_lib.joints import MIDDLE_MCP, WRIST
from hamr_lib.render.draw2d import contact_sheet, draw_skeleton


class Report(NamedTuple):
    """What `check_set` found."""

    row: dict  # of `report_table`, NaN where there is nothing to say
    problems: tuple[str, ...]  # what could not be read, with file and index


def check_set(dataset: DataSet, data: Data, limit: int = 200) -> Report:
    """Read a data set and report on it; nothing raises, whatever its state.

    Args:
        dataset: from `find_sets`, `published` or `stand_in`.
        data: the `Data` settings.
        limit: how many samples of each split to read, evenly spread.
    """
    samples, problems, measured, errors, skipped = {}, [], [], [np.empty(0)], 0
    missing = dataset.missing()
    for split in dataset.splits if dataset.root.is_dir() else ():
        try:
            reader = dataset.load(split, data)
            samples[split], skipped = len(reader), skipped + reader.skipped
            errors.append(reader.reprojection())
        except HamrError as error:
            problems.append(f"{split}: {error}")
        for index in spread(samples.get(split, 0), limit):
            try:
                measured.append(_measure(reader[index]))
            except HamrError as error:
                problems.append(f"{split}: {error}")
    left, depths, palms, outside = ([np.atleast_1d(m[i]) for m in measured] for i in range(4))
    errors = np.concatenate(errors)

    def counted(counts):
        return " + ".join(f"{counts[k]:,}" if k in counts else "?" for k in dataset.expected)

    def over(parts, summary):
        values = np.concatenate(parts) if len(parts) else np.empty(0)
        values = values[np.isfinite(values)]
        return float(summary(values)) if len(values) else np.nan

    row = {
        "set": dataset.title,
        "found": dataset.root.is_dir(),
        "complete": not missing and not problems,
        "samples": counted(samples),
        "skipped": skipped,
        "images expected": counted(dataset.expected),
        "checked": len(measured),
        "unreadable": len(problems),
        "left hands": over(left, np.mean),
        "labels": "fingertips" if dataset.name == "dexter" else "21 joints",
        "nearest (m)": over(depths, np.min),
        "farthest (m)": over(depths, np.max),
        "palm (mm)": 1000 * over(palms, np.median),  # shows a wrong unit at once
        "outside the image": over(outside, np.mean),
        "reprojection median (px)": over([errors], np.median),
        "reprojection max (px)": over([errors], np.max),
        "lacks": listed(missing),
    }
    return Report(row, tuple(problems))


def _measure(frame: Frame):
    """Tell of a frame: left; depths; metres from wrist to middle MCP; which joints are outside."""
    height, width = frame.image.shape[:2]
    labelled = np.isfinite(frame.joints_2d).all(1)
    u, v = frame.joints_2d[labelled].T
    # The image reaches half a pixel beyond the centres of its outermost pixels.
    outside = (u < -0.5) | (v < -0.5) | (u > width - 0.5) | (v > height - 0.5)
    palm = np.linalg.norm(frame.joints_3d[MIDDLE_MCP] - frame.joints_3d[WRIST])
    return frame.side == "left", frame.joints_3d[labelled, 2], palm, outside


def report_table(reports: Iterable[Report]) -> pd.DataFrame:
    """Make a data frame with one row a report."""
    return pd.DataFrame([report.row for report in reports]).set_index("set")


def spread(count: int, limit: int) -> list[int]:
    """Choose at most `limit` indices below `count`, evenly spread."""
    return [i * count // min(limit, count) for i in range(min(limit, count))]


def overlay_sheet(reader: Frames, count: int = 16, columns: int = 8, size: int = 160) -> np.ndarray:
    """Draw labels over the network crops of evenly spread samples.

    Returns:
        (rows * size, columns * size, 3) uint8 RGB.
    """
    images = []
    for index in spread(len(reader), count):
        frame = reader[index]
        center, side = crop_square(frame)
        joints = (frame.joints_2d - center) * size / side + (size - 1) / 2
        image = cut(frame.image, center, side, size)
        images.append(draw_skeleton(image, joints, thickness=1))
    return contact_sheet(images, columns, size)
