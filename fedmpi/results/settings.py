"""The settings of runs as short texts for labels and tables: `FedProx (mu 0.01)`, `mu 0.1, seed 3`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fedmpi.described import short_name
from fedmpi.options import printable, shown

#: The settings of a run. They may include the checksums of the data that it has read, under the names in `DATA`.
Settings = Mapping[str, Any]

#: Top-level options that say how a run is launched. They do not describe the experiment.
LAUNCH = (
    "config",
    "output",
    "overwrite",
    "store_frozen",
    "resume",
    "checkpoint",
    "deadline",
    "track",
    "every_client",
)
#: The settings that are data sets, and for each the name of the checksum of its data.
DATA = {"dataset": "data_sha256", "algorithm.proxy": "proxy_sha256"}
#: The checksum of a user's code and of the files that options name, and the attributes of a results file with these.
CODE, FILES = "code", ("user_code", "input_files")
#: The option of a data set for the folder of its files. It does not matter if the checksum of the data is known.
PLACE = "root"
#: Options that define the task. All others belong to the method. Results on different tasks cannot be compared.
TASK = (
    "task",
    "dataset",
    "partition",
    "validation",
    "clients",
    "cohort",
    "rounds",
    "stop",
    "evaluate_every",
    "availability",
    "conditions",
    "attack",
)
#: Options that the files of older versions lack, and the value that their runs had in effect.
LATER = {"local.compile": "off", "local.accumulate": 1, "local.warmup": 0.0, "local.schedule_by": "round"}
LATER |= {"every_client": "auto"}
_CHECKSUM_SHOWN = 8  # digits of a checksum that are shown
_LARGEST = 2**64  # larger numbers are refused
_COMPONENTS = ("algorithm", "dataset", "model")


class Value(NamedTuple):
    """The value of one setting as text, and whether it is the name of a class."""

    text: str
    is_class: bool = False


Flat = dict[str, Value]


class Setting(NamedTuple):
    """One setting of several runs.

    Attributes:
        key: the dotted name.
        is_component: whether the values are classes, with or without arguments.
        values: the value in each run; None for a run that does not have the setting.
    """

    key: str
    is_component: bool
    values: list[str | None]


def sound(settings: Any) -> dict[str, Any]:
    """Check that the functions of this module can read the settings from a file, and return the settings.

    Raises:
        ValueError: they cannot. The message has no subject, so that the caller can name the settings before it.
    """
    if not isinstance(settings, dict):
        raise ValueError("is no mapping")
    for name in _COMPONENTS:
        value = settings.get(name, "")
        if not isinstance(value, str) and not (isinstance(value, dict) and "class_path" in value):
            raise ValueError(f"has no {name}, but {shown(value)}")
    if not isinstance(settings.get("rounds", 0), int):
        raise ValueError(f"has rounds that are no whole number: {shown(settings['rounds'])}")
    waiting: list[Any] = [settings]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"has a number beyond {_LARGEST:.0e}")
        if isinstance(value, list):
            waiting += value
        if isinstance(value, dict):
            waiting += value.values()
            names = [*value, value.get("class_path", "")]
            if not all(isinstance(name, str) and name.isprintable() for name in names):
                raise ValueError("has a name that is no text, or cannot be printed")
            if "class_path" in value and not isinstance(value.get("init_args") or {}, dict):
                raise ValueError("has init_args that are no mapping")
    return settings


def describe(value: Any) -> str:
    """A setting as one line of text: a component with its arguments, a group of options, or a plain value."""
    if not isinstance(value, Mapping):
        return printable(str(value))
    if "class_path" not in value:
        return ", ".join(_options(value))
    options = ", ".join(_options(value.get("init_args") or {}))
    name = _last_part(value["class_path"])
    return f"{name} ({options})" if options else name


def differing(runs: Sequence[Settings]) -> list[Setting]:
    """The settings in which runs differ, in the order of the settings.

    If the runs have different classes of a component, the component is one setting. Its value is the class, with the
    arguments in which the runs of that class differ. If all runs have the same class, each argument in which they
    differ is a setting.

    If runs read different data, the folder of the data is one of the settings. If the folders do not show which runs
    read different data, the checksum of the data is given instead, as `data`.
    """
    flat = _shown(runs)
    keys = _differing(runs, flat)
    return [_setting(key, flat) for key in keys if not any(key.startswith(f"{other}.") for other in keys)]


def labels(runs: Sequence[Settings]) -> list[str]:
    """A label for each run, with all settings in which the runs differ; empty if they do not differ."""
    return _labels(differing(runs), len(runs))


def names(runs: Sequence[Settings]) -> list[str]:
    """Short labels that distinguish the runs.

    A setting is left out if the settings before it already distinguish the same runs. An example is a learning rate
    that each method has only one value of.
    """
    kept: list[Setting] = []
    apart = 1
    for setting in differing(runs):
        with_it = len(set(zip(*(one.values for one in (*kept, setting)), strict=True)))
        if with_it > apart:
            kept.append(setting)
            apart = with_it
    return _labels(kept, len(runs))


def methods(runs: Sequence[Settings]) -> list[str]:
    """The name of each run's method, with its module if different methods have the same name."""
    return [flat["algorithm"].text for flat in _shown(runs)]


def table(runs: Sequence[Settings], taken: Collection[str] = ()) -> dict[str, list[str]]:
    """Columns of a table: the method, and the other settings except the seed in which runs differ.

    Args:
        runs: the settings of each run.
        taken: names that other columns have. Settings with such a name get their dotted name.

    Returns:
        By the short name of each setting, its value in each run; `-` if the run does not have the setting.
    """
    others = _others(runs)
    columns = {"method": _setting("algorithm", _shown(runs)).values}
    columns |= dict(
        zip(_short_names(others, {"method", "seed", *taken}), (one.values for one in others), strict=True)
    )
    return {name: [value or "-" for value in values] for name, values in columns.items()}


def of_method(runs: Sequence[Settings]) -> set[str]:
    """The names of the columns of `table` that belong to the method, such as its learning rate."""
    others = _others(runs)
    names = _short_names(others, {"method", "seed"})
    return {name for name, one in zip(names, others, strict=True) if not _is_task(one.key)}


def task(settings: Settings) -> frozenset[tuple[str, str]]:
    """A key for the task of a run: it is equal for runs on the same task."""
    return frozenset((key, value) for key, value in by_name(settings).items() if _is_task(key))


def by_name(settings: Settings) -> dict[str, str]:
    """All settings that describe the experiment, by their dotted names.

    If the checksum of the data is known, it replaces the folder of the data, as `dataset.data`.
    """
    flat = dict(_flat(settings))
    for section, checksum in DATA.items():
        if checksum in settings:
            flat = {key: value for key, value in flat.items() if not _is_place(key, section)}
            flat[f"{section}.data"] = Value(settings[checksum])
    if CODE in settings:
        flat[CODE] = Value(settings[CODE])
    return {key: value.text for key, value in flat.items()}


def same_but_seed(settings: Settings) -> frozenset[tuple[str, str]]:
    """A key for the experiment of a run: it is equal for runs that differ only in the seed."""
    return frozenset((key, value) for key, value in by_name(settings).items() if key != "seed")


def _others(runs: Sequence[Settings]) -> list[Setting]:
    """The settings in which runs differ, except the method and the seed."""
    return [one for one in differing(runs) if one.key != "seed" and one.key.split(".")[0] != "algorithm"]


def _is_task(key: str) -> bool:
    return key.split(".")[0] in TASK


def _labels(settings: Sequence[Setting], count: int) -> list[str]:
    short = _short_names(settings)
    return [
        ", ".join(
            value if setting.is_component else f"{name} {value}"
            for setting, name in zip(settings, short, strict=True)
            if (value := setting.values[number]) is not None
        )
        for number in range(count)
    ]


def _short_names(settings: Sequence[Setting], taken: Collection[str] = ()) -> list[str]:
    """The last part of each key, or the whole key if its last part is also another name."""
    leaves = [_last_part(setting.key) for setting in settings]
    alone = [leaves.count(leaf) == 1 and leaf not in taken for leaf in leaves]
    return [leaf if ok else setting.key for leaf, ok, setting in zip(leaves, alone, settings, strict=True)]


def _shown(runs: Sequence[Settings]) -> list[Flat]:
    """All settings of each run in the form in which they are shown, by their dotted keys."""
    flat = [dict(_flat(settings)) for settings in runs]
    for section, checksum in DATA.items():
        flat = _with_data(flat, section, [settings.get(checksum) for settings in runs])
    flat = _with_code(flat, [settings.get(CODE) for settings in runs])
    paths = {value.text for one in flat for value in one.values() if value.is_class}
    last = [_last_part(path) for path in paths]
    short = {path: name if last.count(name := _last_part(path)) == 1 else path for path in paths}
    return [
        {key: Value(short.get(v.text, v.text), True) if v.is_class else v for key, v in one.items()} for one in flat
    ]


def _with_data(flat: Sequence[Flat], section: str, checksums: Sequence[str | None]) -> list[Flat]:
    """The settings, changed so that the folder or the checksum of the data shows which runs read different data.

    The settings are unchanged if the folders show it. Otherwise, runs with a checksum lose the folder. They get the
    checksum if the other settings do not already distinguish the data.
    """
    inside = [{key: value for key, value in one.items() if f"{key}.".startswith(f"{section}.")} for one in flat]
    places = [frozenset(item for item in one.items() if _is_place(item[0], section)) for one in inside]
    others = [frozenset(one.items()) - place for one, place in zip(inside, places, strict=True)]
    data = [checksum or place for checksum, place in zip(checksums, places, strict=True)]
    needed = len({*zip(others, data, strict=True)}) > len({*others})
    if needed and len({*zip(places, data, strict=True)}) == len({*places}) == len({*data}):
        return list(flat)
    told = []
    for one, checksum in zip(flat, checksums, strict=True):
        if checksum:
            one = {key: value for key, value in one.items() if not _is_place(key, section)}
        if checksum and needed:
            one[f"{section}.data"] = Value(checksum[:_CHECKSUM_SHOWN])
        told.append(one)
    return told


def _with_code(flat: Sequence[Flat], checksums: Sequence[str | None]) -> list[Flat]:
    """The settings, with the checksum of the code if the other settings do not distinguish runs of different code."""
    others = [frozenset(item for item in one.items() if item[0] != "seed") for one in flat]
    if len({*zip(others, checksums, strict=True)}) == len({*others}):
        return list(flat)
    told = [{CODE: Value(checksum[:_CHECKSUM_SHOWN])} if checksum else {} for checksum in checksums]
    return [{**one, **more} for one, more in zip(flat, told, strict=True)]


def _is_place(key: str, section: str) -> bool:
    return key.startswith(f"{section}.") and _last_part(key) == PLACE


def _differing(runs: Sequence[Settings], flat: Sequence[Flat]) -> list[str]:
    """The keys whose values are not the same in all runs, in the order of the settings."""
    sections = list(dict.fromkeys(name for settings in runs for name in settings))
    keys = sorted(
        dict.fromkeys(key for one in flat for key in one),
        key=lambda key: sections.index(key.split(".")[0]),  # a key of some runs only is next to its section
    )
    return [key for key in keys if len({one.get(key) for one in flat}) > 1]


def _setting(key: str, flat: Sequence[Flat]) -> Setting:
    is_component = any(one[key].is_class for one in flat if key in one)
    return Setting(key, is_component, [_value(key, one, flat) for one in flat])


def _value(key: str, run: Flat, flat: Sequence[Flat]) -> str | None:
    """The value of a setting in a run. A class has the arguments in which the runs of this class differ."""
    if key not in run:
        return None
    alike = [one for one in flat if one.get(key) == run[key]]
    own = [name for name in run if name.startswith(f"{key}.") and len({one.get(name) for one in alike}) > 1]
    arguments = ", ".join(
        f"{name} {run[full].text}"
        for full, name in zip(own, _short_names([Setting(name, False, []) for name in own]), strict=True)
    )
    return f"{run[key].text} ({arguments})" if arguments else run[key].text


def _options(arguments: Settings) -> Iterator[str]:
    for name, value in arguments.items():
        if value is not None:
            yield f"{name} {describe(value)}"


def _flat(settings: Settings) -> Iterator[tuple[str, Value]]:
    """Dotted keys and values of all settings except launch options and checksums."""
    ignored = {*LAUNCH, *DATA.values(), CODE}
    yield from _leaves({name: value for name, value in settings.items() if name not in ignored})


def _leaves(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Value]]:
    for name, value in settings.items():
        if value is None:
            continue
        if not isinstance(value, Mapping):
            yield prefix + name, Value(printable(str(value)))
        elif "class_path" in value:
            yield prefix + name, Value(short_name(value["class_path"]), True)
            yield from _leaves(value.get("init_args") or {}, f"{prefix}{name}.")
        else:
            yield from _leaves(value, f"{prefix}{name}.")


def _last_part(path: str) -> str:
    return path.rpartition(".")[2]
