"""Prepared arrays: a data set is decoded once, kept next to its published files, and then mapped into memory.

    ROOT/FashionMNIST/fedmpi-1/train_x.npy, train_y.npy, test_x.npy, test_y.npy, manifest.json

The folder appears at once and complete, by a rename, so any number of jobs may prepare it at the same time. The
manifest holds size, time and SHA-256 of the arrays and of the published files. For folders of files, and every folder
below them, it holds the time and the SHA-256 of the names in them. Opening compares only sizes and times. If a time
differs (a copied folder), the checksum decides. The manifest also holds the data set's class and options, and
checksums of the user's code, if the class is the user's. The arrays are prepared again if one of them differs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.data.base import Arrays, Dataset, Progress, check_arrays
from fedmpi.described import settings_of
from fedmpi.errors import BadInput, named
from fedmpi.options import options_of
from fedmpi.randomness import globals_kept, key, seed_globals
from fedmpi.tasks import Task
from fedmpi.user_code import user_code

OURS = "fedmpi-"  # beginning of the names of everything that is kept next to published files
FOLDER = f"{OURS}1"  # the number of the format
_MANIFEST = "manifest.json"
_LOCKED: set[Path] = set()  # by this process
#: Files that systems and programs leave in folders, in lower case. Names that begin with a dot are hidden anyway.
_STRAYS = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"),
    *("$recycle.bin", "system volume information"),
}


class DamagedArrays(BadInput):
    """A prepared file has changed since it was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged ({reason}): delete {path.parent}, and it is prepared again")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[DamagedArrays], tuple[Path, str]]:
        return type(self), (self.path, self.reason)  # errors travel between ranks


class UnreadableArrays(BadInput):
    """A prepared file exists but cannot be read; often it belongs to another user."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read ({reason}): have {_owner(path.parent)} allow it (chmod -R a+rX {path.parent})"
        )
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableArrays], tuple[Path, str]]:
        return type(self), (self.path, self.reason)


def load(dataset: Dataset, progress: Progress, task: Task | None = None) -> Arrays:
    """The arrays of a data set: mapped if they are or can be prepared (`on_disk`), else in memory.

    Damaged arrays are prepared again. Arrays that cannot be read are not touched, and the data set is decoded in
    memory. Both need the published files. Let one process call this before the others call `open_prepared`, which
    never decodes.

    Args:
        task: what the targets are for; None: the data set's own task.

    Raises:
        BadInput: a published file is missing or damaged, or `read` returned invalid arrays.
        DamagedArrays: a prepared file is damaged, and the published files are missing.
        UnreadableArrays: a prepared file cannot be read, nor the published files.
    """
    arrays = _loaded(dataset, progress, task)
    for line in arrays.remarks:
        progress(line)
    return arrays


def _loaded(dataset: Dataset, progress: Progress, task: Task | None) -> Arrays:
    with suppress(DamagedArrays, UnreadableArrays):
        if (arrays := open_prepared(dataset)) is not None:
            return arrays
    with _alone(dataset.folder()):
        try:
            if (arrays := open_prepared(dataset)) is not None:
                return arrays  # another job has prepared them in the meantime
        except DamagedArrays as damage:
            if not _has_sources(dataset):
                raise
            progress(f"{damage.path} is damaged ({damage.reason}): preparing it again")
        except UnreadableArrays as error:
            if not _has_sources(dataset):
                raise
            progress(f"{error}; until then the arrays are decoded into memory, for this job only")
            stored, remarks = _decode(dataset, progress, task)
            return Arrays.of_stored(stored, remarks=remarks)
        return _prepare(dataset, progress, task)


def open_prepared(dataset: Dataset) -> Arrays | None:
    """Map the prepared arrays, copy-on-write; None: there are none, or the published files have changed.

    Raises:
        DamagedArrays: a file is missing, truncated, or has changed since it was written.
        UnreadableArrays: a file cannot be read.
        BadInput: they were made by other code, and the published files are missing.
    """
    return _open(dataset, full=False)


def verify(dataset: Dataset) -> None:
    """Compare the checksum of every prepared array, and of every published file that exists.

    Raises:
        DamagedArrays: an array has changed since it was written.
        UnreadableArrays: a file cannot be read.
        BadInput: no arrays are prepared, or the published files have changed since.
    """
    if _open(dataset, full=True) is None:
        raise BadInput(
            f"data set {type(dataset).__name__}: {dataset.folder()} has no prepared arrays of its current"
            " files: run `python -m fedmpi.data prepare`"
        )


def place(dataset: Dataset) -> Path | None:
    """The folder of a data set's prepared arrays, whether it exists or not; None: nothing is prepared.

    The user's classes have folders of their own, for each choice of options, because their `folder` need not depend
    on them. Then jobs with other options do not replace each other's arrays.
    """
    folder = dataset.folder()
    if folder is None or _is_ours(dataset):
        return folder and folder / FOLDER
    origin = _origin(dataset)
    chosen = json.dumps([origin["dataset"], origin["options"]]).encode()
    return folder / f"{FOLDER}-{type(dataset).__name__}-{hashlib.sha256(chosen).hexdigest()[:12]}"


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name, without hidden files and files that systems or this module leave there."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not _is_hidden(entry.name)]
    return sorted(shown, key=lambda entry: entry.name)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", OURS)) or name.lower() in _STRAYS


def folders_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder and all visible ones below it, by name; links are followed.

    Raises:
        BadInput: a link leads back to one of the folders `above`, so there would be no end.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise BadInput(f"{folder} is a link to {real}, which contains it: remove the link")
    yield folder
    for entry in visible(folder):
        if entry.is_dir():
            yield from folders_below(Path(entry.path), (*above, real))


def _is_ours(dataset: Dataset) -> bool:
    return type(dataset).__module__.startswith("fedmpi.")


def _origin(dataset: Dataset) -> dict[str, Any]:
    """What the arrays depend on, besides the published files, as JSON holds it.

    Paths do not count, so that folders can be moved: `sources` distinguishes files.
    """
    _, *wrapped = parts = list(_parts(dataset))
    origin = {
        "dataset": named(dataset),
        "options": settings_of(dataset, "dataset").get("init_args", {}),
        "read_version": dataset.read_version,
        "wrapped": {named(part): part.read_version for part in wrapped},
        "code": _code(*map(type, parts)),
    }
    found: dict[str, Any] = json.loads(json.dumps(origin, default=lambda path: None))
    return found


def _parts(dataset: Dataset) -> Iterator[Dataset]:
    """A data set, and those that it wraps."""
    yield dataset
    for option in options_of(dataset).values():
        if isinstance(option, Dataset):
            yield from _parts(option)


@cache
def _code(*classes: type) -> dict[str, str]:
    """Checksums of the user's code. They are kept, because more modules are known after `read` has imported them."""
    return user_code(base for cls in classes for base in cls.__mro__)


def _open(dataset: Dataset, full: bool) -> Arrays | None:
    folder, there = dataset.folder(), place(dataset)
    if folder is None or there is None:
        return None
    path = there / _MANIFEST
    try:
        text = _read(path)
        manifest = json.loads(text)
        sources, records = manifest["sources"], manifest["arrays"]
        origin = _origin(dataset)
        recorded_origin = {**origin, "read_version": 1, **manifest}  # the first versions of fedmpi recorded less
        if any(recorded_origin[name] != value for name, value in origin.items()):
            if not sources or any(source.exists() for source in dataset.sources()):
                return None
            other = "another version of fedmpi" if _is_ours(dataset) else f"other code of {named(dataset)}"
            raise BadInput(
                f"{path.parent} was decoded by {other} in another way, and the files that it was decoded from are"
                " missing: restore them"
            )
        if not _sources_unchanged(dataset, folder, sources, full):
            return None
        stored = {name: _map(path.with_name(f"{name}.npy"), records[name], full) for name in records}
        recorded = {name: records[name]["sha256"] for name in records}
        arrays = Arrays.of_stored(stored, on_disk=True, recorded=recorded, remarks=manifest.get("remarks", ()))
    except BadInput:
        raise
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(dataset, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArrays(path, f"{type(error).__name__}: {error}") from error
    if json.dumps(manifest, indent=1) != text:
        _remember(path, manifest)
    return arrays


def _map(path: Path, record: dict[str, Any], full: bool) -> NDArray:
    if not path.is_file():
        raise DamagedArrays(path, "missing")
    try:
        if not _unchanged(path, record, full):
            raise DamagedArrays(path, "its size or checksum differs from the manifest")
        array: NDArray = np.load(path, mmap_mode="c")  # PyTorch wants writable arrays; nothing is ever written
    except OSError as error:
        raise UnreadableArrays(path, error.strerror or str(error)) from error
    return array


def _read(manifest: Path) -> str:
    try:
        return manifest.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UnreadableArrays(manifest, error.strerror or str(error)) from error


def _owner(path: Path) -> str:
    """The owner of a file, in words."""
    try:
        return path.owner()
    except (OSError, KeyError):  # the file is out of reach, or its owner is unknown on this machine
        return "its owner"


def _has_sources(dataset: Dataset) -> bool:
    """Whether all published files exist."""
    try:
        return all(path.exists() for path in dataset.sources())
    except OSError:
        return False


def _sources_unchanged(dataset: Dataset, folder: Path, records: dict[str, Any], full: bool) -> bool:
    """Whether the published files are unchanged. Missing files do not matter, because the arrays replace them.

    The folders below those of `sources` are known from the manifest. A new folder changes the record of its parent.
    """
    there = {_name(path, folder) for path in dataset.sources() if path.exists()}
    if not there <= records.keys():
        return False
    for name, record in records.items():
        path = Path(os.path.normpath(folder / name))
        if there.isdisjoint((name, *map(str, PurePath(name).parents))) or not path.exists():
            continue
        if not _unchanged(path, record, full):
            return False
    return True


def _unchanged(path: Path, record: dict[str, Any], full: bool) -> bool:
    """Compare a file with its record. If only the time has changed, the record is updated."""
    status = path.stat()
    if _size(status) != record["size"]:
        return False
    if status.st_mtime_ns == record["mtime_ns"] and not full:
        return True
    record["mtime_ns"] = status.st_mtime_ns
    return bool(_sha256(path) == record["sha256"])


def _remember(path: Path, manifest: dict[str, Any]) -> None:
    """Save the new times, so that the next job need not read the files of a copied folder again."""
    new = path.with_name(f"{_MANIFEST}.{uuid.uuid4().hex}")
    with suppress(OSError):  # where nothing can be written, every job compares checksums
        new.write_text(json.dumps(manifest, indent=1))
        new.replace(path)


@contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """Hold a lock, so that one of several jobs decodes and the others wait for it.

    The parent folder is locked, because the folder itself may not exist yet. If the file system has no locks, each
    job decodes, with the same result. A data set that wraps another one next to it already holds the lock.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            if folder is not None and (parent := folder.parent.resolve()) not in _LOCKED:
                handle = os.open(parent, os.O_RDONLY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
                _LOCKED.add(parent)
                stack.callback(_LOCKED.discard, parent)
        yield


def _prepare(dataset: Dataset, progress: Progress, task: Task | None) -> Arrays:
    """Decode the published files and keep the arrays. If they cannot be kept, return them in memory."""
    folder, there = dataset.folder(), place(dataset)
    try:
        sources = {} if folder is None else _fingerprints(dataset.sources(), folder)  # before they are read
    except OSError as error:
        raise _unreadable(dataset, error) from error
    stored, remarks = _decode(dataset, progress, task)
    arrays = Arrays.of_stored(stored, remarks=remarks)
    if there is None:
        return arrays
    try:
        _write(dataset, there, stored, remarks, sources)
    except (OSError, UnreadableArrays) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        progress(f"{there.parent} cannot be written ({reason}): the arrays stay in memory, for this job only")
        return arrays
    progress(f"{type(dataset).__name__}: prepared arrays are in {there}")
    return open_prepared(dataset) or arrays


def _decode(dataset: Dataset, progress: Progress, task: Task | None) -> tuple[dict[str, NDArray], tuple[str, ...]]:
    try:
        with globals_kept():  # the same samples for every seed, because they may be kept
            seed_globals(key(0, f"samples of {named(dataset)}"))
            decoded = dataset.read(progress)
    except OSError as error:
        raise _unreadable(dataset, error) from error
    check_arrays(dataset, decoded, task)
    return decoded.stored(), decoded.remarks


def _unreadable(dataset: Dataset, error: OSError) -> BadInput:
    return BadInput(f"data set {type(dataset).__name__} cannot be read: {error}")


def _write(
    dataset: Dataset, there: Path, stored: dict[str, NDArray], remarks: tuple[str, ...], sources: dict[str, Any]
) -> None:
    new = there.with_name(f".{FOLDER}.{uuid.uuid4().hex}")
    try:
        new.mkdir(parents=True)
        records = {}
        for name, x in stored.items():
            path = new / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, x)
                file.flush()
                os.fsync(file.fileno())
            records[name] = {
                **_fingerprint(path),
                "shape": x.shape,
                "dtype": x.dtype.str,
                "order": "NHWC" if x.ndim == 4 else "C",
            }
        about = {"format": FOLDER, **_origin(dataset)}
        manifest = {**about, "sources": sources, "arrays": records, "remarks": remarks}
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        _install(new, dataset, there)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _install(new: Path, dataset: Dataset, final: Path) -> None:
    """Rename the folder into place, replacing outdated or damaged arrays, unless another job was faster."""
    while True:
        try:
            new.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(DamagedArrays):
            if open_prepared(dataset) is not None:
                return
        outdated = final.with_name(f"{new.name}.outdated")
        with suppress(FileNotFoundError):  # another job may be at it
            final.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)


def _fingerprints(paths: list[Path], folder: Path) -> dict[str, Any]:
    there = (path for path in paths if path.exists())
    every = (below for path in there for below in (folders_below(path) if path.is_dir() else (path,)))
    return {_name(path, folder): _fingerprint(path) for path in every}


def _fingerprint(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"size": _size(status), "mtime_ns": status.st_mtime_ns, "sha256": _sha256(path)}


def _size(status: os.stat_result) -> int:
    """The size of a file; 0 for a folder, whose size depends on the file system."""
    return 0 if stat.S_ISDIR(status.st_mode) else status.st_size


def _name(path: Path, folder: Path) -> str:
    """A relative path, so that a data folder can be moved."""
    return os.path.relpath(path, folder)


def _sha256(path: Path) -> str:
    """SHA-256 of a file's content; of a folder, of the names in it."""
    digest = hashlib.sha256()
    if path.is_dir():
        digest.update(b"\0".join(os.fsencode(entry.name) for entry in visible(path)))
        return digest.hexdigest()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
