"""Stopping early: the options of `--stop`, and the decision after a round.

The decision depends only on the rows of /rounds so far. So a resumed run stops after the same round as a run without
an interruption.

Importing this module is fast (no torch), because the command line reads the options.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput, require
from fedmpi.experiment.evaluated import Evaluated
from fedmpi.options import Configured, with_ranges
from fedmpi.ranges import PositiveFloat, PositiveInt, interval

if TYPE_CHECKING:
    from fedmpi.results.schema import Direction


@with_ranges
@dataclass(frozen=True)
class Stopping(metaclass=Configured):
    """When a run ends before all its rounds are done. It ends after the first round for which one condition holds.

    Only rounds that `evaluate_every` or `evaluate_seconds` selects can be the last one, so the last model is always
    evaluated. Without evaluations, every round can be the last one.

    Args:
        patience: evaluations without improvement that end the run. They come one after another, and none of them is
            better than the best one before. The initial model does not count. null: no such condition.
        metric: column of /rounds that patience and target look at. null: the main metric on the validation set,
            such as validation_accuracy, if there is a validation set.
        target: value of the metric that ends the run. The metric must be at least this, or at most this if lower
            values are better. null: no such condition.
        seconds: wall time of all rounds so far, summed over all jobs of a resumed run; null: no limit.
        virtual_seconds: time of all rounds so far on the virtual clock; null: no limit.
        gigabytes: what clients have sent and received so far (columns bytes_up and bytes_down), in 10^9 bytes; null:
            no limit.
    """

    patience: PositiveInt | None = None
    metric: str | None = None
    target: Annotated[float, interval("(-inf, inf)", "a finite number")] | None = None
    seconds: PositiveFloat | None = None
    virtual_seconds: PositiveFloat | None = None
    gigabytes: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            require(self.needs_metric, "metric", self.metric, "null without patience and target")

    @property
    def needs_metric(self) -> bool:
        """Whether a condition looks at the metric."""
        return self.patience is not None or self.target is not None

    @property
    def has_conditions(self) -> bool:
        """Whether there is any condition."""
        limits = (self.seconds, self.virtual_seconds, self.gigabytes)
        return self.needs_metric or any(limit is not None for limit in limits)


def direction(column: str, metrics: Mapping[str, str]) -> "Direction | None":
    """Which values of a column of /rounds are better; None: it is not known.

    Args:
        metrics: the description of the run's metrics (`fedmpi.tasks.measures.described`).
    """
    from fedmpi.results.metrics import metrics_of  # here, because it imports h5py, which takes long
    from fedmpi.results.schema import of_metrics

    found = of_metrics(metrics_of(metrics))["rounds"].array(column)
    return found.better if found else None


def reason_to_stop(
    stop: Stopping, evaluated: Evaluated, rounds: Mapping[str, NDArray], metrics: Mapping[str, str]
) -> str | None:
    """Why a run ends after these rounds, in words; None: it continues, or may not end after such a round.

    Args:
        evaluated: the rounds that can be the last one, and in which the metric is read.
        rounds: columns [rounds] of /rounds, at least one round.
        metrics: as for `direction`.

    Raises:
        BadInput: a column that a condition needs does not exist.
    """
    if not evaluated.among(rounds)[-1]:
        return None
    if stop.needs_metric and (reason := _reason_of_metric(stop, evaluated, rounds, metrics)):
        return reason
    if stop.seconds is not None and (spent := math.fsum(rounds["seconds"])) >= stop.seconds:
        return f"seconds: the rounds have taken {spent:,.6g} s, and the limit is {stop.seconds:,.6g} s"
    if stop.virtual_seconds is not None:
        spent = math.fsum(_column(rounds, "virtual_seconds", metrics, "virtual_seconds"))
        if spent >= stop.virtual_seconds:
            limit = f"{stop.virtual_seconds:,.6g} s"
            return f"virtual_seconds: the virtual clock is at {spent:,.6g} s, and the limit is {limit}"
    if stop.gigabytes is not None:
        spent = int(rounds["bytes_up"].sum() + rounds["bytes_down"].sum()) / 1e9
        if spent >= stop.gigabytes:
            return f"gigabytes: clients have exchanged {spent:,.6g} GB, and the limit is {stop.gigabytes:,.6g} GB"
    return None


def _reason_of_metric(
    stop: Stopping, evaluated: Evaluated, rounds: Mapping[str, NDArray], metrics: Mapping[str, str]
) -> str | None:
    metric = stop.metric or f"validation_{metrics['main_metric']}"
    values, numbers = _column(rounds, metric, metrics, "metric"), rounds["round"]
    # A former last round, after which rounds were added, has an evaluation that a longer run would not have.
    selected = evaluated.among(rounds)
    values, numbers = values[selected], numbers[selected]
    if not len(values):
        return None
    sign = 1 if direction(metric, metrics) == "higher" else -1
    gains = np.where(np.isnan(values), -np.inf, sign * values)  # a diverged model has NaN, and is no improvement
    if stop.target is not None and gains[-1] >= sign * stop.target:
        return f"target: {metric} is {values[-1]:.6g} after round {numbers[-1]}, and the target is {stop.target:.6g}"
    best = int(gains.argmax())
    if stop.patience is not None and len(gains) - 1 - best >= stop.patience:
        count = f"{stop.patience} evaluation{'s' * (stop.patience > 1)}"
        return f"patience: {metric} has not improved for {count} since round {numbers[best]}"
    return None


def _column(rounds: Mapping[str, NDArray], name: str, metrics: Mapping[str, str], option: str) -> NDArray:
    if name not in rounds:
        known = ", ".join(column for column in rounds if direction(column, metrics))
        reason = f"needs the column {name}, and this run's are {known}; --resume continues with other options"
        raise BadInput(reason, f"--stop.{option}")
    return rounds[name]
