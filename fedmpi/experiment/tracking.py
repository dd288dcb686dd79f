"""Live trackers: the rows of /rounds as files of TensorBoard, Weights & Biases or MLflow, during the run.

A tracker works in a thread of rank 0, so that the run never waits for it. Only files are written, nothing is sent. An
error is one line of warning, and the run continues without the tracker.

When a run is resumed, or its output is overwritten, the files of its earlier job are replaced, and the earlier rounds
are written again. So no round is there twice.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from fedmpi.described import leaves
from fedmpi.streams import say

TrackerName = Literal["none", "tensorboard", "wandb-offline", "mlflow"]
#: Seconds for which the end of a run waits for its tracker: of a finished run, and of one that must end soon.
PATIENCE, HASTE = 30.0, 3.0

Row = Mapping[str, float]


class Tracker(Protocol):
    """Writes the files of another program. All calls come from one thread."""

    def log(self, values: Row, round: int, time: float) -> None:
        """Write finite values of a round that ended at this time, in seconds since 1970."""

    def close(self) -> None:
        """End the files."""


@dataclass(frozen=True)
class Tracked:
    """The run that is tracked.

    Attributes:
        output: the results file.
        started: when the run first began, ISO 8601.
        settings: of the experiment.
    """

    output: Path
    started: str
    settings: Mapping[str, Any]

    @property
    def options(self) -> dict[str, str]:
        """The settings by dotted names, as texts."""
        return {name: str(value) for name, value in leaves(self.settings)}


class Tracking:
    """The thread of a tracker, and the queue of rows that it has yet to write.

    Args:
        name: which tracker; none: nothing is done.
        run: what is tracked.
        earlier: the columns of /rounds up to here.
    """

    def __init__(self, name: TrackerName, run: Tracked, earlier: Mapping[str, NDArray]) -> None:
        self._option = f"--track {name}"
        self._rows: SimpleQueue[Row | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if name == "none":
            return
        for row in range(len(earlier.get("round", ()))):
            self.add({column: values[row].item() for column, values in earlier.items()})
        self._thread = threading.Thread(target=self._work, args=(name, run), daemon=True, name="tracker")
        self._thread.start()

    def add(self, row: Row) -> None:
        """Hand over a row of /rounds; returns at once."""
        self._rows.put(row)

    def close(self, patience: float) -> None:
        """Wait until all rows are written, but not longer than so many seconds."""
        if self._thread is None:
            return
        self._rows.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            say(f"warning: {self._option}: not all rounds were written within {patience:g} s")
        self._thread = None

    def _work(self, name: TrackerName, run: Tracked) -> None:
        try:
            tracker = _TRACKERS[name](run)
            for values, round, time in _timed(iter(self._rows.get, None), run.started):
                tracker.log(values, round, time)
            tracker.close()
        except ImportError as error:
            missing = f"{error.name or error} is not installed: pip install 'fedmpi[{name.partition('-')[0]}]'"
            say(f"warning: {self._option}: {missing}; the run continues without it")
        except BaseException as error:  # such as SystemExit, by which a library may end its own thread
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            say(f"warning: {self._option}: {reason}; the run continues without it")


def _timed(rows: Iterator[Row], started: str) -> Iterator[tuple[Row, int, float]]:
    """The finite values of rows, their rounds, and the ends of the rounds, without the time between two jobs."""
    time = datetime.fromisoformat(started).timestamp()
    for row in rows:
        time += row.get("seconds", 0.0)
        finite = {name: float(value) for name, value in row.items() if name != "round" and math.isfinite(value)}
        yield finite, int(row["round"]), time


class TensorBoard:
    """Event files in NAME.tensorboard, next to the results file NAME.h5."""

    def __init__(self, run: Tracked) -> None:
        from tensorboardX import SummaryWriter

        folder = run.output.with_suffix(".tensorboard")
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder))

    def log(self, values: Row, round: int, time: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round, time)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbOffline:
    """A run of Weights & Biases in NAME.wandb, for `wandb sync NAME.wandb/wandb/offline-run-*`."""

    def __init__(self, run: Tracked) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or it sends its own errors home
        import wandb

        folder = run.output.with_suffix(".wandb")
        for old in folder.glob("wandb/offline-run-*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )
        # The same number after a resume, so that a later `wandb sync` continues the same run at the server.
        number = hashlib.sha256(f"{run.output.name} {run.started}".encode()).hexdigest()[:16]
        self._run = wandb.init(
            mode="offline",
            dir=str(folder),
            id=number,
            project="fedmpi",
            name=run.output.stem,
            config=run.options,
            settings=settings,
        )

    def log(self, values: Row, round: int, time: float) -> None:
        self._run.log(dict(values), step=round)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run in the store `mlruns` of the results file's folder, which all runs of the folder share."""

    def __init__(self, run: Tracked) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault(
            "MLFLOW_ALLOW_FILE_STORE", "true"
        )  # a data base is not for the file systems of clusters
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=(run.output.parent / "mlruns").resolve().as_uri())
        mine = f"tags.`fedmpi.output` = '{run.output.name}'"
        for old in self._client.search_runs(["0"], mine):
            self._client.delete_run(old.info.run_id)
        began = int(1000 * datetime.fromisoformat(run.started).timestamp())
        tags = {"fedmpi.output": run.output.name}
        self._number = self._client.create_run("0", began, tags, run.output.stem).info.run_id
        options = [Param(name, value[:6000]) for name, value in run.options.items()]
        for first in range(0, len(options), 100):  # its limit
            self._client.log_batch(self._number, params=options[first : first + 100])

    def log(self, values: Row, round: int, time: float) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, int(1000 * time), round) for name, value in values.items()]
        self._client.log_batch(self._number, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._number)


_TRACKERS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb-offline": WandbOffline, "mlflow": MLflow}
