"""The settings of an experiment, as the results file keeps them and `--config` reads them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np

from fedmpi.errors import BadInput
from fedmpi.options import Configured, options_of, shown


def settings_of(value: Any, option: str) -> Any:
    """A value of an option as what YAML can hold, but for paths.

    A component is its class and its options. A class of fedmpi's own is called by its short name, `FedAvg`. An array
    is its shape, its type and the checksum of its values: enough to tell it from another one.

    Args:
        option: its dotted name.

    Raises:
        BadInput: YAML cannot hold it, such as a function without a name, or an object of some class.
    """
    if isinstance(type(value), Configured):
        options = _written_options(value, option)
        if _is_group(type(value)):
            return options
        return {"class_path": class_name(type(value)), **({"init_args": options} if options else {})}
    if value is None or isinstance(value, (bool, int, float, str, Path)):
        return value
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: settings_of(getattr(value, one.name), f"{option}.{one.name}") for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): settings_of(each, f"{option}.{name}") for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [settings_of(each, option) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted((settings_of(each, option) for each in value), key=str)
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)) and _is_found(value):
        return import_path(value)
    if hasattr(value, "__array__"):
        array = np.ascontiguousarray(value)
        if array.dtype != object:
            return f"{array.dtype} {list(array.shape)} sha256 {hashlib.sha256(array.data).hexdigest()}"
    allowed = "what the results file can hold: numbers, texts, paths, arrays, lists of them, or a class or function"
    raise BadInput(f"= {shown(value)}: must be {allowed} that can be imported", option)


def _written_options(component: Any, option: str) -> dict[str, Any]:
    """Those of a component; once, because the checksum of a large array takes its time."""
    known = vars(component)
    if "_written" not in known:
        given = options_of(component).items()
        known["_written"] = {name: settings_of(value, f"{option}.{name}") for name, value in given}
    written: dict[str, Any] = known["_written"]
    return written


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The single settings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def as_yaml(settings: Mapping[str, Any]) -> str:
    """The text of settings, as --print_config prints it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes paths as texts, and nothing by reference."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    # As UTF-8, whatever the locale makes of the bytes of a name.
    Dumper.add_multi_representer(
        Path, lambda dumper, path: dumper.represent_str(os.fsencode(path).decode(errors="backslashreplace"))
    )
    text: str = yaml.dump(settings, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


def class_name(cls: type) -> str:
    """What settings call the class of a component: `FedAvg`, or the import path of a user's class."""
    return short_name(import_path(cls))


def short_name(path: str) -> str:
    """Of a class of fedmpi its name, which is its only one, whatever file it lies in; of others the import path."""
    return path.rpartition(".")[2] if path.startswith("fedmpi.") else path


def import_path(named: Any) -> str:
    """Where a class or function is imported from, as short as it goes: fedmpi.data.Digits."""
    packages, name = named.__module__.split("."), named.__qualname__
    for number in range(1, len(packages)):
        package = ".".join(packages[:number])
        if getattr(sys.modules.get(package), name, None) is named:
            return f"{package}.{name}"
    return f"{named.__module__}.{name}"


def _is_found(named: Any) -> bool:
    """Whether what its import path leads to is the thing itself."""
    found: Any = sys.modules.get(named.__module__)
    for name in named.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is named


def _is_group(cls: type) -> bool:
    """Whether it is a group of options, such as `local`, and no class that is chosen by its name."""
    base = [one for one in cls.__mro__ if isinstance(one, Configured)][-1]
    return is_dataclass(base)
