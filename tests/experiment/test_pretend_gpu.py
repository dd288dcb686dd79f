"""Runs on a pretend GPU have the bits of the CPU, mix no devices, and do not wait for the GPU more often than needed.

What a real GPU would compute has other bits, and other speed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedmpi import results
from fedmpi.algorithms import SCAFFOLD, Algorithm, FedAvg, FedDyn
from fedmpi.experiment.experiment import Experiment
from fedmpi.models import Model
from fedmpi.policies import All
from fedmpi.training.settings import LocalTraining
from tests.experiment.test_any_number_of_ranks import CASES as KINDS
from tests.experiment.test_checkpoint import CASES as METHODS
from tests.experiment.test_checkpoint import go, interrupt
from tests.support.experiments import Alone, Cut
from tests.support.mpi import REPOSITORY, mpirun, succeed
from tests.support.pretend_gpu import Counts, pretend_gpu
from tests.support.same_bits import assert_same_bits

JOBS = REPOSITORY / "tests" / "jobs"
#: Their code takes different ways: the mean, client states, features, groups, teachers, generators, robust means.
FEW = ("FedAvg", "SCAFFOLD", "FedGen", "Median", "FedBuff", "compressed")
FEW_TOGETHER = ("FedAvg", "FedRoD", "MoFedSAM", "validated")
FEW_KINDS = ("augmented", "segmentation")
ON_RANKS = ("SCAFFOLD", "FedBN", "FedFTG", "FedAsync")
#: On a GPU these take code that rounds otherwise: automatic mixed precision, recurrent layers, and activations that
#: need no whole vectors there.
ROUNDED = {"bf16", "bf16_side_by_side", "recurrent", "bilstm", "side_by_side_bilstm", "multilabel", "feddf_proxy"}


def some(names: tuple[str, ...], of: dict[str, str] = METHODS) -> list[Any]:
    """All cases, of which only these are tested by default."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in of]


def both(options: str, folder: Path) -> tuple[results.Run, results.Run]:
    """The run on the CPU, and on the pretend GPU."""
    assert go(options, folder / "cpu.h5", "--device", "cpu") == 0
    with pretend_gpu() as gpu:
        assert go(options, folder / "gpu.h5", "--device", "cuda") == 0
    assert gpu.counts.operations > 100
    there = results.open(folder / "gpu.h5")
    assert there.environment["devices"] == "Pretend"
    return results.open(folder / "cpu.h5"), there


@pytest.mark.parametrize("name", some(FEW))
def test_one_by_one(name: str, tmp_path: Path) -> None:
    cpu, gpu = both(f"{METHODS[name]} --local.vectorize off", tmp_path)
    assert_same_bits(gpu, cpu)


@pytest.mark.parametrize("name", some(FEW_TOGETHER))
def test_side_by_side(name: str, tmp_path: Path) -> None:
    cpu, gpu = both(f"{METHODS[name]} --local.vectorize 3", tmp_path)
    assert_same_bits(gpu, cpu)


@pytest.mark.parametrize("name", some(FEW_KINDS, of=KINDS))
def test_kinds_of_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks, networks, partitions, samplers, attacks and so on."""
    monkeypatch.syspath_prepend(str(JOBS))
    cpu, gpu = both(KINDS[name] if "vectorize" in KINDS[name] else f"{KINDS[name]} --local.vectorize off", tmp_path)
    if name in ROUNDED:
        np.testing.assert_allclose(gpu.weights, cpu.weights, atol=0.1)
    else:
        assert_same_bits(gpu, cpu)


def on_ranks(ranks: int, names: tuple[str, ...], folder: Path, program: str, *arguments: str) -> None:
    """Run these methods on the pretend GPU, in one job of another program."""
    lines = "\n".join(f"{name} {METHODS[name]} --local.vectorize 2" for name in names)
    (folder / "lines").write_text(lines)
    succeed(mpirun(ranks, JOBS / "on_pretend_gpu.py", JOBS / program, *arguments))


@pytest.mark.further
@pytest.mark.parametrize("names", [ON_RANKS, pytest.param(tuple(METHODS), marks=pytest.mark.slow)], ids=len)
def test_on_three_ranks(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "three"
    folder.mkdir()
    on_ranks(3, names, folder, "runs.py", str(tmp_path), "three:0:3")
    for name in names:
        assert go(f"{METHODS[name]} --local.vectorize 2", tmp_path / f"{name}.h5", "--device", "cpu") == 0
        there = results.open(folder / f"{name}.h5")
        assert there.environment["devices"].split("\n")[1:] == ["Pretend"] * 2
        assert_same_bits(there, results.open(tmp_path / f"{name}.h5"))


@pytest.mark.parametrize("names", [("SCAFFOLD",), pytest.param(tuple(METHODS), marks=pytest.mark.slow)], ids=len)
def test_runs_go_on(names: tuple[str, ...], tmp_path: Path) -> None:
    """Begun on a CPU and continued on two ranks with GPUs, and the other way round."""
    to_gpu, to_cpu = tmp_path / "to_gpu", tmp_path / "to_cpu"
    for folder in (to_gpu, to_cpu):
        folder.mkdir()
    for name in names:
        options, file = f"{METHODS[name]} --local.vectorize 2", f"{name}.h5"
        interrupt(f"{options} --device cpu", tmp_path / file, to_gpu)
        with pretend_gpu():
            interrupt(f"{options} --device cuda", tmp_path / f"gpu_{file}", to_cpu)
        assert go(options, to_cpu / f"gpu_{file}", "--resume", "--device", "cpu") == 0
        assert_same_bits(results.open(to_cpu / f"gpu_{file}"), results.open(tmp_path / file))
    on_ranks(2, names, to_gpu, "goes_on.py", str(to_gpu), str(to_gpu / "lines"))
    for name in names:
        assert_same_bits(results.open(to_gpu / f"{name}.h5"), results.open(tmp_path / f"{name}.h5"))


# Budgets


class Layers(Model):
    """A network with random layers and statistics."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        first = nn.Linear(math.prod(shape), 9)
        return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(9), nn.Dropout(0.2), nn.Linear(9, outputs))


SIZE = 64 * 9 + 9 + 4 * 9 + 9 * 10 + 10


def costs(
    folder: Path, sizes: tuple[int, ...], algorithm: Algorithm | None = None, **local: Any
) -> tuple[Counts, list[tuple[str, int]]]:
    """What the second of three rounds costs, in which nothing is evaluated, and its copies and waits in order."""
    experiment = Experiment(
        algorithm,
        model=Layers(),
        partition=Cut(*sizes),
        clients=len(sizes),
        sampler=All(),
        local=LocalTraining(**{"batch_size": 10, "augmentation": "crop_flip", **local}),
        rounds=3,
        evaluate_every=3,
        device="cuda",
        output=folder / f"{len(list(folder.iterdir()))}.h5",
    )
    with pretend_gpu() as gpu:
        ends = [(gpu.so_far(), len(gpu.log)) for _ in experiment.outcomes(Alone())]
    return ends[1][0] - ends[0][0], gpu.log[ends[0][1] : ends[1][1]]


@pytest.mark.parametrize(("vectorize", "algorithm"), [("off", FedAvg), ("off", FedDyn), (4, FedAvg), (4, SCAFFOLD)])
def test_a_step_copies_and_waits_for_nothing(
    tmp_path: Path, vectorize: int | str, algorithm: type[Algorithm]
) -> None:
    few, many = (costs(tmp_path, (70,) * 4, algorithm(), vectorize=vectorize, steps=n)[0] for n in (2, 7))
    assert many.operations > 2 * few.operations
    assert many.uploaded < few.uploaded + 4 * 70 * 6 * 8
    assert replace(many, operations=few.operations, uploaded=few.uploaded) == few


@pytest.mark.parametrize(("vectorize", "blocks"), [("off", 4), (2, 2), (4, 1)])
def test_an_epoch_is_one_copy_per_block(tmp_path: Path, vectorize: int | str, blocks: int) -> None:
    one, three = (costs(tmp_path, (70, 50, 33, 20), vectorize=vectorize, epochs=n)[0] for n in (1, 3))
    assert three.uploads - one.uploads == 2 * blocks
    assert three.downloads == one.downloads
    assert three.synchronisations == one.synchronisations


@pytest.mark.parametrize(("vectorize", "blocks"), [("off", 4), (2, 2), (4, 1)])
def test_what_a_round_waits_for(tmp_path: Path, vectorize: int | str, blocks: int) -> None:
    """The model that arrives; of every block the losses, and whether it has diverged; the mean."""
    spent, log = costs(tmp_path, (70, 50, 33, 20), vectorize=vectorize, epochs=1)
    assert spent.synchronisations == 1 + 2 * blocks + 1
    large = [one for one in log if one[1] >= SIZE]
    assert [one for one in large if one[0] == "down"] == [("down", 8 * SIZE)], "one copy of the mean's sum"
    assert ("up", 4 * SIZE) in large
