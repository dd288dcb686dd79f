"""What asynchronous training costs: its schedule, and the waves in which FedAsync trains on several workers."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import TRAINING
from fedmpi.policies import Always, Heterogeneous, Pool, Uniform
from fedmpi.policies.conditions import JobCosts
from fedmpi.policies.timeline import Timeline
from fedmpi.results import Run

#: Methods on workload A, with clients of very different speed.
SPED_UP = {
    method: f"--algorithm {options} {TRAINING['A'].options} --conditions Heterogeneous --conditions.speed_spread 1"
    " --evaluate_every 0 --rounds 10"
    for method, options in {"FedAvg": "FedAvg", "FedAsync": "FedAsync --algorithm.concurrency 100"}.items()
}
#: The first rounds are not like later ones: clients start from version 0, and memory is taken for versions.
FIRST_ROUND = 5
ARRIVALS = 100_000


def schedule_seconds(clients: int = 1000, concurrency: int = 100, buffer: int = 10) -> float:
    """Seconds that the schedule of `ARRIVALS` arrivals takes to compute."""
    samples = np.full(clients, 60)
    timeline = Timeline(
        concurrency=concurrency,
        cohort=buffer,
        buffer=buffer,
        sampler=Uniform(),
        conditions=Heterogeneous(speed_spread=1),
        availability=Always(),
        weighting="uniform",
        pool=Pool(samples, lambda: np.full((clients, 10), 6)),
        costs=JobCosts(np.full(clients, 6.0), np.full(clients, 10**6), np.full(clients, 10**6)),
        seed=1,
    )
    began = time.perf_counter()
    timeline.row(ARRIVALS // buffer)
    return time.perf_counter() - began


def seconds_of_later_rounds(run: Run) -> float:
    """Duration of all rounds of a run from `FIRST_ROUND` on."""
    return float(run.rounds["seconds"][FIRST_ROUND - 1 :].sum())


def simulated_speed_up(run: Run, workers: int) -> float:
    """How much faster so many workers are than one, if all clients take the same time and nothing else takes any."""
    if "start_version" not in run.clients:
        return float(workers)
    waves = np.concatenate([wave_sizes(run, round) for round in range(FIRST_ROUND, len(run.rounds["seconds"]) + 1)])
    return float(waves.sum() / np.ceil(waves / workers).sum())


def wave_sizes(run: Run, round: int) -> NDArray[np.int64]:
    """The number of clients in each wave of a round of FedAsync.

    A wave ends where a client started from a version that the wave itself forms.
    """
    of_round = run.clients["round"] == round
    order = np.argsort(run.clients["arrival"][of_round])
    start, staleness = (run.clients[name][of_round][order] for name in ("start_version", "staleness"))
    number = start + staleness  # the server's version when the update arrives
    sizes: list[int] = []
    first = 0
    for place in range(1, len(order) + 1):
        if place == len(order) or start[place] > number[first]:
            sizes.append(place - first)
            first = place
    return np.array(sizes)
