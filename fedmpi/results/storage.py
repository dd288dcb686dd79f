"""How a results file lies on disk: so that damage to it is noticed, by whatever reads it or by `damage`.

- Arrays lie in chunks that end with a checksum (HDF5's filter Fletcher32), which HDF5 compares when they are read.
- What describes them (names, types, shapes, where chunks lie) and numbers in attributes have checksums in the format
  of HDF5 1.10, of 2016. In the older format a bit that flips there can turn a column into zeros, and nothing tells.
  The newer one cannot be read by MATLAB before R2021b and by h5dump of HDF5 1.8.
- Texts lie in heaps, which have none in any format. The attribute `texts_crc32` is one for all of them.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20  # bytes at most, but for rows that have more
_TEXTS = "texts_crc32"
_FORMAT = ("v110", "v110")


class Storage:
    """An HDF5 file that is being written.

    Args:
        file: to be written through this object alone.
    """

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self._texts: list[str] = []

    def set_attributes(self, group: h5py.Group, values: Mapping[str, Any]) -> None:
        """A function is called, a list becomes one text with a line for each, and None is left out."""
        for name, value in values.items():
            if callable(value):
                value = value()
            if isinstance(value, (list, tuple)):
                value = "\n".join(map(str, value))  # an array attribute would end at 64 KiB, a text does not
            if isinstance(value, str):
                self._texts.append(_line(group, name, value))
            if value is not None:
                group.attrs[name] = value

    def add(self, group: h5py.Group, name: str, array: NDArray, compression: str | None = None) -> h5py.Dataset:
        """A dataset in chunks; a single number lies in its description, and what is empty needs no checksum."""
        if array.ndim == 0:
            return _described(group, name, array)
        if array.size == 0:
            return group.create_dataset(name, data=array)
        rows = -(-len(array) // -(-array.nbytes // _CHUNK))
        filters = {"compression": compression, "compression_opts": 1 if compression else None, "fletcher32": True}
        return group.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), **filters)

    def add_texts(self, group: h5py.Group, name: str, texts: Sequence[str]) -> None:
        """A dataset [n] of texts."""
        group.create_dataset(name, data=list(texts), dtype=h5py.string_dtype())
        self._texts.append(_line(group, name, *texts))

    def end(self) -> None:
        """All is there."""
        self.file.attrs[_TEXTS] = _checksum(self._texts)


class Packed:
    """An array that HDF5 compresses when it is first stored, and not at every write.

    Args:
        array: is copied.
    """

    def __init__(self, array: NDArray) -> None:
        self._array: NDArray | None = np.array(array)
        self._how: dict[str, Any] = {}
        self._chunks: list[tuple[tuple[int, ...], int, bytes]] = []

    def store(self, storage: Storage, group: h5py.Group, name: str) -> None:
        if self._array is None:
            stored = group.create_dataset(name, **self._how)
            for offset, mask, content in self._chunks:
                stored.id.write_direct_chunk(offset, content, mask)
            return
        stored = storage.add(group, name, self._array, compression="gzip")
        if stored.chunks:
            stored.flush()
            self._how = {"shape": stored.shape, "dtype": stored.dtype, "dcpl": stored.id.get_create_plist()}
            self._chunks = [(offset, *stored.id.read_direct_chunk(offset)) for offset in _offsets(stored)]
            self._array = None


def image(fill: Callable[[Storage], None]) -> bytes:
    """The bytes of a file, made in memory: HDF5 itself crashes the process when the disk is full."""
    name = f"image {threading.get_ident()}"  # HDF5 knows open files by their names, those in memory, too
    with h5py.File(name, "w", libver=_FORMAT, driver="core", backing_store=False, block_size=2**20) as file:
        storage = Storage(file)
        fill(storage)
        storage.end()
        file.flush()
        content: bytes = file.id.get_file_image()
    return content


def damage(file: h5py.File) -> Iterator[str]:
    """What in a results file is not as it was written, a line each; all of it is read, a chunk at a time."""
    names: list[str] = []
    try:
        file.visit(names.append)
    except RuntimeError:
        yield "/: the list of what is in it is damaged"
        return
    texts: list[str] = []
    for name in ["", *names]:
        found = _read(file, name)
        texts += found or []
        if found is None:
            yield f"/{name}: is damaged"
    if file.attrs.get(_TEXTS, _checksum(texts)) != _checksum(texts):
        yield "/: a text is not what was written, of an attribute or the name of a tensor"


def _read(file: h5py.File, name: str) -> list[str] | None:
    """Read all of a group's attributes, or of a dataset, and give the texts; None: it is damaged."""
    try:
        item = file[name] if name else file
        if isinstance(item, h5py.Group):
            return [_line(item, key, value) for key, value in item.attrs.items() if isinstance(value, str)]
        if h5py.check_string_dtype(item.dtype):
            return [_line(item.parent, name.rpartition("/")[2], *item.asstr()[()])]
        for offset in _offsets(item):
            item[tuple(slice(first, first + size) for first, size in zip(offset, item.chunks, strict=True))]
    except (OSError, KeyError, RuntimeError, UnicodeError):
        return None
    return []


def _described(group: h5py.Group, name: str, number: NDArray) -> h5py.Dataset:
    """A dataset of one number that lies where its type is described."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.COMPACT)
    kind, space = h5py.h5t.py_create(number.dtype, logical=True), h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, layout))
    dataset[()] = number
    return dataset


def _offsets(dataset: h5py.Dataset) -> list[tuple[int, ...]]:
    """Where the chunks begin that a dataset has."""
    if dataset.chunks is None:
        return []
    found = dataset.id
    return [found.get_chunk_info(number).chunk_offset for number in range(found.get_num_chunks())]


def _line(group: h5py.Group, name: str, *texts: str) -> str:
    return "\0".join((group.name, name, *texts))


def _checksum(lines: Iterable[str]) -> int:
    return zlib.crc32("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"))
