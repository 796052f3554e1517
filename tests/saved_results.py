"""A results folder as a study leaves it, made from drawn hands and answers of known quality."""

import numpy as np
import torch
from tiny import TinyHand, draw_frames

from hamr_lib.config import from_dict
from hamr_lib.data.crops import load_crops
from hamr_lib.evaluation import scores
from hamr_lib.joints import TIPS

SETS = ("open-stb", "open-rhd", "open-dexter")


def small_settings(image_size=32, **study):
    """Settings under which evaluation takes moments."""
    model = {"channels": 8, "maps": 21, "stacks": 1, "depth": 2, "hidden": 16, "iterations": 2}
    return from_dict({
        "profile": "small",
        "model": {"image_size": image_size, **model},
        "evaluate": {"bootstrap": 40, "mask_size": 16, "batch_size": 4, "examples": 8},
        "study": {"ablations": ["no-mesh", "no-camera"], "ablation_seeds": [0, 1], **study},
    })  # fmt: skip


SETTINGS = small_settings()


def drawn_sets(cache, settings, count=10):
    """Test sets of drawn hands: without masks, whole, and left hands labelled by tips alone."""
    sets = {}
    for i, name in enumerate(SETS):
        frames = draw_frames(count, seed=i, side="left" if name == "open-dexter" else "right")
        for frame in frames:
            if name != "open-rhd":
                frame.mask = None
            if name == "open-dexter":
                hidden = [j for j in range(21) if j not in TIPS]
                frame.joints_3d[hidden] = frame.joints_2d[hidden] = np.nan
        crops = load_crops(frames, f"drawn {i}", settings.model.image_size, cache=cache, name=name)
        sets[name, "evaluation"] = crops
    return sets


class Oracle:
    """Answers the images of sets in order: their labels, moved by seeded noise."""

    def __init__(self, sets, settings, noise, seed=0, mesh=True, mask=True, joints=True):
        self.sets, self.size, self.noise = list(sets), settings.evaluate.mask_size, noise
        self.mesh, self.mask, self.joints = mesh and joints, mask, joints
        self.rng, self.place, self.hand = np.random.default_rng(seed), 0, TinyHand()
        self.faces = self.hand.faces if self.mesh else None

    @torch.no_grad()
    def __call__(self, images):
        count = len(images)
        batch = self.sets[0].batch(np.arange(self.place, self.place + count))
        self.place += count
        if self.place == len(self.sets[0]):
            self.sets, self.place = self.sets[1:], 0
        answer = {}
        if self.joints:
            answer = {name: batch[name].float() for name in ("joints_3d", "joints_2d")}
            for values, noise in zip(answer.values(), (self.noise, 5 * self.noise), strict=True):
                values += torch.from_numpy(self.rng.normal(0, noise, values.shape)).float()
        if self.mesh:
            mesh = self.hand(torch.zeros(count, 10), torch.zeros(count, 3), torch.zeros(count, 6))
            camera = torch.tensor([9.0, 0, 0.7]).expand(count, 3)
            answer |= {"peaks_2d": answer["joints_2d"] + 0.01, "vertices": mesh.vertices}
            answer |= {"camera": camera}
        if self.mask:
            true = batch["mask"][:, None] / 255.0
            answer["mask"] = torch.nn.functional.interpolate(true, size=self.size)[:, 0]
        return answer


def evaluate_oracle(folder, sets, settings, method, seed=0, **kind):
    """Evaluate a run whose method is an oracle."""
    oracle = Oracle(sets.values(), settings, seed=seed, **kind)
    scores.evaluate_method(
        oracle, settings, folder, sets, method=method, seed=seed, faces=oracle.faces
    )


def make_results(folder, settings=SETTINGS):
    """A whole study's results below `folder`: main run, ablations, comparisons, metrics.csv."""
    sets = drawn_sets(folder / "cache", settings)
    evaluate_oracle(folder / "runs" / "main", sets, settings, "main", noise=0.012)
    for variant, noise in {"full": 0.016, "no-mesh": 0.02, "no-camera": 0.03}.items():
        mesh = variant != "no-mesh"
        for seed in settings.study.ablation_seeds:
            run = folder / "runs" / f"{variant}-s{seed}"
            evaluate_oracle(run, sets, settings, variant, seed, noise=noise, mesh=mesh, mask=mesh)
    others = folder / "comparisons"
    evaluate_oracle(others / "mean-pose", sets, settings, "mean-pose", noise=0.03, mesh=False)
    evaluate_oracle(others / "untrained", sets, settings, "untrained", noise=0.05, mask=False)
    scores.merge_metrics(folder)
