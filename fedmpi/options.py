"""Makes the arguments of constructors options: on the command line, in YAML and in Python.

Options are checked against their types and ranges (`fedmpi.ranges`), paths are expanded, and the values are stored
for the results file (`fedmpi.described`).

The options of a class are its annotated attributes (`with_options`), or the arguments of its constructor.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache, reduce, wraps
from operator import or_
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
from typing_extensions import dataclass_transform

from fedmpi.errors import BadInput
from fedmpi.ranges import Allowed

#: The names of types in messages.
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
NONE: Mapping[str, Any] = MappingProxyType({})
#: Words that YAML 1.1 reads as true or false. For options with such words as values, they are words.
WORDS = {True: ("on", "yes", "true"), False: ("off", "no", "false")}
#: Longest path on Linux, without the terminating byte.
LONGEST_PATH = 4095

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")

T = TypeVar("T")


class Configured(ABCMeta):
    """The metaclass of all classes with options. The options of an object cannot be changed once it is made."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if "__init__" in namespace:
            with_ranges(cls)

    def __call__(cls: type[T], *args: Any, **options: Any) -> T:
        bound = _fitted(_constructor(cls), inspect.signature(cls), args, options)
        first = [one for one in cls.__mro__ if isinstance(one, Configured)][-1]
        if "__setattr__" not in vars(first):  # not before, because a frozen dataclass makes its own
            first.__setattr__ = _set  # type: ignore[method-assign, assignment]
        made: T = super().__call__(*bound.args, **bound.kwargs)  # type: ignore[misc]
        bound.apply_defaults()
        vars(made)["_options"] = dict(_by_option(cls, bound))
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's signature. Otherwise `inspect.signature` would return that of `__call__`."""
        constructor = _constructor(cls)
        if constructor is object.__init__:
            return inspect.Signature()
        _, *parameters = inspect.signature(constructor).parameters.values()
        return inspect.Signature(parameters)


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def with_options(cls: type[T]) -> type[T]:
    """Make the annotated attributes of a class its options, those of its bases first.

    The class becomes a dataclass, which generates the constructor. `__post_init__` checks combinations of options.
    Attributes that are not options have no annotation, or `ClassVar`.

        @with_options
        class FedProx(Proximal, FedAvg):
            mu: NonNegativeFloat = 0.01
    """
    known = vars(sys.modules[cls.__module__])
    cls.__annotations__ = {name: _evaluated(hint, known) for name, hint in inspect.get_annotations(cls).items()}
    made: Any = dataclass(eq=False, repr=False)(cls)
    nulls = {each.name: each.metadata["null"] for each in fields(made) if "null" in each.metadata}
    for name in nulls:
        made.__init__.__annotations__[name] |= None
    with_ranges(made, {name: make for name, make in nulls.items() if make})
    return cls


def null_for(make: Callable[[], Any] | None = None) -> Any:
    """The default null of an option, which is replaced by the result of `make`: `over: Model = null_for(LeNet)`.

    Without `make`, `__post_init__` replaces it.
    """
    return field(default=None, metadata={"null": make})


def with_ranges(cls: Any, nulls: Mapping[str, Callable[[], Any]] = NONE) -> Any:
    """Let the constructor of a class check its arguments, also if a subclass's constructor calls it.

    Its signature then has types without ranges, for programs that print them.

    Args:
        nulls: for arguments that may be None, functions that make the replacement.
    """
    constructor = _constructor(cls)
    signature, known = inspect.signature(constructor), getattr(inspect.unwrap(constructor), "__globals__", {})
    hints = [_evaluated(each.annotation, known) for each in signature.parameters.values()]
    if not nulls and all(_plain(hint) is hint for hint in hints):
        return cls

    @wraps(constructor)
    def checked(*args: Any, **options: Any) -> None:
        bound = _fitted(constructor, signature, args, options)
        bound.apply_defaults()
        for name, make in nulls.items():
            if bound.arguments[name] is None:
                bound.arguments[name] = make()
        constructor(*bound.args, **bound.kwargs)

    pairs = zip(signature.parameters.values(), hints, strict=True)
    plain = [parameter.replace(annotation=_plain(hint)) for parameter, hint in pairs]
    checked.__signature__ = signature.replace(parameters=plain)  # type: ignore[attr-defined]
    cls.__init__ = checked
    return cls


def _set(component: object, name: str, value: object) -> None:
    """Set an attribute, but no option: the results file has the options that the object was made with."""
    if name in vars(component).get("_options", NONE):
        kind = type(component).__name__
        remedy = f"make another {kind}, or keep what changes in an attribute of another name"
        raise AttributeError(f"{name} is an option of {kind}, and cannot be changed: {remedy}")
    object.__setattr__(component, name, value)


def _constructor(cls: type) -> Callable[..., None]:
    constructor: Callable[..., None] = cls.__init__  # type: ignore[misc]
    return constructor


def options_of(component: object) -> Mapping[str, Any]:
    """The arguments of a component's constructor, including defaults."""
    options: Mapping[str, Any] = vars(component)["_options"]
    return options


def acts_as(component: object, kind: type) -> bool:
    """Whether a component does what this class does: it is of the class, and no subclass changes anything public."""
    order = type(component).__mro__
    below = order[: order.index(kind)] if kind in order else ()
    return kind in order and all(name.startswith("_") for cls in below for name in vars(cls))


def _fitted(
    constructor: Callable[..., None], signature: inspect.Signature, args: Any, options: Any
) -> inspect.BoundArguments:
    """The arguments, converted and checked, including each one of *args and **options."""
    bound, hints = signature.bind(*args, **options), _hints(constructor)
    for name, value in bound.arguments.items():
        parameter, hint = signature.parameters[name], hints.get(name, Any)
        if parameter.kind is parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(_fit_option(name, each, hint) for each in value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            bound.arguments[name] = {option: _fit_option(option, each, hint) for option, each in value.items()}
        elif value is not parameter.default:
            bound.arguments[name] = _fit_option(name, value, hint)
    return bound


def _by_option(cls: type, bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    hints = _hints(_constructor(cls))
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            is_float = _plain(hints.get(name, Any)) is float
            yield name, float(value) if is_float and isinstance(value, int) else value


@cache
def _hints(constructor: Callable[..., None]) -> Mapping[str, Any]:
    """The types of a constructor's arguments with their ranges; Any for types that only a type checker knows."""
    function = inspect.unwrap(constructor)
    known, hints = getattr(function, "__globals__", {}), dict(getattr(function, "__annotations__", {}))
    hints.pop("return", None)
    return {name: Any if isinstance(it := _evaluated(hint, known), str) else it for name, hint in hints.items()}


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    """The value of an annotation. A quoted annotation that only a type checker knows stays a text."""
    if isinstance(hint, str):
        with suppress(Exception):  # it is the user's text, and may raise any exception
            return eval(hint, names)
    return hint


def _plain(hint: Any) -> Any:
    """A type without its ranges."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        parts = get_args(hint)
        plain = [_plain(part) for part in parts]
        return hint if all(a is b for a, b in zip(parts, plain, strict=True)) else reduce(or_, plain)
    return hint


def _fit_option(name: str, value: Any, hint: Any) -> Any:
    try:
        return fit(value, hint)
    except TypeError:
        raise BadInput(f"= {shown(value)}: must be {_words(hint)}", name) from None
    except BadInput as error:
        raise BadInput(error.message, name) from None


def fit(value: Any, hint: Any) -> Any:
    """Convert a value to an option's type: 3 to 3.0 for a float, a text to a path. Unknown types accept any value.

    Raises:
        TypeError: it is of another type.
        BadInput: it is outside of the type's range, or an invalid path, see `expanded`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return _within(fit(value, parts[0]), parts[1:])
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


def _within(value: Any, conditions: tuple[Any, ...]) -> Any:
    for condition in conditions:
        if isinstance(condition, Allowed) and not condition.holds(value):
            given = shown(list(value) if isinstance(value, tuple) else value)
            raise BadInput(f"= {given}: must be {condition.words}")
    return value


def _fit_literal(value: Any, choices: tuple[Any, ...]) -> Any:
    if isinstance(value, bool):
        value = next((choice for choice in choices if choice in WORDS[value]), value)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise TypeError
    return value


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~`, `~user`, `$NAME` and `${NAME}` expanded.

    Raises:
        BadInput: there is no such user or variable, or the path (or a part of it) is too long for a file system.
    """
    text = os.path.expandvars(os.path.expanduser(path))
    if text.startswith("~"):
        raise BadInput(f"= {shown(path)}: there is no user {text.split(os.sep)[0]}; a file of that name is ./~...")
    if unknown := re.search(r"\$(\w+|\{[^}]*\})", text):
        raise BadInput(f"= {shown(path)}: the environment variable {unknown[1].strip('{}')} is not set")
    check_length(Path(text))
    return Path(text)


def check_length(path: Path, room: int = 0) -> None:
    """Raise BadInput if the name, with `room` more bytes, or the whole path is too long for the file system."""
    longest, whole = 255 - room, len(os.fsencode(path.absolute())) + room
    for part in path.parts:
        limit = longest if part == path.name else 255
        if (size := len(os.fsencode(part))) > limit:
            raise BadInput(f"= {shown(path)}: a name has {size} bytes, at most {limit} are allowed")
    if whole > LONGEST_PATH:
        raise BadInput(f"= {shown(path)}: a path has {whole - room} bytes, at most {LONGEST_PATH - room} are allowed")


def shown(value: object) -> str:
    """A value in a message: in YAML's words, and shortened to fit on a line."""
    text = (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else " ".join(str(value).split())
    )
    return printable(text if len(text) <= 80 else f"{text[:60]}...")


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: `0-3, 8` for 0, 1, 2, 3, 8."""
    starts = [n for n in numbers if n - 1 not in set(numbers)]
    ends = [n for n in numbers if n + 1 not in set(numbers)]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def printable(text: str) -> str:
    """The text with control characters escaped, so that it cannot begin a line or control a terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def kinds(cls: type) -> dict[str, tuple[str, str]]:
    """Type and range of each option of a class, in words.

    The range is empty if all values of the type are allowed.
    """
    return {name: (_words(hint), _range(hint)) for name, hint in _hints(_constructor(cls)).items()}


def _range(hint: Any) -> str:
    ranged = [part for part in (hint, *get_args(hint)) if get_origin(part) is Annotated]
    return "; ".join(each.words for part in ranged for each in get_args(part)[1:] if isinstance(each, Allowed))


def _words(hint: Any) -> str:
    """The name of a type in a message."""
    parts = get_args(hint)
    if get_origin(hint) is Annotated:
        return _words(parts[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, parts))}"
    name = (get_origin(hint) or hint or NoneType).__name__
    return PLAIN_NAMES.get(name, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
