"""The optimizers on flat vectors are those of PyTorch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmpi.training.optimizers import SGD, Adam, AdamW
from tests.support.experiments import CPU

STEPS, CLIENTS, SIZE = 20, 3, 1001
RATES = [0.1 if step < 10 else 0.03 for step in range(STEPS)]


def gradients() -> Tensor:
    """[20, 3, 1001] of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10 ** torch.linspace(-4, 1, SIZE)
    return torch.randn(STEPS, CLIENTS, SIZE, generator=generator) * sizes


def start() -> Tensor:
    return torch.randn(CLIENTS, SIZE, generator=torch.Generator().manual_seed(1))


def torchs(kind: type[torch.optim.Optimizer], faster: float = 0.0, **options: Any) -> Tensor:
    """[3, 1001] what PyTorch's optimizer makes of each client alone.

    Args:
        faster: by how much the rate of each client is a larger multiple than that of the one before.
    """
    results = []
    for client, row in enumerate(start()):
        weights = row.clone().requires_grad_()
        optimizer = kind([weights], lr=RATES[0], **options)  # type: ignore[call-arg]  # the base class takes none
        for gradient, lr in zip(gradients(), RATES, strict=True):
            optimizer.param_groups[0]["lr"] = lr * (1 + faster * client)
            weights.grad = gradient[client].clone()
            optimizer.step()
        results.append(weights.detach())
    return torch.stack(results)


def ours(optimizer: SGD | Adam, faster: float = 0.0) -> Tensor:
    weights, clients = start(), torch.arange(CLIENTS)[:, None]
    for gradient, lr in zip(gradients(), RATES, strict=True):
        optimizer.advance()
        optimizer.step(weights, gradient.clone(), lr * (1 + faster * clients) if faster else lr)
    return weights


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_sgd(momentum: float, weight_decay: float) -> None:
    """Oracle: torch.optim.SGD over 20 steps with a change of the learning rate, bit for bit."""
    result = ours(SGD(torch.Size([CLIENTS, SIZE]), CPU, momentum, weight_decay))
    assert torch.equal(result, torchs(torch.optim.SGD, momentum=momentum, weight_decay=weight_decay))


@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_adam(weight_decay: float) -> None:
    """Oracle: torch.optim.Adam over 20 steps, bit for bit."""
    result = ours(Adam(torch.Size([CLIENTS, SIZE]), CPU, weight_decay))
    assert torch.equal(result, torchs(torch.optim.Adam, weight_decay=weight_decay))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw(weight_decay: float) -> None:
    """Oracle: torch.optim.AdamW over 20 steps, bit for bit; not Adam, unless nothing decays."""
    result = ours(AdamW(torch.Size([CLIENTS, SIZE]), CPU, weight_decay))
    assert torch.equal(result, torchs(torch.optim.AdamW, weight_decay=weight_decay))
    assert torch.equal(result, torchs(torch.optim.Adam, weight_decay=weight_decay)) == (weight_decay == 0)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw"])
def test_a_rate_for_each_client(kind: str) -> None:
    """Oracle: PyTorch's optimizer with the rate of the client, to rounding."""
    shape, options = torch.Size([CLIENTS, SIZE]), {"weight_decay": 0.01}
    momentum = {"momentum": 0.9} if kind == "momentum" else {}
    kinds = {"adam": (Adam, torch.optim.Adam), "adamw": (AdamW, torch.optim.AdamW)}
    mine, theirs = kinds.get(kind, (SGD, torch.optim.SGD))
    optimizer = SGD(shape, CPU, momentum.get("momentum", 0.0), 0.01) if mine is SGD else mine(shape, CPU, 0.01)  # type: ignore[call-arg]
    result, expected = ours(optimizer, faster=0.5), torchs(theirs, 0.5, **options, **momentum)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert (result[1:] - torchs(theirs, 0.0, **options, **momentum)[1:]).norm() > 0.1


def test_momentum_and_decay_matter() -> None:
    """That the tests above could fail: each option changes most of the result."""
    results = [ours(SGD(torch.Size([CLIENTS, SIZE]), CPU, m, d)) for m in (0.0, 0.9) for d in (0.0, 5e-4)]
    for one, other in pairwise(results):
        assert (one != other).double().mean() > 0.5


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(torch.Size([CLIENTS, SIZE]), CPU, 0.9, 1e-3),
        SGD(torch.Size([CLIENTS, SIZE]), CPU, 0.0, 0.0),
        Adam(torch.Size([CLIENTS, SIZE]), CPU, 1e-3),
    ],
)
def test_a_client_starts_afresh(optimizer: SGD | Adam) -> None:
    """Oracle: the same optimizer before it knew anything."""
    first = ours(optimizer)
    optimizer.reset()
    assert torch.equal(ours(optimizer), first)
