"""`python -m fedmpi.results COMMAND FILE...`: tables and pictures of results files. The files are only read."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from fedmpi.errors import BadInput, require
from fedmpi.options import expanded
from fedmpi.results.check import problems
from fedmpi.results.command_line import parser
from fedmpi.results.common import chosen, described
from fedmpi.results.compare import paired, remarks, repeats, sameness
from fedmpi.results.export import to_csv, to_tensorboard
from fedmpi.results.formats import FORMATS, Rows, latex
from fedmpi.results.groups import grouped
from fedmpi.results.metrics import PERCENT
from fedmpi.results.pictures import classes, clients, confusion, curves, jobs, partition, timeline
from fedmpi.results.pictures.figure import Sheet
from fedmpi.results.reader import Run, open, whole
from fedmpi.results.rounds import tabulate_rounds
from fedmpi.results.schema import SCHEMA, document
from fedmpi.results.settings import of_method
from fedmpi.results.slim import slim
from fedmpi.results.summary import summarize
from fedmpi.results.table import cross, tabulate
from fedmpi.results.watch import watch
from fedmpi.streams import take_any_text

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Errors are printed to standard error, one line per error.

    Args:
        arguments: the command line without the program's name; None: `sys.argv[1:]`.

    Returns:
        The exit status: 0 if all files could be used, 1 if only some could, 2 if none could. `check` returns 1 if it
        finds problems, `status` returns 1 if the run has not finished, and an interrupt (Ctrl-C) gives 130.
    """
    take_any_text()
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns about infinite values
            status = _COMMANDS[options.command](options)
        if sys.stdout:  # None if it is closed
            sys.stdout.flush()
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # usually of standard output: errors of other files become BadInput
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of the pipe has ended, as in `... | head`
            return 0
        print(f"{error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _summary(options: argparse.Namespace) -> int:
    screens, status = _each(options.files, lambda path: summarize(whole(path)))
    if screens:
        print("\n\n".join(screens))
    return status


def _table(options: argparse.Namespace) -> int:
    if options.statistic and options.costs:
        raise BadInput("--costs and --statistic cannot be combined: a table with one statistic per cell has no costs")
    runs, status = _with_column(options)
    if runs:
        if options.statistic == "best":
            _check_direction(options, runs)
        how = options.standard_error, options.direction
        if options.statistic:
            rows = cross(runs, options.column, options.statistic, *how)
        else:
            rows = tabulate(runs, options.column, *how, options.costs)
        _show(options, [_formatted(options, rows, runs)], remarks(runs))
    return status


def _rounds(options: argparse.Namespace) -> int:
    runs, status = _with_column(options)
    if runs:
        _check_direction(options, runs)
        if described(runs, options.column).unit == PERCENT:
            for target in options.targets:
                require(0 <= target <= 1, "--targets", target, f"from 0 to 1 for {options.column}")
        how = options.reference, options.direction, options.costs
        rows = tabulate_rounds(runs, options.column, options.targets, *how)
        _show(options, [_formatted(options, rows, runs)], remarks(runs))
    return status


def _compare(options: argparse.Namespace) -> int:
    runs, status = _with_column(options)
    if runs and options.statistic == "best":
        _check_direction(options, runs)
    if len(runs) == 1:
        raise BadInput(f"{runs[0].path}: compare needs at least two runs")
    parts, notes = [], []
    if len(grouped(runs)) > 1:
        rows = paired(runs, options.column, options.statistic, options.reference, options.direction)
        parts.append(_formatted(options, rows, runs))
        notes = list(remarks(runs))
    if options.format == "text":
        parts += [sameness(one, other) for one, other in repeats(runs)]
    _show(options, parts, notes)
    return status


def _formatted(options: argparse.Namespace, rows: Rows, runs: Sequence[Run]) -> str:
    if options.format == "latex":
        return latex(rows, options.caption or "", options.label or "", of_method([run.identity for run in runs]))
    return FORMATS[options.format](rows)


def _show(options: argparse.Namespace, parts: list[str], notes: Iterable[str]) -> None:
    """Print tables and remarks on them.

    Text tables have the remarks below them. With the other formats the remarks are printed to standard error,
    because a program may read the table.
    """
    notes = list(notes)
    is_text = options.format == "text"
    if is_text and notes:
        parts = [*parts, "\n".join(notes)]
    if parts:
        print("\n\n".join(parts))
    for note in [] if is_text else notes:
        print(note, file=sys.stderr)


def _check_direction(options: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Raise BadInput if neither the files nor --direction say which values of the column are better."""
    if not (options.direction or described(runs, options.column).better):
        raise BadInput(f"--column = {options.column}: say which values are better by --direction higher or lower")


def _plot(options: argparse.Namespace) -> int:
    need, draw = _kind(options)
    runs, status = _each(options.files, _checked(need))
    if runs:
        look = options.width, options.height, options.font_size, options.font, options.style
        draw(runs, Sheet(options.output, *look))
        print(options.output)
        if not (options.partition or options.timeline or options.jobs):  # these have one panel per run
            for note in remarks(runs):
                print(note, file=sys.stderr)
    return status


def _kind(options: argparse.Namespace) -> tuple[Callable[[Run], object], Callable[[list[Run], Sheet], None]]:
    """Two functions for the chosen picture: one checks that a run has the data for it, the other draws it."""
    if options.partition:
        return partition.samples_by_class, partial(partition.draw, clients=options.partition)
    if options.clients:
        return clients.client_values, clients.draw
    if options.classes:
        return classes.class_accuracies, classes.draw
    if options.confusion:
        return confusion.confusion, confusion.draw
    if options.timeline:
        return timeline.ranks, timeline.draw
    if options.jobs:
        return jobs.check, jobs.draw

    def draw(runs: list[Run], sheet: Sheet) -> None:
        curves.draw(runs, sheet, chosen(runs, options.column), options.x)

    return lambda run: curves.curve(run, options.column or run.main_column, options.x), draw


def _watch(options: argparse.Namespace) -> int:
    return 0 if watch(options.files, options.interval) else 1


def _export(options: argparse.Namespace) -> int:
    runs, status = _each(options.files, _checked(lambda run: run.table(options.table)))
    if runs:
        if options.output.suffix == ".csv":
            to_csv(runs, options.output, options.table)
        else:
            to_tensorboard(runs, options.output)
        print(options.output)
    return status


def _check(options: argparse.Namespace) -> int:
    found, status = _each(options.files, lambda path: (path, problems(path)))
    for path, lines in found:
        print("\n".join(f"{path}: {line}" for line in lines) or f"{path}: valid (schema {SCHEMA})")
    return max(status, int(any(lines for _, lines in found)))


def _slim(options: argparse.Namespace) -> int:
    *sources, target = options.files
    if not sources:
        raise BadInput(f"{target}: slim needs files to copy, and then the target")
    if len(sources) > 1 and not target.is_dir():
        raise BadInput(f"{target}: must be a folder, for copies of {len(sources)} files")

    def copy(path: Path) -> str:
        before, after = slim(path, target / path.name if target.is_dir() else target, options.overwrite)
        return f"{path}: {before / 1e6:.2f} MB, without weights and images {after / 1e6:.2f} MB"

    lines, status = _each(sources, copy)
    for line in lines:
        print(line)
    return status


def _status(options: argparse.Namespace) -> int:
    """Print the status of a run; the exit status is 0 only if the run has finished.

    Job scripts use it, because a launcher may report success although a rank has failed.
    """
    try:
        word = open(expanded(options.file)).status
    except BadInput as error:
        print(str(error).removeprefix("= "), file=sys.stderr)
        word = "unreadable" if os.path.exists(os.path.expandvars(options.file)) else "missing"
    print(word)
    return 0 if word == "finished" else 1


def _schema(options: argparse.Namespace) -> int:
    print(document())
    return 0


def _with_column(options: argparse.Namespace) -> tuple[list[Run], int]:
    """The runs that have the chosen column, and the exit status.

    Runs without the column and runs that have not finished are reported on standard error. Afterwards,
    `options.column` is a name also if the user has given none.

    Raises:
        BadInput: the command does not support the column, no column is given for runs with several main metrics, or
            --caption or --label do not fit the other options.
    """
    if options.column == curves.HELD_OUT:
        raise BadInput(f"--column = {options.column}: is for plot; table shows held-out clients without it")
    for name in ("caption", "label"):
        if getattr(options, name) is not None and options.format != "latex":
            raise BadInput(f"--{name} needs --format latex")
    if options.label and not options.caption:
        raise BadInput("--label needs --caption: LaTeX numbers a table where its caption is")

    def read(path: Path) -> Run:
        run = _checked(lambda run: curves.curve(run, options.column or run.main_column, "round"))(path)
        if run.status != "finished":
            print(f"{path}: {run.status}, included up to its last round", file=sys.stderr)
        return run

    runs, status = _each(options.files, read)
    if runs:
        options.column = chosen(runs, options.column)
    return runs, status


def _checked(need: Callable[[Run], object]) -> Callable[[Path], Run]:
    """A function that opens a run and raises BadInput if `need` does not find its data in the run."""

    def read(path: Path) -> Run:
        run = whole(path)
        need(run)
        return run

    return read


def _each(files: list[Path], read: Callable[[Path], T]) -> tuple[list[T], int]:
    """The results of `read` for all files that it can read, and the exit status: 0, 1 or 2, as for `main`."""
    found = [result for path in files if (result := _attempt(path, read)) is not None]
    return found, 0 if len(found) == len(files) else 1 if found else 2


def _attempt(path: Path, read: Callable[[Path], T]) -> T | None:
    try:
        return read(path)
    except BadInput as error:
        print(error, file=sys.stderr)
        return None


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "summary": _summary,
    "table": _table,
    "rounds": _rounds,
    "compare": _compare,
    "plot": _plot,
    "watch": _watch,
    "export": _export,
    "check": _check,
    "slim": _slim,
    "status": _status,
    "schema": _schema,
}

if __name__ == "__main__":
    sys.exit(main())
