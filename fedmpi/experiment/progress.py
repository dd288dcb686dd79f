"""What rank 0 tells while a run goes on: a bar on a terminal, one line a round in a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from fedmpi import results
from fedmpi.results.summary import summarize
from fedmpi.streams import say


class Progress:
    """Shows rounds as they end.

    Args:
        rounds: how many there will be.
        what: they are called.
        done: how many are over.
    """

    def __init__(self, rounds: int, what: str = "round", done: int = 0) -> None:
        self._rounds = rounds
        self._what = what
        self._bar = None
        if sys.stdout and not sys.stdout.closed and sys.stdout.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=rounds, initial=done, unit=what, file=sys.stdout, dynamic_ncols=True)

    def show(self, row: Mapping[str, float]) -> None:
        """A round has ended with this row of /rounds."""
        facts = [f"train loss {row['train_loss']:.4f}"]
        if "test_accuracy" in row:
            facts += [
                f"test loss {row['test_loss']:.4f}",
                f"test accuracy {100 * row['test_accuracy']:.2f} %",
            ]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(facts), refresh=False)
            self._bar.update()
        else:
            width = len(str(self._rounds))
            say(f"{self._what} {row['round']:{width}}/{self._rounds}  {', '.join(facts)}, {row['seconds']:.2f} s")

    def close(self) -> None:
        """They are over."""
        if self._bar is not None:
            self._bar.close()

    def end(self, path: Path) -> None:
        """The run is over: sum it up on one screen."""
        self.close()
        say("\n" + summarize(results.open(path)))
