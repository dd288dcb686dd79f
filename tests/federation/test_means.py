"""`--evaluate_means`: the mean of the cohort's models and that of all clients' last models, beside the server's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.ditto import Ditto
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedgroup import FedGroup
from fedmpi.algorithms.fedopt import FedAvgM
from fedmpi.algorithms.fedpac import FedPAC
from fedmpi.algorithms.fedper import FedRep
from fedmpi.data import IID, Digits, Dirichlet, make_split
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.federation.federation import Federation
from fedmpi.models import LeNet, LogisticRegression
from fedmpi.policies import Cohort, Uniform
from fedmpi.results.summary import summarize
from fedmpi.training.block import Phase
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import CPU, SEED, Spy, network, normalised, read, run

CLIENTS, COHORT, ROUNDS = 7, 3, 4
DIGITS = read(Digits())
SETTINGS: dict[str, Any] = {
    "model": LeNet(),
    "partition": Dirichlet(0.3),
    "clients": CLIENTS,
    "cohort": COHORT,
    "sampler": Uniform(),
    "rounds": ROUNDS,
    "local": LocalTraining(epochs=1, batch_size=50),
}


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("vectorize", ["off", 2])
def test_means_are_those_of_the_local_models(weighting: str, vectorize: Any, spy: Spy, tmp_path: Path) -> None:
    """Oracle: NumPy's weighted means in float64 of what was trained last, if ever; PyTorch's accuracies of them."""
    local = LocalTraining(epochs=1, batch_size=50, vectorize=vectorize)
    settings = {**SETTINGS, "local": local, "weighting": weighting}
    made = run(tmp_path / "run.h5", FedAvgM(), evaluate_means="both", **settings)
    samples = made.partition["samples"] if weighting == "samples" else np.ones(CLIENTS)
    start = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU).weights[0].double().numpy()
    last = np.stack([start] * CLIENTS)
    model = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU)
    x, y = normalised(DIGITS.test_x, Digits()), torch.from_numpy(DIGITS.test_y)
    assert COHORT < len(set().union(*spy.trained)) < CLIENTS, "not everyone has been chosen"
    rounds = zip(range(ROUNDS), spy.trained[1:], spy.measured[1:], strict=True)
    for row, trained, (_, *means) in rounds:
        last[list(trained)] = list(trained.values())
        for name, measured, of in zip(("cohort", "clients"), means, (sorted(trained), range(CLIENTS)), strict=True):
            mean = np.average(last[list(of)], axis=0, weights=samples[list(of)])
            np.testing.assert_allclose(measured.numpy(), mean, rtol=1e-6, atol=1e-8)
            model.load(measured)
            with torch.inference_mode():
                hits = (model.module.eval()(x).argmax(1) == y).double().mean().item()
            assert made.rounds[f"{name}_mean_accuracy"][row] == pytest.approx(hits, abs=0.003)
    columns = [made.rounds[name] for name in ("test_accuracy", "cohort_mean_accuracy", "clients_mean_accuracy")]
    assert len(np.unique(columns, axis=0)) == 3


def test_the_cohorts_mean_is_fedavgs_model(spy: Spy, tmp_path: Path) -> None:
    """Oracle: FedAvg itself, whose next model that mean is, bit for bit; and a run without the option."""
    made = run(tmp_path / "run.h5", evaluate_means="cohort", evaluate_every=2, **SETTINGS)
    assert [len(vectors) for vectors in spy.measured] == [1, 0, 2, 0, 2]
    for server, cohort in filter(None, spy.measured[1:]):
        assert torch.equal(server, cohort)
    np.testing.assert_array_equal(made.rounds["cohort_mean_accuracy"], made.rounds["test_accuracy"])
    assert np.isnan(made.rounds["cohort_mean_accuracy"]).tolist() == [True, False, True, False]
    plain = run(tmp_path / "plain.h5", evaluate_every=2, **SETTINGS)
    assert made.weights_sha256 == plain.weights_sha256
    for column in plain.rounds.keys() - {name for name in plain.rounds if "seconds" in name}:
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    assert made.rounds.keys() - plain.rounds.keys() == {"cohort_mean_accuracy"}


def test_a_second_training_is_no_part_in_the_round(tmp_path: Path) -> None:
    """Oracle: FedAvg, whose part Ditto's clients play before they train personal models, which are named phases."""
    chosen = {**SETTINGS, "model": LogisticRegression(), "evaluate_means": "both", "evaluate_local": True}
    plain, made = (run(tmp_path / f"{type(m).__name__}.h5", m, **chosen) for m in (FedAvg(), Ditto()))
    np.testing.assert_array_equal(made.rounds["global_accuracy"], plain.rounds["test_accuracy"])
    assert (made.rounds["test_accuracy"] != plain.rounds["test_accuracy"]).all(), "else nothing is tested"
    for column in ("cohort_mean_accuracy", "clients_mean_accuracy", "local_accuracy"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column], err_msg=column)


class Named(FedAvg):
    """FedAvg of what clients have trained in two phases, which both have names, or only the first."""

    def __init__(self, last: str, in_the_loop: bool = True) -> None:
        self.last, self.in_the_loop = last, in_the_loop

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort) if self.in_the_loop else list(fed.my_clients(cohort)):
            first = fed.train(block, start, self, Phase("first"))
            mean.add(fed.train(block, first.weights.clone(), self, Phase(self.last)).weights, block)
        self.server_step(fed, mean.reduce(empty=self.weights))


@pytest.mark.parametrize(("last", "in_the_loop"), [("", True), ("last", True), ("last", False)])
def test_phases_with_names(last: str, in_the_loop: bool, tmp_path: Path) -> None:
    """Oracle: the server's model, which is the mean of what clients have trained last."""
    chosen = {**SETTINGS, "model": LogisticRegression(), "evaluate_local": True, "evaluate_means": "both"}
    made = run(tmp_path / "run.h5", Named(last, in_the_loop), held_out=2, held_out_epochs=1, **chosen)
    assert np.isfinite(made.clients["local_accuracy"]).all()
    assert np.isfinite(made.rounds["local_accuracy"]).all()
    np.testing.assert_array_equal(made.rounds["cohort_mean_accuracy"], made.rounds["test_accuracy"])
    assert (made.rounds["clients_mean_accuracy"] > made.initial["test_accuracy"]).all()


@pytest.mark.parametrize("method", [FedRep, FedPAC, FedGroup], ids=lambda method: method.__name__)
def test_local_models_of_methods_with_phases(method: type[Algorithm], spy: Spy, tmp_path: Path) -> None:
    """Oracle: PyTorch's accuracies of what each client trained last, on its own test samples."""
    chosen = {**SETTINGS, "evaluate_local": True, "clients": 3, "cohort": 3, "rounds": 2, "partition": IID()}
    made = run(tmp_path / "run.h5", method(), **chosen)
    split = make_split(IID(), DIGITS.train_y, DIGITS.test_y, 10, 3, SEED)
    model = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU)
    x, y = normalised(DIGITS.test_x, Digits()), torch.tensor(DIGITS.test_y)
    expected = []
    for trained in spy.trained[1:]:
        for client, shard in enumerate(map(torch.tensor, split.test)):
            model.load(torch.from_numpy(trained[client]).float())
            with torch.inference_mode():
                expected.append((model.module.eval()(x[shard]).argmax(1) == y[shard]).double().mean().item())
    np.testing.assert_allclose(made.clients["local_accuracy"], expected, atol=0.006)


def test_summary(tmp_path: Path) -> None:
    """Oracle: last, best and mean-of-10 accuracy of the columns."""
    made = run(tmp_path / "run.h5", FedAvgM(), evaluate_means="both", **SETTINGS)
    text = " ".join(summarize(made).split())
    for label, column in (("cohort mean", "cohort_mean_accuracy"), ("client mean", "clients_mean_accuracy")):
        values = 100 * made.rounds[column]
        best = f"best on test {values.max():.2f} % (round {values.argmax() + 1}, optimistic)"
        last10 = f"last {len(values)} evaluations {values.mean():.2f} % "
        assert f"{label} last {values[-1]:.2f} %, {best}, {last10}" in text


@pytest.mark.parametrize("name", ["IFCA", "LocalOnly", "Centralized"])
def test_without_a_mean_it_is_refused(name: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", name, "--evaluate_means", "both"])
    assert str(error.value) == f"--evaluate_means = both: {name} does not average its clients' models"
