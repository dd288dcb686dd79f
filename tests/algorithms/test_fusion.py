"""What clients count in a distribution fusion: oracles by hand, closed forms, and what must not be FedAvg."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmpi.algorithms.toolbox.fusion import (
    Statistics,
    between_components,
    capped,
    correlation,
    fuse,
    label_distance,
    represented,
    responsibilities,
    scaled,
    stratified,
)
from fedmpi.models import BiLSTM, DenseNet121, LeNet, LeNet5, Model, ResNet18
from fedmpi.training.layout import Layout
from tests.support.experiments import network

RNG = np.random.default_rng(0)
TAUS = (0.0, 0.5, 1.0)


def random_responsibilities(clients: int, components: int) -> np.ndarray:
    return RNG.dirichlet(np.ones(components), clients)


@pytest.mark.parametrize("cap", [None, 4.0])
def test_the_collapse_identity(cap: float | None) -> None:
    """Oracle: FedAvg's weights, whatever the responsibilities, at tau 1; and for one component at any tau."""
    mass = RNG.integers(1, 1000, 23)
    for tau, components in ((1.0, 7), *((tau, 1) for tau in TAUS)):
        fusion = fuse(random_responsibilities(23, components), mass, tau, cap)
        np.testing.assert_allclose(fusion.weights, mass / mass.sum(), rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_the_closed_form(tau: float) -> None:
    """Oracle: sum_m r_km (R_m / N)^(tau - 1) / sum_j (R_j / N)^tau, by loops."""
    r, mass = random_responsibilities(17, 5), RNG.integers(1, 100, 17)
    shares = [sum(mass[k] * r[k, m] for k in range(17)) / mass.sum() for m in range(5)]
    expected = [
        sum(r[k, m] * shares[m] ** (tau - 1) for m in range(5)) / sum(share**tau for share in shares)
        for k in range(17)
    ]
    fusion = fuse(r, mass, tau, None)
    np.testing.assert_allclose(fusion.weights / (mass / mass.sum()), expected, rtol=1e-9)
    np.testing.assert_allclose(fusion.allocation.sum(0), 1)
    np.testing.assert_allclose([fusion.components.sum(), fusion.weights.sum()], 1)
    assert not np.allclose(expected, 1, atol=0.01), "else this would be FedAvg"


def test_three_groups() -> None:
    """Oracle: groups of shares .60, .30, .10 go to .473, .334, .193 at tau 0.5."""
    r = np.repeat(np.eye(3), (6, 3, 1), axis=0)
    omega = fuse(r, np.full(10, 7), 0.5, None).weights
    np.testing.assert_allclose([omega[:6].sum(), omega[6:9].sum(), omega[9]], [0.473, 0.334, 0.193], atol=5e-4)


def test_components_count_what_they_do_in_the_population() -> None:
    """Oracle, by hand: a third and two thirds, of which each client of the first has a half, whoever was drawn."""
    mass, r = np.array([10, 10, 10]), np.repeat(np.eye(2), (2, 1), axis=0)
    population = np.array([100.0, 200.0])
    np.testing.assert_allclose(fuse(r, mass, 1.0, None, population).weights, [1 / 6, 1 / 6, 2 / 3])
    np.testing.assert_allclose(fuse(r, mass, 1.0, 1.5, population).weights, [1 / 4, 1 / 4, 1 / 2])
    np.testing.assert_allclose(fuse(r, mass, 1.0, None).weights, [1 / 3] * 3)


def test_a_mean_over_a_cohort_as_one_over_the_population() -> None:
    """Two clients of one component, one of another, and a stranger. Oracle, by hand: the stranger has its quarter."""
    r = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [np.nan] * 3])
    weights = stratified(r, np.full(4, 10), np.array([100.0, 300.0, 50.0]))
    np.testing.assert_allclose(weights, [0.75 * 0.125, 0.75 * 0.125, 0.75 * 0.75, 0.25])
    np.testing.assert_allclose(stratified(r[3:], np.array([7]), np.zeros(3)), 1)
    np.testing.assert_allclose(stratified(np.full((2, 3), np.nan), np.array([1, 3]), np.zeros(3)), [0.25, 0.75])


def test_which_components_are_represented() -> None:
    """Oracle, by hand: those that a client belongs to by a thousandth; of very many, those it belongs to most."""
    assert represented(np.array([[1, 0, 0.0], [0, 0, 1.0]])).tolist() == [0, 2]
    assert represented(np.array([[0.9989, 0.0009, 0.0002, 0.001]])).tolist() == [0, 3]
    assert len(represented(np.full((1, 5000), 1 / 5000))) == 5000


def test_scaling() -> None:
    """Oracle, by hand: a standard deviation of 2; one of less than 0.001 counts as that."""
    x = np.array([[1.0, 0.0001], [5.0, 0.0001]])
    np.testing.assert_allclose(scaled(x), [[0.5, 0.1], [2.5, 0.1]])
    np.testing.assert_allclose(scaled(x, x.mean(0)), [[-1, 0], [1, 0]])


def test_distance_of_label_mixes() -> None:
    """Oracle, by hand: half of each label among the weighted, three quarters and one quarter among all."""
    everyone = np.array([[4, 0], [2, 0], [0, 2], [0, 0]])
    mass = np.array([4, 2, 2, 0])
    assert label_distance(np.array([0.5, 0.5]), everyone[[1, 2]], mass, everyone) == pytest.approx(0.5)
    assert label_distance(np.array([3.0, 1.0]), everyone[[1, 2]], mass, everyone) == pytest.approx(0)


def test_two_groups_count_alike_at_tau_0() -> None:
    """Oracle, by hand: half of the model for each group of 2 and 8 clients."""
    omega = fuse(np.repeat(np.eye(2), (2, 8), axis=0), np.full(10, 3), 0.0, None).weights
    np.testing.assert_allclose(omega, [0.25, 0.25, *[0.0625] * 8])


@pytest.mark.parametrize("tau", TAUS)
def test_nobody_counts_more_than_the_cap(tau: float) -> None:
    """A client with 10 of 49,010 samples, alone in its component. Oracle: 4 times its share; uncapped, 1634."""
    mass, r = np.array([10, *[1000] * 49]), np.repeat(np.eye(3), (1, 25, 24), axis=0)
    omega = fuse(r, mass, tau, 4.0).weights
    assert omega[0] <= 4 * 10 / 49010 * (1 + 1e-9)
    assert omega.sum() == pytest.approx(1)
    if tau == 0:
        assert fuse(r, mass, tau, None).weights[0] * 49010 / 10 == pytest.approx(1634, abs=1)


def test_what_is_cut_off_goes_to_the_others() -> None:
    """Oracle, by hand: 0.7 is cut to 0.4, and the others double; then 0.4 is cut to 0.3."""
    np.testing.assert_allclose(capped(np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.3, 0.5])), [0.4, 0.3, 0.3])


def test_responsibilities() -> None:
    """Oracles: arg max; the softmax of log q / 0.3; and what is left when a component with hardly any mass goes."""
    log_q = np.log([[0.9, 0.1, 0.8, 0.01], [0.2, 0.7, 0.6, 0.01], [0.9, 0.8, 0.1, 0.99]])
    hard, alive = responsibilities(log_q, np.array([10_000, 10_000, 1]), "hard")
    assert alive.tolist() == [0, 1]
    assert hard.tolist() == [[1, 0], [0, 1], [1, 0]]
    soft, alive = responsibilities(log_q[:2], np.array([5, 5]), "soft")
    assert alive.tolist() == [0, 1, 2]
    np.testing.assert_allclose(soft, torch.tensor(log_q[:2, :3] / 0.3).softmax(1), rtol=1e-12)
    # Of many components that are all small, the largest is alive.
    assert len(responsibilities(np.zeros((1, 5000)), np.ones(1), "soft")[1]) == 5000


def test_order_of_clients() -> None:
    """Oracles: the same weights in the other order; equal weights for equal clients."""
    log_q, mass = np.log(RNG.random((12, 4))), RNG.integers(1, 50, 12)
    log_q[3], mass[3] = log_q[8], mass[8]
    order = RNG.permutation(12)
    for how in ("hard", "soft"):
        omega = fuse(responsibilities(log_q, mass, how)[0], mass, 0.5, 4.0).weights
        other = responsibilities(log_q[order], mass[order], how)[0]
        np.testing.assert_allclose(fuse(other, mass[order], 0.5, 4.0).weights, omega[order], rtol=1e-12)
        assert omega[3] == omega[8]
        assert (omega >= 0).all()


def test_share_of_the_variance() -> None:
    """Oracles, by hand: all of it between components; none of it; and none to speak of."""
    mass, component = np.full(4, 2), np.array([0, 0, 5, 5])
    assert between_components(np.array([0.1, 0.1, 0.4, 0.4]), mass, component) == pytest.approx(1)
    assert between_components(np.array([0.1, 0.4, 0.1, 0.4]), mass, component) == pytest.approx(0)
    assert np.isnan(between_components(np.full(4, 0.25), mass, component))
    assert correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert np.isnan(correlation(np.ones(3), np.array([3.0, 2, 1])))


def layout(model: Model, shape: tuple[int, ...] = (3, 32, 32)) -> Layout:
    return Layout.of(network(model, shape, 10))


@pytest.mark.parametrize(
    ("model", "which", "extent"),
    [
        (LeNet(), "first_last", (4 * (16 + 32), 2 * (16 + 32))),
        (ResNet18(), "first_last", (4 * (64 + 512), 2 * (64 + 512))),
        (ResNet18(), "all", (4 * 4800, 2 * 4800)),  # shortcuts' layers, which are no "bn", too
        (DenseNet121(), "all", (4 * 41760, 2 * 41760)),
        (LeNet(norm="group"), "all", (2 * 48, 2 * 48)),
        (LeNet5(), "all", (0, 0)),
    ],
)
def test_extent(model: Model, which: str, extent: tuple[int, int]) -> None:
    """Oracle: the numbers of channels, by hand or from the papers' tables."""
    assert Statistics(layout(model), which).extent == extent  # type: ignore[arg-type]


def test_extent_of_a_text_model() -> None:
    model = BiLSTM(norm="layer")
    model.vocabulary = 30
    assert Statistics(layout(model, (6,)), "first_last").extent == (2 * 256, 2 * 256)


def test_features_and_merging() -> None:
    """Oracle: the state_dict of networks, tensor by tensor, and the moments of a mixture of their samples."""
    model = LeNet()
    modules = [network(model, (1, 8, 8), 10) for _ in range(3)]
    where = layout(model, (1, 8, 8))
    read = Statistics(where, "first_last")
    rows = np.empty((3, read.size))
    for row, module in zip(rows, modules, strict=True):
        vector = torch.empty(where.size)
        for name, view in where.views(vector).items():
            tensor = module.state_dict()[name]
            tensor.copy_(torch.rand(tensor.shape) + 0.1)
            view.copy_(tensor)
        row[:] = vector[read.columns].numpy()
    named = [{n: t.double().numpy() for n, t in module.state_dict().items()} for module in modules]
    layers = [name.rpartition(".")[0] for name in named[0] if name.endswith("running_var")]
    expected = [
        np.concatenate(
            [tensors[f"{layer}.running_mean"] for layer in layers]
            + [np.log(np.sqrt(tensors[f"{layer}.running_var"] + 1e-5)) for layer in layers]
            + [tensors[f"{layer}.{name}"] for name in ("bias", "weight") for layer in layers]
        )
        for tensors in named
    ]
    np.testing.assert_allclose(read.features(rows), expected)
    weights = np.array([0.2, 0.5, 0.3])
    merged, linear = read.merge(rows, weights, moments=True), read.merge(rows, weights, moments=False)
    np.testing.assert_allclose(linear, weights @ rows)
    np.testing.assert_array_equal(np.delete(merged, read.variances), np.delete(linear, read.variances))
    mean, variance = rows[:, read.means], rows[:, read.variances]
    by_squares = weights @ (variance + mean**2) - (weights @ mean) ** 2
    np.testing.assert_allclose(merged[read.variances], by_squares, rtol=1e-9)
    np.testing.assert_allclose(read.merge(rows[[1, 1, 1]], weights, moments=True), rows[1], rtol=1e-14)


def test_moments_of_two_normal_distributions() -> None:
    """Oracles, by hand: N(0, 1) and N(2, 1) mixed have mean 1 and variance 2; and nothing cancels far from zero."""
    read = Statistics(layout(LeNet(), (1, 8, 8)), "all")
    for shift in (0.0, 1e9):
        rows = np.ones((2, read.size))
        rows[:, read.means] = shift + np.array([[0.0], [2.0]])
        merged = read.merge(rows, np.array([0.5, 0.5]), moments=True)
        np.testing.assert_array_equal(merged[read.means], shift + 1)
        np.testing.assert_array_equal(merged[read.variances], 2)
        assert (read.merge(rows, np.array([0.5, 0.5]), moments=False)[read.variances] == 1).all()
