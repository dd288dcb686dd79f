"""FedALA: FedAvg and FedPer as its limits, a step by hand, and the whole method in plain PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedala import FedALA
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedper import FedPer
from fedmpi.data import Digits, Dirichlet
from fedmpi.errors import BadInput
from fedmpi.federation.evaluation import Evaluation
from fedmpi.federation.federation import Federation
from fedmpi.federation.local import Local
from fedmpi.models import MLP, LeNet, LogisticRegression, Model
from fedmpi.policies import FixedList, RoundRobin
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder, OneVector, Regression
from tests.support.digits import DIGITS, SHAPE, Few, beside_fedavg, in_order
from tests.support.experiments import (
    block,
    network,
    normalised,
    order,
    plain_batches,
    plain_training,
    run,
    state,
    tensors,
)

UNEQUAL: dict[str, Any] = {"dataset": Few(150), "partition": Dirichlet(0.3), "clients": 5, "rounds": 3}


class OwnHeads(FedALA):
    """FedALA whose clients never take over anything of the global head."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.shares = fed.client_state("no shares", torch.zeros_like(self.weights[self.head]))


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LogisticRegression(), LeNet(), MLP((16, 8), norm="batch")])
def test_shares_of_one_are_fedavg(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit; clients of unequal sizes."""
    made, plain = beside_fedavg(tmp_path, FedALA(rate=0.0), model, vectorize)
    for mine, column in {"global_accuracy": "test_accuracy", "test_loss": "test_loss"}.items():
        np.testing.assert_array_equal(made.rounds[mine], plain.rounds[column])
    assert set(made.clients["share"]) == {1.0}


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_shares_of_zero_are_fedper(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedPer, bit for bit, in the shared body, the clients' heads and their accuracy."""
    local = LocalTraining(epochs=1, momentum=0.5, vectorize=vectorize)
    settings: dict[str, Any] = {**UNEQUAL, "model": LeNet(), "local": local}
    ours, theirs = OwnHeads(rate=0.0), FedPer()
    made, plain = run(tmp_path / "ala.h5", ours, **settings), run(tmp_path / "per.h5", theirs, **settings)
    np.testing.assert_array_equal(made.weights[theirs.shared], plain.weights[theirs.shared])
    for client, row in theirs.kept.rows.items():
        assert torch.equal(ours.kept.rows[client], row)
    for column in ("test_accuracy", "test_loss"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])


class Given:
    """In place of a federation: gradients that are given, one for each client, in every step."""

    def __init__(self, slopes: Tensor) -> None:
        self.slopes = slopes
        self.starts: list[Tensor] = []

    @property
    def at_clients(self) -> Given:
        return self

    def gradients(self, some: Any, models: Tensor, hooks: Any) -> Tensor:
        self.starts.append(models.clone())
        return self.slopes[some.clients]


def test_a_step_by_hand() -> None:
    """Oracle: by hand: own head 0, global head 2, rate 1: a gradient of .25 gives W .5 and a start of 1; -.25 none.

    A client that takes two steps makes the second one alone.
    """
    algorithm: Any = FedALA()
    algorithm.head = slice(0, 1)
    clients = block(0, 1, 2)

    class Rows:
        def __init__(self, value: float) -> None:
            self.value = value

        def __getitem__(self, some: Any) -> Tensor:
            return torch.full((len(some), 1), self.value)

    algorithm.kept, algorithm.shares = Rows(0.0), Rows(1.0)
    fed: Any = Given(torch.tensor([[0.25, 9.0], [-0.25, 9.0], [0.125, 9.0]]))
    received = torch.tensor([2.0, 7.0])
    shares = algorithm.learned(fed, clients, received, np.array([1, 1, 2]))
    assert shares.flatten().tolist() == [0.5, 1.0, 0.5]
    assert algorithm.mixed(clients, received, shares).tolist() == [[1.0, 7.0], [2.0, 7.0], [1.0, 7.0]]
    assert [start.tolist() for start in fed.starts] == [[[2.0, 7.0]] * 3, [[1.5, 7.0]]]


def plain_fedala(
    model: Model, local: LocalTraining, rate: float, passes: tuple[int, ...]
) -> tuple[dict[str, Tensor], list[list[Tensor]], list[list[Tensor]]]:
    """The server's tensors, and the heads and shares of two clients, after three rounds in PyTorch."""
    server = network(model, SHAPE, 10)
    x, y = normalised(DIGITS.train_x[:60], Digits()), torch.from_numpy(DIGITS.train_y[:60])
    normalises = any("running_mean" in name for name in state(server))
    own = [[p.detach().clone() for p in head_of(server)] for _ in range(2)]
    shares = [[torch.ones_like(p) for p in head] for head in own]
    for round, steps in enumerate(passes, 1):
        trained = []
        for client in range(2):
            mine, module = slice(30 * client, 30 * client + 30), copy.deepcopy(server).train()
            received = [p.detach().clone() for p in head_of(module)]

            def mix(module: nn.Module = module, client: int = client, received: list[Tensor] = received) -> None:
                for p, mine, theirs, share in zip(
                    head_of(module), own[client], received, shares[client], strict=True
                ):
                    p.data.copy_(mine + share * (theirs - mine))

            mix()
            for _ in range(steps):
                trial = copy.deepcopy(module)
                for chosen in plain_batches(order(0, round, client, 30, phase="gradient "), 10, normalises):
                    loss = nn.functional.cross_entropy(trial(x[mine][chosen]), y[mine][chosen], reduction="sum")
                    (loss / 30).backward()
                for share, p, mine_, theirs in zip(
                    shares[client], head_of(trial), own[client], received, strict=True
                ):
                    assert p.grad is not None
                    share.sub_(rate * p.grad * (theirs - mine_)).clamp_(0, 1)
                mix()
            plain_training(module, x[mine], y[mine], local, client, round)
            own[client] = [p.detach().clone() for p in head_of(module)]
            trained.append(state(module))
        means = {name: torch.stack([one[name] for one in trained]).mean(0) for name in trained[0]}
        server.load_state_dict(means, strict=False)
    return state(server), own, shares


def head_of(module: nn.Module) -> list[nn.Parameter]:
    """Weight and bias of the last layer."""
    return list(module.parameters())[-2:]


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17))])
def test_plain_pytorch(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: networks in PyTorch, over three rounds of two clients; to 1e-3 of the way.

    No steps of the shares in the first round, three in the second, two in the third.
    """
    local = LocalTraining(epochs=2, batch_size=10, lr=0.05, momentum=0.5, vectorize=vectorize)
    algorithm = FedALA(rate=50.0, first_steps=3, steps=2)
    made = in_order(tmp_path / "run.h5", algorithm, model, 2, local)
    server, heads, shares = plain_fedala(model, local, 50.0, (0, 3, 2))
    first = state(network(model, SHAPE, 10))
    for name, tensor in tensors(made).items():
        way = (server[name] - first[name]).norm()
        assert (tensor - server[name]).norm() <= 1e-3 * way + 1e-6, name
    for client in range(2):
        expected = torch.cat([share.flatten() for share in shares[client]])
        assert 0.1 < (expected < 1).float().mean() < 1
        torch.testing.assert_close(algorithm.shares.rows[client], expected, rtol=0, atol=2e-3)
        head = torch.cat([p.flatten() for p in heads[client]])
        torch.testing.assert_close(algorithm.kept.rows[client], head, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        made.clients["share"][-2:], [torch.cat([s.flatten() for s in one]).mean() for one in shares], rtol=1e-3
    )
    assert made.clients["steps"].tolist() == [6, 6, 6 + 9, 6 + 9, 6 + 6, 6 + 6]


def test_the_start_lies_between_both_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the interval, elementwise, of every start of a training and of every step of the shares."""
    algorithm, counted = FedALA(rate=1000.0), []

    def between(some: Any, models: Tensor) -> None:
        bounds = torch.stack((algorithm.kept[some], received[-1].expand(len(some), -1)))
        start = models[:, algorithm.head]
        assert (bounds.amin(0) - 1e-6 <= start).all()
        assert (start <= bounds.amax(0) + 1e-6).all()
        counted.append(len(some))

    received: list[Tensor] = []
    mixed, gradients = FedALA.mixed, Local.gradients

    def noting(self: FedALA, some: Any, sent: Tensor, shares: Tensor) -> Tensor:
        received.append(sent[self.head].clone())
        models = mixed(self, some, sent, shares)
        between(some, models)
        return models

    def noted(self: Local, some: Any, models: Tensor, hooks: Any) -> Tensor:
        between(some, models)
        return gradients(self, some, models, hooks)

    monkeypatch.setattr(FedALA, "mixed", noting)
    monkeypatch.setattr(Local, "gradients", noted)
    run(tmp_path / "run.h5", algorithm, model=MLP((9,)), dataset=Few(80), rounds=4)
    assert len(counted) > 20


def test_the_mixture_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand, from what clients keep and the server's model at the end; a third client never came."""
    algorithm = FedALA(rate=500.0)
    measured: dict[int, Tensor] = {}
    evaluate = Federation.evaluate_clients

    def noting(fed: Federation, weights: Tensor, personal: Any) -> Evaluation:
        def noted(some: Any, received: Tensor) -> Tensor:
            models: Tensor = personal(some, received)
            measured.update(zip(some.clients.tolist(), models.clone(), strict=True))
            return models

        return evaluate(fed, weights, noted)

    monkeypatch.setattr(Federation, "evaluate_clients", noting)
    (tmp_path / "rounds").write_text("0 1\n" * 3)
    settings: dict[str, Any] = {"dataset": Few(90), "clients": 3, "cohort": 2, "rounds": 3}
    sampler = FixedList(tmp_path / "rounds")
    run(tmp_path / "run.h5", algorithm, model=LeNet(), local=LocalTraining(epochs=3), sampler=sampler, **settings)
    for client, model in measured.items():
        expected = algorithm.weights.clone()
        if client < 2:
            kept, share = algorithm.kept.rows[client], algorithm.shares.rows[client]
            expected[algorithm.head] = kept + share * (expected[algorithm.head] - kept)
            assert 0 < (share < 1).float().mean() < 1
        torch.testing.assert_close(model, expected)
    assert sorted(measured) == [0, 1, 2]


def test_who_comes_for_the_first_time(tmp_path: Path) -> None:
    """Oracle: by hand: three clients come in turn; the first round of each has no steps of the shares."""
    algorithm = FedALA(first_steps=4, steps=2)
    settings: dict[str, Any] = {
        "model": MLP((7,)),
        "dataset": Few(60),
        "clients": 3,
        "cohort": 2,
        "rounds": 5,
        "sampler": RoundRobin(),
    }
    made, plain = run(tmp_path / "made.h5", algorithm, **settings), run(tmp_path / "plain.h5", FedAvg(), **settings)
    assert made.initial["test_accuracy"] == plain.initial["test_accuracy"]
    assert made.clients["client"].tolist() == [0, 1, 0, 2, 1, 2, 0, 1, 0, 2]
    passes = np.array([0, 0, 4, 0, 4, 4, 2, 2, 2, 2])
    np.testing.assert_array_equal(made.clients["steps"], 2 * (1 + passes))
    assert algorithm.visits.tolist() == [4, 3, 3]


def test_no_head(tmp_path: Path) -> None:
    """Oracle: one line, before anything is written."""
    settings: dict[str, Any] = {"dataset": Regression(), "partition": InOrder(), "model": OneVector(), "clients": 5}
    with pytest.raises(BadInput, match="--model: FedALA needs a fully connected layer that is trained"):
        run(tmp_path / "run.h5", FedALA(), **settings)
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -1.0}, "rate = -1.0: must be at least 0"),
        ({"first_steps": 0}, "first_steps = 0: must be at least 1"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=message):
        FedALA(**options)
