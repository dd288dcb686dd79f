"""The results of a sweep: a table of its settings, and the best one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedmpi.errors import BadInput
from fedmpi.results import Run
from fedmpi.results.formats import FORMATS
from fedmpi.results.schema import PERCENT, Direction, described
from fedmpi.results.spread import spread
from fedmpi.sweep.plan import Setting


class Metric(NamedTuple):
    """The metric that runs are compared by.

    Attributes:
        name: such as accuracy, whose columns are validation_accuracy and test_accuracy.
        better: which values are better; None: not known.
        unit: in which values are shown. Values in % are stored as shares in [0, 1].
    """

    name: str
    better: Direction | None
    unit: str

    @property
    def test(self) -> str:
        return f"test_{self.name}"

    @property
    def validation(self) -> str:
        return f"validation_{self.name}"

    def cell(self, values: Sequence[float]) -> str:
        """Mean ± standard deviation of values, in the unit."""
        is_share = self.unit == PERCENT
        return spread([100 * value if is_share else value for value in values], decimals=2 if is_share else None)

    def head(self, column: str) -> str:
        """The head of a column of `cell`."""
        return f"{column} ({self.unit})" if self.unit else column

    def said(self, values: Sequence[float]) -> str:
        """Mean ± standard deviation of values, with the unit."""
        return f"{self.cell(values)} {self.unit}".rstrip()


def main_metric(run: Run) -> Metric:
    """The main metric of a run."""
    name = str(run.attributes.get("main_metric", "accuracy"))
    known, schema = json.loads(run.attributes.get("metrics", "{}")).get(name, {}), described(f"test_{name}")
    return Metric(name, known.get("better", schema.better), known.get("unit", schema.unit))


def last_value(run: Run) -> str:
    """The last test value of the main metric, as text."""
    metric = main_metric(run)
    return f"test {metric.name} {metric.said([run.accuracy(metric.test).last])}"


class Choice(NamedTuple):
    """The values of a run at its chosen round; NaN if no round was evaluated.

    Attributes:
        decisive: the value by which the round was chosen.
        test: the value on the test set.
    """

    decisive: float
    test: float


def choose(run: Run, column: str, metric: Metric) -> Choice:
    """The values of a run at its best round; of equally good rounds, at the first.

    Args:
        column: of /rounds, which decides.
        metric: the main metric.
    """
    missing = np.full(1, np.nan)
    decisive, test = run.rounds.get(column, missing), run.rounds.get(metric.test, missing)
    known = np.flatnonzero(~(np.isnan(decisive) | np.isnan(test)))
    if not known.size:
        return Choice(np.nan, np.nan)
    best = known[decisive[known].argmax() if metric.better == "higher" else decisive[known].argmin()]
    return Choice(float(decisive[best]), float(test[best]))


def report(settings: Sequence[Setting], runs: Sequence[Sequence[Run]], seeds: int) -> list[str]:
    """The lines of a report: a table with one row per setting, and the best setting.

    A run counts with its values at its best round by the validation set. If a run has no validation values, the test
    values decide for all runs.

    Args:
        settings: all settings.
        runs: the finished runs of each setting.
        seeds: number of seeds. The best setting is one of those that have so many finished runs.

    Raises:
        BadInput: the runs have different main metrics, or it is not known which values are better.
    """
    metrics = list({main_metric(run) for of_setting in runs for run in of_setting})
    if not metrics:
        return ["no run has finished"]
    metric = metrics[0]
    if len(metrics) > 1:
        names = ", ".join(sorted(each.name for each in metrics))
        raise BadInput(f"runs with different main metrics cannot be compared: {names}")
    if metric.better is None:
        raise BadInput(f"it is not known which values of {metric.test} are better")
    has_validation = all(metric.validation in run.rounds for of_setting in runs for run in of_setting)
    column = metric.validation if has_validation else metric.test
    choices = [[choose(run, column, metric) for run in of_setting] for of_setting in runs]
    tests = [[choice.test for choice in of_setting] for of_setting in choices]
    decisive = [[choice.decisive for choice in of_setting] for of_setting in choices]
    best = _best(decisive, seeds, metric.better)
    parts = {name: [setting.values[name] for setting in settings] for name in settings[0].values}
    parts["seeds"] = [str(len(of_setting)) for of_setting in runs]
    if has_validation:
        parts[metric.head(f"validation {metric.name}")] = [metric.cell(values) for values in decisive]
    parts[metric.head(f"test {metric.name}")] = [metric.cell(values) for values in tests]
    parts["best"] = ["*" if number == best else "" for number in range(len(settings))]
    lines = [FORMATS["text"]([list(parts), *map(list, zip(*parts.values(), strict=True))])]
    if best is None:
        return [*lines, "no setting has finished with all seeds"]
    chosen = ", ".join(f"{name} {value}" for name, value in settings[best].values.items()) or settings[best].name
    how = "best on validation" if has_validation else "best on test, optimistic"
    return [*lines, f"{how}: {chosen}: test {metric.name} {metric.said(tests[best])} (seeds: {seeds})"]


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
