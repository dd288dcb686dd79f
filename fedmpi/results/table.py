"""Runs side by side: one line for those that differ by nothing but their seed, with what papers' tables have."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.reader import Run
from fedmpi.results.settings import same_but_seed, table

Format = Literal["text", "markdown", "latex", "csv"]

# What only some methods have in /rounds, and in what unit it is shown.
OF_SOME = {"global (%)": ("global_matched_accuracy", 100), "ARI": ("adjusted_rand_index", 1)}


def tabulate(
    runs: Sequence[Run], column: str, targets: Sequence[float], format: Format, reference: str | None = None
) -> str:
    """A table of all runs, without a final newline.

    A line for the runs of one setting: what sets it apart from the others, then mean ± standard deviation (with n-1)
    over the runs of

    - the last and the best accuracy, and the mean of the last ten that were measured, in percent;
    - whose it is: of the server's model, or of each client's own on the client's own test samples;
    - where there are runs with several models: the last accuracy of each client's model on all test samples, and how
      well the clusters agree with the groups of the partition (adjusted Rand index);
    - the first round with each target accuracy: the mean over the runs that reached it, and how many did; and the
      traffic until then;
    - if there were newcomers, the median of the epochs after which they settled, and how many did;
    - traffic of the clients, both ways by the method's definition, and seconds, of the whole run.

    Args:
        column: of /rounds, an accuracy.
        targets: accuracies in [0, 1].
        reference: a method; the others' rounds to an accuracy have the difference to its, in percent.

    Raises:
        BadInput: the runs of the reference are not of one setting.
    """
    groups = _groups(runs)
    settings = table([group[0].settings for group in groups])
    compared = _reference(groups, reference)
    of_some = [title for title, (name, _) in OF_SOME.items() if any(name in run.rounds for run in runs)]
    lines = [
        {
            **{name: values[k] for name, values in settings.items()},
            **_figures(group, column, targets, compared, of_some),
        }
        for k, group in enumerate(groups)
    ]
    return FORMATS[format](_filled(lines))


def _filled(lines: list[dict[str, str]]) -> list[list[str]]:
    """All columns that some line has, in their order, and then every line; - where it has nothing."""
    longest = max(lines, key=len)
    return [list(longest), *[[line.get(name, "-") for name in longest] for line in lines]]


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same settings but for the seed, in the order in which settings first appear."""
    keys = [same_but_seed(run.settings) for run in runs]
    return [[run for run, other in zip(runs, keys, strict=True) if other == key] for key in dict.fromkeys(keys)]


def _reference(groups: list[list[Run]], method: str | None) -> list[Run]:
    """The runs of a method; none if there is no method."""
    found = [group for group in groups if method and group[0].attributes["algorithm"] == method]
    if method and len(found) != 1:
        raise BadInput(f"--reference = {method}: must have runs of one setting, here {len(found)}")
    return found[0] if found else []


def _figures(
    group: Sequence[Run], column: str, targets: Sequence[float], reference: Sequence[Run], of_some: Sequence[str]
) -> dict[str, str]:
    accuracies = [run.accuracy(column) for run in group]
    marks = {"clients_trained", "global_matched_accuracy"}
    personal = column == "local_accuracy" or any(marks & run.rounds.keys() for run in group)
    traffic = [_traffic(run).sum() for run in group]
    return {
        "runs": str(len(group)),
        "last (%)": _spread([100 * accuracy.last for accuracy in accuracies]),
        "best (%)": _spread([100 * accuracy.best for accuracy in accuracies]),
        "last 10 (%)": _spread([100 * accuracy.last10 for accuracy in accuracies]),
        "whose": "client's" if personal else "server's",
        **{title: _last(group, *OF_SOME[title]) for title in of_some},
        **{
            f"{what} to {100 * target:g} %": text
            for target in targets
            for what, text in _reached(group, column, target, reference).items()
        },
        **_newcomers(group),
        "GB": f"{np.mean(traffic):.3g}",
        "seconds": f"{np.mean([run.rounds['seconds'].sum() for run in group]):.3g}",
    }


def _last(group: Sequence[Run], column: str, unit: int) -> str:
    """The last values of the runs that have any."""
    values = [unit * value for run in group if not np.isnan(value := run.accuracy(column).last)]
    return _spread(values) if values else "-"


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def _reached(group: Sequence[Run], column: str, target: float, reference: Sequence[Run]) -> dict[str, str]:
    """The mean of the first rounds with the target accuracy, and how many runs have one if not all do; traffic."""
    first = _first_rounds(group, column, target)
    if not first:
        return {"rounds": "-", "GB": "-"}
    notes = [f"{len(first)} of {len(group)}"] if len(first) < len(group) else []
    compared = list(_first_rounds(reference, column, target).values())
    if compared and group != reference:
        notes.append(f"{100 * (np.mean(list(first.values())) / np.mean(compared) - 1):+.0f} %")
    traffic = [np.sum(_traffic(run)[: np.searchsorted(run.rounds["round"], end) + 1]) for run, end in first.items()]
    rounds = f"{np.mean(list(first.values())):.0f}" + (f" ({', '.join(notes)})" if notes else "")
    return {"rounds": rounds, "GB": f"{np.mean(traffic):.3g}"}


def _first_rounds(group: Sequence[Run], column: str, target: float) -> dict[Run, int]:
    """The first round with an accuracy, of those runs that reached it."""
    there = {run: np.flatnonzero(run.rounds[column] >= target) for run in group}
    return {run: int(run.rounds["round"][rows[0]]) for run, rows in there.items() if len(rows)}


def _traffic(run: Run) -> NDArray[np.float64]:
    """[rounds] GB, both ways."""
    return (run.rounds["bytes_up"] + run.rounds["bytes_down"]) / 1e9


def _newcomers(group: Sequence[Run]) -> dict[str, str]:
    """The median of the epochs that newcomers took, and how many have settled if not all have."""
    epochs = np.concatenate([run.newcomers.get("epochs", np.empty(0)) for run in group])
    if not len(epochs):
        return {}
    done = epochs[~np.isnan(epochs)]
    if not len(done):
        return {"newcomers' epochs": "-"}
    some = f" ({len(done)} of {len(epochs)})" if len(done) < len(epochs) else ""
    return {"newcomers' epochs": f"{np.median(done):g}{some}"}


def _text(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _markdown(rows: list[list[str]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    lines.insert(1, " | ".join("---" for _ in rows[0]))
    return "\n".join(f"| {line} |" for line in lines)


def _latex(rows: list[list[str]]) -> str:
    """For the package booktabs."""
    escaped = [[_escaped(cell) for cell in row] for row in rows]
    head, *body = [" & ".join(row) + r" \\" for row in escaped]
    begin = rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, f"\\{character}" if character != "\\" else r"\textbackslash ")
    return text.replace("±", r"$\pm$")


def _csv(rows: list[list[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue().rstrip("\n")


FORMATS: dict[Format, Callable[[list[list[str]]], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
}
