"""Measure how well `hamr recover` detects the hands in the 500 photographs of BSDS500.

    hamr recover FOLDER --out FOUND
    python -m hamr_lib.report.finder FOLDER FOUND

reads what the command found and writes the table `finder`, which `hamr_lib.study publish` inserts
into the docs. `data/judged.csv` holds the detections that were judged by eye on the overlays; its
column `hand` is 1 where one is of a hand.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from hamr_lib.data.photographs import LABELS
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, commit, read_json
from hamr_lib.recovery.detect import SAME, overlap
from hamr_lib.report.tables import write_table

JUDGED = LABELS.with_name("judged.csv")
BOX = ["x0", "y0", "x1", "y1"]  # pixels
COLUMNS = ["photograph", *BOX, "side", "score", "confidence"]  # confidence: mean over joints
TOUCH = 0.1  # least intersection over union of a detection with the labelled hand that it shows


def read_found(folder: Path) -> pd.DataFrame:
    """Read the JSON files that `hamr recover` left in a folder: a row a hand (`COLUMNS`)."""
    rows = []
    for path in sorted(folder.rglob("*.json")):
        hand, photograph = read_json(path), path.stem.partition("_hand")[0]
        confidence = np.mean(hand["confidence"])
        rows.append((photograph, *hand["box"], hand["side"], hand["score"], confidence))
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(detected: pd.DataFrame, labels: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """Count detections against `LABELS`, whose boxes are those of visible joints, and `JUDGED`."""
    hands = labels.groupby(["photograph", "hand"], as_index=False).agg(
        x0=("x", "min"), y0=("y", "min"), x1=("x", "max"), y1=("y", "max"), side=("side", "first")
    )
    hands = _best_match(hands, detected)
    seen = hands[hands.iou >= TOUCH]
    verdict = _best_match(detected, judged)
    true, false = (detected[(verdict.hand == hand) & (verdict.iou >= SAME)] for hand in (1, 0))
    rows = {
        "labelled hands": len(hands),
        "of these detected": len(seen),
        f"of these detected with IoU >= {SAME}": (hands.iou >= SAME).sum(),
        "of these detected, side correct": (seen.side == seen.side_).sum(),
        "detections": len(detected),
        "of hands, by eye": len(true),
        "of something else, by eye": len(false),
        "not judged": len(detected) - len(true) - len(false),
    }
    for name in ("score", "confidence"):
        lost = (true[name] <= false[name].max()).sum()
        rows[f"hands lost if a threshold on `{name}` drops all false detections"] = lost
    return pd.DataFrame({"what": rows.keys(), "count": rows.values()})


def _best_match(ones, others):
    """Join each row to the row of `others` in its photograph that overlaps it most, by `iou`."""
    pairs = ones.reset_index().merge(others, on="photograph", suffixes=("", "_"))
    boxes = pairs[BOX].to_numpy(), pairs[[f"{name}_" for name in BOX]].to_numpy()
    pairs["iou"] = [overlap(*pair) for pair in zip(*boxes, strict=True)]
    return pairs.sort_values("iou").groupby("index").last().reindex(ones.index)


def main(folder: str, found: str) -> None:
    """Run the command described at the top."""
    labels, judged = (pd.read_csv(path, dtype={"photograph": str}) for path in (LABELS, JUDGED))
    names = {path.stem for path in Path(folder).rglob("*.jpg")}
    if missing := set(labels.photograph) - names:
        raise HamrError(f"{folder}: expected BSDS500, {min(missing)}.jpg is missing")
    table = summary(read_found(Path(found)), labels, judged)
    out_dir = ROOT / "results" / "reference" / "bench"
    print(write_table(table, out_dir, "finder", photographs=len(names), commit=commit()))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except HamrError as error:
        sys.exit(f"error: {error}")
