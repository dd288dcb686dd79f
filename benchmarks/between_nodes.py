"""fedmpi's broadcast and mean between nodes, compared with plain MPI: mpirun ... python -m benchmarks.between_nodes

Run it on at least two nodes. For each number of parameters it measures fedmpi's broadcast and MPI_Bcast of a float32
vector, then fedmpi's mean and MPI_Reduce of float32 and of float64 vectors, in turn. The plain sums of floats are not
exact. Prints a table in Markdown: medians in milliseconds, and the median of the ratios of pairs with their range.

All ranks start a collective at the same moment of rank 0's clock. Its time lasts until the last rank has left it. In
rows "after WAIT s", the other ranks wait so long for rank 0 to begin a broadcast, and rank 0 for them to begin a
mean; only the time after that counts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.federation.mean import WeightedMean
from fedmpi.mpi.world import World
from fedmpi.training.block import Block

# Seconds until all ranks know when a collective starts.
LEAD = 0.06
ROUND_TRIPS = 20


class Stopwatch:
    """Times collectives on rank 0's clock."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._ahead = 0.0
        word = np.empty(1)
        for rank in range(1, comm.Get_size()):  # the shortest of some round trips tells how far a clock is ahead
            best = np.inf
            for _ in range(ROUND_TRIPS):
                if comm.Get_rank() == 0:
                    comm.Recv(word, rank)
                    comm.Send(np.array([time.perf_counter()]), rank)
                elif comm.Get_rank() == rank:
                    asked = time.perf_counter()
                    comm.Send(word, 0)
                    comm.Recv(word, 0)
                    answered = time.perf_counter()
                    if answered - asked < best:
                        best, self._ahead = answered - asked, (asked + answered) / 2 - word[0]

    def time(self, run: Callable[[], object], waits: bool, wait: float) -> float:
        """Seconds from the start of the last rank to the end of the last rank.

        Args:
            run: the collective.
            waits: whether this rank waits for the others, which start after `wait` seconds.
        """
        start = np.array([time.perf_counter() + LEAD])
        self._comm.Bcast(start)
        time.sleep(max(start[0] + self._ahead - time.perf_counter(), 0))
        if wait and not waits:
            time.sleep(max(start[0] + wait + self._ahead - time.perf_counter(), 0))
        run()
        ended = time.perf_counter() - self._ahead
        last: float = self._comm.allreduce(ended, op=MPI.MAX)
        return last - start[0] - wait


def measure(world: World, watch: Stopwatch, size: int, wait: float, repeats: int) -> dict[str, list[float]]:
    """Seconds of each collective, one per repeat; the first repeat is left out."""
    vector, one = torch.randn(size) * 0.01, Block(np.array([0]), np.array([1]), np.array([1]))
    received = np.empty(size, np.float32)
    floats = {dtype: (vector.numpy().astype(dtype), np.empty(size, dtype)) for dtype in ("float32", "float64")}
    model = vector
    found: dict[str, list[float]] = {}

    def sum_up() -> None:
        nonlocal model
        model = mean.reduce()

    for repeat in range(-1, repeats):
        world.begin_round()
        mean = WeightedMean(world, size, size, len(world.workers), None, torch.device("cpu"))
        if world.is_worker:
            mean.add(vector[None], one)
        world.meet()
        down, up = not world.is_server, world.is_server
        times = {
            "broadcast": watch.time(
                lambda: world.broadcast(model.numpy() if world.is_server else received), down, wait
            ),
            "Bcast": watch.time(lambda: world.comm.Bcast(received, root=0), down, wait),
            "mean": watch.time(sum_up, up, wait),
        }
        for dtype, (own, summed) in floats.items():
            times[dtype] = watch.time(lambda own=own, summed=summed: world.comm.Reduce(own, summed), up, wait)  # type: ignore[misc]
        for name, seconds in times.items():
            if repeat >= 0:
                found.setdefault(name, []).append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.between_nodes", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000, 1_660_000, 11_170_000], metavar="N")
    parser.add_argument("--repeats", type=int, nargs="+", default=[15, 9, 3], help="of each size")
    parser.add_argument("--wait", type=float, default=0.5, help="seconds; only for the first size (default: 0.5)")
    parser.add_argument("--network", default="", help="name in the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = World()
    watch = Stopwatch(world.comm)
    if world.is_server:
        head = ["network", "parameters", "broadcast", "Bcast", "ratio", "mean", "Reduce float32", "ratio"]
        print(f"| {' | '.join([*head, 'Reduce float64', 'ratio'])} |\n|{'---|' * 10}", flush=True)
    rows = [(size, 0.0, repeats) for size, repeats in zip(options.sizes, options.repeats, strict=True)]
    rows.insert(1, (rows[0][0], options.wait, rows[0][2]))
    for size, wait, repeats in rows:
        found = measure(world, watch, size, wait, repeats)
        ms = {name: f"{1e3 * np.median(seconds):.3g}" for name, seconds in found.items()}

        def ratio(ours: str, plain: str, found: dict[str, list[float]] = found) -> str:
            ratios = np.array(found[ours]) / found[plain]
            return f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"

        cells = [f"{size:,}" + (f" after {wait} s" if wait else ""), ms["broadcast"], ms["Bcast"]]
        cells += [ratio("broadcast", "Bcast"), ms["mean"], ms["float32"], ratio("mean", "float32")]
        cells += [ms["float64"], ratio("mean", "float64")]
        if world.is_server:
            print(f"| {options.network} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
