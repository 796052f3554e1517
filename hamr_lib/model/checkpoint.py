"""Checkpoints: a trained network and where it came from, in a file that can run no code.

A checkpoint holds `state_dict`, tensors by name, and `hamr`, the plain values of `describe`.
`last.ckpt` also holds `run`, from which a training resumes. The hand layer's arrays are left out:
MANO's may not be passed on, and both hands are rebuilt where the checkpoint is read. A fingerprint
of the hand makes sure that it is the same one.
"""

import zipfile
from pathlib import Path

import torch

from hamr_lib.config import Settings, from_dict
from hamr_lib.errors import HamrError, quoted
from hamr_lib.files import ROOT, commit, write_aside
from hamr_lib.hand.pickles import check_keys
from hamr_lib.joints import NUM_JOINTS

FORMAT = 2  # 1: other names of settings and weights
# The plain values in `hamr`, and their types.
DESCRIPTION = {
    "task": str, "settings": dict, "data_digest": str, "seed": int, "commit": str, "step": int,
    "metrics": dict, "hand": str,
}  # fmt: skip
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
# Settings that decide where a run computes, not what.
MAY_DIFFER = ("train.devices", "train.nodes", "train.workers")
RELEASE_MB = 40
SHIPPED = Path(__file__).with_name("pretrained.pt")  # the network that `study publish` ships


def describe(settings, data_digest, hand, step, metrics, task="hamr") -> dict:
    """Make the `hamr` part of a checkpoint. `task` names a `training.task.Task`."""
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


def fingerprint(hand: torch.nn.Module) -> torch.Tensor:
    """Compute the joints of a fixed bent hand, which any change of the layer moves: (21, 3) m."""
    with torch.no_grad(), torch.device(next(iter(hand.buffers())).device):
        betas = torch.tensor([[1.0, -1.0]]).repeat(1, 5)
        pose = torch.linspace(-1, 1, hand.pose_components)[None]
        return hand(betas, torch.zeros(1, 3), pose).joints[0].float().cpu()


def save(path: Path, content: dict):
    """Write a checkpoint aside and rename it: a reader finds the old one or the new one."""
    with write_aside(path) as aside:
        try:
            torch.save(content, aside)
        except RuntimeError as error:  # how torch tells of a full disk
            raise OSError(None, "torch could not write it; is the disk full?") from error


def save_model(path: Path, network: torch.nn.Module, description: dict):
    """Write a checkpoint that holds the network and no optimiser."""
    save(path, {"hamr": description, "state_dict": network.state_dict()})


def save_release(source: Path, path: Path):
    """Write the network of a checkpoint in half precision, to be passed on, at most 40 MB.

    Vectors stay in single precision: a batch normalisation's variance may not fit a half.
    """
    checkpoint = read(source)
    state = checkpoint["state_dict"]
    for key, value in state.items():
        state[key] = value.half() if value.is_floating_point() and value.ndim > 1 else value
        if not torch.isfinite(state[key]).all():
            raise HamrError(f"{source}: {key} does not fit half precision")
    size = sum(value.nbytes for value in state.values()) / 1e6
    if size > RELEASE_MB:
        raise HamrError(f"{source}: {size:.0f} MB in half precision, expected at most {RELEASE_MB}")
    save(path, {"hamr": checkpoint["hamr"], "state_dict": state})


def read(path: Path | str, task: str | None = None) -> dict:
    """Read a checkpoint, of this `training.task.Task` or, for None, of any.

    Raises:
        HamrError: for a missing, broken or foreign file, and values of a wrong type. Whether the
            weights fit a network is left to `load_state`.
    """
    if not Path(path).is_file():
        raise HamrError(f"{path} is missing: expected a checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch would also take older formats and inflate
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("compressed")
                if entry.filename.endswith("/data.pkl"):
                    check_keys(archive.read(entry))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a broken file can fail in any of a dozen ways; torch's advice is not ours
        raise HamrError(
            f"{path} is no readable checkpoint: it is cut short, damaged, or holds more than "
            "tensors and plain values"
        ) from None
    about = content.get("hamr") if isinstance(content, dict) else None
    found = about.get("format") if isinstance(about, dict) else None
    if type(found) is not int or found != FORMAT:
        raise HamrError(
            f"{path} is no checkpoint of HAMR: expected format {FORMAT}, got {quoted(found)}; "
            "of an earlier format, train anew or take the network that is shipped"
        )
    for key, kind in DESCRIPTION.items():
        if type(about.get(key)) is not kind:
            got = quoted(about.get(key))
            raise HamrError(f"{path}: hamr.{key}: expected {kind.__name__}, got {got}")
    if task not in (None, about["task"]):
        of = quoted(about["task"])
        raise HamrError(f"{path} holds a network of {of}, expected one of {task!r}")
    state, joints = content.get("state_dict"), about.get("hand_fingerprint")
    if not isinstance(state, dict) or not state:
        raise HamrError(f"{path}: state_dict: expected weights by name, got {quoted(state)}")
    for key, value in [("hamr.hand_fingerprint", joints), *state.items()]:
        if not (isinstance(key, str) and _is_plain(value)):
            got = getattr(value, "dtype", type(value).__name__)
            raise HamrError(
                f"{path}: {quoted(key)}: expected a tensor of finite numbers, got {got}"
            )
    if joints.shape != (NUM_JOINTS, 3):
        shape = tuple(joints.shape)
        raise HamrError(f"{path}: hamr.hand_fingerprint: expected shape (21, 3), got {shape}")
    return content


def _is_plain(value):
    """Tell whether a value is a tensor of finite numbers that the file holds in full."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in NUMBERS
        and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
        and bool(torch.isfinite(value).all())
    )


def check_same_run(path: Path, description: dict, settings: Settings, data_digest: str):
    """Refuse to go on from a checkpoint of other settings or data, naming the first difference."""
    stored = stored_settings(path, description)  # with the defaults of settings that are newer
    old, new = stored.to_dict(), settings.to_dict()
    pairs = [
        (f"{section}.{name}", old[section][name], value)
        for section in ("hand", "model", "losses", "augment", "train")
        for name, value in new[section].items()
    ]
    for name, was, value in [*pairs, ("data", description["data_digest"], data_digest)]:
        if was != value and name not in MAY_DIFFER:
            raise HamrError(
                f"{path} was trained with {name}={was!r}, but this run asks for {name}={value!r}: "
                "use the same, or another folder"
            )


def check_hand(path: Path | str, description: dict, hand: torch.nn.Module):
    """Refuse a hand layer other than the one a checkpoint was trained with."""
    name, joints = description["hand"], description["hand_fingerprint"]
    if name != hand.name:
        raise HamrError(f"{path} was trained with the {name!r} hand, not {hand.name!r}")
    apart = (joints - fingerprint(hand)).norm(dim=-1).max().item()
    if not apart < 1e-3:
        raise HamrError(
            f"{path} was trained with another {name!r} hand: a test pose differs by "
            f"{1000 * apart:.1f} mm, expected less than 1 mm"
        )


def stored_settings(path: Path | str, description: dict) -> Settings:
    """Read the `Settings` in a checkpoint; which further runs its study held does not matter."""
    stored = {k: v for k, v in description["settings"].items() if k != "study"}
    return from_dict(stored, source=f"{path}: settings")


def pretrained() -> Path:
    """Locate the network that is taken where none is named.

    It is the reader's own latest, but never one of the `smoke` profile; then the one shipped.
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
    """Fill a network, on the CPU or the meta device, from a state dict that `read` has checked.

    Raises:
        HamrError: for weights that are missing, not expected, or of another shape.
    """
    own = network.state_dict()
    state = {key: value.to(own[key].dtype) if key in own else value for key, value in state.items()}
    try:
        network.load_state_dict(state, assign=any(value.is_meta for value in own.values()))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise HamrError(f"{path}: expected the weights of this network: {reason}") from None
