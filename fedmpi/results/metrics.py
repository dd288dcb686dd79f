"""The metrics of a run, as the attributes of its results file describe them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

#: Which values of a column are better.
Direction = Literal["higher", "lower"]
#: The unit in which columns of shares in [0, 1] are shown.
PERCENT = "%"
#: What files say that have none of these attributes.
DEFAULTS = {
    "task": "Classification",
    "main_metric": "accuracy",
    "metrics": '{"accuracy": {"better": "higher", "unit": "%"}, "loss": {"better": "lower", "unit": ""}}',
}


class Metric(NamedTuple):
    """The description of a metric.

    Attributes:
        better: which values are better; None: neither.
        unit: unit in which the numbers are shown. Numbers in % are stored as shares in [0, 1].
    """

    better: Direction | None
    unit: str


class Metrics(NamedTuple):
    """The metrics of a file.

    Attributes:
        task: name of the task's class.
        main: name of the main metric, which is one of `all`.
        all: the metrics that the run computes, by name.
    """

    task: str
    main: str
    all: dict[str, Metric]


def metrics_of(attributes: Mapping[str, Any]) -> Metrics:
    """The metrics of a file, from the attributes of its root.

    Raises:
        ValueError: the attributes are not as the schema describes them. The message begins with the attribute.
    """
    task, main, text = (attributes.get(name, default) for name, default in DEFAULTS.items())
    try:
        found = {_name(name): _metric(one) for name, one in json.loads(text).items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise ValueError("metrics does not give the direction and the unit of each metric") from None
    if main not in found:
        raise ValueError(f"main_metric is none of {', '.join(found)}")
    return Metrics(task, main, found)


def best_row(values: NDArray[Any], better: Direction) -> int | None:
    """The row of the best value of a column [n], the first of several; None if all values are NaN."""
    rows = np.flatnonzero(~np.isnan(values))
    known = values[rows]
    return int(rows[known.argmax() if better == "higher" else known.argmin()]) if rows.size else None


def _name(name: str) -> str:
    if not name.isidentifier():
        raise ValueError
    return name


def _metric(found: dict[str, Any]) -> Metric:
    better, unit = found["better"], found["unit"]
    if better not in (*get_args(Direction), None) or not (isinstance(unit, str) and unit.isprintable()):
        raise ValueError
    return Metric(better, unit)
