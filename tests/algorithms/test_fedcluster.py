"""FedCluster: FedAvg with one cluster, and a model that goes from cluster to cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi import randomness
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedcluster import FedCluster
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.models import LeNet
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import Uniform
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder
from tests.support.digits import DIGITS, Few, beside_fedavg
from tests.support.experiments import SEED, network, normalised, run, state, tensors

SHAPE = (1, 8, 8)


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_one_cluster_is_fedavg(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit."""
    made, _ = beside_fedavg(tmp_path, FedCluster(1), LeNet(), vectorize)
    assert made.rounds["server_updates"].tolist() == [1, 1, 1]


def test_a_client_a_cluster(tmp_path: Path) -> None:
    """Oracle: incremental gradient descent in PyTorch: a full-batch step of one client after the other."""
    clients, lr = 4, 0.2
    dataset = Few(30 * clients)
    local = LocalTraining(epochs=1, batch_size=30, lr=lr)
    made = run(
        tmp_path / "run.h5",
        FedCluster(clients),
        dataset=dataset,
        partition=InOrder(),
        clients=clients,
        rounds=3,
        local=local,
    )
    cluster = made.clients["cluster"][:clients].astype(int)
    assert sorted(cluster) == list(range(clients))
    module = network(LogisticRegression(), SHAPE, 10)
    x, y = normalised(DIGITS.train_x[: 30 * clients], dataset), torch.from_numpy(DIGITS.train_y[: 30 * clients])
    orders = set()
    for round in (1, 2, 3):
        order = randomness.stream(SEED, "order of the clusters", round).permutation(clients)
        orders.add(tuple(order))
        for number in order:
            client = int(np.flatnonzero(cluster == number)[0])
            mine = slice(30 * client, 30 * (client + 1))
            module.zero_grad()
            torch.nn.functional.cross_entropy(module(x[mine]), y[mine]).backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=lr)
    assert len(orders) > 1
    found = tensors(made)
    for name, tensor in state(module).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_clients_that_are_all_alike(tmp_path: Path) -> None:
    """Oracle: as many rounds of FedAvg as there are clusters, whole batches: a round is all of them."""
    local = LocalTraining(epochs=2, batch_size=30)
    settings: dict[str, Any] = {
        "dataset": Few(30, copies=6),
        "partition": InOrder(),
        "clients": 6,
        "local": local,
    }
    made, plain = (
        run(tmp_path / f"{rounds}.h5", algorithm, rounds=rounds, server_optimizer=Momentum(0.5, 0.9), **settings)
        for algorithm, rounds in ((FedCluster(3), 2), (FedAvg(), 6))
    )
    assert made.rounds["server_updates"].tolist() == [3, 3]
    np.testing.assert_allclose(made.weights, plain.weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(made.rounds["test_loss"], plain.rounds["test_loss"][[2, 5]], rtol=1e-5)


def test_clusters_without_a_client_in_the_round(tmp_path: Path) -> None:
    """Oracle: by hand: as many updates as clusters that somebody is in; the clusters are equally large, and stay."""
    settings: dict[str, Any] = {"partition": Dirichlet(0.5), "clients": 12, "cohort": 4, "rounds": 6}
    made = run(tmp_path / "made.h5", FedCluster(5), sampler=Uniform(), evaluate_means="cohort", **settings)
    cluster = np.full(12, -1)
    for round in range(1, 7):
        now = made.clients["round"] == round
        mine = made.clients["cluster"][now].astype(int)
        assert made.rounds["server_updates"][round - 1] == len(np.unique(mine))
        clients = made.clients["client"][now]
        assert np.isin(cluster[clients], (-1, *mine)).all()
        assert ((cluster[clients] == -1) | (cluster[clients] == mine)).all()
        cluster[clients] = mine
    assert np.bincount(cluster[cluster >= 0], minlength=5).max() <= 3
    assert made.rounds["bytes_down"].tolist() == [4 * 650 * 4] * 6


def test_horvitz_thompson(tmp_path: Path) -> None:
    """Oracle: with everybody in every round it is the plain mean in each cluster."""
    settings: dict[str, Any] = {"partition": Dirichlet(0.5), "clients": 6, "rounds": 2}
    made = run(tmp_path / "made.h5", FedCluster(2), weighting="horvitz_thompson", **settings)
    plain = run(tmp_path / "plain.h5", FedCluster(2), weighting="samples", **settings)
    np.testing.assert_allclose(made.weights, plain.weights, rtol=1e-6, atol=1e-8)


def test_more_clusters_than_clients(tmp_path: Path) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=r"^--algorithm.clusters = 5: must be at most the number of clients, 4$"):
        run(tmp_path / "run.h5", FedCluster(5))
