"""The settings of an experiment as YAML, for the results file and `--config`."""

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
    """The value of an option as a value for YAML (or a path).

    A component becomes its class and its options. A class of fedmpi has its short name, `FedAvg`. An array becomes
    its shape, type and checksum, by which it can be compared.

    Args:
        option: its dotted name.

    Raises:
        BadInput: YAML cannot hold it, for example a function without a name, or an object of another class.
    """
    if isinstance(type(value), Configured):
        options = _written_options(value, option)
        if is_group(type(value)):
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
    """The options of a component. They are computed once, because the checksum of a large array takes time."""
    known = vars(component)
    if "_written" not in known:
        given = options_of(component).items()
        known["_written"] = {name: settings_of(value, f"{option}.{name}") for name, value in given}
    written: dict[str, Any] = known["_written"]
    return written


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The single settings with their dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def as_yaml(settings: Mapping[str, Any]) -> str:
    """The text of settings, as --print_config prints it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes paths as texts, and no YAML references."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    # As UTF-8, whatever the locale makes of the bytes of a name.
    Dumper.add_multi_representer(
        Path, lambda dumper, path: dumper.represent_str(os.fsencode(path).decode(errors="backslashreplace"))
    )
    text: str = yaml.dump(settings, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


def class_name(cls: type) -> str:
    """The name of a component's class in settings: `FedAvg`, or the import path of a user's class."""
    return short_name(import_path(cls))


def short_name(path: str) -> str:
    """For fedmpi's classes the name alone, which is unique for each option; for others the import path."""
    return path.rpartition(".")[2] if path.startswith("fedmpi.") else path


def import_path(named: Any) -> str:
    """The shortest import path of a class or function: fedmpi.data.Digits."""
    packages, name = named.__module__.split("."), named.__qualname__
    for number in range(1, len(packages)):
        package = ".".join(packages[:number])
        if getattr(sys.modules.get(package), name, None) is named:
            return f"{package}.{name}"
    return f"{named.__module__}.{name}"


def _is_found(named: Any) -> bool:
    """Whether its import path leads to the object itself."""
    found: Any = sys.modules.get(named.__module__)
    for name in named.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is named


def is_group(cls: type) -> bool:
    """Whether it is a group of options, such as `local`, and not a class that is chosen by name."""
    base = [one for one in cls.__mro__ if isinstance(one, Configured)][-1]
    return is_dataclass(base)
