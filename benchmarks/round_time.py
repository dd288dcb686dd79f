"""How long a round of federated averaging takes, on paper: from constants of a machine and an assumed network.

A round is a sequence of phases that all ranks end together, so their times add up. Within a phase ranks share the
cores of their node: a node takes as long as its busiest rank, or as all its ranks' work divided by its cores.
`docs/scaling.md` has the formulas.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, log2

import numpy as np
from numpy.typing import NDArray

from fedmpi.federation.placement import CostModel
from fedmpi.mpi.shared_mean import FEWEST_SENT, MOST_ELEMENTS
from fedmpi.mpi.tree import BLOCK_BYTES, steps_of
from fedmpi.mpi.waiting import SHORTEST_SLEEP

# Numbers in the bookkeeping of a round: a client's (see fedmpi.federation.ledger.RECORDED) and a rank's (SPENT).
A_CLIENTS_BOOKS, A_RANKS_BOOKS = 6, 6
# Bytes that go through memory for a parameter: of a client's vector that is added to the sum (read, and the sum read
# and written), of a rank's sum that is added up, of a mean that is written and its sum read.
ADDED, SUMMED, FORMED = 20, 8, 12
# Bytes of a parameter between nodes: of a model, and of a sum, for numbers up to 16.
MODEL, SUM = 4, 6
# How often the latency counts for a block: connections that were idle start slowly, or MPI announces the block first.
ANNOUNCED = 2
PARTS = ("training", "adding", "broadcast", "mean", "barriers", "bookkeeping")


@dataclass(frozen=True)
class Training:
    """What local training costs on a core: a block of K clients of s_1 .. s_K steps, trained side by side, takes
    a_block + a_step * max(s) + a_clients_step * sum(s) seconds.

    Attributes:
        parameters: P, of the model.
        at_once: the largest K.
    """

    parameters: int
    at_once: int
    a_block: float
    a_step: float
    a_clients_step: float


@dataclass(frozen=True)
class Machine:
    """Constants measured on one machine while all its cores do the same; seconds.

    Attributes:
        cores: how many the machine has.
        barrier: of two ranks with a core each.
        poll: checking whether a rank of the node has reached a barrier.
        sharing: what a barrier takes longer for each additional rank on a core.
        sleeps: how many of the sleeps that ranks then take it takes longer.
        sizes: numbers of parameters for which the following are known, a parameter each:
        add: adding a client's vector to the rank's sum.
        total: adding a rank's sum to those of its node.
        form: turning a sum into a mean.
        pack: making bytes of a sum, as they are sent between nodes, and adding them up again.
        a_round: the engine's part of a round, without any clients.
        a_block: its part of a block of clients.
        a_member: bookkeeping, for a client of the cohort.
        a_client: bookkeeping, for any client there is.
        a_number: summing a number of the bookkeeping, for a rank of the node.
    """

    cores: int
    barrier: float
    poll: float
    sharing: float
    sleeps: float
    sizes: Sequence[int]
    add: Sequence[float]
    total: Sequence[float]
    form: Sequence[float]
    pack: Sequence[float]
    a_round: float
    a_block: float
    a_member: float
    a_client: float
    a_number: float

    def at(self, name: str, parameters: int) -> float:
        """A constant that depends on the size of a model, as caches do: interpolated in its logarithm."""
        return float(np.interp(np.log(parameters), np.log(self.sizes), getattr(self, name)))

    def meet(self, ranks: int, cores: int) -> float:
        """A barrier of the ranks of a node with so many cores."""
        crowd = max(ranks / cores, 1)
        return self.barrier + self.poll * ranks + self.sharing * (crowd - 1) + self.sleeps * nap(crowd)


def nap(crowd: float) -> float:
    """The shortest sleep of a rank that waits where so many share a core (see `fedmpi.mpi.waiting`)."""
    return SHORTEST_SLEEP * (crowd * crowd - 1)


@dataclass(frozen=True)
class Network:
    """What connects nodes.

    Attributes:
        latency: seconds until a short message has arrived.
        bandwidth: bytes a second out of a node, and into it.
    """

    latency: float
    bandwidth: float

    def pass_on(self, size: float, nodes: int, block: float, work: float = 0.0) -> float:
        """A vector from one node to all others, or their sum to one, as `fedmpi.mpi.tree` does it.

        Args:
            size, block: bytes of the vector, and of each of the blocks that are sent.
            work: seconds that a node computes for the whole vector, while other blocks are on their way.
        """
        blocks = max(ceil(size / block), 1)
        tree, chain = steps_of(blocks, nodes)
        far = nodes - 1 if chain < tree else ceil(log2(nodes))
        return ANNOUNCED * far * self.latency + min(tree, chain) / blocks * max(size / self.bandwidth, work)

    def sum(self, size: float, nodes: int, an_addition: float) -> float:
        """An Allreduce of so many bytes, 8 a number: recursive doubling, or halving and doubling (Rabenseifner)."""
        steps, each = ceil(log2(nodes)), 1 / self.bandwidth + an_addition / 8
        doubling = steps * (self.latency + size * each)
        halving = 2 * steps * self.latency + size * (nodes - 1) / nodes * (each + 1 / self.bandwidth)
        return min(doubling, halving)


@dataclass(frozen=True)
class Cluster:
    """Nodes that are as fast, core by core, as the machine whose constants are used.

    Attributes:
        cores: of a node.
        ranks_a_node: how many ranks are started on a node.
        memory: bytes a second that all cores of a node together read and write.
        network: between nodes.
    """

    cores: int
    ranks_a_node: int
    memory: float
    network: Network


def one_node(cores: int) -> Cluster:
    """A single node, whose memory is as fast as it was when the constants were measured on all its cores."""
    return Cluster(cores, sys.maxsize, inf, Network(0.0, inf))


def round_time(
    machine: Machine, cluster: Cluster, training: Training, steps: NDArray[np.int64], ranks: int, clients: int
) -> dict[str, float]:
    """Seconds of each of `PARTS` of a round.

    Args:
        steps: [m] of the cohort's clients.
        ranks: in all, one of which is the server; one alone trains itself.
        clients: how many there are in all.
    """
    size, members = training.parameters, len(steps)
    workers = np.arange(ranks > 1, ranks)
    nodes, on_node = ceil(ranks / cluster.ranks_a_node), min(ranks, cluster.ranks_a_node)
    crowd = max(on_node / cluster.cores, 1)

    placement = workers[CostModel(len(workers)).place(steps)[0]]
    work = _loads(training, machine.a_block, steps, placement, ranks)
    held = np.bincount(placement, minlength=ranks)
    added = held * size * machine.at("add", size)
    longest, longer = _taking_turns(work, cluster), _taking_turns(work + added, cluster)
    by_node = np.split(held, range(on_node, ranks, on_node))
    summed = size * max(int((part > 0).sum()) for part in by_node)
    into_sums = size * max(int(part.sum()) for part in by_node)

    broadcast, mean = transfers(machine, cluster, size, nodes, on_node, summed)
    numbers = A_CLIENTS_BOOKS * members + A_RANKS_BOOKS * ranks
    gathering = on_node * numbers * machine.a_number  # each rank of a single node, or the first of each of several
    barrier = machine.meet(on_node, cluster.cores)
    if ranks == 1:
        barriers = gathering = 0.0
    elif nodes == 1:
        # After the broadcast; before and after the mean is formed; when the bookkeeping is summed.
        barriers = 4 * barrier
        gathering = max(gathering * crowd, 2 * SUMMED * on_node * on_node * numbers / cluster.memory)
    else:
        # Within nodes: after the broadcast, before and after the mean is formed, twice for the bookkeeping.
        barriers = 5 * barrier
        gathering += cluster.network.sum(8 * numbers, nodes, machine.a_number)
    bookkeeping = machine.a_round + machine.a_member * members + machine.a_client * clients
    return {
        "training": longest,
        "adding": max(longer - longest, ADDED * into_sums / cluster.memory),
        "broadcast": broadcast,
        "mean": mean,
        "barriers": barriers,
        "bookkeeping": crowd * bookkeeping + gathering,
    }


def transfers(
    machine: Machine, cluster: Cluster, size: int, nodes: int, on_node: int, summed: float | None = None
) -> tuple[float, float]:
    """Seconds of the broadcast and of the mean of so many parameters.

    Args:
        on_node: ranks of a node.
        summed: parameters of all ranks' sums of a node together; default: every rank has one.
    """
    lanes = min(on_node, cluster.cores)
    summed = on_node * size if summed is None else summed
    mean = max(summed * machine.at("total", size) / lanes, SUMMED * summed / cluster.memory)
    mean += max(size * machine.at("form", size) / lanes, FORMED * size / cluster.memory)
    if nodes == 1:
        return 0.0, mean  # the mean is read where it was formed
    block = min(max(size // (4 * on_node), FEWEST_SENT), MOST_ELEMENTS)
    packing = size * machine.at("pack", size) / lanes
    mean += cluster.network.pass_on(SUM * size, nodes, SUM * block, packing)
    return cluster.network.pass_on(MODEL * size, nodes, BLOCK_BYTES), mean


def _loads(
    training: Training, a_block: float, steps: NDArray[np.int64], placement: NDArray[np.int64], ranks: int
) -> NDArray[np.float64]:
    """[ranks] seconds of training, block after block, the longest clients first."""
    order = np.lexsort((-steps, placement))
    ranked, steps = placement[order], steps[order]
    held = np.bincount(ranked, minlength=ranks)
    position = np.arange(len(ranked)) - np.repeat(np.cumsum(held) - held, held)
    opens = position % training.at_once == 0  # with the longest client of its block
    seconds = np.where(opens, training.a_block + a_block + training.a_step * steps, 0.0)
    seconds += training.a_clients_step * steps
    loads = np.zeros(ranks)
    np.add.at(loads, ranked, seconds)
    return loads


def _taking_turns(work: NDArray[np.float64], cluster: Cluster) -> float:
    """How long ranks with so many seconds of work each [ranks] take on the cores of their nodes."""
    nodes = np.split(work, range(cluster.ranks_a_node, len(work), cluster.ranks_a_node))
    return max(max(float(node.max()), float(node.sum()) / cluster.cores) for node in nodes)
