"""`mpirun -n 16 python -m fedmpi.doctor`: what does a job get, and what is wrong with it?

Start it like the experiment. It prints which MPI, nodes, cores, GPUs and shared memory the ranks have, and how fast
they exchange models. For every problem it says what to do. Exit status 1: there are problems.
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
from fedmpi.options import spans
from fedmpi.streams import outlast

if TYPE_CHECKING:
    from fedmpi.mpi.world import World

#: Parameters of the model that is exchanged.
PARAMETERS = 1_000_000
REPETITIONS = 5
#: Memory in /dev/shm that MPI libraries need per rank. With less, MPICH crashes.
SHARED_MEMORY_A_RANK = 8 << 20
#: Minimum time before the time limit, and free space on the disk, for a small experiment.
LEAST_SECONDS, LEAST_DISK = 600, 100 << 20
#: Environment variables of launchers: number of processes, and number of this process.
LAUNCHERS = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Rank:
    """Facts about a rank.

    Attributes:
        node: the first rank of its node.
        host: name of its node.
        trains: whether it trains clients.
        cores: cores that it may use.
        gpus: names of the visible GPUs.
        device: the device that it trains on.
        physical: identity of the GPU, independent of the ranks' numbering; empty: none, or unknown.
        omp_threads: value of OMP_NUM_THREADS; empty: not set.
        shared_memory, shared_free: total and free bytes of /dev/shm; -1: there is none.
        versions: of the libraries.
        transport: what can be seen of MPI's transport (`fedmpi.mpi.transport`).
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
    transport: str


@dataclass(frozen=True)
class Rates:
    """Seconds for broadcasting a model of `PARAMETERS`, and for the mean of one model per rank."""

    broadcast: float
    mean: float


def look(world: World) -> list[Rank]:
    """The facts about every rank; a collective."""
    import torch

    from fedmpi.mpi.devices import gpu_uuid, pick_device
    from fedmpi.mpi.transport import transport

    device = pick_device(world, "auto", server_too=False)
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
        physical=gpu_uuid(device),
        omp_threads=os.environ.get("OMP_NUM_THREADS", ""),
        shared_memory=size,
        shared_free=free,
        versions={
            "fedmpi": __version__,
            "Python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "h5py", "mpi4py")},
        },
        transport=transport(),
    )
    return [Rank(**json.loads(text)) for text in world.gather_text(json.dumps(asdict(mine)))]


def measure(world: World) -> Rates:
    """How fast ranks exchange models, as the median of several times; a collective, for nodes with enough memory."""
    vector, took = np.zeros(PARAMETERS, dtype=np.float32), []
    for _ in range(REPETITIONS):
        world.begin_round()
        world.meet()
        began = time.perf_counter()
        world.broadcast(vector)
        arrived = time.perf_counter()
        mean = world.shared_mean(1, PARAMETERS)
        mean.rows.fill(0)
        mean.masses[:] = mean.terms[:] = 1
        mean.form(world.size)
        took.append((arrived - began, time.perf_counter() - arrived))
    return Rates(*np.median(took, axis=0).tolist())


def lonely(size: int, environment: Mapping[str, str]) -> tuple[int, bool]:
    """The number of processes of a launcher that each have an MPI size of 1 (0: no problem).

    Returns: The number, and whether this process is the first of them, which prints for all.
    """
    for started, number in LAUNCHERS:
        if size == 1 and int(environment.get(started, 1)) > 1:
            return int(environment[started]), int(environment.get(number, 0)) == 0
    return 0, True


def problems(ranks: Sequence[Rank], threads: int, output: Path, seconds_left: float | None) -> Iterator[str]:
    """The problems and what to do about them, one line each.

    Args:
        threads: CPU threads per rank.
        output: the results file that will be written.
        seconds_left: seconds until the job's time limit; None: there is none.
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
        # A rank that may only use these cores.
        crowd = sum(set(rank.cores) <= set(cores) for rank in on_cpu)
        if crowd * threads > len(cores):
            yield (
                f"{name}: {crowd} ranks that train, with {threads} threads each, share {_counted(len(cores), 'core')}"
                f" ({spans(cores)}): start fewer ranks there, or ask for more cores (srun --cpus-per-task;"
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
    """Whether models can be exchanged in a node's /dev/shm: 8 bytes per number and rank, and some for the results."""
    return not 0 <= ranks[0].shared_free < 8 * PARAMETERS * (len(ranks) + 2)


def tell(
    ranks: Sequence[Rank], rates: Rates | None, library: str, transports: Sequence[str], limits: Sequence[str]
) -> Iterator[str]:
    """The facts about the job, as lines."""
    yield ", ".join(f"{name} {number}" for name, number in ranks[0].versions.items())
    yield library
    yield from (f"MPI transport of {line}" for line in transports)
    nodes, trainers = _nodes(ranks), sum(rank.trains for rank in ranks)
    yield f"{_counted(len(ranks), 'rank')} on {_counted(len(nodes), 'node')}, {trainers} of them for training"
    yield from limits
    for first in nodes:
        count = sum(rank.node == first.node for rank in ranks)
        memory = "no /dev/shm"
        if first.shared_memory >= 0:
            memory = f"/dev/shm {_bytes(first.shared_memory)}, {_bytes(first.shared_free)} free"
        yield f"node {first.host}: {_counted(count, 'rank')}, {_counted(len(first.gpus), 'GPU')}, {memory}"
    for number, rank in enumerate(ranks):
        gpu = f" ({rank.physical})" if rank.physical else ""
        role = f"trains on {rank.device}{gpu}" if rank.trains else "server"
        yield f"rank {number} on {rank.host}: {role}, {_counted(len(rank.cores), 'core')} ({spans(rank.cores)})"
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
    """A line about the Slurm job, if there is one, and its remaining seconds."""
    if "SLURM_JOB_ID" not in environment:
        return [], None
    end = job_end(environment)
    left = None if end is None else end - time.time()
    limits = {"SLURM_NTASKS": "tasks", "SLURM_CPUS_PER_TASK": "cores per task", "SLURM_MEM_PER_NODE": "MiB per node"}
    known = {what: environment[name] for name, what in limits.items() if name in environment}
    facts = [f"{count} {what.replace('s', '', 1) if count == '1' else what}" for what, count in known.items()]
    time_left = f"{left / 60:.0f} min left" if left is not None else "time limit unknown"
    return [f"Slurm job {environment['SLURM_JOB_ID']}: {', '.join([*facts, time_left])}"], left


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'' if len(numbers) == 1 else 's'} {spans(numbers)}"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count >> 20} MiB"


def clean() -> int:
    """Remove files of this user's killed jobs from this node's shared memory; returns the exit status.

    It does not use MPI, which may not start before.
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
        from fedmpi.mpi.transport import by_ranks
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
                " srun: start the ranks with the mpirun of that library, or with srun --mpi=pmi2 (MPICH) or"
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
        for line in tell(ranks, rates, mpi_version(), by_ranks([rank.transport for rank in ranks]), limits):
            print(line)
        for problem in found:
            print(f"problem: {problem}")
        print(f"{_counted(len(found), 'problem')} found" if found else "no problem found", flush=True)
    sys.exit(bool(found))


if __name__ == "__main__":
    outlast()
    main()
