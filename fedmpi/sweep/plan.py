"""The runs of a sweep: every setting of a grid file or of a list, with every seed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from fedmpi import results, small_yaml
from fedmpi.described import as_yaml
from fedmpi.errors import BadInput
from fedmpi.experiment import inputs
from fedmpi.experiment.command_line import HelpPrinted, parse
from fedmpi.experiment.config_file import by_depth, nested, with_words
from fedmpi.experiment.resume import check_settings
from fedmpi.options import check_length, shown
from fedmpi.results import Run
from fedmpi.results.paths import LONGEST_DECORATION
from fedmpi.results.settings import by_name, describe, same_but_seed
from fedmpi.results.writer import check_writable

KEYS = ("options", "grid", "seeds")
#: Options that the sweep itself gives to each run.
OWN = ("seed", "output", "overwrite", "resume")
LIST = ".list"
GRID = (".yaml", ".yml")


@dataclass(frozen=True)
class Setting:
    """One setting of a sweep.

    Attributes:
        name: unique in the sweep, and a part of file names.
        arguments: the options of `python -m fedmpi`, without those that the sweep gives to each run.
        values: the values of the options that vary, as texts, by the names of the options.
    """

    name: str
    arguments: list[str]
    values: dict[str, str]


@dataclass(frozen=True)
class Job:
    """One run of a sweep, whose options have been checked.

    Attributes:
        output: the results file.
        arguments: the options of `python -m fedmpi` that start the run or continue it.
        settings: of the experiment, all of them.
    """

    output: Path
    arguments: list[str]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.output.stem

    @property
    def log(self) -> Path:
        """The file for what the run prints."""
        return self.output.with_suffix(".log")

    def finished(self) -> Run | None:
        """The results, if the run has finished; raises BadInput as `is_running`."""
        run = self._found()
        is_whole = run and run.status == "finished" and run.settings["rounds"] >= self.settings["rounds"]
        return run if is_whole else None

    def check_code(self) -> None:
        """Raise BadInput if the run has finished, and the user's code or files have changed since."""
        run = self.finished()
        if run and (name := inputs.changed(run, as_yaml(self.settings))):
            raise BadInput(f"{name} has changed since {self.output} was made; another --output starts a new sweep")

    def is_running(self) -> bool:
        """Whether another program runs it at the moment.

        Raises:
            BadInput: the results file is damaged, or is of another setting.
        """
        run = self._found()
        return run is not None and run.status == "running"

    def _found(self) -> Run | None:
        if not self.output.exists():
            return None
        run = results.open(self.output)
        try:
            check_settings(run, as_yaml(self.settings))
            if run.status == "finished" and _stop(run.settings) != _stop(self.settings):
                raise BadInput("--stop: must be as in the run that has finished")
        except BadInput as error:
            raise BadInput(f"{self.output}: {error}; another --output starts a new sweep") from None
        return run


@dataclass(frozen=True)
class Plan:
    """The settings of a sweep.

    Args:
        path: the grid file, or the list.
        settings: all settings.
        seeds: of each setting.
        folder: of the results files.
    """

    path: Path
    settings: list[Setting]
    seeds: Sequence[int]
    folder: Path

    def jobs(self) -> list[list[Job]]:
        """The runs [settings][seeds], after checking all of them.

        Raises:
            BadInput: in one line that names the file and the setting.
        """
        jobs: list[list[Job]] = []
        known: dict[frozenset[tuple[str, str]], str] = {}
        for setting in self.settings:
            try:
                jobs.append(list(self._of(setting)))
            except BadInput as error:
                raise BadInput(f"{self.path}, setting {setting.name}: {error}") from None
            other = known.setdefault(same_but_seed(jobs[-1][0].settings), setting.name)
            if other != setting.name:
                raise BadInput(f"{self.path}: the settings {other} and {setting.name} are the same experiment")
        return jobs

    def _of(self, setting: Setting) -> Iterator[Job]:
        """The runs of a setting. Its options are read once, because that takes a tenth of a second."""
        settings: dict[str, Any] = {}
        for seed in self.seeds:
            output = self.folder / f"{setting.name}-{seed}.h5"
            check_length(output, LONGEST_DECORATION)
            check_writable(output, overwrite=True)
            arguments = [*setting.arguments, f"--seed={seed}", f"--output={output}", "--resume"]
            settings = settings or _settings(arguments)
            yield Job(output, arguments, {**settings, "seed": seed})


def _stop(settings: dict[str, Any]) -> dict[str, str]:
    """The options that may end a run early."""
    return {name: value for name, value in by_name(settings).items() if name.startswith("stop.")}


def _settings(arguments: list[str]) -> dict[str, Any]:
    try:
        return parse(arguments, speaks=False)[0].settings
    except HelpPrinted:
        raise BadInput("must hold settings only, and neither --help nor --print_config") from None


def read(path: Path, seeds: Sequence[int] | None, folder: Path | None) -> Plan:
    """Read a grid file or a list.

    Args:
        path: NAME.yaml or NAME.list.
        seeds: replace those of the grid file; None: those of the grid file, else 0.
        folder: of the results files; None: runs/NAME.

    Raises:
        BadInput: the file cannot be read, or is neither of them.
    """
    if path.suffix not in (LIST, *GRID):
        raise BadInput(f"{path}: must end in {', '.join(GRID)} (a grid) or {LIST} (a list of runs)")
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 (byte {error.start})") from None
    try:
        settings, own = (list(_listed(text)), [0]) if path.suffix == LIST else _grid(text)
        chosen = _seeds(seeds or own)
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: {small_yaml.reason(error)}") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    return Plan(path, settings, chosen, folder or Path("runs") / path.stem)


def _listed(text: str) -> Iterator[Setting]:
    """The settings of a list: one line per setting, with a name, a YAML file and options."""
    names = set()
    for line in text.splitlines():
        name, *words = line.split() or [""]
        if not name or name.startswith("#"):
            continue
        if name in names:
            raise BadInput(f"two lines have the name {shown(name)}")
        names.add(name)
        for word in words:
            if word.startswith("--"):
                _refuse_own(name, word.removeprefix("--").partition("=")[0])
        has_file = bool(words) and not words[0].startswith("-")
        yield Setting(name, ["--config"] * has_file + words, {"setting": name})
    if not names:
        raise BadInput("has no line with a name, a YAML file and options")


def _grid(text: str) -> tuple[list[Setting], Any]:
    """The settings of a grid file, and its seeds, which are not checked yet."""
    given = small_yaml.load(with_words(text))  # as in a file for --config
    if not isinstance(given, dict) or "grid" not in given:
        raise BadInput("must hold a grid, as in `grid: {local.lr: [0.01, 0.1]}`")
    for key in given:
        if key not in KEYS:
            raise BadInput(f"unknown key {shown(key)}: must be one of {', '.join(KEYS)}")
    options, grid = (_options(name, given.get(name, {})) for name in ("options", "grid"))
    if not grid:
        raise BadInput("grid = {}: must hold at least one option with a list of values")
    names = _short(grid)
    for option, values in grid.items():
        if option in options:
            raise BadInput(f"{option}: must be either in options or in grid")
        if not isinstance(values, list) or not values:
            raise BadInput(f"grid: {option} = {shown(values)}: must be a list of values, as in [0.01, 0.1]")
        parts = [_part(names[option], value) for value in values]
        for number, part in enumerate(parts):
            if (other := values[parts.index(part)]) != values[number]:
                both = f"{_shown(other)} and {_shown(values[number])}"
                raise BadInput(f"grid: {option}: {both} would have the same file name {part}: use two grid files")
        _refuse_repeated(f"grid: {option}", parts)
    settings = []
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        nested({**options, **chosen})  # an option that is given twice is refused: the setting's name would be wrong
        varied = {names[option]: _shown(value) for option, value in chosen.items() if len(grid[option]) > 1}
        name = "-".join(_part(names[option], value) for option, value in chosen.items())
        settings.append(Setting(name, _arguments({**options, **chosen}), varied))
    return settings, given.get("seeds", [0])


def _options(key: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(option, str) for option in given):
        raise BadInput(f"{key} = {shown(given)}: must hold options, as in `local.lr: ...`")
    for option in given:
        _refuse_own(key, option)
    return given


def _refuse_own(place: str, option: str) -> None:
    if option in OWN:
        instead = "use the sweep's seeds" if option == "seed" else "the sweep gives it to each run"
        raise BadInput(f"{place}: {option} cannot be given here: {instead}")


def _seeds(given: Any) -> list[int]:
    is_sound = isinstance(given, list) and given and all(type(seed) is int and 0 <= seed < 2**63 for seed in given)
    if not is_sound:
        raise BadInput(f"seeds = {shown(given)}: must be a list of whole numbers from 0 to 2^63 - 1, as in [0, 1, 2]")
    _refuse_repeated("seeds", given)
    return list(given)


def _refuse_repeated(place: str, values: Sequence[Any]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise BadInput(f"{place}: {shown(value)} is given twice")


def _short(options: Mapping[str, Any]) -> dict[str, str]:
    """The last part of each option's name, or the whole name if several end in the same way."""
    last = [option.rpartition(".")[2] for option in options]
    return {option: name if last.count(name) == 1 else option for option, name in zip(options, last, strict=True)}


def _part(name: str, value: Any) -> str:
    """An option and its value as a part of a file's name: `lr_0.1`, but `FedProx` without its name."""
    text = re.sub(r"[^\w.+-]+", "_", _shown(value)).strip("_")
    return text if text[:1].isupper() else f"{name}_{text}"


def _shown(value: Any) -> str:
    return describe(value) if isinstance(value, Mapping) else _word(value)


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """The options as arguments: a YAML file first, and a class before its own options."""
    return [f"--{option}={_word(options[option])}" for option in by_depth(options)]


def _word(value: Any) -> str:
    """A value as on the command line. It has no spaces, unless a text has some."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
