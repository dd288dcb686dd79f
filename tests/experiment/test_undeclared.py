"""State that a method keeps without declaring it: a run says so, and cannot be resumed."""

from __future__ import annotations

import os
import signal
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmpi import results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import IID
from fedmpi.errors import BadInput
from fedmpi.experiment.experiment import Experiment
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies.server_optimizers import Momentum, ServerOptimizer
from fedmpi.training.settings import LocalTraining
from fedmpi.typing import Cohort, Federation, Tensor
from tests.support.experiments import run

FEW: dict[str, Any] = {
    "model": LogisticRegression(),
    "partition": IID(),
    "local": LocalTraining(epochs=1),
    "clients": 4,
    "cohort": 4,
    "device": "cpu",
}


class Forgetful(FedAvg):
    """Keeps a momentum that it does not declare."""

    momentum: Any = 0.0

    def round(self, fed: Federation, cohort: Cohort) -> None:
        before = self.weights.clone()
        super().round(fed, cohort)
        if fed.is_server:
            change = self.weights - before
            self.momentum = 0.9 * self.momentum + change
            self.weights = before + self.momentum


class Interrupted(Forgetful):
    """Its job ends after the first round."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        if fed.round == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Listing(FedAvg):
    """Adds to a list that it makes in `setup`."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.seen: list[int] = []

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        self.seen.append(len(cohort))


class Late(FedAvg):
    """Sets in the second round what the third one reads."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        if fed.round == 2:
            self.second = self.weights.clone()
        elif fed.round == 3:
            self.weights = self.weights + 0 * self.second


class Own(ServerOptimizer):
    """Momentum in an attribute whose first value is the class's."""

    velocity: Any = None

    def update(self, delta: Tensor) -> Tensor:
        self.velocity = delta.clone() if self.velocity is None else 0.9 * self.velocity + delta
        return self.velocity


class Tidy(FedAvg):
    """Sets what it reads in the same round, and keeps what can be computed again."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.scale = torch.ones(1)
        self.received = self.weights

    @cached_property
    def table(self) -> Tensor:
        return torch.zeros(1)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        self.received = self.weights.clone()
        self.count = len(cohort)
        super().round(fed, cohort)
        self.weights = self.weights * self.scale + self.table + 0 * self.received * self.count


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"algorithm": Forgetful()}, "momentum (Forgetful)"),
        ({"algorithm": Listing()}, "seen (Listing)"),
        ({"algorithm": Late()}, "second (Late)"),
        ({"server_optimizer": Own()}, "velocity (Own)"),
    ],
)
def test_a_run_says_what_it_keeps(
    settings: dict[str, Any], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Watching changes nothing: the weights are those of a run whose first process has one round left to watch."""
    path = tmp_path / "made.h5"
    made = Experiment(**FEW, **settings, rounds=4, output=path).run()
    assert made.attributes["undeclared_state"] == name
    assert f"note: {name} keeps something from round to round that no checkpoint has: " in capsys.readouterr().out
    said = rf"^--resume: .*made\.h5: {name.split()[0]} \(.*\) keeps something .*; --overwrite instead of --resume"
    assert Experiment(**FEW, **settings, rounds=4, output=path, resume=True).run().status == "finished"
    with pytest.raises(BadInput, match=said):
        Experiment(**FEW, **settings, rounds=6, output=path, resume=True).run()


def test_a_momentum_that_is_not_declared_works_without_interruption(tmp_path: Path) -> None:
    """Oracle: the server optimizer Momentum with the same factor, to rounding; so watching changes no values."""
    own = Experiment(**FEW, server_optimizer=Own(), rounds=5, output=tmp_path / "own.h5").run()
    theirs = Experiment(**FEW, server_optimizer=Momentum(momentum=0.9), rounds=5, output=tmp_path / "m.h5").run()
    assert own.weights_sha256 == theirs.weights_sha256


def test_what_is_no_state_is_not_named(tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit."""
    tidy = run(tmp_path / "tidy.h5", Tidy(), rounds=4)
    assert "undeclared_state" not in tidy.attributes
    assert tidy.weights_sha256 == run(tmp_path / "plain.h5", rounds=4).weights_sha256


def test_a_run_that_was_resumed_too_early_ends(tmp_path: Path) -> None:
    """In its first process one round was played, in which nothing could be found."""
    path = tmp_path / "made.h5"
    Experiment(**FEW, algorithm=Interrupted(), rounds=6, output=path).run()
    assert (results.open(path).status, len(results.open(path).rounds["round"])) == ("interrupted", 1)
    with pytest.raises(BadInput, match=r"^--resume: momentum \(Interrupted\) keeps something .*; start again"):
        Experiment(**FEW, algorithm=Interrupted(), rounds=6, output=path, resume=True).run()
