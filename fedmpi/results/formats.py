"""Output formats of tables: text, Markdown, LaTeX and CSV.

A table is a list of rows, a row is a list of cells, and the first row is the head.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Sequence
from typing import Literal

Format = Literal["text", "markdown", "latex", "csv"]
Rows = Sequence[Sequence[str]]

#: The column that says how the best round is chosen, if the heads of the numbers do not say it.
STATISTIC = "statistic"
#: Columns that a paper states in its text or caption. LaTeX tables omit them if all rows have the same value.
CIRCUMSTANCES = ("runs", "pairs", "evaluated model", STATISTIC)

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
    """The best of the comparable values in its column; bold in LaTeX and Markdown."""


class Near(str):
    """A value whose range mean ± spread overlaps with that of the best; underlined in LaTeX and Markdown."""


def short(value: float) -> str:
    """A number with three significant digits; from 1000 on, all digits before the decimal point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def latex(rows: Rows, caption: str = "", label: str = "", of_method: Collection[str] = ()) -> str:
    """A LaTeX tabular for the package booktabs, or a complete table environment if a caption is given.

    Two kinds of columns are omitted: those of `CIRCUMSTANCES` with the same value in all rows, and settings of the
    method with only one value per method. LaTeX comments before the table give their values, for the caption or the
    text of the paper. The comments also explain the bold and underlined values.

    Args:
        rows: the table, the head first.
        caption: LaTeX text; %, & and # in it are escaped.
        label: the label for \\ref; used only with a caption.
        of_method: names of the columns that are settings of the method.
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
    """A Markdown table; values are underlined by <ins>, which GitHub supports."""
    marked = [[_marked(cell, cell.replace("|", "\\|"), "**%s**", "<ins>%s</ins>") for cell in row] for row in rows]
    lines = [" | ".join(row) for row in marked]
    lines.insert(1, " | ".join("---:" if of_numbers else "---" for of_numbers in _numeric(rows)))
    return "\n".join(f"| {line} |" for line in lines)


def _csv(rows: Rows) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue().rstrip("\n")


def _numeric(rows: Rows) -> list[bool]:
    """Whether all cells of a column begin like numbers, per column; such columns are aligned to the right."""
    return [all(cell[:1] in "+-0123456789" for cell in column) for column in zip(*rows[1:], strict=True)]


FORMATS: dict[Format, Callable[[Rows], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": latex,
    "csv": _csv,
}
