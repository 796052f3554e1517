"""The table of deviations: where each profile departs from the paper, and why.

    python -m hamr_lib.report.deviations     # write docs/deviations.md anew

The page is generated from the settings of the profiles. A setting that is not classified here, and
one that differs from the paper's without a reason, is an error.
"""

import argparse
import sys
from typing import NamedTuple

import pandas as pd

from hamr_lib.config import PROFILES, load_settings
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, write_aside
from hamr_lib.variants import VARIANTS

PAGE = ROOT / "docs" / "deviations.md"
SHOWN = ("smoke", "cpu", "reference", "gpu", "paper")  # those that exist, in this order
SECTIONS = ("data", "hand", "model", "losses", "augment", "train", "evaluate")
CPU = "Two cores, or one GPU for a few hours."
WIDTH = "losses.heatmap_variance, model.map_stride, model.image_size"
# What makes photographs harder than renderings, which the paper did not need: it had real images.
GAP = "Our labels are renderings, and photographs differ from them."


class Row(NamedTuple):
    """A setting of which the paper says something."""

    what: str
    paper: str  # its words, with their section
    same: object  # the setting's value that is the paper's; a tuple of values where it is a range
    reason: str = ""  # why a profile has another value


class Open(NamedTuple):
    """A setting, or a part of the method, that the paper leaves open."""

    what: str
    reason: str


GIVEN = {
    "data.sets": Row("data sets", "RHD, STB and Dexter+Object (4.2)", "real",
        "They cannot be shipped. `auto` takes each real set that is there; the others, and all "
        "under `open`, are rendered stand-ins in the same formats."),
    "data.rhd_mask": Row("RHD's hand mask", "parsed from the depth map (4.1)", "depth",
        "The part ids hold the mask itself. The paper gives no rule for the depth map; ours is "
        "`rhd.mask_from_depth`."),
    "hand.model": Row("hand model", "MANO (3.1)", "mano",
        "MANO has a licence of its own. The open hand has its format; `auto` takes MANO where its "
        "file is."),
    "hand.pose_components": Row("PCA components of the pose",
        "6, since 22 numbers are regressed (3.2) and 16 are others; 12 in the authors' code", 6,
        "They hold nearly all poses of the open hand's sampler, and no twisted bone."),
    "hand.joints": Row("joints", "regressed from the posed mesh (Eq. 3)", "regressed"),
    "model.image_size": Row("side of the input, pixels", "256 (4.1)", 256,
        CPU + " 192 keeps hands as large as the pretrained stem has seen them."),
    "model.stem": Row("first layers", "convolutions (4.1)", "convolutions",
        f"{GAP} A pretrained encoder has seen photographs."),
    "model.maps": Row("output maps a stack", "64 (4.1)", 64, "The tests train in seconds."),
    "model.stacks": Row("hourglasses", "2 (4.1)", 2, CPU),
    "model.hidden": Row("width of the fully connected layers",
        "2048 (3.2, 4.1); 1024 in the authors' code", 2048, CPU),
    "model.dropout": Row("dropout", "0.4 (3.2, 4.1); 0.5 in the authors' code", 0.4,
        "A short training needs less regularisation."),
    "model.joint_features": Row("the layers see 2-D keypoints and the features there", "no", False,
        "Fewer convolutions need to learn to read coordinates off maps."),
    "model.mesh": Row("a mesh is regressed", "yes (3.1)", True),
    "model.rotation": Row("form of the rotation", "axis-angle (3.1)", "axis_angle",
        "Axis-angle has jumps over the whole sphere of views; the 6-D form of Zhou et al. (2019) "
        "has none."),
    "losses.joints_3d": Row("weight of L_3D", "1000 (Eq. 8)", 1000.0,
        "Of the distance itself, which is larger than its square."),
    "losses.joints_2d": Row("weight of L_2D", "1 (Eq. 8)", 1.0,
        "In a short training L_3D drowns it at 1."),
    "losses.geometric": Row("weight of L_geo", "1 (Eq. 8)", 1.0),
    "losses.camera": Row("weight of L_cam", "0.1 (Eq. 8)", 0.1),
    "losses.heatmap": Row("weight of L_heat", "100 (Eq. 8)", 100.0,
        "Cross-entropy is in nats, and larger."),
    "losses.silhouette": Row("weight of L_seg", "10 (Eq. 8)", 10.0),
    "losses.joints_3d_kind": Row("L_3D", "L2", "squared",
        "The pull of a square fades as errors shrink."),
    "losses.joints_2d_kind": Row("L_2D", "L2", "squared",
        "The pull of a square fades as errors shrink; absolute as in HMR."),
    "losses.camera_offset": Row("t in L_cam", "metres, of s (X + t) (Eq. 4-5)", "metres"),
    "losses.camera_scale": Row("scale of the ground-truth camera",
        "mean 2-D over mean 3-D bone length", "full",
        "Foreshortened bones make that scale too small; over projected bones it fits the labels."),
    "losses.heatmap_kind": Row("L_heat", "L2", "squared",
        "Most pixels of a map are empty: a squared error learns slowly from them."),
    "losses.heatmap_variance": Row("variance of the heat maps' Gaussian, pixels^2 of the map",
        "2.5 (3.3); 2.5 is the standard deviation in the authors' code", 2.5,
        "Maps of stride 8: a Gaussian as wide on the image."),
    WIDTH: Row("standard deviation of the heat maps' Gaussian, % of the crop's side",
        "2.5: variance 2.5 on 64 pixels (3.3)", 2.5,
        "The same variance on a smaller map: a narrower Gaussian would fall between its pixels."),
    "augment.scale": Row("scale", "0.9 to 1.2 (4.1)", (0.9, 1.2), "Boxes drawn by hand vary more."),
    "augment.rotation": Row("rotation, degrees either way", "60 (4.1)", 60.0),
    "augment.shift": Row("shift, fraction of the side", "none", 0.0,
        "A box that was found is never exact."),
    "augment.brightness": Row("brightness", "0.2 to 1.8 (4.1)", (0.2, 1.8),
        "The paper's ranges multiply to images that are all black or white."),
    "augment.contrast": Row("contrast", "0.3 to 1.7 (4.1)", (0.3, 1.7),
        "The paper's ranges multiply to images that are all black or white."),
    "augment.saturation": Row("saturation", "0.4 to 1.6 (4.1)", (0.4, 1.6)),
    "augment.hue": Row("hue", "0.2 to 1.8 (4.1), read as +-0.1 of the circle", (0.2, 1.8),
        "Renderings are lit in all colours already."),
    "augment.noise": Row("noise, standard deviation", "N(0, 0.01) (4.1), read as a variance", 0.1,
        "Renderings have the noise of a camera already."),
    "augment.occlusion": Row("crops with a patch before the hand", "none", 0.0, GAP),
    "augment.coarse": Row("crops mixed with a coarse copy", "none", 0.0, GAP),
    "train.lift_steps": Row("pre-training on 2-D keypoints alone, steps", "none", 0,
        "An image shows one bend of a finger, the hand model any number."),
    "train.lift_beside": Row("hands lifted beside each batch", "none", 0,
        "Without them the layers forget what the pre-training taught."),
    "train.steps": Row("steps", "200,000 (4.1); 2,000,000 in the authors' code", 200000,
        "What the profile's time allows."),
    "train.batch_size": Row("batch size", "32 (4.1); 128 in the authors' code", 32,
        "As memory and data allow."),
    "train.optimizer": Row("optimiser", "RMSprop (4.1)", "rmsprop", "It converges in fewer steps."),
    "train.learning_rate": Row("learning rate", "2e-4 (4.1)", 2e-4, "That of the optimiser."),
    "train.weight_decay": Row("weight decay", "none (1e-5 in the authors' code)", 0.0,
        "AdamW's usual value."),
    "train.schedule": Row("schedule", "times 0.7 on a plateau (4.1)", "plateau",
        "A run of few steps sees no plateau."),
    "train.plateau_factor": Row("factor on a plateau", "0.7 (4.1)", 0.7),
    "train.precision": Row("precision", "single", "32", "Faster; losses stay in single precision."),
    "train.clip": Row("gradient clipping", "none", 0.0, "One bad batch cannot end a short run."),
    "train.average": Row("decay of the average of weights", "none", 0.0,
        "It is as good as a lower learning rate, at any step."),
}  # fmt: skip

LEFT_OPEN = {
    "data.stb_root": Open("how STB's palm becomes a wrist",
        "STB labels no wrist. Twice the way from the ring MCP to the palm, as others published."),
    "data.stb_camera": Open("which of STB's cameras",
        "SK is one image a frame; Zimmermann and Brox score the stereo pair BB."),
    "data.validation": Open("training images held out",
        "A plateau and the best step need images that are neither trained on nor scored."),
    "model.channels": Open("channels inside the hourglasses",
        "256 as in the authors' code, which widens them by 128 a halving; fewer for two cores."),
    "model.iterations": Open("iterations of the regression",
        "The paper names no number; 3 stands in the authors' code."),
    "model.map_stride": Open("pixels of the image a pixel of the maps",
        "4 gives the paper's maps of 64 at its 256 pixels."),
    "model.convs": Open("3x3 convolutions in place of a residual block",
        "The paper names no number; the authors' code has one."),
    "model.depth": Open("halvings of an hourglass", "4 as in the authors' code."),
    "losses.silhouette_size": Open("side of the mask in L_seg, pixels",
        "The paper names no resolution; this is that of the maps."),
    "train.plateau_patience": Open("validations without progress that are a plateau",
        "The paper does not define its plateau."),
    "train.validate_every": Open("steps between validations", "Often enough to see a plateau."),
    "evaluate.mask_size": Open("side of the mask in mIoU, pixels",
        "The paper names no resolution."),
}  # fmt: skip

# Settings that detail another row (an option's own options), or that change no result.
NO_ROW = {
    "model.frozen_blocks", "train.stem_rate",
    "train.seed", "train.compile", "train.workers", "train.devices", "train.nodes",
    "evaluate.bootstrap", "evaluate.batch_size", "evaluate.examples",
}  # fmt: skip

# The same in every profile, `paper` among them: (what, paper, here, reason).
NOT_SETTINGS = (
    ("iterations that are supervised", "not given", "the last",
     "The authors' code returns the last estimate alone, and the others' meshes cost time."),
    ("features that join the heat maps", "of an intermediate layer (3.3)",
     "those after the last hourglass",
     "They have seen the whole image. The authors' code takes those before the first."),
    ("camera that is regressed", "s (X + t), t in metres (Eq. 4-5)",
     "s X + t, t in crop units; s = 10 softplus(raw)",
     "The same projection; an offset then does not grow with the scale. L_cam compares metres."),
    ("start of the regression", "not given", "the mean hand in the crop's middle",
     "Close to the answers; the authors' code starts from a camera of ones."),
    ("units and norms of the losses", "not given", "means over labelled entries, `losses.py`",
     "The size of a loss must not depend on the batch or on what is labelled."),
    ("silhouette's renderer", "a differentiable renderer", "DEODR, or PyTorch3D on a GPU",
     "PyTorch3D costs more than the network on a CPU."),
    ("3-D protocol", "root and thresholds of the AUC not given", "wrist, 20-50 mm",
     "Our reading; the tables also hold those of public evaluation code."),
)  # fmt: skip


def profiles():
    """Names of the profiles shown, those of `SHOWN` that exist."""
    return [name for name in SHOWN if (PROFILES / f"{name}.yaml").is_file()]


def flat(settings):
    """{"section.name": value} of `SECTIONS`, without the stand-ins' own settings.

    `WIDTH` is what three of them make together.
    """
    values = settings.to_dict()
    maps = settings.model.image_size / settings.model.map_stride
    width = round(100 * settings.losses.heatmap_variance**0.5 / maps, 1)
    return {WIDTH: width} | {
        f"{section}.{name}": tuple(value) if isinstance(value, list) else value
        for section in SECTIONS
        for name, value in values[section].items()
        if not isinstance(value, dict)
    }


def differences(settings) -> pd.DataFrame:
    """Tabulate the settings of a run that differ from the paper's: what, the paper, here."""
    values = flat(settings)
    rows = [
        (row.what, row.paper, told(values[name]))
        for name, row in GIVEN.items()
        if values[name] != row.same
    ]
    return pd.DataFrame(rows, columns=["what", "the paper", "here"])


def check(by_profile):
    """Refuse a setting that is not classified, or that departs without a reason.

    Args:
        by_profile: {profile: `flat(settings)`}.

    Raises:
        HamrError: naming the setting, and the profile and value that lack a reason.
    """
    known = [*GIVEN, *LEFT_OPEN, *NO_ROW]
    names = set().union(*by_profile.values())
    for name in sorted(names ^ set(known)):
        problem = "has no row" if name in names else "is no setting"
        raise HamrError(f"{name} {problem} in hamr_lib/report/deviations.py")
    for name, row in GIVEN.items():
        for profile, values in by_profile.items():
            if values[name] != row.same and not row.reason:
                raise HamrError(
                    f"profile {profile}: {name}={values[name]!r}, but the paper has "
                    f"{row.same!r}: expected a reason in hamr_lib/report/deviations.py"
                )


def page(by_profile):
    """The text of docs/deviations.md. Arguments and errors as in `check`."""
    check(by_profile)
    names = list(by_profile)
    given, left = [], []
    for name, row in GIVEN.items():
        values = [by_profile[profile][name] for profile in names]
        if any(value != row.same for value in values):
            shown = ["=" if value == row.same else told(value) for value in values]
            given.append([f"{row.what} (`{name}`)", row.paper, *shown, _why(name, row)])
    for name, row in LEFT_OPEN.items():
        values = [told(by_profile[profile][name]) for profile in names]
        left.append([f"{row.what} (`{name}`)", *values, row.reason])
    return "\n".join([
        "# Deviations from the paper",
        "",
        "Generated by `python -m hamr_lib.report.deviations` from the settings of the profiles.",
        "Numbers in brackets are the paper's sections and equations; `=` is the paper's value.",
        "A variant changes a deviation back, so that it can be ablated.",
        "The authors' repository holds a definition of the model with its options, but neither",
        "training, data, losses nor evaluation; it is what the authors' code means here.",
        "",
        "## Settings that differ",
        "",
        *_table(["what", "the paper", *(f"`{name}`" for name in names), "why"], given),
        "",
        "## Settings that the paper leaves open",
        "",
        *_table(["what", *(f"`{name}`" for name in names), "why"], left),
        "",
        "## The same in every profile",
        "",
        *_table(["what", "the paper", "here", "why"], NOT_SETTINGS),
        "",
    ])  # fmt: skip


def _why(name, row):
    """The reason, and the variants that take the paper's value again."""
    back = [f"`{v}`" for v, one in VARIANTS.items() if one.changes.get(name) == row.same]
    word = "Variants" if len(back) > 1 else "Variant"
    return f"{row.reason} {word} {', '.join(back)}." if back else row.reason


def told(value):
    """A setting's value as the page shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " to ".join(map(told, value))
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else f"{value}"


def _table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def main(argv=None):
    """Write the page; returns the exit code."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    try:
        text = page({name: flat(load_settings(name)) for name in profiles()})
    except HamrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    with write_aside(PAGE) as aside:
        aside.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
