"""Constants for `benchmarks.round_time`, and rounds to check it with: mpirun -n RANKS python -m benchmarks.constants.

    machine     on as many ranks as there are cores: all do the same at the same time, independently
    clients     on one rank: what grows with the number of clients
    rounds      on any number of ranks: rounds of whole experiments, and barriers

Each prints one line of JSON. Constants are CPU seconds, which other programs on the machine disturb less than wall
time. Barriers and rounds are measured in wall time.
"""

import contextlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.workloads import CHECKED, SCALING
from fedmpi.data import IID, make_split
from fedmpi.data._owners import apportion
from fedmpi.experiment.assembly import assemble
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.experiment import Experiment
from fedmpi.experiment.interruption import Interruptions
from fedmpi.experiment.rounds import play
from fedmpi.federation.client_state import StateKeeper
from fedmpi.federation.energy import Energy
from fedmpi.federation.ledger import Ledger
from fedmpi.federation.mean import WeightedMean
from fedmpi.federation.placement import CostModel
from fedmpi.mpi.ascent import add_packed, pack
from fedmpi.mpi.shared_mean import MOST_ELEMENTS
from fedmpi.mpi.world import World
from fedmpi.policies import Bernoulli, Cohort, Pool, RoundPlan, Sampler, Uniform, Weighted
from fedmpi.training.block import Block, Work

SIZES = (25_000, 415_000, 1_660_000, 11_170_000)
CLIENTS = (1_000, 10_000, 100_000, 1_000_000)
COHORTS = (100, 1_000, 10_000)
CPU = torch.device("cpu")
# Ranks that clients are placed on, and whose books are summed.
SOME_RANKS = 64


def seconds(times: int, run: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """The median, after a run that warms up."""
    run()
    found = []
    for _ in range(times):
        began = clock()
        run()
        found.append(clock() - began)
    return statistics.median(found)


# Constants of the machine


def machine(world: World) -> dict[str, Any]:
    """`round_time.Machine` but for what clients cost, and a `round_time.Training` for each workload."""
    alone = World(MPI.COMM_SELF)
    found: dict[str, Any] = {"cores": world.size, "sizes": SIZES}
    fixed = of_vectors(alone, world.size * 16)
    of_sizes = [of_vectors(alone, size) for size in SIZES]
    for name, least in fixed.items():
        # What does not grow with the size is part of a round or a block, see `overhead`.
        pairs = zip(of_sizes, SIZES, strict=True)
        found[name] = [max(spent[name] - least, 0.0) / size for spent, size in pairs]
    words = [np.zeros(3, dtype=np.int64) for _ in range(SOME_RANKS)]
    found["poll"] = seconds(200, lambda: all(word[0] >= 0 for word in words)) / SOME_RANKS
    books = [np.zeros(10_000) for _ in range(SOME_RANKS)]
    found["a_number"] = seconds(20, lambda: np.sum(books, axis=0)) / (SOME_RANKS * 10_000)
    world.comm.Barrier()
    found["a_round"], found["a_block"] = overhead(alone)
    found["training"] = {}
    for name in SCALING:
        world.comm.Barrier()
        found["training"][name] = training(alone, name)
    return found


def meeting(world: World) -> float:
    """Seconds, by the clock, of a meeting to which all come at once."""

    def several() -> None:
        for _ in range(20):
            world.meet()

    world.meet()
    return seconds(20, several, time.perf_counter) / 20


def of_vectors(alone: World, size: int) -> dict[str, float]:
    """Seconds of what is done to vectors of so many parameters."""
    times = 5 if size > 5_000_000 else 15
    vector = torch.randn(1, size) * 0.01
    one = Block(np.array([0]), np.array([1]), np.array([1]))

    def add() -> None:
        alone.begin_round()
        WeightedMean(alone, size, size, 2, None, CPU).add(vector, one)

    def form(ranks: int) -> float:
        """One core's share of the means, out of the sums of so many ranks; for all sums of a node."""
        cores = MPI.COMM_WORLD.Get_size()
        share = size // cores
        mean = World(MPI.COMM_SELF).shared_mean(1, share)
        mean.masses[:] = mean.terms[:] = 1
        mean._all_rows = [np.ones((1, share), np.int64) for _ in range(ranks)]
        mean._all_counts = [np.array([[1], [1], [0]]) for _ in range(ranks)]
        return seconds(times, lambda: mean.form(2)) * cores

    numbers, memory = np.full(MOST_ELEMENTS, 1 << 40), np.empty(8 * MOST_ELEMENTS, np.uint8)
    block, scratch = numbers[:size].copy(), np.empty_like(numbers)

    def send() -> None:
        block[:] = numbers[: len(block)]
        add_packed(pack(block, memory), memory, block, scratch)

    few, many = form(2), form(6)
    total = max(many - few, 0.0) / 4
    return {
        "add": seconds(times, add),
        "total": total,
        "form": max(few - 2 * total, 0.0),
        "pack": seconds(times, send) / len(block) * size,
    }


def overhead(alone: World) -> tuple[float, float]:
    """Seconds of the engine but for training: of a round, and of a block of clients."""

    def of_cohort(size: int) -> float:
        options = f"{SCALING['MLP'].options} --local.vectorize off --cohort {size}"
        experiment, _ = experiment_of(options, rounds=1)
        engine, interruptions = assemble(experiment, alone).engine, Interruptions(alone, experiment)
        trainer = engine.federation.context.trainer
        inner, trained = trainer.train, 0.0

        def train(*arguments: Any) -> Work:
            nonlocal trained
            began = time.process_time()
            work = inner(*arguments)
            trained += time.process_time() - began
            return work

        trainer.train = train  # type: ignore[assignment,method-assign]

        def round() -> float:
            before, began = trained, time.process_time()
            play(experiment, engine, experiment.algorithm, 1, interruptions)
            return time.process_time() - began - (trained - before)

        round()
        return statistics.median(round() for _ in range(30))

    alone_in_round, many = of_cohort(1), of_cohort(201)
    a_block = (many - alone_in_round) / 200
    return alone_in_round - a_block, a_block


def training(alone: World, name: str) -> dict[str, float]:
    """`round_time.Training`, fitted to blocks of many and few clients, of long and short ones."""
    experiment, _ = experiment_of(SCALING[name].options, rounds=1)
    fed = assemble(experiment, alone).engine.federation
    trainer, start = fed.context.trainer, fed.initial_weights()
    longest_first = np.argsort(-fed.samples, kind="stable")
    rows = []
    for number in {trainer.at_once, -(-trainer.at_once // 8)}:
        for first in {0, (len(longest_first) - number) // 2, len(longest_first) - number}:
            clients = longest_first[first : first + number]
            block = Block(clients, fed.samples[clients], fed.samples[clients])
            arguments = block, start.expand(number, -1), experiment.algorithm, 1, 1
            spent = seconds(SCALING[name].pairs, lambda arguments=arguments: trainer.train(*arguments))  # type: ignore[misc]
            steps = trainer.count_steps(clients)
            rows.append([1, steps.max(), steps.sum() * (number > 1), spent])
    table = np.array(rows)
    fitted, _ = nnls(table[:, :3] / table[:, 3:], np.ones(len(table)))  # the least relative errors
    constants = dict(zip(("a_block", "a_step", "a_clients_step"), fitted.tolist(), strict=True))
    return {"parameters": fed.layout.size, "at_once": trainer.at_once, **constants}


def experiment_of(options: str, rounds: int, folder: str = "") -> tuple[Experiment, str]:
    output = f"--output {folder}/run.h5" if folder else ""
    return parse(shlex.split(f"{options} --evaluate_every 0 --rounds {rounds} {output}"), speaks=False)


# What grows with the number of clients


def clients(world: World) -> dict[str, Any]:
    """Bookkeeping of a round for some numbers of clients and sizes of cohorts, and what it takes to start."""
    rounds = []
    for number in CLIENTS:
        samples, states = sizes_of(number), StateKeeper(world, number)
        for cohort in COHORTS:
            if cohort <= number:
                spent = books(world, states, samples, cohort)
                rounds.append({"clients": number, "cohort": cohort, **spent})
    return {"books": rounds, "start": [start(number) for number in CLIENTS]}


def books(world: World, states: StateKeeper, samples: NDArray[np.int64], size: int) -> dict[str, float]:
    """Seconds of drawing, placing, moving states (there are none) and keeping the ledger of a cohort.

    Includes drawing by samplers other than Uniform.
    """

    pool = Pool(samples, lambda: samples[:, None])

    def draw(sampler: Sampler) -> Cohort:
        return sampler.cohort(1, size, pool, "samples", 0)

    cohort = draw(Uniform())
    ranks, _ = CostModel(SOME_RANKS).place(cohort.samples)
    energy = Energy(world, torch.device("cpu"))
    return {
        "draw": seconds(9, lambda: draw(Uniform())),
        "place": seconds(9, lambda: CostModel(SOME_RANKS).place(cohort.samples)),
        "states": seconds(9, lambda: states.gather(cohort.clients, ranks)),
        "ledger": seconds(9, lambda: Ledger(world, 1, RoundPlan(cohort), (), (), 0.0).close(0, {}, None, energy)),
        "bernoulli": seconds(9, lambda: draw(Bernoulli())),
        "weighted": seconds(9, lambda: draw(Weighted())),
    }


def start(number: int) -> dict[str, float]:
    """Seconds and megabytes that it takes to know who has what, for four samples a client."""
    labels = np.random.default_rng(0).integers(0, 10, 4 * number)
    before, began = memory(), time.process_time()
    split = make_split(IID(), labels, labels[:10_000], 10, number, 0)
    spent, taken = time.process_time() - began, memory() - before
    return {"clients": number, "split": spent, "megabytes": taken, "labels": split.label_counts.nbytes / 1e6}


def sizes_of(number: int, mean: int = 60, sigma: float = 1.0) -> NDArray[np.int64]:
    """[clients] log-normal numbers of samples, as `fedmpi.data.LogNormal` draws them."""
    rng = np.random.default_rng(0)
    return np.maximum(apportion(np.exp(sigma * rng.standard_normal(number)), mean * number, rng), 1)


def memory() -> float:
    """Megabytes that this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# Rounds to check with


def rounds(world: World) -> dict[str, Any]:
    """Of all rounds but the first of each workload: what `timed` gives, the processor's seconds over all ranks.

    And the seconds of a meeting.
    """
    found: dict[str, Any] = {"ranks": world.size, "meeting": meeting(world), "rounds": {}}
    for name in CHECKED:
        spent, busy, steps = zip(*list(timed(world, name))[1:], strict=True)
        found["rounds"][name] = {
            "seconds": spent,
            "busy": np.sum(world.comm.allgather(busy), 0).tolist(),
            "steps": steps,
        }
    return found


def timed(world: World, name: str) -> Iterator[tuple[float, float, list[int]]]:
    """Of each round, results included: seconds from the end of the last one to its own; the processor's of this rank;
    its clients' steps.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # what fedmpi says of its rounds
    ):
        experiment, config = experiment_of(SCALING[name].options, SCALING[name].pairs, folder)
        began, busy = time.perf_counter(), time.process_time()
        for outcome in experiment.outcomes(world, config):
            yield time.perf_counter() - began, time.process_time() - busy, outcome.clients["steps"].tolist()
            began, busy = time.perf_counter(), time.process_time()


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = World()
    found = {"machine": machine, "clients": clients, "rounds": rounds}[sys.argv[1]](ranks)
    if ranks.is_server:
        print(json.dumps(found), flush=True)
