"""Nothing hangs: a job of which a rank does not come ends at its deadline, and says which rank that was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedmpi import Experiment, results
from fedmpi.errors import BadInput
from fedmpi.experiment.interruption import Interruptions
from fedmpi.mpi.world import World
from tests.experiment.test_failures import becomes_killed
from tests.support.mpi import REPOSITORY, fedmpi, start

PROGRAMS = str(REPOSITORY / "tests" / "jobs")
DEADLINE = 10
#: Seconds from the deadline to the end of the job.
ENDING = 10
_CODE = r"rank {} on \S+: did not arrive; round 2, aggregation, .*, at\n(.*\n)*.*\n    {}"
#: How a rank hangs, and which -> what is said of it.
SAID = {
    ("sleep", 2): _CODE.format(2, r"time\.sleep\(3600\)\n"),
    ("inside", 0): _CODE.format(0, r"MPI\.COMM_WORLD\.Barrier"),
    ("stopped", 2): r"rank 2 on \S+: no answer\n",
    (
        "elsewhere",
        1,
    ): r"ranks 0, 2 on \S+: waiting at round 2, [^\n]* while others wait elsewhere\nrank 1 on \S+: waiting ",
}
MORE = {
    ("spin", 1): _CODE.format(1, r"(pass|while True:)\n"),
    ("sleep", 0): _CODE.format(0, r"time\.sleep\(3600\)\n"),
    ("inside", 2): _CODE.format(2, r"MPI\.COMM_WORLD\.Barrier"),
    ("stopped", 0): r"rank 0 on \S+ does not answer",
}


def hang(cases: Iterable[tuple[str, int]], folder: Path) -> dict[tuple[str, int], tuple[str, float]]:
    """What each job printed, and when it ended. They run side by side, for they do little but wait."""

    def run(case: tuple[str, int]) -> tuple[str, float]:
        options = f"--algorithm hanging.Hanging --algorithm.how {case[0]} --algorithm.who {case[1]}"
        experiment = f"--deadline {DEADLINE} --model LogisticRegression --clients 4 --rounds 3 --output"
        path = f"{REPOSITORY}:{PROGRAMS}"
        output = folder / f"{case[0]}{case[1]}.h5"
        result = fedmpi(3, *options.split(), *experiment.split(), output, PYTHONPATH=path)
        assert result.returncode not in (0, 2)
        if case == ("stopped", 0):
            becomes_killed(output)
        else:
            assert results.open(output).status == "failed"
            assert results.open(output).rounds["round"].tolist() == [1]
        return result.stderr, time.time()

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(cases, pool.map(run, cases), strict=True))


def check_report(said: str, expected: str) -> None:
    """Oracle: the rank, the place and the call are those where it was told to hang; one report."""
    headline = rf"fedmpi: failed on rank \d of 3: round 2, .* within the deadline of {DEADLINE} s "
    assert len(re.findall(headline, said)) == said.count("fedmpi: failed") == 1
    assert re.search(expected, said), said


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[str, float]]:
    return hang(SAID, tmp_path_factory.mktemp("hanging"))


@pytest.mark.parametrize(("how", "who"), SAID)
def test_a_rank_that_does_not_come(how: str, who: int, jobs: dict[tuple[str, int], tuple[str, float]]) -> None:
    said, ended = jobs[how, who]
    check_report(said, SAID[how, who])
    (hung,) = re.findall(r"hangs at ([\d.]+)$", said, re.MULTILINE)
    assert DEADLINE < ended - float(hung) < DEADLINE + ENDING


@pytest.mark.slow
def test_more_ranks_that_do_not_come(tmp_path: Path) -> None:
    for case, (said, _) in hang(MORE, tmp_path).items():
        check_report(said, MORE[case])


@pytest.mark.further
def test_a_job_that_is_suspended_goes_on(tmp_path: Path) -> None:
    """Slurm suspends jobs, people close laptops: that time does not count. Oracle: all rounds, exit status 0."""
    options = (
        f"--deadline {DEADLINE} --model LogisticRegression --clients 4 --rounds 60 --output {tmp_path / 'run.h5'}"
    )
    job = start(3, "-m", "fedmpi", *options.split())
    assert job.stdout
    while not job.stdout.readline().startswith("round"):
        pass
    ranks = [pid for pid in _children(job.pid) if _rank(pid) is not None]
    for number, pause in ((signal.SIGSTOP, 12), (signal.SIGCONT, 0)):
        for pid in ranks:
            os.kill(pid, number)
        time.sleep(pause)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert results.open(tmp_path / "run.h5").rounds["round"].tolist() == list(range(1, 61))


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Also a process whose main thread does not hear it; oracle: exit status 128 + 15."""
    path = f"{REPOSITORY}:{PROGRAMS}"
    command = (
        "-m fedmpi --algorithm hanging.Hanging --algorithm.how inside --algorithm.who 0 --model LogisticRegression"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        job = start(2, *command.split(), "--output", tmp_path / "run.h5")
    assert job.stdout
    while not job.stdout.readline().startswith("round"):
        pass
    time.sleep(1)
    (server,) = (pid for pid in _children(job.pid) if _rank(pid) == 0)
    os.kill(server, signal.SIGTERM)
    time.sleep(2)
    assert job.poll() is None  # it is to end between two rounds, which it cannot
    os.kill(server, signal.SIGTERM)
    assert job.wait(timeout=5) == 143
    job.stdout.close()


def _children(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _rank(pid: int) -> int | None:
    """The rank of a process in its job, if it has one."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ranks = [int(variable[len("PMI_RANK=") :]) for variable in variables if variable.startswith(b"PMI_RANK=")]
    return ranks[0] if ranks else None


def test_how_long_a_deadline_is() -> None:
    """Oracle: 30 minutes before the first round, then 20 of the longest rounds, 10 minutes at least."""
    interruptions = Interruptions(World(), Experiment())
    assert interruptions.deadline == 1800
    began = time.time()
    with pytest.MonkeyPatch.context() as patch:
        for now, deadline in ((0, 1800), (10, 600), (50, 800), (51, 800), (351, 6000)):
            patch.setattr(time, "time", lambda now=now: began + now)
            interruptions.begin_round()
            assert interruptions.deadline == deadline
    assert Interruptions(World(), Experiment(deadline=7.5)).deadline == 7.5


def test_deadlines_that_are_none() -> None:
    with pytest.raises(BadInput, match=r"deadline = 0.0: must be auto, or at least 1"):
        Experiment(deadline=0)
