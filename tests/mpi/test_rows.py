"""Vectors that lie on many ranks: the same from any of them, and no rank ever has them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.jobs.transposed import ABSENT, BROKEN, CENTER, CLIENTS, COLUMNS, JOBS, SHORT, SIZE, vectors
from tests.support.mpi import REPOSITORY, mpirun, succeed

PRESENT = np.flatnonzero((CLIENTS != ABSENT) & (CLIENTS != BROKEN))

Seen = dict[str, NDArray]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], list[Seen]]:
    """What each rank saw, by the numbers of ranks and of nodes."""
    folder = tmp_path_factory.mktemp("transposed")
    succeed(mpirun(5, "-m", "mpi4py", REPOSITORY / "tests" / "jobs" / "transposed.py", folder))
    jobs = [(ranks, -(-ranks // a_node)) for ranks, a_node in JOBS]
    return {
        (ranks, nodes): [dict(np.load(Path(folder, f"{ranks}-{nodes}-{rank}.npz"))) for rank in range(ranks)]
        for ranks, nodes in jobs
    }


def test_who_is_there(seen: dict[tuple[int, int], list[Seen]]) -> None:
    """Oracle: by hand, on every rank; each vector is kept by one of them."""
    for ranks in seen.values():
        for one in ranks:
            assert one["present"].tolist() == PRESENT.tolist()
            assert one["rejected"] == 1
        assert sorted(np.concatenate([one["mine"] for one in ranks])) == PRESENT.tolist()


def test_a_rule_for_each_coordinate(seen: dict[tuple[int, int], list[Seen]]) -> None:
    """Oracle: NumPy's median in float64, rounded once, at rank 0."""
    oracle = np.median(vectors()[PRESENT].astype(np.float64), axis=0).astype(np.float32)
    for server, *others in seen.values():
        np.testing.assert_array_equal(server["median"], oracle)
        assert all(not len(one["median"]) for one in others)


def test_what_is_said_of_pairs(seen: dict[tuple[int, int], list[Seen]]) -> None:
    """Oracle: a double loop in float64; and this job's own on one rank, bit for bit, on every rank of any other."""
    values = vectors()[PRESENT].astype(np.float64) - CENTER
    oracle = {
        "products": np.array([[a @ b for b in values] for a in values]),
        "differences": np.array([[np.abs(a - b)[:SHORT].sum() for b in values] for a in values]),
    }
    (alone,) = seen[1, 1]
    assert oracle["products"][0, 0] < 1e-4 * np.square(CENTER).sum(), "what all have in common would hide it"
    for name, expected in oracle.items():
        np.testing.assert_allclose(alone[name], expected, rtol=1e-12, atol=1e-15)
        for ranks in seen.values():
            for one in ranks:
                np.testing.assert_array_equal(one[name], alone[name])


def test_all_at_rank_0(seen: dict[tuple[int, int], list[Seen]]) -> None:
    """Oracle: the vectors themselves, bit for bit, in order; NaN for one absent and one rejected."""
    expected = np.full((len(CLIENTS), SIZE), np.nan, dtype=np.float32)
    expected[PRESENT] = vectors()[PRESENT]
    for server, *others in seen.values():
        np.testing.assert_array_equal(server["collected"].view(np.int32), expected.view(np.int32))
        np.testing.assert_array_equal(server["each"].view(np.int32), expected[::-1].view(np.int32))
        assert all(not len(one["collected"]) for one in others)


def test_each_on_every_rank(seen: dict[tuple[int, int], list[Seen]]) -> None:
    """Oracle: the vectors that are present, bit for bit, in order; in shared memory for one of them."""
    for ranks in seen.values():
        for one in ranks:
            assert one["positions"].tolist() == PRESENT.tolist()
            np.testing.assert_array_equal(one["everywhere"], vectors()[PRESENT])
            assert one["regions"].tolist() == ([4 * SIZE] if len(ranks) > 1 else [])


def test_no_rank_has_them_all(seen: dict[tuple[int, int], list[Seen]]) -> None:
    """Oracle: by hand: a rank receives its blocks of others' vectors, and rank 0 one vector in all besides."""
    blocks = [min(COLUMNS, SIZE - first) for first in range(0, SIZE, COLUMNS)]
    for (ranks, _), saw in seen.items():
        for rank, one in enumerate(saw):
            others = len(PRESENT) - len(one["mine"])
            own = sum(blocks[rank::ranks])
            results = SIZE - own if rank == 0 else 0
            assert one["received"] == 4 * (own * others + results)
