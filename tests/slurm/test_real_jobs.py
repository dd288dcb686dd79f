"""The job scripts on a real Slurm: signals, the way back into the queue, and the same bits as without any of that.

All jobs run side by side, for each takes its time to start; and each waits in its rounds until it has been signalled.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmpi import results
from tests.slurm.cluster import Slurm, missing, started, until
from tests.support.mpi import REPOSITORY, fedmpi, succeed

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

PROGRAMS = REPOSITORY / "tests" / "jobs"
ROUNDS = 150
OPTIONS = f"--rounds {ROUNDS} --clients 20 --cohort 4 --model LogisticRegression --local.epochs 1 --evaluate_every 50"
# A make-believe srun that speaks no MPI library's protocol.
NO_MPI = '#!/bin/bash\n[[ $1 == --mpi=list ]] || exec /usr/bin/srun "$@"\n'


@dataclass
class Job:
    """A job that has been submitted.

    Attributes:
        slurm: to which.
        number: by which it is known there.
        file: its results.
    """

    slurm: Slurm
    number: str
    file: Path

    @property
    def state(self) -> str:
        return self.slurm.about(self.number)["JobState"]

    @property
    def status(self) -> str:
        return results.open(self.file).status if self.file.exists() else "nothing"

    def await_rounds(self) -> None:
        """Wait until rounds have ended; the file says so a second later."""
        until(lambda: self.status == "running" and "round" in results.open(self.file).rounds)

    def await_queue(self) -> None:
        """Wait until it is in the queue once more, and let it run at once and for an hour."""
        until(lambda: self.state == "PENDING")
        until(lambda: self.slurm.about(self.number)["Reason"] == "BeginTime")  # Slurm's pause of two minutes
        assert self.slurm.about(self.number)["Restarts"] == "1"
        time.sleep(2)  # a node starts no job that it was told to forget within the same second
        self.slurm.call("scontrol", "update", f"JobId={self.number}", "StartTime=now", "TimeLimit=60")

    def await_end(self) -> results.Run:
        """Wait until it is over, and went well."""
        until(lambda: self.state not in ("PENDING", "RUNNING", "COMPLETING"))
        assert self.state == "COMPLETED"
        return results.open(self.file)


class Site:
    """A Slurm, and a folder from which jobs are submitted.

    Attributes:
        hold: a file; while it is there jobs wait in every round.
    """

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm = slurm
        self.folder = folder
        self.hold = folder / "hold"
        self.hold.touch()
        (folder / "jobs").symlink_to(REPOSITORY / "jobs")
        (folder / "config.yaml").write_text(
            f"algorithm:\n  class_path: patient.Patient\n  init_args:\n    hold: {self.hold}\n"
        )
        (folder / "one.list").write_text(f"only config.yaml {OPTIONS}\n")
        (folder / "bin").mkdir()
        (folder / "bin" / "srun").write_text(NO_MPI)
        (folder / "bin" / "srun").chmod(0o755)

    def user(self, by_mpirun: bool = False) -> Slurm:
        """Slurm as a user sees it who has this Python, and perhaps no srun that can start MPI."""
        path = [str(self.folder / "bin")] * by_mpirun + [str(Path(sys.executable).parent), os.environ["PATH"]]
        variables = {"PATH": os.pathsep.join(path), "PYTHONPATH": f"{REPOSITORY}:{PROGRAMS}"}
        return Slurm({**self.slurm.environment, **variables})

    def submit(self, *options: str, script: str = "slurm.sbatch", file: str = "", by_mpirun: bool = False) -> Job:
        """Submit one of the scripts for two ranks; options before -- are sbatch's."""
        at = options.index("--")
        place = f"--chdir={self.folder}"
        said = self.user(by_mpirun).call(
            "sbatch", "--parsable", "--ntasks-per-node=2", place, *options[:at], f"jobs/{script}", *options[at + 1 :]
        )
        number = said.strip()
        return Job(self.slurm, number, self.folder / "runs" / (file or f"fedmpi-{number}.h5"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    with started(folder) as slurm:
        (folder / "site").mkdir()
        yield Site(slurm, folder / "site")


@pytest.fixture(scope="module")
def jobs(site: Site) -> dict[str, Job]:
    """One whose time limit sends the signal, one started by mpirun, one to be cancelled, and an array."""
    run = ["--", "config.yaml", *OPTIONS.split()]
    return {
        "limit": site.submit("--time=1", "--signal=B:USR1@50", *run),
        "mpirun": site.submit(*run, by_mpirun=True),
        "cancelled": site.submit(*run),
        "array": site.submit("--array=0-1", "--", "one.list", "2", script="slurm_array.sbatch", file="one/only-0.h5"),
    }


@pytest.fixture(scope="module")
def sha256(site: Site) -> str | None:
    """Of the weights that the experiment ends with when nothing comes between."""
    file = site.folder / "unbroken.h5"
    options = [*OPTIONS.split(), "--algorithm.hold", "nowhere", "--output", str(file)]
    succeed(fedmpi(0, "--algorithm", "patient.Patient", *options, PYTHONPATH=f"{REPOSITORY}:{PROGRAMS}"))
    return results.open(file).weights_sha256


def test_signals(site: Site, jobs: dict[str, Job], sha256: str | None) -> None:
    """Requeued after USR1, from the time limit or by hand, under srun and mpirun, but not after scancel.

    Oracle: the weights of the unbroken run, and every round once.
    """
    jobs["mpirun"].await_rounds()
    site.slurm.call("scancel", "--signal=USR1", "--batch", jobs["mpirun"].number)
    jobs["cancelled"].await_rounds()
    site.slurm.call("scancel", jobs["cancelled"].number)
    until(lambda: jobs["limit"].state == "PENDING")
    until(lambda: jobs["cancelled"].state == "CANCELLED")
    for name in ("mpirun", "cancelled"):
        assert jobs[name].status == "interrupted", name
        assert 0 < len(results.open(jobs[name].file).rounds["round"]) < ROUNDS
    site.hold.unlink()
    for name in ("limit", "mpirun"):
        jobs[name].await_queue()
    for name in ("limit", "mpirun"):
        run = jobs[name].await_end()
        assert (run.status, run.weights_sha256) == ("finished", sha256), name
        assert run.rounds["round"].tolist() == list(range(1, ROUNDS + 1))
        assert (run.environment["ranks"], run.environment["slurm_job_id"]) == (2, jobs[name].number)
    about = site.slurm.about(jobs["cancelled"].number)
    assert (about["JobState"], about["Restarts"]) == ("CANCELLED", "0")


def test_how_many_ranks(site: Site) -> None:
    """What docs/cluster.md gives to sbatch, on nodes that are not there yet: Slurm counts the tasks all the same."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text()
    for options, tasks in {
        "": 17,
        "--ntasks-per-node=33": 33,
        "--nodes=4 --ntasks-per-node=16": 64,
        "--nodes=4 --gpus-per-node=4 --ntasks=17 --ntasks-per-node=5": 17,
    }.items():
        assert options in text
        known = [option for option in options.split() if not option.startswith("--gpus")]  # this Slurm has none
        for script in ("slurm.sbatch", "slurm_array.sbatch"):
            place = "--partition=far", f"--chdir={site.folder}"
            number = site.slurm.call("sbatch", "--parsable", *place, *known, f"{REPOSITORY}/jobs/{script}").strip()
            about = site.slurm.about(number)
            assert (about["NumTasks"], about["JobState"]) == (str(tasks), "PENDING"), options
            site.slurm.call("scancel", number)


def test_after_scancel(site: Site, jobs: dict[str, Job], sha256: str | None) -> None:
    """The same command with its file goes on."""
    file = jobs["cancelled"].file
    done = len(results.open(file).rounds["round"])
    again = site.submit("--", "config.yaml", *OPTIONS.split(), "--output", str(file), file=file.name)
    assert again.await_end().weights_sha256 == sha256
    assert f"resuming after round {done}" in (site.folder / f"fedmpi-{again.number}.log").read_text()


def test_array(site: Site, jobs: dict[str, Job], sha256: str | None) -> None:
    """Oracle: one file a task, of which seed 0 is that of the others."""
    until(lambda: not site.slurm.call("squeue", "--noheader", f"--jobs={jobs['array'].number}").strip())
    runs = {path.name: results.open(path) for path in jobs["array"].file.parent.glob("*.h5")}
    assert {name: run.status for name, run in runs.items()} == {"only-0.h5": "finished", "only-1.h5": "finished"}
    assert {name: run.settings["seed"] for name, run in runs.items()} == {"only-0.h5": 0, "only-1.h5": 1}
    assert runs["only-0.h5"].weights_sha256 == sha256 != runs["only-1.h5"].weights_sha256


@pytest.mark.slow
def test_sweep(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid as one array. Oracle: its files, and the report of the program that has submitted it."""
    monkeypatch.chdir(site.folder)
    Path("sweep.yaml").write_text(
        "options: {model: LogisticRegression, clients: 8, rounds: 2}\ngrid: {local.lr: [0.01, 0.1]}\nseeds: [4]\n"
    )
    user, command = site.user(), [sys.executable, "-m", "fedmpi.sweep", "sweep.yaml"]
    said = user.call(*command, "--slurm", "--ranks", "2", "--", "--time=10")
    number = said.split()[-1]
    assert user.about(f"{number}_1")["TimeLimit"] == "00:10:00"
    until(lambda: not user.call("squeue", "--noheader", f"--jobs={number}").strip())
    for lr in ("0.01", "0.1"):
        run = results.open(Path("runs", "sweep", f"lr_{lr}-4.h5"))
        assert (run.status, run.environment["ranks"], run.settings["local"]["lr"]) == ("finished", 2, float(lr))
    assert "best on test, optimistic: lr 0." in user.call(*command, "--report")
    assert "2 finished, 0 running, 0 to be started" in user.call(*command, "--slurm")
