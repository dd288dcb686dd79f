"""The command line: jsonargparse reads the constructors' signatures, and errors are one line."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jsonargparse
import jsonargparse._typehints
import yaml

from fedmpi import small_yaml
from fedmpi.described import as_yaml, import_path, short_name
from fedmpi.errors import BadInput
from fedmpi.experiment import config_file
from fedmpi.experiment.catalogue import BY_DATA, COMPONENTS, GROUPS, INNER_GROUPS, bases, own_class
from fedmpi.experiment.experiment import Experiment
from fedmpi.experiment.help import Help, of_one_class
from fedmpi.experiment.messages import failed_import, flat, in_one_line, unknown_class
from fedmpi.options import Configured, expanded
from fedmpi.randomness import globals_kept, key, seed_globals

#: The name of this module's YAML loader in jsonargparse.
PARSER_MODE = "fedmpi"
#: Options that stand alone.
FLAGS = ("--overwrite", "--resume")


class HelpPrinted(Exception):
    """--help or --print_config has been printed, so there is nothing to run."""


@globals_kept()
def parse(arguments: list[str], speaks: bool = True) -> tuple[Experiment, str]:
    """The experiment that the arguments describe, and its settings as YAML.

    Args:
        arguments: without the program's name.
        speaks: whether this rank prints --help and --print_config; one rank of a job does.

    Raises:
        BadInput: in one line.
        HelpPrinted: after --help or --print_config.
    """
    if not any(re.match(r"-h$|--help(=|$)|--print_config|--[\w.]+\.help(=|$)", argument) for argument in arguments):
        import torch  # noqa: F401 (its first random numbers differ between processes unless they are seeded)
    seed_globals(key(0, "imports"))  # a user's files may draw while they are imported, and the seed is not known yet
    _refuse_long_numbers(arguments)
    parser = make_parser()
    arguments = list(_with_config_files(arguments))
    with contextlib.ExitStack() as quiet:
        if not speaks:
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
        if lines := list(of_one_class(arguments)):
            print("\n".join(lines))
            raise HelpPrinted
        try:
            settings = parser.parse_args([f"{a}=true" if a in FLAGS else a for a in arguments])
        except _Exit:
            raise HelpPrinted from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # this imports the files of a user's classes, which may raise anything
            if place := failed_import(error):
                raise BadInput(f"cannot import {place}") from None
            if isinstance(error, ArgumentError):
                raise BadInput(in_one_line(str(error), parser, arguments)) from None
            raise
    for group in GROUPS:
        if settings[group] is None:
            raise BadInput(f"--{group} = null: must be options, or a YAML file of them")
    make = partial(_make, settings.as_dict())
    makers = [(make, base, True) for base in [*bases(), *GROUPS.values(), *INNER_GROUPS.values()]]
    seed_globals(key(settings["seed"], "constructors"))
    try:
        made = parser.instantiate(settings, instantiators=makers).as_dict()
        experiment = _make({}, Experiment, **{name: value for name, value in made.items() if name != "config"})
    except _Refused as refused:
        raise BadInput(flat(str(refused))) from None
    except _Failed as failed:
        raise failed.error from None
    experiment.arguments = arguments
    return experiment, experiment.config


@cache
def make_parser() -> jsonargparse.ArgumentParser:
    """The parser of an experiment's settings; made once, because a sweep or a list reads many settings."""
    parser = _Parser(
        prog="python -m fedmpi",
        add_help=False,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=PARSER_MODE,
    )
    parser.add_argument("-h", "--help", action=Help)
    parser.add_argument("--config", action="config", help="YAML file of settings, as --print_config prints them.")
    parser.add_class_arguments(Experiment, fail_untyped=True)
    default, known = Experiment(), set(COMPONENTS) - BY_DATA
    parser.set_defaults({name: {"class_path": import_path(type(getattr(default, name)))} for name in known})
    return parser


def _forget_other_class(parser: object, previous: Any, value: Any) -> None:
    """If another class is named, its options start from its own defaults.

    jsonargparse would keep options of the class named before (or of the default) if the new class has options of the
    same names: `--model MLP` would be normalised because LeNet is. jsonargparse has no setting for this, so its
    function is replaced.
    """
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        for option in list(previous["init_args"].keys()):
            previous["init_args"].pop(option)


def _replace(module: ModuleType, name: str, function: Callable[..., Any]) -> None:
    """Replace a function of a library, or raise an error if its version does not allow it.

    Raises:
        ImportError: the function does not exist, or takes other arguments.
    """
    taken = len(inspect.signature(getattr(module, name, lambda: None)).parameters)
    if taken != len(inspect.signature(function).parameters):
        installed = f"{module.__name__.split('.')[0]} {version(module.__name__.split('.')[0])}"
        raise ImportError(f"{installed} has no function {name} of the kind that fedmpi replaces: install another one")
    setattr(module, name, function)


_by_name = jsonargparse._typehints.resolve_class_path_by_name


def _import_path_of(base: Any, name: str) -> str:
    """The import path of the class with this name.

    A short name means fedmpi's class, because jsonargparse could not decide if a user's class had the same name. The
    same holds for a path of an older version of fedmpi.
    """
    own = own_class(name, base) if isinstance(base, Configured) else None
    return import_path(own) if own else _by_name(base, name)


_replace(jsonargparse._typehints, "resolve_class_path_by_name", _import_path_of)
_replace(jsonargparse._typehints, "discard_init_args_on_class_path_change", _forget_other_class)


def _load_yaml(text: str) -> Any:
    """Load YAML like jsonargparse, but keep words such as off."""
    if re.search("[\udc80-\udcff]", text):
        return text  # a path with letters that the locale does not know, which YAML does not either
    small_yaml.check(text)
    return jsonargparse.get_loader("yaml")(config_file.with_words(text))


def _dump_yaml(settings: dict[str, Any]) -> str:
    """Write YAML as in the results file, with short names of fedmpi's classes."""
    return as_yaml(_with_short_names(settings))


def _with_short_names(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    renamed = {name: _with_short_names(value) for name, value in settings.items()}
    if "class_path" in renamed:
        renamed["class_path"] = short_name(renamed["class_path"])
    return renamed


jsonargparse.set_dumper(PARSER_MODE, _dump_yaml)
jsonargparse.set_loader(PARSER_MODE, _load_yaml, exceptions=(yaml.YAMLError,))


def _refuse_long_numbers(arguments: list[str]) -> None:
    option = ""
    for argument in arguments:
        option = argument.partition("=")[0] if argument.startswith("--") else option
        if small_yaml.LONG_NUMBER.search(argument):
            raise BadInput(f"{option}: has {small_yaml.TOO_MANY_DIGITS}")


def _with_config_files(arguments: list[str]) -> Iterator[str]:
    """The arguments with expanded paths of --config, after checking that each file holds settings."""
    is_path = False
    for argument in arguments:
        option, equals, path = argument.partition("=")
        if is_path:
            yield _checked_config(argument)
        elif option == "--config" and equals:
            yield f"--config={_checked_config(path)}"
        else:
            yield argument
        is_path = argument == "--config"


def _checked_config(given: str) -> str:
    """The path of a file of settings, after checking it, because jsonargparse's messages would not name the file."""
    try:
        path = expanded(given)
    except BadInput as error:
        raise BadInput(f"--config {error.message}") from None
    config_file.read(path, given)
    return str(path)


class _Exit(BaseException):
    """The parser has printed help. It is not SystemExit, because a user's file may raise that as well."""


class _Parser(jsonargparse.ArgumentParser):
    def parse_path(self, path: str | os.PathLike[str], *args: Any, **options: Any) -> jsonargparse.Namespace:
        """Parse a file of settings. Files that it names are looked for in its folder."""
        here = os.getcwd()
        settings = config_file.read(Path(path), os.fspath(path))
        os.chdir(Path(path).parent)
        try:
            # In quotes, or a text would be read again as what it looks like.
            text = yaml.safe_dump(settings, default_style='"')
            return self.parse_string(text, os.path.basename(path), *args, **options)
        finally:
            os.chdir(here)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Exit


class _Refused(BaseException):
    """Bad input in a constructor. It is not an Exception, because jsonargparse would replace its message."""


class _Failed(BaseException):
    """Another error in a constructor; not an Exception for the same reason."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _make(settings: Mapping[str, Any], cls: type, *args: Any, **options: Any) -> Any:
    """Construct a component. If it raises bad input, complete the name of the option."""
    if cls in bases():
        raise _Refused(unknown_class(_place(settings, cls, None, options)[:-1], cls.__name__))
    try:
        return cls(*args, **options)
    except BadInput as error:
        place = _place(settings, cls, error.option, options)
        raise _Refused(f"--{place}{error.option} {error.message}" if error.option else error.message) from None
    except (ValueError, SystemExit) as error:
        raise _Refused(f"--{_place(settings, cls, None, options)[:-1]} = {cls.__name__}: {error}") from None
    except Exception as error:
        raise _Failed(error) from None


def _place(settings: Mapping[str, Any], cls: type, option: str | None, options: Mapping[str, Any]) -> str:
    """The place of this class with this value of the option in the settings: a prefix such as `partition.over.`"""
    places = dict(_places(settings, cls))
    for place, given in places.items():
        if option is None or repr(given.get(option)) == repr(options.get(option)):
            return place
    return next(iter(places), "")


def _places(settings: Mapping[str, Any], cls: type, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every prefix under which the settings name a class, with the options given there."""
    if not prefix:
        yield from ((f"{group}.", settings[group]) for group, kind in GROUPS.items() if cls is kind)
    for name, value in settings.items():
        if isinstance(value, Mapping) and "class_path" in value:
            given = value.get("init_args") or {}
            if value["class_path"].rpartition(".")[2] == cls.__name__:
                yield f"{prefix}{name}.", given
            for option, kind in INNER_GROUPS.items():
                if cls is kind and option in given:
                    yield f"{prefix}{name}.{option}.", given[option]
            yield from _places(given, cls, f"{prefix}{name}.")
