"""Losses that a method asks for: on the samples that it names, or else on those on which the clients train."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Digits
from fedmpi.federation.federation import Federation
from fedmpi.models import LeNet
from fedmpi.policies import Cohort
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE
from tests.support.experiments import Cut, network, normalised, run

SIZES = (600, 20, 7, 5)


def part(shard: NDArray[np.int64]) -> NDArray[np.int64]:
    """The odd ones, but of the last client none."""
    return shard[1::2] if len(shard) > 5 else shard[:0]


class Looking(FedAvg):
    """Measures the first models in every way, and draws random numbers before and after."""

    def __init__(self, trains_on_all: bool) -> None:
        super().__init__()
        self.trains_on_all = trains_on_all
        self.seen: dict[str, dict[int, list[float]]] = {name: {} for name in ("default", "odd", "all", "together")}
        self.drawn: list[list[float]] = []

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        if not self.trains_on_all:
            fed.at_clients.train_on(list(map(part, fed.shards)))

    def round(self, fed: Federation, cohort: Cohort) -> None:
        models = torch.stack([fed.initial_weights(number) for number in range(2)])
        for block in fed.my_clients(cohort):
            shards = [fed.shards[client] for client in block.clients]
            before = self.draw()
            for name, samples in {"default": None, "odd": list(map(part, shards)), "all": shards}.items():
                found = fed.at_clients.losses(block, models, samples)
                self.seen[name].update(zip(block.clients.tolist(), found.tolist(), strict=True))
            self.drawn.append([*before, *self.draw()])
        together = fed.at_clients.losses_of_all(np.arange(fed.clients), models)
        self.seen["together"] = dict(enumerate(together.tolist()))
        super().round(fed, cohort)

    def draw(self) -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


@pytest.mark.parametrize("trains_on_all", [True, False])
@pytest.mark.parametrize("vectorize", ["off", 2])
def test_what_is_asked_for_is_measured(trains_on_all: bool, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: PyTorch, of samples in several batches, in one, or none; and by all ranks together the same."""
    method = Looking(trains_on_all)
    local = LocalTraining(epochs=1, vectorize=vectorize)
    made = run(tmp_path / "run.h5", method, model=LeNet(), partition=Cut(*SIZES), clients=4, local=local)
    trained = [len(shard) if trains_on_all else len(part(shard)) for shard in map(np.arange, SIZES)]
    assert made.clients["steps"].tolist() == [-(-count // local.batch_size) for count in trained]
    ends = np.cumsum(SIZES)
    for number in range(2):
        module = network(LeNet(), SHAPE, 10, number=number).eval()
        for client, (size, end) in enumerate(zip(SIZES, ends, strict=True)):
            shard = np.arange(end - size, end)
            for name in method.seen:
                chosen = part(shard) if name == "odd" or (name != "all" and not trains_on_all) else shard
                x, y = normalised(DIGITS.train_x[chosen], Digits()), torch.from_numpy(DIGITS.train_y[chosen])
                expected = cross_entropy(module(x), y).item() if len(chosen) else np.nan
                assert method.seen[name][client][number] == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_nothing_is_drawn(tmp_path: Path) -> None:
    """Oracle: the numbers that are drawn without any losses; and they differ from those before."""

    class Drawing(Looking):
        def round(self, fed: Federation, cohort: Cohort) -> None:
            for _ in fed.my_clients(cohort):
                self.drawn.append([*self.draw(), *self.draw()])
            FedAvg.round(self, fed, cohort)

    settings: dict[str, Any] = {"partition": Cut(*SIZES), "clients": 4}
    looking, plain = Looking(True), Drawing(True)
    run(tmp_path / "looking.h5", looking, **settings)
    run(tmp_path / "plain.h5", plain, **settings)
    assert looking.drawn == plain.drawn
    assert len(set(np.ravel(looking.drawn))) == 6 * 4
