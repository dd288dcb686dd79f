"""Locks of results files: one run at a time may write a results file and its checkpoints.

The lock of a file is a folder next to it, `.NAME.lock`, which contains one file, the record of the owner. A run makes
such a folder under another name and renames it. This fails if there is a lock, because a folder that is not empty
cannot be replaced. It is one call, so a lock without its record is never visible. The record of an owner that no
longer exists is removed by its unique name. So if two runs find it, neither can remove the other's new record: one
rename comes first, and the other fails.

On NFS (any version), Lustre and similar file systems, `rename`, `unlink` and `rmdir` are atomic operations of the
server. `flock`, which the kernel releases when a process ends, is missing on some of these, and works only within a
node on others. A file created with O_EXCL or by `link` is as safe while its owner exists. But afterwards it must be
removed by a name that the next owner's lock has as well.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from contextlib import suppress
from errno import EEXIST, ENOTEMPTY
from itertools import count
from pathlib import Path

from fedmpi.errors import BadInput
from fedmpi.options import check_length
from fedmpi.results.owner import BEAT, SILENCE, Owner
from fedmpi.results.paths import (
    LONGEST_DECORATION,
    checkpoint_beside,
    checkpoints_beside,
    kind,
    lock_beside,
    temporaries_beside,
    temporary_beside,
)
from fedmpi.results.writer import check_writable
from fedmpi.streams import say

#: Number of attempts, and seconds between them, while a lock is being released.
TRIES, PAUSE = 100, 0.05
#: What messages of `InUse` say.
IN_USE = "is in use by"


class InUse(BadInput):
    """Another run has the lock."""


class LockLost(OSError):
    """Another run has taken the lock over, because this run has not updated it for a long time."""


class Lock:
    """The lock of an output. This process may or may not hold it.

    While the process holds it, the record's time is updated regularly, so that runs on other nodes see that the
    process exists: at each write (`confirm`), and by a thread during long rounds.
    """

    def __init__(self) -> None:
        self._record: Path | None = None
        self._folders: list[Path] = []
        self._is_over = threading.Event()

    def take(self, output: Path) -> Owner | None:
        """Lock an output for this process, and remove files that killed runs have left next to it.

        Missing folders are made.

        Returns: The former owner from which the lock was taken over; None: there was none.

        Raises:
            InUse: another run holds it.
            OSError: a lock cannot be made, for example because the folder is not writable.
        """
        lock, made = lock_beside(output), temporary_beside(output)
        self._folders = [folder for folder in lock.parents if not folder.exists()]
        self._record = lock / secrets.token_hex(8)  # now, so that it is removed in any case
        try:
            _make(made)
            (made / self._record.name).write_text(Owner.here().text)
            gone = _put(made, lock, self._record.name, output)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            self.release()
            raise
        self._is_over = threading.Event()
        threading.Thread(target=_beat, args=(self._record, self._is_over), daemon=True).start()
        for left in temporaries_beside(output):
            with suppress(InUse, OSError):
                if left.is_symlink() or not left.is_dir():
                    left.unlink()
                elif _evict(left, self._record, output):  # of a run that waited for this lock
                    left.rmdir()
        return gone

    def confirm(self) -> None:
        """Check that this process still holds the lock, if it has taken one, and update its time.

        Raises:
            LockLost: it does not.
        """
        if self._record is None:
            return
        try:
            os.utime(self._record)
        except FileNotFoundError:
            reason = "does not exist any more: another run has taken the results file over, or the lock was removed"
            raise LockLost(f"{self._record.parent}: {reason}") from None

    def release(self) -> None:
        """Release the lock, if this process holds it, and remove empty folders that were made for it."""
        self._is_over.set()
        record, self._record = self._record, None
        if record:
            for remove in (record.unlink, record.parent.rmdir, *(folder.rmdir for folder in self._folders)):
                with suppress(OSError):
                    remove()


def claim(given: Path, lock: Lock, is_made_up: bool = False, replaces: bool = False) -> Path:
    """Lock an output, at rank 0, before anything there is read or written.

    Args:
        given: the results file.
        lock: the lock that is taken.
        is_made_up: whether the name was not given by the user, so that it may be changed to a free one.
        replaces: whether the file, or a checkpoint of it, may exist.

    Returns: The path of the results file, which may have been changed.

    Raises:
        BadInput: another run has locked it; it exists and may not be replaced; or it cannot be written.
    """
    names = (given if number == 1 else given.with_stem(f"{given.stem}-{number}") for number in count(1))
    while True:
        output = next(names)
        try:
            check_length(output, room=LONGEST_DECORATION)
        except BadInput as error:
            raise BadInput(f"{error}, because its checkpoint has a longer one", "--output") from None
        try:
            check_writable(output, overwrite=True)
            checkpoint = checkpoint_beside(output)
            if other := kind(checkpoint):
                raise BadInput(f"{output}: {checkpoint}, the place of its checkpoint, is {other}")
            gone = lock.take(output)
        except InUse as error:
            if is_made_up:
                continue
            raise BadInput(f"= {error}", "--output") from None
        except BadInput as error:
            raise BadInput(f"= {error}", "--output") from None
        except OSError as error:
            reason = f"cannot be locked by {lock_beside(output)} ({error.strerror or error})"
            raise BadInput(f"= {output}: {reason}", "--output") from None
        there = [path for path in (output, *checkpoints_beside(output)) if path.exists()]
        if replaces or not there:
            if gone:
                say(f"{output}: was in use by {gone}, which no longer exists; this run takes over")
            return output
        lock.release()
        if not is_made_up:
            alone = "" if output in there else " without its results file"
            raise BadInput(f"= {there[0]}: exists already{alone}; give --overwrite to replace it", "--output")


def _make(folder: Path) -> None:
    """Create a folder and its parents, which another run may be removing at the same time if they are empty."""
    for _ in range(TRIES):
        with suppress(FileExistsError, FileNotFoundError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            break
    folder.mkdir()


def _put(made: Path, lock: Path, name: str, output: Path) -> Owner | None:
    """Rename the folder `made`, which contains the record of this name, to the lock.

    Returns and raises:
        as `Lock.take`.
    """
    gone: Owner | None = None
    for _ in range(TRIES):
        with suppress(OSError):
            lock.rmdir()  # which has been left empty; some file systems replace not even such a folder
        try:
            made.rename(lock)
            return gone
        except OSError as error:
            if error.errno not in (EEXIST, ENOTEMPTY):
                raise
        found = _evict(lock, made / name, output)
        if found is None:
            time.sleep(PAUSE)
        gone = found or gone
    raise InUse(f"{output}: {IN_USE} other runs")


def _evict(lock: Path, mine: Path, output: Path) -> Owner | None:
    """Remove records of owners that no longer exist from a lock.

    Times are compared with that of a newly updated record, not with this node's clock, which may differ from the
    clock of the file server.

    Args:
        mine: a record of this process, in any folder on the same file system.

    Returns: One of the removed owners; None: there was none.

    Raises:
        InUse: the owner exists.
        OSError: a record cannot be read or removed.
    """
    gone: Owner | None = None
    for record in _records(lock):
        try:
            with record.open() as file:
                text, beat = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:  # it has just been released
            continue
        os.utime(mine)
        silence = mine.stat().st_mtime - beat
        owner = Owner.parse(text)
        if not owner.is_gone(silence):
            heard = f", last sign of life {max(silence, 0):.0f} s ago (taken over after {SILENCE:.0f} s)"
            raise InUse(f"{output}: {IN_USE} {owner}{'' if owner.is_near else heard}; its lock is {lock}")
        record.unlink(missing_ok=True)
        gone = owner
    return gone


def _records(lock: Path) -> list[Path]:
    try:
        return [path for path in lock.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name)]
    except FileNotFoundError:
        return []


def _beat(record: Path, is_over: threading.Event) -> None:
    while not is_over.wait(BEAT):
        with suppress(OSError):
            os.utime(record)
