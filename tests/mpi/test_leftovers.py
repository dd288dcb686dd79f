"""What killed jobs leave in shared memory, in a folder that stands for /dev/shm."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmpi import doctor
from fedmpi.mpi import leftovers

SIZE = 4096
#: A user who is not root.
SOMEBODY = 12345
# A job that has mapped a file, and closed it as MPI libraries do, and keeps a list of it, until it is told to end, or
# killed.
JOB = """
import mmap, os, sys
from pathlib import Path
from fedmpi.mpi import leftovers
leftovers.MEMORY = Path(sys.argv[1])
path = leftovers.MEMORY / sys.argv[2]
path.write_bytes(bytes(4096))
with path.open("r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
for number in map(int, os.listdir("/proc/self/fd")):  # mmap keeps one of its own
    if number > 2 and os.path.exists(f"/proc/self/fd/{number}") and os.path.samefile(f"/proc/self/fd/{number}", path):
        os.close(number)
leftovers.keep_list(leftovers.mine() if sys.argv[3] == "listed" else [])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(leftovers, "MEMORY", tmp_path)
    return tmp_path


@contextmanager
def job(memory: Path, name: str, listed: str = "listed") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", JOB, str(memory), name, listed]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate()


def test_what_a_killed_job_has_left(memory: Path) -> None:
    """Its files and its list go, those of a living job and of nobody stay; whatever the files are called."""
    (memory / "mpich_shm_1_0").write_bytes(bytes(SIZE))
    with job(memory, "of the living") as living:
        with job(memory, "of the dead") as dead:
            assert leftovers.remove_listed() == 0
            dead.send_signal(signal.SIGKILL)
        assert leftovers.remove_listed() == SIZE
        names = {path.name for path in memory.iterdir() if not path.name.startswith("fedmpi-job-")}
        assert names == {"mpich_shm_1_0", "of the living"}
        assert len(list(memory.iterdir())) == 3, "and the list of the living"
        living.terminate()


def test_a_job_that_ends_takes_its_list_with_it(memory: Path) -> None:
    with job(memory, "file"):
        assert len(list(memory.iterdir())) == 2
    assert [path.name for path in memory.iterdir()] == ["file"]


def test_another_file_of_the_same_name_is_not_touched(memory: Path) -> None:
    with job(memory, "mpich_shm_2_0") as dead:
        dead.send_signal(signal.SIGKILL)
    (memory / "other").write_bytes(bytes(SIZE))
    (memory / "other").rename(memory / "mpich_shm_2_0")
    assert leftovers.remove_listed() == 0
    assert [path.name for path in memory.iterdir()] == ["mpich_shm_2_0"]


def test_lists_that_somebody_has_made_up(memory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """They cannot name what lies elsewhere; links are not followed."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "file"
    elsewhere.write_text("precious")
    about = elsewhere.stat()
    prefix = f"fedmpi-job-{os.getuid()}-1-"
    (memory / f"{prefix}a").write_text(f"{about.st_dev} {about.st_ino} ../{elsewhere.parent.name}/file\nnonsense\n")
    (memory / f"{prefix}b").symlink_to(elsewhere)
    (memory / "link").symlink_to(elsewhere)
    (memory / f"{prefix}c").write_text(f"{about.st_dev} {about.st_ino} link\n")
    os.mkfifo(memory / f"{prefix}d")
    (memory / "mine").touch()
    about = (memory / "mine").stat()
    kept = {"link", "mine", f"{prefix}b", f"{prefix}d"}
    if os.getuid() == 0:  # who may give files away, and whom nothing but this keeps from removing those of others
        (memory / f"{prefix}e").write_text(f"{about.st_dev} {about.st_ino} mine\n")
        os.chown(memory / f"{prefix}e", SOMEBODY, SOMEBODY)
        kept.add(f"{prefix}e")
    assert leftovers.remove_listed() == 0
    assert elsewhere.read_text() == "precious"
    assert (memory / "link").is_symlink()
    assert {path.name for path in memory.iterdir()} == kept


def test_what_nobody_has_listed(
    memory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only files with names of MPI libraries that no process has mapped or open, and only where that can be told."""
    names = [
        "mpich_shm_89f91075_0",
        "mpich_shar_tmpAb3xYz",
        "ucx_shm_posix_30d150f3",
        "vader_segment.vm.0.51ec0001.2",
    ]
    for name in [*names, "mpich_vci_1_0", "sm_segment.n.0.1.0", "somebody's", "mpich_shm_", "mpich_shm_1_0.kept"]:
        (memory / name).write_bytes(bytes(SIZE))
    theirs = set()
    if os.getuid() == 0:
        theirs.add("mpich_shm_5_0")
        (memory / "mpich_shm_5_0").write_bytes(bytes(SIZE))
        os.chown(memory / "mpich_shm_5_0", SOMEBODY, SOMEBODY)
    with (memory / "mpich_vci_1_0").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    with job(memory, "mpich_shm_a_0", "unlisted") as living, (memory / "sm_segment.n.0.1.0").open():
        monkeypatch.setattr(leftovers, "ALL_PROCESSES", 0)
        with job(memory, "of the dead, and listed") as dead:
            dead.send_signal(signal.SIGKILL)
        assert doctor.clean() == 1
        assert not (memory / "of the dead, and listed").exists(), "of which there is no doubt"
        assert "in this container not all processes" in capsys.readouterr().out
        assert all((memory / name).exists() for name in names)
        monkeypatch.setattr(leftovers, "ALL_PROCESSES", os.stat("/proc/self/ns/pid").st_ino)
        assert doctor.clean() == 0
        assert f"removed {len(names) * SIZE >> 10} KiB from /dev/shm" in capsys.readouterr().out
        left = {path.name for path in memory.iterdir() if not path.name.startswith("fedmpi-job-")}
        mine = {
            "mpich_vci_1_0",
            "sm_segment.n.0.1.0",
            "somebody's",
            "mpich_shm_",
            "mpich_shm_a_0",
            "mpich_shm_1_0.kept",
        }
        assert left == mine | theirs
        living.terminate()
    mapped.close()
