"""Standard output and standard error, which may be closed, full, or limited to ASCII."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import Any, Literal, TextIO

Name = Literal["stdout", "stderr"]

#: How characters are spelt that the output's encoding lacks; all others become a question mark.
_SPELT = {"±": "+-", "ε": "epsilon", **dict(zip("▁▂▃▄▅▆▇█", "__..--^^", strict=True))}


def say(line: str, name: Name = "stdout") -> None:
    """Print a line at once, if that is possible."""
    try:
        print(line, file=getattr(sys, name), flush=True)
    except UnicodeEncodeError as error:
        say(line.encode(error.encoding, "spelt").decode(error.encoding, "replace"), name)
    except (OSError, ValueError):  # a program that was started in another way than by `main`; ValueError: closed
        outlast()


def flush() -> None:
    """Flush printed text."""
    for stream in (sys.stdout, sys.stderr):
        if stream:
            with suppress(OSError, ValueError):
                stream.flush()


def outlast() -> None:
    """From now on printing never raises an error: text that cannot be written is lost.

    `... | head` closes a pipe, the disk of a log file may be full, a terminal may be closed, and a daemon has none.
    Closed standard streams are replaced by the null device, because otherwise the next opened file would get the
    number of one. A stream that replaces a standard stream is not changed.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:  # it gets the lowest number that is free
        pass
    os.close(opened)
    sys.stdout, sys.stderr = _lasting("stdout", 1), _lasting("stderr", 2)
    take_any_text()


def take_any_text() -> None:
    """From now on printing never fails because standard output's encoding lacks a character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="spelt")


def _lasting(name: Name, number: int) -> TextIO:
    """A stream like the existing standard stream, to the same file."""
    if getattr(sys, name) is not getattr(sys, f"__{name}__"):
        replaced: TextIO = getattr(sys, name)
        return replaced
    old = getattr(sys, name)
    encoding, errors = getattr(old, "encoding", "utf-8"), getattr(old, "errors", "backslashreplace")
    if old is not None:
        with suppress(OSError, ValueError):
            old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_File(number, "w", closefd=False)), encoding, errors, line_buffering=True
    )


class _File(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)  # nothing is written where one would have to wait
        except OSError:
            return len(data)


def _spelt(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no text
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return _SPELT.get(letter, "?"), error.start + 1


codecs.register_error("spelt", _spelt)
