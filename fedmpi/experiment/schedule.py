"""The schedule of an asynchronous method: made from the settings, and played again when a run is resumed."""

from __future__ import annotations

import numpy as np

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.asynchronous import Asynchronous
from fedmpi.errors import BadInput
from fedmpi.experiment.settings import Settings
from fedmpi.experiment.workload import MethodWorkload
from fedmpi.federation.engine import Engine
from fedmpi.policies import Cohort, Pool
from fedmpi.policies.conditions import JobCosts
from fedmpi.policies.sampling import masses
from fedmpi.policies.timeline import Timeline


def timeline_of(experiment: Settings, engine: Engine) -> Timeline | None:
    """The schedule of the experiment, the same on every rank; None: its method is synchronous. A collective."""
    algorithm, fed = experiment.algorithm, engine.federation
    if not isinstance(algorithm, Asynchronous):
        return None
    everyone = np.arange(fed.clients)
    cohort = Cohort(everyone, fed.samples, masses(fed.samples, experiment.weighting))
    workload = MethodWorkload(engine, algorithm)
    return Timeline(
        concurrency=algorithm.in_flight(experiment.cohort, fed.clients),
        cohort=experiment.cohort,
        buffer=algorithm.buffer(experiment.cohort),
        sampler=experiment.sampler,
        conditions=experiment.conditions,
        availability=experiment.availability,
        weighting=experiment.weighting,
        pool=Pool(fed.samples, lambda: fed.label_counts),
        costs=JobCosts(workload.work(cohort), *workload.payload(cohort)),
        seed=experiment.seed,
        max_staleness=algorithm.max_staleness,
    )


def replay(engine: Engine, algorithm: Algorithm, timeline: Timeline | None, rounds: int) -> None:
    """Play the schedule again up to the round that a checkpoint was written after.

    Raises:
        BadInput: it is another schedule than that of the checkpoint; on every rank alike.
    """
    if timeline is None or not isinstance(algorithm, Asynchronous):
        return
    for number in range(1, rounds + 1):
        arrivals = timeline.row(number)
        algorithm.schedule(arrivals)
        algorithm.forget(arrivals)
    with engine.agreed():
        if engine.schedule.tolist() != list(timeline.state):
            reason = f"the schedule up to round {rounds} is not that of the checkpoint"
            raise BadInput(f"--resume: {reason}; use the same files and the same kind of processor")
