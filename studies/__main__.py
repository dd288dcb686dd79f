"""Print the tables and draw the figures of the documentation again, from the results files that are kept.

    python -m studies            writes them into the pages
    python -m studies --check    writes nothing; the exit status is 1 if a page has something else

A page says in a comment which command prints the table, or draws the figure, that follows it. Nothing is trained.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
#: The comment, and the lines of the table or the figure below it.
_BLOCK = re.compile(
    r"<!-- python -m (?P<command>(?:studies\.|fedmpi\.results ).+?) -->\n\n"
    r"(?P<shown>(?:[|!].*\n)*)\n*"
)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies", allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing, and say which pages differ")
    check = parser.parse_args(words).check
    os.chdir(DOCS.parent)
    different = 0
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text()
        after = renewed(before, draw=not check)
        if after != before:
            different += 1
            print(f"{page.relative_to(DOCS.parent)}: {'is not' if check else 'is now'} what the commands print")
            if not check:
                page.write_text(after)
    return int(check and different > 0)


def commands(text: str) -> Iterator[str]:
    """The commands in the comments of a page, without python -m."""
    for block in _BLOCK.finditer(text):
        yield block["command"]


def renewed(text: str, draw: bool) -> str:
    """A page with what its commands print now.

    Args:
        text: of the page.
        draw: write figures to where the page has them, and not to a temporary folder.
    """

    def of(block: re.Match[str]) -> str:
        shown = block["shown"] if block["shown"].startswith("!") else ""
        printed = _run(block["command"], draw)
        rest = "\n" if text[block.end() :] else ""  # a line that follows a table at once is taken for a row
        return f"<!-- python -m {block['command']} -->\n\n{shown or printed}{rest}"

    return _BLOCK.sub(of, text)


def _run(command: str, draw: bool) -> str:
    """What a command prints.

    Raises:
        SystemExit: it failed.
    """
    module, *patterns = shlex.split(command)
    words = [name for word in patterns for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as printed:
        for option in ("-o", "--draw") if not draw else ():
            if option in words:
                place = words.index(option) + 1
                words[place] = str(Path(folder, Path(words[place]).name))
        program = "fedmpi.results.__main__" if module == "fedmpi.results" else module
        if importlib.import_module(program).main(words):
            raise SystemExit(f"failed: python -m {command}")
    return printed.getvalue()


if __name__ == "__main__":
    sys.exit(main())
