"""Strong and weak scaling over make-believe nodes: python -m tests.nodes.scaling

Prints a table of rounds whose clients sleep (`benchmarks.over_nodes`), on 1 to 4 nodes with 2 workers each, behind
switches with some delays and rates: medians. The speed-up is that of the same clients on more nodes. "communication"
is all of a round but the time of the slowest rank's clients. The prediction is that of `benchmarks.round_time`, from
the delay and the rate alone.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from math import inf

import numpy as np

from benchmarks.round_time import MODEL, SUM, Network
from fedmpi.mpi.shared_mean import FEWEST_SENT
from fedmpi.mpi.tree import BLOCK_BYTES
from tests.nodes.cluster import Cluster, missing

#: Delay in milliseconds, rate in Mbit/s.
NETWORKS = ((0.05, 10_000), (1, 10_000), (10, 10_000), (0.05, 1_000), (0.05, 100))
NODES = (1, 2, 3, 4)
SIZES = (25_000, 1_660_000)


def predicted(delay_ms: float, mbit: float, size: int, nodes: int) -> float:
    """Seconds of the broadcast, the mean and the sum of the books."""
    if nodes == 1:
        return 0.0
    network = Network(delay_ms / 1e3, mbit * 1e6 / 8 or inf)
    down = network.pass_on(MODEL * size, nodes, BLOCK_BYTES)
    return down + network.pass_on(SUM * size, nodes, SUM * FEWEST_SENT) + network.sum(8.0, nodes, 0.0)


def main() -> None:
    if reason := missing():
        sys.exit(reason)
    print("| network | parameters | nodes | same clients | speed-up | clients per rank | communication | predicted |")
    print(f"|{'---|' * 8}", flush=True)
    first: dict[int, float] = {}
    for (delay_ms, mbit), nodes in product(NETWORKS, NODES):
        ranks = [3, *[2] * (nodes - 1)]
        with Cluster(nodes, delay_ms=delay_ms, mbit=mbit) as cluster:
            done = cluster.run(ranks, "-m", "benchmarks.over_nodes", *map(str, SIZES))
        if done.returncode:
            sys.exit(done.stderr)
        for line in done.stdout.splitlines():
            found = json.loads(line)
            size = found["size"]
            (strong, _), (weak, spent) = (np.median(found[name], axis=0) for name in ("strong", "weak"))
            first[size] = strong if nodes == 1 else first[size]
            network = f"{delay_ms:g} ms, {f'{mbit / 1000:g} Gbit/s' if mbit else 'no limit'}"
            cells = [network, f"{size:,}", str(nodes), f"{1e3 * strong:.0f} ms", f"{first[size] / strong:.2f}"]
            cells += [f"{1e3 * weak:.0f} ms", f"{1e3 * spent:.1f} ms"]
            cells.append(f"{1e3 * predicted(delay_ms, mbit, size, nodes):.1f} ms")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
