"""The networks train many clients at once, and run in the memory format that GPUs like best."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedmpi.models import VGG11, CifarCNN, ExquisiteNetV1, LeNet, LeNet5, McMahanCNN, MobileNetV2, Model, ResNet18

Tensors = dict[str, Tensor]


def gradient(network: nn.Module, parameters: Tensors, buffers: Tensors, x: Tensor, y: Tensor) -> Tensors:
    def loss(parameters: Tensors) -> Tensor:
        # Batch norm writes into its buffers, which grad() allows for tensors made within it only.
        state = parameters | {name: buffer.clone() for name, buffer in buffers.items()}
        return nn.functional.cross_entropy(functional_call(network, state, (x,)), y)

    gradients: Tensors = grad(loss)(parameters)
    return gradients


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LeNet5(), (1, 28, 28)),
        (McMahanCNN(), (1, 8, 8)),
        (CifarCNN(dropout=0.0), (3, 8, 8)),
        (LeNet(norm="batch"), (1, 8, 8)),
        (LeNet(norm="group"), (1, 8, 8)),
        (ResNet18(norm="group", stem="imagenet"), (1, 8, 8)),
        (VGG11(hidden=()), (1, 32, 32)),
    ],
)
def test_gradients_of_three_clients_at_once_equal_one_by_one(model: Model, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    clients = [model.build(shape, 10) for _ in range(3)]
    x, y = torch.randn(3, 4, *shape), torch.randint(10, (3, 4))

    def stacked(rows: list[Tensors]) -> Tensors:
        return {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}

    parameters = stacked([dict(client.named_parameters()) for client in clients])
    buffers = stacked([dict(client.named_buffers()) for client in clients])
    at_once = vmap(gradient, in_dims=(None, 0, 0, 0, 0))(clients[0], parameters, buffers, x, y)
    for k, client in enumerate(clients):
        nn.functional.cross_entropy(client(x[k]), y[k]).backward()
        for name, parameter in client.named_parameters():
            torch.testing.assert_close(at_once[name][k], parameter.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [LeNet(), CifarCNN(), ResNet18(), MobileNetV2(), ExquisiteNetV1()])
def test_channels_last_gives_the_same(model: Model) -> None:
    network = model.build((3, 8, 8), 10).eval()
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 8)
    y = last(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, network(x), rtol=1e-5, atol=1e-5)
