"""The command line: the constructors' signatures are the schema, jsonargparse reads them, errors fit on one line."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
import textwrap
import traceback
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jsonargparse
import jsonargparse._typehints
import yaml
from docstring_parser import parse as parse_docstring

from fedmpi import small_yaml
from fedmpi.algorithms import Algorithm
from fedmpi.components import subclasses
from fedmpi.data import Dataset, Partition
from fedmpi.described import import_path
from fedmpi.errors import BadInput
from fedmpi.experiment.checkpoint import Checkpointing
from fedmpi.experiment.settings import Experiment
from fedmpi.models import Model
from fedmpi.models.generators import Generator
from fedmpi.options import expanded, shown
from fedmpi.policies import Availability, Conditions, Sampler
from fedmpi.policies.attacks import Attack
from fedmpi.policies.compression import Compression
from fedmpi.policies.privacy import Privacy
from fedmpi.policies.server_optimizers import ServerOptimizer
from fedmpi.randomness import globals_kept, key, seed_globals
from fedmpi.training.settings import LocalTraining

#: The options that take a class by its name: the base of what may be named.
COMPONENTS: dict[str, type] = {
    "algorithm": Algorithm,
    "dataset": Dataset,
    "partition": Partition,
    "model": Model,
    "sampler": Sampler,
    "server_optimizer": ServerOptimizer,
    "privacy": Privacy,
    "compression": Compression,
    "attack": Attack,
    "availability": Availability,
    "conditions": Conditions,
}
#: What only options of components take, and one of these options.
NESTED: dict[str, type] = {"algorithm.generator": Generator}
#: Groups of options.
GROUPS: dict[str, type] = {"local": LocalTraining, "checkpoint": Checkpointing}
#: How jsonargparse is told to read YAML in the way of this module.
PARSER_MODE = "fedmpi"
#: What YAML 1.1 takes for true or false beside these two.
WORD = re.compile(r"\b(?:off|no|on|yes)\b", re.IGNORECASE)
#: Options that stand alone.
FLAGS = ("--overwrite", "--resume")


class Answered(Exception):
    """What was asked for has been printed, by --help or --print_config: there is nothing to run."""


@globals_kept()
def parse(arguments: list[str], speaks: bool = True) -> tuple[Experiment, str]:
    """The experiment that the arguments describe, and its settings as YAML.

    Args:
        arguments: without the program's name.
        speaks: whether --help and --print_config print; one rank of a job does.

    Raises:
        BadInput: in one line.
        Answered: after --help or --print_config.
    """
    if not any(re.match(r"-h$|--help$|--print_config|--[\w.]+\.help(=|$)", argument) for argument in arguments):
        import torch  # noqa: F401 (whose first random numbers differ from process to process, unless they are seeded)
    seed_globals(key(0, "imports"))  # a user's files may draw while they are imported, and the seed is not known yet
    _refuse_long_numbers(arguments)
    parser = make_parser()
    arguments = list(_with_config_files(arguments))
    with contextlib.ExitStack() as quiet:
        if not speaks:
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
        try:
            settings = parser.parse_args([f"{a}=true" if a in FLAGS else a for a in arguments])
        except _Exit:
            raise Answered from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the files of a user's classes are imported here, and may do anything
            if place := _failed_import(error):
                raise BadInput(f"cannot import {place}") from None
            if isinstance(error, ArgumentError):
                raise BadInput(_in_one_line(str(error), parser, arguments)) from None
            raise
    for group in GROUPS:
        if settings[group] is None:
            raise BadInput(f"--{group} = null: must be options, or a YAML file of them")
    make = partial(_make, settings.as_dict())
    makers = [(make, base, True) for base in [*_bases(), *GROUPS.values()]]
    seed_globals(key(settings["seed"], "constructors"))
    try:
        made = parser.instantiate(settings, instantiators=makers).as_dict()
        experiment = _make({}, Experiment, **{name: value for name, value in made.items() if name != "config"})
    except _Refused as refused:
        raise BadInput(_flat(str(refused))) from None
    except _Failed as failed:
        raise failed.error from None
    experiment.arguments = arguments
    return experiment, experiment.config


def _bases() -> list[type]:
    return [*COMPONENTS.values(), *NESTED.values()]


def _base(option: str) -> type:
    """Of what the option takes a subclass: `model.over` a Model, `algorithm.generator` a Generator."""
    first, *nested = option.split(".")
    base = COMPONENTS[first]
    for name in nested:
        signatures = [inspect.signature(cls).parameters for cls in subclasses(base)]
        annotations = " ".join(str(parameters[name].annotation) for parameters in signatures if name in parameters)
        base = next((taken for taken in _bases() if re.search(rf"\b{taken.__name__}\b", annotations)), base)
    return base


def make_parser() -> jsonargparse.ArgumentParser:
    """The parser of an experiment's settings."""
    parser = _Parser(
        prog="python -m fedmpi",
        usage="mpirun -n RANKS python -m fedmpi [--config FILE] [--OPTION VALUE ...]",
        description="Run one federated learning experiment as one MPI job. Later options win; a class is named"
        " before its options.",
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=PARSER_MODE,
    )
    parser.add_argument("--config", action="config", help="YAML file of settings, as --print_config prints them.")
    parser.add_class_arguments(Experiment, fail_untyped=True)
    default = Experiment()
    parser.set_defaults({name: {"class_path": import_path(type(getattr(default, name)))} for name in COMPONENTS})
    return parser


def _forget_other_class(parser: object, previous: Any, value: Any) -> None:
    """A class that is named anew starts from its own defaults.

    jsonargparse would keep those options of the class named before (or of the default) that the new one happens to
    have as well: `--model MLP` would be normalised because LeNet is. It has no setting for that, so its function is
    replaced.
    """
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        for option in list(previous["init_args"].keys()):
            previous["init_args"].pop(option)


def _replace(module: ModuleType, name: str, function: Callable[..., None]) -> None:
    """Put a function in another one's place, or say that this cannot be done with this version.

    Raises:
        ImportError: there is no such function, or it takes other arguments.
    """
    taken = len(inspect.signature(getattr(module, name, lambda: None)).parameters)
    if taken != len(inspect.signature(function).parameters):
        installed = f"{module.__name__.split('.')[0]} {version(module.__name__.split('.')[0])}"
        raise ImportError(f"{installed} has no function {name} of the kind that fedmpi replaces: install another one")
    setattr(module, name, function)


_replace(jsonargparse._typehints, "discard_init_args_on_class_path_change", _forget_other_class)


def _load_yaml(text: str) -> Any:
    """As jsonargparse does, but a word such as off, which YAML 1.1 takes for false, stays that word.

    Not if it is the whole text: where true or false is wanted, jsonargparse asks what the word alone is.
    """
    if re.search("[\udc80-\udcff]", text):
        return text  # a path with letters that the locale does not know, which YAML does not either
    small_yaml.check(text)
    if WORD.search(text):
        for start, end in sorted(_words(yaml.compose(text, yaml.SafeLoader)), reverse=True):
            text = f"{text[:start]}'{text[start:end]}'{text[end:]}"
    return jsonargparse.get_loader("yaml")(text)


def _words(node: yaml.Node | None) -> Iterator[tuple[int, int]]:
    """Where the words are in the text that a node was read from."""
    if isinstance(node, yaml.CollectionNode):
        inside = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        for child in inside:
            if isinstance(child, yaml.ScalarNode) and child.style is None and WORD.fullmatch(child.value):
                yield child.start_mark.index, child.end_mark.index
            yield from _words(child)


jsonargparse.set_loader(PARSER_MODE, _load_yaml, exceptions=(yaml.YAMLError,))


def _refuse_long_numbers(arguments: list[str]) -> None:
    option = ""
    for argument in arguments:
        option = argument.partition("=")[0] if argument.startswith("--") else option
        if small_yaml.LONG_NUMBER.search(argument):
            raise BadInput(f"{option}: has {small_yaml.TOO_MANY_DIGITS}")


def _with_config_files(arguments: list[str]) -> Iterator[str]:
    """The arguments with the paths of --config expanded, once each file is known to hold settings."""
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
    """Where the file is; what jsonargparse says of one that holds no settings does not name it."""
    try:
        path = expanded(given)
        settings = small_yaml.load(_text_of(path))
    except BadInput as error:
        raise BadInput(f"--config {error.message}") from None
    except OSError as error:
        raise BadInput(f"--config = {given}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"--config = {given}: is not UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise BadInput(f"--config = {given}: {small_yaml.reason(error)}") from None
    if not isinstance(settings, dict) or not settings:
        raise BadInput(f"--config = {given}: must hold settings, as in `clients: 100`")
    return str(path)


def _text_of(path: Path) -> str:
    """A file of settings, or as much of it as is more than settings are."""
    with path.open(encoding="utf-8-sig") as file:
        return file.read(small_yaml.LONGEST + 1)


class _Exit(BaseException):
    """The parser has printed what was asked for; not SystemExit, which a user's file may raise as well."""


class _Parser(jsonargparse.ArgumentParser):
    def parse_path(self, path: str | os.PathLike[str], *args: Any, **options: Any) -> jsonargparse.Namespace:
        """As UTF-8, whatever the locale; files named in it are looked for beside it."""
        here = os.getcwd()
        text = _text_of(Path(path))
        os.chdir(Path(path).parent)
        try:
            return self.parse_string(text, os.path.basename(path), *args, **options)
        finally:
            os.chdir(here)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Exit

    def format_help(self, *args: Any, **options: Any) -> str:
        text: str = super().format_help(*args, **options)
        return text + "\n" + "\n".join(_catalogue()) + "\n" if self.prog == "python -m fedmpi" else text


def _catalogue() -> Iterator[str]:
    """What can be named on the command line, with all options and their defaults."""
    yield "what can be named, and its options; or the import path of a class of your own:"
    for option, base in [*COMPONENTS.items(), *NESTED.items()]:
        for cls in _public(base):
            described = parse_docstring(cls.__doc__ or "")
            yield ""
            yield from _wrapped(f"--{option} {cls.__name__}", described.short_description or "", 2)
            for parameter in list(inspect.signature(cls).parameters.values()):
                texts = [p.description for p in described.params if p.arg_name == parameter.name]
                default = "null" if parameter.default is None else parameter.default
                needed = "needed" if default is parameter.empty else f"default: {default}"
                about = f"{texts[0] if texts else ''} ({needed})"
                yield from _wrapped(f"--{option}.{parameter.name}", about, 6)


def _wrapped(head: str, text: str, indent: int) -> list[str]:
    return textwrap.wrap(f"{head}  {text}", 80, initial_indent=" " * indent, subsequent_indent=" " * (indent + 4))


class _Refused(BaseException):
    """A constructor's word on bad input; not an Exception, which jsonargparse would bury in a message of its own."""


class _Failed(BaseException):
    """Another error of a constructor; likewise."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _make(settings: Mapping[str, Any], cls: type, *args: Any, **options: Any) -> Any:
    """Construct a component; what it says of bad input is completed by the place of its options."""
    if cls in _bases():
        raise _Refused(_unknown_class(_place(settings, cls, None, options)[:-1], cls.__name__))
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
    """Where the settings name this class with this value of the option: a prefix such as `partition.over.`"""
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
            yield from _places(given, cls, f"{prefix}{name}.")


def _failed_import(error: BaseException | None) -> str | None:
    """File, line and message of the exception that an import ended with, if that is behind `error`."""
    while error is not None:
        text = f"{type(error).__name__}: {_flat(str(error.args[0] if error.args else ''))}"
        if isinstance(error, SyntaxError):
            return f"{error.filename}, line {error.lineno}: {text}"
        top_level = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"]
        if top_level and isinstance(error, (Exception, SystemExit)):
            return f"{top_level[-1].filename}, line {top_level[-1].lineno}: {text}"
        error = error.__cause__ or error.__context__
    return None


# jsonargparse's messages are trees of several lines; each reader below knows one kind of leaf.


def _in_one_line(message: str, parser: jsonargparse.ArgumentParser, arguments: list[str]) -> str:
    keys = re.findall(r'[Kk]ey "([^"]+)"', message) or re.findall(r"^--(\w+)\.help:", message)
    option = ".".join(keys)
    owner = re.findall(r"class_path '([^']*)'", message)[-1:]
    values = re.findall(r"Got value: (.*)", message)[-1:] or re.findall(r"Given value: (.*)", message) or [""]
    given = _shown(re.sub(r"^NestedArg\(.*val='(.*)'\)$", r"\1", values[0]))
    # Of an option that takes one of several types, what the innermost one that failed takes.
    takes = re.findall(r"Subtypes: \[(.*)\]", message)[-1:]
    is_innermost = "class_path" not in message.rpartition("Subtypes:")[2]
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        name = found[1].partition("=")[0]
        problem = "no such option" if name.startswith("-") else "belongs to no option"
        return f"{shown(name)}: {problem}{_similar_options(name, parser)}"
    if found := re.search(r"argument (\S+): expected one argument", message):
        return f"{_without_value(found[1], arguments)}: needs a value"
    if found := re.search(r"Unable to load config '(.*)'", message):
        return f"--{keys[0]} = {_shown(found[1])}: must be options, or a YAML file of them"
    if found := re.search(r"Expected a dot import path string: ?(.*)|class, but (?:(\S+) )?is abstract", message):
        return _unknown_class(option, found[1] or found[2] or given)
    if found := re.search(r"Unexpected import path format: (.*)", message):
        return (
            f"--{option} = {_shown(found[1])}: must be a name, or an import path such as my_package.my_module.MyClass"
        )
    if found := re.search(r"Import path (\S* ?)does not correspond to a subclass of (\S+)", message):
        return f"--{option} = {_shown(found[1].strip()) or given}: must be a subclass of {found[2]}"
    if found := re.search(r"Not a valid subclass of (\w+)", message):
        return f"--{option} = {given}: must be the name of a class, a subclass of {found[1]}"
    if found := re.search(r"(?:Group '(\S+)' does not accept o|O)ption '(\S+?)'", message):
        return _unknown_option(found[1] or option, found[2], owner, parser)
    if found := re.search(r"arguments are required: (\S+)", message):
        return (
            f"--{option}.{found[1]}: needs a value, {owner[0]} has no default"
            if owner
            else f"--{found[1]}: needs a value"
        )
    if (found := re.search(r"Expected an? (.+?)\. Got value", message)) and not (takes and is_innermost):
        return f"--{option} = {given}: must be {_type_name(found[1])}"
    if found := re.search(r"Problem with given class_path '([^']*)':\s*(No module .*|module .*)", message):
        return f"--{option} = {_shown(found[1])}: {_shown(found[2])}"
    if takes:
        names = re.findall(r"<class '[^']*'>|typing\.Literal\[[^\]]*\]", takes[0])
        given = _shown(re.findall(r"Given value: (.*)", message.rpartition("Subtypes:")[2])[0])
        return f"--{option} = {given}: must be {' or '.join(map(_type_name, names))}"
    flat = _flat(re.sub(r'Parser key "([^"]+)":', r"--\1:", message))
    return f"--{option}: {flat}" if option and not flat.startswith("--") else flat


def _flat(text: str) -> str:
    return " ".join(text.split())


def _shown(value: str) -> str:
    return shown({"None": "null", "True": "true", "False": "false"}.get(value, value))


def _without_value(option: str, arguments: list[str]) -> str:
    """The argument without a value: `option`, as argparse says, or one of the class that it names."""
    for position, argument in enumerate(arguments):
        is_last = position + 1 == len(arguments) or arguments[position + 1].startswith("--")
        if is_last and argument.split(".")[0] == option and "=" not in argument:
            return argument
    return option


def _unknown_class(option: str, name: str) -> str:
    base = _base(option)
    known = [cls.__name__ for cls in _public(base)]
    return f"--{option} = {_shown(name)}: no such name{_nearest(name, known)}; known are {', '.join(known)}"


def _unknown_option(option: str, name: str, owner: list[str], parser: jsonargparse.ArgumentParser) -> str:
    if not owner:
        full = f"--{option}.{name}" if option else f"--{name}"
        return f"{full}: no such option{_similar_options(full, parser)}"
    if name == "class_path":
        return f"--{option}: options of a class go under init_args, not beside class_path"
    base, short = _base(option), owner[0].rpartition(".")[2]
    has = [list(inspect.signature(cls).parameters) for cls in subclasses(base) if cls.__name__ == short]
    return f"--{option}.{name}: {short} has no such option" + (f", it has {', '.join(has[0])}" if any(has) else "")


def _similar_options(name: str, parser: jsonargparse.ArgumentParser) -> str:
    """Options of the same name, wherever they are; else those with a similar one."""
    *place, last = name.lstrip("-").replace("-", "_").lower().split(".")
    owners = _owners(parser)
    ends = {option: option.rpartition(".")[2].lower() for option in owners}
    found = [option for option, end in ends.items() if end == last]
    if not found:
        beside = {o: end for o, end in ends.items() if o.split(".")[:-1] == place} if place else ends
        close = difflib.get_close_matches(last, sorted(set(beside.values())), n=2, cutoff=0.7)
        found = [option for word in close for option, end in beside.items() if end == word]
    texts = [f"--{option}{_in_brackets(owners[option])}" for option in found[:4]]
    return f", did you mean {' or '.join(texts)}?" if texts else ""


def _owners(parser: jsonargparse.ArgumentParser) -> dict[str, list[str]]:
    """The dotted names of all options, but for those that print; of a class's options, which classes have them."""
    shown = [action for action in parser._actions if action.help != SUPPRESS]
    names = [string.lstrip("-") for action in shown for string in action.option_strings]
    owners: dict[str, list[str]] = {n: [] for n in names if n != "h" and not n.endswith(("help", "print_config"))}
    for option, base in [*COMPONENTS.items(), *NESTED.items()]:
        for cls in _public(base):
            for name in inspect.signature(cls).parameters:
                owners.setdefault(f"{option}.{name}", []).append(cls.__name__)
    return owners


def _in_brackets(classes: list[str]) -> str:
    more = ", ..." if len(classes) > 3 else ""
    return f" ({', '.join(classes[:3])}{more})" if classes else ""


def _public(base: type) -> list[type]:
    """The classes of fedmpi's own that can be named."""
    ours = [cls for cls in subclasses(base) if cls.__module__.startswith("fedmpi.")]
    return [cls for cls in ours if not (inspect.isabstract(cls) or cls.__name__.startswith("_"))]


def _nearest(name: str, known: list[str]) -> str:
    lower = {candidate.lower(): candidate for candidate in known}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3)]
    return f", did you mean {' or '.join(close)}?" if close else ""


def _type_name(text: str) -> str:
    if choices := re.match(r"typing\.Literal\[(.*)\]", text):
        words = choices[1].replace("'", "")
        return f"one of {words}" if "," in words else words
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    plain = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "tuple": "a list",
        "NoneType": "null",
    }
    return plain.get(name, f"a {name}")
