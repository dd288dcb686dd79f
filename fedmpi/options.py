"""What makes the arguments of a constructor options, on the command line, in YAML and in Python alike.

They are checked against their types, paths among them are expanded, and they are remembered, because the results file
says what a run was (`fedmpi.settings`).
"""

from __future__ import annotations

import inspect
import os
import re
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from fedmpi.errors import BadInput

#: How the types of options are called.
PLAIN_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "Path": "a path",
    "tuple": "a list",
    "list": "a list",
    "NoneType": "null",
}
#: Of YAML 1.1: an option that takes one of these as a word means the word.
WORDS = {True: ("on", "yes", "true"), False: ("off", "no", "false")}
#: What Linux takes of a whole path, without the byte behind it.
LONGEST_PATH = 4095

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")

T = TypeVar("T")


class Configured(ABCMeta):
    """The class of all classes with options."""

    def __call__(cls: type[T], *args: Any, **options: Any) -> T:
        bound = inspect.signature(cls).bind(*args, **options)
        for name, value in bound.arguments.items():
            bound.arguments[name] = _taken(cls, name, value)
        made: T = super().__call__(*bound.args, **bound.kwargs)  # type: ignore[misc]
        bound.apply_defaults()
        vars(made)["_options"] = dict(_by_option(cls, bound))
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, which `inspect.signature` would otherwise take to be that of `__call__`."""
        constructor = _constructor(cls)
        if constructor is object.__init__:
            return inspect.Signature()
        _, *parameters = inspect.signature(constructor).parameters.values()
        return inspect.Signature(parameters)


def _constructor(cls: type) -> Callable[..., None]:
    constructor: Callable[..., None] = cls.__init__  # type: ignore[misc]
    return constructor


def options_of(component: object) -> Mapping[str, Any]:
    """What the constructor of a component was given, and the defaults of the rest."""
    options: Mapping[str, Any] = vars(component)["_options"]
    return options


def _taken(cls: type, name: str, value: Any) -> Any:
    """An argument as the constructor wants it; those of *args and **options each."""
    parameter, hint = inspect.signature(cls).parameters[name], _hints(cls).get(name, Any)
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(_fitted(name, each, hint) for each in value)
    if parameter.kind is parameter.VAR_KEYWORD:
        return {option: _fitted(option, each, hint) for option, each in value.items()}
    return value if value is parameter.default else _fitted(name, value, hint)


def _by_option(cls: type, bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            hint = _hints(cls).get(name, Any)
            yield name, float(value) if hint is float and isinstance(value, int) else value


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """The types of the constructor's arguments, but for those that only a type checker knows."""
    function = inspect.unwrap(_constructor(cls))
    names = getattr(function, "__globals__", {})
    hints = dict(getattr(function, "__annotations__", {}))
    for name, hint in hints.items():
        if isinstance(hint, str):
            try:
                hints[name] = eval(hint, names)
            except Exception:  # it is the user's text, and may raise anything
                hints[name] = Any
    return hints


def _fitted(name: str, value: Any, hint: Any) -> Any:
    try:
        return fit(value, hint)
    except TypeError:
        raise BadInput(f"= {shown(value)}: must be {_words(hint)}", name) from None
    except BadInput as error:
        raise BadInput(error.message, name) from None


def fit(value: Any, hint: Any) -> Any:
    """A value as an option of this type has it: 3 as 3.0 for a float, a text as a path. Types not known here fit.

    Raises:
        TypeError: it is of another type.
        BadInput: it is a path that cannot be one, see `expanded`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return _fit_one_of(value, parts)
    if kind is Literal:
        return _fit_literal(value, parts)
    if kind in (tuple, list) and isinstance(value, (tuple, list)):
        hints = parts if parts and parts[-1] is not Ellipsis and kind is tuple else (*parts, Any)[:1] * len(value)
        if len(hints) != len(value):
            raise TypeError
        return kind(fit(each, one) for each, one in zip(value, hints, strict=True))
    if kind is Path and isinstance(value, (str, os.PathLike)):
        return expanded(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, bool, str, Path, tuple, list, None, NoneType) or isinstance(kind, Configured):
        is_of = isinstance(value, NoneType if kind is None else kind)
        if not is_of or (isinstance(value, bool) and kind is not bool):
            raise TypeError
    return value


def _fit_one_of(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        with suppress(TypeError):
            return fit(value, hint)
    raise TypeError


def _fit_literal(value: Any, choices: tuple[Any, ...]) -> Any:
    if isinstance(value, bool):
        value = next((choice for choice in choices if choice in WORDS[value]), value)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise TypeError
    return value


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~`, `~user`, `$NAME` and `${NAME}` replaced by what they stand for.

    Raises:
        BadInput: there is no such user or variable; a part, or the whole, is longer than a file system takes.
    """
    text = os.path.expandvars(os.path.expanduser(path))
    if text.startswith("~"):
        raise BadInput(f"= {shown(path)}: there is no user {text.split(os.sep)[0]}; a file of that name is ./~...")
    if unknown := re.search(r"\$(\w+|\{[^}]*\})", text):
        raise BadInput(f"= {shown(path)}: the environment variable {unknown[1].strip('{}')} is not set")
    check_length(Path(text))
    return Path(text)


def check_length(path: Path, room: int = 0) -> None:
    """Raise BadInput if the file system does not take such a name with `room` more bytes, or so long a path."""
    longest, whole = 255 - room, len(os.fsencode(path.absolute())) + room
    for part in path.parts:
        limit = longest if part == path.name else 255
        if (size := len(os.fsencode(part))) > limit:
            raise BadInput(f"= {shown(path)}: a name of {size} bytes, which must be at most {limit}")
    if whole > LONGEST_PATH:
        raise BadInput(
            f"= {shown(path)}: a path of {whole - room} bytes, which must be at most {LONGEST_PATH - room}"
        )


def shown(value: object) -> str:
    """A value in a message: YAML's words for Python's, and no more than a line has room for."""
    text = (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else " ".join(str(value).split())
    )
    return printable(text if len(text) <= 80 else f"{text[:60]}...")


def printable(text: str) -> str:
    """As it is, but for what would begin a line, or give an order to a terminal: that is spelt out."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _words(hint: Any) -> str:
    """How a type is called in a message."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, parts))}"
    name = (get_origin(hint) or hint or NoneType).__name__
    return PLAIN_NAMES.get(name, f"a {name}")
