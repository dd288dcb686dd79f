"""The picture of the busy and idle time of each rank over the rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.pictures.figure import COLOURS, Sheet, picture, run_names, wrapped
from fedmpi.results.reader import Run

_WIDTH = 5.5  # inches
_MOST = 1000  # a picture has fewer ranks than this
_MARKED = 60  # up to this number of rounds, thin lines mark their ends
_KINDS = {"busy_seconds": ("busy", COLOURS[0]), "wait_seconds": ("idle", COLOURS[4])}


def round_ends(run: Run) -> NDArray[np.float64]:
    """The wall-clock time of the end of each round since the start of the first, [rounds], in seconds.

    Raises:
        BadInput: the run has no rounds yet.
    """
    if not len(run.rounds.get("round", ())):
        raise BadInput(f"{run.path}: no rounds yet")
    return np.cumsum(run.rounds["seconds"])


def ranks(run: Run) -> int:
    """The number of ranks of a run.

    Raises:
        BadInput: the run has no rounds yet, no times of ranks, or too many ranks for a picture.
    """
    round_ends(run)
    numbers = run.ranks.get("rank", np.empty(0))
    if not (len(numbers) and numbers.max() < _MOST and run.ranks.keys() >= _KINDS.keys()):
        raise BadInput(f"{run.path}: no times of ranks, or {_MOST} ranks or more")
    return int(numbers.max()) + 1


def draw(runs: Sequence[Run], sheet: Sheet) -> None:
    """Draw the busy and idle times, with one panel per run and one line per rank.

    Within a round, a rank's busy time is always drawn first, then its idle time, also if they alternated in the run.
    The white remainder is communication and bookkeeping.

    Raises:
        BadInput: a run has no rounds or times of ranks, or the picture cannot be drawn or written (see `picture`).
    """
    counts = [ranks(run) for run in runs]
    width = sheet.width or _WIDTH
    with picture(sheet, width, 0.5 + sum(0.7 + 0.22 * count for count in counts)) as figure:
        from matplotlib.ticker import MaxNLocator

        drawn = figure.subplots(len(runs), 1, squeeze=False, height_ratios=[3 + count for count in counts])[:, 0]
        for axes, run, count, title in zip(drawn, runs, counts, run_names(runs), strict=True):
            ends = round_ends(run)
            known = (run.ranks["round"] >= 1) & (run.ranks["round"] <= len(ends))  # /ranks may be read later
            for rank in range(count):
                of_rank = np.flatnonzero((run.ranks["rank"] == rank) & known)
                start = (ends - run.rounds["seconds"])[run.ranks["round"][of_rank] - 1]
                for column, (name, colour) in _KINDS.items():
                    lasts = run.ranks[column][of_rank]
                    spans = np.stack([start, lasts], axis=1)
                    axes.broken_barh(
                        spans, (rank - 0.4, 0.8), color=colour, linewidth=0, label=name if not rank else ""
                    )
                    start = start + lasts
            if len(ends) <= _MARKED:
                axes.vlines(ends, -0.5, count - 0.5, color="black", linewidth=0.3)
            axes.set(ylabel="Rank", ylim=(count - 0.5, -0.5), xlim=(0, ends[-1]))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_title(wrapped(title, width, "axes.titlesize") if len(runs) > 1 else "")
        drawn[-1].set_xlabel("Wall-clock time (s)")
        handles, labels = drawn[0].get_legend_handles_labels()  # of all ranks; one of each is enough
        figure.legend(handles[: len(_KINDS)], labels[: len(_KINDS)], loc="outside upper right", ncols=2)
