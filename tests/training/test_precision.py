"""Networks run in bfloat16; everything else stays float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Digits
from fedmpi.models import MLP, LeNet, Model
from fedmpi.mpi.devices import computes_bf16
from fedmpi.tasks import Classification
from fedmpi.training.block import Block
from fedmpi.training.clientwise import ClientWise
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.samples import Batch, Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import LocalWork, Trainer
from tests.support.experiments import CPU, SEED, Client, block, network, normalised, plain_training, read, run

SHAPE = (1, 8, 8)
DIGITS = read(Digits())


class InBF16(nn.Module):
    """A network under PyTorch's autocast, its output in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output: Tensor = self.network(x)
        return output.float()


# Elsewhere convolutions add in bfloat16, and in another order where channels come last.
WITH_CODE = pytest.mark.skipif(not computes_bf16(), reason="this processor has no code for bfloat16")


@pytest.mark.parametrize("model", [MLP(hidden=(40,)), pytest.param(LeNet("group"), marks=WITH_CODE)])
def test_training_is_a_plain_loop_under_autocast(model: Model) -> None:
    """Oracle: torch.optim.SGD on the module under torch.autocast, much nearer than the float32 loop is."""
    x, y = DIGITS.train_x[:40], DIGITS.train_y[:40]
    settings = LocalTraining(epochs=1, batch_size=10, lr=0.1, precision="bf16")
    one = Client(network(model, SHAPE, 10), x, y, settings, Digits())
    one.train()
    ends = []
    for wrap in (InBF16, lambda module: module):
        plain = network(model, SHAPE, 10)
        plain_training(wrap(plain), normalised(x, Digits()), torch.from_numpy(y), settings)
        ends.append(FlatModel(plain, CPU).weights)
    apart_in_bf16, apart_in_float32 = ((one.model.weights - end).norm() / one.moved.norm() for end in ends)
    assert apart_in_bf16 < apart_in_float32 / 50
    assert 1e-4 < apart_in_float32 < 0.3  # what eight bits of a factor leave


class Watched(FedAvg):
    """Notes the types of what its hooks are given."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.dtype] = {}

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        features = net.features(batch.x)
        self.seen |= {"features": features.dtype, "logits": net.classify(features).dtype, "start": start.dtype}
        self.seen["logits at others"] = net.at(start)(batch.x).dtype
        return super().loss(net, batch, start, client)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        self.seen |= {"gradient": gradient.dtype, "weights": weights.dtype}
        return gradient


def trainer(kind: str, model: Model, sizes: list[int], **settings: Any) -> Trainer:
    shards = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    samples = Samples(DIGITS.train_x, DIGITS.train_y, Digits.mean, Digits.std, CPU)
    local = LocalTraining(**{"epochs": 1, "precision": "bf16", **settings})
    task = LocalWork(
        Classification(), FlatModel(network(model, SHAPE, 10), CPU), samples, shards, lambda client: None, local, SEED
    )
    return PlainTrainer(task) if kind == "one by one" else SideBySideTrainer(task, 8)


@pytest.mark.parametrize("kind", ["one by one", "side by side"])
def test_hooks_see_float32(kind: str) -> None:
    """Oracle: the types; and a watched network must indeed have computed otherwise than in float32."""
    ends = []
    for precision in ("bf16", "float32"):
        one, hooks = trainer(kind, LeNet("group"), [12, 12], precision=precision), Watched()
        clients = block(0) if kind == "one by one" else block(0, 1)
        start = one.model.weights.clone()
        work = one.train(clients, start.expand(len(clients), -1), hooks, 1, 1)
        assert set(hooks.seen) == {"features", "logits", "logits at others", "start", "gradient", "weights"}
        assert set(hooks.seen.values()) == {torch.float32}
        assert work.weights.dtype == torch.float32
        ends.append(work.weights.clone())
    assert not torch.equal(*ends)
    assert (ends[0] - ends[1]).norm() < 0.3 * (ends[1] - start).norm()


@pytest.mark.parametrize(
    ("model", "steps"), [(MLP(hidden=(20, 20)), 200), (MLP(hidden=(33, 5), norm="batch"), 5), (LeNet("group"), 5)]
)
def test_bits_do_not_depend_on_the_company(model: Model, steps: int) -> None:
    """Oracle: the same clients beside others and in other rows.

    Products of so few samples are those for which the number of clients decides by which code they are formed; it
    shows in one element in ten thousand, hence the many steps.
    """
    side = trainer("side by side", model, [9, 8, 7, 6, 6, 5, 3, 2], batch_size=3, steps=steps)
    start = side.model.weights.clone()

    def train(*clients: int) -> Tensor:
        return side.train(block(*clients), start.expand(len(clients), -1), FedAvg(), 1, 1).weights.clone()

    everybody = train(*range(8))
    assert ((everybody - start).norm(dim=1) > 0).all()
    for company in ((0, 7), (2, 5, 6)):
        assert torch.equal(train(*company), everybody[list(company)]), company


def test_dropout_keeps_the_mean() -> None:
    """Oracle: 1 / (1 - p) in float32; bfloat16 has no 4/3."""
    x = torch.ones(2000, dtype=torch.bfloat16)
    with ClientWise(5):
        kept = nn.functional.dropout(x, 0.25)
    assert set(kept.unique().tolist()) == {0.0, float(np.float32(4 / 3))}


@pytest.mark.parametrize("vectorize", ["off", "4"])
def test_it_learns(vectorize: str, tmp_path: Path) -> None:
    """Oracle: the same run in float32: both learn, and end within two hundredths of each other."""
    found = []
    for precision in ("float32", "bf16"):
        local = LocalTraining(
            epochs=2,
            vectorize="off" if vectorize == "off" else int(vectorize),
            precision=precision,
        )
        made = run(tmp_path / f"{precision}.h5", model=MLP(hidden=(32,)), rounds=5, local=local)
        assert made.rounds["train_loss"][-1] < made.rounds["train_loss"][0] / 2
        assert made.rounds["test_accuracy"][-1] > 0.85
        found.append((made.rounds["test_accuracy"][-1], made.weights_sha256))
    (float32, sha), (bf16, other_sha) = found
    assert abs(float32 - bf16) < 0.02
    assert sha != other_sha
