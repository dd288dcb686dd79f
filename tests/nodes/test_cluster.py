"""The make-believe nodes themselves: what each has of its own, what can happen to one, and that nothing stays."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.nodes.cluster import MPIS, PREFIX, Cluster, Mpi, Node, needs_nodes, until
from tests.support.mpi import REPOSITORY, environment, succeed

pytestmark = needs_nodes


def hears(node: Node, other: Node) -> bool:
    """Whether a connection to a port that nobody listens on is refused, rather than never answered."""
    ask = (
        "import socket, sys; s = socket.socket(); s.settimeout(0.3); sys.exit(s.connect_ex((sys.argv[1], 9)) != 111)"
    )
    return subprocess.run(node.command(sys.executable, "-c", ask, other.name)).returncode == 0


def test_what_is_a_node_s_own(tmp_path: Path) -> None:
    with Cluster(2, "20m") as cluster, Cluster(2) as beside:
        one, two = cluster.nodes
        assert [node.run("hostname").strip() for node in (cluster.login, one, two)] == ["login", "node1", "node2"]
        one.run("touch", "/dev/shm/mine")
        assert one.run("ls", "/dev/shm").split() == ["mine"]
        assert not any(node.run("ls", "/dev/shm") for node in (two, cluster.login, *beside.nodes))
        assert [node.run("df", "--output=size", "-BM", "/dev/shm").split()[1] for node in (one, two)] == [
            "20M",
            "20M",
        ]
        one.shrink("5m")
        assert [node.run("df", "--output=size", "-BM", "/dev/shm").split()[1] for node in (one, two)] == ["5M", "20M"]
        assert one.run("sh", "-c", "echo $$").strip() in {str(number) for number in range(2, 50)}, "a process number"
        (tmp_path / "file").write_text("content")
        two.hide(tmp_path / "file")
        assert [node.run("cat", tmp_path / "file") for node in (one, two)] == ["content", ""]
        one.hide(tmp_path)
        assert [node.run("ls", tmp_path).split() for node in (one, two)] == [[], ["file"]]
        assert not cluster.processes()


def test_what_can_happen() -> None:
    with Cluster(2) as cluster, Cluster(2) as beside:
        one, two = cluster.nodes
        assert hears(one, two)
        assert hears(cluster.login, two)
        two.cut()
        assert not hears(one, two)
        assert hears(*beside.nodes)
        two.mend()
        assert hears(one, two)
        with subprocess.Popen(two.command("sleep", "1000")) as sleeping:
            until(lambda: any("sleep 1000" in command for command in two.processes().values()))
            two.stop()
            assert {Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in two.processes()} == {"T"}
            two.go_on()
            until(lambda: {Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in two.processes()} == {"S"})
            assert not one.processes()
            two.power_off()
            assert sleeping.wait(10) != 0
        assert not two.processes()
        assert not hears(one, two)
        two.boot()
        assert hears(one, two)


SENDS = """
import socket, sys, time
with socket.create_server(("", 99)) as server:
    print("listens", flush=True)
    peer, _ = server.accept()
    with peer:
        peer.sendall(bytes(500_000))
        peer.recv(1)
"""
RECEIVES = """
import socket, time
began = time.monotonic()
with socket.create_connection(("node1", 99)) as peer:
    connected, size = time.monotonic(), 0
    while size < 500_000:
        size += len(peer.recv(1 << 20))
    print(connected - began, time.monotonic() - connected)
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_slow_switch() -> None:
    """Oracle: by hand. To connect takes two messages of 30 ms; 4 million bits take a second at 4 Mbit/s."""
    with Cluster(2, delay_ms=30, mbit=4) as cluster:
        one, two = cluster.nodes
        with subprocess.Popen(one.command(sys.executable, "-c", SENDS), stdout=subprocess.PIPE, text=True) as sender:
            assert sender.stdout
            assert sender.stdout.readline() == "listens\n"
            connecting, receiving = map(float, two.run(sys.executable, "-c", RECEIVES).split())
        assert 0.06 <= connecting < 1
        assert 1.0 <= receiving < 5
        assert not cluster.processes()


@pytest.mark.parametrize("mpi", MPIS)
def test_jobs(mpi: Mpi) -> None:
    """Oracle: MPI's own word on who shares memory with whom."""
    program = "from mpi4py import MPI; w = MPI.COMM_WORLD; n = w.Split_type(MPI.COMM_TYPE_SHARED);"
    program += "found = w.gather((MPI.Get_processor_name(), n.Get_size())); print(found if found else '', end='')"
    with Cluster(3) as cluster:
        found = succeed(cluster.run((2, 0, 1), "-c", program, mpi=mpi))
    assert found.strip() == "[('node1', 2), ('node1', 2), ('node3', 1)]"


MAKES_NODES = """
import sys
from tests.nodes.cluster import Cluster
with Cluster(2) as cluster:
    cluster.start((1, 1), sys.argv[1]).await_text("here")
    namespaces = [node._namespace for node in (cluster.login, *cluster.nodes)]
    cluster.nodes[0].stop()
    cluster.nodes[1].cut()
    print("there", cluster._folder, *namespaces, flush=True)
    input()
    sys.exit("as if a test had failed")
"""


def in_use() -> set[str]:
    """The numbers of the network namespaces in which there are processes."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):  # the process has ended
            found.add(str(entry.stat().st_ino))
    return found


@pytest.mark.parametrize("is_killed", [False, True])
def test_nothing_stays(is_killed: bool, tmp_path: Path) -> None:
    """Neither of a program that fails, nor of one that is killed, while a node is stopped and another one cut off."""
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; print('here', flush=True); time.sleep(1000)")
    command = [sys.executable, "-c", MAKES_NODES, str(sleeper)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        word, folder, *namespaces = program.stdout.readline().split()
        assert (word, len(namespaces)) == ("there", 3)
        assert {*namespaces} <= in_use()
        if is_killed:
            program.kill()
        program.communicate("\n" if not is_killed else None, timeout=60)
    until(lambda: not in_use().intersection(namespaces))
    assert Path(folder).name.startswith(PREFIX)
    assert Path(folder).exists() == is_killed
    with Cluster(1):
        assert not Path(folder).exists()
