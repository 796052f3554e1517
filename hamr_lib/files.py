"""Write files whole or not at all, read JSON and YAML, and name the commit."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import yaml

from hamr_lib.errors import HamrError, quoted

YAML_BYTES = 100_000  # more is no settings
CHECKOUT = Path(__file__).resolve().parent.parent
# Where data and results are: the checkout, or, for an installed package, the user's cache.
ROOT = (
    CHECKOUT
    if (CHECKOUT / "pyproject.toml").is_file()
    else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hamr"
)
ASIDE = re.compile(r"\..*\.(\d+)\.part(\.[^.]*)?")  # names of files that are being written


@contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place only if the block succeeds.

    The temporary name keeps the suffix, since many writers choose their format by it. A full disk
    and any other `OSError` is a `HamrError`.
    """
    path = Path(path)
    short = f"{path.stem[:40]}-{digest(path.name)}"  # a name may be as long as names can be
    aside = path.with_name(f".{short}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise HamrError(f"cannot write {path}: {error.strerror or error}") from error


def remove_leftovers(folder: str | Path) -> None:
    """Remove what `write_aside` left below a folder in processes that were killed."""
    for parent, _, names in os.walk(folder):
        for name in names:
            found = ASIDE.fullmatch(name)
            if found and not is_running(int(found[1])):
                with suppress(OSError):
                    Path(parent, name).unlink()


def is_running(process: int) -> bool:
    """Tell whether a process of this number exists on this machine."""
    if os.name != "posix":  # elsewhere asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # someone else's
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text, aside and renamed."""
    with write_aside(path) as aside:
        aside.write_text(text)


@contextmanager
def silent() -> Iterator[None]:
    """Discard what is written to the standard error, by compiled code too."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def write_json(path: Path, value) -> None:
    """Write `value` as indented JSON, aside and renamed."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_bytes(path: str | Path, most: int = -1) -> bytes:
    """Read a file, at most so many bytes of it; a `HamrError` if it is missing or unreadable."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(None, "it is no file")
        with open(path, "rb") as file:
            return file.read(most)
    except FileNotFoundError as error:
        raise HamrError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HamrError(f"cannot read {path}: {reason}") from error


def read_json(path: Path):
    """Read JSON; a missing or broken file is a `HamrError` that names it."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HamrError(f"{path} is not JSON: {error}") from error


def read_arrays(path: str | Path, keys: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file; one that is damaged or lacks a key is a `HamrError`."""
    content = io.BytesIO(read_bytes(path))
    try:
        arrays = dict(np.load(content, allow_pickle=False))
    except Exception as error:  # of zip, zlib, the header, memory: what a damaged file ends in
        raise HamrError(f"{path} is damaged: {str(error)[:200]}") from error
    if missing := sorted(set(keys) - arrays.keys()):
        raise HamrError(f"{path}: expected the array {missing[0]!r} in it")
    return arrays


def numbers(
    where: str, value: object, shape: tuple, kinds: str = "biuf", largest: float = np.inf
) -> np.ndarray:
    """Return a value from outside, if it is an array of finite numbers of this shape.

    A refusal names `where` it stands: the file, and its name there. In `shape`, None is any length
    but 0; `kinds` are those of NumPy's dtypes; `largest` is the absolute value of any number.
    """
    is_array = isinstance(value, np.ndarray)
    found, kind = (value.shape, value.dtype) if is_array else ((), type(value).__name__)
    fits = len(found) == len(shape) and all(
        (have > 0) if want is None else have == want
        for have, want in zip(found, shape, strict=True)
    )
    if not fits or kind.kind not in kinds:
        what = "numbers" if "f" in kinds else "whole numbers"
        raise HamrError(f"{where}: expected {what} of shape {shape}, got {kind} of shape {found}")
    if not (np.isfinite(value) & (np.abs(value) <= largest)).all():
        most = "" if largest == np.inf else f" up to {largest:g}"
        raise HamrError(f"{where}: expected finite numbers{most}")
    return np.asarray(value)


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which can name more values than memory holds, nor keys given twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias (*name), expected plain values")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if keys and max(keys.values()) > 1:
            raise yaml.YAMLError(f"it gives {quoted(keys.most_common(1)[0][0])} twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> object:
    """Read the values in a YAML file; an empty one holds none."""
    content = read_bytes(path, YAML_BYTES + 1)
    if len(content) > YAML_BYTES:
        raise HamrError(f"{path}: expected at most {YAML_BYTES} bytes")
    try:
        return yaml.load(content.decode(), _Loader) or {}
    # Tagged or impossible values (2020-13-45, !!int '') end in whatever error Python has for them.
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise HamrError(f"{path} is not YAML: {reason}") from error


def digest(*parts) -> str:
    """Hash JSON-like values to 12 hexadecimal digits: the identity of settings and data sets."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def commit() -> str:
    """Name this checkout's commit, with a '+' when tracked files differ; 'unknown' outside git."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=10", "--dirty=+"]
    try:
        found = subprocess.check_output(
            [*describe, "--exclude=*"], stderr=subprocess.DEVNULL, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.strip()
