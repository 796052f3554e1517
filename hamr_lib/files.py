"""Writing files so that nobody ever sees half of one, and saying which commit wrote them."""

import hashlib
import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

from hamr_lib.errors import HamrError

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def write_aside(path):
    """Yield a temporary path beside `path`; rename it into place only if the block succeeds.

    The temporary name keeps the suffix, since many writers choose their format by it.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise HamrError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path, value):
    """Write `value` as indented JSON, aside and renamed."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path):
    """Read JSON; a missing or broken file is a `HamrError` that names it."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise HamrError(f"{path} is missing") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise HamrError(f"{path} is not JSON: {error}") from error


def digest(*parts):
    """A short stable hash of JSON-like values: the identity of settings and data sets."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def commit():
    """This checkout's commit, with a '+' when tracked files differ; 'unknown' outside git."""

    def git(*args):
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
