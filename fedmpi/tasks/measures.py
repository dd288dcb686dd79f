"""The measurements and the metrics of an experiment: those of its task, and those that are named."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.lazy import torch
from fedmpi.tasks.base import Compute, Metric, Rows, Task
from fedmpi.typing import Tensor


class Measures:
    """What is measured of each sample, and which metrics are made of it.

    Args:
        task: of the experiment.
        metrics: the metrics, by name, in the order of their columns.
        outputs: number of outputs of the network.
    """

    def __init__(self, task: Task, metrics: Mapping[str, Metric], outputs: int) -> None:
        self.task = task
        self.metrics = metrics
        self.outputs = outputs
        needed = {name for metric in metrics.values() for name in metric.needs}
        left_out = set(task.optional()) - needed
        self._widths = {name: width for name, width in task.columns(outputs).items() if name not in left_out}
        self._names = tuple(self._widths)

    @property
    def width(self) -> int:
        """S, how many numbers are measured per sample."""
        return sum(self._widths.values())

    @property
    def main(self) -> Metric:
        """The task's main metric."""
        return self.task.metrics[self.task.main]

    def measure(self, output: Tensor, y: Tensor) -> NDArray[np.float32]:
        """[S, B] of a network's output [B, ...] and targets [B, ...]."""
        measured = self.task.measure(output, y, self._names)
        rows = [measured[name].float().reshape(len(y), width).T for name, width in self._widths.items()]
        found: NDArray[np.float32] = torch.cat(rows).cpu().numpy()  # one copy from a GPU
        return found

    def rows(self, measured: NDArray[np.float32]) -> Rows:
        """The measurements [S, n] by name: [n], or [n, width]."""
        ends = np.cumsum([*self._widths.values()])
        parts = dict(zip(self._names, np.split(measured, ends[:-1]), strict=True))
        return {name: part[0] if self._widths[name] == 1 else part.T for name, part in parts.items()}


def described(task: Task, metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Attributes of the results file that describe the metrics: their names, directions and units."""
    about = {name: {"better": metric.better, "unit": metric.unit} for name, metric in metrics.items()}
    return {"task": type(task).__name__, "main_metric": task.main, "metrics": json.dumps(about)}


def named_metrics(task: Task, names: str | Sequence[str] | None) -> dict[str, Metric]:
    """The task's usual metrics, and those that are named: of the task, or functions by their import path.

    Raises:
        BadInput: there is no such metric.
    """
    found = {name: task.metrics[name] for name in task.usual or task.metrics}
    for name in [names] if isinstance(names, str) else names or []:
        own = name.rpartition(".")[2]
        if own in found and own == name:
            continue  # it is computed anyway
        if own in found:
            raise BadInput(
                f"= {name}: there is a metric of this name already; give the function another one", "metrics"
            )
        found[own] = task.metrics[name] if name in task.metrics else _imported(name, task)
    return found


def _imported(path: str, task: Task) -> Metric:
    module, _, name = path.rpartition(".")
    known = f"a metric of {type(task).__name__} ({', '.join(task.metrics)}), or the import path of a function"
    if not module:
        raise BadInput(f"= {path}: must be {known}", "metrics")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"= {path}: cannot be imported ({error}); must be {known}", "metrics") from None
    if not callable(made):
        raise BadInput(f"= {path}: is a {type(made).__name__}; must be {known}", "metrics")
    metric = made if isinstance(made, Metric) else Metric(made)
    if not _takes_three(metric.compute):
        raise BadInput(f"= {path}: must be a function of (rows, targets, owners)", "metrics")
    return metric


def _takes_three(function: Compute) -> bool:
    try:
        inspect.signature(function).bind({}, (), ())
    except ValueError:
        return True  # a function in C may not tell what it takes
    except TypeError:
        return False
    return True
