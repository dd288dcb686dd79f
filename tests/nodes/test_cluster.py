"""The make-believe nodes themselves: what each has of its own, what can happen to one, and that nothing stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import REPOSITORY, environment, succeed
from tests.nodes.cluster import MPIS, PREFIX, Cluster, Mpi, Node, needs_nodes, until

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


@pytest.mark.parametrize("mpi", MPIS)
def test_jobs(mpi: Mpi) -> None:
    """Oracle: MPI's own word on who shares memory with whom."""
    program = "from mpi4py import MPI; w = MPI.COMM_WORLD; n = w.Split_type(MPI.COMM_TYPE_SHARED);"
    program += "found = w.gather((MPI.Get_processor_name(), n.Get_size())); print(found if found else '', end='')"
    with Cluster(3) as cluster:
        found = succeed(cluster.run((2, 0, 1), "-c", program, mpi=mpi))
    assert found.strip() == "[('node1', 2), ('node1', 2), ('node3', 1)]"


def test_nothing_stays(tmp_path: Path) -> None:
    """Neither after a test that fails, nor of a process that is killed."""

    def processes() -> list[str]:
        listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if str(tmp_path) in line]

    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; print('here', flush=True); time.sleep(1000)")
    with pytest.raises(AssertionError, match="exit status None"), Cluster(1) as cluster:
        cluster.start((1,), sleeper).await_text("there", seconds=1)
    assert not processes()
    program = f"""
from tests.nodes.cluster import Cluster
with Cluster(2) as cluster:
    cluster.start((1, 1), {str(sleeper)!r}).await_text("here")
    print("there", cluster._folder, flush=True)
    input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout
        word, folder = killed.stdout.readline().split()
        assert word == "there"
        assert processes()
        killed.send_signal(signal.SIGKILL)
    until(lambda: not processes())
    assert Path(folder).name.startswith(PREFIX)
    with Cluster(1):
        assert not Path(folder).exists()
