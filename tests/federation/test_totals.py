"""Sums of small tensors over all ranks: the same bits in any order and place; and what rank 0 tells."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.jobs.totals import COUNT, SHAPES, WORLDS, terms
from tests.support.mpi import REPOSITORY, mpirun, succeed

#: Of every world by name, what each rank of it saw.
Seen = dict[str, list[dict[str, np.ndarray]]]
DEALS = ("dealt", "backwards", "shuffled", "one_has_all")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each rank of worlds of 1, 2, 3 and 5 ranks saw."""
    folder = tmp_path_factory.mktemp("totals")
    succeed(mpirun(5, "-m", "mpi4py", REPOSITORY / "tests" / "jobs" / "totals.py", folder))
    return {
        name: [dict(np.load(folder / f"{name}-{rank}.npz")) for rank in range(ranks)]
        for name, (ranks, _) in WORLDS.items()
    }


def test_any_dealing_gives_the_same_bits(seen: Seen) -> None:
    """Oracle: one rank that has all in order. Plain float32 sums would differ (see below)."""
    for ranks in seen.values():
        for rank in ranks:
            for kind in range(len(SHAPES)):
                for deal in DEALS:
                    np.testing.assert_array_equal(rank[f"{deal} {kind}"], seen["1"][0][f"dealt {kind}"])
                np.testing.assert_array_equal(rank[f"nobody {kind}"], np.zeros(SHAPES[kind]))


def test_plain_sums_depend_on_the_order() -> None:
    """That the test above could fail."""
    forwards, backwards = (sum(term[0] for term in order) for order in (terms(), terms()[::-1]))
    assert (forwards != backwards).double().mean() > 0.1  # type: ignore[union-attr]


def test_the_sum_is_right(seen: Seen) -> None:
    """Oracle: math.fsum, to 13 times 2^-49 of the largest term; NaN throughout where a term has one."""
    for kind in range(2):
        values = np.array([term[kind].double().numpy() for term in terms()])
        exact = np.apply_along_axis(math.fsum, 0, values)
        allowed = COUNT * 2.0**-49 * np.abs(values).max() + np.spacing(np.abs(exact).astype(np.float32))
        assert (np.abs(seen["1"][0][f"dealt {kind}"] - exact) <= allowed).all()
    assert np.isnan(seen["1"][0]["dealt 2"]).all()


def test_what_rank_0_tells(seen: Seen) -> None:
    """Oracle: rank 0's numbers on every rank, though sums in between use the same memory."""
    for ranks in seen.values():
        for rank in ranks:
            for number, size in enumerate((3, 1000, 7)):
                np.testing.assert_array_equal(rank[f"told {number}"], np.arange(size) + number)
                np.testing.assert_array_equal(rank[f"summed {number}"], np.full(size, len(ranks)))
