"""Every client's own model on its own shard of the test set: by hand, and the same bits on three ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedmpi import results
from fedmpi.data import Dirichlet, Permuted, make_split
from fedmpi.models import LeNet
from fedmpi.scheduling import Uniform
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_ifca import DIGITS, PROGRAMS, SHAPE, seen_by
from tests.launch import REPOSITORY, mpirun, succeed
from tests.programs.methods import Halfway
from tests.small import CPU, SEED, network, run

CLIENTS = 7
PARTITION = Permuted(Dirichlet(0.3))
OPTIONS = (
    "--algorithm methods.Halfway --model LeNet --clients 7 --cohort 3 --rounds 3 --local.epochs 1 --seed 3"
    " --partition Permuted --partition.over Dirichlet --partition.over.alpha 0.3"
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[results.Run, Halfway]:
    """The same run in this process, and its method with what the clients keep."""
    algorithm, path = Halfway(), tmp_path_factory.mktemp("personal") / "here.h5"
    local = LocalTraining(epochs=1)
    parts = {"model": LeNet(), "partition": PARTITION, "sampler": Uniform(), "local": local}
    return run(path, algorithm, **parts, clients=CLIENTS, cohort=3, rounds=3), algorithm


def test_by_hand(here: tuple[results.Run, Halfway]) -> None:
    """Oracle: each client's network in PyTorch, on its shard, with its pixels in its order; NumPy's statistics."""
    made, algorithm = here
    split = make_split(PARTITION, DIGITS.train_y, DIGITS.test_y, 10, CLIENTS, SEED)
    model = FlatModel(network(LeNet(), SHAPE, 10), CPU)
    model.module.eval()
    weights = model.layout.from_canonical(torch.from_numpy(made.weights))
    correct, loss = np.zeros(CLIENTS), 0.0
    sizes = np.array([len(shard) for shard in split.test])
    assert sizes.min() > 0
    assert 0 < len(algorithm.last.rows) < CLIENTS
    for client, shard in enumerate(split.test):
        last = algorithm.last.rows.get(client, algorithm.last.initial)
        model.load((weights + last) / 2)
        x, y = seen_by(split, client, DIGITS.test_x[shard]), torch.from_numpy(DIGITS.test_y[shard])
        with torch.inference_mode():
            logits = model.module(x)
        correct[client] = (logits.argmax(1) == y).sum().item()
        loss += cross_entropy(logits, y, reduction="sum").item()
    accuracy = correct / sizes
    assert accuracy.std() > 0.05
    np.testing.assert_array_equal(made.evaluation["client_accuracy"][-1], accuracy)
    last_row = {name: column[-1] for name, column in made.rounds.items()}
    assert last_row["test_accuracy"] == correct.sum() / sizes.sum()
    assert last_row["test_loss"] == pytest.approx(loss / sizes.sum(), rel=1e-5)
    assert last_row["client_accuracy_mean"] == pytest.approx(accuracy.mean(), rel=1e-12)
    assert last_row["client_accuracy_std"] == pytest.approx(accuracy.std(), rel=1e-12)
    for percent in (10, 50, 90):
        assert last_row[f"client_accuracy_p{percent}"] == pytest.approx(np.percentile(accuracy, percent), rel=1e-12)
    assert last_row["clients_trained"] == len(algorithm.last.rows) == len(set(made.clients["client"]))


def test_on_three_ranks(here: tuple[results.Run, Halfway], tmp_path: Path) -> None:
    """Oracle: this process's run, bit for bit, though the clients' models lie on two ranks."""
    (tmp_path / "lines").write_text(f"many {OPTIONS}")
    succeed(mpirun(3, PROGRAMS / "runs.py", tmp_path, tmp_path / "lines", PYTHONPATH=f"{REPOSITORY}:{PROGRAMS}"))
    many, (one, _) = results.open(tmp_path / "many.h5"), here
    assert set(many.clients["rank"]) == {1, 2}
    assert many.weights_sha256 == one.weights_sha256
    np.testing.assert_equal(many.initial, one.initial)
    for name in ("test_accuracy", "test_loss", "clients_trained"):
        np.testing.assert_array_equal(many.rounds[name], one.rounds[name])
    for name in (name for name in one.rounds if name.startswith("client_accuracy")):
        np.testing.assert_array_equal(many.rounds[name], one.rounds[name])
    np.testing.assert_array_equal(many.evaluation["client_accuracy"], one.evaluation["client_accuracy"])
