"""Tables as text, Markdown, LaTeX and CSV: a list of rows of cells, the first of which is the head."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Sequence
from typing import Literal

Format = Literal["text", "markdown", "latex", "csv"]
Rows = Sequence[Sequence[str]]

#: Columns that a paper has in its text or caption: LaTeX leaves them out where all rows have the same value.
CIRCUMSTANCES = ("runs", "pairs", "evaluated model")

_ESCAPED = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
    }
)
_GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|chi|psi|omega"


class Best(str):
    """The best of those values of its column that can be compared: bold in LaTeX and Markdown."""


class Near(str):
    """A value that overlaps with the best one, mean ± spread: underlined in LaTeX and Markdown."""


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def latex(rows: Rows, caption: str = "", label: str = "", of_method: Collection[str] = ()) -> str:
    """A tabular for the package booktabs; with a caption, a whole table environment.

    Comments before it say what the marks mean, and what was left out, for the caption or the text of the paper:
    columns of `CIRCUMSTANCES` that have one value, and settings of the method of which each method has one value.

    Args:
        caption: in LaTeX, but for %, & and #, which are escaped.
        label: for \\ref; only with a caption.
        of_method: the columns that are settings of the method.
    """
    methods, *_ = columns = list(zip(*rows, strict=True))
    same = [column for column in columns if column[0] in CIRCUMSTANCES and len(set(column[1:])) == 1]
    decided = [
        column
        for column in columns[1:]
        if column[0] in of_method and len({*zip(methods, column, strict=True)}) == len({*methods})
    ]
    kept = list(zip(*(column for column in columns if column not in same + decided), strict=True))
    comments = [r"% needs \usepackage{booktabs}"]
    comments += [f"% in all rows: {column[0]} {column[1]}" for column in same]
    for name, *cells in decided:
        told = dict(zip(methods[1:], cells, strict=True))
        comments.append(f"% {name}: {', '.join(f'{method} {value}' for method, value in told.items())}")
    if any(isinstance(cell, Best) for row in rows for cell in row):
        comments.append(
            "% bold: best mean under the same conditions; underlined: mean ± spread overlaps with that of the best"
        )
    head, *body = [" & ".join(map(_latex_cell, row)) + r" \\" for row in kept]
    alignment = "".join("r" if of_numbers else "l" for of_numbers in _numeric(kept))
    tabular = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    tabular.append(r"\end{tabular}")
    if caption:
        escaped = re.sub(r"(?<!\\)[%&#]", r"\\\g<0>", caption)
        labelled = [rf"\label{{{label}}}"] if label else []
        tabular = [r"\begin{table}", r"\centering", rf"\caption{{{escaped}}}", *labelled, *tabular, r"\end{table}"]
    return "\n".join([*comments, *tabular])


def _latex_cell(cell: str) -> str:
    if cell == "-":
        return "--"
    text = re.sub(r"(?<![\w.)])-(?=\d)", "$-$", cell.translate(_ESCAPED))
    text = re.sub(rf"\b({_GREEK})\b", r"$\\\1$", text)
    return _marked(cell, text, r"\textbf{%s}", r"\underline{%s}")


def _marked(cell: str, text: str, best: str, near: str) -> str:
    return best % text if isinstance(cell, Best) else near % text if isinstance(cell, Near) else text


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
    """Underlined by <ins>, which GitHub shows as well."""
    marked = [[_marked(cell, cell.replace("|", "\\|"), "**%s**", "<ins>%s</ins>") for cell in row] for row in rows]
    lines = [" | ".join(row) for row in marked]
    lines.insert(1, " | ".join("---:" if of_numbers else "---" for of_numbers in _numeric(rows)))
    return "\n".join(f"| {line} |" for line in lines)


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
    "latex": latex,
    "csv": _csv,
}
