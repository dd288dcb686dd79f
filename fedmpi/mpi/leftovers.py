"""Files that killed jobs have left in /dev/shm, and how they are recognised.

An MPI library keeps files there while a job runs, and removes them at its end. Files of a killed job remain. So one
rank of each node writes a list of these files, next to them, and keeps the list locked. The kernel releases the lock
when that process ends, for any reason and in any container. So an unlocked list belongs to a job that no longer
exists.

Files without a list are recognised by their names and by /proc, which shows the files in use. They are of other
programs, or of a job that was killed in the moment in which MPI started or created shared memory. This is done only
on request (`python -m fedmpi.doctor --clean`), and not if /proc does not show all processes that may use the same
memory.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
#: How MPICH with UCX, and Open MPI, call their files.
NAMES = re.compile(
    r"mpich_(shm|vci)_[0-9a-f]+_\d+|mpich_shar_tmp\w{6}|ucx_shm_posix_[0-9a-f]+"
    r"|(vader|sm)_segment\.[\w.-]+\.\d+\.[0-9a-f]+\.\d+|osc_(sm|rdma)\.[\w.-]+"
)
#: The number that Linux gives to the namespace of process numbers from which all processes are seen.
ALL_PROCESSES = 0xEFFFFFFC
LONGEST_LIST = 1 << 16
_PREFIX = "fedmpi-job"

#: A file: the device and number by which it is known whatever its name, and its name.
File = tuple[int, int, str]


class CannotTell(Exception):
    """It cannot be determined which files are in use; the message says why."""


def mine() -> list[File]:
    """The named files of shared memory that this process has mapped."""
    used = _used_by(Path("/proc/self"))
    return [file for name in _names() if (file := _file(MEMORY / name)) and file[:2] in used]


def keep_list(files: Iterable[File]) -> None:
    """Write the list of files of this node's ranks, and keep it locked until this process ends.

    Skipped if not possible.
    """
    with suppress(OSError):
        # Locked before it has the name that `remove` looks for.
        path = MEMORY / f"{_PREFIX}-{os.getuid()}-{os.getpid()}-{os.urandom(4).hex()}"
        unfinished = path.with_name(f".{path.name}")
        handle = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(handle, "".join(f"{device} {number} {name}\n" for device, number, name in files).encode())
            unfinished.rename(path)
        except OSError:
            unfinished.unlink()
            raise
        owner = os.getpid()
        atexit.register(lambda: path.unlink(missing_ok=True) if os.getpid() == owner else None)


def remove_listed() -> int:
    """Remove files in the lists of this user's killed jobs; returns the removed bytes."""
    removed = 0
    for path in MEMORY.glob(f"{_PREFIX}-{os.getuid()}-*"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not _is_own(os.fstat(handle)):
                    continue
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                removed += sum(map(_remove, _read_list(os.read(handle, LONGEST_LIST))))
                path.unlink()
            finally:
                os.close(handle)
    return removed


def remove_unlisted() -> int:
    """Remove this user's files that have names as MPI libraries give them and that no process uses.

    Returns: The removed bytes.

    Raises:
        CannotTell: there are such files, but processes that are not visible may use them.
    """
    candidates = [file for name in _names() if NAMES.fullmatch(name) and (file := _file(MEMORY / name))]
    if not candidates:
        return 0
    if os.stat("/proc/self/ns/pid").st_ino != ALL_PROCESSES:
        raise CannotTell("in this container not all processes that may use them are visible")
    used: set[tuple[int, int]] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if os.getuid() in (0, process.stat().st_uid):
                used |= _used_by(process)
    return sum(_remove(file) for file in candidates if file[:2] not in used)


def _names() -> list[str]:
    try:
        return os.listdir(MEMORY)
    except OSError:
        return []


def _file(path: Path) -> File | None:
    """This user's regular file of this name; None: there is none."""
    with suppress(OSError):
        if _is_own(about := path.lstat()):
            return about.st_dev, about.st_ino, path.name
    return None


def _is_own(about: os.stat_result) -> bool:
    return stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid()


def _used_by(process: Path) -> set[tuple[int, int]]:
    """Device and number of each file that a process has mapped or open.

    Processes that hide this, such as ssh-agent, are skipped: they cannot be ranks of an MPI job.
    """
    found = set()
    with suppress(PermissionError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            _, _, _, device, number, *_ = line.split(maxsplit=5)
            major, minor = (int(part, 16) for part in device.split(":"))
            found.add((os.makedev(major, minor), int(number)))
        for opened in (process / "fd").iterdir():
            with suppress(OSError):
                about = opened.stat()
                found.add((about.st_dev, about.st_ino))
    return found


def _read_list(content: bytes) -> Iterator[File]:
    for line in content.decode(errors="replace").splitlines():
        device, _, rest = line.partition(" ")
        number, _, name = rest.partition(" ")
        if device.isdecimal() and number.isdecimal() and "/" not in name:
            yield int(device), int(number), name


def _remove(file: File) -> int:
    """Remove a file if it is still the same file; returns its size."""
    path = MEMORY / file[2]
    with suppress(OSError):
        if _file(path) == file:
            size = path.lstat().st_size
            path.unlink()
            return size
    return 0
