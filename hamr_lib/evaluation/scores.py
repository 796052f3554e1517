"""The numbers that follow from saved predictions (Sections 4.3-4.5), as rows of `metrics.csv`."""

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from hamr_lib.config import Evaluate, Settings
from hamr_lib.data import photographs
from hamr_lib.data.crops import BOX_FACTOR, load_crops
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, protocols
from hamr_lib.evaluation.predict import (
    best_device,
    network_estimator,
    predict,
    predictions_path,
    save_predictions,
)
from hamr_lib.evaluation.protocols import BOXES, HAND3D, PIXELS, Protocol
from hamr_lib.files import commit, read_bytes, write_json, write_text
from hamr_lib.joints import WRIST
from hamr_lib.model.hamr import HAMR, load_model
from hamr_lib.recovery.pipeline import frame_box, recover
from hamr_lib.variants import VARIANTS

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
    """Tell whether a data set's display name is that of a rendered stand-in."""
    return dataset.startswith("open-")


def main_protocol(predictions: dict) -> Protocol:
    """Return our reading of the paper's: by the wrist, or, where it has no label, by the tips."""
    return protocols.PAPER if predictions["valid_3d"][:, WRIST].any() else protocols.TIPS


def errors(predictions: dict, protocol: Protocol, points: str = "pixels") -> np.ndarray:
    """Measure errors (N, 21), NaN where unscored; of a method that gives no such points all NaN.

    Args:
        protocol: a 3-D one for millimetres, `PIXELS` for pixels of the photo, or `BOXES` for
            fractions of `predictions["boxes"]`, (N, 1) pixels.
        points: which points are scored in 2-D: those of the mesh, or "peak_pixels".
    """
    names = (points, "true_pixels", "valid_2d")
    if protocol.root:
        names = ("joints_3d", "true_joints_3d", "valid_3d")
    if names[0] not in predictions:
        return np.full(predictions[names[2]].shape, np.nan)
    found = [predictions[name] for name in names]
    if protocol.root:
        visible, palm = predictions.get("visible"), predictions.get("palm", protocols.PALM)
        return protocols.joint_errors_3d(*found, protocol, visible, palm)
    flat = protocols.joint_errors_2d(*found)
    return flat / predictions["boxes"] if protocol == BOXES else flat


def areas(runs: list[dict], protocol: Protocol, points: str = "pixels") -> list[np.ndarray]:
    """Compute each joint's own AUC, (N, 21) a run; their `joint_mean` is the AUC of the PCK."""
    grid = protocol.grid
    return [metrics.auc(metrics.hits(errors(run, protocol, points), grid), grid) for run in runs]


def row_means(errors: np.ndarray) -> np.ndarray:
    """Average (N, J) over what is known of each row: (N,), NaN where nothing is."""
    return pd.DataFrame(errors).mean(axis=1).to_numpy()


def score(runs: list[dict], settings: Evaluate) -> pd.DataFrame:
    """Score a method on a set, its runs one a training seed: rows as `tabulate` makes them."""
    protocol = main_protocol(runs[0])
    mask = f"{int(runs[0]['mask_size'])} px crop, coverage >= 0.5, mean over images"
    millimetres = [errors(run, protocol) for run in runs]
    overlap = [np.stack([run["iou"], run["iou_background"]], axis=1) for run in runs]
    measures = [
        ("auc", protocol.name, areas(runs, protocol)),
        ("epe_mean", protocol.name, millimetres),
        ("epe_median", protocol.name, millimetres),
        ("auc_hand3d", HAND3D.name, areas(runs, HAND3D)),
        ("auc_2d", PIXELS.name, areas(runs, PIXELS)),
        ("epe_2d", PIXELS.name, [errors(run, PIXELS) for run in runs]),
        ("auc_2d_heatmaps", PIXELS.name, areas(runs, PIXELS, "peak_pixels")),
        ("miou", mask, [both[:, :1] for both in overlap]),
        ("miou_classes", mask, overlap),
    ]
    return tabulate(runs, measures, settings)


def tabulate(runs: list[dict], measures: list[tuple], settings: Evaluate) -> pd.DataFrame:
    """Make rows of `metrics.csv`, each with its 95 % interval over images (and seeds).

    Args:
        runs: predictions dicts of one method and set, one a training seed.
        measures: (metric, name of the protocol, values (N, J), one array a run). They are averaged
            over images and joints, those of "epe_median" by the median over images.

    Returns:
        DataFrame with `COLUMNS`; `n` counts the scored images. What is nowhere known has no row.
    """
    first, rows = runs[0], []
    for run in runs[1:]:
        if list(run["keys"]) != list(first["keys"]):
            raise HamrError(f"{first['method']}: its runs were scored on different images")
    about = [str(first[name]) for name in ("dataset", "split")]
    seeds = " ".join(str(run["seed"]) for run in runs)
    commits = " ".join(sorted({str(run["commit"]) for run in runs}))
    draws = metrics.draw(len(first["keys"]), settings.bootstrap)
    for metric, protocol, values in measures:
        if np.isnan(values[0]).all():
            continue
        if metric == "epe_median":
            value = np.mean([metrics.joint_median(v) for v in values])
            resampled = np.mean([metrics.bootstrap_median(v, draws) for v in values], axis=0)
        else:
            value = np.mean([metrics.joint_mean(v) for v in values])
            resampled = metrics.bootstrap(values, draws)
        what = (*about, protocol_name(protocol, first), str(first["method"]), metric)
        count = (~np.isnan(values[0])).any(1).sum()
        rows.append((*what, value, *metrics.interval(resampled), count, seeds, "measured", commits))
    numbers = {"value": float, "ci_low": float, "ci_high": float, "n": int}
    return pd.DataFrame(rows, columns=COLUMNS).astype(numbers)  # also without any row


def protocol_name(name: str, predictions: dict) -> str:
    """Return a protocol's name on a set: of STB it tells the camera, too."""
    camera = str(predictions["stb_camera"])
    return f"{name}, {camera} camera" if camera else name


def curve(
    runs: list[dict], protocol: Protocol, settings: Evaluate
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the PCK (T,) of runs, one a seed, and its 95 % interval (2, T)."""
    hits = [metrics.hits(errors(run, protocol), protocol.grid) for run in runs]
    draws = metrics.draw(len(hits[0]), settings.bootstrap)
    band = metrics.interval(metrics.bootstrap(hits, draws))
    return np.mean([metrics.joint_mean(one) for one in hits], axis=0), band


def evaluate_method(
    estimate: Callable,
    settings: Settings,
    folder: str | Path,
    sets: dict,
    network: torch.nn.Module | None = None,
    **about,
) -> pd.DataFrame:
    """Predict, save and score every test set; returns the content of `metrics.csv`.

    Args:
        folder: receives `predictions-<set>.npz`, `metrics.csv`, `protocols.csv` and `cost.json`
            (trained parameters, GFLOP and median ms an image, and where that was measured).
        sets: (display name, split) -> `Crops`.
        network: the module behind the method, if there is one.
        estimate, about: as in `predict`.
    """
    folder, rows, matrix, times = Path(folder), [], [], []

    def timed(images):
        started = time.perf_counter()
        found = estimate(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started) / len(images))
        return found

    for (dataset, split), crops in sets.items():
        found = predict(timed, crops, settings, dataset=dataset, split=split, **about)
        save_predictions(predictions_path(folder, dataset), found)
        missing = np.isnan(errors(found, main_protocol(found)))
        told = f"{missing.all(1).sum()} of them unscored; {missing.sum()} of {missing.size} joints"
        told = f"{told} carry no label" if "joints_3d" in found else "masks alone"
        print(f"{about['method']} on {dataset}: {len(crops)} images, {told}")
        rows.append(score([found], settings.evaluate))
        every = [("auc", p.name, areas([found], p)) for p in protocols.protocol_matrix()]
        matrix.append(tabulate([found], every, settings.evaluate))
    on_gpu = torch.device(about.get("device", "cpu")).type == "cuda"
    write_json(folder / "cost.json", {
        "parameters": sum(p.numel() for p in network.parameters()) if network else 0,
        "gflop": gigaflops(estimate, network, settings.model.image_size) if network else 0,
        "ms_an_image": float(np.median(times)),
        "batch_size": settings.evaluate.batch_size,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "commit": commit(),
    })  # fmt: skip
    write_rows(folder / "protocols.csv", pd.concat(matrix, ignore_index=True))
    return write_rows(folder / "metrics.csv", pd.concat(rows, ignore_index=True))


@torch.no_grad()
def gigaflops(estimate: Callable, network: torch.nn.Module, size: int) -> float:
    """Count what one image costs, a multiply-add twice; drawing a silhouette is not counted."""
    image = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        estimate(image)
    return counter.get_total_flops() / 1e9


def evaluate_network(
    model: HAMR, settings: Settings, folder: str | Path, sets: dict
) -> pd.DataFrame:
    """Evaluate a trained network into its run's folder, see `evaluate_method`.

    The method is called by the folder's name, a variant without its seed. Variants keep no example
    pictures.
    """
    method = Path(folder).name.rpartition("-s")[0] or Path(folder).name
    if method in VARIANTS:
        settings = replace(settings, evaluate=replace(settings.evaluate, examples=0))
    return evaluate_method(
        network_estimator(model, settings.evaluate), settings, folder, sets, model,
        method=method, seed=settings.train.seed, faces=model.hand.faces,
        device=next(model.parameters()).device,
    )  # fmt: skip


def evaluate_photographs(checkpoint: str | Path, folder: str | Path) -> pd.DataFrame | None:
    """Score a network on the hands of photographs (`data.photographs`), into photographs.csv.

    Errors are box-normalised: divided by the longer side of the box of the labelled joints. Scored
    are the network's mesh, its heat maps, and the mesh of `recover`, given that box and the side.

    Args:
        checkpoint: path of the network.
        folder: the run's.

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
        network_estimator(model, options), crops, replace(settings, evaluate=options),
        dataset=photographs.TITLE, split="seen joints", method="main", seed=settings.train.seed,
        device=next(model.parameters()).device,
    )  # fmt: skip
    hands = (recover(f.image, frame_box(f), f.side, checkpoint)[0] for f in frames)
    run["recovered_pixels"] = np.stack([hand.joints_2d for hand in hands])
    run["boxes"] = crops.labels["side"][:, None] / BOX_FACTOR
    points = {"": "pixels", "_heatmaps": "peak_pixels", "_recover": "recovered_pixels"}
    measures = [(f"auc_2d_box{k}", BOXES.name, areas([run], BOXES, v)) for k, v in points.items()]
    return write_rows(Path(folder) / "photographs.csv", tabulate([run], measures, options))


def write_rows(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """Write rows of metrics as CSV, aside and renamed; returns them."""
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
    return table


def read_csv(path: str | Path, **options) -> pd.DataFrame:
    """Read a table of a run, `options` as in pandas; a missing or broken one is a `HamrError`."""
    content = read_bytes(path)
    try:
        return pd.read_csv(io.BytesIO(content), **options)
    except ValueError as error:
        raise HamrError(f"{path} is no CSV: {error}") from error


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read rows of metrics; a missing or foreign file is a `HamrError`."""
    table = read_csv(path, dtype={"seeds": str, "commit": str, "split": str})
    if not set(COLUMNS) <= set(table):
        raise HamrError(f"{path}: expected the columns {', '.join(COLUMNS)}")
    return table


def published() -> pd.DataFrame:
    """Read what the literature reports, `published.csv`."""
    return pd.read_csv(PUBLISHED)


def merge_metrics(results_dir: str | Path) -> pd.DataFrame:
    """Put the rows of all runs and baselines and the published ones into one `metrics.csv`."""
    results_dir = Path(results_dir)
    patterns = ("runs/*/metrics.csv", "comparisons/*/metrics.csv", "runs/main/photographs.csv")
    found = [path for pattern in patterns for path in sorted(results_dir.glob(pattern))]
    if not found:
        raise HamrError(f"{results_dir} holds no runs/*/metrics.csv: run the evaluation first")
    literature = published()[["dataset", "protocol", "method", "metric", "value"]]
    tables = [read_rows(path) for path in found] + [literature.assign(source="published")]
    merged = pd.concat(tables, ignore_index=True)[COLUMNS]
    return write_rows(results_dir / "metrics.csv", merged)
