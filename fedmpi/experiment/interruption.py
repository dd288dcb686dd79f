"""Interruptions: a run ends early on a signal, or before its job's time limit.

Signals that a rank has received are sent with the message that all ranks exchange at the end of a round anyway
(`fedmpi.federation.ledger`). So all ranks end after the same round, and rounds do not take longer. Long work outside
of rounds has parts, after each of which the ranks communicate (`Interruptions.pause`). While a run is set up, there
is nothing to save, so it ends at once.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import deque
from types import FrameType
from typing import Any

import numpy as np

from fedmpi.experiment.checkpoint import Checkpoints, Place, SavedFederation
from fedmpi.experiment.job_limit import job_end
from fedmpi.experiment.recording import Recorder
from fedmpi.experiment.settings import BY_HAND, REQUEUE, Settings
from fedmpi.federation.ledger import Outcome
from fedmpi.mpi.guard import FIRST_DEADLINE
from fedmpi.mpi.world import World

SIGNALS = {signal.SIGUSR1: REQUEUE, signal.SIGTERM: REQUEUE, signal.SIGINT: BY_HAND}
#: Seconds that a job takes to end.
MARGIN = 20.0
#: The longest of at least this many recent rounds estimates the next one.
REMEMBERED = 20
#: The deadline auto: at least this many seconds, and this many times the longest round.
LEAST_DEADLINE, LONGEST_ROUNDS = 600.0, 20


class Interrupted(Exception):
    """The run ends here, and can be resumed.

    Args:
        status: exit status of the program.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Interruptions:
    """Ends a run between two rounds, if necessary, and writes its checkpoints.

    Within this context, SIGUSR1 and SIGTERM request an end with exit status 85, and SIGINT one with 130. A second
    SIGTERM or SIGINT ends the process at once (`fedmpi.mpi.guard`). While the run is set up, each of them raises
    `Interrupted`. Under Slurm a round is begun only if it would end before the job's limit (SLURM_JOB_END_TIME),
    assuming that it takes as long as the longest of the last rounds, with their checkpoints. The same holds for the
    parts of other long work.

    Args:
        world: the ranks.
        experiment: the experiment.

    Attributes:
        checkpoints: of the run; set when its output is known.
        whole: the federation of the run; set when it exists.
        recorder: writes the results; writes nothing until they are open.
        is_set_up: whether the set-up before the first round is complete.
    """

    checkpoints: Checkpoints
    whole: SavedFederation
    is_set_up = False

    def __init__(self, world: World, experiment: Settings) -> None:
        self.recorder = Recorder()
        self._world = world
        self._heard = 0
        self._follows = experiment.held_out > 0  # long work after the last round
        self._limit = job_end(os.environ, tells=world.is_server) or math.inf
        self._deadline = experiment.deadline
        self._longest = 0.0
        self._took: deque[float] = deque(maxlen=max(REMEMBERED, experiment.evaluate_every))
        self._began: float | None = None
        self._replaced: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruptions:
        self._world.guard.limit = self.deadline
        if threading.current_thread() is threading.main_thread():  # signals can only be handled in the main thread
            self._replaced = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def begin_round(self) -> None:
        """Called at the beginning of a round, or of a part of other long work.

        The time since the last call counts for the last part.
        """
        now = time.time()
        if self._began is not None:
            self._took.append(now - self._began)
            self._longest = max(self._longest, self._took[-1])
        self._began = now
        self._world.guard.limit = self.deadline

    @property
    def deadline(self) -> float:
        """Longest time in seconds that a rank waits for others."""
        if self._deadline != "auto":
            return self._deadline
        return max(LEAST_DEADLINE, LONGEST_ROUNDS * self._longest) if self._longest else FIRST_DEADLINE

    def asks(self, round: int) -> tuple[int, bool]:
        """Requests of this rank at the end of a round: an exit status, or 0; and whether to write a checkpoint."""
        return self._status, self.recorder.is_open and self.checkpoints.is_due(round)

    def act_on(self, outcome: Outcome, is_last: bool, stage: SavedFederation | None = None) -> None:
        """Fulfil the requests of a round, and those made while its checkpoint was written; a collective.

        Args:
            is_last: whether no round of the same kind follows.
            stage: the stage that the round belongs to; None: the experiment itself.

        Raises:
            Interrupted: the run must end.
        """
        round, status = int(outcome.row["round"]), outcome.status
        if is_last and not (stage or self._follows):
            return  # it ends by itself
        if status or outcome.checkpoint or is_last:
            self.save(round, stage, stops=bool(status), goes_on=not is_last)
            if not status:
                self._end_if_asked()
        if status:
            raise Interrupted(status)

    def save(
        self, round: int, stage: SavedFederation | None = None, stops: bool = False, goes_on: bool = False
    ) -> None:
        """Write a checkpoint, and the results; a collective.

        Args:
            stops: whether the run ends now.
            goes_on: whether another round of the same kind follows. New rows are then written into the checkpoint,
                because writing all rows to the results file takes longer and longer.
        """
        if stops:
            self.recorder.finish("interrupted")
        elif not goes_on:
            self.recorder.write()
        federations = [self.whole, stage] if stage else [self.whole]
        place = Place(self.recorder.started, round, stage and stage.name)
        self.checkpoints.save(place, federations, self.recorder.beyond_file())

    def pause(self) -> None:
        """Called between two parts of long work without checkpoints: end the run if that was requested.

        A collective.

        Raises:
            Interrupted: the run must end.
        """
        self._end_if_asked()
        self.begin_round()

    def _end_if_asked(self) -> None:
        asked = np.array([float(self._status == status) for status in (REQUEUE, BY_HAND)])
        self._world.sum(asked)
        if asked.any():
            self.recorder.finish("interrupted")
            raise Interrupted(BY_HAND if asked[1] else REQUEUE)

    @property
    def _status(self) -> int:
        if self._heard or self._began is None:
            return self._heard
        now = time.time()
        longest = max([*self._took, now - self._began])
        return REQUEUE if now + longest + MARGIN > self._limit else 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = max(self._heard, SIGNALS[signal.Signals(number)])
        if not self.is_set_up:
            raise Interrupted(self._heard)
