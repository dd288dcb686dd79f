"""Whatever fails, wherever: the job ends soon, says so once, and leaves a file that opens."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest

from fedmpi import results
from tests.launch import REPOSITORY, fedmpi

PROGRAMS = str(REPOSITORY / "tests" / "programs")
ROUNDS = 6
FAILS_IN = 3
LONGEST = 30.0  # seconds; a job that goes well takes 5, on a slow machine with two cores


@dataclass
class Job:
    result: subprocess.CompletedProcess[str]
    seconds: float
    path: Path

    def report(self) -> tuple[int, str]:
        """Rank and place, as the only report says them."""
        found = re.findall(r"^fedmpi: failed on rank (\d+) of \d+: (.*)$", self.result.stderr, re.MULTILINE)
        assert len(found) == 1, f"exit status {self.result.returncode} after {self.seconds} s\n{self.result.stderr}"
        return int(found[0][0]), found[0][1]

    @property
    def tracebacks(self) -> int:
        return self.result.stderr.count("Traceback (most recent call last)")


def run(folder: Path, size: int, kind: str, ranks: tuple[int, ...], phase: str, server_sleeps: float = 0.0) -> Job:
    path = folder / "run.h5"
    began = time.monotonic()
    result = fedmpi(
        size,
        *f"--model LogisticRegression --clients 6 --local.epochs 1 --rounds {ROUNDS} --output {path}".split(),
        *f"--algorithm faulty.Faulty --algorithm.kind {kind} --algorithm.phase {phase}".split(),
        *f"--algorithm.at {FAILS_IN} --algorithm.server_sleeps {server_sleeps}".split(),
        *["--algorithm.ranks", str(list(ranks))],
        PYTHONPATH=f"{REPOSITORY}:{PROGRAMS}",
    )
    return Job(result, time.monotonic() - began, path)


# Where it fails, as a report says it.
PLACES = {
    "constructor": r"reading the command line",
    "setup": r"setting up",
    "loss": rf"round {FAILS_IN}, clients? \d(, \d)*, training",
    "round": rf"round {FAILS_IN}, between two steps of the algorithm",
    "evaluate": rf"round {FAILS_IN}, between two steps of the algorithm",
}
LAST_LINES = {
    "RuntimeError": "RuntimeError: as I was told",
    "MemoryError": "MemoryError: as I was told",
    "exit": "SystemExit: 0",
    "KeyboardInterrupt": "KeyboardInterrupt",
    "BadInput": "fedmpi.errors.BadInput: kind is not what it should be",
}


@pytest.mark.parametrize(
    ("size", "kind", "ranks", "phase"),
    [
        (3, "RuntimeError", (2,), "constructor"),
        (3, "RuntimeError", (2,), "setup"),
        (3, "RuntimeError", (1, 2), "loss"),
        (2, "RuntimeError", (0,), "round"),
        (2, "RuntimeError", (0, 1), "evaluate"),
        (2, "exit", (0,), "setup"),
        (3, "exit", (2,), "round"),
        (3, "exit", (1, 2), "evaluate"),
        (3, "KeyboardInterrupt", (1,), "evaluate"),
        (3, "KeyboardInterrupt", (0, 1, 2), "round"),
        (3, "MemoryError", (2,), "loss"),
        (2, "BadInput", (0, 1), "round"),
        (2, "exit", (0, 1), "round"),
        (2, "MemoryError", (0,), "evaluate"),
        (0, "RuntimeError", (0,), "loss"),
        (0, "exit", (0,), "evaluate"),
        (0, "KeyboardInterrupt", (0,), "setup"),
    ],
)
def test_failure(size: int, kind: str, ranks: tuple[int, ...], phase: str, tmp_path: Path) -> None:
    job = run(tmp_path, size, kind, ranks, phase)
    assert job.result.returncode not in (0, 2)
    assert job.seconds < LONGEST
    rank, place = job.report()
    assert rank in ranks
    assert re.fullmatch(PLACES[phase], place)
    assert job.tracebacks == 1
    assert LAST_LINES[kind] in job.result.stderr.splitlines()
    if phase in ("constructor", "setup"):
        assert not list(tmp_path.iterdir())
    else:
        _holds_the_finished_rounds(job, "failed")


@pytest.mark.parametrize("ranks", [(1,), (1, 2)])
def test_training_that_diverges(ranks: tuple[int, ...], tmp_path: Path) -> None:
    job = run(tmp_path, 3, "nan", ranks, "loss")
    assert job.result.returncode not in (0, 2)
    assert job.seconds < LONGEST
    rank, place = job.report()
    assert rank in ranks
    assert re.match(rf"round {FAILS_IN}, .*: client \d diverged: its largest weight is nan", place)
    assert "--local.lr" in place
    assert job.tracebacks == 0  # nothing is wrong with the program
    _holds_the_finished_rounds(job, "failed")


@pytest.mark.parametrize("rank", [0, 2])
def test_killed_process(rank: int, tmp_path: Path) -> None:
    job = run(tmp_path, 3, "kill", (rank,), "round")
    assert job.result.returncode not in (0, 2)
    assert job.seconds < LONGEST
    _becomes_killed(job.path)
    finished = list(results.open(job.path).rounds.get("round", ()))
    assert finished == list(range(1, FAILS_IN))[: len(finished)]
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_server_that_does_not_listen(tmp_path: Path) -> None:
    job = run(tmp_path, 3, "RuntimeError", (2,), "loss", server_sleeps=60)
    assert job.result.returncode not in (0, 2)
    assert job.seconds < LONGEST
    rank, place = job.report()
    assert rank == 2
    assert re.fullmatch(PLACES["loss"], place)
    assert job.tracebacks == 1
    _becomes_killed(job.path)


def _becomes_killed(path: Path) -> None:
    """The launcher may return before the system has forgotten the processes that it killed."""
    deadline = time.monotonic() + 10
    while results.open(path).status == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert results.open(path).status == "killed"


def _holds_the_finished_rounds(job: Job, status: str) -> None:
    assert f"The results up to then are in {job.path}" in job.result.stderr
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
    assert "previous is kept beyond the round in which it was broadcast: keep its clone()" in result.stderr
