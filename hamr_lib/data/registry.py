"""Which data sets are there, and from settings to the crops of those that are used.

A real set under `data/raw` is used if it is complete; one that is there and incomplete stops the
run, named with what it lacks. Where there is none, the open stand-in of the same format under
`data/open/<profile>` is used, held to the counts that the profile asks for.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from hamr_lib.config import Data, Settings
from hamr_lib.data import dexter, rhd, stb
from hamr_lib.data.crops import Crops, folder_identity, load_crops
from hamr_lib.data.frame import Frames, list_images
from hamr_lib.errors import HamrError, one_of
from hamr_lib.files import ROOT

TITLES = {"rhd": "RHD", "stb": "STB", "dexter": "Dexter+Object"}
FORMATS = {"rhd": rhd, "stb": stb, "dexter": dexter}


@dataclass(frozen=True)
class DataSet:
    """One data set on disk: where it is, and how many samples it should have."""

    name: str  # its format: "rhd", "stb" or "dexter"
    title: str  # what tables call it: "RHD", or "open-rhd" for its stand-in
    root: Path
    # {split: {part: images}}; a part has labels of its own: STB's sequences, RHD's whole splits.
    parts: dict[str, dict[str, int]]
    camera: str = "SK"  # of STB's cameras
    notice: str = ""  # why this one was taken, if that needs saying

    @property
    def splits(self) -> tuple[str, ...]:
        """Its splits; Dexter+Object has no training split."""
        return tuple(self.parts)

    @property
    def expected(self) -> dict[str, int]:
        """Its images by split."""
        views = len(stb.IMAGES[self.camera]) if self.name == "stb" else 1
        return {split: views * sum(parts.values()) for split, parts in self.parts.items()}

    def load(self, split: str, data: Data) -> Frames:
        """Open the frames of a split, read as the `Data` settings say."""
        one_of(f"{self.title}: split", split, self.splits)
        if self.name == "rhd":
            return rhd.RHD(self.root, split, data.rhd_mask)
        if self.name == "stb":
            return stb.STB(self.root, split, data.stb_root, self.camera)
        return dexter.Dexter(self.root)

    def missing(self) -> str:
        """Name the first few things that the set lacks, from its files' names alone."""
        if not self.root.is_dir():
            return f"the folder {self.root}"
        missing = []
        for part, count in (each for parts in self.parts.values() for each in parts.items()):
            labels, patterns = FORMATS[self.name].files(self.root, part, self.camera)
            missing += [] if labels.is_file() else [str(labels)]
            found = {pattern: len(list_images(pattern)) for pattern in patterns}
            missing += [f"{p}: {n:,} of {count:,} images" for p, n in found.items() if n != count]
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        return "; ".join(missing[:4]) + more


def published(name: str, folder: Path = ROOT / "data", camera: str = "SK") -> DataSet:
    """Describe the real set of this name, there or not; of STB, one camera's images."""
    used = camera if name == "stb" else "SK"
    root = Path(folder) / "raw" / name
    return DataSet(name, TITLES[name], root, FORMATS[name].SPLITS, used)


def stand_in(name: str, settings: Settings, folder: Path = ROOT / "data") -> DataSet:
    """Describe the open stand-in of this name that the settings ask for, rendered or not."""
    asked, root = settings.data.open, Path(folder) / "open" / settings.profile / f"open-{name}"
    counts = {
        "rhd": {"training": asked.rhd_training, "evaluation": asked.rhd_evaluation},
        "stb": dict.fromkeys(stb.SPLITS, asked.stb_frames),
        "dexter": {"evaluation": asked.dexter_frames},
    }[name]
    splits = FORMATS[name].SPLITS
    parts = {split: dict.fromkeys(splits[split], count) for split, count in counts.items()}
    return DataSet(name, root.name, root, parts)


def real_set(name: str, settings: Settings, folder: Path = ROOT / "data") -> DataSet | None:
    """Return the real set of this name where it is to be used, and then complete; else None."""
    real = published(name, folder, settings.data.stb_camera)
    asked = settings.data.sets
    if asked == "open" or (asked == "auto" and not os.path.lexists(real.root)):
        return None
    if missing := real.missing():
        raise HamrError(
            f"data.sets is {asked!r}, but {real.title} is not complete: it lacks {missing}. "
            f"Complete {real.root} or remove it, or set data.sets to 'open' to use the stand-ins"
        )
    return real


def find_sets(settings: Settings, folder: Path = ROOT / "data") -> dict[str, DataSet]:
    """Choose each data set, as `settings.data.sets` says: {name: `DataSet`}.

    Raises:
        HamrError: naming what the set that should be used lacks. Under auto, a real set that is
            there but incomplete is such a set: no stand-in takes its place.
    """
    sets = {name: real_set(name, settings, folder) for name in TITLES}
    return {name: real or _rendered(name, settings, folder) for name, real in sets.items()}


def _rendered(name, settings, folder):
    found, notice = stand_in(name, settings, folder), ""
    if settings.data.sets == "auto":
        wanted = published(name, folder)
        notice = f"{wanted.root} is missing: {found.title} in place of {wanted.title}"
    if name == "stb":
        one_of(f"{found.title}: data.stb_camera", settings.data.stb_camera, [found.camera])
    if missing := found.missing():
        raise HamrError(
            f"{found.title} is not complete: it lacks {missing}; "
            f"`make data PROFILE={settings.profile}` renders it. {notice}".strip()
        )
    return replace(found, notice=notice)


def training_crops(settings: Settings) -> tuple[Crops, Crops]:
    """Cut the training splits, with a margin to augment in: (training, validation) `Crops`."""
    sets = [found for found in find_sets(settings).values() if "training" in found.splits]
    crops = [_load(found, "training", settings, settings.augment) for found in sets]
    return Crops.join(crops).split(settings.data.validation, settings.train.seed)


def evaluation_crops(settings: Settings) -> dict[tuple[str, str], Crops]:
    """Cut the evaluation split of every set: {(display name, "evaluation"): `Crops`}."""
    sets, split = find_sets(settings).values(), "evaluation"
    return {(found.title, split): _load(found, split, settings) for found in sets}


def _load(found, split, settings, augment=None):
    # What decides the frames: how they are read, and the files.
    identity = [found.name, split, settings.data.rhd_mask, settings.data.stb_root, found.camera]
    identity.append(folder_identity(found.root))
    # Crops of rendered images go where they come from, and with them.
    rendered = found.title != TITLES[found.name]
    own = {"cache": found.root.parent / "crops"} if rendered else {}
    frames, size = found.load(split, settings.data), settings.model.image_size
    return load_crops(frames, identity, size, augment, name=f"{found.title}-{split}", **own)
