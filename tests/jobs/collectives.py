"""What every rank sees of the collectives, on nodes of several sizes: python collectives.py FOLDER RANKS_A_NODE...

FOLDER gets files RANKS_A_NODE-RANK.pickle; 0 for a node as it is.
"""

import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.mpi import buffers, shared
from fedmpi.mpi.world import World

CHUNK = 1000
SHAPES = [(7,), (3, 5), (0,), (1,), (CHUNK,), (CHUNK + 1,), (5, CHUNK // 2 + 3)]
calls: Counter[str] = Counter()


class Counting(MPI.Intracomm):
    """Counts the calls of its methods by name."""

    def __getattribute__(self, name: str) -> Any:
        calls[name] += 1
        return super().__getattribute__(name)


def values(rank: int, shape: tuple[int, ...], dtype: str) -> NDArray:
    """Whole numbers that tell ranks and places apart, and whose sums are exact."""
    return (np.arange(np.prod(shape, dtype=int)).reshape(shape) + 10_000 * rank).astype(dtype)


def broadcast_and_sum(job: World) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for dtype in ("float32", "float64"):
        for shape in SHAPES:
            job.begin_round()
            for _ in range(2):  # memory for sums is made, in which ranks meet
                job.sum(np.zeros(shape, dtype))
            calls.clear()
            seen[f"broadcast {dtype} {shape}"] = job.broadcast(values(job.rank, shape, dtype)).copy()
            seen[f"broadcast {dtype} {shape} calls"] = calls["Isend"], calls["Irecv"]
            buffer = values(job.rank, shape, dtype)
            calls.clear()
            job.sum(buffer)
            seen[f"sum {dtype} {shape}"] = buffer
            seen[f"sum {dtype} {shape} calls"] = calls["Iallreduce"]
    return seen


def exchange(job: World) -> dict[str, Any]:
    """Three rows of other lengths to the right neighbour and one to rank 0."""
    right, left = (job.rank + 1) % job.size, (job.rank - 1) % job.size
    lengths = (5, 2 * CHUNK + 1, 100_000)
    outgoing = [(right, values(job.rank, (length,), "float32") + number) for number, length in enumerate(lengths)]
    incoming = [(left, np.zeros(length, np.float32)) for length in lengths]
    if job.rank:
        outgoing.append((0, np.full(3, job.rank, np.float32)))
    else:
        incoming += [(rank, np.zeros(3, np.float32)) for rank in range(1, job.size)]
    job.exchange(outgoing, incoming)
    job.exchange([], [])
    return {"exchanged": [array for _, array in incoming]}


def complaint(block: Callable[[], Any]) -> tuple[str, str | None] | None:
    """The message and the option of the bad input that a block finds."""
    try:
        block()
    except BadInput as error:
        return str(error), error.option
    return None


def agree(job: World, failing: tuple[int, ...]) -> None:
    with job.agreed():
        if job.rank in failing:
            raise BadInput(f"= {job.rank}: found by rank {job.rank}", "mu")


def share(job: World) -> dict[str, Any]:
    read = [0]

    def arrays() -> dict[str, NDArray]:
        read[0] += 1
        return {
            "bytes": np.arange(5, dtype=np.uint8),
            "floats": values(0, (30, 7), "float32")[:, ::2],
            "integers": np.arange(3) + job.rank,
            "nothing": np.zeros((0, 4)),
        }

    together = shared.share(job, arrays)
    seen: dict[str, Any] = {
        "read": read[0],
        "shared": [array.copy() for array in together.values()],
        "aligned": [array.ctypes.data % 64 for array in together.values()],
    }
    job.meet()
    if job.rank == 1:
        together["floats"][3, 2] = -42
    job.meet()
    seen["written by another"] = float(together["floats"][3, 2])

    def missing() -> dict[str, NDArray]:
        raise BadInput(f"rank {job.rank} finds no file")

    seen["missing"] = complaint(lambda: shared.share(job, missing))
    real = os.statvfs
    os.statvfs = lambda path: SimpleNamespace(f_bavail=3, f_frsize=1 << 20)  # type: ignore[assignment, return-value]
    seen["fits"] = complaint(lambda: shared.share(job, lambda: {"x": np.zeros(3 << 20, np.uint8)}))
    seen["too large"] = complaint(lambda: shared.share(job, lambda: {"x": np.zeros(5 << 20, np.uint8)}))
    os.statvfs = real
    return seen


def wait_for_the_last(job: World, seconds: float) -> dict[str, Any]:
    """All but the last rank wait for it in a collective."""
    job.meet()
    waited, cpu, began = job.waiting.seconds, time.process_time(), time.perf_counter()
    if job.rank == job.size - 1:
        time.sleep(seconds)
    buffer = np.ones(10)
    job.sum(buffer)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - began,
        "waited": job.waiting.seconds - waited,
    }


def look(job: World) -> dict[str, Any]:
    buffers.CHUNK_ELEMENTS = CHUNK
    seen = broadcast_and_sum(job) | exchange(job)
    buffers.CHUNK_ELEMENTS = 1 << 28
    seen["roles"] = (job.rank, job.size, job.is_server, job.is_worker, list(job.workers))
    for failing in ((), (2,), (3, 1)):
        seen[f"agreed {failing}"] = complaint(lambda failing=failing: agree(job, failing))  # type: ignore[misc]
    seen["from server"] = job.from_server({"rank": job.rank})
    seen["texts"] = job.gather_text(f"text of {job.rank}")
    seen |= share(job)
    return seen | wait_for_the_last(job, 2.0)


def main(folder: str, *nodes: int) -> None:
    for ranks_a_node in nodes:
        job = World(Counting(MPI.COMM_WORLD), ranks_a_node or None)
        Path(folder, f"{ranks_a_node}-{job.rank}.pickle").write_bytes(pickle.dumps(look(job)))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
