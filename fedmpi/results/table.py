"""Runs side by side: one line for those that differ by nothing but their seed, with what papers' tables have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedmpi.results.formats import FORMATS, Format, filled, short
from fedmpi.results.groups import Group, columns, grouped, spread
from fedmpi.results.reader import Run, traffic
from fedmpi.results.schema import is_share

Figure = Literal["last", "best", "last10"]
FIGURES: dict[Figure, str] = {"last": "last", "best": "best", "last10": "last 10"}

# What only some methods have in /rounds, and in what unit it is shown.
_OF_SOME = {"global (%)": ("global_matched_accuracy", 100), "ARI": ("adjusted_rand_index", 1)}


def tabulate(runs: Sequence[Run], column: str, format: Format, of_mean: bool = False) -> str:
    """A table of all runs, without a final newline.

    A line for the runs of one setting: what sets it apart from the others, then mean ± standard deviation (with n-1)
    over the runs of

    - the last and the best accuracy, and the mean of the last ten that were measured, in percent;
    - whose it is: of the server's model, or of each client's own on the client's own test samples;
    - where there are runs with several models: the last accuracy of each client's model on all test samples, and how
      well the clusters agree with the groups of the partition (adjusted Rand index);
    - if there were newcomers, the median of the epochs after which they settled, and how many did;
    - traffic of the clients, both ways by the method's definition, and seconds, of the whole run.

    Args:
        column: of /rounds; of one that is no accuracy there is the last value, and the mean of the last ten.
        of_mean: standard errors in place of standard deviations.
    """
    groups = grouped(runs)
    settings = columns(groups)
    of_some = [title for title, (name, _) in _OF_SOME.items() if any(name in run.rounds for run in runs)]
    lines = [
        {
            **{name: values[k] for name, values in settings.items()},
            "runs": str(len(group)),
            **{
                f"{title} (%)" if is_share(column) else title: figure(group, column, name, of_mean)
                for name, title in FIGURES.items()
                if is_share(column) or name != "best"
            },
            **_circumstances(group, column, of_some, of_mean),
        }
        for k, group in enumerate(groups)
    ]
    return FORMATS[format](filled(lines))


def cross(runs: Sequence[Run], column: str, format: Format, shown: Figure, of_mean: bool = False) -> str:
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
        head = ", ".join(_said(name, settings[name][k]) for name in across) or f"{FIGURES[shown]} (%)"
        heads[head] = None
        key = tuple(settings[name][k] for name in beside)
        line = lines.setdefault(key, dict(zip(beside, key, strict=True)))
        line[head] = figure(group, column, shown, of_mean)
    rows = [[line.get(name, "-") for name in (*beside, *heads)] for line in lines.values()]
    return FORMATS[format]([[*beside, *heads], *rows])


def figure(group: Group, column: str, name: Figure, of_mean: bool = False) -> str:
    """One figure of the runs of a group, in percent if it is an accuracy."""
    unit = 100 if is_share(column) else 1
    return spread([unit * getattr(run.accuracy(column), name) for run in group], of_mean)


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
        **{title: _last(group, *_OF_SOME[title], of_mean) for title in of_some},
        **_newcomers(group),
        "GB": short(float(np.mean([traffic(run).sum() for run in group]))),
        "seconds": short(float(np.mean([run.rounds["seconds"].sum() for run in group]))),
    }


def _last(group: Group, column: str, unit: int, of_mean: bool) -> str:
    """The last values of the runs that have any."""
    return spread([unit * value for run in group if not np.isnan(value := run.accuracy(column).last)], of_mean)


def _newcomers(group: Group) -> dict[str, str]:
    """The median of the epochs that newcomers took, and how many have settled if not all have."""
    epochs = np.concatenate([run.newcomers.get("epochs", np.empty(0)) for run in group])
    if not len(epochs):
        return {}
    done = epochs[~np.isnan(epochs)]
    if not len(done):
        return {"newcomers' epochs": "-"}
    some = f" ({len(done)} of {len(epochs)})" if len(done) < len(epochs) else ""
    return {"newcomers' epochs": f"{np.median(done):g}{some}"}
