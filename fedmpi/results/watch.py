"""A live view of runs in the terminal. It reads the files repeatedly, which does not disturb the runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.reader import Run, whole
from fedmpi.results.settings import describe
from fedmpi.results.summary import best, duration

_BLOCKS = "▁▂▃▄▅▆▇█"
_LABEL_WIDTH = 15
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def watch(paths: Sequence[Path], interval: float) -> bool:
    """Show the progress of runs, in a few lines per run, until all have ended.

    If a file does not exist yet, the function waits for it. On a terminal, the screen is cleared and printed again.
    Otherwise, only the runs that have changed are printed.

    Args:
        paths: the results files.
        interval: seconds between two updates.

    Returns:
        Whether all runs have finished.
    """
    shown: list[str] = []
    while True:
        width = shutil.get_terminal_size().columns
        views = [_view(path, width) for path in paths]
        screens = [text for text, _ in views]
        if sys.stdout and sys.stdout.isatty():
            print(_HOME_AND_CLEAR + "\n\n".join(screens), flush=True)
        elif screens != shown:
            fresh = [text for number, text in enumerate(screens) if text not in shown[number : number + 1]]
            print("\n\n".join(fresh), flush=True)
        shown = screens
        if all(status not in ("running", "awaited") for _, status in views):
            return all(status == "finished" for _, status in views)
        time.sleep(interval)


def progress(run: Run, width: int = 80) -> str:
    """The progress of a run in a few lines: rounds, time left, and the course of the main metric and of the loss.

    Args:
        run: the run.
        width: number of characters after which lines are cut, except the line of the file's name.
    """
    path, *lines = _lines(run)
    # The file's name is not cut, so that it can be copied.
    return "\n".join([path, *(line[:width] for line in lines)])


def sparkline(values: NDArray[np.float64], width: int = 30) -> str:
    """The course of some values as a line of block characters, from ▁ for the lowest to █ for the highest.

    Args:
        values: [n] without NaN.
        width: largest number of characters. If there are more values, each character shows a mean of several.
    """
    if len(values) > width:
        values = np.array([part.mean() for part in np.array_split(values, width)])
    lowest, range_ = values.min(initial=np.inf), np.ptp(values) if len(values) else 0
    varies = 0 < range_ < np.inf
    heights = (values - lowest) / range_ * (len(_BLOCKS) - 1) if varies else np.zeros(len(values))
    return "".join(_BLOCKS[round(height)] for height in heights)


def _view(path: Path, width: int) -> tuple[str, str]:
    """The text to show for a file, and the status of its run; `awaited` if the file does not exist yet."""
    if not path.exists():
        return f"{path}: does not exist yet", "awaited"
    try:
        run = whole(path)
    except BadInput as error:
        return str(error), "unreadable"
    return progress(run, width), run.status


def _lines(run: Run) -> Iterator[str]:
    yield f"{run.path}  {run.status}{_silence(run)}"
    settings = run.identity
    names = [describe(settings[name]) for name in ("algorithm", "model", "dataset")]
    yield ", ".join([*names, f"seed {settings['seed']}"])
    yield _bar(run)
    for label, column in ((f"test {run.main_metric}", run.main_column), ("training loss", "train_loss")):
        if len(values := _known(run, column)):
            yield f"{label:{_LABEL_WIDTH - 1}} {sparkline(values)} {run.described(column).shown(values[-1])}"
            if column == run.main_column:
                yield from (f"{'':{_LABEL_WIDTH}}{text}" for text in best(run, column))


def _silence(run: Run) -> str:
    if run.status != "running":
        return ""
    age = datetime.now(timezone.utc) - datetime.fromisoformat(run.attributes["last_write"])
    return f", last write {duration(round(max(age.total_seconds(), 0)))} ago"


def _bar(run: Run) -> str:
    done, planned = len(run.rounds.get("round", ())), run.settings.get("rounds")
    facts = [f"round {done} of {planned}" if planned else f"round {done}"]
    if done:
        pace = float(np.median(run.rounds["seconds"][-10:]))
        facts.append(f"{duration(pace)} per round")
        if planned and run.status == "running":
            facts.append(f"about {duration(pace * (planned - done))} left")
    filled = 20 * done // planned if planned else 0
    return f"[{'#' * filled}{'.' * (20 - filled)}] {', '.join(facts)}"


def _known(run: Run, column: str) -> NDArray[np.float64]:
    values = run.rounds.get(column, np.empty(0)).astype(np.float64)
    return values[np.isfinite(values)]
