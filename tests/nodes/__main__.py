"""python -m tests.nodes RANKS ARGUMENTS...: run `python ARGUMENTS` on make-believe nodes.

    python -m tests.nodes 2,2,1 -m fedmpi.doctor                    # 2 ranks on node1, 2 on node2, 1 on node3
    python -m tests.nodes --mpi openmpi 2,2,1 -m fedmpi --rounds 9
    python -m tests.nodes --delay_ms 1 --mbit 1000 2,2 -m benchmarks.between_nodes

Each line of standard input is something that happens to a node while the job runs: `node2 cut`, `node2 mend`,
`node2 power_off`, `node2 boot`, `node2 stop`, `node2 go_on`, `node2 hide PATH`, `node2 shrink 24m`, or a command to
run there: `node2 run ps ax`. The login node, where mpirun runs, is called `login`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
import time

from tests.nodes.cluster import Cluster, missing


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.nodes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mpi", choices=("mpich", "openmpi"), default="mpich")
    parser.add_argument("--memory", default="512m", help="size of each node's /dev/shm (default: 512m)")
    parser.add_argument("--delay_ms", type=float, default=0, help="of a message between nodes; needs cc (default: 0)")
    parser.add_argument(
        "--mbit", type=float, default=0, help="rate of each link, Mbit/s; needs cc (default: no limit)"
    )
    parser.add_argument("ranks", help="on each node: 2,2,1")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    ranks = [int(number) for number in options.ranks.split(",")]
    with Cluster(len(ranks), options.memory, options.delay_ms, options.mbit) as cluster:
        threading.Thread(target=_listen, args=(cluster,), daemon=True).start()
        job, shown = cluster.start(ranks, *options.arguments, mpi=options.mpi), [0, 0]
        while True:
            is_over = job.process.poll() is not None
            for number, (text, stream) in enumerate(((job.stdout, sys.stdout), (job.stderr, sys.stderr))):
                stream.write(text[shown[number] :])
                stream.flush()
                shown[number] = len(text)
            if is_over:
                break
            time.sleep(0.1)
        print(f"mpirun ends with {job.process.returncode}; what still runs: {cluster.processes()}")


def _listen(cluster: Cluster) -> None:
    nodes = {node.name: node for node in (cluster.login, *cluster.nodes)}
    for line in sys.stdin:
        name, what, *words = shlex.split(line)
        try:
            print(getattr(nodes[name], what)(*words) or f"{name}: {what}", flush=True)
        except Exception as error:
            print(f"{line.strip()}: {error!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
