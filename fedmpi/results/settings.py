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
    keys = _differing(runs, flat)
    # Where classes differ, an option that all of a class have alike tells no more than its name.
    keys = [k for k in keys if k.rpartition(".")[0] not in keys or len({one[k] for one in flat if k in one}) > 1]
    found = [[(key, *one[key]) for key in keys if key in one] for one in flat]
    return [
        ", ".join(value if is_class else f"{_leaf(key)} {value}" for key, value, is_class in one) for one in found
    ]


def table(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The method of each run, with its arguments, and all other settings but the seed in which runs differ.

    By short names. A component that is not of one class in all runs is one column, with its arguments.
    """
    flat = [dict(_flat(settings)) for settings in runs]
    differing = [key for key in _differing(runs, flat) if key != "seed" and key.split(".")[0] != "algorithm"]
    whole = {key for key in differing if "." not in key}
    shown = [key for key in differing if key in whole or key.split(".")[0] not in whole]
    leaves = [_leaf(key) for key in shown]
    columns = {"method": [describe(settings["algorithm"]) for settings in runs]}
    for key, leaf in zip(shown, leaves, strict=True):
        name = leaf if leaves.count(leaf) == 1 else key
        if key in whole:
            columns[name] = [
                describe(settings[key]) if key in one else "-" for settings, one in zip(runs, flat, strict=True)
            ]
        else:
            columns[name] = [one[key][0] if key in one else "-" for one in flat]
    return columns


def by_name(settings: Mapping[str, Any]) -> dict[str, str]:
    """All settings that say something about the experiment, by their dotted names."""
    return {key: value for key, (value, _) in _flat(settings)}


def same_but_seed(settings: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Equal for settings that describe the same experiment, repeated."""
    return frozenset((key, value) for key, (value, _) in _flat(settings) if key != "seed")


def _differing(runs: Sequence[Mapping[str, Any]], flat: Sequence[Mapping[str, object]]) -> list[str]:
    """The keys of `flat` that have not one value, in the order of the settings."""
    sections = list(dict.fromkeys(name for settings in runs for name in settings))
    keys = sorted(
        dict.fromkeys(key for one in flat for key in one),
        key=lambda key: sections.index(key.split(".")[0]),  # what only some runs have stands with its section
    )
    return [key for key in keys if len({one.get(key) for one in flat}) > 1]


def _options(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        if value is not None and name not in _PLACES:
            yield f"{name} {describe(value)}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[str, bool]]]:
    """Dotted keys of all leaves, their values as text, and whether that is a class's name."""
    for name, value in settings.items():
        if name in _PLACES or value is None:
            continue
        if not isinstance(value, Mapping):
            yield prefix + name, (str(value), False)
        elif "class_path" in value:
            yield prefix + name, (_class_name(value["class_path"]), True)
            yield from _flat(value.get("init_args") or {}, f"{prefix}{name}.")
        else:
            yield from _flat(value, f"{prefix}{name}.")


def _leaf(key: str) -> str:
    return key.split(".")[-1]


def _class_name(path: str) -> str:
    """The last part of an import path; any other text stays as it is (1.0e-05 is no import path)."""
    parts = path.split(".")
    return parts[-1] if len(parts) > 1 and all(part.isidentifier() for part in parts) else path
