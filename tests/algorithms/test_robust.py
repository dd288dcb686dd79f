"""The median, the trimmed mean and Krum, beside NumPy, SciPy and a double loop; and runs with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.robust import Krum, Median, TrimmedMean, krum_scores, median, trimmed_mean
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.federation.ledger import Ledger
from fedmpi.federation.stack import Stack
from fedmpi.federation.uplink import Uplink
from fedmpi.models import LeNet
from fedmpi.policies import Cohort, FixedList, RoundPlan
from fedmpi.policies.attacks import Attack, SignFlip
from fedmpi.policies.compression import Dense
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.block import Block
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.support.digits import SHAPE, Few
from tests.support.experiments import Alone, Spy, run

SIZE = 500
RULES: dict[str, Callable[[Stack], Tensor]] = {
    "median": lambda stack: stack.combine(median),
    "trimmed": lambda stack: stack.combine(lambda values: trimmed_mean(values, 2)),
    "krum": lambda stack: stack.mean(nearest(stack, 1)),
    "multi_krum": lambda stack: stack.mean(nearest(stack, 3)),
}
PARAMETERS = Layout.of(LeNet().build(SHAPE, 10)).parameters
SETTINGS: dict[str, Any] = {
    "dataset": Few(210),
    "model": LeNet(),
    "partition": Dirichlet(0.5),
    "clients": 7,
    "local": LocalTraining(epochs=1, lr=0.05),
}


def models(count: int) -> NDArray[np.float32]:
    """[count, 500], not far from one another."""
    return 3 + np.random.default_rng(1).standard_normal((count, SIZE), dtype=np.float32)


def stacked(vectors: NDArray[np.float32]) -> Stack:
    count, size = vectors.shape
    everyone, ones = np.arange(count), np.ones(count, dtype=np.int64)
    start = torch.zeros(size)
    stack = Stack(
        Alone(),
        Cohort(everyone, ones, ones),
        start,
        size,
        Uplink(None, Dense(), size, start, None, everyone, 0, 1, 0),
        Ledger(Alone(), 1, RoundPlan(Cohort(everyone, ones, ones)), (), (), 0.0),
    )
    stack.add(torch.from_numpy(vectors), Block(everyone, ones, ones))
    stack.close()
    return stack


def nearest(stack: Stack, count: int) -> NDArray[np.int64]:
    """Whom Krum for two faulty clients selects."""
    return stack.present[np.argsort(krum_scores(stack.distances(), 2), kind="stable")[:count]]


def plain_scores(vectors: Sequence[NDArray] | NDArray, faulty: int, power: float = 1.0) -> NDArray[np.float64]:
    """Krum's, by a double loop over numbers of clients; of some power of the squared distances."""
    scores = []
    for i, one in enumerate(vectors):
        squares = [np.square(one.astype(np.float64) - other).sum() for j, other in enumerate(vectors) if j != i]
        others = [float(square**power) for square in squares]
        scores.append(sum(sorted(others)[: len(vectors) - faulty - 2]))
    return np.array(scores)


# The rules


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_median(count: int) -> None:
    """Oracle: np.median, which of an even number takes the mean of the middle two."""
    values = models(count)
    oracle = np.median(values.astype(np.float64), axis=0).astype(np.float32)
    np.testing.assert_array_equal(stacked(values).combine(median).numpy(), oracle)


@pytest.mark.parametrize(("count", "trim", "cut"), [(9, 0.2, 1), (10, 0.2, 2), (100, 0.29, 29), (5, 0.49, 2)])
def test_trimmed_mean(count: int, trim: float, cut: int) -> None:
    """Oracle: SciPy's trim_mean in float64, asked to cut so many."""
    values = models(count)
    oracle = stats.trim_mean(values.astype(np.float64), (cut + 0.5) / count, axis=0)
    made = TrimmedMean(trim).aggregate(None, None, stacked(values))  # type: ignore[arg-type]
    assert made is not None
    np.testing.assert_allclose(made.numpy(), oracle, rtol=1e-7)


@pytest.mark.parametrize(("count", "faulty"), [(3, 0), (9, 2), (9, 3), (12, 1)])
def test_krums_scores(count: int, faulty: int) -> None:
    """Oracle: a double loop; also where some are copies of others, each of which has a nearest one at 0."""
    values = models(count)
    values[1] = values[0]
    scores = krum_scores(stacked(values).distances(), faulty)
    np.testing.assert_allclose(scores, plain_scores(values, faulty), rtol=1e-12)


def test_outliers_have_the_worst_scores() -> None:
    """Oracle: by hand: of nine, two are at +50."""
    values = models(9)
    values[[2, 6]] += 50
    stack = stacked(values)
    order = np.argsort(krum_scores(stack.distances(), 2))
    assert set(order[-2:]) == {2, 6}
    np.testing.assert_array_equal(RULES["krum"](stack).numpy(), values[order[0]])


@pytest.mark.parametrize("rule", RULES)
def test_how_far_off_an_outlier_is_does_not_matter(rule: str) -> None:
    """Oracle: the range of the honest models; and 1e30 gives what 1e31 does. (A mean goes along.)"""
    made = []
    for far in (1e30, 1e31):
        values = models(9)
        values[4] = far
        made.append(RULES[rule](stacked(values)).numpy())
        honest = np.delete(values, 4, axis=0)
        assert (made[-1] >= honest.min(0)).all()
        assert (made[-1] <= honest.max(0)).all()
    np.testing.assert_array_equal(made[0], made[1])
    assert (stacked(values).mean(np.arange(9)).abs() > 1e29).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_rejected(bad: float) -> None:
    """Oracle: the same models without it."""
    values = models(9)
    values[4, -1] = bad
    stack, without = stacked(values), stacked(np.delete(values, 4, axis=0))
    assert stack.rejected == 1
    assert stack.present.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    for rule in RULES.values():
        np.testing.assert_array_equal(rule(stack).numpy(), rule(without).numpy())


@pytest.mark.parametrize("rule", RULES)
def test_models_that_are_all_alike(rule: str) -> None:
    """Oracle: that model."""
    values = np.repeat(models(1), 9, axis=0)
    np.testing.assert_array_equal(RULES[rule](stacked(values)).numpy(), values[0])


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_clients_does_not_matter(rule: str) -> None:
    """Oracle: the models in another order."""
    values = models(9)
    order = np.random.default_rng(0).permutation(9)
    made, permuted = (RULES[rule](stacked(some)).numpy() for some in (values, values[order]))
    np.testing.assert_array_equal(made, permuted)


# Runs


class Sends(Attack):
    """Malicious clients send the same number everywhere, as their change.

    Args:
        share: of all clients that are malicious.
        value: what they send.
    """

    def __init__(self, share: float, value: float) -> None:
        super().__init__(share)
        self.value = value

    def change(self, change: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        return torch.full_like(change, self.value)


def test_nothing_trimmed_is_fedavg(tmp_path: Path) -> None:
    """Oracle: FedAvg of clients that count alike, to a rounding of float32, and of seven terms to their unit."""
    made = run(tmp_path / "made.h5", TrimmedMean(0.0), **SETTINGS)
    plain = run(tmp_path / "plain.h5", weighting="uniform", **SETTINGS)
    np.testing.assert_allclose(made.weights, plain.weights, rtol=1.2e-7, atol=7 * 2.0**-44)


def test_all_selected_is_fedavg(tmp_path: Path) -> None:
    """Oracle: FedAvg of clients that count alike, bit for bit."""
    made = run(tmp_path / "made.h5", Krum(2, select=7), rounds=2, **SETTINGS)
    plain = run(tmp_path / "plain.h5", rounds=2, weighting="uniform", **SETTINGS)
    assert made.weights_sha256 == plain.weights_sha256
    assert (made.clients["selected"] == 1).all()
    np.testing.assert_array_equal(made.rounds["bytes_up"], plain.rounds["bytes_up"])
    np.testing.assert_array_equal(made.rounds["bytes_down"], plain.rounds["bytes_down"])


@pytest.mark.parametrize(("select", "seed"), [(1, 26), (3, 7)])
def test_whom_krum_selects(select: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a double loop over the trained parameters, and the plain mean; a single model's bits are untouched.

    Distances that are not squared would select others, as would those that count running statistics.
    """
    spy, others = Spy(monkeypatch), {"not squared": False, "with statistics": False}
    made = run(tmp_path / "made.h5", Krum(1, select), rounds=2, **{**SETTINGS, "seed": seed})
    for round in (1, 2):
        trained = [spy.trained[round][client] for client in range(7)]
        parameters = [model[:PARAMETERS] for model in trained]
        chosen = np.argsort(plain_scores(parameters, 1), kind="stable")[:select]
        for name, scores in (
            ("not squared", plain_scores(parameters, 1, power=0.5)),
            ("with statistics", plain_scores(trained, 1)),
        ):
            others[name] |= set(np.argsort(scores, kind="stable")[:select]) != set(chosen)
        selected = made.clients["selected"][made.clients["round"] == round]
        assert np.flatnonzero(selected).tolist() == sorted(chosen)
        model = spy.measured[round][0].double().numpy()
        np.testing.assert_allclose(model, np.mean([trained[k] for k in chosen], axis=0), rtol=1e-6, atol=1e-8)
        if select == 1:
            np.testing.assert_array_equal(model, trained[chosen[0]])
    assert all(others.values()), others


def test_the_servers_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: half-way from the model to np.median of the trained ones; statistics are those of the median."""
    spy = Spy(monkeypatch)
    run(tmp_path / "made.h5", Median(), server_optimizer=Momentum(lr=0.5, momentum=0.0), **SETTINGS)
    before, after = (spy.measured[round][0].double().numpy() for round in (0, 1))
    middle = np.median(list(spy.trained[1].values()), axis=0)
    expected = np.append((before + middle)[:PARAMETERS] / 2, middle[PARAMETERS:])
    assert not np.allclose(expected[PARAMETERS:], before[PARAMETERS:], rtol=0.1)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7)


class Lowered(Median):
    """A rule that makes everything less by 100."""

    def aggregate(self, *arguments: Any) -> Tensor | None:
        model = super().aggregate(*arguments)
        return None if model is None else model - 100


def test_variances_are_not_negative(tmp_path: Path) -> None:
    """Oracle: a rule that makes them so: they are 0, and everything else is as the rule says."""
    made = run(tmp_path / "made.h5", Lowered(), **{**SETTINGS, "evaluate_every": 0})
    for name, tensor in made.state_dict().items():
        assert (tensor == 0).all() if name.endswith("running_var") else (tensor < -90).all(), name


@pytest.mark.parametrize("algorithm", [Median(), TrimmedMean(0.3), Krum(2, 2)])
def test_models_of_malicious_clients_that_are_huge(algorithm: Algorithm, tmp_path: Path) -> None:
    """Oracle: FedAvg is carried away where two of seven send 1e30; these go on, and learn."""
    attack = Sends(2 / 7, 1e30)
    carried_away = run(tmp_path / "plain.h5", attack=attack, **SETTINGS)
    assert np.abs(carried_away.weights).max() > 1e28
    made = run(tmp_path / "made.h5", algorithm, attack=attack, rounds=2, **SETTINGS)
    assert (np.abs(made.weights) < 100).all()
    assert made.rounds["test_loss"][-1] < made.initial["test_loss"]
    if isinstance(algorithm, Krum):
        assert not (made.clients["selected"] * made.clients["malicious"]).any()
        assert made.clients["selected"].sum() == 2 * 2


@pytest.mark.parametrize(
    ("algorithm", "rejected", "moves"),
    [(Median(), 6, True), (Median(), 7, False), (Krum(2), 4, True), (Krum(2), 5, False), (Krum(0), 4, True)],
)
def test_rejected_vectors(algorithm: Algorithm, rejected: int, moves: bool, tmp_path: Path) -> None:
    """Oracle: by hand: they are counted, and among Krum's f, which when they are found needs three others."""
    made = run(tmp_path / "made.h5", algorithm, attack=Sends(rejected / 7, np.nan), **SETTINGS)
    assert made.rounds["rejected"].tolist() == [rejected]
    assert (made.rounds["test_loss"][0] != made.initial["test_loss"]) == moves
    if isinstance(algorithm, Krum):
        assert made.clients["selected"].sum() == moves


def test_too_few_for_krum(tmp_path: Path) -> None:
    """Oracle: by hand: Krum for two faulty clients needs seven; six come in the first round, seven in the second."""
    (tmp_path / "rounds").write_text("0 1 2 3 4 5\n0 1 2 3 4 5 6\n")
    made = run(tmp_path / "made.h5", Krum(2), sampler=FixedList(tmp_path / "rounds"), rounds=2, **SETTINGS)
    assert made.rounds["test_loss"][0] == made.initial["test_loss"] != made.rounds["test_loss"][1]
    assert [made.clients["selected"][made.clients["round"] == round].sum() for round in (1, 2)] == [0, 1]


def test_a_run_that_sign_flips_break(tmp_path: Path) -> None:
    """Oracle: a third of the clients send five times the opposite: FedAvg is lost, the median is not."""
    settings: dict[str, Any] = {"clients": 9, "rounds": 6, "attack": SignFlip(1 / 3, 5.0)}
    plain = run(tmp_path / "plain.h5", local=LocalTraining(epochs=1, lr=0.02), **settings)
    made = run(tmp_path / "made.h5", Median(), local=LocalTraining(epochs=1, lr=0.02), **settings)
    assert plain.statistics().last < 0.3
    assert made.statistics().last > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("TrimmedMean --algorithm.trim 0.5", "--algorithm.trim = 0.5: must be at least 0 and below 0.5"),
        ("Krum --algorithm.faulty -1", "--algorithm.faulty = -1: must be at least 0"),
        ("Krum --algorithm.select 0", "--algorithm.select = 0: must be at least 1"),
        ("Krum --cohort 6", "--cohort = 6: must be at least 7 for Krum with 2 faulty clients"),
        ("Krum --algorithm.select 11", "--algorithm.select = 11: must be at most the cohort, 10"),
        (
            "Median --weighting samples",
            "--weighting = samples: must be uniform with Median, which gives all clients the same weight",
        ),
        (
            "Krum --weighting horvitz_thompson",
            "--weighting = horvitz_thompson: must be uniform with Krum, which gives all clients the same weight",
        ),
        (
            "Median --sampler Weighted",
            "--sampler = Weighted: sets the clients' weights itself, which cannot be combined with Median",
        ),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", *arguments.split()])
    assert str(error.value) == message
