"""Are methods different, over the same seeds, and are two runs the same?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedmpi.results.formats import FORMATS, Format
from fedmpi.results.groups import Group, columns, grouped, references, spread
from fedmpi.results.reader import Run, opened
from fedmpi.results.schema import is_share
from fedmpi.results.settings import labels
from fedmpi.results.table import FIGURES, Figure

# What another number of ranks changes, or the clock.
_OF_THE_MACHINE = ("clients/rank", "environment", "ranks")


def paired(
    runs: Sequence[Run], column: str, format: Format, figure: Figure = "last", reference: str | None = None
) -> str:
    """A table without a final newline: each setting beside the reference, over the seeds that both have.

    The mean difference of a figure, its 95 % interval by Student's t, and the p-value of Wilcoxon's signed-rank test
    (two-sided; exact for few seeds, of which three cannot give less than 0.25, five 0.0625, six 0.03125).

    Args:
        column: of /rounds; differences of accuracies are in points.
        reference: a method, as in `references`; that of the first run if left out. Where all runs are of one method,
            the first setting is the reference of all others.

    Raises:
        BadInput: as `references`.
    """
    groups = grouped(runs)
    settings = columns(groups)
    others = _others(groups, reference)
    unit = 100 if is_share(column) else 1
    title, points = (f"{FIGURES[figure]} (%)", " (points)") if is_share(column) else (FIGURES[figure], "")
    heads = [*settings, "runs", title, "pairs", f"difference{points}", "95 % interval", "p (Wilcoxon)"]
    rows = []
    for k, (group, other) in enumerate(zip(groups, others, strict=True)):
        values, beside = (_by_seed(each, column, figure, unit) for each in (group, other or []))
        gains = np.array([values[seed] - beside[seed] for seed in values if seed in beside])
        tests = ["-"] * 4 if other is None or group is other else [str(len(gains)), *_tests(gains)]
        rows.append([*(each[k] for each in settings.values()), str(len(group)), spread([*values.values()]), *tests])
    return FORMATS[format]([heads, *rows])


def repeats(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """The pairs of runs that ought to be the same: of one setting and one seed, the first and each other.

    Of two runs, these, whatever their settings.
    """
    if len(runs) == 2:
        yield runs[0], runs[1]
        return
    for group in grouped(runs):
        by_seed: dict[Any, Run] = {}
        for run in group:
            first = by_seed.setdefault(run.attributes["seed"], run)
            if first is not run:
                yield first, run


def sameness(one: Run, other: Run) -> str:
    """Whether two runs are the same bits, but for timings, and what differs between them, as lines of text."""
    parts = list(differing_parts(one, other))
    lines = [f"{one.path}", f"{other.path}"]
    settings = labels([one.settings, other.settings])
    if any(settings):
        lines.append(f"  settings  {' | '.join(settings)}")
    facts = [name for name in one.environment if str(one.environment[name]) != str(other.environment.get(name))]
    told = [f"{name} {_line(one.environment[name])} | {_line(other.environment.get(name))}" for name in facts]
    if told:
        lines.append(f"  ran on    {', '.join(told)}")
    if not parts:
        return "\n".join([*lines, "  bits      the same, but for timings"])
    return "\n".join([*lines, f"  differ    {parts[0]}", *(f"            {part}" for part in parts[1:])])


def differing_parts(one: Run, other: Run) -> Iterator[str]:
    """What is not the same bits in two files: `rounds from round 3 (train_loss, test_loss)`, `model (weights)`.

    Left out are times of the wall clock, /ranks, /environment, and which rank trained a client.
    """
    with opened(one.path) as first, opened(other.path) as second:
        for name in dict.fromkeys(chain(_groups(first), _groups(second))):
            columns, beside = (_datasets(file, name) for file in (first, second))
            differ = [key for key in columns.keys() | beside.keys() if key not in columns or key not in beside]
            rows = []
            for key in columns.keys() & beside.keys():
                row = _first_difference(columns[key], beside[key])
                if row is not None:
                    differ.append(key)
                    rows.append(row)
            if not differ:
                continue
            order = [key for key in chain(columns, beside) if key in differ]
            numbers = max((table["round"] for table in (columns, beside) if "round" in table), key=len, default=None)
            since = f" from round {numbers[min(rows)]}" if numbers is not None and rows else ""
            yield f"{name}{since} ({', '.join(dict.fromkeys(order))})"


def _others(groups: Sequence[Group], reference: str | None) -> Sequence[Group | None]:
    """What each group is compared with."""
    methods = [str(group[0].attributes["algorithm"]) for group in groups]
    if not reference and len(set(methods)) == 1:
        return [groups[0]] * len(groups)
    return references(groups, reference or methods[0])


def _by_seed(group: Group, column: str, figure: Figure, unit: int) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for run in group:
        found.setdefault(run.attributes["seed"], unit * getattr(run.accuracy(column), figure))
    return found


def _tests(gains: NDArray[np.float64]) -> list[str]:
    """Mean, interval and p-value of differences."""
    if not len(gains):
        return ["-"] * 3
    if len(gains) < 2:
        return [f"{gains[0]:+.2f}", "-", "-"]
    from scipy import stats  # here, because it takes as long as reading a hundred files

    half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
    p = f"{stats.wilcoxon(gains).pvalue:.3g}" if gains.any() else "1"
    return [f"{gains.mean():+.2f}", f"{gains.mean() - half:+.2f} to {gains.mean() + half:+.2f}", p]


def _groups(file: h5py.File) -> list[str]:
    """All groups that hold what a run computed."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Group) else None)
    return [name for name in found if name not in _OF_THE_MACHINE]


def _datasets(file: h5py.File, name: str) -> dict[str, NDArray[Any]]:
    """The columns of a group that neither the clock nor the number of ranks decides."""
    return {
        key: item[()]
        for key, item in file.get(name, {}).items()
        if isinstance(item, h5py.Dataset)
        and f"{name}/{key}" not in _OF_THE_MACHINE
        and (not key.endswith("seconds") or key == "virtual_seconds")
    }


def _first_difference(one: NDArray[Any], other: NDArray[Any]) -> int | None:
    """The first row in which two arrays are not the same bits; None if they are."""
    if one.dtype != other.dtype or one.shape[1:] != other.shape[1:]:
        return 0
    rows = min(len(one), len(other))
    if not rows:
        return None if len(one) == len(other) else 0
    if one.dtype == object:
        differs = one[:rows] != other[:rows]
    else:
        bits = [np.ascontiguousarray(each[:rows]).view(np.uint8).reshape(rows, -1) for each in (one, other)]
        differs = (bits[0] != bits[1]).any(axis=1)
    if differs.any():
        return int(differs.argmax())
    return None if len(one) == len(other) else rows


def _line(value: Any) -> str:
    return str(value).replace("\n", " ")
