"""Tables of runs: one row for those that differ by nothing but their seed, with what papers' tables have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedmpi.results.formats import short
from fedmpi.results.groups import Group, columns, grouped
from fedmpi.results.reader import Run, traffic
from fedmpi.results.schema import Direction, described, scale, with_unit
from fedmpi.results.settings import task
from fedmpi.results.spread import emphasized, spread

Statistic = Literal["last", "best", "last10"]
STATISTICS: dict[Statistic, str] = {"last": "last", "best": "best", "last10": "last 10"}

EVALUATED = "evaluated model"
# What only some methods have in /rounds.
_OF_SOME = {"global test set (%)": "global_matched_accuracy", "ARI": "adjusted_rand_index"}
# What a row has besides its settings.
_OTHERS = ("runs", EVALUATED, "traffic (GB)", "time (s)", *STATISTICS.values(), *_OF_SOME)


def tabulate(
    runs: Sequence[Run], column: str, of_mean: bool = False, direction: Direction | None = None, costs: bool = False
) -> list[list[str]]:
    """The rows of a table of all runs, the head first.

    One row for the runs of one setting: what sets it apart from the others, then mean ± standard deviation (with n-1)
    over the seeds of

    - the last and the best value of the column, and the mean of the last ten that were measured, in its unit; without
      the best where nobody knows which values are better;
    - which model was evaluated: the global one, or each client's personal one on the client's local test set;
    - where there are runs with several models: the last accuracy of each client's model on all test samples, and how
      well the clusters agree with the groups of the partition (adjusted Rand index);
    - if there were held-out clients, the median of the epochs after which they converged, and how many did.

    Args:
        column: of /rounds.
        of_mean: standard errors in place of standard deviations.
        direction: which of its values are better; None: as the schema says.
        costs: also the traffic of the clients, up and down by the method's definition, and the wall-clock time, of a
            whole run.
    """
    groups = grouped(runs)
    settings = columns(groups, _OTHERS)
    better = direction or described(column).better
    kinds = comparable(groups, column)
    parts: dict[str, Sequence[str]] = {**settings, "runs": [str(len(group)) for group in groups]}
    for name, title in STATISTICS.items():
        if better or name != "best":
            parts[with_unit(title, column)] = _cells(groups, column, name, of_mean, direction, kinds)
    parts[EVALUATED] = [evaluated_model(group, column) for group in groups]
    for title, of_some in _OF_SOME.items():
        if any(of_some in run.rounds for run in runs):
            parts[title] = _cells(groups, of_some, "last", of_mean, None, comparable(groups, of_some))
    if any(run.held_out for run in runs):
        parts["epochs of held-out clients"] = [_held_out(group) for group in groups]
    if costs:
        parts["traffic (GB)"] = [short(float(np.mean([traffic(run).sum() for run in group]))) for group in groups]
        parts["time (s)"] = [
            short(float(np.mean([run.rounds["seconds"].sum() for run in group]))) for group in groups
        ]
    return [list(parts), *map(list, zip(*parts.values(), strict=True))]


def cross(
    runs: Sequence[Run],
    column: str,
    statistic: Statistic,
    of_mean: bool = False,
    direction: Direction | None = None,
) -> list[list[str]]:
    """Methods x settings: one statistic of `tabulate`, with a row for each method and a column for each setting.

    What most methods were run with several values of, makes the columns; other settings stand beside the method. So
    does which model was evaluated, if that is not the same for all.
    """
    groups = grouped(runs)
    settings = columns(groups, (EVALUATED,))
    across = _varied(settings)
    models = [evaluated_model(group, column) for group in groups]
    if len(set(models)) > 1:
        settings[EVALUATED] = models
    beside = [name for name in settings if name not in across]
    heads = [
        ", ".join(_said(name, settings[name][k]) for name in across) or with_unit(STATISTICS[statistic], column)
        for k in range(len(groups))
    ]
    keys = [tuple(settings[name][k] for name in beside) for k in range(len(groups))]
    kinds = [f"{head}: {kind}" for head, kind in zip(heads, comparable(groups, column), strict=True)]
    shown = _cells(groups, column, statistic, of_mean, direction, kinds)
    cells = dict(zip(zip(keys, heads, strict=True), shown, strict=True))
    rows = [[*key, *(cells.get((key, head), "-") for head in dict.fromkeys(heads))] for key in dict.fromkeys(keys)]
    return [[*beside, *dict.fromkeys(heads)], *rows]


def values(group: Group, column: str, statistic: Statistic, direction: Direction | None = None) -> list[float]:
    """A statistic of each run of a group, in the unit of the column."""
    return [scale(column) * getattr(run.accuracy(column, direction), statistic) for run in group]


def decimals(column: str) -> int | None:
    """How many digits behind the point a column's values are shown with; None: as many as make four in all."""
    return 2 if scale(column) != 1 or column == "adjusted_rand_index" else None


def evaluated_model(group: Group, column: str) -> str:
    """Whether a column is of the global model, or of each client's personal one on the client's local test set."""
    marks = {"clients_trained", "global_matched_accuracy"}
    personal = column == "local_accuracy" or any(marks & run.rounds.keys() for run in group)
    return "personal" if personal else "global"


def comparable(groups: Sequence[Group], column: str) -> list[str]:
    """A text for each group, equal for those that can be compared.

    They have the same task, the same value of what most methods were run with several values of, if there are several
    methods, and the same kind of evaluated model.
    """
    settings = columns(groups)
    conditions = _varied(settings) if len({*settings["method"]}) > 1 else []
    tasks = [task(group[0].identity) for group in groups]
    return [
        " ".join([evaluated_model(group, column), f"{tasks.index(tasks[k])}", *(settings[n][k] for n in conditions)])
        for k, group in enumerate(groups)
    ]


def _cells(
    groups: Sequence[Group],
    column: str,
    statistic: Statistic,
    of_mean: bool,
    direction: Direction | None,
    kinds: Sequence[str],
) -> list[str]:
    """A statistic of each group; the best of each kind are marked."""
    found = [values(group, column, statistic, direction) for group in groups]
    texts = [spread(each, of_mean, decimals(column)) for each in found]
    return emphasized(texts, found, direction or described(column).better, of_mean, kinds)


def _varied(settings: dict[str, list[str]]) -> list[str]:
    """The settings of which most methods have several values."""
    methods = settings["method"]

    def varies(values: Sequence[str]) -> bool:
        several = [len({v for m, v in zip(methods, values, strict=True) if m == method}) > 1 for method in {*methods}]
        return sum(several) > len(several) / 2

    return [name for name, values in settings.items() if name != "method" and varies(values)]


def _said(name: str, value: str) -> str:
    """A setting as the head of a column: `alpha 0.1`, but `Dirichlet (alpha 0.1)`."""
    return f"{name} {value}" if value[:1].isdigit() or value[:1].islower() else value


def _held_out(group: Group) -> str:
    """The median of the epochs that held-out clients took, and how many have converged if not all have."""
    epochs = np.concatenate([run.held_out.get("epochs", np.empty(0)) for run in group])
    done = epochs[~np.isnan(epochs)]
    if not len(done):
        return "-"
    some = f" ({len(done)} of {len(epochs)})" if len(done) < len(epochs) else ""
    return f"{np.median(done):g}{some}"
