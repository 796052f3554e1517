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

    They move into `folder` when the block ends. Where the block or a move fails, none is left.

    Args:
        keep: real paths that are not overwritten; those of the files are added.
    """
    folder, paths, keep = Path(folder), [], set() if keep is None else keep
    hidden = {"prefix": f".hamr-{os.getpid()}-", "suffix": ".part", "dir": folder}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(**hidden, ignore_cleanup_errors=True) as aside:
            yield Path(aside), paths
            files = {folder / file.name: file for file in sorted(Path(aside).iterdir())}
            for path in files:
                if path.is_dir() or os.path.realpath(path) in keep:
                    raise HamrError(f"cannot write {shown(path)}: another file or folder is there")
            try:
                for path, file in files.items():
                    paths.append(path)
                    os.replace(file, path)
            except BaseException:
                for path in paths:
                    path.unlink(missing_ok=True)
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
