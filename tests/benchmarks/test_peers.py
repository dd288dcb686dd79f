"""Other simulators do the work that fedmpi does."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from benchmarks.peers.programs import FEDMPI, PEERS, Program, course, same_work
from benchmarks.peers.work import Work


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: f"{peer.module}{peer.channels_last * ' channels_last'}")
@pytest.mark.slow
def test_the_same_work(peer: Program) -> None:
    """Oracle: fedmpi's model, after as many rounds of workload D, or of A where the order of memory matters."""
    if not peer.is_installed:
        pytest.skip(f"{peer.package} is not installed")
    rung = "A" if peer.channels_last else "D"
    (speed, moved), (_, expected) = course(peer, rung, 1), course(FEDMPI, rung, 1)
    assert speed > 0
    assert len(moved) == 2
    assert moved[1] > moved[0]
    assert same_work(moved, expected)


def test_less_work_is_found() -> None:
    """Oracle: by hand; the last round that both have counts, and a factor of two."""
    expected = np.array([1.0, 1.9, 2.7])
    assert same_work(np.array([1.1, 2.0]), expected)
    assert not same_work(np.array([0.0, 0.0]), expected)
    assert not same_work(np.array([0.4, 0.9]), expected)
    assert not same_work(np.array([2.1, 4.0]), expected)


def test_peers_have_the_cohorts_and_samples_of_fedmpi() -> None:
    """Oracle: the sampler and the split, by what they are defined to be: every client once, and all its samples."""
    work = Work("D", channels_last=False)
    cohort = list(islice(work.clients(), work.experiment.cohort))
    assert len(set(cohort)) == work.experiment.cohort
    assert [len(y) for _, y in work.shards] == work.samples.tolist()
    assert all(len(x) == len(y) and x.min() >= 0 and x.max() <= 1 for x, y in work.shards)
