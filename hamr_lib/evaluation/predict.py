"""Predictions of a test set, saved once.

`predict` puts everything that figures and tables need into one dict of arrays, which is saved as
`predictions-<set>.npz`. From there on no network, data set or hand model is needed.

In a predictions dict, N images, K examples (crops of right hands: a left hand is mirrored, and
only what is in photo pixels is mirrored back):

    joints_3d, true_joints_3d  (N, 21, 3) metres, camera axes; relative to the wrist, or for labels
                               without a wrist to the mean of the labelled joints
    joints_2d, true_joints_2d  (N, 21, 2) crop units; also peaks_2d, of the heat maps
    pixels, true_pixels        (N, 21, 2) pixels of the photo; also peak_pixels
    valid_3d, valid_2d, visible  (N, 21) bool: which labels there are, which the set calls visible
    palm                       (2,) see `protocols.PALM`
    stb_camera                 "SK" or "BB"; "" for another set than STB
    camera, global_orient, hand_pose, betas   (N, ...)
    iou, iou_background        (N,) see `metrics.iou`; NaN where the set or the method has no mask
    mirrored                   (N,) bool, a left hand
    keys                       (N,) names of the images
    examples                   (K,) which images the following show, evenly spaced over the set
    example_images             (K, S, S, 3) uint8; example_masks (K, M, M) bool, the label
    example_predicted          (K, M, M) bool; example_vertices (K, V, 3) metres; faces (F, 3)
    dataset, split, method, seed, commit, mask_size   what this is

What a method does not estimate is not there.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hamr_lib.camera import crop_to_pixels
from hamr_lib.config import Evaluate, Settings
from hamr_lib.data.augment import centre_crop
from hamr_lib.data.crops import Crops, EvenBatches
from hamr_lib.data.stb import ROOT_SHIFTS
from hamr_lib.errors import HamrError
from hamr_lib.evaluation import metrics, protocols
from hamr_lib.files import commit, read_arrays, write_aside
from hamr_lib.model.hamr import Output
from hamr_lib.model.heatmaps import heatmap_peaks
from hamr_lib.render import silhouette

REQUIRED = (
    "true_joints_3d", "valid_3d", "visible", "palm", "stb_camera", "true_pixels", "valid_2d", "iou",
    "iou_background", "keys", "dataset", "split", "method", "seed", "commit", "mask_size",
)  # fmt: skip


def best_device() -> torch.device:
    """Return where networks are run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def predictions_path(folder: str | Path, dataset: str) -> Path:
    """Return where the predictions for a set (display name) lie in a run's folder."""
    return Path(folder) / f"predictions-{dataset.lower()}.npz"


def network_estimator(model: nn.Module, options: Evaluate) -> Callable:
    """Make the network what `predict` wants of a method: a function of images (B, 3, S, S).

    It returns a dict of tensors, each where there is such: joints_3d (B, 21, 3) metres, joints_2d
    and peaks_2d (B, 21, 2) crop units, camera, global_orient, hand_pose, betas, vertices (B, V, 3)
    and mask (B, mask_size, mask_size), coverage of the projected mesh.
    """
    model.eval()
    look = model.upright if options.upright else model
    return lambda image: output_answer(look(image), model.hand.faces, options.mask_size)


def output_answer(
    output: Output, faces: torch.Tensor | np.ndarray | None, mask_size: int
) -> dict[str, torch.Tensor]:
    """Return what a `hamr.Output` says, as `network_estimator` describes it."""
    last = output.estimates[-1]
    mesh = () if last.vertices is None else ("global_orient", "hand_pose", "betas", "vertices")
    found = {name: getattr(last, name) for name in ("joints_3d", "joints_2d", "camera", *mesh)}
    if output.heatmaps:
        found["peaks_2d"] = heatmap_peaks(output.heatmaps[-1])
    if mesh:
        found["mask"] = silhouette(last.vertices, faces, last.camera, mask_size)
    return found


@torch.no_grad()
def predict(
    estimate: Callable,
    crops: Crops,
    settings: Settings,
    *,
    dataset: str,
    split: str,
    method: str,
    seed: int,
    faces: torch.Tensor | np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Run a method over a set of crops; returns the dict described at the top of this file.

    Args:
        estimate: a function like `network_estimator` gives.
        dataset: display name; a stand-in's starts with "open-".
        faces: (F, 3), where the method predicts vertices.

    Raises:
        HamrError: naming the image, where a prediction is not finite.
    """
    size, options = settings.model.image_size, settings.evaluate
    kept = np.unique(np.linspace(0, len(crops) - 1, min(options.examples, len(crops))).round())
    columns = defaultdict(list)
    for batch in EvenBatches(crops, options.batch_size):
        indices = batch["index"].numpy()
        batch = centre_crop({k: v.to(device) for k, v in batch.items()}, size)
        found = {k: v.float().cpu() for k, v in estimate(batch["image"]).items()}
        for name in {"joints_3d", "joints_2d", "mask"} & found.keys():
            bad = ~found[name].isfinite().flatten(1).all(1)
            if bad.any():
                image = crops.keys[indices[int(bad.nonzero()[0])]]
                raise HamrError(f"{method}: {name} of {dataset} {image} is not finite")
        rows = _rows(found, {k: v.cpu() for k, v in batch.items()}, options.mask_size)
        shown = np.isin(indices, kept)
        for name, values in rows.items():
            columns[name].append(np.asarray(values)[shown if name.startswith("example_") else ...])
    stacked = {name: np.concatenate(values) for name, values in columns.items()}
    if "example_vertices" in stacked:
        stacked["faces"] = np.asarray(faces.cpu() if torch.is_tensor(faces) else faces)
    is_stb = "stb" in dataset.lower()
    about = {
        "palm": ROOT_SHIFTS[settings.data.stb_root] if is_stb else protocols.PALM,
        "stb_camera": settings.data.stb_camera if is_stb else "",
        "keys": crops.keys, "examples": kept.astype(int), "dataset": dataset, "split": split,
        "method": method, "seed": seed, "commit": commit(), "mask_size": options.mask_size,
    }  # fmt: skip
    return stacked | {k: np.array(v) for k, v in about.items()}


def _rows(found, batch, mask_size):
    """The rows of one batch."""

    def in_photo(points):  # (B, 21, 2) crop units of the (mirrored) crop -> pixels of the photo
        flip = torch.where(batch["left"], -1.0, 1.0)
        points = points * torch.stack([flip, torch.ones_like(flip)], dim=-1)[:, None]
        return crop_to_pixels(points, batch["center"], batch["side"])

    has_mask = batch["has_mask"].numpy()
    true = F.interpolate(batch["mask"][:, None], size=mask_size, mode="bilinear", antialias=True)
    true = true[:, 0].numpy() >= 0.5
    rows = {f"true_{name}": batch[name] for name in ("joints_3d", "joints_2d")}
    rows |= {name: batch[name] for name in ("valid_3d", "valid_2d", "visible")}
    rows |= {name: found[name] for name in found if name not in ("mask", "vertices")}
    rows |= {
        "mirrored": batch["left"],
        "true_pixels": in_photo(batch["joints_2d"]),
        "iou": np.full(len(true), np.nan),
        "iou_background": np.full(len(true), np.nan),
        "example_images": (255 * batch["image"]).round().byte().permute(0, 2, 3, 1),
        "example_masks": true & has_mask[:, None, None],
    }
    for name, pixels in (("joints_2d", "pixels"), ("peaks_2d", "peak_pixels")):
        if name in found:
            rows[pixels] = in_photo(found[name])
    if "mask" in found:
        predicted = rows["example_predicted"] = found["mask"].numpy() >= 0.5
        overlap = np.where(has_mask, metrics.iou(predicted, true), np.nan)
        rows["iou"], rows["iou_background"] = overlap
    if "vertices" in found:
        rows["example_vertices"] = found["vertices"]
    return rows


def save_predictions(path: str | Path, predictions: dict[str, np.ndarray]) -> None:
    """Write a predictions dict, aside and renamed."""
    with write_aside(path) as aside:
        np.savez_compressed(aside, **predictions)


def load_predictions(path: str | Path) -> dict[str, np.ndarray]:
    """Read a predictions dict; a missing, broken or foreign file is a `HamrError`."""
    return read_arrays(path, REQUIRED)
