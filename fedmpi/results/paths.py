"""Atomic replacement of files, and the names of the files next to a results file."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: Other names are made from the name of the results file, and are longer by at most this number of bytes:
#: `NAME.checkpoint.NUMBER`, `.NAME.TOKEN.tmp`, `.NAME.lock`.
LONGEST_DECORATION = 16


def lock_beside(output: Path) -> Path:
    """The path of the lock of a results file; if `output` is a link, the lock is next to the file it leads to."""
    path = _real(output)
    return path.with_name(f".{path.name}.lock")


def checkpoint_beside(output: Path, number: int = 0) -> Path:
    """The path of a checkpoint of a results file; if `output` is a link, it is next to the file it leads to.

    Args:
        output: the results file.
        number: 0 for the last checkpoint, 1 for the one before it, and so on.
    """
    path = _real(output)
    return path.with_name(f"{path.name}.checkpoint{f'.{number}' if number else ''}")


def checkpoints_beside(output: Path) -> list[Path]:
    """The existing checkpoints of a results file, the newest first."""
    newest = checkpoint_beside(output)
    pattern = re.compile(rf"{re.escape(newest.name)}\.([1-9][0-9]?)")
    older = {int(found[1]): path for path in _siblings(newest) if (found := pattern.fullmatch(path.name))}
    return [path for path in (newest, *(older[number] for number in sorted(older))) if path.exists()]


def temporary_beside(output: Path) -> Path:
    """A name for a temporary file next to a results file, `.NAME.TOKEN.tmp`; no other process uses it."""
    path = _real(output)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def temporaries_beside(output: Path) -> Iterator[Path]:
    """The files next to a results file whose names have the form of `temporary_beside`."""
    path = _real(output)
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    return (other for other in _siblings(path) if pattern.fullmatch(other.name))


@contextmanager
def replacing(path: Path, output: Path, confirm: Callable[[], object] | None = None) -> Iterator[IO[bytes]]:
    """Write a new file that replaces `path` at the end of the block. If an error is raised, `path` is unchanged.

    The new file has a temporary name until then, and is flushed to disk before it is renamed. Without the flush, a
    crash of the node could leave an empty file in place of the old one. The rename itself is not flushed. After a
    crash, `path` is therefore the old file or the new one, and both are complete.

    Args:
        path: the file to replace or create. The new file has the mode of the old one.
        output: the results file, from whose name the temporary name is made. If `path` does not exist yet, the new
            file has the mode of `output`; if neither exists, the umask decides.
        confirm: a function that is called before the rename; it raises an error if this process may no longer replace
            the file.

    Raises:
        OSError: the file cannot be written, for example because the disk is full or the folder was removed.
    """
    temporary = temporary_beside(output)
    try:
        with _created(temporary, _mode(path, output)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if confirm:
            confirm()
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # its own text may contain the temporary name
    finally:
        temporary.unlink(missing_ok=True)


def kind(path: Path) -> str | None:
    """A description of what a path leads to, if a file cannot replace it, such as `a folder`.

    The result is None if the path leads to a regular file or does not exist.
    """
    if _real(path).is_symlink():
        return "a link that leads back to itself"
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode))


def _created(path: Path, mode: int | None) -> IO[bytes]:
    """Create and open a new file; fails if the name exists, even as a link.

    Args:
        path: the file to create.
        mode: permission bits; None: the umask decides.
    """
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    number = os.open(path, new, 0o666 if mode is None else 0o600)
    if mode is not None:
        os.fchmod(number, mode)
    return os.fdopen(number, "wb")


def _mode(*paths: Path) -> int | None:
    """The permission bits of the first of these files that exists; None if none exists."""
    return next((path.stat().st_mode & 0o777 for path in paths if path.exists()), None)


def _siblings(path: Path) -> list[Path]:
    try:
        return list(path.parent.iterdir())
    except OSError:
        return []


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
