"""Names of axes in results files, as HDF5 dimension scales, for xarray, MATLAB and other programs.

A dimension scale is a dataset that is attached to an axis of other datasets of its group: it names the axis and has
its coordinates. The columns of a table have the scale `round`, also where a round has several rows, as in /clients.
Scales of further axes, such as `client`, are datasets of their own, which are made here. They are no columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import h5py
import numpy as np
from h5py import h5a, h5r

from fedmpi.results.files import datasets
from fedmpi.results.schema import GROUPS, Group, group_of
from fedmpi.results.storage import Storage

# The attribute of a dataset in which HDF5 lists the scales of each axis.
_LIST = "DIMENSION_LIST"


def columns(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The datasets of a group by name, without those that only name axes."""
    described = group_of(group.name.strip("/"), GROUPS)
    own = {name for name, array in described.arrays.items() if array.is_axis} if described else set()
    return {name: dataset for name, dataset in datasets(group).items() if name not in own}


def name_axes(storage: Storage, groups: Mapping[str, Group]) -> None:
    """Name the axes of all tables of a file, after everything else has been written.

    Args:
        groups: the schema of the file (`of_metrics`).
    """
    tables: list[h5py.Group] = []
    storage.file.visititems(lambda _, item: tables.append(item) if isinstance(item, h5py.Group) else None)
    for table in tables:
        described = group_of(table.name.strip("/"), groups)
        if described:
            _name_axes_of(table, described, storage)


def wrong_names(group: h5py.Group, described: Group) -> Iterator[str]:
    """One line for each axis in a group that has another name than the schema says.

    Axes without a name, as in files of older versions, are not wrong.
    """
    for key, dataset in datasets(group).items():
        array = described.array(key)
        if array is None or array.is_axis or _LIST not in dataset.attrs:
            continue
        wanted = [f"{group.name}/{axis}" for axis in array.axes]
        if key not in array.axes and _names(dataset) != wanted:
            yield f"{group.name}/{key}: its axes are not named {', '.join(array.axes)}"


def _name_axes_of(table: h5py.Group, described: Group, storage: Storage) -> None:
    for key, dataset in columns(table).items():
        array = described.array(key)
        axes = array.axes if array and len(array.axes) == dataset.ndim else ()
        for number, axis in enumerate(axes):
            if axis not in table:
                storage.add(table, axis, np.arange(dataset.shape[number], dtype=np.int32))
            scale = table[axis]
            if not scale.is_scale:
                scale.make_scale(axis)
            if axis != key:
                dataset.dims[number].attach_scale(scale)
    if present := [name for name in described.coordinates if name in table]:
        storage.set_attributes(table, {"coordinates": " ".join(present)})


def _names(dataset: h5py.Dataset) -> list[str]:
    """The paths of the scales of a dataset's axes; empty if the list of them is damaged.

    HDF5's own functions for scales trust the type of the list. So it is compared first.
    """
    try:
        found = h5a.open(dataset.id, _LIST.encode())
        inner = h5py.check_vlen_dtype(found.dtype)
        if inner is None or h5py.check_ref_dtype(inner) is not h5py.Reference or found.shape != (dataset.ndim,):
            return []
        lists = dataset.attrs[_LIST]
        return [(h5r.get_name(one, dataset.id) or b"").decode() for (one,) in lists]
    except (OSError, KeyError, RuntimeError, TypeError, ValueError):
        return []
