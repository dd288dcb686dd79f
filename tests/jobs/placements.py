"""A job whose rank 2 is three times as slow as the others: python placements.py FOLDER.

FOLDER/RANK.pickle: for each round the columns of /ranks, and the ranks that trained its clients, as that rank knows
them.
"""

import pickle
import sys
import time
from pathlib import Path
from typing import Any

from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World
from fedmpi.training.block import Work
from fedmpi.training.plain import PlainTrainer

OPTIONS = (
    "--clients 40 --cohort 24 --rounds 7 --partition LogNormal --model LogisticRegression --local.epochs 1"
    " --local.vectorize off --evaluate_every 0"
)
world = World()
train = PlainTrainer.train


def slow(*arguments: Any, **options: Any) -> Work:
    began = time.perf_counter()
    work = train(*arguments, **options)
    seconds = (0.004 + 0.008 * int(work.steps.sum())) * (3 if world.rank == 2 else 1)
    time.sleep(max(began + seconds - time.perf_counter(), 0))
    return work


setattr(PlainTrainer, "train", slow)  # noqa: B010 (or mypy objects)
experiment, config = parse([*OPTIONS.split(), "--output", f"{sys.argv[1]}/run.h5"], speaks=False)
rounds = [{**outcome.ranks, "trained_by": outcome.clients["rank"]} for outcome in experiment.outcomes(world, config)]
Path(sys.argv[1], f"{world.rank}.pickle").write_bytes(pickle.dumps(rounds))
