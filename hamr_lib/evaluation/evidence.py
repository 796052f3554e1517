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
from hamr_lib.evaluation import protocols
from hamr_lib.evaluation.scores import COLUMNS, Rows, errors_2d, joint_areas, write_rows
from hamr_lib.files import commit
from hamr_lib.recovery.detect import find_in_box
from hamr_lib.recovery.pipeline import EVIDENCE, frame_box, recover

COUNT = 100  # frames of a rendered or real set, evenly spaced
MEDIAPIPE = "MediaPipe"
# Scale and depth are unknown to MediaPipe: one bone is given the label's length.
ALIGNED = protocols.Protocol(root="middle MCP", scale="bone")
PROCRUSTES = protocols.Protocol(root="centroid", scale="procrustes")


def evaluate_evidence(checkpoint, folder, settings) -> pd.DataFrame:
    """Score `recover` by its evidence, and MediaPipe's landmarks, into `evidence.csv`.

    Scored are the boxes in which MediaPipe sees a hand, so that all rows are of the same hands.

    Args:
        checkpoint: path of the network.
        folder: the run's.
        settings: `Settings`; their set in RHD's format, evaluation split.

    Returns:
        Rows as of `metrics.csv`, and "of", the number of hands that were looked at.
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
    """The rows of one set: of each of `EVIDENCE` and of `MEDIAPIPE`."""
    finds = [find_in_box(frame.image, frame_box(frame)) for frame in frames]
    seen = [(frame, found) for frame, found in zip(frames, finds, strict=True) if found]
    if not seen:
        return pd.DataFrame(columns=[*COLUMNS, "of"])
    answers = {MEDIAPIPE: [(found.landmarks, found.world) for _, found in seen]}
    for evidence in EVIDENCE:
        hands = (
            recover(frame.image, frame_box(frame), frame.side, checkpoint, evidence=evidence)[0]
            for frame, _ in seen
        )
        answers[evidence] = [(hand.joints_2d, hand.joints_3d) for hand in hands]
    boxes = np.array([[crop_square(frame)[1] / BOX_FACTOR] for frame, _ in seen])
    tables = []
    for method in (*EVIDENCE, MEDIAPIPE):
        run = _predictions([frame for frame, _ in seen], answers[method])
        run |= {"dataset": dataset, "split": split, "method": method, "seed": settings.train.seed}
        rows = Rows([run], settings.evaluate)
        flat = joint_areas(errors_2d(run) / boxes, protocols.THRESHOLDS[protocols.BOXES.thresholds])
        rows.add("auc_2d_box", protocols.BOXES.name, [flat])
        rows.add_auc(ALIGNED, "auc")
        rows.add_auc(PROCRUSTES, "auc_procrustes")
        tables.append(rows.table().assign(of=len(frames)))
    return pd.concat(tables, ignore_index=True)


def _predictions(frames, answers):
    """Labels and answers as `predict` saves them, as far as `scores` reads them."""
    flat = np.stack([frame.joints_2d for frame in frames]).astype(float)
    solid = np.stack([frame.joints_3d for frame in frames]).astype(float)
    pixels, joints = (np.stack(part) for part in zip(*answers, strict=True))
    return {
        "keys": np.array([frame.key for frame in frames]), "commit": commit(), "stb_camera": "",
        "pixels": pixels, "true_pixels": flat, "valid_2d": np.isfinite(flat).all(2),
        "joints_3d": joints, "true_joints_3d": np.nan_to_num(solid),
        "valid_3d": np.isfinite(solid).all(2),
    }  # fmt: skip
