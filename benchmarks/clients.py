"""Memory and time of very many clients: mpirun -n 3 python -m benchmarks.clients 15000000 [OPTION ...]

Runs FedAvg on the digits, with a hundred of the clients per round. Prints the memory of all ranks together (GB), the
time per round beyond the clients' training (s, the median after the first round), and the SHA-256 of the last model.
The memory is the sum of the ranks' peaks. Pages that processes share count in parts (PSS).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World

OPTIONS = (
    "--partition Repeated --cohort 100 --rounds 10 --model MLP --local.epochs 1 --evaluate_every 5"
    " --checkpoint.every_rounds 5"
)
EVERY = 0.1  # seconds from one measurement of memory to the next


class Peak(threading.Thread):
    """Measures the memory of this process in the background.

    Attributes:
        bytes: the largest value so far.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(EVERY):
            self.measure()

    def measure(self) -> None:
        rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
        self.bytes = max(self.bytes, next(1024 * int(row.split()[1]) for row in rows if row.startswith("Pss:")))

    def end(self) -> None:
        self._is_over.set()
        self.join()
        self.measure()


def main(clients: int, options: list[str]) -> None:
    world, peak = World(), Peak()
    peak.start()
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # what fedmpi says of its rounds
    ):
        arguments = [*OPTIONS.split(), "--clients", str(clients), *options, "--output", f"{folder}/run.h5"]
        experiment, config = parse(arguments, speaks=False)
        rounds = experiment.outcomes(world, config)
        beyond = [outcome.row["seconds"] - outcome.ranks["client_seconds"].max() for outcome in rounds]
        peak.end()
        found = np.array([peak.bytes], dtype=np.float64)
        world.sum(found)
        if world.is_server:
            from fedmpi import results

            digest = results.open(experiment.output).weights_sha256
            print(found[0] / 1e9, np.median(beyond[1:]), digest, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
