"""Storage of a results file with checksums, so that damage is noticed when the file is read or checked.

- Arrays are stored in chunks that end with a checksum (HDF5's filter Fletcher32). HDF5 compares it at every read.
- Metadata (names, types, shapes, positions of chunks) and numbers in attributes have checksums in the format of
  HDF5 1.10 (2016). In the older format, one flipped bit of the metadata can turn a column into zeros without an
  error. MATLAB before R2021b and h5dump of HDF5 1.8 cannot read the newer format.
- Texts are stored in heaps, which have no checksums in any format. The attribute `texts_crc32` is one checksum of
  all texts. Only `damage` compares it.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20  # largest chunk in bytes; a larger row is a chunk of its own
_TEXTS = "texts_crc32"
_FORMAT = ("v110", "v110")


class Storage:
    """Writes arrays, texts and attributes to an HDF5 file, so that all of them have checksums.

    Args:
        file: the open file. Only this object may write to it.
    """

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self._texts: list[str] = []

    def set_attributes(self, group: h5py.Group, values: Mapping[str, Any]) -> None:
        """Set attributes of a group.

        A function is called, and its result is stored. A list is stored as one text with one line per item. None is
        left out.
        """
        for name, value in values.items():
            if callable(value):
                value = value()
            if isinstance(value, (list, tuple)):
                value = "\n".join(map(str, value))  # an array attribute is limited to 64 KiB, a text is not
            if isinstance(value, str):
                self._texts.append(_line(group, name, value))
            if value is not None:
                group.attrs[name] = value

    def add(self, group: h5py.Group, name: str, array: NDArray, compression: str | None = None) -> h5py.Dataset:
        """Add an array to a group, as a dataset in chunks with checksums.

        A single number (shape ()) is stored in the metadata, which have a checksum. An empty array has none.

        Args:
            group: the group.
            name: name of the dataset.
            array: the array.
            compression: HDF5's name of a compression, such as gzip; None: not compressed.
        """
        if array.ndim == 0:
            return _described(group, name, array)
        if array.size == 0:
            return group.create_dataset(name, data=array)
        rows = -(-len(array) // -(-array.nbytes // _CHUNK))
        filters = {"compression": compression, "compression_opts": 1 if compression else None, "fletcher32": True}
        return group.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), **filters)

    def add_texts(self, group: h5py.Group, name: str, texts: Sequence[str]) -> None:
        """Add a dataset [n] of texts to a group."""
        group.create_dataset(name, data=list(texts), dtype=h5py.string_dtype())
        self._texts.append(_line(group, name, *texts))

    def end(self) -> None:
        """Store the checksum of all texts. This must be the last call."""
        self.file.attrs[_TEXTS] = _checksum(self._texts)


class Packed:
    """An array that is compressed only once, when it is first stored, and not at every write of the file.

    Args:
        array: the array, which is copied.
    """

    def __init__(self, array: NDArray) -> None:
        self._array: NDArray | None = np.array(array)
        self._how: dict[str, Any] = {}
        self._chunks: list[tuple[tuple[int, ...], int, bytes]] = []

    def store(self, storage: Storage, group: h5py.Group, name: str) -> None:
        """Add the array to a group."""
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
    """The bytes of an HDF5 file that is made in memory.

    It is not made on disk, because HDF5 crashes the process when the disk is full.

    Args:
        fill: writes the contents to the file.
    """
    name = f"image {threading.get_ident()}"  # HDF5 identifies open files by name, also those in memory
    with h5py.File(name, "w", libver=_FORMAT, driver="core", backing_store=False, block_size=2**20) as file:
        storage = Storage(file)
        fill(storage)
        storage.end()
        file.flush()
        content: bytes = file.id.get_file_image()
    return content


def damage(file: h5py.File) -> Iterator[str]:
    """The damaged parts of a results file, with one line of text per part.

    The whole file is read, one chunk at a time.
    """
    names: list[str] = []
    try:
        file.visit(names.append)
    except RuntimeError:
        yield "/: the list of its contents is damaged"
        return
    texts: list[str] = []
    for name in ["", *names]:
        found = _read(file, name)
        texts += found or []
        if found is None:
            yield f"/{name}: is damaged"
    if file.attrs.get(_TEXTS, _checksum(texts)) != _checksum(texts):
        yield "/: a text is damaged (an attribute or the name of a tensor)"


def _read(file: h5py.File, name: str) -> list[str] | None:
    """Read all attributes of a group, or a whole dataset, and return the texts; None: it is damaged."""
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
    """Add a dataset of one number, which is stored in the dataset's metadata."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.COMPACT)
    kind, space = h5py.h5t.py_create(number.dtype, logical=True), h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, layout))
    dataset[()] = number
    return dataset


def _offsets(dataset: h5py.Dataset) -> list[tuple[int, ...]]:
    """The index of the first element of each stored chunk of a dataset."""
    if dataset.chunks is None:
        return []
    found = dataset.id
    return [found.get_chunk_info(number).chunk_offset for number in range(found.get_num_chunks())]


def _line(group: h5py.Group, name: str, *texts: str) -> str:
    return "\0".join((group.name, name, *texts))


def _checksum(lines: Iterable[str]) -> int:
    return zlib.crc32("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"))
