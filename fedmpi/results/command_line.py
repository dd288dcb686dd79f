"""The options of `python -m fedmpi.results COMMAND FILE...`."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, get_args

from fedmpi.results.formats import FORMATS
from fedmpi.results.metrics import Direction
from fedmpi.results.pictures.curves import HELD_OUT, X_LABELS
from fedmpi.results.pictures.figure import SUFFIXES, WIDTHS
from fedmpi.results.reader import Run
from fedmpi.results.table import STATISTICS

_STATISTIC = (
    "last: value of the last evaluation; best: of the round that is the best on the validation set, or on the test "
    "set if there is no validation set; last10: mean of the last 10 evaluations"
)
_MAIN = "default: main metric on the test set, such as test_accuracy"


class _Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; the name of the command is its option `command`."""
    main = _Parser(prog="python -m fedmpi.results", allow_abbrev=False, description="Tables and plots of results.")
    commands = main.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, allow_abbrev=False, help=about, description=about)

    summary = command("summary", "settings and results of a run, on one screen")
    table = command("table", "one row per setting: mean and standard deviation over seeds")
    rounds = command("rounds", "rounds to target values, compared with a reference method")
    compare = command("compare", "differences paired over seeds, and whether runs are bit-identical")
    plot = command("plot", "curves with bands over seeds, and other figures")
    watch = command("watch", "live view of running jobs")
    export = command("export", "write CSV or TensorBoard event files")
    check = command("check", "compare files with the schema")
    slim = command("slim", "small copies without weights and images, for a repository")
    status = command(
        "status",
        "the status in one word: finished (exit status 0), or running, interrupted, failed, killed, missing or "
        "unreadable (exit status 1)",
    )
    command("schema", "describe the contents of a results file, as Markdown")

    for one in (table, rounds, compare):
        one.add_argument("--column", help=f"a column of /rounds ({_MAIN})")
        _add_formats(one)
        one.add_argument(
            "--direction",
            choices=get_args(Direction),
            help="which values of the column are better (default: as the files say)",
        )
    table.add_argument(
        "--statistic",
        choices=list(STATISTICS),
        help=f"methods x settings, with one statistic per cell ({_STATISTIC})",
    )
    table.add_argument(
        "--standard_error", action="store_true", help="± standard error of the mean instead of the standard deviation"
    )
    table.add_argument("--costs", action="store_true", help="also the clients' traffic and the wall-clock time")
    rounds.add_argument("--costs", action="store_true", help="also the clients' traffic until the target is reached")
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
        "--statistic",
        choices=list(STATISTICS),
        default="last",
        help=f"statistic to compare ({_STATISTIC}; default: %(default)s)",
    )
    compare.add_argument(
        "--reference", metavar="METHOD", help="method to compare with (default: method of the first run)"
    )

    _add_pictures(plot)
    watch.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="time between updates (default: %(default)s)"
    )
    export.add_argument("-o", "--output", type=Path, required=True, help="NAME.csv, or a new folder for TensorBoard")
    export.add_argument(
        "--table", choices=Run.TABLES, default="rounds", help="table to write as CSV (default: %(default)s)"
    )
    slim.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="files to copy, then the target: a file or folder"
    )
    slim.add_argument("--overwrite", action="store_true", help="replace existing copies")
    status.add_argument("file", metavar="FILE", help="results file, as given to --output; $NAME and ~ are expanded")
    for one in (summary, table, rounds, compare, plot, watch, export, check):
        one.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results files")
    return main


def _add_formats(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format",
        choices=list(FORMATS),
        default="text",
        help="output format; LaTeX needs the package booktabs (default: %(default)s)",
    )
    command.add_argument(
        "--caption", metavar="TEXT", help="caption of a LaTeX table; the output is then a complete table environment"
    )
    command.add_argument("--label", type=_label, help="label of a LaTeX table, for \\ref; needs --caption")


def _add_pictures(plot: argparse.ArgumentParser) -> None:
    plot.add_argument(
        "-o",
        "--output",
        type=_picture,
        default=Path("out.png"),
        help="PNG, PDF or SVG file (default: %(default)s)",
    )
    plot.add_argument(
        "--column",
        help=f"a column of /rounds, or {HELD_OUT}: main metric of held-out clients while they fine-tune the final "
        f"model ({_MAIN})",
    )
    plot.add_argument(
        "--x", choices=list(X_LABELS), default="round", help="horizontal axis of curves (default: %(default)s)"
    )
    kinds = plot.add_mutually_exclusive_group()
    kinds.add_argument("--partition", type=_count, metavar="CLIENTS", help="samples per class of the first clients")
    kinds.add_argument("--clients", action="store_true", help="distribution of the main metric over clients")
    kinds.add_argument("--classes", action="store_true", help="accuracy per class over rounds")
    kinds.add_argument("--confusion", action="store_true", help="confusion matrix of the last evaluation")
    kinds.add_argument("--timeline", action="store_true", help="busy and idle time of each rank")
    kinds.add_argument("--jobs", action="store_true", help="when clients trained, of an asynchronous method")
    paper = plot.add_argument_group("for a paper")
    paper.add_argument(
        "--width",
        type=_width,
        metavar="INCHES",
        help="width in inches, or VENUE-column or VENUE-page of NeurIPS, ICML or IEEE, such as IEEE-column",
    )
    paper.add_argument(
        "--height", type=_between(0.5, 40), metavar="INCHES", help="height (default: to fit the contents)"
    )
    paper.add_argument("--font_size", type=_between(4, 40), metavar="POINTS", help="size of the text (default: 9)")
    paper.add_argument("--font", metavar="NAME", help="serif, sans-serif, monospace or the name of an installed font")
    paper.add_argument("--style", metavar="NAME", help="name of a matplotlib style, or path of a style file")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number; files come before --targets") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} must be finite")
    return value


def _between(least: float, most: float) -> Callable[[str], float]:
    """A function that parses a number and checks that it is from `least` to `most`."""

    def read(text: str) -> float:
        value = _float(text)
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} must be a number from {least:g} to {most:g}")
        return value

    return read


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _width(text: str) -> float:
    if text in WIDTHS:
        return WIDTHS[text]
    value = _float(text)
    if value is None or not 1 <= value <= 40:
        raise argparse.ArgumentTypeError(f"{text} must be a number of inches from 1 to 40, or {', '.join(WIDTHS)}")
    return value


def _label(text: str) -> str:
    if not re.fullmatch(r"[\w:./+-]+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} must have letters, digits and :._/+- only")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least 1")
    return int(text)


def _picture(name: str) -> Path:
    if Path(name).suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{name} must end in {', '.join(SUFFIXES)}")
    return Path(name)
