"""YAML that is read only if it is small: a few lines can stand for billions of values, or be nested very deeply."""

from __future__ import annotations

import re
from typing import Any

import yaml

from fedmpi.options import shown

#: Characters, and lists in lists: far more than settings have.
LONGEST, DEEPEST = 1 << 20, 50
#: How many values a text may stand for beyond as many as it has characters: a value takes one at least, unless it is
#: an alias, which stands for all values of its anchor.
MOST_REPEATED = 1_000
#: The one in C, where there is one, is ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TOO_MANY_DIGITS = "a number of more than 1000 digits"
#: A number that takes very long to make, and that Python would not print.
LONG_NUMBER = re.compile(r"[\da-fA-Fxob_:.]{1001,}")


class TooLarge(yaml.YAMLError):
    """A text is larger than settings can be; the message says in which way."""


def load(text: str, loader: Any = LOADER) -> Any:
    """The value of a text.

    Args:
        loader: a class of PyYAML that makes the value.

    Raises:
        yaml.YAMLError: it is not YAML, too large, or gives a key twice.
    """
    check(text)
    try:
        return yaml.load(text, loader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # of what looks like a time or a number and is none
        raise yaml.YAMLError(str(error)) from None


def check(text: str) -> None:
    """Check that a text is not too large and gives no key twice, without loading it.

    Raises:
        yaml.YAMLError: it is too large, not YAML, or gives a key twice.
    """
    if len(text) > LONGEST:
        raise TooLarge(f"more than {LONGEST >> 20} MiB")
    count = 0
    sizes: dict[str, int] = {}  # of what has an anchor
    begun: list[tuple[str | None, int]] = []  # of what is not over: its anchor, and how much came before it
    keys: list[_Keys | None] = [None]  # of the mappings that are not over; None for a list
    for event in yaml.parse(text, LOADER):
        if keys[-1] and isinstance(event, yaml.NodeEvent):
            keys[-1].see(event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:  # it is the parser's matter whether there is such an anchor at all
                raise TooLarge("a value that holds itself, or an alias of nothing")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, count))
            keys.append(_Keys() if isinstance(event, yaml.MappingStartEvent) else None)
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            keys.pop()
            sizes |= {anchor: count - before} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            if LONG_NUMBER.fullmatch(event.value.lstrip("+-")):
                raise TooLarge(TOO_MANY_DIGITS)
            count += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        if len(begun) > DEEPEST:
            raise TooLarge(f"lists or mappings in one another, more than {DEEPEST} deep")
        if count > len(text) + MOST_REPEATED:
            raise TooLarge("aliases that stand for far more than the text")


class _Keys:
    """The keys of one mapping, whose keys and values come by turns."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._is_key = True

    def see(self, event: yaml.NodeEvent) -> None:
        """Take the beginning of a key or of a value; raises yaml.YAMLError at a key that has come before."""
        if self._is_key and isinstance(event, yaml.ScalarEvent):
            if event.value in self._seen:
                raise yaml.MarkedYAMLError(problem=f"{event.value} is given twice", problem_mark=event.start_mark)
            self._seen.add(event.value)
        self._is_key = not self._is_key


def reason(error: yaml.YAMLError) -> str:
    """The problem in a few words."""
    if isinstance(error, TooLarge):
        return f"has {error}"
    if isinstance(error, yaml.MarkedYAMLError):
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"is not YAML (line {line}: {shown(error.problem)})"
    return (
        "is not YAML, but binary" if isinstance(error, yaml.reader.ReaderError) else f"is not YAML ({shown(error)})"
    )
