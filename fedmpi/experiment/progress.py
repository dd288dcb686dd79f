"""What rank 0 prints during a run: a progress bar on a terminal, or one line per round in a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from fedmpi import results
from fedmpi.results.summary import summarize
from fedmpi.streams import say


class Progress:
    """Shows each round when it has ended.

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
            say(f"{self._what} {row['round']:{width}}/{self._rounds}  {', '.join(facts)}, {row['seconds']:.2f} s")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def end(self, path: Path) -> None:
        """Print the summary of the finished run."""
        self.close()
        say("\n" + summarize(results.open(path)))


def _loss(value: float) -> str:
    """With four decimals, unless it is so large that training has diverged."""
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"
