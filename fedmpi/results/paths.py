"""Files that are replaced as a whole, and the names of what lies beside a results file."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: By how many bytes other names are longer than the results file's, from which they are made:
#: `NAME.checkpoint.NUMBER`, `.NAME.TOKEN.tmp`, `.NAME.lock`.
LONGEST_DECORATION = 16


def lock_beside(output: Path) -> Path:
    """Where the lock of a results file lies: beside the file itself, also where `output` is a link to it."""
    path = _real(output)
    return path.with_name(f".{path.name}.lock")


def checkpoint_beside(output: Path, number: int = 0) -> Path:
    """Where the last checkpoint of a results file lies, likewise; or one that is older by so many."""
    path = _real(output)
    return path.with_name(f"{path.name}.checkpoint{f'.{number}' if number else ''}")


def checkpoints_beside(output: Path) -> list[Path]:
    """The checkpoints of a results file that there are, the newest first."""
    newest = checkpoint_beside(output)
    pattern = re.compile(rf"{re.escape(newest.name)}\.([1-9][0-9]?)")
    older = {int(found[1]): path for path in _siblings(newest) if (found := pattern.fullmatch(path.name))}
    return [path for path in (newest, *(older[number] for number in sorted(older))) if path.exists()]


def temporary_beside(output: Path) -> Path:
    """A name beside a results file that no other process has: `.NAME.TOKEN.tmp`."""
    path = _real(output)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def temporaries_beside(output: Path) -> Iterator[Path]:
    """What has a name as from `temporary_beside`."""
    path = _real(output)
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    return (other for other in _siblings(path) if pattern.fullmatch(other.name))


@contextmanager
def replacing(path: Path, output: Path, confirm: Callable[[], object] | None = None) -> Iterator[IO[bytes]]:
    """A new file, which takes the place of `path` at the end of the block; it is unharmed if anything is raised.

    The new file has a name that no other has until then, and is flushed first: renamed unflushed, it could be empty
    after a crash of the node, and the old one gone. The rename is not flushed: after a crash the name stands for the
    old file or the new one, both complete.

    Args:
        output: the results file, after which the new file is named until then. Its mode is that of the old file, or
            else of this one; where there is neither it follows the umask.
        confirm: raises an error if the old file is no longer this process's to replace.

    Raises:
        OSError: it cannot be written (a full disk, a vanished folder).
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
        raise OSError(error.errno, error.strerror, str(path)) from None  # it may name the temporary file
    finally:
        temporary.unlink(missing_ok=True)


def kind(path: Path) -> str | None:
    """What a path leads to, in words, if no file can replace that; None: it is a file, or not there."""
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
    """A file that was not there: nothing that has the name is opened, nor a link followed."""
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    number = os.open(path, new, 0o666 if mode is None else 0o600)
    if mode is not None:
        os.fchmod(number, mode)
    return os.fdopen(number, "wb")


def _mode(*paths: Path) -> int | None:
    """Who may read and write the first of these files that there is."""
    return next((path.stat().st_mode & 0o777 for path in paths if path.exists()), None)


def _siblings(path: Path) -> list[Path]:
    try:
        return list(path.parent.iterdir())
    except OSError:
        return []


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
