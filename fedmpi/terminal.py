"""Output on terminals that know little more than ASCII, as on many compute nodes."""

from __future__ import annotations

import codecs
import io
import sys

#: How characters are spelt that the output's encoding lacks; all others become a question mark.
_SPELT = {"±": "+-", "ε": "epsilon", **dict(zip("▁▂▃▄▅▆▇█", "__..--^^", strict=True))}


def take_any_text() -> None:
    """From now on printing never fails because standard output's encoding lacks a character."""
    codecs.register_error("spelt", _spelt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="spelt")


def _spelt(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no text
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return _SPELT.get(letter, "?"), error.start + 1
