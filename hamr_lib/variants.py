"""The variants of the model, the methods it is compared with, and how tables and figures call them.

To add a variant is to add a line to `VARIANTS`.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from hamr_lib.errors import HamrError, quoted


class Variant(NamedTuple):
    """A named change on top of a profile."""

    label: str  # in tables and figures
    changes: dict = {}  # dotted settings and their values
    claim: str = ""  # what the paper says of the part that is left out


VARIANTS = {
    "full": Variant("full model"),
    "no-mesh": Variant("without mesh",
        {"model.mesh": False, "losses.silhouette": 0.0}, "the mesh helps a lot"),
    "no-camera": Variant("without camera loss", {"losses.camera": 0.0}, "the camera loss helps"),
    "no-geometric": Variant("without geometric loss",
        {"losses.geometric": 0.0}, "the geometric loss helps a little"),
    "no-silhouette": Variant("without silhouette loss",
        {"losses.silhouette": 0.0}, "the silhouette loss helps"),
    # What the paper leaves open.
    "kinematic-joints": Variant("kinematic joints", {"hand.joints": "kinematic"}),
    "pose-6": Variant("6 pose components", {"hand.pose_components": 6}),
    "pose-12": Variant("12 pose components", {"hand.pose_components": 12}),
    "pose-45": Variant("45 axis-angle numbers", {"hand.pose_components": 45}),
    "iterations-1": Variant("1 iteration", {"model.iterations": 1}),
    "iterations-2": Variant("2 iterations", {"model.iterations": 2}),
    # Deviations of this study, each changed back.
    "no-pretraining": Variant("stem not pretrained",
        {"model.stem": "convolutions", "model.map_stride": 4, "model.pooled_features": False,
         "train.stem_rate": 1.0}),
    "imagenet-stem": Variant("stem pretrained on ImageNet",
        {"model.stem": "efficientnet_lite0", "train.stem_rate": 1.0}),
    "frozen-stem": Variant("stem not trained", {"model.frozen_blocks": 17}),
    "no-joint-features": Variant("without keypoints and joint-aligned features",
        {"model.joint_features": False, "train.lift_steps": 0, "train.lift_beside": 0}),
    "no-pooled-features": Variant("without pooled features", {"model.pooled_features": False}),
    "no-lifting": Variant("without lifting", {"train.lift_steps": 0, "train.lift_beside": 0}),
    "lifting-before": Variant("lifting only before", {"train.lift_beside": 0}),
    "axis-angle": Variant("axis-angle rotation", {"model.rotation": "axis_angle"}),
    "dropout": Variant("with dropout", {"model.dropout": 0.4}),
    "stacks-2": Variant("2 stacks", {"model.stacks": 2}),
    "squared-heatmaps": Variant("squared heat-map loss",
        {"losses.heatmap_kind": "squared", "losses.heatmap": 100.0}),
    "squared-joints": Variant("squared 3-D loss",
        {"losses.joints_3d_kind": "squared", "losses.joints_3d": 1000.0}),
    "squared-joints-2d": Variant("squared 2-D loss", {"losses.joints_2d_kind": "squared"}),
    "paper-camera-scale": Variant("the paper's ground-truth scale",
        {"losses.camera_scale": "full"}),
    "paper-noise": Variant("the paper's noise", {"augment.noise": 0.1}),
    "joints-2d-1": Variant("2-D loss of weight 1", {"losses.joints_2d": 1.0}),
    "upright": Variant("crops turned upright, two looks",
        {"augment.upright": 0.75, "evaluate.upright": True}),
    "no-shift": Variant("without shifts", {"augment.shift": 0.0}),
    "no-occlusion": Variant("without patches before hands", {"augment.occlusion": 0.0}),
    "no-coarse": Variant("without coarse copies", {"augment.coarse": 0.0}),
    "paper-scale": Variant("the paper's range of scales", {"augment.scale": (0.9, 1.2)}),
    "paper-colours": Variant("the paper's ranges of colours",
        {"augment.brightness": (0.2, 1.8), "augment.contrast": (0.3, 1.7),
         "augment.hue": (0.2, 1.8)}),
    "rmsprop": Variant("RMSprop",
        {"train.optimizer": "rmsprop", "train.learning_rate": 2e-4, "train.weight_decay": 0.0,
         "train.schedule": "plateau", "train.clip": 0.0}),
}  # fmt: skip
# The methods that the network is compared with (see `baselines`), and their labels; the first is
# HAMR itself, trained for as many steps as the others.
COMPARISONS = {
    "hamr": "HAMR, same budget",
    "zimmermann": "Zimmermann & Brox",
    "hmr": "HMR",
    "smplify": "SMPLify",
    "pavlakos": "Pavlakos et al.",
    "deeplab": "DeepLab",
    "bodynet": "BodyNet",
    "boukhayma": "Boukhayma et al.",
    "iqbal": "Iqbal et al.",
    "mean-pose": "mean pose",
    "untrained": "untrained network",
}
FLOORS = ("mean-pose", "untrained")  # nothing of these is trained
# The paper's ablations, its Fig. 8, and what it says of each.
CLAIMS = {name: variant.claim for name, variant in VARIANTS.items() if variant.claim}
# What is not here is called by its own name.
LABELS = {
    "main": "HAMR (this study)",
    "one-look": "HAMR, one look",
    "main, heat maps": "its heat maps alone",
    **{name: variant.label for name, variant in VARIANTS.items()},
    **COMPARISONS,
}


def check_names(names: Iterable, known: Collection, what: str) -> None:
    """Raise a `HamrError` that names the first of the names that is not known."""
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise HamrError(f"unknown {what} {quoted(name)} (known: {', '.join(known)})")
