"""Standard output and error that are closed, or full: a run goes on, and ends as if it had been seen."""

from __future__ import annotations

import errno
import io
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmpi import results, streams
from fedmpi.experiment import progress
from fedmpi.results.__main__ import main
from tests.experiment.test_checkpoint import go
from tests.support.mpi import REPOSITORY

RUN = "--clients 4 --rounds 12 --local.epochs 1 --model LogisticRegression"
TALKING = f"{RUN} --algorithm tests.jobs.methods.Talking --checkpoint.keep true"


class Full(io.RawIOBase):
    """A file that takes nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_WRONLY)


def full() -> io.TextIOWrapper:
    """Standard output on a disk that is full."""
    return io.TextIOWrapper(io.BufferedWriter(Full()))


def shell(command: str) -> int:
    """The exit status of the first program of a pipe."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    said = subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], env=environment, timeout=240)
    return said.returncode


@pytest.mark.parametrize("where", ["2>&1 | head -n 1", "<&- >&- 2> /dev/full"])
def test_a_run(where: str, tmp_path: Path) -> None:
    """Neither what fedmpi prints ends it, nor what a class of the user does."""
    path = tmp_path / "run.h5"
    python = shlex.join([sys.executable, "-m", "fedmpi", *TALKING.split()])
    assert shell(f"{python} --output {path} {where}") == 0
    run = results.open(path)
    assert (run.status, len(run.rounds["round"])) == ("finished", 12)
    assert sorted(left.name for left in tmp_path.iterdir()) == ["run.h5", "run.h5.checkpoint"]


def test_bad_input() -> None:
    """The exit status is that of the error which nobody can read."""
    assert shell(f"{sys.executable} -m fedmpi --clients 0 2> /dev/full") == 2


def test_a_run_of_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from Python: what it prints is lost, and so is what it says when it is interrupted."""
    closed = io.StringIO()
    closed.close()
    for name, broken in {"closed": closed, "full": full()}.items():
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", broken)
            patch.setattr(sys, "stderr", broken)
            patch.setattr(streams, "_lasting", lambda name, number: io.StringIO())  # those of this process are others
            assert go(f"{RUN} --rounds 2", tmp_path / f"{name}.h5") == 0
            assert isinstance(sys.stdout, io.StringIO)
        assert results.open(tmp_path / f"{name}.h5").status == "finished"


def test_no_bar_without_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    progress.Progress(3, "accuracy", "%").show({"train_loss": 1.0, "round": 1, "seconds": 1.0})


def test_results_that_cannot_be_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """The commands that look at files have nothing else to do: one line, and a status."""
    for stream, status in ((full(), 2), (None, 0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert main(["schema"]) == status
    assert capfd.readouterr().err == "standard output: No space left on device\n"


def test_fast_rounds_are_printed_together(capfd: pytest.CaptureFixture[str]) -> None:
    """At most ten writes per second, and no line is lost."""
    shown = progress.Progress(500, "accuracy", "%")
    seen, began = [], time.perf_counter()
    for number in range(1, 501):
        shown.show({"train_loss": 1.0, "round": number, "seconds": 0.001})
        seen.append(capfd.readouterr().out)
    writes, took = sum(map(bool, seen)), time.perf_counter() - began
    assert 1 <= writes <= 1 + 10 * took
    shown.close()
    text = "".join(seen) + capfd.readouterr().out
    assert [line.split("/")[0] for line in text.splitlines()] == [f"round {number:3}" for number in range(1, 501)]


def test_a_slow_round_is_printed_at_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    shown = progress.Progress(2, "accuracy", "%")
    for number, now in ((1, 100.0), (2, 100.2)):
        monkeypatch.setattr(progress, "perf_counter", lambda now=now: now)
        shown.show({"train_loss": 1.0, "round": number, "seconds": 0.2})
        assert capfd.readouterr().out.startswith(f"round {number}/2")
