"""Opens results files safely, also those from untrusted sources.

Results files are often shared between people, and HDF5 itself is not safe with a malicious file. It follows links
into other files, reads raw data from any path that a dataset names, and allocates as much memory as a dataset claims
to need. The functions here compare the claims of a file with its contents before they read any array.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5z
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.options import shown
from fedmpi.results.schema import SCHEMA

#: Limits far above the needs of any run: the number of groups and datasets, and of texts in a dataset; the depth of
#: nested groups; the number of attributes of a group; the number of values in an attribute; the number of characters
#: in a text, and in all texts of a dataset together.
MOST_OBJECTS, DEEPEST, MOST_ATTRIBUTES, MOST_NUMBERS, LONGEST_TEXT = 20_000, 8, 1_000, 10_000, 1 << 20
#: All arrays of a file together may have SMALL bytes, or MOST_TIMES the size of the file if that is more.
SMALL, MOST_TIMES = 1 << 27, 64
#: The largest compression ratio of zlib.
MOST_COMPRESSED = 1032
FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
_NUMBERS = "biuf"  # NumPy's kinds: bool, signed and unsigned integer, float
_ONE_VALUE = 16  # bytes of a number, or of the reference to a text


class Unfit(Exception):
    """The contents of a file are not valid. The message follows the name of the file: `FILE: MESSAGE`."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a results file for reading, after the checks that the module's docstring describes.

    An `Unfit` that is raised within the block becomes a BadInput that names the file.

    Raises:
        BadInput: the file is missing, not a regular file, damaged, not a results file, has another schema, or
            contains something that no results file contains, such as a link.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadInput(f"{path}: {'Is a directory' if path.is_dir() else 'not a regular file'}")
        path.open("rb").close()  # HDF5's own message about a missing file is long
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    try:
        with unlocked(path) as file:
            schema = _attribute(file, "schema") if "schema" in file.attrs else None
            if schema is None:
                raise BadInput(f"{path}: not a results file of fedmpi")
            if not np.array_equal(schema, SCHEMA):
                raise BadInput(f"{path}: has schema {shown(schema)}, this version of fedmpi reads schema {SCHEMA}")
            _look_through(file, path)
            yield file
    except Unfit as error:
        raise BadInput(f"{path}: {error}") from None
    except (OSError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise BadInput(f"{path}: {os.strerror(error.errno)}") from None
        raise BadInput(f"{path}: not an HDF5 file, or a damaged one") from None


@contextmanager
def unlocked(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, also if another process has locked it.

    This is safe because results files are replaced as a whole and never modified.

    Raises:
        OSError: the file cannot be read, or is not an HDF5 file.
    """
    with ExitStack() as stack:
        try:
            file = h5py.File(path, "r", locking=False)
        except OSError as error:
            # BlockingIOError: HDF5_USE_FILE_LOCKING is TRUE, which overrides `locking`. The other message: this
            # process has the file open, for example in xarray, with locking.
            if not isinstance(error, BlockingIOError) and "file locking flag" not in str(error):
                raise
            file = h5py.File(stack.enter_context(path.open("rb")), "r")
        yield stack.enter_context(file)


def attributes(group: h5py.Group) -> dict[str, Any]:
    """The attributes of a group: numbers, texts, and arrays [n] of numbers.

    Raises:
        Unfit: an attribute has another type or is too long, or the group has too many attributes.
    """
    if h5a.get_num_attrs(group.id) > MOST_ATTRIBUTES:
        raise Unfit(f"{group.name} has more than {MOST_ATTRIBUTES} attributes")
    return {name: _attribute(group, name) for name in group.attrs}


def group_at(file: h5py.File, name: str) -> h5py.Group | None:
    """The group with this name; None if the file has nothing with this name.

    Raises:
        Unfit: the name belongs to a dataset.
    """
    found = file.get(name)
    if isinstance(found, h5py.Dataset):
        raise Unfit(f"damaged: /{name} is a dataset, not a group")
    return found


def datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The datasets directly in a group, by name."""
    return {name: item for name, item in group.items() if isinstance(item, h5py.Dataset)}


def values(dataset: h5py.Dataset) -> NDArray[Any]:
    """All values of a dataset, as an array of its shape; texts are an array of objects of type `str`.

    Raises:
        Unfit: the texts together are longer than `LONGEST_TEXT`.
    """
    if not h5py.check_string_dtype(dataset.dtype):
        return np.asarray(dataset[()])
    texts = dataset.asstr(errors="backslashreplace")
    if not dataset.ndim:
        return np.asarray(texts[()], dtype=object)
    # A small file may claim much text: all texts may refer to the same one, which may be as long as the file.
    found, length, step = np.empty(len(dataset), dtype=object), 0, max(SMALL // dataset.file.id.get_filesize(), 1)
    for first in range(0, len(dataset), step):
        part = found[first : first + step] = texts[first : first + step]
        length += sum(map(len, part))
        if length > LONGEST_TEXT:
            raise Unfit(f"{shown(dataset.name)} holds texts of more than {LONGEST_TEXT >> 20} MiB")
    return found


def _attribute(group: h5py.Group, name: str) -> Any:
    place = f"attribute {shown(name)} of {shown(group.name)}"
    encoded = name.encode("utf-8", "surrogateescape")
    if not name.isprintable():
        raise Unfit(f"{shown(group.name)} has an attribute whose name cannot be printed")
    if h5a.get_info(group.id, encoded).data_size > _ONE_VALUE:
        found = h5a.open(group.id, encoded)
        dtype, shape = _dtype(found), found.shape
        if dtype is None or dtype.kind not in _NUMBERS or math.prod(shape) > MOST_NUMBERS:
            raise Unfit(f"{place} is neither a number, nor a text, nor a list of numbers")
    try:
        value = group.attrs[name]
    except TypeError:  # NumPy has no equivalent of the HDF5 type
        value = None
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise Unfit(f"{place} is a text of more than {LONGEST_TEXT >> 20} MiB")
    is_number = isinstance(value, (np.number, np.bool_)) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if not (isinstance(value, str) or (is_number and value.dtype.kind in _NUMBERS)):
        raise Unfit(f"{place} is neither a number, nor a text, nor a list of numbers")
    return value


def _look_through(file: h5py.File, path: Path) -> None:
    """Raise `Unfit` if a file contains something that no results file contains, or claims too much memory."""
    size, claimed, objects = path.stat().st_blocks * 512, 0, 0
    groups: list[tuple[str, h5g.GroupID]] = [("", file.id)]
    while groups:
        place, group = groups.pop()
        links: list[tuple[bytes, int]] = []
        group.links.iterate(lambda name, info: links.append((name, info.type)), info=True)  # noqa: B023
        objects += len(links)
        if objects > MOST_OBJECTS:
            raise Unfit(f"has more than {MOST_OBJECTS} groups and datasets")
        for name, link in links:
            inner = f"{place}/{name.decode('utf-8', 'surrogateescape')}"
            if not inner.isprintable():
                raise Unfit(f"{place or '/'} holds something whose name cannot be printed")
            if link != h5l.TYPE_HARD:
                raise Unfit(f"{shown(inner)} is a link; results files have no links")
            found = h5o.open(group, name)
            if isinstance(found, h5g.GroupID):
                if inner.count("/") > DEEPEST:
                    raise Unfit(f"{shown(inner)}: groups are nested more than {DEEPEST} deep")
                groups.append((inner, found))
            elif isinstance(found, h5d.DatasetID):
                claimed += _claim(shown(inner), found)
            else:
                raise Unfit(f"{shown(inner)} is neither a group nor a dataset")
    if claimed > max(SMALL, MOST_TIMES * size):
        raise Unfit(f"claims to hold {claimed >> 20} MiB, in a file of {size >> 10} KiB")


def _claim(place: str, dataset: h5d.DatasetID) -> int:
    """The number of bytes that reading a dataset takes, without the contents of its texts.

    Raises:
        Unfit: the file does not hold that many bytes, the data lie in other files, or the dataset has a type or
            compression that results files do not use.
    """
    dtype, plan, shape = _dtype(dataset), dataset.get_create_plist(), dataset.shape
    if dtype is None or shape is None or (dtype.kind not in _NUMBERS and len(shape) > 1):
        raise Unfit(f"{place} holds neither numbers nor a list of texts")
    if dtype.kind not in _NUMBERS and math.prod(shape) > MOST_OBJECTS:
        raise Unfit(f"{place} claims to be {shown(shape)} texts")
    layout, claimed, most = plan.get_layout(), dtype.itemsize * math.prod(shape), 1
    if layout == h5d.VIRTUAL or plan.get_external_count():
        raise Unfit(f"{place} lies in other files")
    if layout == h5d.CHUNKED:
        claimed = max(claimed, dtype.itemsize * math.prod(plan.get_chunk()) * dataset.get_num_chunks())
        filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
        if len(set(filters)) < len(filters) or not FILTERS.issuperset(filters):
            raise Unfit(f"{place} has a compression that results files do not use")
        most = MOST_COMPRESSED if h5z.FILTER_DEFLATE in filters else 1
    held = dataset.get_storage_size()
    if claimed > held * most:
        raise Unfit(f"{place} claims to be {shown(shape)}, and has {held} bytes")
    return claimed


def _dtype(found: h5d.DatasetID | h5a.AttrID) -> np.dtype[Any] | None:
    """The type of a dataset or attribute of texts or of numbers of up to 8 bytes; None for any other type."""
    try:
        dtype: np.dtype[Any] = found.dtype
    except (TypeError, ValueError):  # NumPy has no equivalent of the HDF5 type
        return None
    if dtype.kind in _NUMBERS:
        return dtype if dtype.itemsize <= 8 else None
    return dtype if h5py.check_string_dtype(dtype) else None
