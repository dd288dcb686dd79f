"""`python -m fedmpi.results COMMAND FILE...`: what people do with results files; no file of a run is ever changed."""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar, get_args

from fedmpi.errors import BadInput, require
from fedmpi.options import expanded
from fedmpi.results.check import problems
from fedmpi.results.compare import paired, remarks, repeats, sameness
from fedmpi.results.export import to_csv, to_tensorboard
from fedmpi.results.formats import FORMATS
from fedmpi.results.groups import grouped
from fedmpi.results.pictures import classes, clients, confusion, curves, partition, timeline
from fedmpi.results.pictures.figure import SUFFIXES
from fedmpi.results.reader import Run, open, whole
from fedmpi.results.rounds import tabulate_rounds
from fedmpi.results.schema import PERCENT, SCHEMA, Direction, described, document
from fedmpi.results.slim import slim
from fedmpi.results.summary import summarize
from fedmpi.results.table import FIGURES, cross, tabulate
from fedmpi.results.watch import watch
from fedmpi.streams import take_any_text

T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0, 1 if some of the files could not be used, 2 if none could.
    """
    take_any_text()
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of numbers that are infinite
            status: int = options.command(options)
        if sys.stdout:  # else it is closed
            sys.stdout.flush()
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # of standard output, as a rule: what is wrong with other files is bad input
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read has seen enough, as in `... | head`
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
    if options.figure == "best":
        _check_direction(options)
    runs, status = _with_column(options)
    how = options.standard_error, options.direction
    if runs and options.figure:
        _show(options, [cross(runs, options.column, options.format, options.figure, *how)], remarks(runs))
    elif runs:
        _show(options, [tabulate(runs, options.column, options.format, *how)], remarks(runs))
    return status


def _rounds(options: argparse.Namespace) -> int:
    _check_direction(options)
    if described(options.column).unit == PERCENT:
        for target in options.targets:
            require(0 <= target <= 1, "--targets", target, f"a share from 0 to 1 with {options.column}")
    runs, status = _with_column(options)
    if runs:
        how = options.format, options.reference, options.direction
        _show(options, [tabulate_rounds(runs, options.column, options.targets, *how)], remarks(runs))
    return status


def _compare(options: argparse.Namespace) -> int:
    if options.figure == "best":
        _check_direction(options)
    runs, status = _with_column(options)
    if len(runs) == 1:
        raise BadInput(f"{runs[0].path}: alone; compare needs two runs or more")
    parts, notes = [], []
    if len(grouped(runs)) > 1:
        how = options.figure, options.reference, options.direction
        parts.append(paired(runs, options.column, options.format, *how))
        notes = list(remarks(runs))
    if options.format == "text":
        parts += [sameness(one, other) for one, other in repeats(runs)]
    _show(options, parts, notes)
    return status


def _show(options: argparse.Namespace, parts: list[str], notes: Iterable[str]) -> None:
    """Print tables, and remarks on them: below, or, where a program may read the table, to standard error."""
    notes = list(notes)
    is_text = options.format == "text"
    if is_text and notes:
        parts = [*parts, "\n".join(notes)]
    if parts:
        print("\n\n".join(parts))
    for note in [] if is_text else notes:
        print(note, file=sys.stderr)


def _check_direction(options: argparse.Namespace) -> None:
    """Raise BadInput where nobody knows which values of the column are better."""
    if not (options.direction or described(options.column).better):
        raise BadInput(f"--column = {options.column}: say which values are better, --direction higher or lower")


def _plot(options: argparse.Namespace) -> int:
    need, draw = _kind(options)
    runs, status = _each(options.files, _checked(need))
    if runs:
        draw(runs, options.output)
        print(options.output)
        if not (options.partition or options.timeline):  # which have a panel for each run
            for note in remarks(runs):
                print(note, file=sys.stderr)
    return status


def _kind(options: argparse.Namespace) -> tuple[Callable[[Run], object], Callable[[list[Run], Path], None]]:
    """What a run must have for the chosen picture, and what draws it."""
    if options.partition:
        return partition.samples_by_class, partial(partition.draw, clients=options.partition)
    if options.clients:
        return clients.client_accuracies, clients.draw
    if options.classes:
        return classes.class_accuracies, classes.draw
    if options.confusion:
        return confusion.confusion, confusion.draw
    if options.timeline:
        return timeline.ranks, timeline.draw
    points = {"column": options.column, "x": options.x}
    return partial(curves.curve, **points), partial(curves.draw, **points)


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
        raise BadInput(f"{target}: alone; slim needs files, and where their copies go")
    if len(sources) > 1 and not target.is_dir():
        raise BadInput(f"{target}: is no folder, for copies of {len(sources)} files")

    def copy(path: Path) -> str:
        before, after = slim(path, target / path.name if target.is_dir() else target, options.overwrite)
        return f"{path}: {before / 1e6:.2f} MB, without weights and images {after / 1e6:.2f} MB"

    lines, status = _each(sources, copy)
    for line in lines:
        print(line)
    return status


def _status(options: argparse.Namespace) -> int:
    """0 only of a run that has finished: job scripts ask, for a launcher may end well although a rank has not."""
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
    """The runs that have a column, the others being named; runs that have not finished are named, too."""

    if options.column == curves.HELD_OUT:
        raise BadInput(f"--column = {options.column}: is for plot; of the others, table shows them by itself")

    def read(path: Path) -> Run:
        run = _checked(partial(curves.curve, column=options.column, x="round"))(path)
        if run.status != "finished":
            print(f"{path}: {run.status}, included up to its last round", file=sys.stderr)
        return run

    return _each(options.files, read)


def _checked(need: Callable[[Run], object]) -> Callable[[Path], Run]:
    """Opens a run that has what is needed: one that has not is named now, and left out."""

    def read(path: Path) -> Run:
        run = whole(path)
        need(run)
        return run

    return read


def _each(files: list[Path], read: Callable[[Path], T]) -> tuple[list[T], int]:
    """What `read` makes of the files that it can read, and the exit status."""
    found = [result for path in files if (result := _attempt(path, read)) is not None]
    return found, 0 if len(found) == len(files) else 1 if found else 2


def _attempt(path: Path, read: Callable[[Path], T]) -> T | None:
    try:
        return read(path)
    except BadInput as error:
        print(error, file=sys.stderr)
        return None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m fedmpi.results", allow_abbrev=False, description="Tables and plots of results.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, allow_abbrev=False, help=about, description=about)
        added.set_defaults(command=does)
        return added

    summary = command("summary", _summary, "settings and results of a run, on one screen")
    table = command("table", _table, "one row per setting: mean and standard deviation over seeds")
    rounds = command("rounds", _rounds, "rounds to target values, compared with a reference method")
    compare = command("compare", _compare, "differences paired over seeds, and whether runs are bit-identical")
    plot = command("plot", _plot, "curves with bands over seeds, and other figures")
    watched = command("watch", _watch, "live view of running jobs")
    export = command("export", _export, "write CSV or TensorBoard event files")
    check = command("check", _check, "compare files with the schema")
    slimmed = command("slim", _slim, "small copies without weights and images, for a repository")
    status = command(
        "status",
        _status,
        "one word: finished (exit status 0), or (1) running, interrupted, failed, killed, missing or unreadable",
    )
    command("schema", _schema, "describe the contents of a results file, as Markdown")

    for one in (table, rounds, compare, plot):
        one.add_argument("--column", default="test_accuracy", help="a column of /rounds (default: %(default)s)")
    for one in (table, rounds, compare):
        one.add_argument("--format", choices=list(FORMATS), default="text", help="output format")
    table.add_argument(
        "--figure",
        choices=list(FIGURES),
        help="methods x settings, with this statistic (last, best or mean of the last 10 values) in each cell",
    )
    table.add_argument("--standard_error", action="store_true", help="± standard error of the mean")
    for one in (table, rounds, compare):
        one.add_argument(
            "--direction",
            choices=get_args(Direction),
            help="which values of the column are better (default: as the schema says)",
        )
    rounds.add_argument(
        "--targets",
        type=_number,
        nargs="+",
        required=True,
        metavar="VALUE",
        help="values of the column as they are stored: accuracies such as 0.7 0.8, or losses",
    )
    rounds.add_argument("--reference", metavar="METHOD", help="method to compare with")
    compare.add_argument(
        "--figure",
        choices=list(FIGURES),
        default="last",
        help="statistic to compare (default: %(default)s)",
    )
    compare.add_argument(
        "--reference",
        metavar="METHOD",
        help="method to compare with (default: the first run's)",
    )

    plot.add_argument("-o", "--output", type=_picture, default=Path("out.png"), help="PNG, PDF or SVG file")
    plot.add_argument("--x", choices=list(curves.X_LABELS), default="round", help="horizontal axis of curves")
    kinds = plot.add_mutually_exclusive_group()
    kinds.add_argument("--partition", type=_count, metavar="CLIENTS", help="samples per class of the first clients")
    kinds.add_argument("--clients", action="store_true", help="distribution of the clients' accuracies")
    kinds.add_argument("--classes", action="store_true", help="accuracy per class over rounds")
    kinds.add_argument("--confusion", action="store_true", help="confusion matrix of the last evaluation")
    kinds.add_argument("--timeline", action="store_true", help="busy and idle time of each rank")

    watched.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="time between two updates")
    export.add_argument("-o", "--output", type=Path, required=True, help="NAME.csv, or a new folder for TensorBoard")
    export.add_argument("--table", choices=Run.TABLES, default="rounds", help="the table that is written to the CSV")

    slimmed.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="files to copy, then the target: a file or folder"
    )
    slimmed.add_argument("--overwrite", action="store_true", help="replace existing copies")
    status.add_argument("file", metavar="FILE", help="as given to --output; $NAME and ~ are replaced")
    for one in (summary, table, rounds, compare, plot, watched, export, check):
        one.add_argument("files", nargs="+", type=Path, metavar="FILE")
    return parser


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number; files come before --targets") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} must be finite")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least 1")
    return int(text)


def _picture(name: str) -> Path:
    if Path(name).suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{name} must end in {', '.join(SUFFIXES)}")
    return Path(name)


if __name__ == "__main__":
    sys.exit(main())
