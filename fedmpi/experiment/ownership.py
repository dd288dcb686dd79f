"""Who may write a results file and its checkpoints: one run at a time.

The lock of a file is a folder beside it, `.NAME.lock`, and in it lies one file, the record of the owner. A run makes
such a folder under another name and renames it. That fails where there is a lock, because a folder with something in
it cannot be replaced; and it is one call, so nobody ever sees a lock without its record. The record of an owner that
is gone is removed by its name, which no other record has. So of two runs that both find it, neither can remove what
the other has put there since: one of the two renames comes first, and the other fails.

On NFS (any version), Lustre and the like, the server does `rename`, `unlink` and `rmdir`, and does each as a whole.
`flock`, which the kernel gives back when a process dies, is missing on some of these, and counts on one node only on
others. A file that is created with O_EXCL, or by `link`, is as safe until its owner is gone. But then it has to be
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

#: How often, and after how many seconds, to try again where a lock is just being given back.
TRIES, PAUSE = 100, 0.05


class InUse(BadInput):
    """Another run has the lock."""


class LockLost(OSError):
    """Another run has taken the lock over, because this one has shown no sign of life for long."""


class Lock:
    """The lock of an output, which this process may have.

    While it has it, its record is touched now and then, so that runs on other nodes see that it lives: at each write
    (`confirm`), and by a thread in between, however long a round takes.
    """

    def __init__(self) -> None:
        self._record: Path | None = None
        self._folders: list[Path] = []
        self._is_over = threading.Event()

    def take(self, output: Path) -> Owner | None:
        """Make an output this process's own, and remove what was left beside it by whoever was killed.

        Missing folders are made.

        Returns:
            The owner that was gone and from which the lock was taken over; None: there was none.

        Raises:
            InUse: another run has it.
            OSError: there can be no lock, such as in a folder that cannot be written.
        """
        lock, made = lock_beside(output), temporary_beside(output)
        self._folders = [folder for folder in lock.parents if not folder.exists()]
        self._record = lock / secrets.token_hex(8)  # now, so that nothing is left of it whatever comes between
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
        """Make sure that this process still has the lock, if it has taken one, and show that it lives.

        Raises:
            LockLost: it has not.
        """
        if self._record is None:
            return
        try:
            os.utime(self._record)
        except FileNotFoundError:
            reason = "is gone: another run has taken the results file over, or somebody has removed the lock"
            raise LockLost(f"{self._record.parent}: {reason}") from None

    def release(self) -> None:
        """Give the lock back, if this process has it; with it go folders that were made and that are empty."""
        self._is_over.set()
        record, self._record = self._record, None
        if record:
            for remove in (record.unlink, record.parent.rmdir, *(folder.rmdir for folder in self._folders)):
                with suppress(OSError):
                    remove()


def claim(given: Path, lock: Lock, is_made_up: bool = False, replaces: bool = False) -> Path:
    """Make an output this run's own, at rank 0, before anything there is read or written.

    Args:
        given: the results file.
        lock: which is taken.
        is_made_up: whether nobody gave this name, so that it may become another one that no other run has.
        replaces: whether there may be such a file, or a checkpoint of one.

    Returns:
        The results file, perhaps of another name.

    Raises:
        BadInput: another run has it; it exists and may not be replaced; or it cannot be written.
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
                raise BadInput(f"{output}: {checkpoint}, where its checkpoint belongs, is {other}")
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
    """Create a folder, and those that it is in; another run may be removing them, as they are empty."""
    for _ in range(TRIES):
        with suppress(FileExistsError, FileNotFoundError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            break
    folder.mkdir()


def _put(made: Path, lock: Path, name: str, output: Path) -> Owner | None:
    """Rename the folder `made`, with the record of this name in it, to the lock.

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
    raise InUse(f"{output}: is in use by other runs, one after the other")


def _evict(lock: Path, mine: Path, output: Path) -> Owner | None:
    """Remove from a lock the records of owners that are gone.

    Times are compared with that of a record that is touched just now, and not with this node's clock, which may
    differ from that of the file system's server.

    Args:
        mine: a record of this process's, in whatever folder on the same file system.

    Returns:
        One of these owners; None: there was none.

    Raises:
        InUse: there is an owner that is not gone.
        OSError: a record cannot be read or removed.
    """
    gone: Owner | None = None
    for record in _records(lock):
        try:
            with record.open() as file:
                text, beat = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:  # it has just been given back
            continue
        os.utime(mine)
        silence = mine.stat().st_mtime - beat
        owner = Owner.parse(text)
        if not owner.is_gone(silence):
            heard = f", last heard of {max(silence, 0):.0f} s ago (gone after {SILENCE:.0f} s)"
            raise InUse(f"{output}: is in use by {owner}{'' if owner.is_near else heard}; its lock is {lock}")
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
