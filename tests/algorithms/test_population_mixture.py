"""DistributionFusion with components of the whole population, and their memory, beside loops and FedAvg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.distribution_fusion import DistributionFusion
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.federation.local import Trained
from fedmpi.models import MLP, LeNet
from fedmpi.policies import FixedList, Uniform
from fedmpi.training.block import WHOLE, Block, Phase
from fedmpi.training.settings import LocalTraining
from studies.label_groups import LabelGroups
from tests.algorithms.test_distribution_fusion import Forgetful
from tests.support.digits import SHAPE
from tests.support.experiments import Cut, network, run, state, tensors

SMALL = MLP((9,), norm="batch")
#: What a client's training adds to each element of the model, by its number and the round.
Change = Callable[[int, int], float]


class Given(DistributionFusion):
    """The components are known; and training only adds a number to each element of a model, if `change` gives one."""

    truth: Sequence[int] = ()
    change: Change | None = None

    def log_q(self, fed: Federation, clients: NDArray[np.int64], seen: Tensor, fits: bool) -> NDArray[np.float64]:
        return np.log(np.eye(self.components)[np.array(self.truth)[clients]] + 1e-9)

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        made = super().train(fed, block, start, received, phase)
        for client, row in zip(block.clients.tolist(), made.weights, strict=True):
            if self.change:
                row.copy_(received + self.change(client, fed.round))
        return made


def given(truth: Sequence[int], change: Change | None = None, **options: Any) -> Given:
    """Linear means, which these changes pass unchanged, and no twin."""
    method = Given(**{"components": max(truth) + 2, "bn_merge": "linear", "twin": False, "cap": None, **options})
    method.truth, method.change = truth, change
    return method


def rounds_of(path: Path, method: Algorithm, cohorts: Sequence[Sequence[int]], **settings: Any) -> results.Run:
    """A round with each of these cohorts."""
    path.with_suffix(".list").write_text("\n".join(" ".join(map(str, cohort)) for cohort in cohorts))
    chosen = {"model": SMALL, "sampler": FixedList(path.with_suffix(".list")), "rounds": len(cohorts)} | settings
    return run(path, method, **{"local": LocalTraining(steps=1), **chosen})


def moved(made: results.Run) -> dict[str, Tensor]:
    """How far each tensor of the model is from where it started."""
    start = state(network(SMALL, SHAPE, 10))
    return {name: tensor - start[name] for name, tensor in tensors(made).items()}


SIZES = (20, 30, 40, 25, 60)
LOCAL = LocalTraining(epochs=1, batch_size=10, lr=0.05)


@pytest.mark.parametrize("options", [{}, {"memory": False}, {"memory": False, "allocation": "soft"}])
def test_with_all_clients_in_every_round_it_is_fedavg(options: dict[str, Any], tmp_path: Path) -> None:
    """Whatever is inferred. Oracle: FedAvg, to rounding."""
    settings: dict[str, Any] = {"model": LeNet(), "partition": Cut(*SIZES), "clients": 5, "local": LOCAL, "rounds": 3}
    made = run(
        tmp_path / "made.h5",
        DistributionFusion(first_steps=120, twin=False, bn_merge="linear", **options),
        **settings,
    )
    plain = run(tmp_path / "plain.h5", FedAvg(), **settings)
    np.testing.assert_allclose(made.weights, plain.weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.clients["omega"], np.tile(np.array(SIZES) / sum(SIZES), 3), rtol=1e-7)
    assert (made.rounds["components_alive"] > 1).all(), "else there was nothing to weigh"


def test_memory_has_no_effect_while_all_are_there(tmp_path: Path) -> None:
    """Oracle: the run without; running variances as moments, of which those between components are a part."""
    settings: dict[str, Any] = {"model": LeNet(), "partition": Cut(*SIZES), "clients": 5, "local": LOCAL, "rounds": 2}
    with_memory, without = (
        run(
            tmp_path / f"{memory}.h5", DistributionFusion(first_steps=120, twin=False, memory=memory), **settings
        ).weights
        for memory in (True, False)
    )
    np.testing.assert_allclose(with_memory, without, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [True, False])
def test_one_component_is_fedavg(memory: bool, tmp_path: Path) -> None:
    """Oracle: FedAvg, to rounding, with some of the clients in each round."""
    settings: dict[str, Any] = {"model": LeNet(), "partition": Cut(*SIZES), "clients": 5, "local": LOCAL, "rounds": 3}
    method = DistributionFusion(1, memory=memory, first_steps=20, twin=False, bn_merge="linear")
    made, plain = (
        run(tmp_path / f"{number}.h5", one, sampler=Uniform(), cohort=2, **settings)
        for number, one in enumerate((method, FedAvg()))
    )
    np.testing.assert_allclose(made.weights, plain.weights, rtol=1e-4, atol=1e-5)


def test_the_mean_over_cohorts_is_the_step_with_everybody(tmp_path: Path) -> None:
    """Three clients of one component and one of another, of other sizes, which cohorts of one of each overstate.

    Oracle: the second round with all of them, where the first was that, too.
    """
    truth, settings = (0, 0, 0, 1), {"partition": Cut(20, 20, 20, 35), "clients": 4, "local": LOCAL}

    def second(name: str, *cohort: int) -> NDArray[np.float32]:
        method = given(truth, memory=False)
        return rounds_of(tmp_path / f"{name}.h5", method, [range(4), cohort], **settings).weights

    cohorts = [second(f"{k}", k, 3) for k in range(3)]
    everybody = second("all", 0, 1, 2, 3)
    np.testing.assert_allclose(np.mean(cohorts, 0), everybody, atol=2e-6)
    assert np.abs(cohorts[0] - everybody).max() > 1e-3, "else the cohorts would not differ"


def test_with_fixed_changes_memory_takes_the_step_with_everybody(tmp_path: Path) -> None:
    """Oracle, by hand: pi of all samples times the components' changes, from when all are known on, in any cohort."""
    sizes, truth = (10, 30, 20, 20), (0, 0, 1, 1)
    change, rest = (0.2, -0.1), [(0,), (2, 3), (1, 2), (3,), (0, 1, 2, 3)]
    method = given(truth, lambda client, round: change[truth[client]])
    made = rounds_of(tmp_path / "run.h5", method, [range(4), *rest], partition=Cut(*sizes))
    step = 40 / 80 * change[0] + 40 / 80 * change[1]
    for name, tensor in moved(made).items():
        torch.testing.assert_close(tensor, torch.full_like(tensor, step * 6), atol=1e-5, rtol=0, msg=name)


def test_an_absent_component_counts_with_its_last_change(tmp_path: Path) -> None:
    """One is absent for three rounds, one comes in the third. Oracle: a loop over those that are known so far."""
    sizes, truth = (10, 20, 30, 15, 25), (0, 0, 1, 1, 2)
    cohorts = [(0, 1, 2), (0, 1), (0, 4), (1, 4), (2, 3), (0, 1, 2, 3, 4)]

    def change(client: int, round: int) -> float:
        return 0.01 * (client + 1) * round

    expected, last, seen = 0.0, {}, set()
    for number, cohort in enumerate(cohorts, 1):
        seen |= set(cohort)
        for component in {truth[k] for k in cohort}:
            own = [k for k in cohort if truth[k] == component]
            last[component] = sum(sizes[k] * change(k, number) for k in own) / sum(sizes[k] for k in own)
        for component, step in last.items():
            expected += sum(sizes[k] for k in seen if truth[k] == component) / sum(sizes[k] for k in seen) * step
    made = rounds_of(tmp_path / "run.h5", given(truth, change), cohorts, partition=Cut(*sizes), clients=5)
    for name, tensor in moved(made).items():
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected), atol=1e-5, rtol=0, msg=name)
    assert made.rounds["components_alive"].tolist() == [2, 1, 2, 2, 1, 3]


def test_variances_stay_above_zero(tmp_path: Path) -> None:
    """A component took 0.9 of them and is absent. Oracle, by hand: it has none left, the other has all."""
    method = given((0, 1), lambda client, round: -0.9 * client)
    made = rounds_of(tmp_path / "run.h5", method, [(0, 1), (0,), (0,)], partition=Cut(20, 20), clients=2)
    variances = tensors(made)["extractor.2.running_var"]
    torch.testing.assert_close(variances, torch.full_like(variances, 0.55 / 2 / 2))


def test_a_small_client_alone_in_its_component_counts_no_more_than_the_cap(tmp_path: Path) -> None:
    """Of the larger component is there who has a sixth of the cohort's samples. Oracle, by hand: 1.5 times that."""
    sizes, truth = (10, 90, 50), (0, 0, 1)
    method = given(truth, lambda client, round: (1.0, 1.0, 0.0)[client], cap=1.5)
    made = rounds_of(tmp_path / "run.h5", method, [(0, 1, 2), (0, 2)], partition=Cut(*sizes), clients=3)
    np.testing.assert_allclose(made.clients["omega"], [1 / 15, 9 / 15, 5 / 15, 1.5 / 6, 1 - 1.5 / 6])
    bias = moved(made)["extractor.2.bias"]
    torch.testing.assert_close(bias, torch.full_like(bias, 2 / 3 + 0.25))


def test_labels_are_nearer_to_those_of_all_clients(tmp_path: Path) -> None:
    """Cohorts of 5 out of 20 clients in five groups. Oracle: on average nearer than by FedAvg's weights."""
    partition = LabelGroups((6, 5, 4, 3, 2))
    truth = partition.groups(20, np.random.default_rng()).tolist()
    method = given(truth, lambda client, round: 0.0, memory=False)
    settings: dict[str, Any] = {"model": SMALL, "partition": partition, "clients": 20, "sampler": Uniform()}
    made = run(tmp_path / "run.h5", method, cohort=5, rounds=24, local=LocalTraining(steps=1), **settings)
    counts = made.partition["label_counts"]
    everybody, own = counts.sum(0) / counts.sum(), counts / counts.sum(1, keepdims=True)
    clients, omega = made.clients["client"].reshape(24, 5), made.clients["omega"].reshape(24, 5)
    distances = [np.abs(w @ own[k] - everybody).sum() for w, k in zip(omega, clients, strict=True)]
    np.testing.assert_allclose(made.rounds["label_l1"], distances, atol=1e-6)
    plain = [np.abs(own[k].mean(0) - everybody).sum() for k in clients]  # they are equally large
    assert np.mean(distances) < 0.9 * np.mean(plain)
    assert made.rounds["adjusted_rand_index"][-1] == 1


class Drifting(DistributionFusion):
    """What layers learn is the group's and the client's own, and what all have in common, which drifts far."""

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        made = super().train(fed, block, start, received, phase)
        first = self.read.columns.start
        for client, row in zip(block.clients.tolist(), made.weights, strict=True):
            shapes = [
                np.random.default_rng(seed).standard_normal(self.read.size) for seed in (client % 3, client + 9)
            ]
            row[first:] = 30 + 3 * fed.round + torch.from_numpy(shapes[0] + 0.3 * shapes[1])
        return made


def test_groups_are_found_from_what_was_sent_in_different_rounds(tmp_path: Path) -> None:
    """Cohorts of 6 out of 30 clients. Oracle: the planted groups, of which no round has more than a few clients."""
    method = Drifting(8, first_steps=120, steps=40, fit_every=1, twin=False)
    settings: dict[str, Any] = {"model": SMALL, "clients": 30, "sampler": Uniform(), "cohort": 6, "rounds": 20}
    made = run(tmp_path / "run.h5", method, local=LocalTraining(steps=1), **settings)
    found = made.clusters["cluster"][-1]
    assert (found >= 0).sum() > 25
    pairs = [(a, b) for a, b in product(np.flatnonzero(found >= 0), repeat=2) if a < b]
    together = [found[a] == found[b] for a, b in pairs]
    assert np.mean([same == ((a - b) % 3 == 0) for same, (a, b) in zip(together, pairs, strict=True)]) > 0.9


def test_a_round_with_one_client_goes_by_what_is_known(tmp_path: Path) -> None:
    """Oracles: of a stranger's component nothing is known, so its model is taken; one that is known keeps its own."""
    truth = (0, 0, 1, 1)
    method = given(truth, lambda client, round: (1.0, 1.0, 0.0, 0.0)[client])
    made = rounds_of(tmp_path / "run.h5", method, [(3,), (0, 2), (0,)], cohort=2, partition=Cut(10, 10, 10, 10))
    assert made.clients["component"].tolist() == [-1, 0, 1, 0]
    bias = moved(made)["extractor.2.bias"]
    torch.testing.assert_close(bias, torch.full_like(bias, 0.0 + 1 / 2 + 1 / 2))


def test_the_state_is_all_there_is(tmp_path: Path) -> None:
    """Oracle: the bits of a run that was never interrupted, over rounds in which components are absent."""
    cohorts = [(0, 1, 2), (3, 4), (0, 3), (1, 2, 4), (0, 1)]
    options: dict[str, Any] = {"first_steps": 60, "steps": 5, "fit_every": 2, "twin": False}
    settings: dict[str, Any] = {"model": LeNet(), "partition": Cut(*SIZES), "clients": 5, "local": LOCAL}
    made, other = (
        rounds_of(tmp_path / f"{number}.h5", method, cohorts, **settings)
        for number, method in enumerate((DistributionFusion(**options), Forgetful(**options)))
    )
    assert made.weights_sha256 == other.weights_sha256
    np.testing.assert_array_equal(made.clients["omega"], other.clients["omega"])
    np.testing.assert_array_equal(made.clusters["cluster"], other.clusters["cluster"])
    assert made.rounds["components_alive"].min() < len(np.unique(made.clusters["cluster"][-1])), "none was absent"


def test_refusals(tmp_path: Path) -> None:
    for options in ({"mixture": "cohort"}, {"allocation": "soft"}):
        with pytest.raises(
            BadInput, match="memory = true: must be false, except with mixture population and allocation"
        ):
            DistributionFusion(memory=True, **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="server keeps its own mean over all clients"):
        run(tmp_path / "chance.h5", DistributionFusion(), model=LeNet(), weighting="horvitz_thompson")
