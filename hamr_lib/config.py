"""Every setting of the study: its default, its range, and why.

The defaults are the paper's (Sections 3 and 4). A profile in `notebooks/profiles/` names only what
it changes, and a variant (`variants.py`) is a named change on top of a profile. An unknown key, a
wrong type or a value out of range is a `HamrError` before anything runs.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field, StrictBool

from hamr_lib.errors import HamrError, quoted
from hamr_lib.files import CHECKOUT, read_yaml
from hamr_lib.validation import SEEDS, Factors, Interval, Seeds, complaint, group, known, within
from hamr_lib.variants import CLAIMS, COMPARISONS, VARIANTS, check_names

PROFILES = CHECKOUT / "notebooks" / "profiles"
if not PROFILES.is_dir():  # an installed package has them inside
    PROFILES = Path(__file__).with_name("profiles")
PROFILE_NAME = re.compile(r"[a-z0-9_-]{1,100}")


@group
class OpenData:
    """How many stand-in samples to render, and what varies in them (see `synth`)."""

    seed: int = within(1, 0, SEEDS)
    rhd_training: int = within(40000, 2, 10**7)  # images; RHD has 41,258
    rhd_evaluation: int = within(2700, 1, 10**6)  # images; RHD has 2,728
    stb_frames: int = within(1500, 1, 10**5)  # frames in each of the 12 sequences, as STB has
    dexter_frames: int = within(500, 1, 10**5)  # frames in each of the 6 sequences
    # Each factor that makes rendered hands look like photographed ones can be switched off.
    people: StrictBool = True  # a posed body with forearm and sleeves; off: the bare hand alone
    textures: StrictBool = True  # noise, creases, nails and redness on the skin; off: one colour
    objects: StrictBool = True  # things and second hands that occlude
    lights: StrictBool = True  # several coloured lights and shadow; off: one white light
    lens: StrictBool = True  # exposure, white balance, blur, noise, JPEG; off: a perfect camera
    photographs: StrictBool = True  # photographs behind the hand; off: procedural textures only
    environments: StrictBool = True  # light, and often the background, of real places all around
    spectrum: StrictBool = True  # in some images, low frequencies mixed with a photograph's
    resting: float = within(0.0, 0, 1)  # fraction of RHD's training hands (`sampling.sample_poses`)


@group
class Data:
    """Which data sets the study reads."""

    # auto: each real set that is complete under data/raw, the open stand-in for each other;
    # real: the real sets or an error; open: the stand-ins.
    sets: Literal["auto", "real", "open"] = "auto"
    stb_root: Literal["ring", "middle", "palm"] = "ring"  # how STB's palm becomes a wrist
    stb_camera: Literal["SK", "BB"] = "SK"  # BB: left and right image of the stereo pair
    rhd_mask: Literal["mask", "depth"] = "mask"  # where RHD's hand mask is read from
    # Fraction of the training samples held out for the plateau and the best checkpoint.
    validation: float = within(0.05, 0, 0.9)
    open: OpenData = OpenData()


@group
class Hand:
    """The hand layer, Section 3.1."""

    model: Literal["auto", "mano", "open"] = "auto"
    pose_components: int = within(6, 1, 45)  # PCA components; 45 takes axis-angle numbers instead
    joints: Literal["regressed", "kinematic"] = "regressed"  # Eq. 3, or the skeleton's own


@group
class Model:
    """The network, Sections 3.2, 3.3 and 4.1."""

    image_size: int = within(256, 16, 1024)
    # The paper gives 64 output maps; 256 channels inside is the hourglass's usual width.
    channels: int = within(256, 4, 2048, multiple_of=4)
    # The paper's convolutions, or a pretrained encoder (see backbone.py): MediaPipe's hand landmark
    # network, which saw photographs of hands, or EfficientNet-Lite0, which saw ImageNet.
    stem: Literal["convolutions", "hand_landmark", "efficientnet_lite0"] = "convolutions"
    frozen_blocks: int = within(3, 0, 100)  # first blocks of a pretrained encoder, not trained
    map_stride: Literal[4, 8] = 4  # pixels of the image a pixel of the maps
    convs: int = within(2, 1, 8)  # 3x3 convolutions in place of each residual block
    # Output maps of each stack, the first 21 supervised; their side is image_size / map_stride.
    maps: int = within(64, 21, 2048)
    stacks: int = within(2, 1, 16)
    depth: int = within(4, 1, 8)  # times an hourglass halves its input
    hidden: int = within(2048, 1, 16384)  # width of the two fully connected layers
    dropout: float = within(0.4, 0, 0.99)
    iterations: int = within(3, 1, 32)
    # The fully connected layers also see the keypoints of the heat maps, the features there, and
    # how far off the last estimate's projection is.
    joint_features: StrictBool = False
    # And a pretrained encoder's last features, averaged over the image.
    pooled_features: StrictBool = False
    mesh: StrictBool = True  # off: the head regresses 21 joints and no mesh (ablation)
    # Three axis-angle numbers as in the paper, or the continuous 6-D form of Zhou et al. 2019.
    rotation: Literal["axis_angle", "6d"] = "axis_angle"

    def __post_init__(self):
        pretrained = self.stem != "convolutions"
        for name, plain in (("map_stride", 4), ("pooled_features", False)):
            if not pretrained and getattr(self, name) != plain:
                raise ValueError(f"{name}: expected {plain} where the stem is not pretrained")
        # What the hourglass halves, and the stride of a pretrained encoder.
        whole = math.lcm(self.map_stride * 2**self.depth, 32 if pretrained else 1)
        if self.image_size % whole:
            raise ValueError(f"image_size={self.image_size}: expected a multiple of {whole}")


@group
class Losses:
    """Weights of the parts of Eq. 8, in the paper's order; zero switches a part off."""

    joints_3d: float = within(1000.0, 0, 1e6)
    joints_2d: float = within(1.0, 0, 1e6)
    geometric: float = within(1.0, 0, 1e6)
    camera: float = within(0.1, 0, 1e6)
    heatmap: float = within(100.0, 0, 1e6)
    silhouette: float = within(10.0, 0, 1e6)
    # The first of each kind is the paper's (see losses.py). "distance", whose pull does not fade,
    # wants a `joints_3d` weight of about 100, "cross_entropy" a `heatmap` weight of about 1.
    joints_3d_kind: Literal["squared", "distance"] = "squared"
    joints_2d_kind: Literal["squared", "absolute"] = "squared"
    camera_offset: Literal["metres", "crop"] = "metres"
    camera_scale: Literal["full", "projected"] = "full"
    heatmap_kind: Literal["squared", "cross_entropy"] = "squared"
    heatmap_variance: float = within(2.5, 0.01, 1e4)  # pixels^2 of the map
    silhouette_size: int = within(64, 4, 1024)  # pixels a side at which the silhouette is compared


@group
class Augment:
    """Ranges of Section 4.1; a pair is a uniform range."""

    scale: Interval = (0.9, 1.2)
    rotation: float = within(60.0, 0, 180)  # degrees either way
    # The paper does not shift crops; detected boxes are never exact, so a profile may.
    shift: float = within(0.0, 0, 1)  # fraction of the crop's side either way
    brightness: Interval = (0.2, 1.8)
    contrast: Interval = (0.3, 1.7)
    saturation: Interval = (0.4, 1.6)
    # A factor around 1, by which we turn (factor - 1) / 8 of the hue circle: +-0.1.
    hue: Interval = (0.2, 1.8)
    # Standard deviation, of an image in [0, 1]: the paper's N(0, 0.01), read as its variance.
    noise: float = within(0.1, 0, 1)
    # Not in the paper: what photographs of hands are like, and renderings too seldom.
    occlusion: float = within(0.0, 0, 1)  # probability of a patch laid before the hand
    coarse: float = within(0.0, 0, 1)  # probability of mixing with a coarse copy of the image
    # Probability of turning the hand upright, from where `rotation` moves it half as far.
    upright: float = within(0.0, 0, 1)

    def __post_init__(self):
        if not self.scale[0] >= 0.1:
            raise ValueError(f"scale={self.scale}: expected at least 0.1")


@group
class Train:
    """Optimisation, Section 4.1."""

    seed: int = within(0, 0, SEEDS)
    # Steps on 2-D keypoints alone, before the first image (see pose_prior.py).
    lift_steps: int = within(0, 0, 10**7)
    lift_beside: int = within(0, 0, 10**5)  # hands lifted beside each batch of images
    steps: int = within(200000, 1, 10**8)
    batch_size: int = within(32, 2, 2**16)  # batch normalisation needs two
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    learning_rate: float = within(2e-4, 1e-12, 10)
    stem_rate: float = within(1.0, 0, 10)  # factor on the rate of a pretrained encoder's blocks
    weight_decay: float = within(0.0, 0, 10)
    # plateau: times 0.7 when the validation loss stalls; cosine: warm up, then down to zero;
    # trapezoid: warm up, stay, and down over the last two fifths.
    schedule: Literal["plateau", "cosine", "trapezoid"] = "plateau"
    plateau_factor: float = within(0.7, 0.01, 0.99)
    plateau_patience: int = within(5, 0, 10**6)  # validations
    validate_every: int = within(1000, 1, 10**8)  # steps
    precision: Literal["32", "bf16"] = "32"
    clip: float = within(0.0, 0, 1e6)  # largest gradient norm; 0 does not clip
    # Decay of the exponential moving average of the weights that is validated and saved; 0: none.
    average: float = within(0.0, 0, 0.999999)
    compile: StrictBool = False  # torch.compile; pays on a GPU, needs a C++ compiler on a CPU
    # Where a run computes, not what: these may differ when a run is resumed.
    workers: int = within(0, 0, 256)  # processes that read batches; on a CPU they take cores away
    devices: int = within(1, 1, 256)
    nodes: int = within(1, 1, 1024)

    def __post_init__(self):
        if self.steps % self.validate_every:
            raise ValueError(
                f"steps={self.steps}: expected a multiple of validate_every={self.validate_every}"
            )


@group
class Evaluate:
    """Evaluation, Sections 4.3 to 4.5 and the supplement."""

    bootstrap: int = within(1000, 1, 10**6)  # resamples behind each 95 % interval
    mask_size: int = within(256, 8, 4096)  # pixels a side at which mIoU is taken
    # The network looks at a crop a second time, turned until the fingers point up.
    upright: StrictBool = False
    batch_size: int = within(64, 1, 2**16)
    examples: int = within(16, 0, 10**5)  # images a set kept with their meshes for the figures


@group
class Study:
    """Which further runs the study holds."""

    ablations: known(VARIANTS) = tuple(CLAIMS)
    ablation_seeds: Seeds = (0, 1, 2)  # of the full model and the paper's own ablations
    choice_seeds: int = within(3, 1, 100)  # how many of these the other variants take
    ablation_steps: int = within(200000, 1, 10**8)  # of each row of Fig. 8, the full model's too
    # Steps between validations of these runs, at most: points of the curve along the training.
    validate_every: int = within(1000, 1, 10**8)
    # At most, before the first image of an ablation or comparison (see `train.lift_steps`).
    lift_steps: int = within(1000, 0, 10**7)
    # Of ablations and comparisons, at least: a pretrained stem that stays as it is costs half.
    frozen_blocks: int = within(0, 0, 100)
    comparisons: known(COMPARISONS) = tuple(COMPARISONS)
    comparison_steps: int = within(200000, 1, 10**8)  # of each method that is trained
    # Factors on `train.learning_rate`: a method is trained with the best of them, by its error on
    # the validation crops after so many steps (0: no search).
    search_rates: Factors = (0.3, 1.0, 3.0)
    search_steps: int = within(0, 0, 10**8)
    # Each trained method in a notebook run of its own, which `make -j` spreads; off: all in one.
    comparisons_apart: StrictBool = True

    def seeds(self, variant: str) -> tuple[int, ...]:
        """Training seeds of an ablation."""
        chosen = variant != "full" and variant not in CLAIMS
        return self.ablation_seeds[: self.choice_seeds if chosen else None]


@group
class Settings:
    """All settings of one run."""

    profile: Annotated[str, Field(pattern=f"^{PROFILE_NAME.pattern}$")] = "paper"
    data: Data = Data()
    hand: Hand = Hand()
    model: Model = Model()
    losses: Losses = Losses()
    augment: Augment = Augment()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    study: Study = Study()

    def __post_init__(self):
        for name, value, needs in (
            ("train.lift_steps", self.train.lift_steps, "joint_features"),
            ("train.lift_beside", self.train.lift_beside, "joint_features"),
            ("losses.silhouette", self.losses.silhouette, "mesh"),
        ):
            if value and not getattr(self.model, needs):
                raise ValueError(f"{name}={value}: expected 0 where model.{needs} is off")

    def to_dict(self) -> dict:
        """Nested plain values, as YAML and checkpoints hold them."""
        return _CHECKED.dump_python(self, mode="json")


_CHECKED = pydantic.TypeAdapter(Settings)


def from_dict(values, source="settings") -> Settings:
    """Build `Settings` from nested plain values (the inverse of `Settings.to_dict`); strict."""
    if not isinstance(values, dict):
        raise HamrError(f"{source}: expected a mapping of settings, got {quoted(values)}")
    try:
        return _CHECKED.validate_python(values)
    except pydantic.ValidationError as error:
        raise complaint(error, source) from None


def load_settings(profile, variant="full", **overrides) -> Settings:
    """Read a profile, with a variant of `VARIANTS` and then single overrides on top.

    Args:
        profile: a name in `notebooks/profiles/`, or the path of a YAML file; `base: <profile>` in
            it names the one that it changes. "auto" is `gpu` where there is a GPU, else `cpu`.
        overrides: dotted settings with `.` written `__`, e.g. `train__seed=1`.
    """
    check_names([variant], VARIANTS, "variant")
    if profile == "auto":
        import torch  # here, as nothing else in this module needs it

        profile = "gpu" if torch.cuda.is_available() else "cpu"
    path, values = _read(profile)
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    for key, value in {**VARIANTS[variant].changes, **overrides}.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        values = _merged(values, value)
    return from_dict({**values, "profile": path.stem}, source=str(path))


def _read(profile, above=()):
    """The path of a profile and its values, with those of its base; `above` led to it."""
    source = f"{above[-1]}: base: " if above else ""
    path = Path(profile) if isinstance(profile, str | Path) else Path()
    if path.suffix != ".yaml":
        path = PROFILES / f"{path}.yaml"
        if not PROFILE_NAME.fullmatch(str(profile)) or not path.is_file():
            names = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
            raise HamrError(f"{source}unknown profile {quoted(profile)} (known: {names})")
    if path in above:
        raise HamrError(f"{source}{quoted(profile)} is itself based on {above[-1].stem!r}")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise HamrError(f"{path}: expected a mapping of settings, got {quoted(values)}")
    base = _read(values.pop("base"), (*above, path))[1] if "base" in values else {}
    return path, _merged(base, values)


def _merged(below, above):
    """Nested values, those of `above` on top."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def load_run(profile, run="main") -> Settings:
    """Read the settings of one training run of a profile.

    `run` is "main", the profile as it is, or `<variant>-s<seed>`, an ablation.
    """
    if run == "main":
        return load_settings(profile)
    variant, _, seed = str(run).rpartition("-s")
    if not re.fullmatch("[0-9]{1,10}", seed):
        expected = "expected 'main' or '<variant>-s<seed>', e.g. 'no-mesh-s0'"
        raise HamrError(f"run {quoted(run)}: {expected}")
    return _shorter(profile, variant, "ablation_steps", train__seed=int(seed))


def load_comparison(profile, method) -> Settings:
    """Read the settings under which a method of `COMPARISONS` is trained."""
    check_names([method], COMPARISONS, "method")
    return _shorter(profile, "full", "comparison_steps")


def _shorter(profile, variant, name, **overrides):
    """Settings of a training of a profile's `ablation_steps` or `comparison_steps`."""
    settings = load_settings(profile, variant)
    train, study = settings.train, settings.study
    steps = getattr(study, name)
    upright = "augment.upright" in VARIANTS[variant].changes  # the other methods look once
    once = {} if upright else {"augment__upright": 0.0, "evaluate__upright": False}
    return load_settings(
        profile,
        variant,
        train__steps=steps,
        train__validate_every=min(steps, train.validate_every, study.validate_every),
        train__lift_steps=min(train.lift_steps, study.lift_steps),
        model__frozen_blocks=max(settings.model.frozen_blocks, study.frozen_blocks),
        **once,
        **overrides,
    )
