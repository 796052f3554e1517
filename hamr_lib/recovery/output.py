"""Writing the files of a result so that all of them are there in the end, or none."""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from hamr_lib.errors import HamrError
from hamr_lib.files import is_running


@contextlib.contextmanager
def whole_set(folder):
    """Yield a hidden folder for files, and a list that their paths are added to in the end.

    They move into `folder` when the block ends. Where the block or a move fails, none is left.
    """
    folder, paths = Path(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".hamr-{os.getpid()}-", suffix=".part", dir=folder))
        try:
            yield aside, paths
            targets = {path: folder / path.name for path in sorted(aside.iterdir())}
            for target in targets.values():
                if target.is_dir():
                    raise HamrError(f"cannot write {target}: it is a folder")
            try:
                for path, target in targets.items():
                    paths.append(target)
                    os.replace(path, target)
            except BaseException:
                for target in paths:
                    target.unlink(missing_ok=True)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise HamrError(f"cannot write into {shown(folder)}: {error.strerror or error}") from error


def check_folder(folder):
    """Make a folder, find out whether it can be written into, and remove what killed runs left.

    Raises:
        HamrError: naming the folder and what is wrong.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for left in folder.glob(".hamr-*.part"):
            owner = re.match(r"\.hamr-(\d+)-", left.name)
            if owner and not is_running(int(owner[1])):
                shutil.rmtree(left, ignore_errors=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HamrError(f"cannot write into {shown(folder)}: {reason}") from error


def plain_name(argument, name):
    """Refuse a name that leads to another folder.

    Raises:
        HamrError: naming the argument.
    """
    if not isinstance(name, str) or not name or set(name) & set("/\\\0") or name in (".", ".."):
        raise HamrError(f"{argument}={name!r}: expected a name without a folder")


def shown(path):
    """A path as text that any stream can write, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="backslashreplace")
