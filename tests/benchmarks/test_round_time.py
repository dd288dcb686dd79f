"""The model of round time (`benchmarks.round_time`), with constants that let one part of it be worked out by hand."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from benchmarks.round_time import PARTS, Cluster, Machine, Network, Training, one_node, round_time, transfers

FREE = dict.fromkeys(
    ("barrier", "poll", "sharing", "sleeps", "a_round", "a_block", "a_member", "a_client", "a_number"), 0.0
)
NOTHING = dict.fromkeys(("add", "total", "form", "pack"), (0.0, 0.0))
INSTANT = Network(0.0, inf)
INSTANTLY = Training(10, 1, 0.0, 0.0, 0.0)
STEPS = np.array([3, 4, 3])


def machine(**constants: float) -> Machine:
    """Everything but these is free; those of vectors are the same for all sizes."""
    vectors = {name: (value, value) for name, value in constants.items() if name in NOTHING}
    others = {name: value for name, value in constants.items() if name not in NOTHING}
    settings: dict[str, Any] = {"cores": 2, "sizes": (1, 1000), **FREE, **NOTHING, **others, **vectors}
    return Machine(**settings)


def seconds(what: Machine, ranks: int, cluster: Cluster, training: Training = INSTANTLY) -> dict[str, float]:
    """The parts of a round of three clients out of a hundred that take any time."""
    parts = round_time(what, cluster, training, STEPS, ranks, 100)
    assert tuple(parts) == PARTS
    return {name: value for name, value in parts.items() if value}


@pytest.mark.parametrize(("ranks", "cores", "expected"), [(1, 8, 10), (3, 8, 6), (4, 8, 4), (3, 1, 10), (4, 2, 5)])
def test_training_takes_the_longest_rank_or_all_work_over_the_cores(ranks: int, cores: int, expected: float) -> None:
    """Oracle: by hand. Two workers get 4 and 3 + 3 steps, three get 4, 3 and 3; 10 steps in all."""
    training = Training(10, 1, 0.0, 1.0, 0.0)
    assert seconds(machine(), ranks, one_node(cores), training) == {"training": expected}


def test_clients_side_by_side_pay_for_the_longest_of_a_block() -> None:
    """Oracle: by hand. Blocks of 4, 3 and of 3 steps: two blocks of 100, 4 + 3 steps of 1, 10 of 0.1."""
    assert seconds(machine(), 1, one_node(8), Training(10, 2, 100.0, 1.0, 0.1))["training"] == pytest.approx(208)


def test_vectors_cost_by_the_parameter() -> None:
    """Oracle: by hand, for 10 parameters. Workers have 1 and 2 clients; the sums of 2 of 3 ranks, on 2 of 4 cores."""
    what = machine(add=1.0, total=3.0, form=6.0)
    assert seconds(what, 3, one_node(2)) == {"adding": 20.0, "mean": (2 * 30.0 + 60.0) / 2}


def test_a_node_is_no_faster_than_its_memory() -> None:
    """Oracle: by hand. 2 sums of 10 numbers of 8 bytes, at 10 bytes a second; and 12 bytes for each of 10 means."""
    slow = Cluster(4, 8, 10.0, INSTANT)
    assert seconds(machine(), 3, slow)["mean"] == pytest.approx(16 + 12)


def test_several_nodes_meet_more_often() -> None:
    """Oracle: the barriers in FedAvg's round, 4 of one node; 5 of each of several, which do not meet."""
    assert seconds(machine(barrier=1.0), 4, one_node(8)) == {"barriers": 4}
    assert seconds(machine(barrier=1.0), 4, Cluster(8, 2, inf, INSTANT)) == {"barriers": 5}
    assert "barriers" not in seconds(machine(), 4, Cluster(8, 2, inf, Network(1.0, inf)))


def test_vectors_between_nodes() -> None:
    """Oracle: by hand, where 10 bytes take 1 s and the latency, twice per message, is 1 s; in blocks of 10 bytes.

    A vector of one block reaches 7 other nodes in 3 steps down a tree. One of 40 blocks takes 40 steps and 6 more
    along a chain. A node that computes longer than its link transmits determines the time.
    """
    network = Network(1.0, 10.0)
    assert network.pass_on(10, 2, 10) == 2 + 1
    assert network.pass_on(10, 8, 10) == 3 * 2 + 3 * 1
    assert network.pass_on(400, 8, 10) == 7 * 2 + 46 * 1
    assert network.pass_on(400, 8, 10, work=80.0) == 7 * 2 + 46 * 2


def test_a_mean_between_nodes() -> None:
    """Oracle: by hand. 3 million parameters, a model of 4 bytes each and a sum of 6, at 1 million bytes a second."""
    network = Network(0.0, 1e6)
    assert transfers(machine(), Cluster(8, 2, inf, network), 3_000_000, 2, 2) == pytest.approx((12.0, 18.0))
    assert transfers(machine(pack=7e-6), Cluster(8, 1, inf, network), 3_000_000, 2, 1)[1] == pytest.approx(21.0)
    assert transfers(machine(pack=7e-6), Cluster(8, 2, inf, network), 3_000_000, 2, 2)[1] == pytest.approx(18.0)


def test_small_sums_between_nodes() -> None:
    """Oracle: the formulas by hand, where a message takes 1 s and a byte 1 s."""
    network = Network(1.0, 1.0)
    assert network.sum(80, 2, 0.0) == 81
    assert network.sum(80, 8, 8.0) == 6 + 70 * 3


def test_bookkeeping() -> None:
    """Oracle: by hand, for 3 of 100 clients; 4 ranks on 2 cores, each adds up 4 times 3 * 5 + 4 * 6 numbers."""
    what = machine(a_round=1.0, a_member=10.0, a_client=100.0)
    assert seconds(what, 4, one_node(4)) == {"bookkeeping": 1 + 30 + 10_000}
    assert seconds(what, 4, one_node(2)) == {"bookkeeping": 2 * (1 + 30 + 10_000)}
    assert seconds(machine(a_number=1.0), 4, one_node(2)) == {"bookkeeping": 2 * 4 * 42}
