"""What one node of a job lacks is said before the first round: one line, with the node's name, exit status 2."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from fedmpi import results
from tests.nodes.cluster import MPIS, Cluster, Mpi, needs_nodes, until
from tests.support.mpi import REPOSITORY, succeed

pytestmark = needs_nodes

PROGRAMS = REPOSITORY / "tests" / "jobs"
SMALL = "--clients 4 --cohort 4 --rounds 1 --local.epochs 1 --model MLP --model.hidden [1000,600]"


@pytest.mark.further
def test_what_one_node_lacks(tmp_path: Path) -> None:
    """Memory, a user's module, and a file: each on the second of two nodes alone."""
    module = tmp_path / "own"
    module.mkdir()
    shutil.copy(PROGRAMS / "patient.py", module)
    rounds = tmp_path / "rounds.txt"
    rounds.write_text("0 1 2 3\n")
    output = tmp_path / "run.h5"
    path = f"{REPOSITORY}:{module}"

    def said(cluster: Cluster, *options: str) -> str:
        job = cluster.run((2, 2), "-m", "fedmpi", *SMALL.split(), *options, "--output", output, PYTHONPATH=path)
        assert job.returncode == 2, job.stdout + job.stderr
        lines = [line for line in job.stderr.splitlines() if line.startswith("fedmpi: error: ")]
        assert len(lines) == 1, job.stderr
        assert "Traceback" not in job.stderr
        assert not output.exists()
        return lines[0]

    with Cluster(2) as cluster:
        two = cluster.nodes[1]
        two.hide(module)
        two.hide(rounds)
        line = said(cluster, "--algorithm", "patient.Patient", "--algorithm.hold", str(rounds))
        assert line.startswith("fedmpi: error: --algorithm = patient.Patient: ")
        assert line.endswith(" (on node2)")
        line = said(cluster, "--sampler", "FixedList", "--sampler.file", str(rounds))
        assert line.startswith("fedmpi: error: --sampler.file ")
        assert line.endswith(" (on node2)")
        two.shrink("24m")
        assert said(cluster).startswith("fedmpi: error: /dev/shm on node2 is too small: ")
        two.shrink("512m")
        succeed(cluster.run((2, 2), "-m", "fedmpi", *SMALL.split(), "--output", output, PYTHONPATH=path))


@pytest.mark.parametrize("mpi", MPIS)
def test_what_a_killed_job_has_left(mpi: Mpi, tmp_path: Path) -> None:
    """Its successor removes it, and says so once."""
    hold = tmp_path / "hold"
    hold.touch()
    output = tmp_path / "run.h5"
    options = f"--clients 4 --cohort 4 --rounds 999 --local.epochs 1 --model LogisticRegression --output {output}"
    variables = {"PYTHONPATH": f"{REPOSITORY}:{PROGRAMS}"}
    with Cluster(2) as cluster:
        patient = ["--algorithm", "patient.Patient", "--algorithm.hold", str(hold)]
        job = cluster.start((2, 2), "-m", "fedmpi", *options.split(), *patient, mpi=mpi, **variables)
        # In the first rounds the ranks still create memory, and a file of that moment would be in no list.
        until(lambda: output.exists() and len(results.open(output).rounds.get("round", ())) > 3, 60)
        for node in cluster.nodes:
            node.signal(signal.SIGKILL)
        job.process.kill()
        job.wait()
        until(lambda: not any(node.processes() for node in cluster.nodes))
        assert all(node.run("ls", "/dev/shm") for node in cluster.nodes), "else there is nothing to remove"
        again = [*options.split(), "--rounds", "1", "--overwrite"]
        told = succeed(cluster.run((2, 2), "-m", "fedmpi", *again, mpi=mpi, **variables))
        assert told.count("removed files that killed jobs had left in /dev/shm: ") == 1
        assert not any(node.run("ls", "/dev/shm") for node in cluster.nodes)
