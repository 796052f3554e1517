"""Every setting of the study, its default, and why.

The defaults are the paper's (Section 3 and 4 of HAMR); a profile in `notebooks/profiles/` names
only what it changes. A *variant* is a named change on top of a profile: the ablations and the
departures of the shipped model are variants, so that each has a row of its own. A key that is not
here raises before anything runs.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT

PROFILES = ROOT / "notebooks" / "profiles"
# The methods that the network is compared with (see `comparisons`); the first is HAMR itself,
# trained for as many steps as the others.
FLOORS = ("mean-pose", "untrained")  # nothing of these is trained
COMPARISONS = (
    "hamr", "zimmermann", "hmr", "smplify", "pavlakos", "deeplab", "bodynet", "boukhayma", "iqbal",
    *FLOORS,
)  # fmt: skip
# What the paper ablates, in its Fig. 8.
FIG8 = ("no-mesh", "no-camera", "no-geometric", "no-silhouette")


def one_of(default, *choices):
    """A field that takes only the named values."""
    return field(default=default, metadata={"choices": (default, *choices)})


@dataclass(frozen=True)
class OpenData:
    """How many stand-in samples to render, and what varies in them (see `open_data`)."""

    seed: int = 1
    rhd_training: int = 40000  # images; RHD has 41,258
    rhd_evaluation: int = 2700  # images; RHD has 2,728
    stb_frames: int = 1500  # frames in each of the 12 sequences, as STB has
    dexter_frames: int = 500  # frames in each of the 6 sequences
    # Each factor that makes rendered hands look like photographed ones can be switched off.
    people: bool = True  # a posed body with forearm and sleeves; off: the bare hand alone
    textures: bool = True  # noise, creases, nails and redness on the skin; off: one colour
    objects: bool = True  # things and second hands that occlude
    lights: bool = True  # several coloured lights and shadow; off: one white light
    lens: bool = True  # exposure, white balance, blur, noise, JPEG; off: a perfect camera
    photographs: bool = True  # photographs behind the hand; off: procedural textures only
    environments: bool = True  # light, and often the background, of real places all around
    spectrum: bool = True  # in some images, low frequencies mixed with a photograph's
    # Share of hands at rest in RHD's training images (see `poses.sample_poses`); others are lively.
    resting: float = 0.0


@dataclass(frozen=True)
class Data:
    """Which data sets the study reads."""

    # auto: each real set that is complete under data/raw, the open stand-in for each other;
    # real: the real sets or an error; open: the stand-ins.
    sets: str = one_of("auto", "real", "open")
    stb_root: str = one_of("ring", "middle", "palm")  # how STB's palm becomes a wrist
    stb_camera: str = one_of("SK", "BB")  # BB: left and right image of the stereo pair
    rhd_mask: str = one_of("mask", "depth")  # where RHD's hand mask is read from
    validation: float = 0.05  # share of the training samples held out for plateau and best
    open: OpenData = OpenData()


@dataclass(frozen=True)
class Hand:
    """The hand layer, Section 3.1."""

    model: str = one_of("auto", "mano", "open")
    pose_components: int = 6  # PCA components; 45 takes axis-angle numbers instead
    joints: str = one_of("regressed", "kinematic")  # Eq. 3, or the skeleton's own joints


@dataclass(frozen=True)
class Model:
    """The network, Sections 3.2, 3.3 and 4.1."""

    image_size: int = 256
    # The paper gives 64 output maps; 256 channels inside is the hourglass's usual width.
    channels: int = 256
    # The paper's convolutions, or a pretrained encoder (see backbone.py): MediaPipe's hand landmark
    # network, which saw photographs of hands, or EfficientNet-Lite0, which saw ImageNet.
    stem: str = one_of("convolutions", "hand_landmark", "efficientnet_lite0")
    frozen_blocks: int = 3  # of a pretrained encoder: how many of its first blocks are not trained
    map_stride: int = 4  # pixels of the image a pixel of the maps; 8 with a pretrained encoder only
    # Share of each image's own statistics in the normalisation of the pretrained stem's first
    # blocks: makes photographs and renderings more alike (see backbone.py).
    own_statistics: float = 0.0
    convs: int = 2  # 3x3 convolutions in place of each residual block
    maps: int = 64  # a stack's output maps, 21 supervised; their side is image_size / map_stride
    stacks: int = 2
    depth: int = 4  # times an hourglass halves its input
    hidden: int = 2048  # width of the two fully connected layers
    dropout: float = 0.4
    iterations: int = 3
    # The fully connected layers also see where the maps find the joints, the features there, and
    # how far off the last estimate's projection is.
    places: bool = False
    mesh: bool = True  # off: the head regresses 21 joints and no mesh (ablation)
    # Three axis-angle numbers as in the paper, or the continuous 6-D form of Zhou et al. 2019.
    rotation: str = one_of("axis_angle", "6d")


@dataclass(frozen=True)
class Losses:
    """Weights of the parts of Eq. 8, in the paper's order; zero switches a part off."""

    joints_3d: float = 1000.0
    joints_2d: float = 1.0
    geometric: float = 1.0
    camera: float = 0.1
    heatmap: float = 100.0
    silhouette: float = 10.0
    # Squared distance as in the paper, or the distance, whose pull does not fade as errors shrink
    # (see losses.py); it wants a `joints_3d` weight of about 100.
    joints_3d_kind: str = one_of("squared", "distance")
    # The paper's L2, or the absolute difference as in HMR, whose pull does not fade either.
    joints_2d_kind: str = one_of("squared", "absolute")
    # The paper's camera is s (X + t) with t in metres; ours s X + t in crop units. L_cam compares
    # t in either form.
    camera_offset: str = one_of("metres", "crop")
    # The 3-D bones that the labels' scale is divided by: at full length as in the paper, or as
    # projected, which fits the labels better (see camera.py).
    camera_scale: str = one_of("full", "projected")
    # Squared error as in the paper, or cross-entropy of the Gaussian and the map's softmax, whose
    # unit (see losses.py) wants a `heatmap` weight of about 1.
    heatmap_kind: str = one_of("squared", "cross_entropy")
    heatmap_variance: float = 2.5  # pixels^2 of the map
    silhouette_size: int = 64  # pixels a side at which the silhouette is compared


@dataclass(frozen=True)
class Augment:
    """Ranges of Section 4.1; a pair is a uniform range."""

    scale: tuple[float, float] = (0.9, 1.2)
    rotation: float = 60.0  # degrees either way
    # The paper does not shift crops; found boxes are never exact, so a profile may.
    shift: float = 0.0  # share of the crop's side either way
    brightness: tuple[float, float] = (0.2, 1.8)
    contrast: tuple[float, float] = (0.3, 1.7)
    saturation: tuple[float, float] = (0.4, 1.6)
    # The paper prints "0.2-1.8" for hue as for brightness, which is no rotation of a hue circle.
    # We read it as a factor around 1 and turn by (factor - 1) / 8 of the circle: +-0.1.
    hue: tuple[float, float] = (0.2, 1.8)
    # Standard deviation, of an image in [0, 1]: the paper's N(0, 0.01), read as its variance.
    noise: float = 0.1
    # Not in the paper: what photographs of hands are like, and renderings too seldom.
    occlusion: float = 0.0  # share of the samples that have a patch laid before them
    coarse: float = 0.0  # share of the samples that are mixed with a coarse copy of themselves


@dataclass(frozen=True)
class Train:
    """Optimisation, Section 4.1."""

    seed: int = 0
    # The network to begin from, in place of a new one: a checkpoint's path in the project.
    start: str = ""
    # Of its weights in what is validated and saved; what is trained has none (see `loop.lean`).
    start_share: float = 0.0
    lift_steps: int = 0  # before the first image, on places of joints alone (see lifting.py)
    lift_beside: int = 0  # hands lifted beside each batch of images
    steps: int = 200000
    batch_size: int = 32
    optimizer: str = one_of("rmsprop", "adamw")
    learning_rate: float = 2e-4
    stem_rate: float = 1.0  # factor on the learning rate of a pretrained encoder's blocks
    weight_decay: float = 0.0
    # plateau: times 0.7 when the validation loss stalls; cosine: warm up, then down to zero;
    # trapezoid: warm up, stay, and down over the last two fifths: may be given more steps.
    schedule: str = one_of("plateau", "cosine", "trapezoid")
    plateau_factor: float = 0.7
    plateau_patience: int = 5  # validations
    validate_every: int = 1000  # steps; a checkpoint is written as often
    precision: str = one_of("32", "bf16")
    clip: float = 0.0  # largest gradient norm; 0 does not clip
    # Decay of the exponential moving average of the weights that is validated and saved; 0: none.
    average: float = 0.0
    compile: bool = False  # torch.compile the network; pays on a GPU, needs a C++ compiler on a CPU
    # Where a run computes, not what: these may differ when a run is resumed.
    workers: int = 0  # processes that read batches ahead; on a CPU they only take cores away
    devices: int = 1
    nodes: int = 1


@dataclass(frozen=True)
class Localiser:
    """The network that finds hands in whole photos (see localiser.py); no part of the paper."""

    image_size: int = 192  # pixels a side of the square that a photo is fitted into
    channels: int = 48
    steps: int = 6000
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    save_every: int = 100  # steps between checkpoints
    # Share of the frame's side that a hand takes up in training: from far away to a tight crop.
    zoom: tuple[float, float] = (0.08, 1.1)
    rotation: float = 60.0  # degrees either way
    negatives: float = 0.15  # share of the training frames that hold no hand


@dataclass(frozen=True)
class Evaluate:
    """Evaluation, Sections 4.3 to 4.5 and the supplement."""

    bootstrap: int = 1000  # resamples behind each 95 % interval
    mask_size: int = 256  # pixels a side at which mIoU is taken
    batch_size: int = 64
    examples: int = 16  # images a set whose picture and mesh are kept for the figures


@dataclass(frozen=True)
class Study:
    """Which further runs the study holds."""

    ablations: tuple[str, ...] = FIG8
    ablation_seeds: tuple[int, ...] = (0, 1, 2)
    # Steps of each ablation run, the full model's own row in that table included, so that all
    # rows of Fig. 8 have the same budget.
    ablation_steps: int = 200000
    # At most, before the first image of an ablation or comparison (see `train.lift_steps`).
    lift_steps: int = 1000
    comparisons: tuple[str, ...] = COMPARISONS
    comparison_steps: int = 200000  # of each method that is trained, HAMR among them
    # ResNet-50, as HMR and Boukhayma et al. have it, and below DeepLab; or what a CPU can train.
    comparison_encoder: str = one_of("resnet50", "resnet18")
    # Each trained method in a notebook run of its own, which `make -j` spreads and an interruption
    # spares; off: all in one, where starting a kernel (some 6 s) would take longer than a method.
    comparisons_apart: bool = True


@dataclass(frozen=True)
class Settings:
    """All settings of one run."""

    profile: str = "paper"
    data: Data = Data()
    hand: Hand = Hand()
    model: Model = Model()
    losses: Losses = Losses()
    augment: Augment = Augment()
    train: Train = Train()
    localiser: Localiser = Localiser()
    evaluate: Evaluate = Evaluate()
    study: Study = Study()

    def to_dict(self):
        """Nested plain values, as YAML and checkpoints hold them."""
        return _plain(dataclasses.asdict(self))


# Named changes on top of a profile: those of `FIG8`, and others that ablate our own departures and
# choices.
VARIANTS = {
    "full": {},
    "no-mesh": {"model.mesh": False, "losses.silhouette": 0.0},
    "no-camera": {"losses.camera": 0.0},
    "no-geometric": {"losses.geometric": 0.0},
    "no-silhouette": {"losses.silhouette": 0.0},
    "kinematic-joints": {"hand.joints": "kinematic"},
    "pose-6": {"hand.pose_components": 6},
    "pose-12": {"hand.pose_components": 12},
    "pose-45": {"hand.pose_components": 45},
    "iterations-1": {"model.iterations": 1},
    "iterations-2": {"model.iterations": 2},
    "squared-heatmaps": {"losses.heatmap_kind": "squared", "losses.heatmap": 100.0},
    "axis-angle": {"model.rotation": "axis_angle"},
    "untaught-stem": {"model.stem": "convolutions", "model.map_stride": 4, "train.stem_rate": 1.0},
    "imagenet-stem": {"model.stem": "efficientnet_lite0", "train.stem_rate": 1.0},
    "frozen-stem": {"model.frozen_blocks": 16},
    "no-places": {"model.places": False, "train.lift_steps": 0, "train.lift_beside": 0},
    "no-lifting": {"train.lift_steps": 0, "train.lift_beside": 0},
    "lifting-before": {"train.lift_beside": 0},
    "dropout": {"model.dropout": 0.4},
    "squared-joints": {"losses.joints_3d_kind": "squared", "losses.joints_3d": 1000.0},
    "joints-2d-1": {"losses.joints_2d": 1.0},
    "no-shift": {"augment.shift": 0.0},
    "rmsprop": {
        "train.optimizer": "rmsprop",
        "train.learning_rate": 2e-4,
        "train.weight_decay": 0.0,
        "train.schedule": "plateau",
        "train.clip": 0.0,
    },
    "stacks-2": {"model.stacks": 2},
    "anew": {"train.start": ""},
    "no-occlusion": {"augment.occlusion": 0.0},
    "no-coarse": {"augment.coarse": 0.0},
    "paper-scale": {"augment.scale": Augment.scale},
    "no-start-share": {"train.start_share": 0.0},
    "kept-statistics": {"model.own_statistics": 0.0},
    "paper-colours": {
        "augment.brightness": Augment.brightness,
        "augment.contrast": Augment.contrast,
        "augment.hue": Augment.hue,
    },
}


def load_settings(profile, variant="full", **overrides):
    """Settings of a profile, with a variant and then single overrides on top.

    Args:
        profile: a name in `notebooks/profiles/`, or the path of a YAML file. Where it says
            `base: <profile>`, what it does not say is as in that one.
        variant: a key of `VARIANTS`.
        overrides: dotted settings with `.` written `__`, e.g. `train__seed=1`.

    Raises:
        HamrError: naming the profile, variant, key or value that is not known.
    """
    path, values = _read(profile)
    if variant not in VARIANTS:
        raise HamrError(f"unknown variant {variant!r} (known: {', '.join(VARIANTS)})")
    settings = from_dict({**values, "profile": path.stem}, source=str(path))
    changes = {**VARIANTS[variant], **{k.replace("__", "."): v for k, v in overrides.items()}}
    for key, value in changes.items():
        settings = _replace(settings, key.split("."), value, source=f"{key}={value!r}")
    return settings


def _read(profile, above=()):
    """The path of a profile and its values, on top of those of the profile it names as its base;
    `above` are the paths of the profiles that led to it."""
    path = Path(profile)
    if path.suffix != ".yaml":
        path = PROFILES / f"{profile}.yaml"
    source = f"{above[-1]}: base: " if above else ""
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise HamrError(
            f"{source}unknown profile {str(profile)!r}: {path} does not exist (known: {known})"
        )
    if path in above:
        raise HamrError(f"{source}{profile!r} is itself based on {above[-1].stem!r}")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise HamrError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict) or "base" not in values:
        return path, values
    base = values.pop("base")
    return path, _merged(_read(base, (*above, path))[1], values)


def _merged(below, above):
    """Nested values, those of `above` on top."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def load_run(profile, run="main"):
    """Settings of one training run of a profile.

    Args:
        profile: as in `load_settings`.
        run: "main", the profile as it is; or `<variant>-s<seed>`, a variant of it trained with
            that seed for the budget of the ablations.
    """
    if run == "main":
        return load_settings(profile)
    variant, _, seed = run.rpartition("-s")
    if not seed.isdigit():
        raise HamrError(f"run {run!r}: expected 'main' or '<variant>-s<seed>', e.g. 'no-mesh-s0'")
    budget = _budget(profile, variant, "ablation_steps")
    return load_settings(profile, variant, train__seed=int(seed), **budget)


def load_comparison(profile, method):
    """Settings under which a method of `COMPARISONS` is trained: the profile's, another budget.

    Raises:
        HamrError: for a method that is not known.
    """
    check_methods((method,), f"method={method!r}")
    budget = _budget(profile, "full", "comparison_steps")
    return load_settings(profile, train__start="", **budget)  # all begin anew


def _budget(profile, variant, name):
    """Overrides for a training of a profile's `ablation_steps` or `comparison_steps`."""
    settings = load_settings(profile, variant)
    steps = getattr(settings.study, name)
    return {
        "train__steps": steps,
        "train__validate_every": min(steps, settings.train.validate_every),
        "train__lift_steps": min(settings.train.lift_steps, settings.study.lift_steps),
    }


def check_methods(methods, source):
    """Raise a `HamrError` that names the first of the methods that is not known."""
    for method in methods:
        if method not in COMPARISONS:
            raise HamrError(
                f"{source}: unknown method {method!r} (known: {', '.join(COMPARISONS)})"
            )


def from_dict(values, source="settings"):
    """`Settings` from nested plain values (the inverse of `Settings.to_dict`); strict."""
    return _build(Settings, values, source)


def _build(cls, values, source):
    if not isinstance(values, dict):
        raise HamrError(f"{source}: expected a mapping of settings, got {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise HamrError(
            f"{source}: unknown setting {sorted(map(str, unknown))[0]!r} "
            f"(known: {', '.join(hints)})"
        )
    fields = {f.name: f for f in dataclasses.fields(cls)}
    built = {}
    for key, value in values.items():
        where = f"{source}: {key}"
        if dataclasses.is_dataclass(hints[key]):
            built[key] = _build(hints[key], value, where)
        else:
            built[key] = _checked(hints[key], value, where, fields[key].metadata.get("choices"))
    return cls(**built)


def _checked(hint, value, where, choices):
    if isinstance(hint, types.GenericAlias):
        item = hint.__args__[0]
        fixed = len(hint.__args__) if hint.__args__[-1] is not Ellipsis else None
        if not isinstance(value, (list, tuple)) or (fixed and len(value) != fixed):
            raise HamrError(
                f"{where}: expected a list of {fixed or 'any number of'} values, got {value!r}"
            )
        return tuple(_checked(item, v, where, None) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise HamrError(f"{where}: expected {hint.__name__}, got {value!r}")
    if choices and value not in choices:
        raise HamrError(f"{where}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def _replace(node, path, value, source):
    key, *rest = path
    known = {f.name: f for f in dataclasses.fields(node)}
    if key not in known:
        raise HamrError(f"{source}: unknown setting {key!r} (known: {', '.join(known)})")
    if rest:
        new = _replace(getattr(node, key), rest, value, source)
    else:
        hint = typing.get_type_hints(type(node))[key]
        new = _checked(hint, value, source, known[key].metadata.get("choices"))
    return dataclasses.replace(node, **{key: new})


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
