"""From settings to the crops that the network trains on and is scored on."""

from hamr_lib.data.check import find_sets
from hamr_lib.data.crops import Crops, folder_identity, load_crops


def training_crops(settings):
    """The training splits of RHD and STB (or their stand-ins) together, with the augmentation's
    margin; a share of them held out for validation.

    Returns:
        (training `Crops`, validation `Crops`).
    """
    sets = [found for found in find_sets(settings).values() if "training" in found.splits]
    crops = [_load(found, "training", settings, settings.augment) for found in sets]
    return Crops.join(crops).split(settings.data.validation, settings.train.seed)


def evaluation_crops(settings):
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
