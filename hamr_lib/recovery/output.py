"""Names as they are shown, and files of a result that are all there in the end, or none."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hamr_lib.errors import HamrError
from hamr_lib.files import is_running


def shown(path: str | Path) -> str:
    """Write a path as text that any stream can take, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="backslashreplace")


def reason(error: Exception) -> str:
    """Say what an error is about in at most 200 characters, without the name of a file."""
    return getattr(error, "strerror", None) or str(error)[:200] or type(error).__name__


@contextmanager
def whole_set(folder: str | Path, keep: set[str] | None = None) -> Iterator[tuple[Path, list]]:
    """Yield a hidden folder for files, and a list that their paths are added to in the end.

    They move into `folder` when the block ends. Where the block or a move fails or is interrupted,
    `folder` is as it was.

    Args:
        keep: real paths that are not overwritten; those of the files are added.

    Raises:
        HamrError: for what cannot be written, and a path of `keep`.
    """
    folder, paths, keep = Path(folder), [], set() if keep is None else keep
    hidden = {"prefix": f".hamr-{os.getpid()}-", "suffix": ".part", "dir": folder}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(**hidden, ignore_cleanup_errors=True) as aside:
            new, old = Path(aside, "new"), Path(aside, "old")
            new.mkdir()
            yield new, paths
            old.mkdir()
            paths += [folder / name for name in sorted(os.listdir(new))]
            for path in paths:
                if path.is_dir() or os.path.realpath(path) in keep:
                    raise HamrError(f"cannot write {shown(path)}: another file or folder is there")
            try:
                for path in paths:
                    if os.path.lexists(path):
                        os.replace(path, old / path.name)
                    os.replace(new / path.name, path)
            except BaseException:
                for path in paths:
                    if os.path.lexists(old / path.name):
                        os.replace(old / path.name, path)
                    elif not os.path.lexists(new / path.name):
                        path.unlink()
                raise
            keep.update(map(os.path.realpath, paths))
    except OSError as error:
        raise HamrError(f"cannot write into {shown(folder)}: {reason(error)}") from error


def check_folder(folder: Path) -> None:
    """Make a folder, check that it can be written into, and remove what killed runs left."""
    with whole_set(folder):
        pass
    for left in folder.glob(".hamr-*-*.part"):
        owner = left.name.split("-")[1]
        if owner.isdigit() and not is_running(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def plain_name(name: str) -> str:
    """Return the start of files' names; a `HamrError` if it leads to another folder."""
    if not isinstance(name, str) or not name or set(name) & set("/\\\0") or name in (".", ".."):
        raise HamrError(f"stem={name!r}: expected a name without a folder")
    return name
