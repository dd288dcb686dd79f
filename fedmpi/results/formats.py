"""Tables as text, Markdown, LaTeX and CSV: a list of rows of cells, the first of which is the head."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Literal

Format = Literal["text", "markdown", "latex", "csv"]
Rows = Sequence[Sequence[str]]


def filled(lines: Sequence[dict[str, str]]) -> list[list[str]]:
    """The head with all columns that some line has, in their order, and then every line; - where it has nothing."""
    longest = max(lines, key=len)
    return [list(longest), *[[line.get(name, "-") for name in longest] for line in lines]]


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _text(rows: Rows) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = _numeric(rows)
    padded = [
        [
            f"{cell:{'>' if of_numbers else '<'}{width}}"
            for cell, width, of_numbers in zip(row, widths, right, strict=True)
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _markdown(rows: Rows) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    lines.insert(1, " | ".join("---:" if of_numbers else "---" for of_numbers in _numeric(rows)))
    return "\n".join(f"| {line} |" for line in lines)


def _latex(rows: Rows) -> str:
    """For the package booktabs."""
    escaped = [[_escaped(cell) for cell in row] for row in rows]
    head, *body = [" & ".join(row) + r" \\" for row in escaped]
    alignment = "".join("r" if of_numbers else "l" for of_numbers in _numeric(rows))
    begin = rf"\begin{{tabular}}{{{alignment}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, f"\\{character}" if character != "\\" else r"\textbackslash ")
    return text.replace("±", r"$\pm$")


def _csv(rows: Rows) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue().rstrip("\n")


def _numeric(rows: Rows) -> list[bool]:
    """Of each column, whether its cells begin like numbers: these are aligned to the right."""
    return [all(cell[:1] in "+-0123456789" for cell in column) for column in zip(*rows[1:], strict=True)]


FORMATS: dict[Format, Callable[[Rows], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
}
