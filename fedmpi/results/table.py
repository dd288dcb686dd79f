"""Tables of runs, as in papers. The runs that differ only in the seed are one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedmpi.results.common import described
from fedmpi.results.formats import STATISTIC, short
from fedmpi.results.groups import Group, columns, grouped
from fedmpi.results.metrics import PERCENT, Direction
from fedmpi.results.reader import Run, traffic
from fedmpi.results.settings import task
from fedmpi.results.spread import emphasized, spread

Statistic = Literal["last", "best", "last10"]
STATISTICS: dict[Statistic, str] = {"last": "last", "best": "best", "last10": "last 10"}

EVALUATED = "evaluated model"
# Columns of /rounds that only some methods have, by their heads in the table. MAIN stands for the main metric.
_OF_SOME = {"global test set": "global_matched_MAIN", "ARI": "adjusted_rand_index"}
# The heads of columns that are not settings.
_OTHERS = ("runs", EVALUATED, STATISTIC, "traffic (GB)", "time (s)", *STATISTICS.values(), *_OF_SOME)


def tabulate(
    runs: Sequence[Run], column: str, of_mean: bool = False, direction: Direction | None = None, costs: bool = False
) -> list[list[str]]:
    """The rows of a table of all runs. The head is first, then one row per setting.

    A row begins with the method and the settings in which the rows differ. Numbers are mean ± standard deviation
    (with n-1) over the seeds. The other columns are:

    - the number of runs;
    - the last value of the column, the best value, and the mean of the last ten measured values, in the column's
      unit. The head says what the best value is (see `Run.best_is`); if it is not the same for all runs, there are
      two columns. The best value is left out if it is not known which values are better;
    - the evaluated model: the global one, or each client's personal model on the client's local test set;
    - if there are runs with several models: the last value of the main metric of each client's model on all test
      samples, and the adjusted Rand index of the clusters and the groups of the partition;
    - if there are held-out clients: the median of the epochs until they converged. If not all converged, the number
      of those that did follows in brackets;
    - with `costs`: the mean traffic of the clients (up and down, by the method's definition) in GB, and the mean
      wall-clock time in seconds, of a whole run.

    Args:
        runs: the runs.
        column: name of a column of /rounds.
        of_mean: whether the spread is the standard error of the mean instead of the standard deviation.
        direction: which values of the column are better; None: the direction that the files give for it.
        costs: whether the table has columns of traffic and time.

    Raises:
        BadInput: the files do not give the same unit and direction for the column.
    """
    groups = grouped(runs)
    settings = columns(groups, _OTHERS)
    about = described(runs, column)
    kinds = comparable(groups, column)
    parts: dict[str, Sequence[str]] = {**settings, "runs": [str(len(group)) for group in groups]}
    for name in STATISTICS:
        if direction or about.better or name != "best":
            titles = heads(groups, column, name)
            for title in dict.fromkeys(titles):
                some = [group if own == title else [] for group, own in zip(groups, titles, strict=True)]
                parts[about.with_unit(title)] = _cells(some, column, name, of_mean, direction, kinds)
    parts[EVALUATED] = [evaluated_model(group, column) for group in groups]
    for title, key in _OF_SOME.items():
        of_some = key.replace("MAIN", runs[0].main_metric)
        if any(of_some in run.rounds for run in runs):
            cells = _cells(groups, of_some, "last", of_mean, None, comparable(groups, of_some))
            parts[runs[0].described(of_some).with_unit(title)] = cells
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
    """A table of methods x settings: one statistic of `tabulate`, with one row per method and one column per setting.

    The columns are the values of those settings of which most methods have several values. All other settings in
    which runs differ are next to the method. So is the evaluated model, if it is not the same for all runs. So is
    what the best value is (see `Run.best_is`), if the heads do not say it.

    Args:
        runs: the runs.
        column: name of a column of /rounds.
        statistic: the statistic that is shown.
        of_mean: whether the spread is the standard error of the mean instead of the standard deviation.
        direction: which values of the column are better; None: the direction that the files give for it.

    Raises:
        BadInput: the files do not give the same unit and direction for the column.
    """
    groups = grouped(runs)
    settings = columns(groups, (EVALUATED, STATISTIC))
    about = described(runs, column)
    across = _varied(settings)
    titles = heads(groups, column, statistic)
    if len(set(titles)) > 1 or (across and statistic == "best"):
        settings[STATISTIC] = titles
    models = [evaluated_model(group, column) for group in groups]
    if len(set(models)) > 1:
        settings[EVALUATED] = models
    beside = [name for name in settings if name not in across]
    alone = about.with_unit(STATISTICS[statistic] if STATISTIC in settings else titles[0])
    over = [", ".join(_said(name, settings[name][k]) for name in across) or alone for k in range(len(groups))]
    keys = [tuple(settings[name][k] for name in beside) for k in range(len(groups))]
    kinds = [f"{head}: {kind}" for head, kind in zip(over, comparable(groups, column), strict=True)]
    shown = _cells(groups, column, statistic, of_mean, direction, kinds)
    cells = dict(zip(zip(keys, over, strict=True), shown, strict=True))
    rows = [[*key, *(cells.get((key, head), "-") for head in dict.fromkeys(over))] for key in dict.fromkeys(keys)]
    return [[*beside, *dict.fromkeys(over)], *rows]


def heads(groups: Sequence[Group], column: str, statistic: Statistic) -> list[str]:
    """The name of a statistic for each group, as in the head of a table; for the best value as in `Run.best_is`."""
    return [group[0].best_is(column) if statistic == "best" else STATISTICS[statistic] for group in groups]


def values(group: Group, column: str, statistic: Statistic, direction: Direction | None = None) -> list[float]:
    """A statistic of each run of a group, in the unit of the column."""
    return [run.described(column).scale * getattr(run.statistics(column, direction), statistic) for run in group]


def decimals(column: str, unit: str) -> int | None:
    """The number of digits after the decimal point for a column; None: so many that the largest value has four."""
    return 2 if unit == PERCENT or column == "adjusted_rand_index" else None


def evaluated_model(group: Group, column: str) -> str:
    """`global`, or `personal` if a column is of each client's own model on the client's local test set."""
    main = group[0].main_metric
    marks = {"clients_trained", f"global_matched_{main}"}
    personal = column in (f"local_{main}", f"fine_tuned_{main}") or any(marks & run.rounds.keys() for run in group)
    return "personal" if personal else "global"


def comparable(groups: Sequence[Group], column: str) -> list[str]:
    """A key for each group. It is equal for groups whose results can be compared.

    Such groups have the same task and the same kind of evaluated model. If there are several methods, they also have
    the same values of those settings of which most methods have several values.
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
    """The text of a statistic for each group. The best of each kind is marked."""
    found = [values(group, column, statistic, direction) for group in groups]
    about = next(run for group in groups for run in group).described(column)
    texts = [spread(each, of_mean, decimals(column, about.unit)) for each in found]
    return emphasized(texts, found, direction or about.better, of_mean, kinds)


def _varied(settings: dict[str, list[str]]) -> list[str]:
    """The settings of which most methods have several values."""
    methods = settings["method"]

    def varies(values: Sequence[str]) -> bool:
        several = [len({v for m, v in zip(methods, values, strict=True) if m == method}) > 1 for method in {*methods}]
        return sum(several) > len(several) / 2

    return [name for name, values in settings.items() if name != "method" and varies(values)]


def _said(name: str, value: str) -> str:
    """A setting as the head of a column: `alpha 0.1` or `no alpha`, but `Dirichlet (alpha 0.1)` without the name."""
    if value == "-":
        return f"no {name}"
    return f"{name} {value}" if value[:1].isdigit() or value[:1].islower() else value


def _held_out(group: Group) -> str:
    """The median of the epochs until held-out clients converged, and how many converged if not all did."""
    epochs = np.concatenate([run.held_out.get("epochs", np.empty(0)) for run in group])
    done = epochs[~np.isnan(epochs)]
    if not len(done):
        return "-"
    some = f" ({len(done)} of {len(epochs)})" if len(done) < len(epochs) else ""
    return f"{np.median(done):g}{some}"
