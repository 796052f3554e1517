"""Which data sets are there, and from settings to the crops of those that are used.

A real set under `data/raw` is used if it is complete; one that is there and incomplete stops the
run, named with what it lacks. Where there is none, the open stand-in of the same format under
`data/open/<profile>` is used, held to the counts that the profile asks for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hamr_lib.config import Data, Settings
from hamr_lib.data import dexter, rhd, stb
from hamr_lib.data.crops import Crops, folder_identity, load_crops
from hamr_lib.data.frame import Frames
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT

TITLES = {"rhd": "RHD", "stb": "STB", "dexter": "Dexter+Object"}
_STB = tuple(name for names in stb.SPLITS.values() for name in names)
SPLITS = {
    "rhd": ("training", "evaluation"),
    "stb": ("training", "evaluation"),
    "dexter": ("evaluation",),
}


@dataclass(frozen=True)
class DataSet:
    """One data set on disk: where it is, and how many samples it should have."""

    name: str  # its format: "rhd", "stb" or "dexter"
    title: str  # what tables call it: "RHD", or "open-rhd" for its stand-in
    root: Path
    expected: dict  # images by split
    sequences: dict = field(default_factory=dict)  # images by sequence, where it has sequences
    camera: str = "SK"  # of STB's cameras
    notice: str = ""  # why this one was taken, if that needs saying

    @property
    def splits(self) -> tuple[str, ...]:
        """Its splits; Dexter+Object has no training split."""
        return SPLITS[self.name]

    @property
    def is_stand_in(self) -> bool:
        """Whether its images are rendered."""
        return self.title != TITLES[self.name]

    def load(self, split: str, data: Data) -> Frames:
        """The frames of a split, read as the `Data` settings say."""
        if split not in self.splits:
            raise HamrError(f"{self.title} has no split {split!r}; it has {', '.join(self.splits)}")
        if self.name == "rhd":
            return rhd.RHD(self.root, split, mask=data.rhd_mask)
        if self.name == "stb":
            return stb.STB(self.root, split, root_shift=data.stb_root, camera=self.camera)
        return dexter.Dexter(self.root)

    def missing(self) -> list[str]:
        """What the set lacks, in words, from its files' names alone; an empty list if nothing."""
        if not self.root.is_dir():
            return [f"the folder {self.root}"]
        return _MISSING[self.name](self)


def published(name: str, folder: Path = ROOT / "data", camera: str = "SK") -> DataSet:
    """The real set of this name, wherever it may or may not be; of STB, one camera's images."""
    root, title = Path(folder) / "raw" / name, TITLES[name]
    if name == "rhd":
        return DataSet(name, title, root, dict(rhd.SPLITS))
    if name == "stb":
        return _sequences(name, title, root, dict.fromkeys(_STB, stb.FRAMES), camera)
    return _sequences(name, title, root, dexter.FRAMES)


def stand_in(name: str, settings: Settings, folder: Path = ROOT / "data") -> DataSet:
    """The open stand-in of this name that the settings ask for, rendered or not."""
    asked, title = settings.data.open, f"open-{name}"
    root = Path(folder) / "open" / settings.profile / title
    if name == "rhd":
        frames = {"training": asked.rhd_training, "evaluation": asked.rhd_evaluation}
        return DataSet(name, title, root, frames)
    if name == "stb":
        return _sequences(name, title, root, dict.fromkeys(_STB, asked.stb_frames))
    return _sequences(name, title, root, dict.fromkeys(dexter.FRAMES, asked.dexter_frames))


def _sequences(name, title, root, frames, camera="SK"):
    """A set of sequences, from how many frames each has."""
    if name == "dexter":
        return DataSet(name, title, root, {"evaluation": sum(frames.values())}, dict(frames))
    images = {key: count * len(stb.IMAGES[camera]) for key, count in frames.items()}
    expected = {split: sum(images[key] for key in keys) for split, keys in stb.SPLITS.items()}
    return DataSet(name, title, root, expected, images, camera)


def real_set(name: str, settings: Settings, folder: Path = ROOT / "data") -> DataSet | None:
    """The real set of this name where it is to be used; None where its stand-in is.

    Raises:
        HamrError: naming what it lacks, where it is asked for or there but incomplete.
    """
    real = published(name, folder, settings.data.stb_camera)
    asked = settings.data.sets
    if asked == "open" or (asked == "auto" and not os.path.lexists(real.root)):
        return None
    missing = real.missing()
    if missing:
        raise HamrError(
            f"data.sets is {asked!r}, but {real.title} is not complete: it lacks "
            f"{listed(missing)}. Complete {real.root} or remove it, or set data.sets to 'open' to "
            "use the stand-ins"
        )
    return real


def find_sets(settings: Settings, folder: Path = ROOT / "data") -> dict[str, DataSet]:
    """Choose each data set, as `settings.data.sets` says: auto, real or open.

    Returns:
        {"rhd", "stb", "dexter"} -> `DataSet`, whose `notice` says why a real set was not taken.

    Raises:
        HamrError: naming what the set that should be used lacks. Under auto, a real set that is
            there but incomplete is such a set: no stand-in takes its place.
    """
    sets = {}
    for name, title in TITLES.items():
        sets[name] = real_set(name, settings, folder)
        if sets[name] is not None:
            continue
        found, notice = stand_in(name, settings, folder), ""
        if settings.data.sets == "auto":
            notice = f"{published(name, folder).root} is missing: {found.title} in place of {title}"
        if name == "stb" and settings.data.stb_camera != found.camera:
            raise HamrError(
                f"data.stb_camera is {settings.data.stb_camera!r}, but {found.title} has images "
                f"of {found.camera} alone. {notice}".strip()
            )
        missing = found.missing()
        if missing:
            raise HamrError(
                f"{found.title} is not complete: it lacks {listed(missing)}; "
                f"`make data PROFILE={settings.profile}` renders it. {notice}".strip()
            )
        sets[name] = replace(found, notice=notice)
    return sets


def listed(missing: Sequence[str], most: int = 4) -> str:
    """The first few of what is missing, in words."""
    more = f" and {len(missing) - most} more" if len(missing) > most else ""
    return "; ".join(missing[:most]) + more


def _count(folder, start="", suffix=".png"):
    """How many images a folder holds; 0 if there is no such folder."""
    if not folder.is_dir():
        return 0
    names = (path.name for path in folder.iterdir())
    return sum(n.startswith(start) and n.endswith(suffix) and not n.startswith(".") for n in names)


def _absent(path):
    """A file's path, as a list of none or one, if it is not there."""
    return [] if path.is_file() else [str(path)]


def _short(where, found, expected):
    """The words for a wrong count, as a list of none or one."""
    return [] if found == expected else [f"{where}: {found:,} of {expected:,} images"]


def _missing_rhd(dataset):
    missing = []
    for split, count in dataset.expected.items():
        missing += _absent(rhd.annotation_path(dataset.root, split))
        for kind in ("color", "mask", "depth"):
            folder = rhd.split_folder(dataset.root, split) / kind
            missing += _short(folder, _count(folder), count)
    return missing


def _missing_stb(dataset):
    missing = []
    for name, count in dataset.sequences.items():
        missing += _absent(stb.label_path(dataset.root, name, dataset.camera))
        folder = stb.image_path(dataset.root, name, 0).parent
        found = sum(_count(folder, f"{image}_") for image in stb.IMAGES[dataset.camera])
        missing += _short(folder, found, count)
    return missing


def _missing_dexter(dataset):
    missing = []
    for name, count in dataset.sequences.items():
        missing += _absent(dexter.annotation_path(dataset.root, name))
        folder = dexter.sequence_folder(dataset.root, name) / "color"
        missing += _short(folder, _count(folder, suffix=""), count)
    return missing


_MISSING = {"rhd": _missing_rhd, "stb": _missing_stb, "dexter": _missing_dexter}


def training_crops(settings: Settings) -> tuple[Crops, Crops]:
    """Cut the training splits of RHD and STB, or of their stand-ins, with a margin to augment in.

    A fraction of the samples, `data.validation`, is held out.

    Returns:
        (training `Crops`, validation `Crops`).
    """
    sets = [found for found in find_sets(settings).values() if "training" in found.splits]
    crops = [_load(found, "training", settings, settings.augment) for found in sets]
    return Crops.join(crops).split(settings.data.validation, settings.train.seed)


def evaluation_crops(settings: Settings) -> dict[tuple[str, str], Crops]:
    """The evaluation split of every set, cut without a margin.

    Returns:
        {(display name, "evaluation"): `Crops`}.
    """
    return {
        (found.title, "evaluation"): _load(found, "evaluation", settings)
        for found in find_sets(settings).values()
    }


def _load(found, split, settings, augment=None):
    # What decides the frames: the files, and how they are read.
    identity = [found.name, split, settings.data.rhd_mask, settings.data.stb_root, found.camera]
    # Crops of rendered images go where they come from, and with them.
    own = {"cache": found.root.parent / "crops"} if found.is_stand_in else {}
    return load_crops(
        found.load(split, settings.data),
        [*identity, folder_identity(found.root)],
        settings.model.image_size,
        augment,
        name=f"{found.title}-{split}",
        **own,
    )
