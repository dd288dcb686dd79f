"""The command line: the constructors' signatures are the schema, jsonargparse reads them, errors fit on one line."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
import textwrap
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jsonargparse
from docstring_parser import parse as parse_docstring

from fedmpi.algorithms import Algorithm
from fedmpi.components import subclasses
from fedmpi.data import Dataset, Partition
from fedmpi.errors import BadInput
from fedmpi.experiment import Experiment
from fedmpi.models import Model
from fedmpi.scheduling import Sampler
from fedmpi.training.settings import LocalTraining

#: The options that take a class by its name: the base of what may be named, and the default.
COMPONENTS: dict[str, tuple[type, str]] = {
    "algorithm": (Algorithm, "FedAvg"),
    "dataset": (Dataset, "Digits"),
    "partition": (Partition, "Dirichlet"),
    "model": (Model, "LeNet"),
    "sampler": (Sampler, "Uniform"),
}
#: Options that stand alone.
FLAGS = ("--overwrite",)


def parse(arguments: list[str], speaks: bool = True) -> tuple[Experiment, str]:
    """The experiment that the arguments describe, and its settings as YAML.

    Args:
        arguments: without the program's name.
        speaks: whether --help and --print_config print; one rank of a job does.

    Raises:
        BadInput: in one line.
        SystemExit: after --help or --print_config.
    """
    parser = make_parser()
    with contextlib.ExitStack() as quiet:
        if not speaks:
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
        try:
            settings = parser.parse_args([f"{a}=true" if a in FLAGS else a for a in arguments])
        except ArgumentError as error:
            raise BadInput(_in_one_line(str(error), parser)) from None
    for base in [base for base, _ in COMPONENTS.values()] + [LocalTraining]:
        parser.add_instantiator(partial(_make, settings.as_dict()), base, subclasses=True)
    try:
        made = parser.instantiate(settings).as_dict()
        experiment = _make({}, Experiment, **{name: value for name, value in made.items() if name != "config"})
    except _Refused as refused:
        raise BadInput(str(refused)) from None
    return experiment, parser.dump(settings, skip_unset=False)


def make_parser() -> jsonargparse.ArgumentParser:
    """The parser of an experiment's settings."""
    parser = _Parser(
        prog="python -m fedmpi",
        usage="mpirun -n RANKS python -m fedmpi [--config FILE] [--OPTION VALUE ...]",
        description="Run one federated learning experiment as one MPI job. Later options win; a class is named"
        " before its options.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of settings, as --print_config prints them.")
    parser.add_class_arguments(Experiment, fail_untyped=True)
    parser.set_defaults({name: {"class_path": default} for name, (_, default) in COMPONENTS.items()})
    return parser


class _Parser(jsonargparse.ArgumentParser):
    def format_help(self) -> str:
        text: str = super().format_help()
        text = re.sub(r"\(required,\s+", "(", text)  # required by the constructor, but there is a default
        return text + "\n" + "\n".join(_catalogue()) + "\n" if self.prog == "python -m fedmpi" else text


def _catalogue() -> Iterator[str]:
    """What can be named on the command line, with all options and their defaults."""
    yield "what can be named, and its options; or the import path of a class of your own:"
    for option, (base, _) in COMPONENTS.items():
        for cls in subclasses(base):
            if not cls.__name__.startswith("_") and cls.__module__.startswith("fedmpi."):
                described = parse_docstring(cls.__doc__ or "")
                yield ""
                yield from _wrapped(f"--{option} {cls.__name__}", described.short_description or "", 2)
                for parameter in list(inspect.signature(cls).parameters.values()):
                    texts = [p.description for p in described.params if p.arg_name == parameter.name]
                    default = "null" if parameter.default is None else parameter.default
                    about = f"{texts[0] if texts else ''} (default: {default})"
                    yield from _wrapped(f"--{option}.{parameter.name}", about, 6)


def _wrapped(head: str, text: str, indent: int) -> list[str]:
    return textwrap.wrap(f"{head}  {text}", 80, initial_indent=" " * indent, subsequent_indent=" " * (indent + 4))


class _Refused(BaseException):
    """A constructor's word on bad input; not an Exception, which jsonargparse would bury in a message of its own."""


def _make(settings: Mapping[str, Any], cls: type, *args: Any, **options: Any) -> Any:
    """Construct a component; what it says of bad input is completed by the place of its options."""
    try:
        return cls(*args, **options)
    except BadInput as error:
        place = next(_places(settings, cls), "")
        raise _Refused(f"--{place}{error.option} {error.message}" if error.option else error.message) from None
    except ValueError as error:
        raise _Refused(f"--{next(_places(settings, cls), '')[:-1]} {cls.__name__}: {error}") from None


def _places(settings: Mapping[str, Any], cls: type, prefix: str = "") -> Iterator[str]:
    """Prefixes, such as `partition.over.`, under which the settings name a class."""
    if cls is LocalTraining:
        yield "local."
    for name, value in settings.items():
        if isinstance(value, Mapping):
            if str(value.get("class_path", "")).rpartition(".")[2] == cls.__name__:
                yield f"{prefix}{name}."
            yield from _places(value.get("init_args") or {}, cls, f"{prefix}{name}.")


# jsonargparse's messages are trees of several lines; each reader below knows one kind of leaf.


def _in_one_line(message: str, parser: jsonargparse.ArgumentParser) -> str:
    option = ".".join(re.findall(r'[Kk]ey "([^"]+)"', message))
    owner = re.findall(r"class_path '[^']*?(\w+)'", message)[-1:]
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        return f"{found[1]}: no such option{_nearest(found[1].split('=')[0], _options(parser))}"
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return _unknown_class(option, found[1])
    if found := re.search(r"Option '(\S+)' is not accepted", message):
        return _unknown_option(option, found[1], owner)
    if found := re.search(r"Expected an? (.+?)\. Got value: (.*)", message):
        return f"--{option} = {found[2]}: must be {_type_name(found[1])}"
    if found := re.search(r"argument (\S+): expected one argument", message):
        return f"{found[1]}: needs a value"
    flat = " ".join(re.sub(r'Parser key "([^"]+)":', r"--\1:", message).split())
    return f"--{option}: {flat}" if option and not flat.startswith("--") else flat


def _unknown_class(option: str, name: str) -> str:
    base = COMPONENTS[option.split(".")[0]][0]
    known = [cls.__name__ for cls in subclasses(base) if not cls.__name__.startswith("_")]
    return f"--{option} = {name}: no such name{_nearest(name, known)}; known are {', '.join(known)}"


def _unknown_option(option: str, name: str, owner: list[str]) -> str:
    if not owner:
        return f"--{option}.{name}: no such option" if option else f"--{name}: no such option"
    base = COMPONENTS[option.split(".")[0]][0]
    has = [list(inspect.signature(cls).parameters) for cls in subclasses(base) if cls.__name__ == owner[0]]
    return f"--{option}.{name}: {owner[0]} has no such option" + (f", it has {', '.join(has[0])}" if any(has) else "")


def _options(parser: jsonargparse.ArgumentParser) -> list[str]:
    return [string for action in parser._actions for string in action.option_strings]


def _nearest(name: str, known: list[str]) -> str:
    lower = {candidate.lower(): candidate for candidate in known}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3)]
    return f", did you mean {' or '.join(close)}?" if close else ""


def _type_name(text: str) -> str:
    if choices := re.match(r"typing\.Literal\[(.*)\]", text):
        return "one of " + choices[1].replace("'", "")
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(name, f"a {name}")
