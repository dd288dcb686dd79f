"""Runs side by side: one line for those that differ by nothing but their seed, with what papers' tables have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedmpi.results.formats import FORMATS, Format, filled, short
from fedmpi.results.groups import Group, columns, grouped, spread
from fedmpi.results.reader import Run, traffic
from fedmpi.results.schema import Direction, described, scale, with_unit

Figure = Literal["last", "best", "last10"]
FIGURES: dict[Figure, str] = {"last": "last", "best": "best", "last10": "last 10"}

# What only some methods have in /rounds.
_OF_SOME = {"global (%)": "global_matched_accuracy", "ARI": "adjusted_rand_index"}
# What a line has beside its settings.
_OTHERS = ("runs", "whose", "GB", "seconds", *FIGURES.values(), *_OF_SOME)


def tabulate(
    runs: Sequence[Run], column: str, format: Format, of_mean: bool = False, direction: Direction | None = None
) -> str:
    """A table of all runs, without a final newline.

    A line for the runs of one setting: what sets it apart from the others, then mean ± standard deviation (with n-1)
    over the seeds of

    - the last and the best value of the column, and the mean of the last ten that were measured, in its unit; without
      the best where nobody knows which values are better;
    - whose it is: of the server's model, or of each client's own on the client's own test samples;
    - where there are runs with several models: the last accuracy of each client's model on all test samples, and how
      well the clusters agree with the groups of the partition (adjusted Rand index);
    - if there were held-out clients, the median of the epochs after which they settled, and how many did;
    - traffic of the clients, both ways by the method's definition, and seconds, of the whole run.

    Args:
        column: of /rounds.
        of_mean: standard errors in place of standard deviations.
        direction: which of its values are better; None: as the schema says.
    """
    groups = grouped(runs)
    settings = columns(groups, _OTHERS)
    of_some = [title for title, name in _OF_SOME.items() if any(name in run.rounds for run in runs)]
    knows_best = bool(direction or described(column).better)
    lines = [
        {
            **{name: values[k] for name, values in settings.items()},
            "runs": str(len(group)),
            **{
                with_unit(title, column): figure(group, column, name, of_mean, direction)
                for name, title in FIGURES.items()
                if knows_best or name != "best"
            },
            **_circumstances(group, column, of_some, of_mean),
        }
        for k, group in enumerate(groups)
    ]
    return FORMATS[format](filled(lines))


def cross(
    runs: Sequence[Run],
    column: str,
    format: Format,
    shown: Figure,
    of_mean: bool = False,
    direction: Direction | None = None,
) -> str:
    """Methods x settings: one figure of `tabulate`, with a line for each method and a column for each setting.

    What most methods were run with several values of, makes the columns; other settings stand beside the method.
    """
    groups = grouped(runs)
    settings = columns(groups)
    across = [name for name in settings if name != "method" and _varies_within_methods(settings, name)]
    beside = [name for name in settings if name not in across]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    heads: dict[str, None] = {}
    for k, group in enumerate(groups):
        head = ", ".join(_said(name, settings[name][k]) for name in across) or with_unit(FIGURES[shown], column)
        heads[head] = None
        key = tuple(settings[name][k] for name in beside)
        line = lines.setdefault(key, dict(zip(beside, key, strict=True)))
        line[head] = figure(group, column, shown, of_mean, direction)
    rows = [[line.get(name, "-") for name in (*beside, *heads)] for line in lines.values()]
    return FORMATS[format]([[*beside, *heads], *rows])


def figure(group: Group, column: str, name: Figure, of_mean: bool = False, direction: Direction | None = None) -> str:
    """One figure of the runs of a group, in the unit of the column."""
    return spread(values(group, column, name, direction), of_mean, decimals(column))


def values(group: Group, column: str, name: Figure, direction: Direction | None = None) -> list[float]:
    """One figure of each run of a group, in the unit of the column."""
    return [scale(column) * getattr(run.accuracy(column, direction), name) for run in group]


def decimals(column: str) -> int | None:
    """How many digits behind the point a column's values are shown with; None: as many as make four in all."""
    return 2 if scale(column) != 1 or column == "adjusted_rand_index" else None


def _varies_within_methods(settings: dict[str, list[str]], name: str) -> bool:
    """Whether most methods have several values of it."""
    values: dict[str, set[str]] = {}
    for method, value in zip(settings["method"], settings[name], strict=True):
        values.setdefault(method, set()).add(value)
    return sum(len(found) > 1 for found in values.values()) > len(values) / 2


def _said(name: str, value: str) -> str:
    """A setting as the head of a column: `alpha 0.1`, but `Dirichlet (alpha 0.1)`."""
    return f"{name} {value}" if value[:1].isdigit() or value[:1].islower() else value


def _circumstances(group: Group, column: str, of_some: Sequence[str], of_mean: bool) -> dict[str, str]:
    marks = {"clients_trained", "global_matched_accuracy"}
    personal = column == "local_accuracy" or any(marks & run.rounds.keys() for run in group)
    return {
        "whose": "client's" if personal else "server's",
        **{title: _last(group, _OF_SOME[title], of_mean) for title in of_some},
        **_held_out(group),
        "GB": short(float(np.mean([traffic(run).sum() for run in group]))),
        "seconds": short(float(np.mean([run.rounds["seconds"].sum() for run in group]))),
    }


def _last(group: Group, column: str, of_mean: bool) -> str:
    """The last values of the runs that have any."""
    known = [value for value in values(group, column, "last") if not np.isnan(value)]
    return spread(known, of_mean, decimals(column))


def _held_out(group: Group) -> dict[str, str]:
    """The median of the epochs that held-out clients took, and how many have settled if not all have."""
    epochs = np.concatenate([run.held_out.get("epochs", np.empty(0)) for run in group])
    if not len(epochs):
        return {}
    done = epochs[~np.isnan(epochs)]
    if not len(done):
        return {"epochs of held-out clients": "-"}
    some = f" ({len(done)} of {len(epochs)})" if len(done) < len(epochs) else ""
    return {"epochs of held-out clients": f"{np.median(done):g}{some}"}
