"""A node that goes away, is too small, or lacks a file: the job ends in time, says so once, and can be resumed.

All faults under both MPI libraries: pytest -n 0 -m slow tests/nodes/test_faults.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.nodes.cluster import MPIS, Cluster, Mpi, needs_nodes
from tests.nodes.faults import FAULTS, RANKS, Outcome, Trial, suffer, unbroken

pytestmark = needs_nodes

DEADLINE = 15
#: Seconds from the deadline until all ranks are gone that can do anything.
ENDING = 10
#: That of the default tests: the server vanishes.
HARDEST = "rank 0's node powered off"
#: What no rank can write down, because rank 0 or its launcher is gone, or a signal ended all at once.
UNWRITTEN = {
    "a rank killed",
    "rank 0 killed",
    "rank 0's node powered off",
    "mpirun killed",
    "SIGTERM twice, a client hangs",
    "a node's daemon killed",
    "the login node's link cut",
}
#: Likewise where the launcher of Open MPI is faster than the deadline.
UNWRITTEN_BY_OPEN_MPI = {"a rank leaves by os._exit(0)"}
#: Where something stays: what stands for ssh waits for a node that cannot answer, and daemons for the login node.
LEAVES_SOMETHING = {name for name in FAULTS if "cut" in name or "off" in name or "stopped for good" in name}
#: Open MPI's launcher waits for the daemon of such a node, for minutes, when all ranks that can do anything are gone.
UNREACHABLE = LEAVES_SOMETHING - {"the login node's link cut"}
#: Each node that lost rank 0 speaks for itself: they cannot be sure of each other.
OF_SEVERAL_NODES = {"rank 0's node powered off", "rank 0's node's link cut"}


def suffered(name: str, mpi: Mpi, folder: Path) -> Outcome:
    patience = 90 if FAULTS[name].goes_on else DEADLINE + ENDING + 5
    return suffer(FAULTS[name], Trial(folder, mpi, f"--deadline {DEADLINE}"), patience)


def check(name: str, mpi: Mpi, outcome: Outcome, sha256: str | None) -> None:
    """Oracle: the deadline, and the bits of the run that nothing came between."""
    assert outcome.resumed == ("finished", sha256), outcome.resume_stderr
    assert outcome.ranks_gone is not None, outcome.stderr
    assert not outcome.left or name in LEAVES_SOMETHING, outcome.left
    if FAULTS[name].goes_on:
        assert (outcome.exit_status, outcome.written, outcome.reports) == (0, "finished", 0), outcome.stderr
        return
    assert outcome.ranks_gone < DEADLINE + ENDING, outcome.stderr
    assert outcome.reports <= (2 if name in OF_SEVERAL_NODES else 1), outcome.stderr
    if name not in (UNWRITTEN if mpi == "mpich" else UNWRITTEN | UNWRITTEN_BY_OPEN_MPI):
        assert outcome.written == "failed", outcome.stderr
        if mpi == "mpich" or name not in UNREACHABLE:
            assert outcome.exit_status, outcome.stderr


@pytest.fixture(scope="module")
def sha256(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    return unbroken(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.further
def test_the_server_s_node_vanishes(sha256: str | None, tmp_path: Path) -> None:
    outcome = suffered(HARDEST, "mpich", tmp_path)
    check(HARDEST, "mpich", outcome, sha256)
    assert "rank 0 on node1 does not answer" in outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mpi", MPIS)
@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, mpi: Mpi, sha256: str | None, tmp_path: Path) -> None:
    check(name, mpi, suffered(name, mpi, tmp_path), sha256)


def refused(trial: Trial, cluster: Cluster) -> str:
    """The one line on standard error of a job that cannot start."""
    trial.start(cluster)
    assert trial.job.wait(60) == 2, trial.job.stderr
    (line,) = trial.job.stderr.strip().splitlines()
    assert line.startswith("fedmpi: error: ")
    assert not trial.path.exists()
    return line


def test_data_that_one_node_lacks(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "pictures"
    for name in [f"{kind}/{number}" for kind in "ab" for number in range(8)]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / f"{name}.png")
    data = f"--dataset ImageFolder --dataset.root {root} --dataset.size 8 --clients 2 --partition IID"
    with Cluster(len(RANKS)) as cluster:
        cluster.nodes[1].hide(root)
        line = refused(Trial(tmp_path, "mpich", data), cluster)
    assert "node2" in line
    assert str(root) in line
