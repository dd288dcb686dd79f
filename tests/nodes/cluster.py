"""Make-believe nodes on this machine: real MPI jobs over several nodes that share nothing but files.

A node is a set of Linux namespaces: a network, a host name, process numbers, System V IPC and mounts of its own, with
a /dev/shm of its own. A bridge joins the nodes and a login node, where `mpirun` runs. So MPI goes over TCP between
nodes and through shared memory within one, as on a cluster. Nothing of the machine itself changes, and nothing has a
name outside: sets of nodes can stand beside each other, and the kernel removes a set when the process that made it
ends, however it ends. By hand: python -m tests.nodes --help.

What is not as on a cluster: files are one machine's, and what stands for ssh enters namespaces, so that what a rank
prints may reach `mpirun` even while a link is cut.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

import pytest

from tests.support.mpi import default_launcher, environment

Mpi = Literal["mpich", "openmpi"]
OPEN_MPI = "mpirun.openmpi"
NEEDED = ("unshare", "nsenter", "setpriv", "mount", "hostname", "ip")
PREFIX = "fedmpi-nodes-"
NETWORK = "10.77.0"
#: Seconds until something that takes moments has happened.
PATIENCE = 30.0
NAMESPACES = ("--net", "--uts", "--ipc", "--mount")
# The first process of a node: it sets the node up, says so, and collects whatever processes lose their parents.
INIT = """
set -e
hostname "$1"
mount -t tmpfs -o size="$2" tmpfs /dev/shm
mount --bind "$3" /etc/hosts
ip link set lo up
setpriv --pdeathsig KILL sleep infinity >/dev/null 2>&1 &
echo ready
exec >/dev/null 2>&1
wait
"""
# What joins them.
SWITCH = "ip link add name bridge type bridge && ip link set bridge up && %s"
# Stands for ssh as MPICH's and Open MPI's mpirun call it: [FLAGS] HOST COMMAND... As with ssh, nothing tells that the
# command has ended while one of the links is cut, or the power off. It ends with mpirun, also while it is stopped.
RSH = """#!/usr/bin/env -S setpriv --pdeathsig KILL sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
here=$(dirname "$0")
node=$(cat "$here/$host.pid")
setpriv --pdeathsig KILL nsenter --target "$node" --net --uts --ipc --mount --pid -- sh -c "$*" <&0 &
trap 'exit 143' TERM
wait $!
status=$?
while [ -e "$here/$host.cut" ] || [ -e "$here/login.cut" ]; do sleep 0.1; done
exit $status
"""


def missing() -> str:
    """Why there can be no nodes here; empty: there can."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "nodes are made by root on Linux"
    if lacking := [name for name in NEEDED if not shutil.which(name)]:
        return f"{', '.join(lacking)} missing: apt-get install iproute2 util-linux hostname"
    attempt = "ip link add name one type veth peer name other && mount -t tmpfs tmpfs /dev/shm"
    command = [
        "unshare",
        *NAMESPACES,
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        f"{SWITCH % 'true'} && {attempt}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


needs_nodes = pytest.mark.skipif(bool(missing()), reason=missing())
needs_open_mpi = pytest.mark.skipif(
    not shutil.which(OPEN_MPI), reason="needs Debian's Open MPI: apt-get install openmpi-bin"
)
#: For tests with a parameter `mpi`.
MPIS = ["mpich", pytest.param("openmpi", marks=needs_open_mpi)]


class Node:
    """One node, or the login node.

    Args:
        name: its host name.
        number: the last byte of its address.
        folder: what the nodes of this set know of each other.
        memory: the size of its /dev/shm, as `mount` reads it.
        switch: a process whose network has the bridge; None: something else connects the node before `connect`.
    """

    def __init__(self, name: str, number: int, folder: Path, memory: str, switch: int | None) -> None:
        self.name = name
        self._number = number
        self._folder = folder
        self._memory = memory
        self._switch = switch
        self._is_cut = folder / f"{name}.cut"
        self._is_off = False
        self.boot()

    def boot(self) -> None:
        """Start the node; also after `power_off`."""
        # The login node sees the machine's processes: those of other nodes are entered from there.
        own = ("--pid", "--fork", "--kill-child", "--mount-proc") if self.name.startswith("node") else ()
        arguments = ["sh", "-c", INIT, "sh", self.name, self._memory, str(self._folder / "hosts")]
        self._holder = _start("unshare", *NAMESPACES, *own, *arguments)
        self._first = _children(self._holder.pid)[0] if own else self._holder.pid
        self._namespace = _namespace(self._first)
        self._at_rest = self._all_processes().keys()
        (self._folder / f"{self.name}.pid").write_text(str(self._first))
        if self._switch is None:
            return
        cable, on_switch = f"to-{self.name}", ["nsenter", "--target", str(self._switch), "--net", "ip", "link"]
        # Of a node whose power was off the kernel removes it in its own time.
        subprocess.run([*on_switch, "del", cable], capture_output=True)
        # Always the same address, or the others would ask for the one before for a while.
        card = ["eth0", "address", f"02:00:00:00:00:{self._number:02x}"]
        peer = ["type", "veth", "peer", "name", *card, "netns", str(self._first)]
        _call(*on_switch, "add", "name", cable, "master", "bridge", *peer)
        _call(*on_switch, "set", cable, "up")
        self.connect()

    def connect(self) -> None:
        """Give the network card its address."""
        self.run("ip", "addr", "add", f"{NETWORK}.{self._number}/24", "dev", "eth0")
        self.mend()

    def command(self, *command: str | Path) -> list[str]:
        """What runs a command on this node, in the same folder as here."""
        spaces = [*NAMESPACES, "--pid"] if self._first != self._holder.pid else [*NAMESPACES]
        enter = ["nsenter", "--target", str(self._first), *spaces, "--", "env", f"--chdir={os.getcwd()}"]
        return [*enter, *map(str, command)]

    def run(self, *command: str | Path) -> str:
        """Run a command, which must go well; its standard output."""
        return _call(*self.command(*command))

    def processes(self) -> dict[int, str]:
        """Number, as this machine counts, and command of whatever runs here and did not when the node started."""
        return {pid: command for pid, command in self._all_processes().items() if pid not in self._at_rest}

    def _all_processes(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # one that has ended meanwhile
                if (
                    entry.name.isdigit()
                    and _namespace(pid := int(entry.name)) == self._namespace
                    and _state(pid) != "Z"
                ):
                    found[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes, but for the first."""
        _signal(self.processes(), number)

    # What may happen to a node.

    def cut(self) -> None:
        """Unplug the network."""
        self._is_cut.touch()
        self.run("ip", "link", "set", "eth0", "down")

    def mend(self) -> None:
        """Plug it in again."""
        self._is_cut.unlink(missing_ok=True)
        self.run("ip", "link", "set", "eth0", "up")

    def power_off(self) -> None:
        """No network any more, and then no process: nobody else hears of it."""
        self.cut()
        self.end()
        self._is_off = True

    def end(self) -> None:
        """End all processes."""
        _end(self._holder)
        until(lambda: not _signal(self._all_processes(), signal.SIGKILL))

    def repair(self) -> None:
        """End whatever runs, and be on and connected again."""
        if self._is_off:
            self.boot()
            self._is_off = False
        until(lambda: not _signal(self.processes(), signal.SIGKILL))
        self.mend()

    def stop(self) -> None:
        """Let time stand still for all processes."""
        for pid in sorted(self.processes()):  # parents first: nsenter stops itself once more when its child stops
            _stop(pid)

    def go_on(self) -> None:
        """End `stop`, children first."""
        _signal(self.processes(), signal.SIGCONT)

    def hide(self, path: str | Path) -> None:
        """Let a folder be empty, or a file be one without content, on this node alone."""
        empty = Path(tempfile.mkdtemp(dir=self._folder))
        if not Path(path).is_dir():
            empty = empty / "file"
            empty.touch()
        self.run("mount", "--bind", empty, path)

    def shrink(self, memory: str) -> None:
        """Give /dev/shm another size."""
        self.run("mount", "-o", f"remount,size={memory}", "/dev/shm")


class Job:
    """An MPI job that has been started.

    Attributes:
        process: its `mpirun`.
    """

    def __init__(self, command: list[str], folder: Path, variables: dict[str, str]) -> None:
        self._paths = folder / "stdout", folder / "stderr"
        with self._paths[0].open("w") as out, self._paths[1].open("w") as err:
            self.process: subprocess.Popen[str] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                env=variables,
            )

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._paths[0].read_text()

    @property
    def stderr(self) -> str:
        """Likewise, on standard error."""
        return self._paths[1].read_text()

    def await_text(self, text: str, seconds: float = 120.0) -> None:
        """Wait until this is part of standard output."""
        with suppress(AssertionError):
            until(lambda: text in self.stdout or self.process.poll() is not None, seconds)
        assert text in self.stdout, f"exit status {self.process.poll()}\n{self.stdout}\n{self.stderr}"

    def wait(self, seconds: float = 240.0) -> int:
        """The exit status of `mpirun`, when it is over."""
        return self.process.wait(seconds)


class Cluster:
    """A set of nodes; as a context it is removed at the end, with all that runs there.

    Args:
        count: of nodes: node1, node2, ...
        memory: size of each node's /dev/shm.
        delay_ms, mbit: what a frame takes longer, and the rate of each link in million bits per second, see
            `switch.c`; 0: as fast as the machine can. With either of them, nodes cannot be switched on again.

    Attributes:
        nodes: by number, from 0: the first is node1.
        login: where `mpirun` runs.
    """

    def __init__(self, count: int, memory: str = "512m", delay_ms: float = 0, mbit: float = 0) -> None:
        self._count = count
        self._memory = memory
        self._link = delay_ms, mbit
        self._stack = ExitStack()
        self._jobs: list[Job] = []

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            _remove_leftovers()
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-")))
            numbers = {"login": 100, **{f"node{number}": number for number in range(1, self._count + 1)}}
            lines = ["127.0.0.1 localhost", *(f"{NETWORK}.{number} {name}" for name, number in numbers.items())]
            (self._folder / "hosts").write_text("\n".join(lines) + "\n")
            (self._folder / "rsh").write_text(RSH)
            (self._folder / "rsh").chmod(0o755)

            bridge = None
            if not any(self._link):
                switch = _start("unshare", "--net", "sh", "-c", SWITCH % "echo ready && exec sleep infinity")
                stack.callback(_end, switch)
                bridge = switch.pid
            made = []
            for name, number in numbers.items():
                made.append(Node(name, number, self._folder, self._memory, bridge))
                stack.callback(made[-1].end)
            if any(self._link):
                _call("cc", "-O2", "-o", str(self._folder / "switch"), str(Path(__file__).with_name("switch.c")))
                processes = [(self._folder / f"{node.name}.pid").read_text() for node in made]
                switch = _start(str(self._folder / "switch"), *map(str, self._link), *processes)
                stack.callback(_end, switch)
                for node in made:
                    node.connect()
            self.login, *self.nodes = made
            stack.callback(self._end_jobs)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, ranks: Sequence[int], *arguments: str | Path, mpi: Mpi = "mpich", **variables: str) -> Job:
        """Start `python ARGUMENTS` from the login node.

        Args:
            ranks: on each node, in order; rank 0 is on the first that has any.
            variables: of the environment.
        """
        hosts = ",".join(f"{node.name}:{some}" for node, some in zip(self.nodes, ranks, strict=False) if some)
        rsh = str(self._folder / "rsh")
        if mpi == "mpich":
            start = [default_launcher(), "-launcher", "ssh", "-launcher-exec", rsh, "-hosts", hosts]
        else:
            start = [OPEN_MPI, "--allow-run-as-root", "--bind-to", "none", "--host", hosts]
            parameters = {
                "plm_rsh_agent": rsh,
                "pml": "ob1",
                "btl": "self,vader,tcp",
                "btl_tcp_if_include": "eth0",
                "oob_tcp_if_include": "eth0",
                "mpi_yield_when_idle": "1",  # ranks are more than the machine has cores
            }
            start += [word for name, value in parameters.items() for word in ("--mca", name, value)]
            variables["MPI4PY_MPIABI"] = "openmpi"
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self._folder))
        command = self.login.command(*start, "-n", str(sum(ranks)), sys.executable, *arguments)
        # Of the nodes of several sets that have the same name, each has a folder of its own.
        job = Job(command, folder, {**environment(), "TMPDIR": str(self._folder), **variables})
        self._jobs.append(job)
        return job

    def run(
        self, ranks: Sequence[int], *arguments: str | Path, mpi: Mpi = "mpich", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Do so, and wait for the end."""
        job = self.start(ranks, *arguments, mpi=mpi, **variables)
        return subprocess.CompletedProcess(job.process.args, job.wait(), job.stdout, job.stderr)

    def processes(self) -> dict[str, dict[int, str]]:
        """What runs on each node, the login node included."""
        return {node.name: found for node in (self.login, *self.nodes) if (found := node.processes())}

    def repair(self) -> None:
        """End all jobs, and let every node be as it was; those whose power was off start anew."""
        self._end_jobs()
        for node in (self.login, *self.nodes):
            node.repair()

    def _end_jobs(self) -> None:
        for job in self._jobs:
            _end(job.process)
        self.login.signal(signal.SIGKILL)


def until(is_so: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for something to happen."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def _remove_leftovers() -> None:
    """Folders of processes that were killed; the kernel has removed all else."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not Path("/proc", path.name.split("-")[2]).exists():
            shutil.rmtree(path, ignore_errors=True)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _start(*command: str) -> subprocess.Popen[str]:
    """Start what holds namespaces, and wait until it says that they are ready."""
    # Whatever becomes of this process, they end with it.
    alone = ["setpriv", "--pdeathsig", "KILL", *command]
    process = subprocess.Popen(alone, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout as pipe:
        assert pipe.readline() == "ready\n", f"{command} fails"
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def _signal(processes: dict[int, str], number: signal.Signals) -> dict[int, str]:
    """Send it to all, children first; gives them."""
    for pid in sorted(processes, reverse=True):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return processes


def _stop(pid: int) -> None:
    """Stop a process, and wait until it has stopped."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        until(lambda: _state(pid) in ("T", "Z", ""))


def _children(pid: int) -> list[int]:
    return [int(word) for word in _call("ps", "-o", "pid=", "--ppid", str(pid)).split()]


def _namespace(pid: int) -> int:
    """Which network a process is in: one that has entered a node but for its process numbers counts as there."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def _state(pid: int) -> str:
    """R: it runs, S: it sleeps, T: it is stopped, Z: it has ended and nobody has asked how; empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
