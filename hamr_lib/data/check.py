"""Are data sets what they should be: read back, compared with what is known, and shown."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from hamr_lib.config import Data
from hamr_lib.data.crops import crop_square, cut
from hamr_lib.data.frame import Frame, Frames
from hamr_lib.data.registry import DataSet
from hamr_lib.errors import HamrError
from hamr_lib.joints import MIDDLE_MCP, WRIST
from hamr_lib.render.draw2d import contact_sheet, draw_skeleton


class Report(NamedTuple):
    """What `check_set` found."""

    row: dict  # of `report_table`, NaN where there is nothing to say
    problems: tuple[str, ...]  # what could not be read, with file and index


def check_set(dataset: DataSet, data: Data, limit: int = 200) -> Report:
    """Read a set, at most `limit` samples a split, and report on it; nothing raises."""
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
    measured = pd.DataFrame(measured, columns=["left", "palm", "depths", "outside"])
    depths, outside = (pd.Series(np.concatenate([[], *measured[k]])) for k in ("depths", "outside"))
    errors = pd.Series(np.concatenate(errors))
    counts = [f"{samples[k]:,}" if k in samples else "?" for k in dataset.splits]
    row = {
        "set": dataset.title,
        "found": dataset.root.is_dir(),
        "complete": not missing and not problems,
        "samples": " + ".join(counts),
        "skipped": skipped,
        "images expected": " + ".join(f"{count:,}" for count in dataset.expected.values()),
        "checked": len(measured),
        "unreadable": len(problems),
        "left hands": measured.left.mean(),
        "labels": "fingertips" if dataset.name == "dexter" else "21 joints",
        "nearest (m)": depths.min(),
        "farthest (m)": depths.max(),
        "palm (mm)": 1000 * float(measured.palm.median()),  # shows a wrong unit at once
        "outside the image": outside.mean(),
        "reprojection median (px)": errors.median(),
        "reprojection max (px)": errors.max(),
        "lacks": missing,
    }
    return Report(row, tuple(problems))


def _measure(frame: Frame):
    """Tell of a frame: left; metres from wrist to middle MCP; depths; which joints are outside."""
    height, width = frame.image.shape[:2]
    labelled = np.isfinite(frame.joints_2d).all(1)
    u, v = frame.joints_2d[labelled].T
    # The image reaches half a pixel beyond the centres of its outermost pixels.
    outside = (u < -0.5) | (v < -0.5) | (u > width - 0.5) | (v > height - 0.5)
    palm = np.linalg.norm(frame.joints_3d[MIDDLE_MCP] - frame.joints_3d[WRIST])
    return float(frame.side == "left"), palm, frame.joints_3d[labelled, 2], outside


def report_table(reports: Iterable[Report]) -> pd.DataFrame:
    """Make a data frame with one row a report, rounded to thousandths."""
    return pd.DataFrame([report.row for report in reports]).set_index("set").round(3)


def spread(count: int, limit: int) -> list[int]:
    """Choose at most `limit` indices below `count`, evenly spread."""
    return [i * count // min(limit, count) for i in range(min(limit, count))]


def overlay_sheet(reader: Frames, count: int = 16, columns: int = 8, size: int = 160) -> np.ndarray:
    """Draw the labels over crops of spread samples: (rows * size, columns * size, 3) uint8."""
    images = []
    for index in spread(len(reader), count):
        frame = reader[index]
        center, side = crop_square(frame)
        joints = (frame.joints_2d - center) * size / side + (size - 1) / 2
        image = cut(frame.image, center, side, size)
        images.append(draw_skeleton(image, joints, thickness=1))
    return contact_sheet(images, columns, size)
