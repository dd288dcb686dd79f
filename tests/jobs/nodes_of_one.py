"""Runs in which every rank is a node, with data, settings and a processor of its own: nodes_of_one.py FOLDER

FOLDER/RANK.json: what became of each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

RANK = MPI.COMM_WORLD.Get_rank()
if RANK:  # as on a processor without vector instructions, for which PyTorch rounds normal numbers differently
    os.environ["ATEN_CPU_CAPABILITY"] = "default"

import torch  # noqa: E402

from fedmpi.checksum import checksum  # noqa: E402
from fedmpi.errors import BadInput  # noqa: E402
from fedmpi.experiment.command_line import parse  # noqa: E402
from fedmpi.mpi.meeting import RanksDiffer  # noqa: E402
from fedmpi.mpi.world import World  # noqa: E402

FOLDER = Path(sys.argv[1])
SMALL = f"--clients 4 --rounds 1 --local.epochs 1 --overwrite --output {FOLDER}/run.h5".split()
world = World(ranks_a_node=1)


def outcome(block: Callable[[], Any]) -> str:
    try:
        return str(block())
    except (BadInput, RanksDiffer) as error:
        return f"{type(error).__name__}: {error}"


def run(*options: str) -> Callable[[], int]:
    experiment, config = parse([*SMALL, *options])
    return lambda: experiment.complete(world, config)


def vouch(word: int) -> None:
    world.vouch({"the first": 7, "the second": word})
    world.meet()


seen = {
    "normal numbers": checksum(torch.randn(100, generator=torch.Generator().manual_seed(0)).numpy()),
    "processors": outcome(run("--model", "unlike.Normal")),
    "samples": outcome(run("--dataset", "unlike.Halves")),
    "pixels": outcome(run("--dataset", "unlike.Halves", "--dataset.part", "pixels")),
    "seed": outcome(run("--seed", str(RANK))),
    "method": outcome(run("--algorithm", ["FedAvg", "FedProx"][RANK])),
    "rate": outcome(run("--local.lr", str(0.1 + RANK))),
    "vouched alike": outcome(lambda: vouch(3)),
    "vouched": outcome(lambda: vouch(RANK)),
}
(FOLDER / f"{RANK}.json").write_text(json.dumps(seen))
