"""Memory of a job whose ranks share a frozen transformer: mpirun -n 8 python -m benchmarks.shared_base FOLDER

Prints the memory of all ranks of the job, in MB, after the imports, and after the set-up of a run with LoRA of rank
8. A page that several ranks share counts once (PSS of /proc/PID/smaps_rollup).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import peft  # noqa: F401  (before the first measurement)
import transformers  # noqa: F401
from mpi4py import MPI

from fedmpi import Experiment
from fedmpi.data import IID, Arrays, Dataset
from fedmpi.data.base import Progress
from fedmpi.experiment.assembly import assemble
from fedmpi.models import HuggingFace
from fedmpi.models.adapters import LoRA
from fedmpi.mpi.world import World


class Tokens(Dataset):
    """400 random texts.

    Attributes:
        length: of each, in tokens.
    """

    classes = 2
    vocabulary = 30_000
    length = 32

    def read(self, progress: Progress) -> Arrays:
        rng = np.random.default_rng(0)
        x, y = rng.integers(1, self.vocabulary, (400, self.length)), rng.integers(0, 2, 400)
        return Arrays(x[100:], y[100:], x[:100], y[:100])


def proportional_memory(world: World) -> float:
    """MB of all ranks, on every rank; a collective."""
    world.meet()
    rollup = Path("/proc/self/smaps_rollup").read_text()
    mine = int(rollup.split("\nPss:")[1].split()[0])
    total = sum(int(text) for text in world.gather_text(str(mine))) * 1024 / 1e6
    world.meet()
    return total


def main(folder: str) -> None:
    """Print one line, on rank 0."""
    world = World(MPI.COMM_WORLD)
    before = proportional_memory(world)
    model = HuggingFace(Path(folder), lora=LoRA(8, targets=("query", "value")))
    experiment = Experiment(dataset=Tokens(), partition=IID(), model=model, clients=40, cohort=20, device="cpu")
    assembled = assemble(experiment, world)
    after = proportional_memory(world)
    if world.is_server:
        base = sum(4 * tensor.numel() for tensor in assembled.engine.federation.layout.frozen.values()) / 1e6
        said = f"{world.size} ranks: {before:.0f} MB after the imports, {after:.0f} MB after the set-up"
        print(f"{said}: {after - before:.0f} MB more; the base has {base:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
