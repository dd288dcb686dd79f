"""Means of low-rank adapters: FFA-LoRA and FedEx-LoRA, and FedAvg of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedexlora import FedExLoRA
from fedmpi.algorithms.ffalora import FFALoRA
from fedmpi.errors import BadInput
from fedmpi.models import Backbone, LeNet, Model
from fedmpi.policies.attacks import SignFlip
from fedmpi.policies.compression import TopK
from fedmpi.results import Run
from fedmpi.results.check import problems
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, Few
from tests.support.experiments import Cut, network, normalised, run

peft = pytest.importorskip("peft")

SIZES, LR, STEPS, ALPHA = (20, 30), 0.5, 3, 2.0
A, B, W = (f"extractor.1.{part}.weight" for part in ("lora_A.default", "lora_B.default", "base_layer"))


class Adapted(Model):
    """One hidden layer of three units, with adapters of rank 1 and a scale of 2."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        extractor = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        peft.inject_adapter_in_model(peft.LoraConfig(r=1, lora_alpha=ALPHA, target_modules=["1"]), extractor)
        return Backbone(nn.Sequential(extractor[0], extractor[1], nn.Tanh()), nn.Linear(3, outputs))


def made(path: Path, method: Algorithm, **settings: Any) -> Run:
    local = LocalTraining(epochs=STEPS, batch_size=1000, lr=LR, weight_decay=0.01, vectorize="off")
    chosen: dict[str, Any] = {"clients": 2, "partition": Cut(*SIZES), "rounds": 2, "local": local}
    return run(path, method, model=Adapted(), **{**chosen, "store_frozen": True, **settings})


def by_hand(exact: bool, trains_a: bool) -> dict[str, Tensor]:
    """Two rounds of two clients, in plain PyTorch: the means of A, B and the head, and W."""
    whole = network(Adapted(), (1, 8, 8), 10)
    x, y = normalised(DIGITS.train_x[: sum(SIZES)], Few(sum(SIZES))), torch.from_numpy(DIGITS.train_y)
    names = [name for name, p in whole.named_parameters() if p.requires_grad and (trains_a or name != A)]
    for _ in range(2):
        start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
        ends = []
        for rows in (slice(0, SIZES[0]), slice(SIZES[0], sum(SIZES))):
            whole.load_state_dict(start)
            chosen = [whole.get_parameter(name) for name in names]
            optimizer = torch.optim.SGD(chosen, LR, weight_decay=0.01)
            for _ in range(STEPS):
                optimizer.zero_grad()
                nn.functional.cross_entropy(whole(x[rows]), y[rows]).backward()
                optimizer.step()
            ends.append({name: tensor.clone() for name, tensor in whole.state_dict().items()})
        shares = [size / sum(SIZES) for size in SIZES]
        state = {name: sum(s * end[name] for s, end in zip(shares, ends, strict=True)) for name in start}
        if exact:
            product = sum(share * end[B] @ end[A] for share, end in zip(shares, ends, strict=True))
            lacking = ALPHA * (product - state[B] @ state[A])
            assert lacking.abs().max() > 2e-4
            state[W] = start[W] + lacking
        whole.load_state_dict(state)
    return whole.state_dict()


@pytest.mark.parametrize(
    ("method", "exact", "trains_a"), [(FedAvg(), False, True), (FedExLoRA(), True, True), (FFALoRA(), False, False)]
)
def test_two_clients_of_rank_one(method: Algorithm, exact: bool, trains_a: bool, tmp_path: Path) -> None:
    """Oracle: by hand; one after another, and both side by side. What is sent, by hand."""
    runs = [made(tmp_path / "run.h5", method)]
    side = LocalTraining(epochs=STEPS, batch_size=1000, lr=LR, weight_decay=0.01, vectorize=2)
    runs.append(made(tmp_path / "side.h5", type(method)(), local=side))
    expected = by_hand(exact, trains_a)
    for found in runs:
        assert not problems(found.path)
        for name, tensor in found.state_dict().items():
            np.testing.assert_allclose(tensor, expected[name], atol=5e-6, err_msg=name)
    start = network(Adapted(), (1, 8, 8), 10).state_dict()
    assert torch.allclose(expected[A], start[A]) is not trains_a
    assert (A in found.frozen) is not trains_a
    assert (W in found.frozen) is not exact
    up = 4 * 2 * (3 + 64 * trains_a + 3 * 10 + 10)
    assert found.rounds["bytes_up"].tolist() == [up] * 2
    assert found.rounds["bytes_down"].tolist() == [up + 4 * 2 * 64 * 3 * exact] * 2


def test_the_mean_of_all_models(tmp_path: Path) -> None:
    """FedEx-LoRA of one client is FedAvg; with what is lost on the way, W is that of what has arrived."""
    alone: dict[str, Any] = {"clients": 1, "partition": Cut(30)}
    first, other = (made(tmp_path / f"{i}.h5", m, **alone) for i, m in enumerate((FedAvg(), FedExLoRA())))
    for name, tensor in other.state_dict().items():
        np.testing.assert_allclose(tensor, first.state_dict()[name], atol=1e-6, err_msg=name)
    start = network(Adapted(), (1, 8, 8), 10).state_dict()[W].numpy()
    lossy = made(tmp_path / "lossy.h5", FedExLoRA(), compression=TopK(0.2), rounds=1)
    attacked = made(tmp_path / "attacked.h5", FedExLoRA(), attack=SignFlip(0.5), rounds=1)
    plain = made(tmp_path / "plain.h5", FedExLoRA(), rounds=1)
    moves = [each.state_dict()[W] - start for each in (lossy, attacked, plain)]
    assert all(np.isfinite(move).all() and move.any() for move in moves[1:])
    assert not np.allclose(moves[1], moves[2])
    assert not np.allclose(moves[0], moves[2])


@pytest.mark.parametrize("method", [FFALoRA, FedExLoRA])
def test_without_adapters(method: type[Algorithm], tmp_path: Path) -> None:
    said = rf"--model: {method.__name__} needs one with low-rank adapters \(--model\.lora\.rank 8\)"
    with pytest.raises(BadInput, match=said):
        run(tmp_path / "run.h5", method(), model=LeNet())
