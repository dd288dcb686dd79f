"""Scaffnew: the paper's algorithm in NumPy, the exact optimum, its invariant, and FedAvg where they agree."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness, results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedftg import FedFTG
from fedmpi.algorithms.scaffnew import Scaffnew
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput, Diverged
from fedmpi.federation.federation import Federation
from fedmpi.federation.local import Trained
from fedmpi.models import MLP, LeNet
from fedmpi.policies import Cohort, Heterogeneous
from fedmpi.policies.compression import TopK
from fedmpi.training.block import WHOLE, Block, Phase, Work
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, HalfSquares
from tests.support.experiments import SEED, Cut, run
from tests.support.least_squares import OPTIMUM, START, cohorts, gradient, limit, squares

LR = 0.1


class Squares(HalfSquares, Scaffnew):
    """Scaffnew on least squares; remembers the control variates h_k after each round."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.seen: list[NDArray[np.float64]] = []

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        shifts = np.stack([self.shifts.rows[client].double().numpy() for client in range(CLIENTS)])
        self.seen.append((shifts + self.weights.double().numpy()) * (self.p / LR))


class WithoutControl(Scaffnew):
    """Does not correct its steps."""

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient


class AsLong(FedAvg):
    """FedAvg with as many steps in a round as Scaffnew."""

    def __init__(self, p: float) -> None:
        self.other = Scaffnew(p)

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        return fed.train(block, start, self, self.other.phase(fed))


def lengths(p: float, rounds: int) -> list[int]:
    """Steps of each round."""
    return [int(randomness.stream(SEED, "Scaffnew", r, 0).geometric(p)) for r in range(1, rounds + 1)]


def paper(steps: list[int], p: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Algorithm 2, with a mean after so many steps: the model and the control variates."""
    x, h = np.tile(START, (CLIENTS, 1)), np.zeros((CLIENTS, DIMENSION))
    for count in steps:
        for _ in range(count):
            x = x - LR * (np.stack([gradient(client, x[client]) for client in range(CLIENTS)]) - h)
        h = h + p / LR * (x.mean(0) - x)
        x = np.tile(x.mean(0), (CLIENTS, 1))
    return x[0], h


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_it_is_the_papers(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: `paper`, in float64, with the steps that the seed gives, the same for all clients."""
    algorithm = Squares(0.3)
    local = LocalTraining(epochs=9, steps=77, lr=LR, vectorize=vectorize)  # neither of which is used
    made = squares(tmp_path / "run.h5", algorithm, 7, local)
    steps = lengths(0.3, 7)
    assert cohorts(made) == [[(client, count) for client in range(CLIENTS)] for count in steps]
    assert len(set(steps)) > 2
    w, h = paper(steps, 0.3)
    assert np.linalg.norm(w - START) > 0.5
    assert np.abs(h).max() > 0.5
    np.testing.assert_allclose(made.weights, w, rtol=1e-5)
    np.testing.assert_allclose(algorithm.seen[-1], h, rtol=1e-5, atol=1e-5)


def test_the_exact_optimum(tmp_path: Path) -> None:
    """Oracle: the closed form, from which FedAvg stays away; there, h_k is the client's gradient; the sum stays 0."""
    algorithm = Squares(0.2)
    made = squares(tmp_path / "run.h5", algorithm, 120, LocalTraining(lr=LR))
    assert np.linalg.norm(limit((5,) * CLIENTS, LR) - OPTIMUM) > 0.1
    assert np.linalg.norm(made.weights - OPTIMUM) < 3e-6
    at_optimum = np.stack([gradient(client, OPTIMUM) for client in range(CLIENTS)])
    assert np.abs(at_optimum).max() > 1
    np.testing.assert_allclose(algorithm.seen[-1], at_optimum, atol=1e-5)
    assert len(algorithm.seen) == 120
    assert np.abs(algorithm.seen[0]).max() > 0.1
    for h in algorithm.seen:
        np.testing.assert_allclose(h.sum(0), 0, atol=1e-5)


def test_a_step_per_round(tmp_path: Path) -> None:
    """Oracle: with p = 1, gradient descent on the mean loss, in float64."""
    made = squares(tmp_path / "run.h5", Squares(1), 12, LocalTraining(lr=LR))
    w = START
    for _ in range(12):
        w = w - LR * np.mean([gradient(client, w) for client in range(CLIENTS)], 0)
    np.testing.assert_allclose(made.weights, w, rtol=1e-5)
    assert set(made.clients["steps"]) == {1}


def test_lengths() -> None:
    """Oracle: the geometric distribution: at least 1, mean 1 / p, and p of the rounds have one step."""
    drawn = np.array(lengths(0.2, 4000))
    assert drawn.min() == 1
    assert abs(drawn.mean() - 5) < 4 * np.sqrt(20 / 4000)
    assert abs((drawn == 1).mean() - 0.2) < 4 * np.sqrt(0.16 / 4000)


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_one_client_is_sgd(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg of one client with as many steps, that is plain SGD, bit for bit."""
    local = LocalTraining(batch_size=100, weight_decay=1e-3, vectorize=vectorize)
    settings: dict[str, Any] = {"model": LeNet(), "clients": 1, "rounds": 4, "local": local}
    one = run(tmp_path / "one.h5", Scaffnew(0.4), **settings)
    plain = run(tmp_path / "plain.h5", AsLong(0.4), **settings)
    assert one.weights_sha256 == plain.weights_sha256
    assert one.clients["steps"].tolist() == lengths(0.4, 4)


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_without_control_it_is_fedavg(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg with as many steps, uniformly weighted, bit for bit; with control variates it is not."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "rounds": 2,
        "partition": Dirichlet(0.3),
        "local": LocalTraining(batch_size=100, weight_decay=1e-3, vectorize=vectorize),
    }
    plain = run(tmp_path / "plain.h5", AsLong(0.4), weighting="uniform", **settings)
    without = run(tmp_path / "without.h5", WithoutControl(0.4), **settings)
    assert without.weights_sha256 == plain.weights_sha256
    assert run(tmp_path / "run.h5", Scaffnew(0.4), **settings).weights_sha256 != plain.weights_sha256


def test_statistics_are_averaged_plainly(tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit: with one step a round, its second round measures the same weights as ours."""
    settings: dict[str, Any] = {"model": LeNet(), "rounds": 2, "local": LocalTraining(steps=1, batch_size=30)}
    algorithm = Scaffnew(1)
    made = run(tmp_path / "run.h5", algorithm, **settings)
    plain = run(tmp_path / "plain.h5", weighting="uniform", **settings)
    count = len(algorithm.shifts.initial)
    assert count < len(made.weights)
    np.testing.assert_array_equal(made.weights[count:], plain.weights[count:])
    np.testing.assert_allclose(made.weights[:count], plain.weights[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_side_by_side(norm: Any, tmp_path: Path) -> None:
    """Oracle: one by one, with clients of 1 to 41 samples, so that batches differ in number and size."""
    settings: dict[str, Any] = {"model": MLP((17,), norm=norm), "partition": Cut(41, 22, 8, 7, 1), "clients": 5}
    made = [
        run(
            tmp_path / f"{vectorize}.h5",
            Scaffnew(0.2),
            rounds=3,
            local=LocalTraining(batch_size=7, lr=0.05, vectorize=vectorize),
            **settings,
        )
        for vectorize in ("off", 3)  # in blocks of three and two
    ]
    one, several = (each.weights.astype(np.float64) for each in made)
    first = run(tmp_path / "first.h5", local=LocalTraining(epochs=1, lr=1e-12), **settings).weights
    assert np.linalg.norm(one - first) > 0.2
    assert np.linalg.norm(several - one) < 1e-4 * np.linalg.norm(one - first)


def test_bytes_and_clock(tmp_path: Path) -> None:
    """Oracle: the model, 4 bytes a number, to and from each of 4 clients; a second per step that was done."""
    speeds: dict[str, Any] = {"seconds_per_step": 1.0, "speed_spread": 0.0, "bandwidth_spread": 0.0}
    clock = Heterogeneous(**speeds, download=1e12, upload=1e12)
    made = run(tmp_path / "run.h5", Scaffnew(0.3), rounds=5, conditions=clock)
    each = 4 * len(made.weights)
    assert made.rounds["bytes_down"].tolist() == made.rounds["bytes_up"].tolist() == [4 * each] * 5
    assert made.clients["steps"].reshape(5, 4)[:, 0].tolist() == lengths(0.3, 5)
    np.testing.assert_allclose(made.clients["virtual_seconds"], made.clients["steps"], rtol=1e-6)


def test_a_diverged_client_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: one line that names it; the round before is kept."""
    train = PlainTrainer.train

    def trained(self: PlainTrainer, block: Block, *arguments: Any, **options: Any) -> Work:
        work = train(self, block, *arguments, **options)
        if arguments[2] == 2 and int(block.clients[0]) == 3:
            work.weights[0, 5] = np.nan
            return replace(work, is_finite=False)
        return work

    monkeypatch.setattr(PlainTrainer, "train", trained)
    with pytest.raises(Diverged):
        run(tmp_path / "run.h5", Scaffnew(), rounds=3, local=LocalTraining(vectorize="off"))
    said = r"round 2, .*: the training of client 3 diverged, and Scaffnew needs all; lower --local.lr\n"
    assert re.search(said, capsys.readouterr().err)
    made = results.open(tmp_path / "run.h5")
    assert (made.status, made.rounds["round"].tolist()) == ("failed", [1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local": LocalTraining(optimizer="adam")}, "--local.optimizer = adam: must be sgd with Scaffnew"),
        ({"local": LocalTraining(momentum=0.5)}, "--local.momentum = 0.5: must be 0 with Scaffnew"),
        ({"local": LocalTraining(clip_norm=1.0)}, "--local.clip_norm = 1.0: must be null with Scaffnew"),
        ({"local": LocalTraining(schedule="cosine")}, "--local.schedule = cosine: must be constant with Scaffnew"),
        ({"weighting": "samples"}, "weighting = samples: must be uniform with Scaffnew, which gives all clients"),
        ({"weighting": "horvitz_thompson"}, "weighting = horvitz_thompson: must be uniform with Scaffnew"),
        ({"compression": TopK()}, "compression = TopK: cannot be combined with Scaffnew"),
        ({"conditions": Heterogeneous(deadline=9)}, "conditions = Heterogeneous: may lose updates, and Scaffnew"),
        (
            {"conditions": Heterogeneous(stragglers=0.3), "local": LocalTraining()},
            "conditions = Heterogeneous: may lose updates",
        ),
    ],
)
def test_what_it_refuses(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Oracle: the messages; the sampler and availability are in test_compatibility.py."""
    with pytest.raises(BadInput, match=re.escape(message)):
        run(tmp_path / "run.h5", Scaffnew(), **settings)


@pytest.mark.parametrize("p", [0.0, 1.5])
def test_a_probability(p: float) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=rf"p = {p}: must be above 0 and at most 1"):
        Scaffnew(p)


def test_no_distillation_over_it() -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match="base = Scaffnew: must be a method whose clients do not need the plain mean"):
        FedFTG(Scaffnew())
