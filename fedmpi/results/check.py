"""Checks whether a results file is undamaged and follows the schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.options import shown
from fedmpi.results.axes import columns as columns_of
from fedmpi.results.axes import wrong_names
from fedmpi.results.files import Unfit, attributes, datasets, opened, values
from fedmpi.results.metrics import best_row, metrics_of
from fedmpi.results.schema import GROUPS, JSON, LISTS, NUMBERS, Array, Group, Status, group_of, of_metrics
from fedmpi.results.storage import damage

# Axes that have the same length in all groups.
_SHARED = ("clients", "classes")
_TIMES = ("started", "last_write")


def problems(path: Path) -> list[str]:
    """Problems of a file, one line per problem: damage, and differences from the schema.

    The list is empty if the file is valid.

    Raises:
        BadInput: the file cannot be opened, see `fedmpi.results.files.opened`.
    """
    with opened(path) as file:
        found = list(damage(file))
        try:
            found += _of_file(file)
        except (OSError, KeyError, RuntimeError, Unfit):  # caused by the damage that was found
            if not found:
                raise
        return found


def check_intact(path: Path) -> None:
    """Raise BadInput for the first damage in a file, if there is any."""
    with opened(path) as file:
        for line in damage(file):
            raise BadInput(f"{path}: {line}")


def attributes_of(group: h5py.Group, groups: Mapping[str, Group], *needed: str) -> dict[str, Any]:
    """All attributes of a group; those in the schema have been checked for their types.

    Args:
        group: a group of a file that `opened` has opened.
        groups: the schema of the file.
        needed: names of attributes that the group must have.

    Raises:
        Unfit: an attribute has a wrong type, or one of the `needed` is missing.
    """
    found, name = attributes(group), group.name.strip("/") or "/"
    _raise_first(_missing(name, found, needed))
    _raise_first(_of_attributes(name, found, groups))
    return found


def table_of(group: h5py.Group, groups: Mapping[str, Group]) -> dict[str, NDArray[Any]]:
    """The datasets of a group that the schema describes, as arrays whose types and shapes have been checked.

    Datasets that the schema does not describe are left out.

    Args:
        group: a group of a file that `opened` has opened.
        groups: the schema of the file.

    Raises:
        Unfit: a dataset has a wrong type or shape, or the dataset `round` is missing where the schema requires it.
    """
    name = group.name.strip("/")
    described, found, sizes = group_of(name, groups), columns_of(group), dict[str, int]()
    if described is None:
        return {}
    known = {key: array for key in found if (array := described.array(key))}
    if known and "round" in described.arrays and "round" not in known:
        raise Unfit(f"damaged: /{name}/round: is missing")
    for key, array in known.items():
        _raise_first(_of_array(name, key, found[key], array, sizes))
    return {key: values(found[key]) for key in known}


def _raise_first(lines: Iterator[str]) -> None:
    for line in lines:
        raise Unfit(f"damaged: {line}")


def _of_file(file: h5py.File) -> Iterator[str]:
    sizes: dict[str, int] = {}
    about = attributes(file)
    yield from _missing("/", about, GROUPS["/"].attributes)
    yield from _of_attributes("/", about, GROUPS)
    try:
        metrics = metrics_of(about)
    except ValueError:  # is among the problems by now
        metrics = metrics_of({})
    groups = of_metrics(metrics)
    for name, group in groups.items():
        if name != "/" and "*" not in name and name not in file and not group.optional:
            yield f"/{name}: is missing"
    for name in datasets(file):
        yield f"/{name}: is a dataset, {'not a group' if group_of(name, groups) else 'which is not in the schema'}"
    for name, found in _groups(file):
        described = group_of(name, groups)
        if described is None:
            yield f"/{name}: is not in the schema"
        else:
            yield from _missing(name, attributes(found), described.attributes)
            yield from _of_attributes(name, attributes(found), groups)
            yield from _of_group(name, found, described, sizes)
    yield from _of_best(file, groups["rounds"])


def _missing(name: str, found: Mapping[str, Any], needed: Iterable[str]) -> Iterator[str]:
    for key in needed:
        if key not in found:
            yield f"/{name.strip('/')}: attribute {key} is missing"


def _of_attributes(name: str, found: Mapping[str, Any], groups: Mapping[str, Group]) -> Iterator[str]:
    described, place = group_of(name, groups) or Group(""), f"/{name.strip('/')}"
    for key, value in found.items():
        is_of_metric = name == "evaluation" and key in described.more  # test_METRIC, validation_METRIC
        if kinds := NUMBERS["test_METRIC"] if is_of_metric else NUMBERS.get(key):
            is_right = np.asarray(value).dtype.kind in kinds and np.ndim(value) == (key in LISTS)
        elif key in JSON:
            is_right = _is_object(value)
        else:
            is_right = isinstance(value, str) or not (key in described.attributes or key in described.more)
        if not is_right:
            yield f"{place}: attribute {key} is {shown(value)}"
    if name != "/":
        return
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    if "status" in texts and texts["status"] not in get_args(Status):
        yield f"/: status is {shown(texts['status'])}, not one of {', '.join(get_args(Status))}"
    for key in _TIMES:
        if key in texts and not _is_time(texts[key]):
            yield f"/: {key} is {shown(texts[key])}, not a time in ISO 8601"
    try:
        metrics_of(found)
    except ValueError as error:
        yield f"/: {error}"


def _of_group(name: str, found: h5py.Group, group: Group, sizes: dict[str, int]) -> Iterator[str]:
    columns = datasets(found)
    for key, array in group.arrays.items():
        if key in found and key not in columns:
            yield f"/{name}/{key}: is a group, not a dataset"
        elif columns and key not in columns and not array.optional:
            yield f"/{name}/{key}: is missing"
    faulty = set()
    for key, dataset in columns.items():
        described = group.array(key)
        if described is None:
            yield f"/{name}/{key}: is not in the schema"
            continue
        for line in _of_array(name, key, dataset, described, sizes):
            faulty.add(key)
            yield line
    yield from wrong_names(found, group)
    sound = columns.keys() - faulty
    if group.is_open and group.row == "a round" and "round" in sound:
        numbers = values(columns["round"])
        if not np.array_equal(numbers, np.arange(1, len(numbers) + 1)):
            yield f"/{name}/round: does not count 1, 2, 3, ..."
    if group.arrays.keys() >= {"weights", "offsets"} and sound >= {"weights", "shapes", "offsets"}:
        yield from _of_network(name, found)


def _of_array(group: str, name: str, dataset: h5py.Dataset, array: Array, sizes: dict[str, int]) -> Iterator[str]:
    if dataset.dtype.kind not in array.kinds:
        yield f"/{group}/{name}: has the type {dataset.dtype}"
    if array.shape == ("...",):  # any shape
        return
    shape = array.shape[-dataset.ndim :] if array.shape == ("M", "P") else array.shape  # one vector, or M vectors
    if dataset.ndim != len(shape):
        yield f"/{group}/{name}: has {dataset.ndim} axes, not {len(shape)} ({', '.join(shape)})"
        return
    for axis, length in zip(shape, dataset.shape, strict=True):
        expected = length if axis == "M" else sizes.setdefault(axis if axis in _SHARED else f"{group}/{axis}", length)
        if length != expected:
            yield f"/{group}/{name}: has {length} {axis}, others have {expected}"


def _of_network(name: str, found: h5py.Group) -> Iterator[str]:
    weights, shapes, offsets = (values(found[key]) for key in ("weights", "shapes", "offsets"))
    ends = np.cumsum(np.where(shapes < 0, 1, shapes).prod(axis=1))
    if ends[-1:].tolist() != [len(weights)] or not np.array_equal(offsets, [0, *ends[:-1]]):
        yield f"/{name}: shapes and offsets do not match the weights"
    yield from _of_checksum(name, weights, found)


def _of_checksum(name: str, weights: NDArray[np.float32], found: h5py.Group) -> Iterator[str]:
    if hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest() != str(found.attrs.get("sha256")):
        yield f"/{name}: sha256 does not match the weights"


def _of_best(file: h5py.File, rounds: Group) -> Iterator[str]:
    """Problems of /best that its own datasets do not show."""
    best = file.get("best")
    if not isinstance(best, h5py.Group):
        return
    weights, model = best.get("weights"), file.get("model/weights")
    if isinstance(weights, h5py.Dataset):
        yield from _of_checksum("best", values(weights), best)
        if isinstance(model, h5py.Dataset) and model.shape != weights.shape:
            yield f"/best/weights: has the shape {weights.shape}, /model/weights has {model.shape}"
    column, round = str(best.attrs.get("column")), best.attrs.get("round")
    measured, numbers = (file.get(f"rounds/{name}") for name in (column, "round"))
    better = described.better if (described := rounds.array(column)) else None
    if not isinstance(measured, h5py.Dataset):
        yield f"/best: column is {shown(column)}, which /rounds does not have"
    elif (
        better and measured.dtype.kind == "f" and isinstance(numbers, h5py.Dataset) and isinstance(round, np.integer)
    ):
        row = best_row(values(measured), better)
        # A round after the last row is to come again: the run was resumed from an older checkpoint.
        if row is not None and round <= numbers[-1] and numbers[row] != round:
            yield f"/best: round is {shown(round)}, {column} is the best in round {numbers[row]}"


def _groups(file: h5py.File) -> Iterator[tuple[str, h5py.Group]]:
    """The names and groups of the first two levels below the root."""
    for name, group in file.items():
        if isinstance(group, h5py.Group):
            yield name, group
            yield from ((f"{name}/{key}", inner) for key, inner in group.items() if isinstance(inner, h5py.Group))


def _is_object(text: Any) -> bool:
    """Whether a value is the text of a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (TypeError, ValueError, RecursionError):
        return False


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(str(text)).tzinfo is not None
    except ValueError:
        return False
