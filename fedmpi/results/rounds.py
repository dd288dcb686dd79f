"""The number of rounds in which methods reach given accuracies or losses, as in papers' tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmpi.results.common import described
from fedmpi.results.formats import short
from fedmpi.results.groups import Group, columns, grouped, references
from fedmpi.results.metrics import Direction
from fedmpi.results.reader import Run, traffic
from fedmpi.results.spread import emphasized
from fedmpi.results.table import comparable


def tabulate_rounds(
    runs: Sequence[Run],
    column: str,
    targets: Sequence[float],
    reference: str | None = None,
    direction: Direction | None = None,
    costs: bool = False,
) -> list[list[str]]:
    """The rows of a table of the rounds to each target. The head is first, then one row per setting.

    For each target, the table shows:

    - the first round that reaches the target, as the mean over the runs that reach it. If not all runs reach it, the
      number of those that do follows in brackets;
    - with `reference`, the reduction of this number compared with the reference, in percent, if all runs of both
      reach the target. -100 % means twice as many rounds;
    - with `costs`, the traffic of the clients up to this round, in GB.

    Args:
        runs: the runs. Those that differ only in the seed are one setting.
        column: name of a column of /rounds.
        targets: values of the column as they are stored, such as accuracies in [0, 1].
        reference: name of a method. If it was run with several settings, each row is compared with the nearest
            setting. If several settings are equally near, the row has no reduction.
        direction: which values are better. "higher": a target is reached from below. None: the direction that the
            files give for the column, which must have one.
        costs: whether the table has columns of traffic.

    Raises:
        BadInput: there are no runs of the reference, or the files do not give the same unit and direction for the
            column.
    """
    about = described(runs, column)
    direction = direction or about.better
    assert direction is not None
    groups = grouped(runs)
    parts: dict[str, Sequence[str]] = {**columns(groups, ("runs",)), "runs": [str(len(group)) for group in groups]}
    kinds = comparable(groups, column)
    compared: Sequence[Group | None] = references(groups, reference) if reference else []
    for target in targets:
        shown = f"{about.scale * target:g} {about.unit}".rstrip()
        first = [first_rounds(group, column, target, direction) for group in groups]
        complete = [
            [*found.values()] if len(found) == len(group) else [] for found, group in zip(first, groups, strict=True)
        ]
        cells = [_rounds(found, group) for found, group in zip(first, groups, strict=True)]
        parts[f"rounds to {shown}"] = emphasized(cells, complete, "lower", kinds=kinds)
        if reference:
            others = [first_rounds(other or [], column, target, direction) for other in compared]
            parts[f"reduction at {shown}"] = [
                _reduction(rounds, [*found.values()] if len(found) == len(other or []) else [])
                for rounds, found, other in zip(complete, others, compared, strict=True)
            ]
        if costs:
            parts[f"traffic to {shown} (GB)"] = [_traffic(found) for found in first]
    return [list(parts), *map(list, zip(*parts.values(), strict=True))]


def first_rounds(group: Group, column: str, target: float, direction: Direction) -> dict[Run, int]:
    """The first round whose value is at least as good as the target, for each run that reaches it."""
    reached = np.greater_equal if direction == "higher" else np.less_equal
    there = {run: np.flatnonzero(reached(run.rounds[column], target)) for run in group}
    return {run: int(run.rounds["round"][rows[0]]) for run, rows in there.items() if len(rows)}


def _rounds(first: dict[Run, int], group: Group) -> str:
    if not first:
        return "-"
    some = f" ({len(first)} of {len(group)})" if len(first) < len(group) else ""
    return f"{np.mean([*first.values()]):.1f}".removesuffix(".0") + some


def _reduction(rounds: Sequence[int], of_reference: Sequence[int]) -> str:
    return f"{100 * (1 - np.mean(rounds) / np.mean(of_reference)):.0f} %" if rounds and of_reference else "-"


def _traffic(first: dict[Run, int]) -> str:
    spent = [traffic(run)[: np.searchsorted(run.rounds["round"], end) + 1].sum() for run, end in first.items()]
    return short(float(np.mean(spent))) if spent else "-"
