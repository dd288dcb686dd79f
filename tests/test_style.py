"""The prose of documentation, docstrings and messages: constructions that readers had to read twice are not used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.mpi import REPOSITORY

UNITS = "round|client|node|rank|class|setting|step|seed|epoch|run|column|line|row|second|minute|block|method|task"
#: Words between "one" and "a round" that are no unit of a rate: "1 for a client" is not "1 message a client".
SMALL = "per|for|in|of|if|to|at|with|on|by|from|and|or|as|is|not"
#: What is not written -> what is written instead.
PATTERNS = {
    rf"\b(one|a|an|\d+|fewer) (?!({SMALL})\b)\w+ an? ({UNITS})\b(?! that| of)": "'one message per round'",
    rf"\b(bytes|cores|MB|MiB|models|ms|ns|seconds|threads|us) an? ({UNITS})\b": "'seconds per round'",
    r"\bbeside\b": "'next to', 'in addition to' or 'compared with'",
    r"\banew\b": "'again'",
    r"\bnewcomers?\b": "'held-out clients'",
    r"\bthe books\b": "'bookkeeping' or 'the measurements'",
    r"\b(is|are) not there\b": "'does not exist' or 'is missing'",
    r"\bgo(es)? on\b": "'continue'",
    r"\bat the (most|least)\b": "'at most', 'at least'",
    r"\b(is|are) told\b": "'prints' or 'gets'",
    r"\bwhoever\b": "the rank or client that is meant",
    r"\bin vain\b": "'wasted'",
}


def _pages() -> Iterator[tuple[str, str]]:
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]:
        if path.name != "CHANGELOG.md":  # what was released stays as it was written
            yield str(path.relative_to(REPOSITORY)), re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)


def _strings() -> Iterator[tuple[str, str]]:
    """The docstrings and messages of the package, by file and line."""
    for path in REPOSITORY.glob("fedmpi/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", node.value


TEXTS = [*_pages(), *_strings()]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_prose(pattern: str) -> None:
    found = [
        f"{place}: {' '.join(text[max(match.start() - 40, 0) : match.end() + 20].split())}"
        for place, text in TEXTS
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE)
    ]
    assert not found, "\n".join([f"write {PATTERNS[pattern]}:", *found])
