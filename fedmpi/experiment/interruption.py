"""When a run ends early: on a signal, or before its job's time is over.

What a rank has heard travels with what all ranks exchange at the end of a round anyway (`fedmpi.federation.ledger`),
so that all of them end after the same round, and no round takes longer for it. What is long and no round has parts,
after each of which the ranks ask one another (`Interruptions.pause`). While a run is set up there is nothing to keep:
it ends at once.
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
#: What a deadline is by itself: so many seconds at least, and as many of the longest rounds.
LEAST_DEADLINE, LONGEST_ROUNDS = 600.0, 20


class Interrupted(Exception):
    """The run ends here, and can be resumed.

    Args:
        status: with which the program exits.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Interruptions:
    """Of a run: between two rounds they end it, if it has to, and write its checkpoints.

    Within it, as a context, SIGUSR1 and SIGTERM ask for an end with exit status 85, and SIGINT for one with 130; a
    second SIGTERM or SIGINT ends the process at once (`fedmpi.mpi.guard`). While the run is set up, each of them
    raises `Interrupted` where it is. Under Slurm no round is begun that would not be over before the job's limit
    (SLURM_JOB_END_TIME), if it takes as long as the longest of the last ones, with their checkpoints. The same goes
    for the parts of what else takes long.

    Args:
        world: the ranks.
        experiment: what is run.

    Attributes:
        checkpoints: of the run, once its output is known.
        whole: its federation, once there is one.
        recorder: what writes its results; nothing until they are open.
        is_set_up: whether all that comes before the results and the first round is done.
    """

    checkpoints: Checkpoints
    whole: SavedFederation
    is_set_up = False

    def __init__(self, world: World, experiment: Settings) -> None:
        self.recorder = Recorder()
        self._world = world
        self._heard = 0
        self._follows = experiment.held_out > 0  # something long after the last round
        self._limit = job_end(os.environ, tells=world.is_server) or math.inf
        self._deadline = experiment.deadline
        self._longest = 0.0
        self._took: deque[float] = deque(maxlen=max(REMEMBERED, experiment.evaluate_every))
        self._began: float | None = None
        self._replaced: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruptions:
        self._world.guard.limit = self.deadline
        if threading.current_thread() is threading.main_thread():  # no other one may listen
            self._replaced = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def begin_round(self) -> None:
        """A round, or a part of something else, begins; what came between the last one and this was part of that."""
        now = time.time()
        if self._began is not None:
            self._took.append(now - self._began)
            self._longest = max(self._longest, self._took[-1])
        self._began = now
        self._world.guard.limit = self.deadline

    @property
    def deadline(self) -> float:
        """Seconds that a rank waits for others at most."""
        if self._deadline != "auto":
            return self._deadline
        return max(LEAST_DEADLINE, LONGEST_ROUNDS * self._longest) if self._longest else FIRST_DEADLINE

    def asks(self, round: int) -> tuple[int, bool]:
        """What this rank asks for when this round is over: an exit status, or 0; whether to write a checkpoint."""
        return self._status, self.recorder.is_open and self.checkpoints.is_due(round)

    def act_on(self, outcome: Outcome, rounds: int, stage: SavedFederation | None = None) -> None:
        """Do what was asked for in a round, of so many, or while its checkpoint was written; a collective.

        Args:
            stage: to which the round belongs; None: to the experiment itself.

        Raises:
            Interrupted: the run is to end.
        """
        round, status = int(outcome.row["round"]), outcome.status
        is_last = round == rounds
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
            stops: whether the run is to end now.
            goes_on: whether another round of the same kind follows. Rows that the results file does not have go into
                the checkpoint then, because writing all rows takes the longer the more there are.
        """
        if stops:
            self.recorder.finish("interrupted")
        elif not goes_on:
            self.recorder.write()
        federations = [self.whole, stage] if stage else [self.whole]
        place = Place(self.recorder.started, round, stage and stage.name)
        self.checkpoints.save(place, federations, self.recorder.beyond_file())

    def pause(self) -> None:
        """Between two parts of something long that no checkpoint is made of: end the run if that was asked for.

        A collective.

        Raises:
            Interrupted: the run is to end.
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
