"""What rank 0 prints during a run: a progress bar on a terminal, or one line per round in a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter

from fedmpi.streams import say

# Lines of rounds that follow each other faster are printed together, because each write takes as long as part of a
# round.
SECONDS_BETWEEN_WRITES = 0.1


class Progress:
    """Shows each round when it has ended, or some rounds together if there are more than ten per second.

    Args:
        rounds: number of rounds of the run.
        main: name of the main metric, such as accuracy.
        unit: its unit, "%" or nothing.
        what: the word for a round.
        done: number of rounds that are done already.
    """

    def __init__(self, rounds: int, main: str, unit: str, what: str = "round", done: int = 0) -> None:
        self._rounds = rounds
        self._main = main
        self._unit = unit
        self._what = what
        self._lines: list[str] = []
        self._wrote = 0.0
        self._bar = None
        if sys.stdout and not sys.stdout.closed and sys.stdout.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=rounds, initial=done, unit=what, file=sys.stdout, dynamic_ncols=True)

    def show(self, row: Mapping[str, float]) -> None:
        """A round has ended with this row of /rounds."""
        facts = [f"train loss {_loss(row['train_loss'])}"]
        for kind in ("test", "validation"):
            if (value := row.get(f"{kind}_{self._main}")) is not None:
                shown = f"{100 * value:.2f} %" if self._unit else _loss(value)
                facts += [f"{kind} loss {_loss(row[f'{kind}_loss'])}"] if kind == "test" else []
                facts.append(f"{kind} {self._main.replace('_', ' ')} {shown}")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(facts), refresh=False)
            self._bar.update()
        else:
            width = len(str(self._rounds))
            told = f"{self._what} {row['round']:{width}}/{self._rounds}  {', '.join(facts)}, {row['seconds']:.2f} s"
            self._lines.append(told)
            if perf_counter() - self._wrote >= SECONDS_BETWEEN_WRITES:
                self._write()

    def close(self) -> None:
        """Remove the bar, or print the lines that are left."""
        if self._bar is not None:
            self._bar.close()
        self._write()

    def _write(self) -> None:
        if self._lines:
            say("\n".join(self._lines))
            self._lines.clear()
            self._wrote = perf_counter()


def _loss(value: float) -> str:
    """With four decimals, unless it is so large that training has diverged."""
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"
