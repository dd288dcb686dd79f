"""Does a file hold what the schema says?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np

from fedmpi.errors import BadInput
from fedmpi.results.reader import opened
from fedmpi.results.schema import COLUMN, GROUPS, Array, Group, Status, generic, group_of
from fedmpi.results.storage import damage

# What is as long in one group as in another.
_SHARED = ("clients", "classes")


def problems(path: Path) -> list[str]:
    """What in a file is not as it was written, or not as the schema says, a line each; none if all is.

    Raises:
        BadInput: it is missing, no HDF5 file at all, no results file, or of another schema.
    """
    with opened(path) as file:
        found = list(damage(file))
        try:
            found += _of_file(file)
        except (OSError, KeyError, RuntimeError):  # it reads what is damaged
            if not found:
                raise
        return found


def check_intact(path: Path) -> None:
    """Raise BadInput, for the first thing that is damaged, unless all in a file is as it was written."""
    with opened(path) as file:
        for line in damage(file):
            raise BadInput(f"{path}: {line}")


def _of_file(file: h5py.File) -> Iterator[str]:
    sizes: dict[str, int] = {}
    yield from _of_root(file)
    for name, group in GROUPS.items():
        if name != "/" and "*" not in name and name not in file and not group.optional:
            yield f"/{name}: is missing"
    for name, found in _groups(file):
        described = group_of(name)
        if described is None:
            yield f"/{name}: is not in the schema"
        else:
            yield from _of_group(name, found, described, sizes)


def _of_root(file: h5py.File) -> Iterator[str]:
    attributes = dict(file.attrs)
    for name in GROUPS["/"].attributes.keys() - attributes.keys():
        yield f"/: attribute {name} is missing"
    if attributes.get("status") not in get_args(Status):
        yield f"/: status is {attributes.get('status')}, not one of {', '.join(get_args(Status))}"
    for name in ("started", "last_write"):
        if name in attributes and not _is_time(attributes[name]):
            yield f"/: {name} is {attributes[name]}, not a time in ISO 8601"


def _of_group(name: str, found: h5py.Group, group: Group, sizes: dict[str, int]) -> Iterator[str]:
    columns = {key: value for key, value in found.items() if isinstance(value, h5py.Dataset)}
    for key, array in group.arrays.items():
        if columns and key not in columns and not array.optional:
            yield f"/{name}/{key}: is missing"
    for key, dataset in columns.items():
        described = group.arrays.get(generic(key)) or group.arrays.get("*") or (COLUMN if group.is_open else None)
        if described is None:
            yield f"/{name}/{key}: is not in the schema"
        else:
            yield from _of_array(name, key, dataset, described, sizes)
    if group.is_open and group.row == "a round" and "round" in columns:
        numbers = columns["round"][()]
        if not np.array_equal(numbers, np.arange(1, len(numbers) + 1)):
            yield f"/{name}/round: does not count from 1"
    if group.arrays.keys() >= {"weights", "offsets"} and columns.keys() >= {"weights", "shapes", "offsets"}:
        yield from _of_network(name, found)


def _of_array(group: str, name: str, dataset: h5py.Dataset, array: Array, sizes: dict[str, int]) -> Iterator[str]:
    if dataset.dtype.kind not in array.kinds:
        yield f"/{group}/{name}: holds {dataset.dtype}"
    if array.shape == ("...",):  # any
        return
    shape = array.shape[-dataset.ndim :] if array.shape == ("M", "P") else array.shape  # one vector, or M of them
    if dataset.ndim != len(shape):
        yield f"/{group}/{name}: has {dataset.ndim} axes, not {len(shape)} ({', '.join(shape)})"
        return
    for axis, length in zip(shape, dataset.shape, strict=True):
        expected = length if axis == "M" else sizes.setdefault(axis if axis in _SHARED else f"{group}/{axis}", length)
        if length != expected:
            yield f"/{group}/{name}: has {length} {axis}, others have {expected}"


def _of_network(name: str, found: h5py.Group) -> Iterator[str]:
    weights, shapes = found["weights"][()], found["shapes"][()]
    ends = np.cumsum(np.where(shapes < 0, 1, shapes).prod(axis=1))
    if ends[-1:].tolist() != [len(weights)] or not np.array_equal(found["offsets"][()], [0, *ends[:-1]]):
        yield f"/{name}: shapes and offsets do not fill the weights"
    if hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest() != found.attrs.get("sha256"):
        yield f"/{name}: sha256 is not that of the weights"


def _groups(file: h5py.File) -> Iterator[tuple[str, h5py.Group]]:
    """All groups below the root, and theirs."""
    for name, group in file.items():
        if isinstance(group, h5py.Group):
            yield name, group
            yield from ((f"{name}/{key}", inner) for key, inner in group.items() if isinstance(inner, h5py.Group))


def _is_time(text: Any) -> bool:
    try:
        datetime.fromisoformat(str(text))
    except ValueError:
        return False
    return True
