"""Predictions of a test set, saved once, and the numbers that follow from them (Sections 4.3-4.5).

`predict` runs a method over the crops of a set and puts everything that figures and tables need
into one dict of arrays: what was predicted, the labels, and a few example pictures. It is saved
as `predictions-<set>.npz`; from there on no network, data set or hand model is needed.

In a predictions dict, N images, K examples (crops of right hands: a left hand is mirrored, and
only what is in photo pixels is mirrored back):

    joints_3d, true_joints_3d  (N, 21, 3) metres, camera axes; relative to the wrist, or for labels
                               without a wrist to the mean of the labelled joints
    joints_2d, true_joints_2d  (N, 21, 2) crop units; also peaks_2d, of the heat maps
    pixels, true_pixels        (N, 21, 2) pixels of the photo; also peak_pixels
                               (joints_3d, joints_2d and pixels only where the method gives joints)
    valid_3d, valid_2d         (N, 21) bool, which labels there are
    camera, global_orient, hand_pose, betas   (N, ...) where the method estimates them
    iou, iou_background        (N,) see `metrics.iou`; NaN where the set or the method has no mask
    mirrored                   (N,) bool, a left hand
    keys                       (N,) names of the images
    examples                   (K,) which images the following show, evenly spaced over the set
    example_images             (K, S, S, 3) uint8; example_masks (K, M, M) bool, the label
    example_predicted          (K, M, M) bool; example_vertices (K, V, 3) metres; faces (F, 3)
    dataset, split, method, seed, commit, mask_size   what this is
"""

import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hamr_lib.camera import crop_to_pixels
from hamr_lib.data import photographs
from hamr_lib.data.augment import centre_crop
from hamr_lib.data.crops import BOX_FACTOR, EvenBatches, load_crops
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics
from hamr_lib.files import commit, write_aside, write_json
from hamr_lib.joints import WRIST
from hamr_lib.model.checkpoint import load_model
from hamr_lib.model.hamr import heatmap_peaks
from hamr_lib.recovery.result import frame_box, recover
from hamr_lib.render import silhouette

COLUMNS = [
    "dataset", "split", "protocol", "method", "metric", "value", "ci_low", "ci_high",
    "n", "seeds", "source", "commit",
]  # fmt: skip
PUBLISHED = Path(__file__).with_name("published.csv")
# How methods are called in figures and tables; what is not here is called by its own name.
LABELS = {
    "main": "HAMR (this study)",
    "main, heat maps": "its heat maps alone",
    "full": "full model",
    "no-mesh": "without mesh",
    "no-camera": "without camera loss",
    "no-geometric": "without geometric loss",
    "no-silhouette": "without silhouette loss",
    "kinematic-joints": "kinematic joints",
    "pose-6": "6 pose components",
    "pose-12": "12 pose components",
    "pose-45": "45 axis-angle numbers",
    "iterations-1": "1 iteration",
    "iterations-2": "2 iterations",
    "squared-heatmaps": "squared heat-map loss",
    "squared-joints": "squared 3-D loss",
    "axis-angle": "axis-angle rotation",
    "untaught-stem": "stem not pretrained",
    "no-places": "without places of joints",
    "no-lifting": "without lifting",
    "lifting-before": "lifting only before",
    "dropout": "with dropout",
    "joints-2d-1": "2-D loss of weight 1",
    "no-shift": "without shifts",
    "rmsprop": "RMSprop",
    "stacks-2": "2 stacks",
    "anew": "begun anew",
    "no-occlusion": "without patches before hands",
    "no-coarse": "without coarse copies",
    "no-start-share": "without a share of the start's weights",
    "kept-statistics": "normalised by kept statistics alone",
    "paper-scale": "the paper's range of scales",
    "paper-colours": "the paper's ranges of colours",
    "hamr": "HAMR, same budget",
    "zimmermann": "Zimmermann & Brox",
    "hmr": "HMR",
    "smplify": "SMPLify",
    "pavlakos": "Pavlakos et al.",
    "deeplab": "DeepLab v3",
    "bodynet": "BodyNet",
    "boukhayma": "Boukhayma et al.",
    "iqbal": "Iqbal et al.",
    "mean-pose": "mean pose",
    "untrained": "untrained network",
}
METRICS = {
    "auc": "3-D PCK AUC",
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
REQUIRED = ("true_joints_3d", "valid_3d", "true_pixels", "valid_2d", "iou", "iou_background",
            "keys", "dataset", "split", "method", "seed", "commit", "mask_size")  # fmt: skip


def best_device():
    """Where networks are run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_stand_in(dataset):
    """Whether a data set's display name is that of a rendered stand-in."""
    return dataset.startswith("open-")


def predictions_path(folder, dataset):
    """Where the predictions for a set, given by its display name, lie in a run's folder."""
    return Path(folder) / f"predictions-{dataset.lower()}.npz"


def network_estimator(model, mask_size):
    """The network as `predict` wants a method: a function of images (B, 3, S, S).

    It returns a dict of tensors: joints_3d (B, 21, 3) metres and joints_2d (B, 21, 2) crop units
    (a method of masks alone has neither) and, where there are such, peaks_2d, camera,
    global_orient, hand_pose, betas, vertices (B, V, 3) and mask (B, mask_size, mask_size)
    coverage of the projected mesh.
    """
    model.eval()

    return lambda image: output_answer(model(image), model.hand.faces, mask_size)


def output_answer(output, faces, mask_size):
    """What a `hamr.Output` says, as `network_estimator` describes it; maps only if it has any."""
    last = output.estimates[-1]
    found = {
        "joints_3d": last.joints_3d,
        "joints_2d": last.joints_2d,
        "camera": last.camera,
    }
    if output.heatmaps:
        found["peaks_2d"] = heatmap_peaks(output.heatmaps[-1])
    if last.vertices is not None:
        found |= {
            "global_orient": last.global_orient,
            "hand_pose": last.hand_pose,
            "betas": last.betas,
            "vertices": last.vertices,
            "mask": silhouette(last.vertices, faces, last.camera, mask_size),
        }
    return found


@torch.no_grad()
def predict(estimate, crops, settings, *, dataset, split, method, seed, faces=None, device="cpu"):
    """Run a method over a set of crops.

    Args:
        estimate: a function like `network_estimator` gives.
        crops: `data.crops.Crops`, cut without or with a margin.
        settings: `Settings`; the image size, and the section `evaluate`.
        dataset: display name; a stand-in's starts with "open-".
        split: name of the split.
        method, seed: which method, trained from which seed.
        faces: (F, 3), where the method predicts vertices.

    Returns:
        The dict described at the top of this file.

    Raises:
        HamrError: naming the image, where a prediction is not finite.
    """
    size, options = settings.model.image_size, settings.evaluate
    kept = np.unique(np.linspace(0, len(crops) - 1, min(options.examples, len(crops))).round())
    columns, examples = {}, {}
    for batch in EvenBatches(crops, options.batch_size):
        indices = batch["index"].numpy()
        batch = centre_crop({k: v.to(device) for k, v in batch.items()}, size)
        found = {k: v.float().cpu() for k, v in estimate(batch["image"]).items()}
        for name in {"joints_3d", "joints_2d", "mask"} & found.keys():
            bad = ~found[name].isfinite().flatten(1).all(1)
            if bad.any():
                image = crops.keys[indices[int(bad.nonzero()[0])]]
                raise HamrError(f"{method}: {name} of {dataset} {image} is not finite")
        true = F.interpolate(
            batch["mask"][:, None].cpu(), size=options.mask_size, mode="bilinear",
            antialias=True, align_corners=False,
        )[:, 0].numpy() >= 0.5  # fmt: skip
        mask, vertices = found.pop("mask", None), found.pop("vertices", None)
        mask = None if mask is None else mask.numpy() >= 0.5
        hand, background = _overlap(mask, true, batch["has_mask"].cpu().numpy())
        rows = {k: v.numpy() for k, v in found.items()} | {
            "iou": hand,
            "iou_background": background,
            "true_joints_3d": batch["joints_3d"].cpu().numpy(),
            "true_joints_2d": batch["joints_2d"].cpu().numpy(),
            "valid_3d": batch["valid_3d"].cpu().numpy(),
            "valid_2d": batch["valid_2d"].cpu().numpy(),
            "mirrored": batch["left"].cpu().numpy(),
            "true_pixels": _photo_pixels(batch["joints_2d"], batch),
        }
        for name, pixels in (("joints_2d", "pixels"), ("peaks_2d", "peak_pixels")):
            if name in found:
                rows[pixels] = _photo_pixels(found[name], batch)
        _append(columns, rows)
        shown = np.isin(indices, kept)
        pictures = {
            "example_images": (255 * batch["image"]).round().byte().permute(0, 2, 3, 1).cpu(),
            "example_masks": true & batch["has_mask"].cpu().numpy()[:, None, None],
            "example_predicted": mask,
            "example_vertices": vertices,
        }
        _append(examples, {k: np.asarray(v)[shown] for k, v in pictures.items() if v is not None})
    stacked = {k: np.concatenate(v) for k, v in (columns | examples).items()}
    if "example_vertices" in stacked:
        stacked["faces"] = np.asarray(faces.cpu() if torch.is_tensor(faces) else faces)
    about = {
        "keys": crops.keys, "examples": kept.astype(int), "dataset": dataset, "split": split,
        "method": method, "seed": seed, "commit": commit(), "mask_size": options.mask_size,
    }  # fmt: skip
    return stacked | {k: np.array(v) for k, v in about.items()}


def _append(columns, rows):
    for name, values in rows.items():
        columns.setdefault(name, []).append(values)


def _overlap(predicted, true, has_mask):
    """(B,) IoU of the hand and of the background, NaN where there is no label or prediction."""
    if predicted is None:
        return np.full((2, len(true)), np.nan)
    return np.where(has_mask, metrics.iou(predicted, true), np.nan)


def _photo_pixels(points, batch):
    """Crop units of the (mirrored) crop to pixels of the photo."""
    flip = torch.where(batch["left"], -1.0, 1.0).cpu()
    points = points.cpu() * torch.stack([flip, torch.ones_like(flip)], dim=-1)[:, None]
    return crop_to_pixels(points, batch["center"].cpu(), batch["side"].cpu()).numpy()


def save_predictions(path, predictions):
    """Write a predictions dict, aside and renamed."""
    with write_aside(path) as aside:
        np.savez_compressed(aside, **predictions)


def load_predictions(path):
    """Read a predictions dict; a missing, broken or foreign file is a `HamrError`."""
    path = Path(path)
    if not path.is_file():
        raise HamrError(f"{path} is missing: run the evaluation first")
    try:
        with np.load(path, allow_pickle=False) as stored:
            predictions = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise HamrError(f"{path} is no readable predictions file: {error}") from error
    missing = [name for name in REQUIRED if name not in predictions]
    if missing:
        raise HamrError(f"{path} is no predictions file: {missing[0]} is missing from it")
    return predictions


def main_protocol(predictions):
    """The paper's protocol where wrists are labelled, else alignment by the labelled tips."""
    return metrics.PAPER if predictions["valid_3d"][:, WRIST].any() else metrics.TIPS


def errors_3d(predictions, protocol):
    """(N, 21) millimetres under a protocol, NaN where unscored; all of it without joints."""
    if "joints_3d" not in predictions:
        return np.full(predictions["valid_3d"].shape, np.nan)
    names = ("joints_3d", "true_joints_3d", "valid_3d")
    return metrics.joint_errors_3d(*(predictions[name] for name in names), protocol)


def errors_2d(predictions, points="pixels"):
    """(N, 21) pixels of the photo, of the projected joints or of the heat maps' "peak_pixels".

    All NaN for a method that gives no joints.
    """
    if points not in predictions:
        return np.full(predictions["valid_2d"].shape, np.nan)
    return metrics.joint_errors_2d(
        predictions[points], predictions["true_pixels"], predictions["valid_2d"]
    )


def row_means(errors):
    """(N, J) with NaN -> (N,) means, NaN where a row has nothing else."""
    known = np.isfinite(errors)
    total = np.where(known, errors, 0).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(errors), np.nan), where=known.any(1))


def score(runs, settings):
    """What a method reaches on a set: rows of `metrics.csv`.

    Args:
        runs: predictions dicts of one method and set, one a training seed. With several, values
            are means over them, and the 95 % intervals are of images and of seeds.
        settings: `settings.evaluate`.

    Returns:
        DataFrame with `COLUMNS`: AUC, mean and median error in 3-D under the paper's protocol,
        2-D AUC and error in pixels of the photo, and mIoU. What the method does not predict or
        the set does not label has no row. `n` counts the images that were scored.
    """
    protocol = main_protocol(runs[0])
    thresholds = metrics.THRESHOLDS[protocol.thresholds]
    pixels = metrics.THRESHOLDS[metrics.PIXELS.thresholds]
    rows = _Rows(runs, settings)

    errors = [errors_3d(run, protocol) for run in runs]
    rows.add("auc", protocol.name, [_areas(e, thresholds) for e in errors])
    rows.add("epe_mean", protocol.name, errors)
    rows.add_median("epe_median", protocol.name, errors)
    flat = [errors_2d(run) for run in runs]
    rows.add("auc_2d", metrics.PIXELS.name, [_areas(e, pixels) for e in flat])
    rows.add("epe_2d", metrics.PIXELS.name, flat)
    if "peak_pixels" in runs[0]:
        peaks = [_areas(errors_2d(run, "peak_pixels"), pixels) for run in runs]
        rows.add("auc_2d_heatmaps", metrics.PIXELS.name, peaks)
    mask = f"{int(runs[0]['mask_size'])} px crop, coverage >= 0.5, mean over images"
    overlap = [np.stack([run["iou"], run["iou_background"]], axis=1) for run in runs]
    rows.add("miou", mask, [both[:, :1] for both in overlap])
    rows.add("miou_classes", mask, overlap)
    return rows.table()


def score_protocols(runs, settings):
    """The AUC of the same predictions under every protocol of the literature, as rows."""
    rows = _Rows(runs, settings)
    for protocol in metrics.protocol_matrix():
        thresholds = metrics.THRESHOLDS[protocol.thresholds]
        areas = [_areas(errors_3d(run, protocol), thresholds) for run in runs]
        rows.add("auc", protocol.name, areas)
    return rows.table()


def curve(errors, thresholds, settings):
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


def _areas(errors, thresholds):
    """Each joint's own AUC: the mean of these is the AUC of the curve, since both are linear."""
    return metrics.auc(metrics.hits(errors, thresholds), thresholds)


class _Rows:
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
            "protocol": protocol,
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


def unlabelled(predictions):
    """How many images and joints of a set were left out of the 3-D score for want of a label."""
    scored = ~np.isnan(errors_3d(predictions, main_protocol(predictions)))
    return {
        "images": len(scored),
        "images_unscored": int((~scored.any(1)).sum()),
        "joints": scored.size,
        "joints_unscored": int((~scored).sum()),
    }


class Timed:
    """A method that remembers how long it took, ms an image of each batch."""

    def __init__(self, estimate):
        self.estimate, self.times = estimate, []

    def __call__(self, images):
        started = time.perf_counter()
        found = self.estimate(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        self.times.append(1000 * (time.perf_counter() - started) / len(images))
        return found


@torch.no_grad()
def gigaflops(estimate, size, device="cpu"):
    """What one image of `size` pixels costs a method, as torch counts: a multiplication and its
    addition are two. Drawing a silhouette is not counted."""
    with FlopCounterMode(display=False) as counter:
        estimate(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops() / 1e9


def evaluate_method(
    estimate, settings, folder, sets, *, method, seed, faces=None, device="cpu", network=None
):
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


def evaluate_network(model, settings, folder, sets):
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


def evaluate_photographs(checkpoint, folder):
    """Score a network on the hands of photographs (`data.photographs`), where these are there.

    A joint's error is told as a share of the longer side of its hand's box: that of the labelled
    joints, from which the crop is cut as for any other set. Told are the network's mesh and maps,
    and the mesh of `result.recover`, which is given that box and the side.

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
    rows = _Rows([run], options)
    thresholds = metrics.THRESHOLDS[metrics.BOXES.thresholds]
    for metric, points in (("auc_2d_box", "pixels"), ("auc_2d_box_heatmaps", "peak_pixels")):
        rows.add(metric, metrics.BOXES.name, [_areas(errors_2d(run, points) / boxes, thresholds)])
    found = [recover(f.image, frame_box(f), f.side, checkpoint)[0] for f in frames]
    run["recovered_pixels"] = np.stack([recovery.joints_2d for recovery in found])
    errors = errors_2d(run, "recovered_pixels") / boxes
    rows.add("auc_2d_box_recover", metrics.BOXES.name, [_areas(errors, thresholds)])
    return write_rows(Path(folder) / "photographs.csv", rows.table())


def write_rows(path, table):
    """Write rows of metrics as CSV, aside and renamed; returns them."""
    with write_aside(path) as aside:
        table.to_csv(aside, index=False, float_format="%.6g")
    return table


def read_rows(path):
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


def published():
    """What the literature reports, as in `published.csv`."""
    return pd.read_csv(PUBLISHED)


def merge_metrics(results_dir):
    """Put the rows of all runs and comparisons and the published ones into one `metrics.csv`.

    Returns:
        DataFrame with `COLUMNS`.

    Raises:
        HamrError: where nothing was evaluated yet.
    """
    results_dir = Path(results_dir)
    found = sorted(results_dir.glob("runs/*/metrics.csv"))
    found += sorted(results_dir.glob("comparisons/*/metrics.csv"))
    for name in ("localiser", "photographs"):
        found += sorted(results_dir.glob(f"runs/main/{name}.csv"))
    if not found:
        raise HamrError(f"{results_dir} holds no runs/*/metrics.csv: run the evaluation first")
    literature = published()[["dataset", "protocol", "method", "metric", "value"]]
    tables = [read_rows(path) for path in found] + [literature.assign(source="published")]
    merged = pd.concat(tables, ignore_index=True)[COLUMNS]
    return write_rows(results_dir / "metrics.csv", merged)
