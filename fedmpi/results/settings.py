"""A run's configuration as people speak of it: `FedProx (mu 0.01)`, `mu 0.1, seed 3`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Where files lie says nothing about the experiment.
_PLACES = {"root", "output", "resume", "overwrite", "checkpoint"}


def describe(value: Any) -> str:
    """One setting, on one line: a component with its arguments, a group of options, or a plain value."""
    if not isinstance(value, Mapping):
        return _class_name(str(value))
    if "class_path" not in value:
        return ", ".join(_options(value))
    options = ", ".join(_options(value.get("init_args") or {}))
    name = _class_name(value["class_path"])
    return f"{name} ({options})" if options else name


def differences(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each run's settings, what tells them from the others' (empty where nothing does)."""
    flat = [dict(_flat(settings)) for settings in runs]
    sections = list(dict.fromkeys(name for settings in runs for name in settings))
    keys = sorted(
        dict.fromkeys(key for one in flat for key in one),
        key=lambda key: sections.index(key.split(".")[0]),  # what only some runs have stands with its section
    )
    differing = [key for key in keys if len({one.get(key) for one in flat}) > 1]
    return [", ".join(one[key] for key in differing if key in one) for one in flat]


def _options(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        if value is not None and name not in _PLACES:
            yield f"{name} {describe(value)}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and texts of all leaves; a class stands for itself, an option carries its name."""
    for name, value in settings.items():
        if name in _PLACES or value is None:
            continue
        if not isinstance(value, Mapping):
            yield prefix + name, f"{name} {value}"
        elif "class_path" in value:
            yield prefix + name, _class_name(value["class_path"])
            yield from _flat(value.get("init_args") or {}, f"{prefix}{name}.")
        else:
            yield from _flat(value, f"{prefix}{name}.")


def _class_name(path: str) -> str:
    """The last part of an import path; any other text stays as it is (1.0e-05 is no import path)."""
    parts = path.split(".")
    return parts[-1] if len(parts) > 1 and all(part.isidentifier() for part in parts) else path
