"""What the ranks of jobs of several sizes make of the same vectors: python transposed.py FOLDER.

FOLDER/RANKS-NODES-RANK.npz holds what a rank saw. The jobs are parts of one, for to start it costs seconds.
"""

import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.algorithms.robust import median
from fedmpi.federation.stack import absolute_differences, inner_products
from fedmpi.mpi import buffers, rows
from fedmpi.mpi.rows import Rows
from fedmpi.mpi.world import World

# Ranks, and ranks a node.
JOBS = [(1, 1), (2, 2), (3, 3), (5, 5), (5, 3), (2, 1)]
#: 21 blocks of columns, the last of them short, each row of which goes in several messages.
SIZE, COLUMNS, CHUNK = 20_011, 1000, 300
#: The sum of absolute differences is of so many coordinates.
SHORT = 4_321
CLIENTS = np.array([3, 4, 8, 15, 16, 23, 42, 99])
#: Nobody has trained the first, and the second sends what is not finite.
ABSENT, BROKEN = 8, 42
CENTER = np.linspace(-1, 1, SIZE, dtype=np.float32)


def vectors() -> NDArray[np.float32]:
    """[8, 20,011], all of them near the center."""
    values = np.random.default_rng(0).standard_normal((len(CLIENTS), SIZE), dtype=np.float32)
    values *= np.float32(1e-3)
    values += CENTER
    values[CLIENTS.tolist().index(BROKEN), -1] = np.inf
    return values


def look(job: World) -> dict[str, NDArray]:
    """Four of five clients are trained on the last rank, so that some ranks have none."""
    received = [0]
    exchange = job.exchange

    def counting(outgoing: list[tuple[int, NDArray]], incoming: list[tuple[int, NDArray]]) -> None:
        received[0] += sum(array.nbytes for _, array in incoming)
        exchange(outgoing, incoming)

    job.exchange = counting  # type: ignore[method-assign, assignment]
    made = Rows(job, CLIENTS, SIZE)
    for number, (client, vector) in enumerate(zip(CLIENTS.tolist(), vectors(), strict=True)):
        home = job.workers[-1 if number % 5 else 0]
        if job.rank == home and client != ABSENT:
            made.put(client, vector)
    made.close()
    seen: dict[str, NDArray] = {"present": made.present, "rejected": np.array(made.rejected)}
    seen["mine"] = np.array([position for position, _ in made.mine()])
    seen["median"] = made.combine(median)
    seen["received"] = np.array(received)
    seen["collected"] = made.collect()
    nothing = np.full(SIZE, np.nan, dtype=np.float32)
    one_by_one = [nothing if row is None else row.copy() for row in made.each(range(len(CLIENTS) - 1, -1, -1))]
    seen["each"] = np.array(one_by_one if job.is_server else [])
    regions = len(job._broadcasts)
    passed = [(position, vector.copy()) for position, vector in made.everywhere()]
    seen["positions"], seen["everywhere"] = (np.array(values) for values in zip(*passed, strict=True))
    seen["regions"] = np.array([memory.nbytes for memory in job._broadcasts[regions:]])
    seen["products"] = made.pairwise(inner_products, lambda columns: CENTER[columns], SIZE)
    seen["differences"] = made.pairwise(absolute_differences, lambda columns: CENTER[columns], SHORT)
    return seen


def main(folder: str) -> None:
    rows.MOST_COLUMNS, buffers.CHUNK_ELEMENTS = COLUMNS, CHUNK
    for ranks, ranks_a_node in JOBS:
        part = MPI.COMM_WORLD.Split(0 if MPI.COMM_WORLD.Get_rank() < ranks else MPI.UNDEFINED)
        if part != MPI.COMM_NULL:
            job = World(MPI.Intracomm(part), ranks_a_node)
            np.savez(Path(folder, f"{ranks}-{job.nodes}-{job.rank}.npz"), **look(job))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1])
