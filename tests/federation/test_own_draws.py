"""What a method's own code draws from the generators of random, numpy.random and torch is never the same twice.

That it is the same on every rank is the case `drawn` of tests/experiment/test_any_number_of_ranks.py.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmpi.algorithms import FedAvg
from fedmpi.federation.federation import Federation
from fedmpi.policies import Cohort, Uniform
from fedmpi.randomness import stream
from tests.support.experiments import SEED, run


class Drawing(FedAvg):
    """Notes what it draws, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[float, float, float]] = []

    def draw(self) -> None:
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.draw()

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        self.draw()
        return super().clients_to_ask(round, cohort, clients)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        self.draw()
        for _ in range(2):
            for _ in fed.my_clients(cohort):
                self.draw()
            self.draw()
        super().round(fed, cohort)

    def evaluate(self, fed: Federation) -> None:
        self.draw()
        super().evaluate(fed)


def test_no_number_twice(tmp_path: Path) -> None:
    """By seed, round, client and place; oracle: the numbers, and those of the same run once more."""
    settings: dict[str, Any] = {"rounds": 2, "clients": 3}

    def drawn(name: str, seed: int) -> list[tuple[float, float, float]]:
        method = Drawing()
        run(tmp_path / f"{name}.h5", method, seed=seed, **settings)
        return method.drawn

    one, other = drawn("one", 1), drawn("other", 2)
    assert len(one) == len(other) == 2 + 2 * (3 + 2 * (3 + 1))
    for of_generator in zip(*one, strict=True):
        assert len(set(of_generator)) == len(one)
    for mine, others in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True):
        assert not {*mine} & {*others}
    assert drawn("again", 1) == one


class Own(FedAvg):
    """Draws for a purpose of the sampler's."""

    def __init__(self) -> None:
        self.own: list[list[int]] = []
        self.cohorts: list[list[int]] = []

    def round(self, fed: Federation, cohort: Cohort) -> None:
        self.own.append(fed.stream("cohort").choice(fed.clients, len(cohort), replace=False).tolist())
        self.cohorts.append(cohort.clients.tolist())
        super().round(fed, cohort)


def test_the_samplers_numbers_are_not_those_of_a_method(tmp_path: Path) -> None:
    """Oracle: the cohorts, which the same draws would give."""
    method = Own()
    run(tmp_path / "run.h5", method, sampler=Uniform(), clients=50, cohort=6, rounds=3)
    drawn = [sorted(stream(SEED, "cohort", r).choice(50, 6, replace=False).tolist()) for r in (1, 2, 3)]
    assert method.cohorts == drawn
    assert all(sorted(own) != cohort for own, cohort in zip(method.own, drawn, strict=True))
