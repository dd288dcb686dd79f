"""`mpirun -n 16 python -m fedmpi.doctor`: what did this job get, and what is wrong with it?

Started as the experiment will be, it says in seconds which MPI, nodes, cores, GPUs and shared memory the ranks have
and how fast they exchange models; and of every problem that it finds, what to do about it. Exit status 1: there are
problems.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmpi import __version__
from fedmpi.errors import NO_MPI, BadInput
from fedmpi.experiment.job_limit import job_end
from fedmpi.mpi import leftovers
from fedmpi.streams import outlast

if TYPE_CHECKING:
    from fedmpi.mpi.world import World

#: Of the model that is sent to and fro.
PARAMETERS = 1_000_000
REPETITIONS = 5
#: What MPI libraries take of /dev/shm for a rank; with less MPICH crashes.
SHARED_MEMORY_A_RANK = 8 << 20
#: Before the time limit and on the disk: with less not even a small experiment gets anywhere.
LEAST_SECONDS, LEAST_DISK = 600, 100 << 20
#: How launchers tell a process how many they have started, and its number.
LAUNCHERS = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Rank:
    """What a rank knows of itself.

    Attributes:
        node: the first rank of its node.
        host: its node's name.
        trains: whether it hosts clients.
        cores: on which it may run.
        gpus: those that it sees, by name.
        device: what it trains on.
        physical: which GPU that is, however the ranks count them; empty: none, or not known.
        omp_threads: what OMP_NUM_THREADS says; empty: nothing.
        shared_memory, shared_free: bytes of /dev/shm, in all and free; -1: there is none.
        versions: of the libraries.
    """

    node: int
    host: str
    trains: bool
    cores: list[int]
    gpus: list[str]
    device: str
    physical: str
    omp_threads: str
    shared_memory: int
    shared_free: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Rates:
    """Seconds that it takes to broadcast a model of `PARAMETERS`, and to form the mean of one from each rank."""

    broadcast: float
    mean: float


def look(world: World) -> list[Rank]:
    """What every rank knows of itself; a collective."""
    import torch

    from fedmpi.mpi.devices import pick_device

    device = pick_device(world, "auto", server_too=False)
    is_gpu = device.type == "cuda"
    try:
        memory = os.statvfs("/dev/shm")
        size, free = memory.f_blocks * memory.f_frsize, memory.f_bavail * memory.f_frsize
    except OSError:
        size = free = -1
    mine = Rank(
        node=world.node.bcast(world.rank),
        host=world.host,
        trains=world.is_worker,
        cores=sorted(os.sched_getaffinity(0)),
        gpus=[torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        device=str(device),
        physical=str(getattr(torch.cuda.get_device_properties(device), "uuid", "")) if is_gpu else "",
        omp_threads=os.environ.get("OMP_NUM_THREADS", ""),
        shared_memory=size,
        shared_free=free,
        versions={
            "fedmpi": __version__,
            "Python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "h5py", "mpi4py")},
        },
    )
    return [Rank(**json.loads(text)) for text in world.gather_text(json.dumps(asdict(mine)))]


def measure(world: World) -> Rates:
    """How fast ranks exchange models, the median of some times; a collective, for nodes that have room."""
    from fedmpi.mpi.shared_mean import FixedPoint

    vector, took = np.zeros(PARAMETERS, dtype=np.float32), []
    for _ in range(REPETITIONS):
        world.begin_round()
        world.meet()
        began = time.perf_counter()
        world.broadcast(vector)
        arrived = time.perf_counter()
        mean = world.shared_mean(1, PARAMETERS, ((PARAMETERS, FixedPoint(2.0**-43)),))
        mean.rows.fill(0)
        mean.masses[:] = mean.terms[:] = 1
        mean.form(world.size)
        took.append((arrived - began, time.perf_counter() - arrived))
    return Rates(*np.median(took, axis=0).tolist())


def lonely(size: int, environment: Mapping[str, str]) -> tuple[int, bool]:
    """How many processes a launcher has started of whom each thinks that it is alone (0: all is well).

    Returns:
        That number, and whether this is the first of them, which speaks for all.
    """
    for started, number in LAUNCHERS:
        if size == 1 and int(environment.get(started, 1)) > 1:
            return int(environment[started]), int(environment.get(number, 0)) == 0
    return 0, True


def problems(ranks: Sequence[Rank], threads: int, output: Path, seconds_left: float | None) -> Iterator[str]:
    """What is wrong, and what to do about it, a line each.

    Args:
        threads: CPU threads that a rank will have.
        output: the results file that will be written.
        seconds_left: to the job's time limit; None: there is none.
    """
    from fedmpi.results.writer import check_writable

    for first in _nodes(ranks):
        yield from _problems_of_node(f"node {first.host}", [r for r in ranks if r.node == first.node], threads)
    blind = [number for number, rank in enumerate(ranks) if rank.trains and not rank.gpus]
    if blind and any(rank.gpus for rank in ranks if rank.trains):
        yield (
            f"{_listed('rank', blind)} of those that train see no GPU while others do, and would train on the CPU:"
            " ask for GPUs on every node (--gpus-per-node), and look at CUDA_VISIBLE_DEVICES there"
        )
    for name, of_server in ranks[0].versions.items():
        others = sorted({rank.host for rank in ranks if rank.versions[name] != of_server})
        if others:
            yield f"{name} is {of_server} on {ranks[0].host}, but not on {', '.join(others)}: use one environment"
    heard = ranks[0].omp_threads
    if heard and heard != str(threads):
        yield f"OMP_NUM_THREADS = {heard} is not heeded: a rank has --threads {threads}; say here, and there, which"
    try:
        check_writable(output, overwrite=True)
        free = shutil.disk_usage(next(parent for parent in output.resolve().parents if parent.exists())).free
        if free < LEAST_DISK:
            yield f"only {free >> 20} MiB are left on the disk of {output}: make room, or give another --output"
    except BadInput as error:
        yield f"{error}: give another --output"
    if seconds_left is not None and seconds_left < LEAST_SECONDS:
        yield f"the job ends in {seconds_left:.0f} s: ask for more time (sbatch --time)"


def _problems_of_node(name: str, ranks: Sequence[Rank], threads: int) -> Iterator[str]:
    trainers = [rank for rank in ranks if rank.trains]
    on_cpu = [rank for rank in trainers if rank.device == "cpu"]
    for cores in sorted({tuple(rank.cores) for rank in on_cpu}, key=len):
        # A rank that may run on no other cores than these.
        crowd = sum(set(rank.cores) <= set(cores) for rank in on_cpu)
        if crowd * threads > len(cores):
            yield (
                f"{name}: {crowd} ranks that train, with {threads} threads each, share {_counted(len(cores), 'core')}"
                f" ({_ranges(cores)}): start fewer ranks there, or ask for more cores (srun --cpus-per-task;"
                " mpirun --bind-to none, if it binds ranks to too few)"
            )
            break
    size, needed = ranks[0].shared_memory, SHARED_MEMORY_A_RANK * len(ranks)
    if 0 <= size < needed:
        yield (
            f"{name}: /dev/shm has {size >> 20} MiB, and MPI needs about {needed >> 20} for {len(ranks)} ranks:"
            " enlarge it (in a container: --shm-size), or start fewer ranks there"
        )
    elif not _has_room(ranks):
        yield (
            f"{name}: only {ranks[0].shared_free >> 20} MiB of /dev/shm are free, too little for a small model:"
            " remove what jobs that were killed have left there, or enlarge it"
        )
    seen = max((len(rank.gpus) for rank in trainers), default=0)
    used = len({rank.physical or rank.device for rank in trainers if rank.device != "cpu"})
    if used < seen:
        yield f"{name}: {seen} GPUs are to be seen, and {used} used: start at least {seen} ranks there that train"


def _has_room(ranks: Sequence[Rank]) -> bool:
    """Whether models can be exchanged in a node's /dev/shm: 8 bytes a number and rank, and some for the results."""
    return not 0 <= ranks[0].shared_free < 8 * PARAMETERS * (len(ranks) + 2)


def tell(ranks: Sequence[Rank], rates: Rates | None, library: str, limits: Sequence[str]) -> Iterator[str]:
    """What the job has got, line by line."""
    yield ", ".join(f"{name} {number}" for name, number in ranks[0].versions.items())
    yield library
    nodes, trainers = _nodes(ranks), sum(rank.trains for rank in ranks)
    yield f"{_counted(len(ranks), 'rank')} on {_counted(len(nodes), 'node')}, of which {trainers} train clients"
    yield from limits
    for first in nodes:
        count = sum(rank.node == first.node for rank in ranks)
        memory = "no /dev/shm"
        if first.shared_memory >= 0:
            memory = f"/dev/shm {_bytes(first.shared_memory)}, {_bytes(first.shared_free)} free"
        yield f"node {first.host}: {_counted(count, 'rank')}, {_counted(len(first.gpus), 'GPU')}, {memory}"
    for number, rank in enumerate(ranks):
        gpu = f" ({rank.physical})" if rank.physical else ""
        role = f"trains on {rank.device}{gpu}" if rank.trains else "serves"
        yield f"rank {number} on {rank.host}: {role}, {_counted(len(rank.cores), 'core')} ({_ranges(rank.cores)})"
    if rates:
        speed = 4 * PARAMETERS / max(rates.broadcast, 1e-9) / 1e9
        yield (
            f"a model of {PARAMETERS / 1e6:g} million parameters: broadcast in {1e3 * rates.broadcast:.2f} ms"
            f" ({speed:.1f} GB/s), mean over the ranks in {1e3 * rates.mean:.2f} ms"
        )


def _nodes(ranks: Sequence[Rank]) -> list[Rank]:
    """The first rank of each node."""
    return [rank for number, rank in enumerate(ranks) if rank.node == number]


def _slurm(environment: Mapping[str, str]) -> tuple[list[str], float | None]:
    """A line on the Slurm job, if there is one, and the seconds that are left of it."""
    if "SLURM_JOB_ID" not in environment:
        return [], None
    end = job_end(environment)
    left = None if end is None else end - time.time()
    limits = {"SLURM_NTASKS": "tasks", "SLURM_CPUS_PER_TASK": "cores per task", "SLURM_MEM_PER_NODE": "MiB per node"}
    facts = [f"{environment[name]} {what}" for name, what in limits.items() if name in environment]
    time_left = f"{left / 60:.0f} min left" if left is not None else "time limit not known"
    return [f"Slurm job {environment['SLURM_JOB_ID']}: {', '.join([*facts, time_left])}"], left


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'' if len(numbers) == 1 else 's'} {_ranges(numbers)}"


def _ranges(numbers: Sequence[int]) -> str:
    """0-3, 8 of 0, 1, 2, 3, 8, which ascend."""
    starts = [n for n in numbers if n - 1 not in set(numbers)]
    ends = [n for n in numbers if n + 1 not in set(numbers)]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count >> 20} MiB"


def clean() -> int:
    """Remove what this user's killed jobs have left in this node's shared memory, and say so; the exit status.

    Without MPI, which may not start before.
    """
    removed, host = leftovers.remove_listed(), platform.node()
    try:
        removed += leftovers.remove_unlisted()
    except leftovers.CannotTell as reason:
        print(f"problem: node {host}: files of MPI jobs are left in /dev/shm, and {reason}: remove them by hand")
        return 1
    print(f"node {host}: removed {removed >> 10} KiB from /dev/shm")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fedmpi.doctor", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs", "run.h5"), help="results file of the experiment")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per rank of the experiment (default: 1)")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="only remove files of this user's killed jobs from /dev/shm; run it once per node",
    )
    options = parser.parse_args()
    if options.clean:
        sys.exit(clean())
    try:
        from fedmpi.mpi.world import World, mpi_version
    except (ImportError, RuntimeError) as error:
        sys.exit(f"problem: {NO_MPI.format(str(error).splitlines()[0])}")

    world = World()
    started, speaks = lonely(world.size, os.environ)
    if started:
        if speaks:
            print(
                f"problem: {started} ranks were started, and each thinks that it is alone. mpi4py uses\n"
                f"  {mpi_version()}\nwhich is not the library of this mpirun, or does not speak the protocol of this"
                " srun: start the ranks with the mpirun beside that library, or with srun --mpi=pmi2 (MPICH) or"
                " --mpi=pmix (Open MPI)",
                flush=True,
            )
        sys.exit(1)
    ranks = look(world)
    limits, seconds_left = _slurm(os.environ)
    found = list(problems(ranks, options.threads, options.output, seconds_left))
    fits = all(_has_room([rank for rank in ranks if rank.node == first.node]) for first in _nodes(ranks))
    rates = measure(world) if fits else None
    if world.is_server:
        for line in tell(ranks, rates, mpi_version(), limits):
            print(line)
        for problem in found:
            print(f"problem: {problem}")
        print(f"{_counted(len(found), 'problem')} found" if found else "no problem found", flush=True)
    sys.exit(bool(found))


if __name__ == "__main__":
    outlast()
    main()
