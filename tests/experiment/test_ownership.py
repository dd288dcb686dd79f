"""One run at a time writes an output, whoever starts at once and whoever was killed before.

Fifty tries of each race: pytest -m slow tests/experiment/test_ownership.py
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmpi import results
from fedmpi.algorithms import SCAFFOLD
from fedmpi.errors import BadInput
from fedmpi.experiment import ownership
from fedmpi.experiment import run as course
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.ownership import InUse, Lock, LockLost
from fedmpi.experiment.settings import REQUEUE
from fedmpi.results import owner
from fedmpi.results import paths as files
from fedmpi.results.owner import SILENCE, Owner
from fedmpi.results.paths import checkpoint_beside, lock_beside, temporary_beside
from tests.experiment.test_checkpoint import go, interrupt
from tests.results.made_runs import finished, started
from tests.support.experiments import Alone
from tests.support.mpi import REPOSITORY, mpirun, start, succeed
from tests.support.same_bits import assert_same_bits

MODEL = "--model LogisticRegression --algorithm SCAFFOLD"
OPTIONS = f"--clients 3 --rounds 6 --local.steps 2 {MODEL} --checkpoint.every_rounds 1"
ME = Owner.here()
GONE = replace(ME, pid=2**22 + 1)  # beyond the largest number of a process
ELSEWHERE = replace(ME, host="another", boot="another")


def leave(output: Path, owner: Owner, silence: float = 0.0) -> Path:
    """A lock that an owner has left, or has, with a sign of life so many seconds ago; its record."""
    lock = lock_beside(output)
    lock.mkdir(exist_ok=True)
    record = lock / os.urandom(8).hex()
    record.write_text(owner.text)
    os.utime(record, times=(time.time() - silence,) * 2)
    return record


def take(output: Path) -> Owner | None:
    """Take a lock and give it back; the owner that was gone."""
    lock = Lock()
    gone = lock.take(output)
    lock.release()
    return gone


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was interrupted after its third round, and the whole one."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "left").mkdir()
    interrupt(f"{OPTIONS} --seed 1", folder / "run.h5", folder / "left", after=3)
    return folder


@pytest.fixture
def left(broken: Path, tmp_path: Path) -> Path:
    """The results file of the interrupted run, with its checkpoint."""
    for path in (broken / "left").iterdir():
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / "run.h5"


@pytest.mark.parametrize("tries", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_races(tries: int, left: Path) -> None:
    """Jobs that start at once, of which one writes over, or goes on, or takes over from one that is gone."""
    left.rename(left.with_name("interrupted.h5"))
    checkpoint_beside(left).rename(checkpoint_beside(left.with_name("interrupted.h5")))
    (left.parent / "runs").mkdir()
    said = succeed(mpirun(2, REPOSITORY / "tests" / "jobs" / "races.py", left.parent, str(tries)))
    refused = dict(re.findall(rf"^(.*): (\d+) of {tries} refused$", said, re.MULTILINE))
    assert list(refused) == ["start", "overwrite", "resume", "take over"]
    assert sum(map(int, refused.values())) >= tries, f"else there were no races: {said}"


# Who is gone


@pytest.mark.parametrize(
    ("found", "silence", "is_gone"),
    [
        (ME, 2 * SILENCE, False),
        (GONE, 0, True),
        (replace(ME, start="1"), 0, True),
        (replace(ME, pid=1, start=""), 2 * SILENCE, False),
        (ELSEWHERE, SILENCE - 1, False),
        (ELSEWHERE, SILENCE, True),
        (replace(GONE, namespace="pid:[1]"), 0, False),
        (replace(GONE, boot="before"), 0, False),
        (replace(ELSEWHERE, job="7", restarts=0), 0, True),
        (replace(ELSEWHERE, job="7", restarts=1), 0, False),
        (replace(ELSEWHERE, job="8", restarts=0), 0, False),
        (Owner.parse(ME.text), 0, False),
        (Owner.parse(""), SILENCE - 1, False),
        (Owner.parse("[1]"), SILENCE, True),
        (Owner.parse('{"pid": 1, "more": 2}'), SILENCE - 1, False),
        (Owner.parse(replace(GONE, pid=2**31).text), SILENCE - 1, False),
        (Owner.parse(replace(GONE, pid=-GONE.pid).text), SILENCE - 1, False),
        (Owner.parse(GONE.text.replace(f"{GONE.pid}", '"1"', 1)), SILENCE - 1, False),
    ],
)
def test_who_is_gone(found: Owner, silence: float, is_gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and start where it can be looked up; else by silence; Slurm's requeued job knows its predecessor."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert found.is_gone(silence) == is_gone


def test_a_process_that_has_ended_is_gone() -> None:
    """Also while its parent has not asked how; oracle: the system."""
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    known = replace(ME, pid=child, start=owner._start(child))
    assert not known.is_gone(0)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert known.is_gone(0)
    os.waitpid(child, 0)
    assert known.is_gone(0)


@pytest.mark.parametrize("ahead", [-5000.0, 0.0, 5000.0])
def test_silence_is_by_the_file_systems_clock(ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever that of this node says."""
    touch, record = os.utime, leave(tmp_path / "run.h5", replace(ELSEWHERE, job="12"), SILENCE - 10 - ahead)
    monkeypatch.setattr(ownership.os, "utime", lambda path: touch(path, times=(time.time() + ahead,) * 2))
    said = rf"run.h5: is in use by process {ME.pid} on another \(Slurm job 12\) since .*, last sign of life 590 s ago"
    with pytest.raises(InUse, match=said):
        take(tmp_path / "run.h5")
    touch(record, times=(time.time() + ahead - SILENCE - 1,) * 2)
    assert take(tmp_path / "run.h5") == replace(ELSEWHERE, job="12")
    assert not list(tmp_path.iterdir())


def test_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any write, and no longer when the lock is given back."""
    monkeypatch.setattr(ownership, "BEAT", 0.02)
    lock = Lock()
    lock.take(tmp_path / "run.h5")
    (record,) = lock_beside(tmp_path / "run.h5").iterdir()
    os.utime(record, times=(0, 0))
    began = time.time()
    while record.stat().st_mtime < began - 1:
        assert time.time() < began + 10
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_lost(tmp_path: Path) -> None:
    """Nothing is written any more, also when one comes back that was silent for long; oracle: the other's file."""
    path, lock = tmp_path / "run.h5", Lock()
    lock.take(path)
    run = results.Results(path, {"config": ""}, {}, confirm=lock.confirm)
    run.write()
    (record,) = lock_beside(path).iterdir()
    record.rename(tmp_path / "mine")
    leave(path, ELSEWHERE)
    path.write_text("another's")
    with pytest.raises(
        LockLost, match=r"run.h5.lock: does not exist any more: another run has taken the results file over"
    ):
        run.write()
    lock.release()
    assert path.read_text() == "another's"
    assert {left.name for left in tmp_path.iterdir()} == {"run.h5", ".run.h5.lock", "mine"}


# Names and modes


def test_what_was_left_is_removed(tmp_path: Path) -> None:
    """But nothing of another output, and nothing of a run that waits for this one."""
    path = tmp_path / "run.h5"
    mine = [temporary_beside(path), temporary_beside(path)]
    mine[0].touch()
    mine[1].mkdir()
    (mine[1] / "0123456789abcdef").write_text(GONE.text)
    others = [
        temporary_beside(tmp_path / "run.h5.x"),
        temporary_beside(tmp_path / "un.h5"),
        tmp_path / ".run.h5.a.tmp",
    ]
    for other in others:
        other.touch()
    (waits := temporary_beside(path)).mkdir()
    (waits / "0123456789abcdef").write_text(ME.text)
    (link := temporary_beside(path)).symlink_to(others[0])
    assert take(path) is None
    assert set(tmp_path.iterdir()) == {*others, waits}
    assert not link.is_symlink()


def test_links_in_the_place_of_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written through them."""
    path, victim = tmp_path / "run.h5", tmp_path / "victim"
    victim.write_text("precious")
    run = started(path)
    monkeypatch.setattr(files.secrets, "token_hex", lambda number: "0" * 2 * number)
    temporary_beside(path).symlink_to(victim)
    with pytest.raises(FileExistsError):
        run.write()
    assert victim.read_text() == "precious"
    lock_beside(path).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(OSError, match="Not a directory"):
        Lock().take(path)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_modes(left: Path) -> None:
    """Of old files they stay, also of a checkpoint that is new; of new ones they follow the umask."""
    before = os.umask(0o027)
    try:
        assert go(f"{OPTIONS} --seed 1 --rounds 2 --checkpoint.keep true", left.with_name("new.h5")) == 0
        left.chmod(0o600)
        checkpoint_beside(left).unlink()
        assert go(f"{OPTIONS} --seed 1 --checkpoint.keep true", left, "--overwrite") == 0
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in left.parent.iterdir()}
    kept = {f"{name}{more}" for name in ("new.h5", "run.h5") for more in ("", ".checkpoint", ".checkpoint.1")}
    assert modes == {name: 0o640 if name[0] == "n" else 0o600 for name in kept}


def test_what_is_no_file(tmp_path: Path) -> None:
    """Is never replaced, whatever options say."""
    pipe, loop, server = tmp_path / "pipe", tmp_path / "loop", socket.socket(socket.AF_UNIX)
    device = Path("/dev/null")
    if os.access(device.parent, os.W_OK):  # a fault of the program would replace the machine's own
        device = tmp_path / "device"
        try:
            os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("may write /dev, but not make a device elsewhere")
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    (tmp_path / "to_pipe").symlink_to(pipe)
    with server:
        server.bind(str(tmp_path / "socket"))
        for path, said in {
            device: "is a device, not a file",
            pipe: "is a pipe, not a file",
            tmp_path / "to_pipe": "is a pipe, not a file",
            tmp_path / "socket": "is a socket, not a file",
            loop: "is a link that leads back to itself, not a file",
            tmp_path: "is a folder, not a file",
        }.items():
            for how in ("--overwrite", "--resume"):
                with pytest.raises(BadInput) as caught:
                    go(OPTIONS, path, how)
                assert str(caught.value) == f"--output = {path}: {said}"
    pipe.rename(checkpoint_beside(tmp_path / "run.h5"))
    with pytest.raises(BadInput, match=r"run.h5.checkpoint, the place of its checkpoint, is a pipe$"):
        go(OPTIONS, tmp_path / "run.h5")
    left = {path.name for path in tmp_path.iterdir() if path != device}
    assert left == {"run.h5.checkpoint", "loop", "to_pipe", "socket"}


def test_a_link_to_the_output_has_its_lock(tmp_path: Path) -> None:
    """And its checkpoint; oracle: the file that both names lead to."""
    link = tmp_path / "links" / "last.h5"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "run.h5")
    lock = Lock()
    lock.take(link)
    with pytest.raises(InUse):
        take(tmp_path / "run.h5")
    lock.release()
    assert checkpoint_beside(link) == tmp_path / "run.h5.checkpoint"


# Runs


def test_a_living_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Is named, in one line, to whoever wants its output; killed, it is taken over from, with all its rounds."""
    path, options = tmp_path / "run.h5", f"{OPTIONS} --rounds 4000"
    job = start(2, "-m", "fedmpi", *shlex.split(options), "--output", path)
    assert job.stdout
    while not job.stdout.readline().startswith("round    5/"):
        pass
    pid = int(results.open(path).attributes["pid"])
    for how in ([], ["--overwrite"], ["--resume"]):
        with pytest.raises(BadInput) as caught:
            go(options, path, *how)
        said = rf"--output = {path}: is in use by process {pid} on {ME.host} since [-0-9T:+]+; its lock is (.*)"
        found = re.fullmatch(said, str(caught.value))
        assert found
        assert Path(found[1]) == lock_beside(path)
    os.kill(pid, signal.SIGKILL)
    job.communicate(timeout=60)
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_JOB_END_TIME", str(time.time() + 20))
        assert go(options, path, "--resume") == REQUEUE
    said = capfd.readouterr().out
    assert re.match(
        rf"{path}: was in use by process {pid} on .*, which no longer exists; this run takes over\n", said
    )
    assert results.open(path).rounds["round"].tolist()[:5] == [1, 2, 3, 4, 5]
    assert {one.name for one in tmp_path.iterdir()} == {"run.h5", "run.h5.checkpoint", "run.h5.checkpoint.1"}


def test_a_checkpoint_that_is_replaced(broken: Path, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the run is set up that goes on from it; oracle: the whole run."""
    later, assemble = left.with_name("later"), course.assemble
    (left.parent / "more").mkdir()
    interrupt(f"{OPTIONS} --seed 1", left.with_name("whole.h5"), left.parent / "more", after=5)
    checkpoint_beside(left.parent / "more" / "whole.h5").rename(later)

    def replaced(*arguments: Any) -> Any:
        later.replace(checkpoint_beside(left))
        return assemble(*arguments)

    monkeypatch.setattr(course, "assemble", replaced)
    assert go(f"{OPTIONS} --seed 1", left, "--resume") == 0
    assert not later.exists()
    assert_same_bits(results.open(left), results.open(broken / "run.h5"))


def test_a_results_file_that_is_replaced(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, by another run's: that one stays, and so does the checkpoint."""
    assemble, other = course.assemble, finished(left.with_name("other.h5")).read_bytes()
    before = checkpoint_beside(left).read_bytes()

    def replaced(*arguments: Any) -> Any:
        left.write_bytes(other)
        return assemble(*arguments)

    monkeypatch.setattr(course, "assemble", replaced)
    with pytest.raises(BadInput, match=r"run.h5: was replaced while the run was set up"):
        go(f"{OPTIONS} --seed 1", left, "--resume")
    assert (left.read_bytes(), checkpoint_beside(left).read_bytes()) == (other, before)
    assert not lock_beside(left).exists()


def test_a_checkpoint_without_its_results_file(left: Path) -> None:
    """Is kept, and named, unless the run is to start anew."""
    left.unlink()
    beside = checkpoint_beside(left)
    before = beside.read_bytes()
    missing = f"--resume: {left} is missing, but its checkpoint {beside} exists"
    anew = f"{missing}; --overwrite instead of --resume starts again"
    there = f"--output = {beside}: exists already without its results file; give --overwrite to replace it"
    for how, said in {"--resume=true": anew, "--resume=false": there}.items():
        with pytest.raises(BadInput) as caught:
            go(OPTIONS, left, how)
        assert str(caught.value) == said
        assert [path.name for path in left.parent.iterdir()] == [beside.name]
    assert beside.read_bytes() == before
    assert go(f"{OPTIONS} --rounds 1", left, "--overwrite") == 0
    assert list(left.parent.iterdir()) == [left]


def test_runs_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, also after bad input and a failure; two at once are refused."""
    path, options = tmp_path / "new" / "run.h5", f"{OPTIONS} --rounds 2"
    with pytest.raises(BadInput, match="--clients = 3: must be at most 0"):
        go(f"{options} --partition.min_samples 5000", path)
    assert not list(tmp_path.iterdir()), "nor is a folder left that was made for the lock"
    experiment, config = parse([*options.split(), "--output", str(path)])
    outcomes = experiment.outcomes(Alone(), config)
    next(outcomes)
    with pytest.raises(BadInput, match=f"is in use by process {os.getpid()} on"):
        go(options, path, "--overwrite")
    outcomes.close()  # type: ignore[attr-defined]
    assert results.open(path).status == "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(SCAFFOLD, "round", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(options, path, "--overwrite")
    assert go(options, path, "--overwrite") == 0
    assert go(options, path, "--overwrite") == 0
    assert [one.name for one in path.parent.iterdir()] == ["run.h5"]
