"""Collectives on four ranks: what arrives, in which pieces, who agrees, and that waiting costs nothing."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.mpi.world import World
from tests.jobs.collectives import CHUNK, SHAPES, values
from tests.support.mpi import REPOSITORY, mpirun, succeed

PROGRAMS = REPOSITORY / "tests" / "jobs"
RANKS = range(4)
#: How many ranks share a node, by the number of nodes; 0: as it is.
NODES = {1: 0, 2: 2, 4: 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks saw, on each number of nodes."""
    made = tmp_path_factory.mktemp("collectives")
    succeed(mpirun(4, "-m", "mpi4py", PROGRAMS / "collectives.py", made, *map(str, NODES.values())))
    return made


@pytest.fixture(params=NODES, ids=["one node", "two nodes", "four nodes"])
def nodes(request: pytest.FixtureRequest) -> int:
    """Into how many nodes the four ranks are (made to believe that they are) divided."""
    number: int = request.param
    return number


@pytest.fixture
def seen(nodes: int, folder: Path) -> list[dict[str, Any]]:
    """What each of four ranks saw."""
    return [pickle.loads((folder / f"{NODES[nodes]}-{rank}.pickle").read_bytes()) for rank in RANKS]


def test_roles(seen: list[dict[str, Any]]) -> None:
    """Oracle: rank 0 serves, the others train."""
    assert [one["roles"] for one in seen] == [(rank, 4, rank == 0, rank > 0, [1, 2, 3]) for rank in RANKS]


def test_roles_of_a_lone_rank() -> None:
    """Oracle: it serves and trains, and talks to nobody."""
    world = World()
    assert (world.rank, world.size, world.is_server, world.is_worker, list(world.workers)) == (0, 1, True, True, [0])
    buffer = np.arange(5.0)
    assert world.broadcast(buffer) is buffer
    world.sum(buffer)
    world.exchange([], [])
    assert buffer.tolist() == [0, 1, 2, 3, 4]
    assert world.from_server("text") == "text"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_broadcast_and_sum(seen: list[dict[str, Any]], nodes: int, dtype: str, shape: tuple[int, ...]) -> None:
    """Oracle: rank 0's numbers, and NumPy's sum, on every rank.

    Between nodes one rank of each sends and receives, 1,000 numbers at most in a message; within a node nobody sends
    anything. Of four nodes, rank 0 sends two messages to two of them each, but of three messages each just once.
    """
    messages = -(-int(np.prod(shape)) // CHUNK)
    sends = {1: [0] * 4, 2: [messages, 0, 0, 0]}
    sends[4] = [messages] * 3 + [0] if messages == 3 else [2 * messages, 0, messages, 0]
    for rank, one in enumerate(seen):
        np.testing.assert_array_equal(one[f"broadcast {dtype} {shape}"], values(0, shape, dtype))
        np.testing.assert_array_equal(one[f"sum {dtype} {shape}"], sum(values(rank, shape, dtype) for rank in RANKS))
        is_first = nodes > 1 and rank % (4 // nodes) == 0
        received = messages if is_first and rank else 0
        assert one[f"broadcast {dtype} {shape} calls"] == (sends[nodes][rank], received)
        assert one[f"sum {dtype} {shape} calls"] == (messages if is_first else 0)


def test_more_than_one_message_was_needed() -> None:
    """That the test above could fail: its longest buffer goes in three."""
    assert max(int(np.prod(shape)) for shape in SHAPES) == 2515


def test_exchange(seen: list[dict[str, Any]]) -> None:
    """Oracle: each rank's three rows at its right neighbour, in order, though two are cut; one more row at rank 0."""
    for rank, one in enumerate(seen):
        left = (rank - 1) % 4
        for number, (row, length) in enumerate(zip(one["exchanged"], (5, 2 * CHUNK + 1, 100_000), strict=False)):
            np.testing.assert_array_equal(row, values(left, (length,), "float32") + number)
    assert [row.tolist() for row in seen[0]["exchanged"][3:]] == [[rank] * 3 for rank in (1, 2, 3)]


def test_agreement(seen: list[dict[str, Any]]) -> None:
    """Oracle: no problem, nobody complains; else everyone says the same, as the first rank with a problem put it."""
    assert [one["agreed ()"] for one in seen] == [None] * 4
    assert [one["agreed (2,)"] for one in seen] == [("mu = 2: found by rank 2", "mu")] * 4
    assert [one["agreed (3, 1)"] for one in seen] == [("mu = 1: found by rank 1", "mu")] * 4


def test_texts_and_the_servers_word(seen: list[dict[str, Any]]) -> None:
    """Oracle: by hand."""
    assert [one["from server"] for one in seen] == [{"rank": 0}] * 4
    assert [one["texts"] for one in seen] == [[f"text of {rank}" for rank in RANKS]] * 4


def test_shared_arrays(seen: list[dict[str, Any]], nodes: int) -> None:
    """Oracle: what one rank a node has read; it lies there once: what one rank writes, its node's others read."""
    a_node = 4 // nodes
    assert [one["read"] for one in seen] == [int(rank % a_node == 0) for rank in RANKS]
    for rank, one in enumerate(seen):
        leader = rank // a_node * a_node
        expected = [
            np.arange(5, dtype=np.uint8),
            values(0, (30, 7), "float32")[:, ::2],
            np.arange(3) + leader,
            np.zeros((0, 4)),
        ]
        assert (one["written by another"] == -42) == (leader == 1 // a_node * a_node)
        assert one["aligned"][:3] == [0, 0, 0]
        for array, original in zip(one["shared"], expected, strict=True):
            assert array.dtype == original.dtype
            np.testing.assert_array_equal(array, original)


def test_arrays_that_cannot_be_shared(seen: list[dict[str, Any]], nodes: int) -> None:
    """Oracle: the same complaint on every rank; of a shared memory of 3 MiB, 3 MiB are not too much and 5 MiB are.

    A rank that is alone on its node needs none.
    """
    assert [one["missing"] for one in seen] == [("rank 0 finds no file", None)] * 4
    assert [one["fits"] for one in seen] == [None] * 4
    if nodes == 4:
        assert [one["too large"] for one in seen] == [None] * 4
        return
    message, _ = seen[0]["too large"]
    assert "/dev/shm" in message
    assert "is too small: 5 MiB more are needed" in message
    assert [one["too large"] for one in seen] == [(message, None)] * 4


def test_waiting_ranks_sleep(seen: list[dict[str, Any]]) -> None:
    """Oracle: the CPU's clock: less than 15 % of the 2 seconds for which three ranks wait for the fourth."""
    for one in seen[:3]:
        assert one["wall"] > 1.9
        assert one["cpu"] < 0.15 * one["wall"]
        assert one["waited"] == pytest.approx(one["wall"], rel=0.1)
    assert seen[3]["waited"] < 1


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The messages of two runs on three ranks of one node, and on three nodes."""
    folder = tmp_path_factory.mktemp("counted")
    options = "--model LogisticRegression --clients 6 --cohort 4 --local.epochs 1 --evaluate_every 0"
    succeed(mpirun(3, "-m", "mpi4py", PROGRAMS / "counted_runs.py", folder, *options.split()))
    return folder


@pytest.mark.parametrize("nodes", [1, 3])
def test_traffic_of_a_round(counted: Path, nodes: int) -> None:
    """Oracle: by hand, for 650 parameters; what a run of 5 rounds sends more than one of 2.

    On one node, nothing. Between three nodes a round is: the model in float32 from rank 0 to each other node, and
    with it the word that ranks vouch for, and its complement; the sums of each node with 6 bytes per number; a small
    sum of the total weight, the numbers of terms and a mark for each class of large numbers; and one small sum of the
    books. Nodes meet at no other time. Never a pickle.
    """
    for rank in range(3):
        two, five = (
            Counter(json.loads((counted / f"{nodes}-{rounds}-{rank}.json").read_text())) for rounds in (2, 5)
        )
        assert sum(two.values()) > 0
        assert not two - five
        three_rounds = dict(five - two)
        if nodes == 1:
            assert three_rounds == {}
            continue
        assert three_rounds.pop(f"{'Irecv' if rank else 'Isend'} {650 * 4}") == (3 if rank else 6)
        assert three_rounds.pop("Ibcast 16") == 3
        # Memory is there for 8 bytes of each, from two nodes.
        assert three_rounds.pop(f"{'Isend' if rank else 'Irecv'} {650 * (6 if rank else 8)}") == (3 if rank else 6)
        assert three_rounds.pop(f"Iallreduce {(3 + 8) * 8}") == 3
        (small, times), *rest = three_rounds.items()
        name, size = small.split()
        assert (name, times, rest) == ("Iallreduce", 3, [])
        assert int(size) < 2000


def test_ranks_of_a_node_that_are_late(tmp_path: Path) -> None:
    """Oracle: round + 2, the mean over ranks 1, 2, 3, though a node's second rank reads after the first wrote."""
    succeed(mpirun(4, "-m", "mpi4py", PROGRAMS / "late_ranks.py", tmp_path))
    expected = np.repeat(np.arange(4)[:, None] + 2.0, 1000, axis=1)
    np.testing.assert_allclose(np.load(tmp_path / "means.npy"), expected, rtol=1e-6)


def test_means_that_are_kept(tmp_path: Path) -> None:
    """Oracle: every round adds 1.5, the mean of the ranks' numbers; what the server keeps of one stays."""
    succeed(mpirun(3, "-m", "mpi4py", PROGRAMS / "kept_means.py", tmp_path, "3", "2"))
    for ranks_a_node in (3, 2):
        server, *others = (np.load(tmp_path / f"{ranks_a_node}-{rank}.npz") for rank in range(3))
        for saved in (server, *others):
            assert saved["received"].tolist() == [1.5 * round for round in range(8)]
        assert server["kept"].tolist() == [4.5] * 10
        assert server["places"] == 3  # the mean that is kept, the present one, and the next
