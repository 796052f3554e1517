"""Measure how well `recover` detects the hands in the 500 photographs of BSDS500.

    python -m hamr_lib.report.finder FOLDER OUT

writes `detections.csv` and a contact sheet, `detections.png`, into OUT, and the table `finder`,
which `hamr_lib.study publish` inserts into the docs. `data/judged.csv` holds the detections that
were judged by eye on such a sheet; its column `hand` is 1 where one is of a hand. The confidence is
that of the network that comes with the package.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from rich.progress import track

from hamr_lib.data.frame import write_image
from hamr_lib.data.photographs import LABELS
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, commit
from hamr_lib.model.checkpoint import SHIPPED
from hamr_lib.recovery.detect import SAME, overlap
from hamr_lib.recovery.pipeline import NoHandError, recover
from hamr_lib.render.draw2d import contact_sheet
from hamr_lib.report.tables import write_table

JUDGED = LABELS.with_name("judged.csv")
BOX = ["x0", "y0", "x1", "y1"]  # pixels
COLUMNS = ["photograph", *BOX, "side", "score", "confidence"]  # confidence: mean over joints
TOUCH = 0.1  # least intersection over union of a detection with the labelled hand that it shows


def detect_all(
    paths: list[Path], checkpoint: Path = SHIPPED
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Detect the hands in photographs: a row each (`COLUMNS`), and (H, W, 3) uint8 of each."""
    rows, pictures = [], []
    for path in track(paths, "detecting hands"):
        try:
            hands = recover(path, checkpoint=checkpoint)
        except NoHandError:
            continue
        for hand in hands:
            rows.append((path.stem, *hand.box, hand.side, hand.score, hand.confidence.mean()))
            *centre, side = hand.square
            picture = cv2.getRectSubPix(hand.photo, (round(1.2 * side),) * 2, centre)
            picture = cv2.resize(picture, (200, 200))
            text = f"{path.stem} {hand.score:.2f} {rows[-1][-1]:.2f}"
            cv2.putText(picture, text, (3, 14), cv2.FONT_HERSHEY_PLAIN, 1, (255,) * 3)
            pictures.append(picture)
    return pd.DataFrame(rows, columns=COLUMNS), pictures


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


def main(folder: str, out: str) -> None:
    """Run the command described at the top."""
    labels, judged = (pd.read_csv(path, dtype={"photograph": str}) for path in (LABELS, JUDGED))
    paths = sorted(Path(folder).rglob("*.jpg"))
    if missing := set(labels.photograph) - {path.stem for path in paths}:
        raise HamrError(f"{folder}: expected BSDS500, {min(missing)}.jpg is missing")
    detected, pictures = detect_all(paths)
    write_image(Path(out) / "detections.png", contact_sheet(pictures, 10, 200))
    detected.to_csv(Path(out) / "detections.csv", index=False)
    table = summary(detected, labels, judged)
    out_dir = ROOT / "results" / "reference" / "bench"
    print(write_table(table, out_dir, "finder", photographs=len(paths), commit=commit()))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except HamrError as error:
        sys.exit(f"error: {error}")
