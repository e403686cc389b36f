"""Write files whole or not at all, and find out that a path cannot be written before the work, not after."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return `path` if a file can be written there, by creating and removing one beside it.

    An existing file may be replaced and is left as it is. Raises OSError (FileNotFoundError,
    NotADirectoryError, IsADirectoryError, PermissionError) that says what is wrong.
    """
    path = Path(path)
    parent = path.parent
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a directory")
    if not parent.exists():
        raise FileNotFoundError(f"cannot write {path}: there is no directory {parent}")
    if not parent.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {parent} is not a directory")
    try:
        descriptor, probe = tempfile.mkstemp(prefix=f".{path.name}.", dir=parent)
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error.strerror}") from error
    os.close(descriptor)
    os.unlink(probe)
    return path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an exception.

    The temporary path has the same suffix. A reader sees the old file or the new one, never a part,
    also after a crash of the machine.
    """
    path = check_writable(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)  # mkstemp makes files that only their owner can read
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
