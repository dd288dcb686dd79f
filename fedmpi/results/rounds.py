"""How many rounds methods need to reach given accuracies, or losses, as in papers' tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmpi.results.formats import FORMATS, Format, filled, short
from fedmpi.results.groups import Group, columns, grouped, references
from fedmpi.results.reader import Run, traffic
from fedmpi.results.schema import Direction, described, scale


def tabulate_rounds(
    runs: Sequence[Run],
    column: str,
    targets: Sequence[float],
    format: Format,
    reference: str | None = None,
    direction: Direction | None = None,
) -> str:
    """A table without a final newline: a line for each setting; for each target

    - the first round that has it: the mean over the runs that reached it, and how many did if not all;
    - how much less that is than the reference's, in percent, if all runs of both reached it; -100 % is
      twice as many;
    - the traffic until then.

    Args:
        column: of /rounds.
        targets: values of it, as they are stored: accuracies in [0, 1].
        reference: a method. Where it was run with several settings, those count that are nearest to the line's; where
            several are equally near, there is none.
        direction: from which side targets are reached: "higher" is from below. None: as the schema says.

    Raises:
        BadInput: there are no runs of the reference.
    """
    direction = direction or described(column).better
    assert direction is not None
    groups = grouped(runs)
    settings = columns(groups, ("runs",))
    compared: list[Group | None] = references(groups, reference) if reference else [None] * len(groups)
    lines = []
    for k, (group, other) in enumerate(zip(groups, compared, strict=True)):
        line = {**{name: values[k] for name, values in settings.items()}, "runs": str(len(group))}
        for target in targets:
            cells = _to(group, column, target, direction, other)
            if not reference:
                del cells["reduction to"]
            shown = f"{scale(column) * target:g} {described(column).unit}".rstrip()
            line |= {f"{what} {shown}": text for what, text in cells.items()}
        lines.append(line)
    return FORMATS[format](filled(lines))


def first_rounds(group: Group, column: str, target: float, direction: Direction) -> dict[Run, int]:
    """The first round with a value as good as this or better, of those runs that reached it."""
    reached = np.greater_equal if direction == "higher" else np.less_equal
    there = {run: np.flatnonzero(reached(run.rounds[column], target)) for run in group}
    return {run: int(run.rounds["round"][rows[0]]) for run, rows in there.items() if len(rows)}


def _to(group: Group, column: str, target: float, direction: Direction, reference: Group | None) -> dict[str, str]:
    first = first_rounds(group, column, target, direction)
    cells = {"rounds to": "-", "reduction to": "-", "GB to": "-"}
    if not first:
        return cells
    some = f" ({len(first)} of {len(group)})" if len(first) < len(group) else ""
    cells["rounds to"] = f"{_mean(first):.1f}".removesuffix(".0") + some
    spent = [traffic(run)[: np.searchsorted(run.rounds["round"], end) + 1].sum() for run, end in first.items()]
    cells["GB to"] = short(float(np.mean(spent)))
    if reference and not some:
        compared = first_rounds(reference, column, target, direction)
        if len(compared) == len(reference):
            cells["reduction to"] = f"{100 * (1 - _mean(first) / _mean(compared)):.0f} %"
    return cells


def _mean(rounds: dict[Run, int]) -> float:
    return float(np.mean(list(rounds.values())))
