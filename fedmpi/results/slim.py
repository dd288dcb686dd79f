"""Copies of results files without the large arrays. Tables and figures can be made from the copies."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import h5py

from fedmpi.errors import BadInput
from fedmpi.results.axes import columns, name_axes
from fedmpi.results.files import attributes, opened
from fedmpi.results.metrics import metrics_of
from fedmpi.results.paths import kind, replacing
from fedmpi.results.schema import of_metrics
from fedmpi.results.storage import Storage, image

#: The groups whose arrays are left out. Their attributes stay, such as the SHA-256 of the weights.
LARGE = ("model", "best", "networks", "synthetic")


def slim(source: Path, target: Path, overwrite: bool = False, without: Collection[str] = ()) -> tuple[int, int]:
    """Copy a results file without weights and images; the other tables are copied and compressed.

    Args:
        source: the results file.
        target: the file to write.
        overwrite: whether an existing file may be replaced.
        without: names of tables that are copied without their rows, such as evaluation.

    Returns:
        The sizes of `source` and `target` in bytes.

    Raises:
        BadInput: `source` cannot be read; or `target` exists already, is the source itself, or cannot be written.
    """
    if other := kind(target):
        raise BadInput(f"{target}: is {other}")
    if target.exists() and (not overwrite or target.samefile(source)):
        raise BadInput(f"{target}: exists already{'' if target.samefile(source) else '; --overwrite replaces it'}")
    with opened(source) as file:

        def fill(storage: Storage) -> None:
            _copy(file, storage.file, storage, without)
            name_axes(storage, of_metrics(metrics_of(attributes(file))))

        content = image(fill)
    try:
        with replacing(target, target) as copy:
            copy.write(content)
    except OSError as error:
        raise BadInput(f"{target}: {error.strerror}") from None
    return source.stat().st_size, len(content)


def _copy(group: h5py.Group, into: h5py.Group, storage: Storage, without: Collection[str] = ()) -> None:
    made_again = ("texts_crc32", "coordinates")
    storage.set_attributes(into, {name: value for name, value in group.attrs.items() if name not in made_again})
    top = group.name.strip("/").split("/")[0]
    is_large = top in LARGE
    arrays = columns(group)
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            _copy(item, into.create_group(name), storage, without)
        elif name not in arrays:
            continue  # it names an axis, and is made again
        elif not is_large and h5py.check_string_dtype(item.dtype):
            storage.add_texts(into, name, item.asstr()[()].tolist())
        elif not is_large:
            storage.add(into, name, item[:0] if top in without else item[()], compression="gzip")
