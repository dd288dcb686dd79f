"""A run that was interrupted goes on to the same bits as if nothing had come between."""

from __future__ import annotations

import errno
import inspect
import os
import shlex
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmpi import checkpoint, results
from fedmpi.algorithms import Algorithm
from fedmpi.command_line import parse
from fedmpi.components import subclasses
from fedmpi.errors import BadInput
from fedmpi.interruption import BY_HAND, MARGIN, REQUEUE, Watch
from fedmpi.results import Run
from fedmpi.scheduling.placement import OBSERVED, CostModel
from tests.equal import assert_same_bits
from tests.launch import REPOSITORY, mpirun, succeed
from tests.small import Alone

SMALL = "--clients 5 --sampler All --rounds 2 --local.epochs 1 --model MLP --model.hidden '[9]' --model.norm batch"
GENFL = (
    "--algorithm.generator CVAE --algorithm.generator.hidden '[9]' --algorithm.generator_rounds 2"
    " --algorithm.synthetic 100 --algorithm.pretrain_epochs 1 --algorithm.cas_epochs 1"
)
#: What methods need to be quick, or to have something to remember after one round.
OPTIONS = {
    "CFL": "--algorithm.warmup 0 --algorithm.mean_below 1e6 --algorithm.largest_above 0",
    "FedDF": "--algorithm.generator_steps 2 --algorithm.student_steps 2",
    "FedFTG": "--algorithm.iterations 2",
    "FedGen": "--algorithm.steps 3",
    "GenFL": GENFL,
    "Krum": "--algorithm.faulty 1",
}
METHODS = [cls.__name__ for cls in subclasses(Algorithm) if cls.__module__.startswith("fedmpi.")
           and not (inspect.isabstract(cls) or cls.__name__.startswith("_"))]  # fmt: skip
CASES = {name: f"{SMALL} --algorithm {name} {OPTIONS.get(name, '')}" for name in METHODS}
CASES |= {
    "compressed": f"{SMALL} --algorithm SCAFFOLD --compression TopK --server_optimizer Yogi --evaluate_means both",
    "forgets": f"{SMALL} --compression TopK --compression.forget_after 1 --newcomers 1 --newcomer_epochs 1",
    "private": f"{SMALL} --model.norm none --weighting uniform --privacy CentralDP --server_optimizer Momentum",
    "drawn": f"{SMALL} --rounds 3 --cohort 2 --algorithm Ditto --sampler PowerOfChoice --evaluate_every 2",
    "held_up": f"{SMALL} --algorithm FedProx --availability Markov --conditions Heterogeneous --attack ALIE"
    " --attack.share 0.5",
}
#: Keeps something that nobody knows of: the check must see that.
FORGETFUL = f"{SMALL} --algorithm tests.programs.methods.Forgetful"


def go(options: str, path: Path, *more: str) -> int:
    """Run in this process; gives the exit status."""
    experiment, config = parse([*shlex.split(options), "--output", str(path), *more])
    return experiment.run(Alone(), config)


def interrupt(options: str, path: Path, into: Path, after: int = 1) -> None:
    """Run to the end, with checkpoints; `into` gets the files as they are some time after this round."""
    arguments = [*shlex.split(options), "--output", str(path), "--checkpoint.every_rounds", "1"]
    experiment, config = parse(arguments)
    for outcome in experiment.outcomes(Alone(), config):
        if outcome.row["round"] == after + 1:
            for name in (path.name, f"{path.name}.checkpoint"):
                shutil.copy(path.with_name(name), into / name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of all cases; in its folder `broken` the same as they were when one round was left."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "broken").mkdir()
    for name, options in [*CASES.items(), ("forgetful", FORGETFUL)]:
        interrupt(options, folder / f"{name}.h5", folder / "broken")
    return folder


def test_every_method_goes_on(unbroken: Path) -> None:
    """On other ranks than before, where what the server has is on one and what clients keep on the others."""
    folder, lines = unbroken / "broken", unbroken / "lines"
    lines.write_text("\n".join(f"{name} {options}" for name, options in [*CASES.items(), ("forgetful", FORGETFUL)]))
    succeed(mpirun(3, REPOSITORY / "tests" / "programs" / "goes_on.py", folder, lines))
    for name in CASES:
        one, run = (results.open(path / f"{name}.h5") for path in (unbroken, folder))
        assert "after 1" in run.attributes["resumed"], name
        assert_same_bits(run, one)
        assert not checkpoint.path_beside(run.path).exists()
    weights = [results.open(path / "forgetful.h5").weights for path in (unbroken, folder)]
    assert not np.array_equal(*weights)
