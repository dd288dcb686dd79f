"""DistributionFusion of the cohort's mixture in a federation, beside FedAvg and a plain computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.distribution_fusion import DistributionFusion
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.federation.local import Trained
from fedmpi.models import LeNet, Model
from fedmpi.policies import Cohort, Uniform
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.block import WHOLE, Block, Phase
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE
from tests.support.experiments import Cut, network, normalised, plain_training, run, state, tensors

SIZES = (20, 30, 40, 25, 60)
LOCAL = LocalTraining(epochs=1, batch_size=10, lr=0.05)


def fused(path: Path, method: Algorithm | None = None, **settings: Any) -> results.Run:
    """By default one round with all of five clients, of the next digits each, and short fits."""
    chosen = {"model": LeNet(), "partition": Cut(*SIZES), "clients": len(SIZES), "local": LOCAL} | settings
    return run(path, method or short(), **chosen)


def short(**options: Any) -> DistributionFusion:
    chosen: dict[str, Any] = {"mixture": "cohort", "first_steps": 120, "steps": 5, "fit_every": 2, "twin": False}
    return DistributionFusion(**chosen | options)


def trained(model: Model) -> list[dict[str, Tensor]]:
    """What a round makes of each client in plain PyTorch."""
    made, ends = [], np.cumsum(SIZES)
    for client, (end, size) in enumerate(zip(ends, SIZES, strict=True)):
        part = slice(end - size, end)
        module = network(model, SHAPE, 10)
        y = torch.from_numpy(DIGITS.train_y[part])
        plain_training(module, normalised(DIGITS.train_x[part], Digits()), y, LOCAL, client)
        made.append({name: tensor.double() for name, tensor in state(module).items()})
    return made


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), LeNet(norm="group")])
def test_a_round_is_a_plain_computation(model: LeNet, vectorize: Any, tmp_path: Path) -> None:
    """Oracle, given omega: PyTorch, tensor by tensor; running variances as the moments of a mixture."""
    local = LocalTraining(epochs=1, batch_size=10, lr=0.05, vectorize=vectorize)
    made = fused(tmp_path / "run.h5", model=model, local=local)
    omega = made.clients["omega"]
    assert omega.sum() == pytest.approx(1)
    assert made.rounds["weights_l1"][0] == pytest.approx(np.abs(omega - np.array(SIZES) / sum(SIZES)).sum())
    assert made.rounds["weights_l1"][0] > 0.02, "else it would be FedAvg"
    assert made.rounds["effective_clients"][0] == pytest.approx(1 / (omega**2).sum())
    clients, merged = trained(model), tensors(made)
    means = {name: sum(w * c[name] for w, c in zip(omega, clients, strict=True)) for name in merged}
    for name, expected in means.items():
        if name.endswith("running_var"):
            mean = name.replace("var", "mean")
            apart = ((c[mean] - means[mean]) ** 2 for c in clients)
            expected = expected + sum(w * distance for w, distance in zip(omega, apart, strict=True))
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-4, atol=1e-5)


def test_tau_1_is_fedavg(tmp_path: Path) -> None:
    """Oracle: FedAvg, to rounding, where variances are merged as there; with tau 0.5 it is another model."""
    plain = fused(tmp_path / "plain.h5", FedAvg(), rounds=2)
    for number, (tau, merge) in enumerate(((1.0, "linear"), (1.0, "moments"), (0.5, "linear"))):
        made = fused(tmp_path / f"{number}.h5", short(pi_power=tau, bn_merge=merge, cap=None), rounds=2)
        same = np.allclose(made.weights, plain.weights, rtol=1e-4, atol=1e-5)
        assert same == ((tau, merge) == (1.0, "linear"))
        expected = np.tile(np.array(SIZES) / sum(SIZES), 2)
        assert np.allclose(made.clients["omega"], expected, rtol=1e-7) == (tau == 1)


@pytest.mark.parametrize("mixture", ["cohort", "population"])
def test_traffic(mixture: str, tmp_path: Path) -> None:
    """Oracle: the model both ways, scales and shifts of normalisation layers up twice, and a number down."""
    made, plain = (
        fused(tmp_path / f"{number}.h5", method, rounds=2)
        for number, method in enumerate((short(mixture=mixture), FedAvg()))
    )
    twice = 4 * len(SIZES) * 2 * (16 + 32)
    np.testing.assert_array_equal(made.rounds["bytes_up"], plain.rounds["bytes_up"] + twice)
    np.testing.assert_array_equal(made.rounds["bytes_down"], plain.rounds["bytes_down"] + 4 * len(SIZES))


class Ill(DistributionFusion):
    """Of some clients, the statistics are not finite after training."""

    ill: tuple[int, ...] = ()

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        made = super().train(fed, block, start, received, phase)
        for client, row in zip(block.clients.tolist(), made.weights, strict=True):
            if client in self.ill:
                row[fed.layout.segments["norm"].start] = torch.nan
        return made


@pytest.mark.parametrize("mixture", ["cohort", "population"])
def test_clients_that_are_left_out(mixture: Any, tmp_path: Path) -> None:
    """Oracles: weights of the others as without them; without any, the initial model."""

    def with_ill(*ill: int) -> results.Run:
        method = Ill(mixture=mixture, first_steps=30, twin=False)
        method.ill = ill
        return fused(tmp_path / f"{len(ill)}.h5", method)

    made = with_ill(1, 3)
    assert made.rounds["left_out"].tolist() == [2]
    assert made.clients["omega"][[1, 3]].tolist() == [0, 0]
    assert made.clients["component"][[1, 3]].tolist() == [-1, -1]
    assert made.clients["omega"].sum() == pytest.approx(1)
    assert np.isfinite(made.weights).all()
    # With all but one left out the model is that client's.
    alone, expected = tensors(with_ill(0, 1, 3, 4)), trained(LeNet())[2]
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-5)
    nobody = with_ill(*range(5))
    for name, tensor in tensors(nobody).items():
        assert torch.equal(tensor, state(network(LeNet(), SHAPE, 10))[name]), name


@pytest.mark.parametrize("mixture", ["cohort", "population"])
def test_a_cohort_of_one(mixture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: FedAvg, bit for bit; and it is said."""
    alone = {"partition": Cut(30), "clients": 1, "rounds": 2}
    made, plain = (
        fused(tmp_path / f"{number}.h5", method, **alone)
        for number, method in enumerate((short(mixture=mixture), FedAvg()))
    )
    assert made.weights_sha256 == plain.weights_sha256
    assert made.clients["omega"].tolist() == [1, 1]
    assert "the cohort is one client" in capsys.readouterr().out


class Forgetful(DistributionFusion):
    """Keeps between rounds what `server_state` names, and nothing else."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        kept = {name: getattr(self, name).clone() for name in self.server_state}
        self.setup(fed)
        for name, tensor in kept.items():
            setattr(self, name, tensor)
        super().round(fed, cohort)


def test_the_state_is_all_there_is(tmp_path: Path) -> None:
    """Oracle: the bits of a run that was never interrupted, over fits and rounds without one."""
    options: dict[str, Any] = {"mixture": "cohort", "first_steps": 20, "steps": 5, "fit_every": 2}
    made, other = (
        fused(tmp_path / f"{number}.h5", method, rounds=4)
        for number, method in enumerate((DistributionFusion(**options), Forgetful(**options)))
    )
    assert made.weights_sha256 == other.weights_sha256
    np.testing.assert_array_equal(made.clients["omega"], other.clients["omega"])
    assert made.tensors("vae_weights")["embedding"].shape == (15, 8)
    twins = made.rounds["twin_correlation"]
    assert np.isnan(twins[[1, 3]]).all()


def test_clients_are_known_by_their_numbers(tmp_path: Path) -> None:
    """Of a cohort, clusters have the component of each client, and the others what they had."""
    made = fused(tmp_path / "run.h5", sampler=Uniform(), cohort=3, rounds=4)
    known = np.full(len(SIZES), -1)
    for row in range(4):
        here = made.clients["round"] == row + 1
        known[made.clients["client"][here]] = made.clients["component"][here]
        np.testing.assert_array_equal(made.clusters["cluster"][row], known)
        assert made.rounds["components_alive"][row] == len(set(made.clients["component"][here]))


def test_composition(tmp_path: Path) -> None:
    """A rule at the server and weights by chance. Oracle: FedAvg with both, at tau 1."""
    settings: dict[str, Any] = {"sampler": Uniform(), "cohort": 3, "weighting": "horvitz_thompson", "rounds": 2}
    made, plain = (
        fused(tmp_path / f"{number}.h5", method, server_optimizer=Momentum(), **settings)
        for number, method in enumerate((short(pi_power=1.0, bn_merge="linear"), FedAvg()))
    )
    np.testing.assert_allclose(made.weights, plain.weights, rtol=1e-4, atol=1e-5)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--model: DistributionFusion needs one with normalisation layers"):
        fused(tmp_path / "none.h5", model=LeNet(norm="none"))
    for options, message in (
        ({"components": 0}, "components = 0: must be at least 1"),
        ({"pi_power": 1.5}, "pi_power = 1.5"),
        ({"cap": 0.5}, "cap = 0.5"),
        ({"fit_every": 0}, "fit_every = 0"),
        ({"first_steps": 0}, "first_steps = 0"),
        ({"steps": -1}, "steps = -1"),
    ):
        with pytest.raises(BadInput, match=message):
            DistributionFusion(**options)
