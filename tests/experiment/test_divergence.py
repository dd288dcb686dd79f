"""A client whose training diverges is left out of the round; a round with nobody left ends the run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.bulyan import Bulyan
from fedmpi.algorithms.centralized import Centralized
from fedmpi.algorithms.ditto import Ditto
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddf import FedDF
from fedmpi.algorithms.feddisco import FedDisco
from fedmpi.algorithms.fedftg import FedFTG
from fedmpi.algorithms.fedma import FedMA
from fedmpi.algorithms.fednova import FedNova
from fedmpi.algorithms.fedper import FedRep
from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.algorithms.robust import Krum, Median
from fedmpi.algorithms.scaffnew import Scaffnew
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.errors import Diverged
from fedmpi.models import MLP
from fedmpi.policies import FixedList
from fedmpi.policies.attacks import ALIE
from fedmpi.policies.compression import TopK
from fedmpi.results.summary import summarize
from fedmpi.training.block import Block, Work
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_payload import METHODS
from tests.support.experiments import Cut, run, shortened

ROUND, CLIENT = 2, 3  # which diverges, and when
train = PlainTrainer.train


def diverge(
    monkeypatch: pytest.MonkeyPatch, clients: set[int], value: float = np.nan, phase: str | None = None
) -> None:
    """Let one weight of what these clients train in round 2 become another number.

    Args:
        phase: the name of the only training in which it does; None: it does in all.
    """

    def trained(self: PlainTrainer, block: Block, *arguments: Any, **options: Any) -> Work:
        work = train(self, block, *arguments, **options)
        if arguments[2] == ROUND and int(block.clients[0]) in clients and phase in (None, arguments[4].name):
            work.weights[0, 5] = value
            work.loss[0] = np.nan
            return replace(work, is_finite=False)
        return work

    monkeypatch.setattr(PlainTrainer, "train", trained)


def three_rounds(path: Path, algorithm: Algorithm, without: int | None = None, **settings: Any) -> results.Run:
    """Seven clients of 20 or 30 samples, all but one of them in round 2 if there is one to be left out."""
    everyone = " ".join(map(str, range(7)))
    others = " ".join(str(client) for client in range(7) if client != without)
    lists = path.with_suffix(".txt")
    lists.write_text(f"{everyone}\n{others}\n{everyone}\n")
    local = LocalTraining(epochs=1, batch_size=10, vectorize="off")
    chosen: dict[str, Any] = {"model": MLP((16,), norm="batch"), "local": local, "evaluate_every": 3, **settings}
    cut = Cut(20, 30, 20, 30, 20, 30, 20)
    return run(path, algorithm, partition=cut, clients=7, rounds=3, sampler=FixedList(lists), **chosen)


def short(method: type[Algorithm]) -> Algorithm:
    """The method with as little work at the server as it takes."""
    if method is FedFTG:
        return FedFTG(iterations=1)
    return FedDF(generator_steps=1, student_steps=1) if method is FedDF else shortened(method)


def is_counted(made: results.Run) -> None:
    """Oracle: by hand."""
    assert made.rounds["diverged_clients"].tolist() == [0, 1, 0]
    lost = np.flatnonzero(made.clients["diverged"])
    assert [(made.clients["round"][row], made.clients["client"][row]) for row in lost] == [(ROUND, CLIENT)]
    assert np.isfinite(made.weights).all()
    assert np.isfinite(made.rounds["train_loss"]).all()
    assert "diverged    1 local training; its update was excluded" in summarize(made)


# A client that is rejected counts among Krum's and Bulyan's faulty ones, and its labels among FedDisco's distances.
# One that is not asked does not. Scaffnew needs everybody.
OTHERWISE = {Bulyan, Centralized, FedDisco, Krum, Scaffnew}


@pytest.mark.parametrize(
    "method",
    # The round of a method that inherits it leaves clients out as the other method's.
    [pytest.param(m, marks=[] if "round" in vars(m) else pytest.mark.slow) for m in METHODS if m not in OTHERWISE],
    ids=lambda method: method.__name__,
)
def test_left_out(method: type[Algorithm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run in which the client is not asked in that round, up to the rounding of means."""
    other = three_rounds(tmp_path / "other.h5", short(method), without=CLIENT)
    diverge(monkeypatch, {CLIENT})
    made = three_rounds(tmp_path / "made.h5", short(method))
    is_counted(made)
    assert not other.rounds["diverged_clients"].any()
    np.testing.assert_allclose(made.weights, other.weights, rtol=1e-3, atol=1e-3)
    for column in ("train_loss", "test_loss"):
        np.testing.assert_allclose(made.rounds[column], other.rounds[column], rtol=1e-3, err_msg=column)


@pytest.mark.parametrize(("method", "phase"), [(Ditto, ""), (Ditto, "personal"), (FedRep, "head"), (FedRep, "body")])
def test_one_of_several_trainings(
    method: type[Algorithm], phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the run in which the client is not asked in that round, for the server's model and those of clients."""
    other = three_rounds(tmp_path / "other.h5", method(), without=CLIENT)
    diverge(monkeypatch, {CLIENT}, phase=phase)
    made = three_rounds(tmp_path / "made.h5", method())
    is_counted(made)
    np.testing.assert_allclose(made.weights, other.weights, rtol=1e-3, atol=1e-3)
    for column in ("train_loss", "test_loss"):
        np.testing.assert_allclose(made.rounds[column], other.rounds[column], rtol=1e-3, err_msg=column)


def test_rejected_by_krum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverge(monkeypatch, {CLIENT})
    made = three_rounds(tmp_path / "made.h5", Krum())
    is_counted(made)
    assert made.rounds["rejected"].tolist() == [0, 1, 0]


def test_infinite_is_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverge(monkeypatch, {CLIENT}, np.inf)
    is_counted(three_rounds(tmp_path / "made.h5", FedAvg()))


@pytest.mark.parametrize("method", [FedAvg, FedMA, Krum, Median, SCAFFOLD], ids=lambda method: method.__name__)
def test_large_is_not_diverged(method: type[Algorithm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the mean by hand, of FedAvg; and under no method is anybody lost."""
    diverge(monkeypatch, {CLIENT}, 1e6)
    made = three_rounds(tmp_path / "made.h5", method())
    assert made.rounds["diverged_clients"].tolist() == [0, 0, 0]
    assert np.isfinite(made.weights).all()


@pytest.mark.parametrize(
    "settings",
    [{"compression": TopK(0.1)}, {"attack": ALIE(0.5)}, {"evaluate_means": "both"}],
    ids=["error feedback", "colluders", "means"],
)
def test_nothing_of_it_is_used(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the numbers, which NaN would spoil: what is kept for compression, agreed among liars, and averaged."""
    diverge(monkeypatch, {CLIENT})
    made = three_rounds(tmp_path / "made.h5", SCAFFOLD(), **settings, evaluate_every=1)
    is_counted(made)
    for name in made.rounds.keys() & {"cohort_mean_accuracy", "clients_mean_accuracy"}:
        assert made.rounds[name][-1] > 0.12


@pytest.mark.parametrize("method", [FedAvg, FedNova, Krum, LocalOnly, FedDF, Centralized], ids=lambda m: m.__name__)
def test_nobody_is_left(
    method: type[Algorithm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the run fails in that round, and keeps those before."""
    diverge(monkeypatch, set(range(7)))
    with pytest.raises(Diverged, match="diverged"):
        three_rounds(tmp_path / "made.h5", short(method))
    count = 1 if method is Centralized else 7
    where = r"[a-z.0-9]+.weight of client \d is nan"
    said = rf"failed on rank 0 of 1: round 2, .*: the training of all {count} clients diverged, {where}; lower --"
    assert re.search(said, capsys.readouterr().err)
    made = results.open(tmp_path / "made.h5")
    assert (made.status, made.rounds["round"].tolist()) == ("failed", [1])
