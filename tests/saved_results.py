"""A results folder as a study leaves it, made from drawn hands and answers of known quality."""

import numpy as np
import pandas as pd
import torch
from tiny import TinyHand, draw_frames

from hamr_lib.config import from_dict
from hamr_lib.data.crops import load_crops
from hamr_lib.evaluation import predict, scores
from hamr_lib.joints import TIPS

SETS = (("open-stb", "evaluation"), ("open-rhd", "evaluation"), ("open-dexter", "evaluation"))


def small_settings(image_size=32, **study):
    """Settings under which evaluation takes moments."""
    return from_dict(
        {
            "profile": "small",
            "model": {"image_size": image_size, "channels": 8, "maps": 21, "stacks": 1, "depth": 2,
                      "hidden": 16, "iterations": 2},
            "evaluate": {"bootstrap": 40, "mask_size": 16, "batch_size": 4, "examples": 8},
            "study": {"ablations": ["no-mesh", "no-camera"], "ablation_seeds": [0, 1], **study},
        }
    )  # fmt: skip


SETTINGS = small_settings()


def drawn_sets(cache, settings, count=10):
    """Test sets of drawn hands: without masks, whole, and left hands labelled by tips alone."""
    sets = {}
    for i, (name, split) in enumerate(SETS):
        frames = draw_frames(count, seed=i, side="left" if "exter" in name else "right")
        for frame in frames:
            if "rhd" not in name.lower():
                frame.mask = None
            if "exter" in name:
                hidden = [j for j in range(21) if j not in TIPS]
                frame.joints_3d[hidden] = np.nan
                frame.joints_2d[hidden] = np.nan
        sets[name, split] = load_crops(
            frames, f"drawn {i}", settings.model.image_size, cache=cache, name=name
        )
    return sets


class Oracle:
    """Answers a set's images in order: its labels, moved by seeded noise.

    What the answer must know beyond images comes from the crops it was made for; see `on`.
    """

    def __init__(self, settings, noise, seed=0, mesh=True, mask=True, joints=True):
        self.settings, self.noise = settings, noise
        self.mesh, self.mask, self.joints = mesh and joints, mask, joints
        self.rng = np.random.default_rng(seed)
        self.hand = TinyHand()
        self.faces = self.hand.faces if self.mesh else None

    def on(self, crops):
        """Start answering for these crops."""
        self.labels, self.place, self.crops = crops.labels, 0, crops
        return self

    def __call__(self, images):
        rows = slice(self.place, self.place + len(images))
        self.place += len(images)
        joints = torch.from_numpy(self.labels["joints_3d"][rows]).clone()
        joints += torch.from_numpy(self.rng.normal(0, self.noise, joints.shape)).float()
        flat = torch.from_numpy(self.labels["joints_2d"][rows]).clone()
        flat += torch.from_numpy(self.rng.normal(0, 5 * self.noise, flat.shape)).float()
        answer = {"joints_3d": joints, "joints_2d": flat} if self.joints else {}
        if self.mesh:
            count = len(images)
            mesh = self.hand(torch.zeros(count, 10), torch.zeros(count, 3), torch.zeros(count, 6))
            answer |= {
                "peaks_2d": flat + 0.01,
                "vertices": mesh.vertices,
                "camera": torch.tensor([9.0, 0, 0.7]).expand(count, 3),
            }
        if self.mask:
            size = self.settings.evaluate.mask_size
            true = self.crops.batch(np.arange(*rows.indices(len(self.crops))))["mask"] / 255.0
            answer["mask"] = torch.nn.functional.interpolate(true[:, None], size=size)[:, 0]
        return answer


def evaluate_oracle(folder, sets, settings, method, seed=0, **kind):
    """Write a run's predictions and metrics, each set answered by an oracle of its own."""
    rows, matrix = [], []
    for (dataset, split), crops in sets.items():
        oracle = Oracle(settings, seed=seed, **kind).on(crops)
        predictions = predict.predict(
            oracle, crops, settings, dataset=dataset, split=split, method=method, seed=seed,
            faces=oracle.faces,
        )  # fmt: skip
        predict.save_predictions(predict.predictions_path(folder, dataset), predictions)
        rows.append(scores.score([predictions], settings.evaluate))
        matrix.append(scores.score_protocols([predictions], settings.evaluate))
    scores.write_rows(folder / "metrics.csv", pd.concat(rows, ignore_index=True))
    scores.write_rows(folder / "protocols.csv", pd.concat(matrix, ignore_index=True))


def make_results(folder, settings=SETTINGS):
    """A whole study's results below `folder`: main run, ablations, comparisons, metrics.csv."""
    sets = drawn_sets(folder / "cache", settings)
    evaluate_oracle(folder / "runs" / "main", sets, settings, "main", noise=0.012)
    quality = {"full": 0.016, "no-mesh": 0.02, "no-camera": 0.03}
    for variant, noise in quality.items():
        for seed in settings.study.ablation_seeds:
            run = folder / "runs" / f"{variant}-s{seed}"
            mesh = variant != "no-mesh"
            evaluate_oracle(run, sets, settings, variant, seed, noise=noise, mesh=mesh, mask=mesh)
    others = folder / "comparisons"
    evaluate_oracle(others / "mean-pose", sets, settings, "mean-pose", noise=0.03, mesh=False)
    evaluate_oracle(others / "untrained", sets, settings, "untrained", noise=0.05, mask=False)
    scores.merge_metrics(folder)
