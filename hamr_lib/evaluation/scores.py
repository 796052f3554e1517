"""The numbers that follow from saved predictions (Sections 4.3-4.5), as rows of `metrics.csv`.

`score` needs no network, data set or hand model: only what `predict` saved.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hamr_lib.config import Evaluate, Settings
from hamr_lib.data import photographs
from hamr_lib.data.crops import BOX_FACTOR, load_crops
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, protocols
from hamr_lib.evaluation.predict import (
    Timed,
    best_device,
    gigaflops,
    network_estimator,
    predict,
    predictions_path,
    save_predictions,
)
from hamr_lib.files import commit, write_aside, write_json
from hamr_lib.joints import WRIST
from hamr_lib.model.hamr import HAMR, load_model
from hamr_lib.recovery.pipeline import frame_box, recover

COLUMNS = [
    "dataset", "split", "protocol", "method", "metric", "value", "ci_low", "ci_high",
    "n", "seeds", "source", "commit",
]  # fmt: skip
PUBLISHED = Path(__file__).with_name("published.csv")
METRICS = {
    "auc": "3-D PCK AUC",
    "auc_hand3d": "3-D PCK AUC, hand3d's protocol",
    "epe_mean": "mean 3-D error (mm)",
    "epe_median": "median 3-D error (mm)",
    "auc_2d": "2-D PCK AUC",
    "auc_2d_heatmaps": "2-D PCK AUC, heat maps",
    "auc_2d_box": "2-D PCK AUC, of the box",
    "auc_2d_box_heatmaps": "2-D PCK AUC, of the box, heat maps",
    "auc_2d_box_recover": "2-D PCK AUC, of the box, recover",
    "epe_2d": "mean 2-D error (px)",
    "miou": "mIoU",
    "miou_classes": "mIoU, hand and background",
}


def is_stand_in(dataset: str) -> bool:
    """Whether a data set's display name is that of a rendered stand-in."""
    return dataset.startswith("open-")


def main_protocol(predictions: dict) -> protocols.Protocol:
    """Our reading of the paper's protocol: by the wrist where it is labelled, else by the tips."""
    return protocols.PAPER if predictions["valid_3d"][:, WRIST].any() else protocols.TIPS


def errors_3d(predictions: dict, protocol: protocols.Protocol) -> np.ndarray:
    """(N, 21) millimetres under a protocol, NaN where unscored; all of it without joints."""
    if "joints_3d" not in predictions:
        return np.full(predictions["valid_3d"].shape, np.nan)
    names = ("joints_3d", "true_joints_3d", "valid_3d")
    return protocols.joint_errors_3d(
        *(predictions[name] for name in names),
        protocol,
        predictions.get("visible"),
        predictions.get("palm", protocols.PALM),
    )


def errors_2d(predictions: dict, points: str = "pixels") -> np.ndarray:
    """(N, 21) pixels of the photo, of the projected joints or of the heat maps' "peak_pixels".

    All NaN for a method that gives no joints.
    """
    if points not in predictions:
        return np.full(predictions["valid_2d"].shape, np.nan)
    return protocols.joint_errors_2d(
        predictions[points], predictions["true_pixels"], predictions["valid_2d"]
    )


def row_means(errors: np.ndarray) -> np.ndarray:
    """(N, J) with NaN -> (N,) means, NaN where a row has nothing else."""
    known = np.isfinite(errors)
    total = np.where(known, errors, 0).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(errors), np.nan), where=known.any(1))


def score(runs: list[dict], settings: Evaluate) -> pd.DataFrame:
    """What a method reaches on a set: rows of `metrics.csv`.

    Args:
        runs: predictions dicts of one method and set, one a training seed. With several, values
            are means over them, and the 95 % intervals are of images and of seeds.
        settings: `settings.evaluate`.

    Returns:
        DataFrame with `COLUMNS`: AUC, mean and median error in 3-D under our reading of the
        paper's protocol, AUC under hand3d's, 2-D AUC and error in pixels of the photo, and mIoU.
        What the method does not predict or the set does not label has no row. `n` counts the
        images that were scored.
    """
    protocol = main_protocol(runs[0])
    pixels = protocols.THRESHOLDS[protocols.PIXELS.thresholds]
    rows = Rows(runs, settings)

    errors = [errors_3d(run, protocol) for run in runs]
    rows.add_auc(protocol)
    rows.add("epe_mean", protocol.name, errors)
    rows.add_median("epe_median", protocol.name, errors)
    rows.add_auc(protocols.HAND3D, "auc_hand3d")
    flat = [errors_2d(run) for run in runs]
    rows.add("auc_2d", protocols.PIXELS.name, [joint_areas(e, pixels) for e in flat])
    rows.add("epe_2d", protocols.PIXELS.name, flat)
    if "peak_pixels" in runs[0]:
        peaks = [joint_areas(errors_2d(run, "peak_pixels"), pixels) for run in runs]
        rows.add("auc_2d_heatmaps", protocols.PIXELS.name, peaks)
    mask = f"{int(runs[0]['mask_size'])} px crop, coverage >= 0.5, mean over images"
    overlap = [np.stack([run["iou"], run["iou_background"]], axis=1) for run in runs]
    rows.add("miou", mask, [both[:, :1] for both in overlap])
    rows.add("miou_classes", mask, overlap)
    return rows.table()


def score_protocols(runs: list[dict], settings: Evaluate) -> pd.DataFrame:
    """The AUC of the same predictions under every protocol of the literature, as rows."""
    rows = Rows(runs, settings)
    for protocol in protocols.protocol_matrix():
        rows.add_auc(protocol)
    return rows.table()


def curve(
    errors: list[np.ndarray], thresholds: np.ndarray, settings: Evaluate
) -> tuple[np.ndarray, np.ndarray]:
    """A PCK curve with its band.

    Args:
        errors: a list of (N, 21), one a training seed.
        thresholds: (T,).
        settings: `settings.evaluate`.

    Returns:
        The curve (T,), and its 95 % interval (2, T) over images (and seeds, where several).
    """
    hits = [metrics.hits(e, thresholds) for e in errors]
    draws = metrics.draw(len(errors[0]), settings.bootstrap)
    band = metrics.interval(metrics.bootstrap(hits, draws))
    return np.mean([metrics.joint_mean(h) for h in hits], axis=0), band


def protocol_name(name: str, predictions: dict) -> str:
    """A protocol's name on a set: of STB it tells the camera, too."""
    camera = str(predictions["stb_camera"])
    return f"{name}, {camera} camera" if camera else name


def joint_areas(errors, thresholds):
    """Each joint's own AUC: the mean of these is the AUC of the curve, since both are linear."""
    return metrics.auc(metrics.hits(errors, thresholds), thresholds)


class Rows:
    """Collects the rows of one method on one set."""

    def __init__(self, runs, settings):
        for run in runs[1:]:
            if list(run["keys"]) != list(runs[0]["keys"]):
                raise HamrError(f"{runs[0]['method']}: its runs were scored on different images")
        self.runs, self.rows = runs, []
        self.draws = metrics.draw(len(runs[0]["keys"]), settings.bootstrap)

    def add(self, metric, protocol, values):
        """A mean over images and joints of (N, J) values, one array a run."""
        if not np.isnan(values[0]).all():
            value = np.mean([metrics.joint_mean(v) for v in values])
            self._row(metric, protocol, values, value, metrics.bootstrap(values, self.draws))

    def add_auc(self, protocol, metric="auc"):
        """The AUC under a 3-D protocol."""
        thresholds = protocols.THRESHOLDS[protocol.thresholds]
        areas = [joint_areas(errors_3d(run, protocol), thresholds) for run in self.runs]
        self.add(metric, protocol.name, areas)

    def add_median(self, metric, protocol, values):
        """The same for the median over images."""
        if not np.isnan(values[0]).all():
            value = np.mean([metrics.joint_median(v) for v in values])
            resampled = np.mean([metrics.bootstrap_median(v, self.draws) for v in values], axis=0)
            self._row(metric, protocol, values, value, resampled)

    def _row(self, metric, protocol, values, value, resampled):
        low, high = metrics.interval(resampled)
        first = self.runs[0]
        self.rows.append({
            "dataset": str(first["dataset"]),
            "split": str(first["split"]),
            "protocol": protocol_name(protocol, first),
            "method": str(first["method"]),
            "metric": metric,
            "value": float(value),
            "ci_low": float(low),
            "ci_high": float(high),
            "n": int((~np.isnan(values[0])).any(1).sum()),
            "seeds": " ".join(str(run["seed"]) for run in self.runs),
            "source": "measured",
            "commit": " ".join(sorted({str(run["commit"]) for run in self.runs})),
        })  # fmt: skip

    def table(self):
        numbers = {"value": float, "ci_low": float, "ci_high": float, "n": int}
        return pd.DataFrame(self.rows, columns=COLUMNS).astype(numbers)  # also without any row


def unlabelled(predictions: dict) -> dict[str, int]:
    """How many images and joints of a set were left out of the 3-D score for want of a label."""
    scored = ~np.isnan(errors_3d(predictions, main_protocol(predictions)))
    return {
        "images": len(scored),
        "images_unscored": int((~scored.any(1)).sum()),
        "joints": scored.size,
        "joints_unscored": int((~scored).sum()),
    }


def evaluate_method(
    estimate: Callable,
    settings: Settings,
    folder: str | Path,
    sets: dict,
    *,
    method: str,
    seed: int,
    faces: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    network: torch.nn.Module | None = None,
) -> pd.DataFrame:
    """Predict, save and score every test set.

    Args:
        estimate, method, seed, faces, device: as in `predict`.
        folder: receives `predictions-<set>.npz`, `metrics.csv`, `protocols.csv` and `cost.json`
            (trained parameters, GFLOP and median ms an image, and where that was measured).
        sets: dict of (display name, split) to `Crops`.
        network: the module behind the method, if there is one.

    Returns:
        The content of `metrics.csv`.
    """
    rows, matrix = [], []
    timed = Timed(estimate)
    for (dataset, split), crops in sets.items():
        predictions = predict(
            timed, crops, settings, dataset=dataset, split=split, method=method, seed=seed,
            faces=faces, device=device,
        )  # fmt: skip
        save_predictions(predictions_path(folder, dataset), predictions)
        if "joints_3d" in predictions:
            left = unlabelled(predictions)
            print(
                f"{method} on {dataset}: {left['images']} images, {left['images_unscored']} of "
                f"them unscored; {left['joints_unscored']} of {left['joints']} joints carry no "
                "label"
            )
        else:
            print(f"{method} on {dataset}: {len(crops)} images, masks alone")
        rows.append(score([predictions], settings.evaluate))
        matrix.append(score_protocols([predictions], settings.evaluate))
    cost = {
        "parameters": 0 if network is None else sum(p.numel() for p in network.parameters()),
        "gflop": 0 if network is None else gigaflops(estimate, settings.model.image_size, device),
        "ms_an_image": float(np.median(timed.times)),
        "batch_size": settings.evaluate.batch_size,
        "device": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "cpu",
        "commit": commit(),
    }
    write_json(Path(folder) / "cost.json", cost)
    write_rows(Path(folder) / "protocols.csv", pd.concat(matrix, ignore_index=True))
    return write_rows(Path(folder) / "metrics.csv", pd.concat(rows, ignore_index=True))


def evaluate_network(
    model: HAMR, settings: Settings, folder: str | Path, sets: dict
) -> pd.DataFrame:
    """Evaluate a trained network into its run's folder, see `evaluate_method`.

    It runs on the device it is on. The method is called by the folder's name, "main" or a variant
    without its seed; only the main run keeps example pictures, for the figures show no others.
    """
    device = next(model.parameters()).device
    method = Path(folder).name.rpartition("-s")[0] or Path(folder).name
    if method != "main":
        settings = replace(settings, evaluate=replace(settings.evaluate, examples=0))
    return evaluate_method(
        network_estimator(model, settings.evaluate.mask_size), settings, folder, sets,
        method=method, seed=settings.train.seed, faces=model.hand.faces, device=device,
        network=model,
    )  # fmt: skip


def evaluate_photographs(checkpoint: str | Path, folder: str | Path) -> pd.DataFrame | None:
    """Score a network on the hands of photographs (`data.photographs`), where these are there.

    Errors are box-normalised: divided by the longer side of the box of the labelled joints, from
    which the crop is cut as for any other set. Scored are the network's mesh and heat maps,
    and the mesh of `pipeline.recover`, which is given that box and the side.

    Args:
        checkpoint: path of the network.
        folder: the run's, into which photographs.csv is written.

    Returns:
        Rows of `metrics.csv`; None, and nothing written, where there are no photographs.
    """
    paths = photographs.find_photographs()
    if not paths:
        return None
    model, settings = load_model(checkpoint, best_device())
    frames = photographs.Photographs(paths)
    files = sorted((str(path), path.stat().st_mtime_ns) for path in paths.values())
    identity = [photographs.LABELS.read_text(), files]
    crops = load_crops(frames, identity, settings.model.image_size, name="photographs")
    options = replace(settings.evaluate, examples=0)
    run = predict(
        network_estimator(model, options.mask_size), crops, replace(settings, evaluate=options),
        dataset=photographs.TITLE, split="seen joints", method="main", seed=settings.train.seed,
        device=next(model.parameters()).device,
    )  # fmt: skip
    boxes = crops.labels["side"][:, None] / BOX_FACTOR
    rows = Rows([run], options)
    thresholds = protocols.THRESHOLDS[protocols.BOXES.thresholds]
    for metric, points in (("auc_2d_box", "pixels"), ("auc_2d_box_heatmaps", "peak_pixels")):
        rows.add(
            metric, protocols.BOXES.name, [joint_areas(errors_2d(run, points) / boxes, thresholds)]
        )
    found = [recover(f.image, frame_box(f), f.side, checkpoint)[0] for f in frames]
    run["recovered_pixels"] = np.stack([recovery.joints_2d for recovery in found])
    errors = errors_2d(run, "recovered_pixels") / boxes
    rows.add("auc_2d_box_recover", protocols.BOXES.name, [joint_areas(errors, thresholds)])
    return write_rows(Path(folder) / "photographs.csv", rows.table())


def write_rows(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """Write rows of metrics as CSV, aside and renamed; returns them."""
    with write_aside(path) as aside:
        table.to_csv(aside, index=False, float_format="%.6g")
    return table


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read rows of metrics; a missing or foreign file is a `HamrError`."""
    path = Path(path)
    if not path.is_file():
        raise HamrError(f"{path} is missing: run the evaluation first")
    try:
        table = pd.read_csv(path, dtype={"seeds": str, "commit": str, "split": str})
    except (ValueError, UnicodeDecodeError) as error:
        raise HamrError(f"{path} is no CSV of metrics: {error}") from error
    if list(table.columns) != COLUMNS:
        raise HamrError(f"{path}: expected the columns {', '.join(COLUMNS)}")
    return table


def published() -> pd.DataFrame:
    """What the literature reports, as in `published.csv`."""
    return pd.read_csv(PUBLISHED)


def merge_metrics(results_dir: str | Path) -> pd.DataFrame:
    """Put the rows of all runs and comparisons and the published ones into one `metrics.csv`.

    Returns:
        DataFrame with `COLUMNS`.

    Raises:
        HamrError: where nothing was evaluated yet.
    """
    results_dir = Path(results_dir)
    found = sorted(results_dir.glob("runs/*/metrics.csv"))
    found += sorted(results_dir.glob("comparisons/*/metrics.csv"))
    found += sorted(results_dir.glob("runs/main/photographs.csv"))
    if not found:
        raise HamrError(f"{results_dir} holds no runs/*/metrics.csv: run the evaluation first")
    literature = published()[["dataset", "protocol", "method", "metric", "value"]]
    tables = [read_rows(path) for path in found] + [literature.assign(source="published")]
    merged = pd.concat(tables, ignore_index=True)[COLUMNS]
    return write_rows(results_dir / "metrics.csv", merged)
