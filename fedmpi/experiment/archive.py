"""The format of a checkpoint: a NumPy archive (for `numpy.load`) that is checked completely before it is used.

`about.json` lists the contents, with the size and the CRC-32 of each other entry. Its own SHA-256 is the archive's
comment, at the end of the file. So damaged, missing, swapped or additional entries are noticed, and so are a changed
`about.json` and a truncated file.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from numpy.lib import format as npy
from numpy.typing import NDArray

_ABOUT = "about.json"
_PIECE = 1 << 20  # bytes that are held at a time
_LONGEST_HEADER = 1 << 20  # of an array, where NumPy takes no more than 10,000 bytes unless it is told


class Damaged(Exception):
    """An archive has changed since it was written; the message says where."""


class Archive:
    """An archive that is read. It stays the same file if another one is renamed to its path.

    Attributes:
        about: contents of `about.json`.

    Raises:
        Damaged: it is damaged or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except Exception as error:  # a damaged one raises whatever comes up
            raise Damaged(_reason(error)) from None
        try:
            self.about = self._checked()
        except Exception as error:
            self.zip.close()
            raise error if isinstance(error, Damaged) else Damaged(_reason(error)) from None

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return [name.removesuffix(".npy") for name in self.about["entries"]]

    def read(self, name: str) -> NDArray:
        with entry(self.zip, name, "r") as file:
            array: NDArray = npy.read_array(file, allow_pickle=False, max_header_size=_LONGEST_HEADER)
        return array

    def _checked(self) -> dict[str, Any]:
        """The contents of `about.json`, after all entries have been checked."""
        there = {info.filename: [info.file_size, info.CRC] for info in self.zip.infolist()}
        if there.pop(_ABOUT, None) is None:
            raise Damaged(f"it has no {_ABOUT}")
        text = self.zip.read(_ABOUT)
        if hashlib.sha256(text).hexdigest().encode() != self.zip.comment:
            raise Damaged(f"its {_ABOUT} is not what was written")
        about: dict[str, Any] = json.loads(text)
        for name, written in about["entries"].items():
            if there.get(name) != written:
                raise Damaged(f"its entry {name} is {'not what was written' if name in there else 'missing'}")
            try:
                with self.zip.open(name) as file:
                    while file.read(_PIECE):
                        pass
            except Exception:
                raise Damaged(f"its entry {name} is damaged") from None
        if added := there.keys() - about["entries"].keys():
            raise Damaged(f"its entry {min(added)} was added")
        return about


@contextmanager
def entry(archive: zipfile.ZipFile | None, name: str, mode: Literal["r", "w"] = "w") -> Iterator[IO[bytes]]:
    """An array of an archive; None: there is none."""
    if archive is None:
        yield io.BytesIO()
        return
    with archive.open(f"{name}.npy", mode, force_zip64=mode == "w") as file:
        yield file


def add(archive: zipfile.ZipFile, name: str, array: NDArray) -> None:
    """Write an array."""
    with entry(archive, name) as file:
        npy.write_array(file, array, allow_pickle=False)


def end(archive: zipfile.ZipFile, about: Mapping[str, Any]) -> None:
    """Finish the archive: write `about.json`."""
    entries = {info.filename: [info.file_size, info.CRC] for info in archive.infolist()}
    text = json.dumps({**about, "entries": entries}).encode()
    archive.writestr(_ABOUT, text)
    archive.comment = hashlib.sha256(text).hexdigest().encode()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is no archive, or ends early" if isinstance(error, zipfile.BadZipFile) else str(error) or repr(error)
