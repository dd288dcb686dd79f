"""The picture of an asynchronous schedule: which client trained when, and from which version of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmpi.errors import BadInput
from fedmpi.results.pictures.figure import Sheet, picture, run_names, wrapped
from fedmpi.results.reader import Run

_WIDTH = 6.5  # inches
_MOST = 60  # a picture has at most this many clients
_NEEDED = ("client", "arrived_at", "virtual_seconds", "start_version", "staleness")


def check(run: Run) -> None:
    """Raise BadInput unless the run has a schedule."""
    if lacking := [name for name in _NEEDED if name not in run.clients]:
        raise BadInput(f"{run.path}: has no column {lacking[0]} of /clients; only asynchronous methods have one")


def draw(runs: Sequence[Run], sheet: Sheet) -> None:
    """Draw a bar for each job whose update was used, from its start to its arrival, with one panel per run.

    The colour is the staleness of the update. The number is the version that the client started from. Of a run with
    many clients, the first ones by number are drawn.

    Raises:
        BadInput: a run has no schedule, or the picture cannot be drawn or written (see `picture`).
    """
    for run in runs:
        check(run)
    clients = [np.unique(run.clients["client"])[:_MOST] for run in runs]
    width = sheet.width or _WIDTH
    with picture(sheet, width, 0.6 + sum(0.7 + 0.16 * len(some) for some in clients)) as figure:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        stalest = max(float(run.clients["staleness"].max(initial=1)) for run in runs)
        colours = ScalarMappable(Normalize(0, stalest), "viridis_r")
        panels = figure.subplots(len(runs), 1, squeeze=False, height_ratios=[3 + len(some) for some in clients])
        for axes, run, some, title in zip(panels[:, 0], runs, clients, run_names(runs), strict=True):
            table = {name: run.clients[name] for name in _NEEDED}
            shown = np.isin(table["client"], some)
            place = np.searchsorted(some, table["client"][shown])
            end, long, version, staleness = (table[name][shown] for name in _NEEDED[1:])
            axes.barh(place, long, left=end - long, height=0.8, color=colours.to_rgba(staleness), edgecolor="white")
            if len(place) <= 4 * _MOST:
                bars = zip(place, end - long, version.astype(int), staleness > stalest / 2, strict=True)
                for row, start, number, is_dark in bars:
                    colour = "white" if is_dark else "black"
                    axes.text(start, row, f" {number}", va="center", fontsize=5, color=colour, clip_on=True)
            axes.vlines(np.cumsum(run.rounds["virtual_seconds"]), -0.5, len(some) - 0.5, color="black", linewidth=0.3)
            axes.set(ylabel="Client", ylim=(len(some) - 0.5, -0.5))
            axes.set_yticks(range(0, len(some), max(len(some) // 10, 1)), some[:: max(len(some) // 10, 1)])
            axes.set_title(wrapped(title, width, "axes.titlesize") if len(runs) > 1 else "")
        panels[-1, 0].set_xlabel("Virtual time (s)")
        figure.colorbar(colours, ax=panels[:, 0].tolist(), label="Staleness")
