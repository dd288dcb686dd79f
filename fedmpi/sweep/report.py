"""The results of a sweep: a table of its settings, and the best one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmpi.errors import BadInput
from fedmpi.results import Run
from fedmpi.results.common import main_metric
from fedmpi.results.formats import FORMATS
from fedmpi.results.metrics import Direction
from fedmpi.results.spread import spread
from fedmpi.results.table import decimals
from fedmpi.sweep.plan import Setting


def last_value(run: Run) -> str:
    """The last test value of the main metric, as text."""
    return _with_unit(run, [run.statistics().last])


def report(settings: Sequence[Setting], runs: Sequence[Sequence[Run]], seeds: int) -> list[str]:
    """The lines of a report: a table with one row per setting, and the best setting.

    A run counts with the values of its main metric in its best round. The validation set decides which round and
    which setting are the best, or the test set if there is no validation set (see `Run.best_is`).

    Args:
        settings: all settings.
        runs: the finished runs of each setting.
        seeds: number of seeds. The best setting is one of those that have so many finished runs.

    Raises:
        BadInput: the runs have different main metrics, some have no validation set and others have one, or it is not
            known which values are better.
    """
    every = [run for of_setting in runs for run in of_setting]
    if not every:
        return ["no run has finished"]
    metric, one = main_metric(every, "such runs cannot be compared"), every[0]
    test, column = one.main_column, one.decides(one.main_column)
    if any(run.decides(test) != column for run in every):
        raise BadInput("runs with and without a validation set cannot be compared")
    about = one.described(test)
    if about.better is None:
        raise BadInput(f"it is not known which values of {test} are better")
    decisive, tests = (
        [[run.statistics(name).best for run in of_setting] for of_setting in runs] for name in (column, test)
    )
    best = _best(decisive, seeds, about.better)
    parts = {name: [setting.values[name] for setting in settings] for name in settings[0].values}
    parts["seeds"] = [str(len(of_setting)) for of_setting in runs]
    if column != test:
        parts[about.with_unit(f"validation {metric}")] = [_cell(one, values) for values in decisive]
    parts[about.with_unit(f"test {metric}")] = [_cell(one, values) for values in tests]
    parts["best"] = ["*" if number == best else "" for number in range(len(settings))]
    lines = [FORMATS["text"]([list(parts), *map(list, zip(*parts.values(), strict=True))])]
    if best is None:
        return [*lines, "no setting has finished with all seeds"]
    chosen = ", ".join(f"{name} {value}" for name, value in settings[best].values.items()) or settings[best].name
    return [*lines, f"{one.best_is(test)}: {chosen}: {_with_unit(one, tests[best])} (seeds: {seeds})"]


def _best(values: Sequence[Sequence[float]], seeds: int, better: Direction) -> int | None:
    """The setting with the best mean, of those with all seeds and finite values; None: there is none."""
    means = {
        number: float(np.mean(of_setting))
        for number, of_setting in enumerate(values)
        if len(of_setting) == seeds and np.isfinite(of_setting).all()
    }
    if not means:
        return None
    return (max if better == "higher" else min)(means, key=means.__getitem__)


def _cell(run: Run, values: Sequence[float]) -> str:
    """Mean ± standard deviation of values of a run's main metric, in its unit."""
    about = run.described(run.main_column)
    return spread([about.scale * value for value in values], decimals=decimals(run.main_column, about.unit))


def _with_unit(run: Run, values: Sequence[float]) -> str:
    unit = run.described(run.main_column).unit
    return f"test {run.main_metric} {_cell(run, values)}{f' {unit}' if unit else ''}"
