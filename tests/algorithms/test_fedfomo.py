"""FedFomo: LocalOnly as its limit, weights and choices by hand, and the whole method in plain PyTorch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness
from fedmpi.algorithms.fedfomo import FedFomo, Judge
from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.data import Digits, Dirichlet, Permuted, make_split
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.models import MLP, LeNet, LogisticRegression, Model
from fedmpi.policies import FixedList, Heterogeneous, RoundRobin
from fedmpi.policies.conditions import Conditions
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_fedamp import attempt, same_rows
from tests.experiment.test_divergence import CLIENT, diverge, three_rounds
from tests.support.digits import DIGITS, EACH, SHAPE, Few, in_order
from tests.support.experiments import SEED, Cut, Spy, block, network, normalised, plain_training, run, state

UNEQUAL: dict[str, Any] = {
    "dataset": Few(150),
    "partition": Dirichlet(0.3),
    "clients": 5,
    "rounds": 3,
    "sampler": RoundRobin(),
    "cohort": 3,
    "weighting": "uniform",
}
MODELS = [LogisticRegression(), LeNet(), MLP((16, 8), norm="batch")]


def aside(client: int, shard: NDArray[np.int64], share: float = 0.2) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples that a client sets aside, and the others, in their order."""
    order = randomness.stream(SEED, "set aside", 0, client).permutation(shard)
    count = min(max(round(share * len(shard)), 1), len(shard) - 1)
    return order[:count], order[count:]


class OnFourFifths(LocalOnly):
    """LocalOnly on the samples on which FedFomo trains."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        fed.at_clients.train_on([aside(client, shard)[1] for client, shard in enumerate(fed.shards)])


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", MODELS)
def test_alone_it_is_local_training(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: LocalOnly on four fifths, bit for bit; clients of unequal sizes, of whom three of five take part."""
    settings = {**UNEQUAL, "model": model, "local": LocalTraining(epochs=2, momentum=0.5, vectorize=vectorize)}
    ours, theirs = FedFomo(models=1, fallback="keep"), OnFourFifths()
    made, plain = run(tmp_path / "made.h5", ours, **settings), run(tmp_path / "plain.h5", theirs, **settings)
    same_rows(ours.own, theirs.own)
    for column in ("test_accuracy", "test_loss", "train_loss"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    assert not made.clients["others"].any()
    assert not made.rounds["bytes_down"].any()
    assert made.rounds["bytes_up"].all()


def test_where_nothing_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the model before, or LocalOnly's on four fifths, bit for bit; every loss is larger than the last."""
    losses = iter(range(1000))
    monkeypatch.setattr(FedFomo, "measure", lambda *arguments: float(next(losses)))
    back, kept, plain = FedFomo(), FedFomo(fallback="keep"), OnFourFifths()
    for name, method in {"back": back, "kept": kept, "plain": plain}.items():
        made = run(tmp_path / f"{name}.h5", method, model=LeNet(), **UNEQUAL)
        if method is not plain:
            assert not made.clients["others"].any()
    assert next(losses) > 20
    same_rows(kept.own, plain.own)
    assert all(torch.equal(row, back.own.initial) for row in (back.own[block(client)][0] for client in range(5)))
    assert (torch.stack(list(back.affinity.rows.values())) < 0).any()


class Passing:
    """In place of a federation and a stack: models that pass, and losses on what was set aside."""

    def __init__(self, models: dict[int, Tensor], losses: dict[float, float], round: int = 1) -> None:
        self.models, self.losses_of, self.round = models, losses, round
        self.layout, self.at_clients = self, self
        self.parameters, self.size = 1, 2
        self.recorded: list[float] = []

    def everywhere(self, received: int) -> Any:
        return iter(self.models.items())

    def losses(self, alone: Any, models: Tensor, samples: Any) -> Tensor:
        return torch.tensor([[self.losses_of[round(models[0, 0].item(), 6)]]])

    def record(self, alone: Any, others: Tensor) -> None:
        self.recorded += others.tolist()

    def stream(self, purpose: str, client: int) -> np.random.Generator:
        return randomness.stream(0, purpose, self.round, client)


def test_weights_by_hand() -> None:
    """Oracle: by hand: b 0, loss 1; own .5 (.8), others .2 (.9), .7 (1.2), .6 (not asked): weights .4, .5 and 0.

    The second number of each model is a statistic, which is mixed, but counts in no distance.
    """
    models = {0: [0.2, 3.0], 1: [0.5, 0.0], 2: [0.7, 9.0], 3: [0.6, 9.0], 4: [0.0, 9.0], 5: [0.1, 9.0]}
    losses = {0.2: 0.9, 0.5: 0.8, 0.7: 1.2, 0.6: 0.1, 0.0: 0.3, 0.1: math.nan}
    fed: Any = Passing({number: torch.tensor(model) for number, model in models.items()}, losses)
    method: Any = FedFomo()
    method.aside = [np.arange(1)] * 6
    judge = Judge(1, torch.tensor([0.0, 5.0]), 1.0, torch.zeros(6), {0, 1, 2, 4, 5})
    cohort: Any = block(*range(6))
    mine = [block(1)]

    def weigh(number: int, client: int, model: Tensor) -> float:
        return float(method.weigh(fed, mine[number], judge, client, model))

    ((alone, mixture),) = method.mixtures(fed, cohort, fed, mine, 0, weigh)
    assert alone is mine[0]
    torch.testing.assert_close(mixture, torch.tensor([[1 / 3, 0.5 / 0.9 * 3]]))
    torch.testing.assert_close(judge.affinity, torch.tensor([0.5, 0.4, -0.2 / 0.7, 0, 0, 0]))
    assert fed.recorded == [pytest.approx(5 / 9)]


def choose(method: FedFomo, affinity: list[float], present: tuple[int, ...], round: int = 1) -> set[int]:
    """Whom client 2 compares with itself."""
    fed: Any = Passing({}, {}, round)
    judge = Judge(2, torch.zeros(1), 1.0, torch.tensor(affinity))
    found = method.choose(fed, judge, np.array(present))
    assert 2 in found
    assert found <= set(present)
    return found - {2}


def test_whom_a_client_asks() -> None:
    """Oracle: by hand: the best ones that take part; the unknown before the bad; any of those that tie."""
    method: Any = FedFomo(models=3, explore=0.0)
    method.aside = [np.arange(1)] * 6
    assert choose(method, [5, 4, 9, 3, 2, 1], (0, 1, 2, 3, 4, 5)) == {0, 1}
    assert choose(method, [5, 4, 9, 3, 2, 1], (0, 2, 4, 5)) == {0, 4}
    assert choose(method, [-1, 4, 9, -2, 0, -3], (0, 1, 2, 3, 4, 5)) == {1, 4}
    assert choose(method, [5, 4, 9, 3, 2, 1], (2, 3)) == {3}
    assert choose(method, [5, 4, 9, 3, 2, 1], (2,)) == set()
    ties = [choose(method, [7, 0, 9, 0, 0, 0], (0, 1, 2, 3, 4, 5), round) for round in range(200)]
    counts = np.bincount([min(one - {0}) for one in ties], minlength=6)
    assert all(0 in one for one in ties)
    assert (counts[[1, 3, 4, 5]] > 30).all()
    method.aside = [np.arange(0)] * 6
    assert choose(method, [5, 4, 9, 3, 2, 1], (0, 1, 2, 3)) == set()


def test_exploration() -> None:
    """Oracle: by hand: at random by a share .5 in the first round, .3 in the third, and no more in the sixth."""
    method: Any = FedFomo(models=2, explore=0.5, explore_decay=0.1)
    method.aside = [np.arange(1)] * 6
    for round, share in ((1, 0.5), (3, 0.3), (6, 0.0), (9, 0.0)):
        worse = 0
        for seed in range(600):
            fed: Any = Passing({}, {}, round)
            fed.stream = lambda purpose, client, seed=seed: randomness.stream(seed, purpose, 0, client)
            judge = Judge(2, torch.zeros(1), 1.0, torch.tensor([5.0, 0, 0, 0, 0, 0]))
            worse += 0 not in method.choose(fed, judge, np.arange(6))
        assert worse / 600 == pytest.approx(share * 4 / 5, abs=0.06)


def plain_fedfomo(model: Model, local: LocalTraining, clients: int, rounds: int, fallback: str) -> list[nn.Module]:
    """The clients' networks after rounds in which each compares all models, in PyTorch."""
    own = [network(model, SHAPE, 10) for _ in range(clients)]
    x, y = normalised(DIGITS.train_x, Digits()), torch.from_numpy(DIGITS.train_y)
    parts = [aside(client, np.arange(EACH * client, EACH * (client + 1))) for client in range(clients)]

    def loss(module: nn.Module, client: int) -> float:
        chosen = parts[client][0]
        with torch.inference_mode():
            return nn.functional.cross_entropy(module.eval()(x[chosen]), y[chosen]).item()

    for round in range(1, rounds + 1):
        trained = [copy.deepcopy(module) for module in own]
        for client, module in enumerate(trained):
            chosen = parts[client][1]
            plain_training(module, x[chosen], y[chosen], local, client, round)
        mixed = []
        for client, base in enumerate(own):
            sums, total = {name: torch.zeros_like(tensor) for name, tensor in state(base).items()}, 0.0
            for module in trained:
                apart = math.sqrt(
                    sum(
                        (p - q).square().sum().item()
                        for p, q in zip(module.parameters(), base.parameters(), strict=True)
                    )
                )
                weight = max((loss(base, client) - loss(module, client)) / apart, 0.0)
                total += weight
                for name, tensor in state(module).items():
                    sums[name] += weight * tensor
            result = copy.deepcopy(base if fallback == "base" else trained[client])
            if total:
                result.load_state_dict({name: tensor / total for name, tensor in sums.items()}, strict=False)
            mixed.append(result)
        own = mixed
    return own


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("model", [LeNet(), MLP((16, 8), norm="layer")])
@pytest.mark.parametrize("fallback", ["base", "keep"])
def test_plain_pytorch(model: Model, vectorize: Any, fallback: Any, tmp_path: Path) -> None:
    """Oracle: networks in PyTorch, over three rounds of three clients; to 1e-3 of the way."""
    local = LocalTraining(epochs=2, batch_size=7, lr=0.05, vectorize=vectorize)
    method = FedFomo(models=3, fallback=fallback)
    made = in_order(tmp_path / "run.h5", method, model, 3, local)
    networks = plain_fedfomo(model, local, 3, 3, fallback)
    first = state(network(model, SHAPE, 10))
    for client, module in enumerate(networks):
        views = Layout.of(module).views(method.own.rows[client])
        for name, tensor in state(module).items():
            way = (tensor - first[name]).norm()
            assert (views[name] - tensor).norm() <= 1e-3 * way + 1e-6, (client, name)
    assert (made.clients["others"] > 0.1).sum() > 3


def test_equal_clients(tmp_path: Path) -> None:
    """Oracle: LocalOnly on four fifths, up to rounding: all have one sample, many times over."""
    settings: dict[str, Any] = {"dataset": Few(1, copies=50), "clients": 5, "rounds": 3, "weighting": "uniform"}
    ours, theirs = FedFomo(models=4), OnFourFifths()
    made = run(tmp_path / "made.h5", ours, model=MLP((9,)), **settings)
    run(tmp_path / "plain.h5", theirs, model=MLP((9,)), **settings)
    for client, row in ours.own.rows.items():
        torch.testing.assert_close(row, theirs.own.rows[client], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.clients["others"], 3 / 4, rtol=1e-3)


def test_what_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand: a fifth, rounded; one of two; none of one, whose client trains and asks nobody.

    Nothing that is set aside is trained on, in any round.
    """
    sizes = (1, 2, 3, 13, 20)
    seen: dict[int, set[int]] = {client: set() for client in range(5)}

    class Noting(FedFomo):
        def loss(self, net: Any, batch: Any, start: Tensor, client: Any) -> Tensor:
            owner = int(np.searchsorted(np.cumsum(sizes), batch.index[0].item(), side="right"))
            seen[owner] |= set(batch.index.tolist())
            return super().loss(net, batch, start, client)

    spy, method = Spy(monkeypatch), Noting(models=3, explore=1.0)
    made = run(tmp_path / "run.h5", method, model=LogisticRegression(), partition=Cut(*sizes), clients=5, rounds=2)
    assert [len(part) for part in method.aside] == [0, 1, 1, 3, 4]
    ends = np.cumsum(sizes)
    for client, (size, end) in enumerate(zip(sizes, ends.tolist(), strict=True)):
        apart = set(method.aside[client].tolist())
        assert apart | seen[client] == set(range(end - size, end))
        assert not apart & seen[client]
    np.testing.assert_array_equal(method.own.rows[0].numpy(), spy.trained[-1][0])
    assert not made.clients["others"][[0, 5]].any()
    assert made.clients["steps"].tolist() == [1, 1, 1, 1, 2] * 2
    assert made.rounds["bytes_down"].tolist() == [4 * 2 * 650 * 4] * 2
    assert made.rounds["bytes_up"].tolist() == [5 * 650 * 4] * 2


@pytest.mark.parametrize("models", [1, 3, 9])
def test_what_the_clock_counts(models: int, tmp_path: Path) -> None:
    """Oracle: by hand: a step a second, a third of it for each batch of 4 set aside and each model compared."""
    (tmp_path / "rounds").write_text("0 1 2 3 4\n1 4\n0\n")
    bandwidth = 1e4
    clock: Conditions = Heterogeneous(
        seconds_per_step=1.0, speed_spread=0.0, bandwidth_spread=0.0, download=bandwidth, upload=bandwidth
    )
    made = run(
        tmp_path / "run.h5",
        FedFomo(models=models),
        partition=Cut(1, 10, 20, 25, 30),
        clients=5,
        rounds=3,
        sampler=FixedList(tmp_path / "rounds"),
        conditions=clock,
        local=LocalTraining(epochs=2, batch_size=4),
        evaluate_every=0,
    )
    steps = 2 * np.ceil(np.array([1, 8, 16, 20, 24]) / 4)
    batches = np.array([0, 1, 1, 2, 2])
    rows = []
    for number, clients in enumerate(([0, 1, 2, 3, 4], [1, 4], [0])):
        received = np.where(np.array(clients) == 0, 0, min(models, len(clients)) - 1)
        work = steps[clients] + (received + 2) / 3 * batches[clients]
        rows += (work + (received + 1) * 4 * 650 / bandwidth).tolist()
        assert made.rounds["bytes_down"][number] == received.sum() * 4 * 650
    np.testing.assert_allclose(made.clients["virtual_seconds"], rows, rtol=1e-9)
    assert made.clients["steps"].tolist() == [*steps[[0, 1, 2, 3, 4]], *steps[[1, 4]], *steps[[0]]]


def test_whose_training_diverges_keeps_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run in which the client is not asked in that round, bit for bit; nobody else is spoilt."""
    ours, theirs = FedFomo(), FedFomo()
    three_rounds(tmp_path / "other.h5", theirs, without=CLIENT)
    diverge(monkeypatch, {CLIENT})
    made = three_rounds(tmp_path / "made.h5", ours)
    assert made.rounds["diverged_clients"].tolist() == [0, 1, 0]
    assert np.isnan(made.clients["others"]).sum() == 1
    same_rows(ours.own, theirs.own)
    same_rows(ours.affinity, theirs.affinity)


def test_groups_are_found(tmp_path: Path) -> None:
    """Oracle: the groups that there are: each client's affinity is higher for all others of its group."""
    method = FedFomo(models=8, explore=1.0, explore_decay=0.0)
    local = LocalTraining(epochs=3, lr=0.1)
    settings: dict[str, Any] = {"partition": Permuted(permutations=2), "clients": 8, "rounds": 3, "local": local}
    run(tmp_path / "run.h5", method, **settings)
    groups = make_split(Permuted(permutations=2), DIGITS.train_y, DIGITS.test_y, 10, 8, SEED).groups
    assert groups is not None
    for client, row in method.affinity.rows.items():
        alike = groups == groups[client]
        alike[client] = False
        assert row.numpy()[alike].min() > row.numpy()[groups != groups[client]].max()


def test_refused(tmp_path: Path) -> None:
    """Oracle: one line, before anything is trained."""
    reasons = {
        "--server_optimizer Momentum": "--server_optimizer = Momentum: must be Replace with FedFomo, which has",
        "--compression TopK": "--compression = TopK: FedFomo's server uses the models of single clients",
        "--attack SignFlip": "--attack = SignFlip: FedFomo's server uses the models of single clients",
        "--privacy CentralDP --weighting uniform": "--algorithm = FedFomo: must be a method whose server sees",
        "--weighting samples": "--weighting = samples: must be uniform with FedFomo, which gives all",
        "--algorithm.models 0": "--algorithm.models = 0: must be at least 1",
        "--algorithm.set_aside 1": "--algorithm.set_aside = 1.0: must be above 0 and below 1",
        "--algorithm.fallback none": "--algorithm.fallback = none: must be",
        "--algorithm.explore 2": "--algorithm.explore = 2.0: must be between 0 and 1",
    }
    for number, (options, reason) in enumerate(reasons.items()):
        path = tmp_path / f"{number}.h5"
        with pytest.raises(BadInput) as refused:
            attempt(f"--algorithm FedFomo --rounds 1 --output {path} {options}")
        assert reason in str(refused.value), options
        assert not path.exists()
