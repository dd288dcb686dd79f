"""`python -m fedmpi.results summary|table|plot FILE...`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from fedmpi.errors import BadInput
from fedmpi.results.plot import SUFFIXES, X_LABELS, curve, draw, draw_partitions
from fedmpi.results.reader import Run, open
from fedmpi.results.summary import summarize
from fedmpi.results.table import FORMATS, tabulate

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
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    return status


def _summary(options: argparse.Namespace) -> int:
    screens, status = _each(options.files, lambda path: summarize(open(path)))
    if screens:
        print("\n\n".join(screens))
    return status


def _table(options: argparse.Namespace) -> int:
    def with_column(path: Path) -> Run:
        run = open(path)
        curve(run, options.column, "round")  # a file without the column is named now, and left out
        if run.status != "finished":
            print(f"{path}: {run.status}, counted as far as it is", file=sys.stderr)
        return run

    runs, status = _each(options.files, with_column)
    if runs:
        print(tabulate(runs, options.column, options.targets, options.format, options.reference))
    return status


def _plot(options: argparse.Namespace) -> int:
    def with_curve(path: Path) -> Run:
        run = open(path)
        curve(run, options.column, options.x)  # a file without the column is named now, and left out
        return run

    runs, status = _each(options.files, open if options.partition else with_curve)
    if runs:
        if options.partition:
            draw_partitions(runs, options.output, options.partition)
        else:
            draw(runs, options.output, options.column, options.x)
        print(options.output)
    return status


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
    parser = _Parser(prog="python -m fedmpi.results", allow_abbrev=False, description="Look at results files.")
    commands = parser.add_subparsers(required=True, metavar="summary|table|plot")

    summary = commands.add_parser("summary", allow_abbrev=False, help="what a run did, on one screen")
    summary.set_defaults(command=_summary)

    table = commands.add_parser("table", allow_abbrev=False, help="a line for each setting, over its seeds")
    table.set_defaults(command=_table)
    table.add_argument("--column", default="test_accuracy", help="an accuracy, a column of /rounds")
    table.add_argument(
        "--targets", type=_share, nargs="*", default=[], metavar="SHARE", help="accuracies of which to find the round"
    )
    table.add_argument("--reference", metavar="METHOD", help="to whose rounds those of the others are compared")
    table.add_argument("--format", choices=list(FORMATS), default="text", help="what the table is made for")

    plot = commands.add_parser("plot", allow_abbrev=False, help="a curve for each run, or who has what")
    plot.set_defaults(command=_plot)
    plot.add_argument("-o", "--output", type=_picture, default=Path("out.png"), help="PNG, PDF or SVG file")
    plot.add_argument("--column", default="test_accuracy", help="a column of /rounds, or newcomers")
    plot.add_argument("--x", choices=list(X_LABELS), default="round", help="the horizontal axis")
    plot.add_argument(
        "--partition", type=_count, metavar="CLIENTS", help="in place of curves: the first clients' samples by class"
    )

    for command in (summary, table, plot):
        command.add_argument("files", nargs="+", type=Path, metavar="FILE")
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be a share from 0 to 1")
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
