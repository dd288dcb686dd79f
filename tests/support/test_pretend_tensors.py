"""The pretend GPU has a GPU's rules, and counts what costs time there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.pretend_gpu import Counts, Device, Pretend, pretend_gpu

HOST = torch.arange(6.0).view(2, 3)


@pytest.fixture
def gpu() -> Iterator[Device]:
    torch.ones(1, requires_grad=True).backward()  # as in a process that has trained on the CPU before
    with pretend_gpu() as gpu:
        yield gpu


@pytest.fixture
def x(gpu: Device) -> Tensor:
    return HOST.to("cuda")


def test_where_tensors_are(x: Tensor) -> None:
    made = [x, x + 1, x[0], torch.zeros(2, device="cuda"), x.new_zeros(3), torch.tensor([1, 2], device=x.device)]
    made += [torch.zeros_like(HOST, device="cuda"), nn.functional.one_hot(x.long()), x.to("cuda"), x.T.contiguous()]
    for one in made:
        assert isinstance(one, Pretend)
        assert one.device == torch.device("cuda", 0)
        assert one.is_cuda
    assert x.to("cuda") is x
    for one in (x.cpu(), x.to("cpu"), torch.zeros(2), HOST):
        assert type(one) is Tensor
    assert x.cpu().data_ptr() != x.data_ptr(), "a copy"


MIXES: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda x: x + HOST,
    "in place": lambda x: HOST.add_(x),
    "a scalar of the device": lambda x: HOST * x.sum(),
    "product": lambda x: x @ HOST.T,
    "row": lambda x: HOST[x[0].long()],
    "rows": lambda x: x.index_select(0, torch.tensor([0])),
    "stack": lambda x: torch.stack([x.sum(), torch.tensor(0.0)]),
    "meta": lambda x: x + torch.empty(2, 3, device="meta"),
    "foreach": lambda x: torch._foreach_add_([x], [HOST]),
    "choice": lambda x: torch.where(HOST > 1, x, 0),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_devices_do_not_mix(x: Tensor, mix: Callable[[Tensor], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"at least two devices, cuda:0 and (cpu|meta)!"):
        mix(x)


def test_no_way_to_numpy(x: Tensor) -> None:
    for convert in (lambda x: x.numpy(), np.asarray, lambda x: x.detach().numpy()):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            convert(x)
    np.testing.assert_array_equal(x.cpu().numpy(), HOST.numpy())


NOTHING = Counts()
COSTS: dict[str, tuple[Callable[[Tensor], Any], Counts]] = {
    "kernels": (lambda x: (x + 1).mul_(2).sum(), NOTHING),
    "a number of the host": (lambda x: x * torch.tensor(2.0), NOTHING),
    "made there": (lambda x: torch.arange(3, device="cuda") + torch.full((), 3, device="cuda"), NOTHING),
    "upload": (lambda x: HOST.to("cuda"), Counts(uploads=1, uploaded=24, synchronisations=1)),
    "upload into": (lambda x: x.copy_(HOST), Counts(uploads=1, uploaded=24, synchronisations=1)),
    "upload of a list": (
        lambda x: torch.tensor([1, 2], device="cuda"),
        Counts(uploads=1, uploaded=16, synchronisations=1),
    ),
    "upload of an index": (lambda x: x[:, torch.tensor([0, 2])], Counts(uploads=1, uploaded=16, synchronisations=1)),
    "pinned upload": (lambda x: HOST.pin_memory().to("cuda", non_blocking=True), Counts(uploads=1, uploaded=24)),
    "pinned upload that waits": (
        lambda x: HOST.pin_memory().to("cuda"),
        Counts(uploads=1, uploaded=24, synchronisations=1),
    ),
    "download": (lambda x: x.cpu(), Counts(downloads=1, downloaded=24, synchronisations=1)),
    "download into": (lambda x: torch.empty(2, 3).copy_(x), Counts(downloads=1, downloaded=24, synchronisations=1)),
    "download in order": (
        lambda x: torch.empty(2, 3, pin_memory=True).copy_(x, non_blocking=True),
        Counts(downloads=1, downloaded=24),
    ),
    "download of a list": (lambda x: x.tolist(), Counts(downloads=1, downloaded=24, synchronisations=1)),
    "item": (lambda x: x.sum().item(), Counts(synchronisations=1)),
    "float": (lambda x: float(x.sum()), Counts(synchronisations=1)),
    "if": (lambda x: 1 if x.isfinite().all() else 0, Counts(synchronisations=1)),
    "nonzero": (lambda x: x.nonzero(), Counts(synchronisations=1)),
    "mask": (lambda x: x[x > 1], Counts(synchronisations=1)),
    "unique": (lambda x: x.unique(), Counts(synchronisations=1)),
}


@pytest.mark.parametrize(("act", "cost"), COSTS.values(), ids=COSTS)
def test_what_is_counted(gpu: Device, x: Tensor, act: Callable[[Tensor], Any], cost: Counts) -> None:
    for mode in (torch.no_grad(), torch.inference_mode()):
        before = gpu.so_far()
        with mode:
            act(x)
        spent = gpu.counts - before
        assert 0 < spent.operations < 10
        assert spent - Counts(operations=spent.operations) == cost


def test_networks_learn_alike(gpu: Device) -> None:
    """Oracle: the CPU; parameters that layers share stay shared, and views of a vector stay views."""

    def train(device: str) -> tuple[nn.Sequential, Tensor]:
        torch.manual_seed(0)
        one = nn.Linear(3, 3)
        network = nn.Sequential(one, nn.BatchNorm1d(3), one, nn.Conv1d(2, 2, 1)).to(device)
        vector = torch.empty(9, device=device)
        vector.view(3, 3).copy_(one.weight.detach())
        one.weight.data = vector.view(3, 3)
        for _ in range(3):
            loss = network(HOST.to(device)).square().sum()
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                torch._foreach_add_(list(network.parameters()), gradients, alpha=-0.1)
        return network, vector

    (there, vector), (here, _) = train("cuda"), train("cpu")
    assert isinstance(there[0].weight, nn.Parameter)
    assert there[0].weight is there[2].weight
    assert torch.equal(vector.view(3, 3), there[0].weight)
    for name, tensor in here.state_dict().items():
        assert torch.equal(there.state_dict()[name].cpu(), tensor), name


def test_side_by_side(gpu: Device) -> None:
    """Oracle: the CPU; batch normalisation, numbers that are made within vmap, and its gradient."""

    def gradients(device: str) -> Tensor:
        x: Any = torch.linspace(-1, 1, 24, device=device).view(2, 4, 3).requires_grad_()

        def loss(x: Any) -> Any:
            scale = torch.arange(3, device=x.device) + x.new_ones(3)
            normal = nn.functional.batch_norm(x, None, None, scale, training=True)
            return (normal * nn.functional.one_hot(torch.arange(3, device=x.device), 3)[0]).square().sum()

        losses: Any = torch.vmap(loss)(x)
        losses.sum().backward()
        return x.grad.cpu()

    assert torch.equal(gradients("cuda"), gradients("cpu"))


def test_nothing_is_left() -> None:
    was = torch.cuda.is_available(), torch.cuda.device_count()
    with pretend_gpu():
        assert (torch.cuda.is_available(), torch.cuda.device_count()) == (True, 1)
        there = torch.ones(2, device="cuda")
    assert (torch.cuda.is_available(), torch.cuda.device_count()) == was
    assert type(torch.ones(2)) is Tensor
    with pytest.raises(RuntimeError, match="outside of `pretend_gpu`"):
        there + 1


def test_sequences(x: Tensor) -> None:
    """Their lengths are on the host."""
    packed = nn.utils.rnn.pack_padded_sequence(x.T[..., None], torch.tensor([3, 1]))
    assert isinstance(packed.data, Pretend)
    assert packed.batch_sizes.tolist() == [2, 1, 1]
    output, lengths = nn.utils.rnn.pad_packed_sequence(packed)
    assert output[..., 0].T.tolist() == [[0, 1, 2], [3, 0, 0]]
    assert lengths.tolist() == [3, 1]
