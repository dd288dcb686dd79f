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


def load(text: str) -> Any:
    """The value of a text.

    Raises:
        yaml.YAMLError: it is not YAML, or too large.
    """
    check(text)
    try:
        return yaml.load(text, LOADER)
    except yaml.YAMLError:
        raise
    except Exception as error:  # of what looks like a time or a number and is none
        raise yaml.YAMLError(str(error)) from None


def check(text: str) -> None:
    """Check that a text is not too large, without loading it.

    Raises:
        yaml.YAMLError: it is too large, or not YAML.
    """
    if len(text) > LONGEST:
        raise TooLarge(f"more than {LONGEST >> 20} MiB")
    count = 0
    sizes: dict[str, int] = {}  # of what has an anchor
    begun: list[tuple[str | None, int]] = []  # of what is not over: its anchor, and how much came before it
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:  # it is the parser's matter whether there is such an anchor at all
                raise TooLarge("a value that holds itself, or an alias of nothing")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
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
