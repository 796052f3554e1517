"""Checkpoints: a trained network and where it came from, in a file that can run no code.

A checkpoint holds `state_dict`, tensors by name, and `hamr`, plain values: the settings, the digest
of the data, the seed, the commit, the step and the metrics. `last.ckpt` also holds `run`, from
which a training resumes.

The hand layer's arrays are left out: MANO's may not be passed on, and both hands are rebuilt where
the checkpoint is read. A fingerprint of the hand makes sure that it is the same one.
"""

import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from hamr_lib.config import Settings, from_dict
from hamr_lib.errors import HamrError, quoted
from hamr_lib.files import ROOT, commit, write_aside
from hamr_lib.hand.pickles import check_keys
from hamr_lib.joints import NUM_JOINTS

FORMAT = 2  # 1: other names of settings and weights
# The plain values that describe a checkpoint of a `Task`, and their types.
DESCRIPTION = {
    "task": str, "settings": dict, "data_digest": str, "seed": int, "commit": str, "step": int,
    "metrics": dict, "hand": str,
}  # fmt: skip
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
# Settings that decide where a run computes, not what.
MAY_DIFFER = ("train.devices", "train.nodes", "train.workers")
SECTIONS = ("data", "hand", "model", "losses", "augment", "train")
RELEASE_MB = 40
SHIPPED = Path(__file__).with_name("pretrained.pt")  # the network that `study publish` ships


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
    with torch.no_grad(), torch.device(next(iter(hand.buffers())).device):
        betas = torch.tensor([[1.0, -1.0]]).repeat(1, 5)
        pose = torch.linspace(-1, 1, hand.pose_components)[None]
        return hand(betas, torch.zeros(1, 3), pose).joints[0].float().cpu()


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
    state = checkpoint["state_dict"]
    for key, value in state.items():
        state[key] = value.half() if value.is_floating_point() and value.ndim > 1 else value
        if not torch.isfinite(state[key]).all():
            raise HamrError(f"{source}: {key} does not fit half precision")
    size = sum(value.nbytes for value in state.values()) / 1e6
    if size > RELEASE_MB:
        raise HamrError(
            f"{source}: {size:.0f} MB in half precision, expected at most {RELEASE_MB} MB"
        )
    save(path, {"hamr": checkpoint["hamr"], "state_dict": state})


def read(path: Path | str, task: str | None = None) -> dict:
    """Read a checkpoint and check everything in it but how the weights fit a network.

    Args:
        task: the `training.task.Task` that it must be of; None takes any.

    Raises:
        HamrError: for a missing, broken or foreign file, and values of a wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise HamrError(f"{path} is missing: expected a checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch would also take older formats and inflate
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("compressed")
            for entry in entries:
                if entry.filename.endswith("/data.pkl"):
                    check_keys(archive.read(entry))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a broken file can fail in any of a dozen ways; torch's advice is not ours
        raise HamrError(
            f"{path} is no readable checkpoint: it is cut short, damaged, or holds more than "
            "tensors and plain values"
        ) from None
    description = content.get("hamr") if isinstance(content, dict) else None
    found = description.get("format") if isinstance(description, dict) else None
    if type(found) is not int or found != FORMAT:
        raise HamrError(
            f"{path} is no checkpoint of HAMR: expected format {FORMAT}, got {quoted(found)}; "
            "of an earlier format, train anew or take the network that is shipped"
        )
    _check_description(path, description, task)
    state = content.get("state_dict")
    if type(state) not in (dict, OrderedDict) or not state:
        raise HamrError(f"{path}: state_dict: expected weights by name, got {quoted(state)}")
    for key, value in state.items():
        _check_tensor(path, key, value)
    return content


def _check_description(path, description, task):
    """Refuse another task, and missing or wrongly typed values."""
    of = description.get("task")
    if task is not None and of != task:
        raise HamrError(f"{path} holds a network of {quoted(of)}, expected one of {task!r}")
    for key, kind in DESCRIPTION.items():
        value = description.get(key)
        if type(value) is not kind:
            raise HamrError(f"{path}: hamr.{key}: expected {kind.__name__}, got {quoted(value)}")
    key, value = "hand_fingerprint", description.get("hand_fingerprint")
    _check_tensor(path, f"hamr.{key}", value)
    if value.shape != (NUM_JOINTS, 3):
        raise HamrError(f"{path}: hamr.{key}: expected shape (21, 3), got {tuple(value.shape)}")


def _check_tensor(path, key, value):
    """Refuse what is no plain, finite tensor on the CPU that the file holds in full."""
    if not isinstance(key, str):
        raise HamrError(f"{path}: state_dict: expected names, got {quoted(key)}")
    problem = None
    if not isinstance(value, torch.Tensor):
        problem = f"got {quoted(value)}"
    elif value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        problem = "got another kind of tensor"
    elif value.is_complex() or value.dtype not in NUMBERS:
        problem = f"got numbers of type {value.dtype}"
    elif value.numel() * value.itemsize > value.untyped_storage().nbytes():
        problem = f"got shape {tuple(value.shape)} over fewer numbers"
    elif not torch.isfinite(value).all():
        problem = "got values that are not finite"
    if problem:
        raise HamrError(f"{path}: {key[:100]}: expected a tensor of finite numbers, {problem}")


def check_same_run(path, description, settings, data_digest):
    """Refuse to go on from a checkpoint of other settings or data, naming the first difference."""
    theirs, ours = description["settings"], settings.to_dict()
    for section in SECTIONS:
        old, new = _flat(theirs.get(section), section), _flat(ours[section], section)
        for key in sorted(old.keys() | new.keys()):
            if key not in MAY_DIFFER and old.get(key) != new.get(key):
                raise HamrError(
                    f"{path} was trained with {key}={old.get(key)!r}, but this run asks for "
                    f"{key}={new.get(key)!r}: use the same settings or another folder"
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


def stored_settings(path: Path | str, description: dict) -> Settings:
    """Read the `Settings` in a checkpoint; which further runs its study held does not matter."""
    stored = {k: v for k, v in description["settings"].items() if k != "study"}
    return from_dict(stored, source=f"{path}: settings")


def pretrained() -> Path:
    """The trained network that is taken where none is named.

    It is the reader's own latest (`results/<profile>/runs/main/checkpoints/best.ckpt`), but never
    one of the `smoke` profile, which only tests the machinery; then the one in this package.
    """
    found = (ROOT / "results").glob("*/runs/main/checkpoints/best.ckpt")
    own = [path for path in found if path.parents[3].name != "smoke"]
    if own:
        return max(own, key=lambda path: path.stat().st_mtime)
    if SHIPPED.is_file():
        return SHIPPED
    raise HamrError(
        "no trained network: expected results/<profile>/runs/main/checkpoints/best.ckpt (made by "
        f"`make train`) or {SHIPPED}; or name a checkpoint"
    )


def load_state(path: Path | str, network: torch.nn.Module, state: dict):
    """Fill a network, on the CPU or the meta device, from its state dict.

    Raises:
        HamrError: for the first weight that is missing, not expected, or of another shape or kind.
    """
    expected = network.state_dict()
    for key in sorted(expected.keys() ^ state.keys()):
        where = "missing" if key in expected else "not expected"
        raise HamrError(f"{path}: weight {key[:100]} is {where}")
    filled = {}
    for key, value in expected.items():
        given = state[key]
        if value.shape != given.shape:
            raise HamrError(
                f"{path}: {key} has shape {tuple(given.shape)}, expected {tuple(value.shape)}"
            )
        if value.is_floating_point() != given.is_floating_point():
            raise HamrError(f"{path}: {key} holds {given.dtype}, expected {value.dtype}")
        filled[key] = given.to(value.dtype)
    meta = any(value.is_meta for value in expected.values())
    network.load_state_dict(filled, assign=meta)


def _flat(value, key):
    """Nested values as {"a.b.c": value}."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name in value for k, v in _flat(value[name], f"{key}.{name}").items()}
