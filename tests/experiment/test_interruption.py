"""Killed or told to end at any moment, on any number of ranks: nothing is lost, and the bits are the same.

Fifty kills, of a run and of one with stages: pytest -m slow tests/experiment/test_interruption.py
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.every_method import OPTIONS
from fedmpi import results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.genfl import GenFL, _Learning
from fedmpi.data import Digits
from fedmpi.experiment.checkpoint import Checkpoints
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.interruption import MARGIN, Interruptions
from fedmpi.experiment.job_limit import job_end
from fedmpi.experiment.resume import continuation
from fedmpi.experiment.settings import BY_HAND, REQUEUE
from fedmpi.federation.evaluation import Evaluator
from fedmpi.results import Run
from fedmpi.results.paths import checkpoint_beside, lock_beside
from fedmpi.results.summary import summarize
from tests.experiment.test_checkpoint import go, interrupt
from tests.support.experiments import Alone
from tests.support.mpi import REPOSITORY, fedmpi, start
from tests.support.same_bits import assert_same_bits

EVERY = 2  # rounds from one checkpoint to the next
SMALL = f"--clients 8 --cohort 4 --local.steps 3 --model MLP --model.hidden '[9]' --checkpoint.every_rounds {EVERY}"
STATEFUL = f"{SMALL} --algorithm SCAFFOLD --compression TopK --server_optimizer Adam --evaluate_means both"
STAGES = f"{SMALL} --algorithm GenFL {OPTIONS['GenFL']} --algorithm.generator_rounds 25"


class Job:
    """A run that goes on where the last job has stopped.

    Attributes:
        after: how many rounds were over before, of a stage and of the run itself together; None: it says nothing.
        shown: how many it has shown so far, likewise.
    """

    def __init__(self, ranks: int, options: str, path: Path, stage: int = 0) -> None:
        self.process = start(ranks, "-m", "fedmpi", *shlex.split(options), "--output", path, "--resume")
        self.after: int | None = None
        self.shown = 0
        self._stage = stage

    def read(self, rounds: int) -> bool:
        """Wait until so many rounds have ended in this job; whether it still runs then."""
        assert self.process.stdout
        while rounds:
            line = self.process.stdout.readline()
            if not line:
                return False
            if found := re.search(r"resuming after round (\d+)( of the generator)?", line):
                self.after = int(found[1]) + (0 if found[2] else self._stage)
            if found := re.match(r"(generator )?round +(\d+)/", line):
                self.shown = int(found[2]) + (0 if found[1] else self._stage)
                rounds -= 1
        return True

    def end(self) -> int:
        """The exit status, when it is over."""
        self.process.communicate(timeout=240)
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL for the launcher and whatever it has started."""
        for pid in descendants(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.end()


def descendants(pid: int) -> list[int]:
    """A process, and those that it and they have started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found


def check(path: Path) -> None:
    """Whatever has happened: the files open, and the results end no earlier than the checkpoint."""
    if path.exists():
        run = results.open(path)
        assert {len(column) for column in run.rounds.values()} <= {len(run.rounds.get("round", ()))}
    if checkpoint_beside(path).exists():
        with zipfile.ZipFile(checkpoint_beside(path)) as archive:
            assert archive.testzip() is None


def unbroken(options: str, folder: Path) -> Run:
    path = folder / "unbroken.h5"
    assert go(options, path) == 0
    return results.open(path)


@pytest.mark.parametrize(
    ("options", "stage", "kills"),
    [
        (f"{STATEFUL} --rounds 10", 0, 2),
        pytest.param(f"{STATEFUL} --rounds 80", 0, 50, marks=pytest.mark.slow),
        pytest.param(f"{STAGES} --rounds 30", 25, 25, marks=pytest.mark.slow),
    ],
    ids=["some", "fifty", "stages"],
)
def test_kills(options: str, stage: int, kills: int, tmp_path: Path) -> None:
    """Oracle: the run that nothing has come between. No more rounds are lost than between two checkpoints."""
    rng, path, shown = np.random.default_rng(0), tmp_path / "run.h5", 0
    for _ in range(kills):
        job = Job(int(rng.choice([0, 2, 3, 4])), options, path, stage)
        is_running = job.read(int(rng.integers(4)))
        time.sleep(rng.uniform(0, 0.5))
        job.kill()
        check(path)
        if job.after is not None:
            assert job.after >= shown - EVERY
        shown = job.shown or shown
        if not is_running:
            break
    last = Job(3, options, path, stage)
    assert last.end() == 0
    assert_same_bits(results.open(path), unbroken(options, tmp_path))
    assert sorted(left.name for left in tmp_path.iterdir()) == ["run.h5", "unbroken.h5"]


def test_signals(tmp_path: Path) -> None:
    """Each ends the run after a round, with what the job script is told; then a last job ends it well."""
    options, path, done = f"{STATEFUL} --rounds 400", tmp_path / "run.h5", 0
    for ranks, number, status in ((3, signal.SIGUSR1, REQUEUE), (2, signal.SIGINT, BY_HAND), (0, signal.SIGTERM, 85)):
        job = Job(ranks, options, path)
        assert job.read(2)
        job.process.send_signal(number)
        assert job.end() == status
        run = results.open(path)
        assert run.status == "interrupted"
        assert summarize(run).startswith("status      interrupted; continue with --resume")
        assert len(run.rounds["round"]) >= done + 2
        done = len(run.rounds["round"])
    assert len(run.attributes["resumed"].splitlines()) == 2
    with zipfile.ZipFile(checkpoint_beside(path)) as archive:
        assert f'"round": {done}' in archive.read("about.json").decode(), "no round is lost"


def watch(path: Path) -> Interruptions:
    """Of a run that has been set up."""
    experiment, _ = parse(["--output", str(path)])
    made = Interruptions(Alone(), experiment)
    made.is_set_up = True
    return made


def test_second_interrupt(tmp_path: Path) -> None:
    """Whoever interrupts counts more than a signal before or after; afterwards all is as it was."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with watch(tmp_path / "run.h5") as seen:
        assert seen.asks(1) == (0, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen.asks(1) == (REQUEUE, False)
        os.kill(os.getpid(), signal.SIGINT)
        assert seen.asks(1) == (BY_HAND, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen.asks(1) == (BY_HAND, False)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


@pytest.mark.parametrize(("limit", "ends_after"), [(250, 4), (249, 3), (220, 2), (199, 1)])
def test_time_limit(limit: int, ends_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand. Rounds of 90, 10, 10 and 10 s begin at 0, 100, 120 and 140 s; the first takes 100 in all."""
    now = 0.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(limit))
    assert MARGIN == 20
    seen, ended = watch(tmp_path / "run.h5"), []
    for began, over in ((0, 90), (100, 110), (120, 130), (140, 150)):
        now = began
        seen.begin_round()
        now = over
        ended.append(seen.asks(1)[0] == REQUEUE)
    assert ended.index(True) + 1 == ends_after


def test_limit_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round is always done, or a job that is queued again and again would never come to an end."""
    path, options = tmp_path / "run.h5", f"{STATEFUL} --rounds 3"
    for rounds in (1, 2):
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + MARGIN))
        assert go(options, path, "--resume") == REQUEUE
        assert len(results.open(path).rounds["round"]) == rounds
    assert go(options, path, "--resume") == 0, "it was the last one"
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert_same_bits(results.open(path), unbroken(options, tmp_path))
    assert go(options, path, "--resume") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1700000000", "1700000000: it has passed, so it is not the limit of this job"),
        ("0", "0: it has passed, so it is not the limit of this job"),
        ("Unknown", "Unknown: it is not a number"),
        ("nan", "nan: it is not a number"),
        ("2026-11-20T16:20:00", "2026-11-20T16:20:00: it is not a number"),
        ("", ""),
    ],
)
def test_a_limit_that_is_none(text: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What a shell has inherited from a job that is over, or what is no time; oracle: one line that names it."""
    assert job_end({"SLURM_JOB_END_TIME": text}, tells=True) is None
    assert capfd.readouterr().out == (f"ignoring SLURM_JOB_END_TIME = {said}\n" if said else "")
    assert job_end({"SLURM_JOB_END_TIME": "99999999999"}, tells=True) == 99999999999
    assert job_end({}, tells=True) is None
    assert capfd.readouterr().out == ""


def test_a_run_in_a_shell_that_has_outlived_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert go(f"{SMALL} --rounds 2", tmp_path / "run.h5") == 0


def signal_at(patch: pytest.MonkeyPatch, owner: type, name: str, call: int = 1, number: int = signal.SIGUSR1) -> None:
    """Send this process a signal when a method is called for the `call`th time."""
    does, calls = getattr(owner, name), []

    def signalled(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return does(*arguments, **options)

    patch.setattr(owner, name, signalled)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, REQUEUE), (signal.SIGINT, BY_HAND)])
def test_setting_up(number: int, status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """While data are read the run ends at once, and leaves nothing; as a resumed run it leaves what was there."""
    path, options, before = tmp_path / "run.h5", f"{SMALL} --rounds 3", signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, Digits, "read", number=number)
        assert go(options, path) == status
    assert not list(tmp_path.iterdir())
    assert f"interrupted (exit status {status}); continue with: python -m fedmpi " in capfd.readouterr().out
    interrupt(options, tmp_path / "whole.h5", tmp_path.parent)
    broken = tmp_path.parent / "whole.h5"
    left = broken.read_bytes(), checkpoint_beside(broken).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, Digits, "read", number=number)
        assert go(options, broken, "--resume") == status
    assert (broken.read_bytes(), checkpoint_beside(broken).read_bytes()) == left
    assert signal.getsignal(signal.SIGINT) is before


def test_setting_up_on_several_ranks(tmp_path: Path) -> None:
    """One that alone hears ends the job, whose others wait for it."""
    options = f"{SMALL} --rounds 3 --output {tmp_path / 'run.h5'}"
    how = ["--partition", "faulty.Shares", "--partition.kind", "terminate", "--partition.ranks", "[1]"]
    programs = f"{REPOSITORY}:{REPOSITORY / 'tests' / 'jobs'}"
    assert fedmpi(2, *shlex.split(options), *how, PYTHONPATH=programs).returncode == REQUEUE
    left = [path for path in tmp_path.iterdir() if path != lock_beside(tmp_path / "run.h5")]
    assert not left, "but for the lock of rank 0, which was killed"


def test_before_the_first_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal while the initial model is measured: there is no round, and the run starts anew."""
    path, options = tmp_path / "run.h5", f"{SMALL} --rounds 2"
    with monkeypatch.context() as patch:
        signal_at(patch, FedAvg, "evaluate")
        assert go(options, path) == REQUEUE
    run = results.open(path)
    assert (run.status, len(run.rounds.get("round", ()))) == ("interrupted", 0)
    assert go(options, path, "--resume") == 0
    assert_same_bits(results.open(path), unbroken(options, tmp_path))


def test_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No further round is begun, for the checkpoint is there."""
    path, options = tmp_path / "run.h5", f"{STATEFUL} --rounds 4"
    with monkeypatch.context() as patch:
        signal_at(patch, Checkpoints, "save")
        assert go(options, path) == REQUEUE
    run = results.open(path)
    assert (run.status, len(run.rounds["round"])) == ("interrupted", EVERY)
    assert go(options, path, "--resume") == 0
    assert_same_bits(results.open(path), unbroken(options, tmp_path))


HELD_OUT = f"{SMALL} --rounds 1 --held_out 5 --held_out_epochs 4"


def test_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal while the third of them is trained: three are done, and two are trained when the run goes on."""
    path, turns = tmp_path / "run.h5", []
    with monkeypatch.context() as patch:
        signal_at(patch, Evaluator, "value_of_client", call=12)
        assert go(HELD_OUT, path) == REQUEUE
    run, measure = results.open(path), Evaluator.value_of_client
    assert run.status == "interrupted"
    assert np.isnan(run.held_out["accuracy"]).any(1).tolist() == [False] * 3 + [True] * 2

    def counted(*arguments: Any) -> float:
        turns.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(Evaluator, "value_of_client", counted)
    assert go(HELD_OUT, path, "--resume") == 0
    assert len(turns) == 2 * 5
    assert_same_bits(results.open(path), unbroken(HELD_OUT, tmp_path))
    assert not checkpoint_beside(path).exists()


@pytest.mark.further
def test_held_out_clients_on_several_ranks(tmp_path: Path) -> None:
    """A signal to the launcher while they are trained; the line that is then printed, given to a shell, goes on."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}

    def shell(command: str, **variables: str) -> subprocess.Popen[str]:
        words = ["bash", "-c", f"exec {command}"]
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={**environment, **variables}
        )

    def left() -> tuple[str, list[int], int]:
        (file,) = (tmp_path / "runs").glob("*.h5")
        run = results.open(file)
        known = run.held_out.get("accuracy", np.full((5, 1), np.nan))
        return run.status, run.rounds["round"].tolist(), int(np.isnan(known[:, 0]).sum())

    job = shell(f"mpirun -n 3 python -m fedmpi --overwrite {HELD_OUT} --held_out_epochs 200")
    assert job.stdout
    while not job.stdout.readline().startswith("round"):
        pass
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=240)
    assert job.returncode == REQUEUE
    *known, waiting = left()
    assert known == ["interrupted", [1]]
    assert waiting >= 1
    (goes_on,) = re.findall(r"^interrupted \(exit status 85\); continue with: (.*)$", said, re.MULTILINE)
    assert goes_on.startswith("mpirun -n 3 python -m fedmpi --clients 8")
    again = shell(goes_on, SLURM_JOB_END_TIME=str(time.time() + MARGIN))
    said, _ = again.communicate(timeout=240)
    assert again.returncode == REQUEUE
    assert ": resuming after round 1\n" in said
    assert left() == ("interrupted", [1], max(waiting - 2, 0))


def test_limit_of_a_job_among_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job gets on by one of them, at least."""
    path = tmp_path / "run.h5"
    for done in range(5):
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + MARGIN))
        assert go(HELD_OUT, path, "--resume") == REQUEUE
        known = results.open(path).held_out.get("accuracy", np.full((5, 5), np.nan))
        assert np.count_nonzero(~np.isnan(known[:, 0])) == done
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert go(HELD_OUT, path, "--resume") == 0
    assert_same_bits(results.open(path), unbroken(HELD_OUT, tmp_path))


@pytest.mark.parametrize(
    ("given", "goes_on"),
    [
        ("--seed 1 --output runs/x.h5", "--seed 1 --output runs/x.h5 --resume"),
        ("--overwrite --seed 1 --output=x.h5", "--seed 1 --output=x.h5 --resume"),
        ("--overwrite=true --output 'my runs/$x.h5'", "--output 'my runs/$x.h5' --resume"),
        ("--config c.yaml", "--config c.yaml --overwrite=false --resume"),
        (
            "--config=c.yaml --overwrite --model.norm batch",
            "--config=c.yaml --model.norm batch --overwrite=false --resume",
        ),
        ("--resume --output x.h5", "--output x.h5 --resume"),
    ],
)
def test_the_command_that_goes_on(given: str, goes_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand; and the parser takes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("x", "1")
    Path("c.yaml").write_text("overwrite: true\noutput: runs/c.h5\n")
    experiment, _ = parse(shlex.split(given))
    assert continuation(experiment, 1) == f"python -m fedmpi {goes_on}"
    again, _ = parse(shlex.split(goes_on))
    assert (again.resume, again.overwrite, again.output) == (True, False, experiment.output)
    automatic, _ = parse(["--seed", "2"])
    assert continuation(automatic, 1) == f"python -m fedmpi --seed 2 --output {automatic.output} --resume"


@pytest.mark.parametrize(("method", "name", "round"), [(_Learning, "round", 1), (GenFL, "sample", 2)])
def test_stages(method: type, name: str, round: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in a round of a stage, or before the server trains: no round of the stage is lost."""
    path, options = tmp_path / "run.h5", f"{SMALL} --algorithm GenFL {OPTIONS['GenFL']} --rounds 2"
    does = getattr(method, name)

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return does(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(method, name, signalled)
        assert go(options, path) == REQUEUE
    run = results.open(path)
    assert run.status == "interrupted"
    assert run.stage("generator")["round"].tolist() == [1, 2][:round]
    with zipfile.ZipFile(checkpoint_beside(path)) as archive:
        about = json.loads(archive.read("about.json"))
    assert (about["round"], about["stage"]) == (round, "generator")
    assert go(options, path, "--resume") == 0
    assert_same_bits(results.open(path), unbroken(options, tmp_path))
