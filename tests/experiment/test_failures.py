"""Whatever fails, wherever: the job ends soon, says so once, and leaves a file that opens.

Each kind of failure, each place and each role is tried. All pairs of them:
pytest -m slow tests/experiment/test_failures.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import h5py
import pytest

from fedmpi import results
from tests.support.mpi import REPOSITORY, fedmpi

PROGRAMS = str(REPOSITORY / "tests" / "jobs")
ROUNDS = 6
FAILS_IN = 3
LONGEST = 30.0  # seconds from the failure to the end of the job; on a machine that does nothing else it is 1


@dataclass
class Job:
    result: subprocess.CompletedProcess[str]
    ended: float
    path: Path

    @property
    def seconds(self) -> float:
        """From the failure on."""
        (failed,) = re.findall(r"fails at ([\d.]+)$", self.result.stderr, re.MULTILINE)[:1]
        return self.ended - float(failed)

    def report(self) -> tuple[int, str]:
        """Rank and place, as the only report says them."""
        found = re.findall(r"^fedmpi: failed on rank (\d+) of \d+: (.*)$", self.result.stderr, re.MULTILINE)
        assert len(found) == 1, f"exit status {self.result.returncode}\n{self.result.stderr}"
        return int(found[0][0]), found[0][1]

    @property
    def tracebacks(self) -> int:
        return self.result.stderr.count("Traceback (most recent call last)")


def run(
    folder: Path,
    size: int,
    kind: str,
    ranks: tuple[int, ...],
    phase: str,
    server_sleeps: float = 0.0,
    launcher: str | None = None,
    **environment: str,
) -> Job:
    path = folder / "run.h5"
    how = f"--algorithm faulty.Faulty --algorithm.kind {kind} --algorithm.phase {phase} --algorithm.at {FAILS_IN}"
    how += f" --algorithm.server_sleeps {server_sleeps} --algorithm.ranks"
    if phase == "data":
        how = f"--partition faulty.Shares --partition.kind {kind} --partition.ranks"
    result = fedmpi(
        size,
        *f"--model LogisticRegression --clients 6 --local.epochs 1 --rounds {ROUNDS} --output {path}".split(),
        *how.split(),
        str(list(ranks)),
        launcher=launcher,
        PYTHONPATH=f"{REPOSITORY}:{PROGRAMS}",
        **environment,
    )
    return Job(result, time.time(), path)


# Where it fails, as a report says it.
PLACES = {
    "constructor": r"reading the command line",
    "data": r"setting up",
    "setup": r"setting up",
    "loss": rf"round {FAILS_IN}, clients? \d(, \d)*, training",
    "round": rf"round {FAILS_IN}, aggregation, or another step of the algorithm",
    "evaluate": rf"round {FAILS_IN}, evaluation",
    "write": rf"round {FAILS_IN}, writing results",
}
LAST_LINES = {
    "RuntimeError": "RuntimeError: as I was told",
    "MemoryError": "MemoryError: as I was told",
    "exit": "SystemExit: 0",
    "KeyboardInterrupt": "KeyboardInterrupt",
}


CELLS = [
    (3, "RuntimeError", (2,), "constructor"),
    (2, "KeyboardInterrupt", (0,), "data"),
    (2, "exit", (1,), "setup"),
    (3, "RuntimeError", (1, 2), "loss"),
    (3, "exit", (2,), "round"),
    (2, "BadInput", (0, 1), "round"),
    (3, "KeyboardInterrupt", (1,), "evaluate"),
    (2, "MemoryError", (0,), "evaluate"),
    (2, "RuntimeError", (0,), "write"),
    (0, "RuntimeError", (0,), "loss"),
    (0, "KeyboardInterrupt", (0,), "setup"),
]
KILLED = [((0,), "round"), ((2,), "round"), ((1,), "setup"), ((0,), "write")]
#: Further ones of two ranks and of one.
FEWER_RANKS = [
    (2, "exit", (0,), "setup"),
    (2, "RuntimeError", (0,), "round"),
    (2, "exit", (0, 1), "round"),
    (2, "RuntimeError", (0, 1), "evaluate"),
    (0, "exit", (0,), "evaluate"),
]
# The server trains nobody, nobody but the server writes, and a constructor that exits is bad input.
EVERYWHERE = [
    (3, kind, ranks, phase)
    for kind, ranks, phase in product(
        ("RuntimeError", "exit", "KeyboardInterrupt", "MemoryError", "kill"), ((0,), (2,), (0, 1, 2)), PLACES
    )
    if (phase != "loss" or ranks != (0,))
    and (phase != "write" or ranks == (0,))
    and (kind, phase) != ("exit", "constructor")
]


@pytest.mark.parametrize(
    ("size", "kind", "ranks", "phase"),
    [
        *CELLS,
        *[(3, "kill", ranks, phase) for ranks, phase in KILLED],
        *[pytest.param(*cell, marks=pytest.mark.slow) for cell in [*FEWER_RANKS, *EVERYWHERE] if cell not in CELLS],
    ],
)
def test_failure(size: int, kind: str, ranks: tuple[int, ...], phase: str, tmp_path: Path) -> None:
    fails(run(tmp_path, size, kind, ranks, phase), kind, ranks, phase)


@pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="needs Debian's Open MPI: apt-get install openmpi-bin")
@pytest.mark.parametrize(
    ("kind", "ranks", "phase"),
    [
        ("RuntimeError", (2,), "loss"),
        ("kill", (1,), "round"),
        *[pytest.param(*cell[1:], marks=pytest.mark.slow) for cell in EVERYWHERE],
    ],
)
def test_failure_under_open_mpi(kind: str, ranks: tuple[int, ...], phase: str, tmp_path: Path) -> None:
    job = run(tmp_path, 3, kind, ranks, phase, launcher="mpirun.openmpi", MPI4PY_MPIABI="openmpi")
    fails(job, kind, ranks, phase)
    if job.path.exists():
        assert results.open(job.path).environment["mpi"].startswith("Open MPI")


def fails(job: Job, kind: str, ranks: tuple[int, ...], phase: str) -> None:
    """The job has ended as it should."""
    assert job.result.returncode not in (0, 2)
    assert job.seconds < LONGEST
    is_early = phase in ("constructor", "data", "setup")
    if kind == "kill":
        assert job.tracebacks <= 1, "of a rank that has noticed that another is gone"
        if not is_early:
            becomes_killed(job.path)
            finished = list(results.open(job.path).rounds.get("round", ()))
            assert finished == list(range(1, FAILS_IN))[: len(finished)]
    else:
        rank, place = job.report()
        assert rank in ranks
        if kind == "BadInput":
            assert re.fullmatch(f"{PLACES[phase]}: kind is not what it should be", place)
        else:
            assert re.fullmatch(PLACES[phase], place)
            assert LAST_LINES[kind] in job.result.stderr.splitlines()
        assert job.tracebacks == (kind != "BadInput"), "one line says it all"
        if not is_early:
            _holds_the_finished_rounds(job, "failed")
    lock = [".run.h5.lock"] if kind == "kill" else []  # the next one takes it over
    assert {path.name for path in job.path.parent.iterdir()} == {*lock, *["run.h5"][is_early:]}


def test_training_that_diverges_at_some(tmp_path: Path) -> None:
    """Oracle: the run goes on without the clients of that rank, of two that train, in that round."""
    job = run(tmp_path, 3, "nan", (1,), "loss")
    assert job.result.returncode == 0, job.result.stderr
    lost = results.open(job.path).rounds["diverged_clients"]
    assert 0 < lost[FAILS_IN - 1] < 6
    assert lost.sum() == lost[FAILS_IN - 1]


def test_training_that_diverges_everywhere(tmp_path: Path) -> None:
    job = run(tmp_path, 3, "nan", (1, 2), "loss")
    assert job.result.returncode not in (0, 2)
    _, place = job.report()
    assert re.match(rf"round {FAILS_IN}, .*: the training of all 6 clients diverged, .*; lower --local.lr", place)
    assert job.tracebacks == 0  # nothing is wrong with the program
    _holds_the_finished_rounds(job, "failed")


def test_full_disk(tmp_path: Path) -> None:
    """The file that is there stays as it was, which cannot say what happened: the report does."""
    job = run(tmp_path, 2, "full", (0,), "write")
    assert job.result.returncode not in (0, 2)
    assert job.seconds < LONGEST
    rank, _ = job.report()
    assert rank == 0
    assert job.tracebacks == 1
    assert "The results could not be written: [Errno 27] File too large" in job.result.stderr
    becomes_killed(job.path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_server_that_does_not_listen(tmp_path: Path) -> None:
    job = run(tmp_path, 3, "RuntimeError", (2,), "loss", server_sleeps=60)
    assert job.result.returncode not in (0, 2)
    assert job.seconds < LONGEST
    rank, place = job.report()
    assert rank == 2
    assert re.fullmatch(PLACES["loss"], place)
    assert job.tracebacks == 1
    becomes_killed(job.path)


def becomes_killed(path: Path) -> None:
    """The launcher may return before the system has forgotten the processes that it killed."""
    deadline = time.monotonic() + 10
    while results.open(path).status == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert results.open(path).status == "killed"


def _holds_the_finished_rounds(job: Job, status: str) -> None:
    assert f"The results so far are in {job.path}" in job.result.stderr
    with h5py.File(job.path) as file:
        assert file.attrs["status"] == status
        assert file["rounds/round"][:].tolist() == list(range(1, FAILS_IN))
        assert {len(column) for column in file["rounds"].values()} == {FAILS_IN - 1}
    assert results.open(job.path).status == status
    assert [path.name for path in job.path.parent.iterdir()] == ["run.h5"]


def test_keeping_a_broadcast_vector(tmp_path: Path) -> None:
    """It would be overwritten in the next round: an error rather than a wrong result."""
    options = f"--algorithm methods.Keeping --model LogisticRegression --rounds 2 --output {tmp_path / 'run.h5'}"
    result = fedmpi(2, *options.split(), PYTHONPATH=f"{REPOSITORY}:{PROGRAMS}")
    assert result.returncode == 1
    assert "previous is a broadcast vector, which is valid only in its round: keep its clone()" in result.stderr


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_gpu_with_too_little_memory(ranks: int, tmp_path: Path) -> None:
    """Oracle: one line, which says what to set."""
    options = "--clients 4 --cohort 2 --rounds 1 --model LogisticRegression --algorithm tests.jobs.methods.Hungry"
    ended = fedmpi(ranks, *options.split(), "--output", tmp_path / "run.h5", PYTHONPATH=str(REPOSITORY))
    assert ended.returncode == 1
    said = (
        r"^fedmpi: failed on rank \d of \d: round 1, client \d.*: the GPU has too little memory \(Tried to allocate"
    )
    said += r" 2.00 GiB\); lower --local.vectorize or --local.batch_size \(--local.accumulate keeps the"
    said += r" size of a step\), or start fewer ranks per GPU$"
    assert len(re.findall(said, ended.stderr, re.MULTILINE)) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
