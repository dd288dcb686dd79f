"""Differences between methods over the same seeds, and between two runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedmpi.options import printable
from fedmpi.results.axes import columns as columns_of
from fedmpi.results.common import described
from fedmpi.results.files import opened, values
from fedmpi.results.formats import STATISTIC
from fedmpi.results.groups import Group, columns, grouped, references, repeated
from fedmpi.results.metrics import PERCENT, Direction
from fedmpi.results.reader import Run, Table
from fedmpi.results.schema import COLUMN, GROUPS, group_of
from fedmpi.results.settings import labels, methods
from fedmpi.results.spread import emphasized, spread
from fedmpi.results.table import STATISTICS, Statistic, comparable, decimals, heads
from fedmpi.results.table import values as statistics

# Datasets and groups that depend on the number of ranks or on the clock, not only on the computation.
_OF_THE_MACHINE = ("clients/rank", "environment", "ranks")
# Attributes of /environment that differ between any two runs.
_OF_EACH_RUN = ("command", "folder", "slurm_job_id")


def paired(
    runs: Sequence[Run],
    column: str,
    statistic: Statistic = "last",
    reference: str | None = None,
    direction: Direction | None = None,
) -> list[list[str]]:
    """A table that compares each setting with the reference, paired over the seeds that both have.

    The best value of a run with a validation set is not paired with that of a run without one (see `Run.best_is`).

    The table gives the mean difference of a statistic, its 95 % confidence interval (Student's t), and the p-value of
    the two-sided Wilcoxon signed-rank test. The test is exact for few seeds. The smallest possible p-value is 0.25
    for three seeds, 0.0625 for five and 0.03125 for six.

    Args:
        runs: the runs of all settings and seeds.
        column: a column of /rounds; differences of accuracies are in percentage points.
        statistic: the number that is compared, one per run.
        reference: the method to compare with, as in `references`; None: the method of the first run. If all runs have
            the same method, the first setting is the reference of all others.
        direction: which values of the column are better; None: as the files say.

    Returns:
        The rows of the table as texts, the head first.

    Raises:
        BadInput: no run has the reference method, or the files do not give the same unit and direction for the
            column.
    """
    groups = grouped(runs)
    about = described(runs, column)
    digits, titles = decimals(column, about.unit), heads(groups, column, statistic)
    own = [_by_seed(group, column, statistic, direction) for group in groups]
    found = [[*each.values()] for each in own]
    cells = [spread(each, decimals=digits) for each in found]
    tests = []
    for group, ours, other in zip(groups, own, _others(groups, reference), strict=True):
        is_alike = other is not None and len({*heads([group, other], column, statistic)}) == 1
        theirs = _by_seed(other if other and is_alike else [], column, statistic, direction)
        gains = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
        gains = gains[~np.isnan(gains)]
        is_itself = other is None or group is other
        tests.append(["-"] * 4 if is_itself else [str(len(gains)), *_tests(gains, digits)])
    gain = "difference (points)" if about.unit == PERCENT else about.with_unit("difference")
    is_one = len(set(titles)) == 1
    marked = emphasized(cells, found, direction or about.better, kinds=comparable(groups, column))
    parts: dict[str, Sequence[str]] = {
        **columns(groups, ("runs", "pairs", STATISTIC)),
        **({} if is_one else {STATISTIC: titles}),
        "runs": [str(len(group)) for group in groups],
        about.with_unit(titles[0] if is_one else STATISTICS[statistic]): marked,
        **dict(zip(("pairs", gain, "95 % interval", "p (Wilcoxon)"), zip(*tests, strict=True), strict=True)),
    }
    return [list(parts), *map(list, zip(*parts.values(), strict=True))]


def repeats(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Pairs of runs with the same settings and seed, whose results should be identical.

    The first run of each setting and seed is paired with each later one. If there are only two runs, they are the
    pair, also if their settings differ.
    """
    if len(runs) == 2:
        yield runs[0], runs[1]
        return
    for first, *others in repeated(runs):
        yield from ((first, other) for other in others)


def remarks(runs: Sequence[Run]) -> Iterator[str]:
    """One line per setting and seed that was run more than once: which of the runs is used in tables."""
    counted = {id(run) for group in grouped(runs) for run in group}
    for same in repeated(runs):
        (kept,) = (run for run in same if id(run) in counted)
        others = [run for run in same if run is not kept]
        differ = [run for run in others if any(differing_parts(kept, run))]
        name = methods([kept.identity])[0]
        left_out = ", ".join(str(run.path) for run in others)
        others_are = "other results, `compare` shows the first difference" if differ else "the same results"
        yield (
            f"{name}, seed {kept.attributes['seed']}: {len(same)} runs count once; used: {kept.path}; "
            f"not used: {left_out} ({others_are})"
        )


def sameness(one: Run, other: Run) -> str:
    """Lines of text: whether two runs are bit-identical apart from timings, and their differences.

    The differences are settings, the user's files, the environment and the contents of the results files.
    """
    parts = list(differing_parts(one, other))
    lines = [f"{one.path}", f"{other.path}"]
    settings = labels([one.identity, other.identity])
    if any(settings):
        lines.append(f"  settings  {' | '.join(settings)}")
    if code := list(_changed_code(one, other)):
        lines.append(f"  files     {', '.join(code)}")
    facts = [name for name in one.environment if name not in (*_OF_EACH_RUN, "packages")]
    pairs = {name: (_line(one.environment[name]), _line(other.environment.get(name))) for name in facts}
    told = [f"{name} {here} | {there}" for name, (here, there) in pairs.items() if here != there]
    told += _changed_packages(one, other)
    if told:
        lines.append(f"  ran on    {', '.join(told)}")
    if not parts:
        return "\n".join([*lines, "  bits      identical apart from timings"])
    return "\n".join([*lines, f"  differ    {parts[0]}", *(f"            {part}" for part in parts[1:])])


def differing_parts(one: Run, other: Run) -> Iterator[str]:
    """The groups whose contents are not bit-identical in two files, with the datasets that differ.

    Examples are `rounds from round 3 (train_loss, test_loss)` and `model (weights)`. If the rows of a table belong to
    rounds, the text names the first round that differs. Wall-clock times, /ranks, /environment and the rank that
    trained a client are not compared.
    """
    first, second = _contents(one), _contents(other)
    for name in dict.fromkeys(chain(first, second)):
        columns, beside = (found.get(name, {}) for found in (first, second))
        rows = {key: _first_difference(columns[key], beside[key]) for key in columns if key in beside}
        initial = one.initial if name == "evaluation" else {}
        differ = [f"initial {key}" for key in initial if not _equal(initial[key], other.initial.get(key))]
        differ += [key for key in dict.fromkeys(chain(columns, beside)) if rows.get(key, 0) is not None]
        if differ:
            yield f"{name}{_since(name, columns, beside, rows)} ({', '.join(differ)})"


def _others(groups: Sequence[Group], reference: str | None) -> Sequence[Group | None]:
    """The reference of each group; None if it has no unique one."""
    of = methods([group[0].identity for group in groups])
    if not reference and len(set(of)) == 1:
        return [groups[0]] * len(groups)
    return references(groups, reference or of[0])


def _by_seed(group: Group, column: str, statistic: Statistic, direction: Direction | None) -> dict[Any, float]:
    """Seed -> statistic of its run, in the unit in which the column is shown."""
    seeds = [run.attributes["seed"] for run in group]
    return dict(zip(seeds, statistics(group, column, statistic, direction), strict=True))


def _tests(gains: NDArray[np.float64], decimals: int | None) -> list[str]:
    """The mean, the 95 % interval and the p-value of differences, as texts."""
    if not len(gains):
        return ["-"] * 3

    def signed(value: float) -> str:
        return f"{value:+.4g}" if decimals is None else f"{value:+.{decimals}f}"

    if len(gains) < 2:
        return [signed(gains[0]), "-", "-"]
    from scipy import stats  # imported here: the import takes as long as reading a hundred files

    half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
    p = f"{stats.wilcoxon(gains).pvalue:.3g}" if gains.any() else "1"
    return [signed(gains.mean()), f"{signed(gains.mean() - half)} to {signed(gains.mean() + half)}", p]


def _contents(run: Run) -> dict[str, Table]:
    """The computed results of a run: group -> datasets that do not depend on the clock or the number of ranks."""
    groups: dict[str, h5py.Group] = {}
    with opened(run.path) as file:
        file.visititems(lambda name, item: groups.update({name: item} if isinstance(item, h5py.Group) else {}))
        return {name: _columns(name, group) for name, group in groups.items() if name not in _OF_THE_MACHINE}


def _columns(name: str, group: h5py.Group) -> Table:
    return {
        key: np.atleast_1d(values(item))
        for key, item in columns_of(group).items()
        if f"{name}/{key}" not in _OF_THE_MACHINE
        and (not key.endswith(("seconds", "joules")) or key == "virtual_seconds")
    }


def _since(name: str, columns: Table, beside: Table, rows: Mapping[str, int | None]) -> str:
    """` from round N` for the first row that differs; empty if rows do not belong to rounds, as in /confusion."""
    known = group_of(name, GROUPS)
    by_row = [key for key in rows if "rows" in ((known and known.arrays.get(key)) or COLUMN).shape]
    rounds = [
        int(table["round"][row])
        for key in by_row
        for table in (columns, beside)
        if "round" in table and (row := rows[key]) is not None and row < len(table["round"])
        if table["round"].dtype.kind == "i" and table["round"].ndim == 1
    ]
    return f" from round {min(rounds)}" if rounds else ""


def _first_difference(one: NDArray[Any], other: NDArray[Any]) -> int | None:
    """The first row in which two arrays are not bit-identical; None if they are identical."""
    if one.shape[1:] != other.shape[1:]:
        return 0
    if one.dtype != other.dtype:
        if not {one.dtype.kind, other.dtype.kind} <= {"i", "f"}:
            return 0
        one, other = one.astype(np.float64), other.astype(np.float64)  # integers with a missing row become float
    rows = min(len(one), len(other))
    if not one[:rows].size:
        return None if len(one) == len(other) else rows
    if one.dtype == object:
        differs = (one[:rows] != other[:rows]).reshape(rows, -1).any(axis=1)
    else:
        bits = [np.ascontiguousarray(each[:rows]).view(np.uint8).reshape(rows, -1) for each in (one, other)]
        differs = (bits[0] != bits[1]).any(axis=1)
    if differs.any():
        return int(differs.argmax())
    return None if len(one) == len(other) else rows


def _changed_code(one: Run, other: Run) -> Iterator[str]:
    """The user's files that differ between two runs: source files of classes, and input files that these read."""
    for attribute in ("user_code", "input_files"):
        files, beside = (json.loads(run.attributes.get(attribute, "{}")) for run in (one, other))
        names = [name for name in dict.fromkeys([*files, *beside]) if files.get(name) != beside.get(name)]
        yield from map(printable, names)


def _changed_packages(one: Run, other: Run) -> Iterator[str]:
    """The Python packages that differ between two runs, as `NAME VERSION | VERSION`; `-`: not installed.

    Nothing if a file has no list of packages. Libraries that /environment names themselves are left out.
    """
    if not all("packages" in run.environment for run in (one, other)):
        return
    here, there = (
        dict(line.partition("==")[::2] for line in str(run.environment["packages"]).splitlines())
        for run in (one, other)
    )
    for name in sorted({*here, *there} - {*one.environment}):
        if here.get(name) != there.get(name):
            yield printable(f"{name} {here.get(name, '-')} | {there.get(name, '-')}")


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))


def _line(value: Any) -> str:
    """A fact on one line. What several ranks have in common is there once, and without their numbers."""
    lines = [re.sub(r"^ranks? [\d, -]+: ", "", line) for line in str(value).split("\n")]
    return printable(" ".join(dict.fromkeys(lines)))
