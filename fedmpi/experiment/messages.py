"""Turns jsonargparse's messages of several lines into one line: the option, its value, and what it must be.

Each case below handles one kind of message.
"""

from __future__ import annotations

import difflib
import inspect
import re
import traceback
from argparse import SUPPRESS

import jsonargparse

from fedmpi.components import subclasses
from fedmpi.experiment.catalogue import COMPONENTS, NESTED, base_of, public
from fedmpi.experiment.documented import subjects
from fedmpi.options import shown


def failed_import(error: BaseException | None) -> str | None:
    """File, line and message of the exception in an import, if that is the cause of `error`."""
    while error is not None:
        text = f"{type(error).__name__}: {flat(str(error.args[0] if error.args else ''))}"
        if isinstance(error, SyntaxError):
            return f"{error.filename}, line {error.lineno}: {text}"
        top_level = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"]
        if top_level and isinstance(error, (Exception, SystemExit)):
            return f"{top_level[-1].filename}, line {top_level[-1].lineno}: {text}"
        error = error.__cause__ or error.__context__
    return None


def in_one_line(message: str, parser: jsonargparse.ArgumentParser, arguments: list[str]) -> str:
    """jsonargparse's message in one line: the option, its value, and what it must be."""
    keys = re.findall(r'[Kk]ey "([^"]+)"', message) or re.findall(r"^--(\w+)\.help:", message)
    option = ".".join(keys)
    owner = re.findall(r"class_path '([^']*)'", message)[-1:]
    values = re.findall(r"Got value: (.*)", message)[-1:] or re.findall(r"Given value: (.*)", message) or [""]
    given = _shown(re.sub(r"^NestedArg\(.*val='(.*)'\)$", r"\1", values[0]))
    # For an option with several types, the types of the innermost value that failed.
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
        return unknown_class(option, found[1] or found[2] or given)
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
        if found[1].startswith("fedmpi."):
            return unknown_class(option, found[1])
        return f"--{option} = {_shown(found[1])}: {_shown(found[2])}"
    if takes:
        names = re.findall(r"<class '[^']*'>|typing\.Literal\[[^\]]*\]|\b[Tt]uple\[[^\]]*\]", takes[0])
        given = _shown(re.findall(r"Given value: (.*)", message.rpartition("Subtypes:")[2])[0])
        return f"--{option} = {given}: must be {' or '.join(map(_type_name, names))}"
    said = flat(re.sub(r'Parser key "([^"]+)":', r"--\1:", message))
    return f"--{option}: {said}" if option and not said.startswith("--") else said


def flat(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


def _shown(value: str) -> str:
    return shown({"None": "null", "True": "true", "False": "false"}.get(value, value))


def _without_value(option: str, arguments: list[str]) -> str:
    """The argument without a value: `option`, as argparse says, or an option of the class that it names."""
    for position, argument in enumerate(arguments):
        is_last = position + 1 == len(arguments) or arguments[position + 1].startswith("--")
        if is_last and argument.split(".")[0] == option and "=" not in argument:
            return argument
    return option


def unknown_class(option: str, name: str) -> str:
    """The message for an unknown class, or a class that lacks required methods."""
    base = base_of(option)
    for cls in subclasses(base):
        if f"{cls.__module__}.{cls.__qualname__}" == name and inspect.isabstract(cls):
            lacks = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
            return f"--{option} = {name}: lacks {lacks}, which each {base.__name__} must have"
    known = [cls.__name__ for cls in public(base)]
    nearest = _nearest(name.rpartition(".")[2], known)
    return f"--{option} = {_shown(name)}: no such name{nearest}; known are {', '.join(known)}"


def _unknown_option(option: str, name: str, owner: list[str], parser: jsonargparse.ArgumentParser) -> str:
    if not owner:
        full = f"--{option}.{name}" if option else f"--{name}"
        return f"{full}: no such option{_similar_options(full, parser)}"
    if name == "class_path":
        return f"--{option}: options of a class must be under init_args, not next to class_path"
    base, short = base_of(option), owner[0].rpartition(".")[2]
    known = {cls.__name__: list(inspect.signature(cls).parameters) for cls in subclasses(base)}
    has, others = known.get(short), [cls.__name__ for cls in public(base) if name in known[cls.__name__]]
    facts = [f"{short} has no such option", f"it has {', '.join(has)}" if has else ""]
    facts.append(f"it is an option of {_few(others)}" if others else "")
    return f"--{option}.{name}: {', '.join(filter(None, facts))}"


def _similar_options(name: str, parser: jsonargparse.ArgumentParser) -> str:
    """Options with the same name in any place.

    Else with a similar name; else those whose description has its words.
    """
    owners = _owners(parser)
    is_option = name.startswith("-")
    found = _same_name(name, list(owners)) or _similar_name(name, list(owners)) or _described_by(name) * is_option
    texts = [f"--{option}{f' ({_few(owners[option])})' if owners[option] else ''}" for option in found[:4]]
    return f", did you mean {' or '.join(texts)}?" if texts else ", see --help" if is_option else ""


def _same_name(name: str, options: list[str]) -> list[str]:
    """Options with the same whole name, ignoring dashes, dots and capitals; else with the same last part."""
    whole, last = _flat_name(name), _flat_name(name.rpartition(".")[2])
    same = [option for option in options if _flat_name(option) == whole]
    return same or [option for option in options if _flat_name(option.rpartition(".")[2]) == last]


def _similar_name(name: str, options: list[str]) -> list[str]:
    """Options with a similar last part, or that contain its words; in the same place if the name has one."""
    place, _, last = name.lstrip("-").rpartition(".")
    last = _flat_name(last)
    ends = {option: option.rpartition(".")[2] for option in options if not place or option.startswith(f"{place}.")}
    close = difflib.get_close_matches(last, sorted(set(ends.values())), n=2, cutoff=0.7)
    close = close or [end for end in ends.values() if set(last.split("_")) <= set(end.split("_"))]
    return [option for word in dict.fromkeys(close) for option, end in ends.items() if end == word]


def _described_by(name: str) -> list[str]:
    """The experiment's own options whose description has the words of the name: --learning-rate is --local.lr."""
    words = set(_flat_name(name.rpartition(".")[2]).split("_"))
    known = [option for _, options in subjects() for option in options]
    return [option.name for option in known if words <= set(re.findall(r"\w+", option.text.lower()))][:2]


def _flat_name(name: str) -> str:
    return re.sub(r"\W", "_", name.lstrip("-")).lower()


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _owners(parser: jsonargparse.ArgumentParser) -> dict[str, list[str]]:
    """The dotted names of all options except those that print; for options of classes, the classes that have them."""
    shown = [action for action in parser._actions if action.help != SUPPRESS]
    names = [string.lstrip("-") for action in shown for string in action.option_strings]
    owners: dict[str, list[str]] = {n: [] for n in names if not n.endswith(("help", "print_config"))}
    for option, base in [*COMPONENTS.items(), *NESTED.items()]:
        for cls in public(base):
            for name in inspect.signature(cls).parameters:
                owners.setdefault(f"{option}.{name}", []).append(cls.__name__)
    return owners


def _nearest(name: str, known: list[str]) -> str:
    lower = {candidate.lower(): candidate for candidate in known}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3)]
    return f", did you mean {' or '.join(close)}?" if close else ""


def _type_name(text: str) -> str:
    if choices := re.match(r"typing\.Literal\[(.*)\]", text):
        words = choices[1].replace("'", "")
        return f"one of {words}" if "," in words else words
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    name = "tuple" if name.lower().startswith("tuple[") else name
    plain = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "tuple": "a list",
        "NoneType": "null",
    }
    return plain.get(name, f"a {name}")
