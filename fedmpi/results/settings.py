"""A run's configuration as people speak of it: `FedProx (mu 0.01)`, `mu 0.1, seed 3`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Settings = Mapping[str, Any]

# Where files lie says nothing about the experiment.
_PLACES = {"root", "output", "resume", "overwrite", "checkpoint"}


class Setting(NamedTuple):
    """One setting of several runs: its dotted key, whether it is a component, and each run's value, if it has one."""

    key: str
    is_component: bool
    values: list[str | None]

    @property
    def leaf(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


def describe(value: Any) -> str:
    """One setting, on one line: a component with its arguments, a group of options, or a plain value."""
    if not isinstance(value, Mapping):
        return _class_name(str(value))
    if "class_path" not in value:
        return ", ".join(_options(value))
    options = ", ".join(_options(value.get("init_args") or {}))
    name = _class_name(value["class_path"])
    return f"{name} ({options})" if options else name


def differing(runs: Sequence[Settings]) -> list[Setting]:
    """What sets runs apart, in the order of the settings.

    Of a component that is not of one class in all runs, the class, with those of its arguments in which runs of
    that class differ; of one that is, these arguments alone.
    """
    flat = [dict(_flat(settings)) for settings in runs]
    keys = _differing(runs, flat)
    return [_setting(key, flat) for key in keys if not any(key.startswith(f"{other}.") for other in keys)]


def labels(runs: Sequence[Settings]) -> list[str]:
    """For each run's settings, all that is not the same in the others' (empty where nothing differs)."""
    return _labels(differing(runs), len(runs))


def names(runs: Sequence[Settings]) -> list[str]:
    """As `labels`, but no more than it takes to tell runs apart: what the method already decides is left out."""
    kept: list[Setting] = []
    apart = 1
    for setting in differing(runs):
        with_it = len(set(zip(*(one.values for one in (*kept, setting)), strict=True)))
        if with_it > apart:
            kept.append(setting)
            apart = with_it
    return _labels(kept, len(runs))


def table(runs: Sequence[Settings]) -> dict[str, list[str]]:
    """The method of each run, and all other settings but the seed in which runs differ, by short names."""
    method = _setting("algorithm", [dict(_flat(settings)) for settings in runs])
    others = [one for one in differing(runs) if one.key != "seed" and one.key.split(".")[0] != "algorithm"]
    leaves = [one.leaf for one in others]
    columns = {"method": method.values}
    columns |= {one.leaf if leaves.count(one.leaf) == 1 else one.key: one.values for one in others}
    return {name: [value or "-" for value in values] for name, values in columns.items()}


def by_name(settings: Settings) -> dict[str, str]:
    """All settings that say something about the experiment, by their dotted names."""
    return {key: value for key, (value, _) in _flat(settings)}


def same_but_seed(settings: Settings) -> frozenset[tuple[str, str]]:
    """Equal for settings that describe the same experiment, repeated."""
    return frozenset((key, value) for key, value in by_name(settings).items() if key != "seed")


def _labels(settings: Sequence[Setting], count: int) -> list[str]:
    return [
        ", ".join(
            value if setting.is_component else f"{setting.leaf} {value}"
            for setting in settings
            if (value := setting.values[number]) is not None
        )
        for number in range(count)
    ]


def _differing(runs: Sequence[Settings], flat: Sequence[Mapping[str, object]]) -> list[str]:
    """The keys of `flat` that have not one value, in the order of the settings."""
    sections = list(dict.fromkeys(name for settings in runs for name in settings))
    keys = sorted(
        dict.fromkeys(key for one in flat for key in one),
        key=lambda key: sections.index(key.split(".")[0]),  # what only some runs have stands with its section
    )
    return [key for key in keys if len({one.get(key) for one in flat}) > 1]


def _setting(key: str, flat: Sequence[Mapping[str, tuple[str, bool]]]) -> Setting:
    is_component = any(one[key][1] for one in flat if key in one)
    return Setting(key, is_component, [_value(key, one, flat) for one in flat])


def _value(
    key: str, run: Mapping[str, tuple[str, bool]], flat: Sequence[Mapping[str, tuple[str, bool]]]
) -> str | None:
    """Of a component with the arguments in which the runs with the same class there differ."""
    if key not in run:
        return None
    alike = [one for one in flat if one.get(key) == run[key]]
    own = [name for name in run if name.startswith(f"{key}.") and len({one.get(name) for one in alike}) > 1]
    arguments = ", ".join(f"{name.rpartition('.')[2]} {run[name][0]}" for name in own)
    return f"{run[key][0]} ({arguments})" if arguments else run[key][0]


def _options(arguments: Settings) -> Iterator[str]:
    for name, value in arguments.items():
        if value is not None and name not in _PLACES:
            yield f"{name} {describe(value)}"


def _flat(settings: Settings, prefix: str = "") -> Iterator[tuple[str, tuple[str, bool]]]:
    """Dotted keys of all leaves, their values as text, and whether that is a class's name."""
    for name, value in settings.items():
        if name in _PLACES or value is None:
            continue
        if not isinstance(value, Mapping):
            yield prefix + name, (_class_name(str(value)), False)
        elif "class_path" in value:
            yield prefix + name, (_class_name(value["class_path"]), True)
            yield from _flat(value.get("init_args") or {}, f"{prefix}{name}.")
        else:
            yield from _flat(value, f"{prefix}{name}.")


def _class_name(path: str) -> str:
    """The last part of an import path; any other text stays as it is (1.0e-05 is no import path)."""
    parts = path.split(".")
    return parts[-1] if len(parts) > 1 and all(part.isidentifier() for part in parts) else path
