"""Which GPU a rank takes, where GPUs are make-believe; and what the doctor sees of ranks on two nodes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.mpi import REPOSITORY, mpirun, succeed

CPUS = ["cpu"] * 5
#: By hand: of five ranks number 0 serves. Those that train take their node's GPUs in turn.
EXPECTED = {
    "all to be seen by all": ["cpu", "a", "b", "c", "d"],
    "one a task": ["cpu", "b", "c", "d", "e"],
    "two a task": ["cpu", "c", "f", "g", "j"],
    "some of them": ["cpu", "GPU-5f2e", "GPU-91aa", "GPU-5f2e", "GPU-91aa"],
    "fewer than ranks": ["cpu", "a", "b", "c", "a"],
    "none": CPUS,
    "none on one node": ["cpu", "cpu", "a", "cpu", "b"],
    "not wanted": CPUS,
    "ranks in turn on two nodes": ["cpu", "A", "a", "B", "b"],
    "the server trains": ["a", "a", "b", "a", "b"],
    "the server trains, in turn on two nodes": ["a", "A", "a", "B", "b"],
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of five ranks found."""
    folder = tmp_path_factory.mktemp("devices")
    succeed(mpirun(5, "-m", "mpi4py", REPOSITORY / "tests" / "jobs" / "devices.py", folder, OMP_NUM_THREADS="1"))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(5)]


@pytest.mark.parametrize("name", EXPECTED)
def test_devices(seen: list[dict[str, Any]], name: str) -> None:
    assert [one[name] for one in seen] == EXPECTED[name]


@pytest.mark.parametrize("name", ["none, and asked for", "none on one node, and asked for"])
def test_a_gpu_that_is_not_there(seen: list[dict[str, Any]], name: str) -> None:
    """Oracle: the same complaint on every rank, of the first that trains and sees none."""
    for one in seen:
        assert re.fullmatch(r"--device = cuda: rank 1 on \S+ sees no GPU", one[name])


def test_the_doctor_on_two_nodes(seen: list[dict[str, Any]]) -> None:
    """Oracle: by hand; all ranks find the same problems. Nodes of two ranks, two and one."""
    for one in seen:
        assert len(one["problems"]) == 5
        shared = [problem for problem in one["problems"] if "that train, with 1000 threads each, share" in problem]
        assert [re.search(r": (\d) ranks? that train", problem)[1] for problem in shared] == ["1", "2", "1"]  # type: ignore[index]
        assert any(problem.endswith("is a folder, not a file: give another --output") for problem in one["problems"])
    told = "\n".join(seen[0]["told"])
    assert "5 ranks on 3 nodes, 4 of them for training" in told
    assert len(re.findall(r"^node \S+: 2 ranks, 0 GPUs, /dev/shm", told, re.MULTILINE)) == 2
    assert re.search(r"^rank 0 on \S+: server, \d+ cores? \(", told, re.MULTILINE)
    assert re.search(r"^rank 4 on \S+: trains on cpu, \d+ cores? \(", told, re.MULTILINE)
    assert re.search(r"broadcast in [\d.]+ ms \([\d.]+ GB/s\), mean over the ranks in [\d.]+ ms$", told)
