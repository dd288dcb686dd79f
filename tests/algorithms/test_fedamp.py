"""FedAMP: LocalOnly and FedAvg as its limits, mixtures by hand, and the whole method on least squares in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmpi.algorithms.fedamp import FedAMP
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.algorithms.proximal import Proximal
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.federation.client_state import ClientState
from fedmpi.models import MLP, LeNet, LogisticRegression, Model
from fedmpi.policies import RoundRobin
from fedmpi.training.settings import LocalTraining
from tests.experiment.test_divergence import CLIENT, diverge, three_rounds
from tests.jobs.regression import CLIENTS, HalfSquares
from tests.support.digits import SHAPE, Few
from tests.support.experiments import Alone, Spy, network, run
from tests.support.least_squares import START, gradient, squares

UNEQUAL: dict[str, Any] = {"dataset": Few(150), "partition": Dirichlet(0.3), "clients": 5, "rounds": 3}
TURNS: dict[str, Any] = {**UNEQUAL, "weighting": "uniform", "sampler": RoundRobin(), "cohort": 3}
MODELS = [LogisticRegression(), LeNet(), MLP((16, 8), norm="batch")]


class Anchored(Proximal, LocalOnly):
    """LocalOnly with a pull to where the client's training began."""

    mu = 2.0


def same_rows(some: ClientState, others: ClientState) -> None:
    """Both have the same clients with the same bits."""
    assert some.rows.keys() == others.rows.keys()
    for client, row in some.rows.items():
        assert torch.equal(row, others.rows[client]), client


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", MODELS)
def test_without_pull_it_is_local_training(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: LocalOnly, bit for bit; clients of unequal sizes, of whom three of five take part."""
    settings = {**TURNS, "model": model, "local": LocalTraining(epochs=1, momentum=0.5, vectorize=vectorize)}
    ours, theirs = FedAMP(mu=0.0, share=0.9), LocalOnly()
    made, plain = run(tmp_path / "made.h5", ours, **settings), run(tmp_path / "plain.h5", theirs, **settings)
    same_rows(ours.own, theirs.own)
    for column in ("test_accuracy", "test_loss", "train_loss"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    assert (made.clients["others"] > 0.1).all()


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", MODELS)
def test_without_others_the_pull_is_to_the_own_model(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: LocalOnly with a proximal term, bit for bit, in the clients' models and in what they receive."""
    settings = {**TURNS, "model": model, "local": LocalTraining(epochs=2, batch_size=7, vectorize=vectorize)}
    ours, theirs = FedAMP(mu=2.0, share=0.0), Anchored()
    made = run(tmp_path / "made.h5", ours, **settings)
    run(tmp_path / "plain.h5", theirs, **settings)
    same_rows(ours.own, theirs.own)
    same_rows(ours.mixture, theirs.own)
    assert not made.clients["others"].any()


@pytest.mark.parametrize("vectorize", ["off", 5])
@pytest.mark.parametrize("model", MODELS)
def test_equal_shares_are_fedavg(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg with equal weights, to float32's last digits, with its running statistics."""
    settings = {**UNEQUAL, "model": model, "weighting": "uniform"}
    settings["local"] = LocalTraining(epochs=1, vectorize=vectorize)
    ours, theirs = FedAMP(mu=0.0, share=4 / 5, sigma=np.inf, start="mixture"), FedAvg()
    run(tmp_path / "made.h5", ours, **settings)
    run(tmp_path / "plain.h5", theirs, **settings)
    assert len(ours.mixture.rows) == 5
    for row in ours.mixture.rows.values():
        torch.testing.assert_close(row, theirs.weights, rtol=1e-4, atol=2e-6)


def test_a_mixture_by_hand() -> None:
    """Oracle: by hand: models 0 and 2, sigma 4, share 1, so alpha 4 and x = 1/e."""
    weights = FedAMP(share=1.0, sigma=4.0).attention(np.array([[0.0, 4.0], [4.0, 0.0]]))
    np.testing.assert_allclose(weights @ [0, 2], [0.735759, 1.264241], rtol=1e-6)


def test_weights_of_three() -> None:
    """Oracle: by hand: the mean squared distance of three pairs is 4; the weights are symmetric and sum to 1."""
    distances = np.array([[0.0, 2.0, 4.0], [2.0, 0.0, 6.0], [4.0, 6.0, 1e-17]])
    weights = FedAMP(share=0.5).attention(distances)
    np.testing.assert_allclose(weights[0, 1:], 0.25 * np.exp([-0.5, -1.0]))
    np.testing.assert_allclose(weights[1, 2], 0.25 * np.exp(-1.5))
    np.testing.assert_array_equal(weights, weights.T)
    np.testing.assert_allclose(weights.sum(1), 1)


@pytest.mark.parametrize("sigma", [None, 3.0])
def test_equal_models_and_a_lone_one(sigma: float | None) -> None:
    """Oracle: by hand: the share, and nothing; nobody."""
    method = FedAMP(share=0.6, sigma=sigma)
    np.testing.assert_allclose(
        method.attention(np.zeros((3, 3))), [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4]]
    )
    assert method.attention(np.zeros((1, 1))).tolist() == [[1.0]]
    assert method.attention(np.zeros((0, 0))).shape == (0, 0)


def plain_mixtures(models: dict[int, NDArray[np.float64]], parameters: int, share: float) -> dict[int, NDArray]:
    """Of each client, by double loops over its parameters."""
    pairs = {(i, j): np.square((models[i] - models[j])[:parameters]).sum() for i in models for j in models if i != j}
    sigma = np.mean(list(pairs.values()))
    mixed = {}
    for i, own in models.items():
        weights = {j: share / (len(models) - 1) * np.exp(-pairs[i, j] / sigma) for j in models if j != i}
        mixed[i] = (1 - sum(weights.values())) * own + sum(weight * models[j] for j, weight in weights.items())
    return mixed


@pytest.mark.parametrize("vectorize", ["off", 2])
def test_mixtures_of_what_was_trained(vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: double loops over the trained models; of who takes part. A mixture stays until the client's next round.

    The mixtures of a round have the same sum as its models.
    """
    spy, method = Spy(monkeypatch), FedAMP(mu=1.0, share=0.7)
    settings = {**TURNS, "model": LeNet(), "local": LocalTraining(epochs=2, vectorize=vectorize)}
    run(tmp_path / "run.h5", method, **settings)
    rounds = [trained for trained in spy.trained if trained]
    assert [sorted(trained) for trained in rounds] == [[0, 1, 2], [0, 3, 4], [1, 2, 3]]
    expected: dict[int, NDArray] = {}
    parameters = sum(p.numel() for p in network(LeNet(), SHAPE, 10).parameters())
    for trained in rounds:
        mixed = plain_mixtures(trained, parameters, 0.7)
        np.testing.assert_allclose(sum(mixed.values()), sum(trained.values()), atol=1e-6)
        expected |= mixed
    for client, mixture in expected.items():
        np.testing.assert_allclose(method.mixture.rows[client].numpy(), mixture, rtol=1e-5, atol=1e-7)


class SquaresFedAMP(HalfSquares, FedAMP):
    """FedAMP on least squares."""


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("start", ["own", "mixture"])
def test_on_least_squares(start: Any, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: steps and mixtures of 5 clients in float64, over four rounds."""
    mu, lr, epochs = 0.8, 0.1, 3
    method = SquaresFedAMP(mu=mu, share=0.6, start=start)
    local = LocalTraining(epochs=epochs, lr=lr, vectorize=vectorize)
    squares(tmp_path / "run.h5", method, 4, local)
    own = dict.fromkeys(range(CLIENTS), START)
    mixed = dict(own)
    for _ in range(4):
        for client, mixture in mixed.items():
            w = own[client] if start == "own" else mixture
            for _ in range(epochs):
                w = w - lr * (gradient(client, w) + mu * (w - mixture))
            own[client] = w
        mixed = plain_mixtures(own, len(START), 0.6)
    for state, expected in ((method.own, own), (method.mixture, mixed)):
        for client in range(CLIENTS):
            np.testing.assert_allclose(state.rows[client].numpy(), expected[client], rtol=2e-5)


def test_what_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the initial model of a client that never came, and else what the client has trained last."""
    spy, method = Spy(monkeypatch), FedAMP()
    made = run(tmp_path / "run.h5", method, model=MLP((9,)), **{**TURNS, "rounds": 1, "evaluate_every": 1})
    (trained,) = [one for one in spy.trained if one]
    assert sorted(trained) == sorted(method.own.rows) == [0, 1, 2]
    for client, row in method.own.rows.items():
        np.testing.assert_array_equal(row.numpy(), trained[client])
    assert made.rounds["clients_trained"].tolist() == [3]
    before = run(tmp_path / "local.h5", LocalOnly(), model=MLP((9,)), **{**TURNS, "rounds": 1})
    assert made.initial == before.initial


def test_traffic(tmp_path: Path) -> None:
    """Oracle: by hand: a model both ways for each of three clients."""
    made = run(tmp_path / "run.h5", FedAMP(), model=LogisticRegression(), **TURNS)
    assert made.rounds["bytes_up"].tolist() == made.rounds["bytes_down"].tolist() == [3 * 650 * 4] * 3


def test_whose_training_diverges_keeps_its_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run in which the client is not asked in that round, bit for bit; nobody else is spoilt."""
    ours, theirs = FedAMP(), FedAMP()
    three_rounds(tmp_path / "other.h5", theirs, without=CLIENT)
    diverge(monkeypatch, {CLIENT})
    made = three_rounds(tmp_path / "made.h5", ours)
    assert made.rounds["diverged_clients"].tolist() == [0, 1, 0]
    assert np.isnan(made.clients["others"]).sum() == 1
    same_rows(ours.own, theirs.own)
    same_rows(ours.mixture, theirs.mixture)


def test_refused(tmp_path: Path) -> None:
    """Oracle: one line, before anything is trained."""
    reasons = {
        "--server_optimizer Momentum": "--server_optimizer = Momentum: must be Replace with FedAMP, which has",
        "--compression TopK": "--compression = TopK: FedAMP's server uses the models of single clients",
        "--attack SignFlip": "--attack = SignFlip: FedAMP's server uses the models of single clients",
        "--privacy CentralDP --weighting uniform": "--algorithm = FedAMP: must be a method whose server sees",
        "--weighting samples": "--weighting = samples: must be uniform with FedAMP, which gives all",
        "--evaluate_fine_tuned 1": "FedAMP has no global model that clients could fine-tune",
        "--local.lr 0.5 --algorithm.mu 4": "--algorithm.mu = 4.0: must be below 4, for steps of --local.lr = 0.5",
        "--algorithm.share 1.5": "--algorithm.share = 1.5: must be between 0 and 1",
        "--algorithm.sigma 0": "--algorithm.sigma = 0.0: must be above 0",
    }
    for number, (options, reason) in enumerate(reasons.items()):
        path = tmp_path / f"{number}.h5"
        with pytest.raises(BadInput) as refused:
            attempt(f"--algorithm FedAMP --rounds 1 --output {path} {options}")
        assert reason in str(refused.value), options
        assert not path.exists()


def attempt(options: str) -> None:
    experiment, config = parse(options.split())
    experiment.run(Alone(), config)
