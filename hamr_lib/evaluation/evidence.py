"""What `recover` makes of each kind of evidence, beside MediaPipe's own landmarks.

The study's tables are of the network alone, which sees one crop. Here the same labelled hands go
through `recovery.pipeline`, with their box and side given.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from hamr_lib.data import photographs
from hamr_lib.data.crops import BOX_FACTOR, crop_square
from hamr_lib.data.registry import find_sets
from hamr_lib.evaluation.protocols import BOXES, Protocol
from hamr_lib.evaluation.scores import COLUMNS, areas, tabulate, write_rows
from hamr_lib.files import commit
from hamr_lib.recovery.detect import find_in_box
from hamr_lib.recovery.pipeline import EVIDENCE, frame_box, recover

COUNT = 100  # frames of a rendered or real set, evenly spaced
MEDIAPIPE = "MediaPipe"
PROTOCOLS = {
    "auc_2d_box": BOXES,
    # Scale and depth are unknown to MediaPipe: one bone is given the label's length.
    "auc": Protocol(root="middle MCP", scale="bone"),
    "auc_procrustes": Protocol(root="centroid", scale="procrustes"),
}


def evaluate_evidence(checkpoint, folder, settings) -> pd.DataFrame:
    """Score `recover` by its evidence, and MediaPipe's landmarks, into `evidence.csv`.

    All rows are of the same hands: those that MediaPipe detects, of the photographs and of the
    evaluation split of the set in RHD's format.

    Args:
        checkpoint: path of the network.
        folder: the run's.

    Returns:
        Rows as of `metrics.csv`, and "of", the number of hands with and without a detection.
    """
    dataset = find_sets(settings)["rhd"]
    frames = dataset.load("evaluation", settings.data)
    chosen = np.linspace(0, len(frames) - 1, min(COUNT, len(frames))).astype(int)
    sets = {(dataset.title, "evaluation"): [frames[int(i)] for i in chosen]}
    if paths := photographs.find_photographs():
        sets[photographs.TITLE, "seen joints"] = list(photographs.Photographs(paths))
    rows = [score_frames(checkpoint, frames, *name, settings) for name, frames in sets.items()]
    return write_rows(Path(folder) / "evidence.csv", pd.concat(rows, ignore_index=True))


def score_frames(checkpoint, frames, dataset, split, settings) -> pd.DataFrame:
    """Score one set, each of `EVIDENCE` and `MEDIAPIPE`: rows as of `evaluate_evidence`."""
    detections = [find_in_box(frame.image, frame_box(frame)) for frame in frames]
    seen = [frame for frame, found in zip(frames, detections, strict=True) if found]
    if not seen:
        return pd.DataFrame(columns=[*COLUMNS, "of"])
    answers = {}
    for evidence in EVIDENCE:
        hands = (
            recover(frame.image, frame_box(frame), frame.side, checkpoint, evidence=evidence)[0]
            for frame in seen
        )
        answers[evidence] = [(hand.joints_2d, hand.joints_3d) for hand in hands]
    answers[MEDIAPIPE] = [(found.landmarks, found.world) for found in detections if found]
    flat, solid = (
        np.stack([getattr(frame, name) for frame in seen]).astype(float)
        for name in ("joints_2d", "joints_3d")
    )
    # As `predict` saves them, as far as `scores` reads them.
    labels = {
        "keys": [frame.key for frame in seen], "dataset": dataset, "split": split, "stb_camera": "",
        "seed": settings.train.seed, "commit": commit(), "true_pixels": flat,
        "valid_2d": np.isfinite(flat).all(2), "true_joints_3d": np.nan_to_num(solid),
        "valid_3d": np.isfinite(solid).all(2),
        "boxes": np.array([[crop_square(frame)[1] / BOX_FACTOR] for frame in seen]),
    }  # fmt: skip
    tables = []
    for method, answer in answers.items():
        pixels, joints = (np.stack(part) for part in zip(*answer, strict=True))
        run = labels | {"method": method, "pixels": pixels, "joints_3d": joints}
        measures = [(name, one.name, areas([run], one)) for name, one in PROTOCOLS.items()]
        tables.append(tabulate([run], measures, settings.evaluate).assign(of=len(frames)))
    return pd.concat(tables, ignore_index=True)
