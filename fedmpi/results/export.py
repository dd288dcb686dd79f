"""Export to other programs: CSV files and TensorBoard event files."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedmpi.errors import BadInput
from fedmpi.results.groups import columns
from fedmpi.results.reader import Run, flat


def to_csv(runs: Sequence[Run], output: Path, table: str = "rounds") -> None:
    """Write one table of all runs to a CSV file.

    Each row starts with the results file, the method, the other settings in which the runs differ, and the seed.
    Missing values (NaN) are empty cells. Numbers are written with all digits.

    Args:
        runs: the runs, in the order in which their rows are written.
        output: the file to write; an existing file is overwritten.
        table: rounds, clients, ranks, evaluation, clusters, partition or held_out.

    Raises:
        BadInput: `output` cannot be written.
    """
    tables = [flat(run.table(table)) for run in runs]
    names = list(dict.fromkeys(name for one in tables for name in one))
    settings = columns([[run] for run in runs], ["file", *names])
    try:
        with output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", *settings, "seed", *names])
            for k, (run, one) in enumerate(zip(runs, tables, strict=True)):
                head = [str(run.path), *(values[k] for values in settings.values()), run.attributes["seed"]]
                rows = len(next(iter(one.values()), ()))
                cells = [one[name].tolist() if name in one else [""] * rows for name in names]
                writer.writerows([*head, *("" if x != x else x for x in row)] for row in zip(*cells, strict=True))
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}") from None


def to_tensorboard(runs: Sequence[Run], folder: Path) -> None:
    """Write the table /rounds of each run as TensorBoard scalars, for `tensorboard --logdir FOLDER`.

    The step of a scalar is its round. Its time is the end of the round.

    Args:
        runs: the runs, each of which gets its own subfolder.
        folder: the folder to create.

    Raises:
        BadInput: tensorboardX is not installed, or `folder` exists or cannot be created.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise BadInput("tensorboardX is not installed: pip install 'fedmpi[tensorboard]'") from None
    if folder.exists():
        raise BadInput(f"{folder}: exists already")
    paths = [run.path.resolve().with_suffix("") for run in runs]
    common = os.path.commonpath([path.parent for path in paths])
    try:
        for run, path in zip(runs, paths, strict=True):
            with SummaryWriter(str(folder / path.relative_to(common))) as writer:
                _add_rounds(writer, run)
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}") from None


def _add_rounds(writer: Any, run: Run) -> None:
    began = datetime.fromisoformat(run.attributes["started"]).timestamp()
    times = began + np.cumsum(run.rounds.get("seconds", np.empty(0)))
    for name, values in run.rounds.items():
        if name == "round":
            continue
        for round, value, time in zip(run.rounds["round"], values, times, strict=True):
            if np.isfinite(value):
                writer.add_scalar(name, float(value), int(round), float(time))
