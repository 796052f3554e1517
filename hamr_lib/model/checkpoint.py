"""Checkpoints: what a trained network is, where it came from, and nothing that could run code.

A checkpoint is one file with two parts: `state_dict`, tensors, and `hamr`, plain values: the
settings, the digest of the data, the seed, the commit, the step and the metrics. `last.ckpt` also
carries what Lightning needs to go on. All are read with `weights_only=True`.

The hand layer's own arrays are left out (the hand sees to that): MANO's may not be passed on, and
both hands are rebuilt where the checkpoint is read. A fingerprint of the hand makes sure that it
is the same one.
"""

from pathlib import Path

import torch

from hamr_lib.config import from_dict
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, commit, write_aside

FORMAT = 1
# Settings that decide where a run computes, not what.
PLACES = ("train.devices", "train.nodes", "train.workers")
SECTIONS = ("data", "hand", "model", "losses", "augment", "train")
RELEASE_BYTES = 40e6


def describe(settings, data_digest, hand, step, metrics, task="hamr"):
    """The `hamr` part of a checkpoint: plain values only. `task` names a `training.task.Task`."""
    return {
        "format": FORMAT,
        "task": task,
        "settings": settings.to_dict(),
        "data_digest": data_digest,
        "seed": settings.train.seed,
        "commit": commit(),
        "step": step,
        "metrics": metrics,
        "hand": hand.name,
        "hand_fingerprint": fingerprint(hand),
    }


def fingerprint(hand):
    """(21, 3) metres: the joints of a fixed bent hand, which any change of the layer moves."""
    betas = torch.tensor([[1.0, -1.0]]).repeat(1, 5)
    pose = torch.linspace(-1, 1, hand.pose_components)[None]
    place = next(iter(hand.buffers())).device
    with torch.no_grad():
        mesh = hand(betas.to(place), torch.zeros(1, 3, device=place), pose.to(place))
    return mesh.joints[0].float().cpu()


def save(path, content):
    """Write a checkpoint aside and rename it: a reader finds the old one or the new one."""
    with write_aside(path) as aside:
        try:
            torch.save(content, aside)
        except RuntimeError as error:  # how torch tells of a full disk
            raise OSError(None, "torch could not write it; is the disk full?") from error


def save_model(path, network, description):
    """Write a checkpoint that holds the network and no optimiser."""
    save(path, {"hamr": description, "state_dict": network.state_dict()})


def save_release(source, path):
    """Write the network of a checkpoint in half precision, to be passed on.

    Vectors stay in single precision: they cost next to nothing, and a batch normalisation's
    variance may not fit a half.

    Raises:
        HamrError: where a weight does not fit a half, or the file is over 40 MB.
    """
    checkpoint = read(source)
    state = {}
    for key, value in model_state(checkpoint).items():
        state[key] = value.half() if value.is_floating_point() and value.ndim > 1 else value
        if not torch.isfinite(state[key]).all():
            raise HamrError(f"{source}: {key} does not fit half precision")
    size = sum(value.nbytes for value in state.values())
    if size > RELEASE_BYTES:
        raise HamrError(
            f"{source}: {size / 1e6:.0f} MB in half precision, expected at most "
            f"{RELEASE_BYTES / 1e6:.0f} MB"
        )
    save(path, {"hamr": checkpoint["hamr"], "state_dict": state})


def read(path):
    """The content of a checkpoint; a missing, truncated or foreign file is a `HamrError`."""
    path = Path(path)
    if not path.is_file():
        raise HamrError(f"{path} is missing: expected a checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can fail in any of a dozen ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise HamrError(f"{path} is no readable checkpoint, or cut short: {reason}") from error
    found = content.get("hamr", {}).get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise HamrError(f"{path} is no checkpoint of HAMR: expected format {FORMAT}, got {found}")
    return content


def model_state(checkpoint):
    """The network's state dict."""
    return {key.removeprefix("network."): v for key, v in checkpoint["state_dict"].items()}


def check_task(path, description, task):
    """Refuse the checkpoint of another network: a comparison's is none of HAMR's.

    Checkpoints from before there were comparisons do not say what they are of: HAMR.
    """
    found = description.get("task", "hamr")
    if found != task:
        raise HamrError(f"{path} holds a network of {found!r}, expected one of {task!r}")


def check_same_run(path, description, settings, data_digest, may_differ=PLACES):
    """Refuse to go on from a checkpoint of other settings or data, naming the first difference."""
    theirs, ours = description["settings"], settings.to_dict()
    for section in SECTIONS:
        difference = _first_difference(theirs.get(section), ours[section], section, may_differ)
        if difference:
            key, old, new = difference
            raise HamrError(
                f"{path} was trained with {key}={old!r}, but this run asks for {key}={new!r}: "
                "use the same settings or another folder"
            )
    if description["data_digest"] != data_digest:
        raise HamrError(
            f"{path} was trained on data {description['data_digest']}, but this run has data "
            f"{data_digest}: use the same data or another folder"
        )


def check_hand(path, description, hand):
    """Refuse a hand layer other than the one a checkpoint was trained with."""
    if description["hand"] != hand.name:
        raise HamrError(
            f"{path} was trained with the {description['hand']!r} hand, not {hand.name!r}"
        )
    apart = (description["hand_fingerprint"] - fingerprint(hand)).norm(dim=-1).max().item()
    if not apart < 1e-3:
        raise HamrError(
            f"{path} was trained with another {hand.name!r} hand: a test pose differs by "
            f"{1000 * apart:.1f} mm, expected less than 1 mm"
        )


def load_model(path, device="cpu"):
    """Read a network to use it.

    Returns:
        (HAMR in evaluation mode on `device`, the `Settings` it was trained with)

    Raises:
        HamrError: for a missing or broken file, or one that does not fit the code or the hand.
    """
    from hamr_lib.hand.layer import load_hand  # here, so that reading a checkpoint needs no network
    from hamr_lib.model.hamr import HAMR

    checkpoint = read(path)
    description = checkpoint["hamr"]
    if "hand" not in description:
        raise HamrError(f"{path} holds a localiser: expected a network that recovers meshes")
    check_task(path, description, "hamr")
    settings = network_settings(path, description)
    hand = load_hand(
        description["hand"],
        pose_components=settings.hand.pose_components,
        joints=settings.hand.joints,
    )
    check_hand(path, description, hand)
    network = HAMR(settings.model, hand, pretrained=False)
    load_state(path, network, model_state(checkpoint))
    network.metrics = description["metrics"]
    return network.to(device).eval(), settings


def network_settings(path, description):
    """Read the `Settings` in a checkpoint; which further runs its study held does not matter."""
    stored = {k: v for k, v in description["settings"].items() if k != "study"}
    train = stored.get("train", {})
    stored["train"] = {k: v for k, v in train.items() if k not in ("start", "start_share")}
    return from_dict(stored, source=f"{path}: settings")


def pretrained(own="best.ckpt", shipped="model.pt", usable=lambda path: True):
    """The trained network that is taken where none is named.

    The reader's own latest (`results/<profile>/runs/main/checkpoints/<own>`), but never one of the
    `smoke` profile, which only tests the machinery; then the shipped one of the largest profile
    (`results/reference/<profile>/<shipped>`).

    Args:
        own, shipped: names of the files.
        usable: tells of one's own whether its training went far enough to be used.

    Raises:
        HamrError: when there is neither.
    """
    found = [
        path
        for path in (ROOT / "results").glob(f"*/runs/main/checkpoints/{own}")
        if path.parents[3].name != "smoke" and usable(path)
    ]
    if found:
        return max(found, key=lambda path: path.stat().st_mtime)
    for profile in ("paper", "gpu", "normalised", "everyday", "photos", "long", "cpu"):
        path = ROOT / "results" / "reference" / profile / shipped
        if path.is_file():
            return path
    raise HamrError(
        f"no trained network: expected results/<profile>/runs/main/checkpoints/{own} (made by "
        f"`make train`) or results/reference/<profile>/{shipped}; or name a checkpoint"
    )


def load_state(path, network, state):
    """Fill a network from its state dict; anything missing or left over is an error."""
    expected = network.state_dict()
    for key in sorted(expected.keys() ^ state.keys()):
        raise HamrError(f"{path}: {key} is {'missing' if key in expected else 'not expected'}")
    for key, value in expected.items():
        if value.shape != state[key].shape:
            raise HamrError(
                f"{path}: {key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
            )
    network.load_state_dict(state)


def _first_difference(old, new, key, ignored):
    if isinstance(new, dict) and isinstance(old, dict):
        for name in sorted(new.keys() | old.keys()):
            found = _first_difference(old.get(name), new.get(name), f"{key}.{name}", ignored)
            if found:
                return found
        return None
    return None if old == new or key in ignored else (key, old, new)
