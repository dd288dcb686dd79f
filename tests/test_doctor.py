"""What the doctor finds: problems that are made up, and this machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fedmpi import doctor
from fedmpi.doctor import Rank
from tests.support.mpi import mpirun

VERSIONS = {"fedmpi": "0.2.0", "torch": "2.9.0"}
CPU = Rank(0, "a", True, list(range(8)), [], "cpu", "", "", 1 << 30, 1 << 30, VERSIONS, "device ch4:ofi")
SERVER = replace(CPU, trains=False)
HEALTHY = [SERVER, *[CPU] * 4]


def gpus(count: int, *chosen: int, uuids: str = "") -> list[Rank]:
    """A server, and a rank for each of the chosen GPUs of so many that it sees."""
    sees = replace(CPU, gpus=["H200"] * count)
    uuid = list(uuids) or [f"GPU-{number}" for number in chosen]
    return [
        replace(sees, trains=False),
        *(replace(sees, device=f"cuda:{g}", physical=u) for g, u in zip(chosen, uuid, strict=True)),
    ]


def found(ranks: list[Rank], folder: Path, threads: int = 1, seconds_left: float | None = None) -> list[str]:
    return list(doctor.problems(ranks, threads, folder / "runs" / "run.h5", seconds_left))


@pytest.mark.parametrize(
    "ranks",
    [
        HEALTHY,
        [SERVER, *[replace(CPU, omp_threads="1")] * 8],
        [SERVER, *(replace(CPU, cores=[core]) for core in range(8))],
        [replace(CPU, shared_memory=-1, shared_free=-1)],
        gpus(2, 0, 1),
        gpus(2, 0, 1, 0, 1),
        gpus(1, 0, 0, uuids="xy"),
        [replace(SERVER, gpus=["H200"]), CPU],
        [SERVER, CPU, *[replace(CPU, node=2, host="b")] * 2],
    ],
)
def test_no_problem(ranks: list[Rank], tmp_path: Path) -> None:
    """Also: ranks bound to cores of their own; no /dev/shm; ranks that share GPUs; one GPU a task; a server's GPU."""
    assert found(ranks, tmp_path, seconds_left=3600) == []


@pytest.mark.parametrize(
    ("ranks", "threads", "message"),
    [
        ([SERVER, *[CPU] * 9], 1, r"node a: 9 ranks .* share 8 cores \(0-7\): start fewer ranks there, or ask for"),
        (HEALTHY, 3, r"4 ranks that train, with 3 threads each, share 8 cores"),
        ([SERVER, *[replace(CPU, cores=[5])] * 2], 1, r"2 ranks .* share 1 core \(5\)"),
        ([CPU, replace(CPU, cores=[2, 3]), replace(CPU, cores=[2]), replace(CPU, cores=[3, 2])], 1, r"3 .* \(2-3\)"),
        ([replace(one, shared_memory=39 << 20) for one in HEALTHY], 1, r"/dev/shm has 39 MiB, .* 40 for 5 ranks"),
        ([replace(one, shared_free=9 << 20) for one in HEALTHY], 1, r"only 9 MiB of /dev/shm are free"),
        (gpus(4, 0, 1), 1, r"node a: 4 GPUs are to be seen, and 2 used: start at least 4 ranks there"),
        ([*gpus(2, 0, 1), CPU], 1, r"^rank 3 of those that train see no GPU while others do"),
        ([*gpus(1, 0), *[replace(CPU, node=2, host="b")] * 2], 1, r"^ranks 2-3 of those that train see no GPU"),
        (
            [SERVER, replace(CPU, versions=VERSIONS | {"torch": "2.8.0"}, host="b")],
            1,
            r"^torch is 2.9.0 on a, .* on b:",
        ),
        (
            [replace(one, omp_threads="8") for one in HEALTHY],
            1,
            r"^OMP_NUM_THREADS = 8 is not heeded: .* --threads 1",
        ),
    ],
)
def test_problems(ranks: list[Rank], threads: int, message: str, tmp_path: Path) -> None:
    """Oracle: one problem each, made up."""
    (problem,) = found(ranks, tmp_path, threads)
    assert re.search(message, problem)


def test_problems_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = found(HEALTHY, tmp_path, seconds_left=90)
    assert problem == "the job ends in 90 s: ask for more time (sbatch --time)"
    (tmp_path / "runs").write_text("a file where a folder should be")
    (problem,) = found(HEALTHY, tmp_path)
    assert problem.endswith("is a file, not a folder: give another --output")
    monkeypatch.setattr(doctor, "LEAST_DISK", 1 << 60)
    (problem,) = found(HEALTHY, tmp_path / "elsewhere")
    assert re.search(r"only \d+ MiB are left on the disk", problem)


@pytest.mark.parametrize(
    ("size", "environment", "expected"),
    [
        (1, {}, (0, True)),
        (4, {"PMI_SIZE": "4", "PMI_RANK": "2"}, (0, True)),
        (1, {"PMI_SIZE": "1", "PMI_RANK": "0"}, (0, True)),
        (1, {"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, (0, True)),  # in the batch script itself
        (1, {"PMI_SIZE": "4", "PMI_RANK": "2"}, (4, False)),
        (1, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, (4, True)),
        (1, {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}, (3, False)),
    ],
)
def test_ranks_that_think_they_are_alone(size: int, environment: dict[str, str], expected: tuple[int, bool]) -> None:
    assert doctor.lonely(size, environment) == expected


def test_this_machine(tmp_path: Path) -> None:
    """Oracle: two ranks without a problem; a job's facts, and a problem, as its exit status says."""
    output = str(tmp_path / "run.h5")
    job = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_JOB_END_TIME": "99999999999", "OMP_NUM_THREADS": "1"}
    fine = mpirun(2, "-m", "fedmpi.doctor", "--output", output, **job)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert "\nMPI transport of ranks 0-1: " in fine.stdout
    assert "2 ranks on 1 node, 1 of them for training\nSlurm job 4711: 2 tasks, " in fine.stdout
    assert fine.stdout.endswith("\nno problem found\n")
    alone = mpirun(0, "-m", "fedmpi.doctor", "--output", output, SLURM_STEP_NUM_TASKS="3", SLURM_PROCID="0")
    assert alone.returncode == 1
    assert alone.stdout.startswith("problem: 3 ranks were started, and each thinks that it is alone.")
    assert not list(tmp_path.iterdir())
