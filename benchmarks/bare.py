"""The limit: a workload by hand and nothing else.

No server rank, no results, no randomness that can be repeated, no exact sums, no checks; but every trick that is
known to pay: parameters as views of one vector, convolution weights in channels_last order within it, steps taken
inside the backward pass, small networks side by side by vmap.
"""

from __future__ import annotations

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi.data import make_split
from fedmpi.experiment.experiment import Experiment
from fedmpi.federation.placement import CostModel
from fedmpi.training.layout import Layout, aligned_rows

AT_ONCE = 125


class BareLoop:
    """Rounds of federated averaging with the settings of an experiment, on all ranks of a communicator.

    Args:
        experiment: data, model and local training.
        comm: the ranks, which all train.
        vectorised: train clients side by side.
        compiled: by compiled code, in full blocks.
    """

    def __init__(self, experiment: Experiment, comm: MPI.Intracomm, vectorised: bool, compiled: bool = False) -> None:
        arrays = experiment.dataset.read(print)
        self.comm, self.experiment, self.vectorised = comm, experiment, vectorised
        self.split = make_split(experiment.partition, arrays.train_y, arrays.test_y, 10, experiment.clients, 0)
        self.x = torch.from_numpy(np.ascontiguousarray(arrays.train_x.transpose(0, 2, 3, 1)))
        self.y = torch.from_numpy(arrays.train_y)
        self.size, self.lr = experiment.local.batch_size, experiment.local.lr
        self.network = experiment.model.build(arrays.train_x.shape[1:], 10).train()
        self.layout = Layout.of(self.network)
        self.start, self.total = torch.zeros(self.layout.size), torch.zeros(self.layout.size)
        self.rows = aligned_rows(AT_ONCE if vectorised else 1, self.layout.size, torch.device("cpu"))
        self.rng = np.random.default_rng(0)
        self.compiled = torch.compile(torch.vmap(torch.func.grad(self._loss))) if compiled else None
        tensors = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        for entry in self.layout.entries:
            entry.view(self.start).copy_(tensors[entry.name].detach())
            if not vectorised:
                tensors[entry.name].data = entry.view(self.rows[0])
        for parameter in self.network.parameters():
            parameter.register_post_accumulate_grad_hook(self._update)

    def round(self, cohort: NDArray[np.int64]) -> None:
        """Broadcast, train these clients, add up."""
        self.comm.Bcast(self.start.numpy(), root=0)
        self.total.zero_()
        samples = self.split.samples[cohort]
        mine = np.flatnonzero(CostModel(self.comm.size).place(-(-samples // self.size))[0] == self.comm.rank)
        mine = mine[np.argsort(-samples[mine])]
        (self._side_by_side if self.vectorised else self._one_by_one)(cohort[mine], samples[mine] / samples.sum())
        self.comm.Allreduce(MPI.IN_PLACE, self.total.numpy())
        self.start.copy_(self.total)

    def _update(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.data.add_(parameter.grad, alpha=-self.lr)
        parameter.grad = None

    def _one_by_one(self, clients: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        for client, weight in zip(clients, weights, strict=True):
            self.rows[0].copy_(self.start)
            order = torch.from_numpy(self.rng.permutation(self.split.train[client]))
            for first in range(0, len(order), self.size):
                index = order[first : first + self.size]
                batch = self.x.index_select(0, index).float().mul_(1 / 255).movedim(-1, 1)
                cross_entropy(self.network(batch), self.y.index_select(0, index)).backward()
            self.total.add_(self.rows[0], alpha=float(weight))

    def _losses(self, tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(self.network, tensors, (x,)), y, reduction="none")

    def _loss(self, tensors: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return (self._losses(tensors, x, y) * share).sum()

    def _side_by_side(self, clients: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        for begin in range(0, len(clients), AT_ONCE):
            shards = [self.rng.permutation(self.split.train[client]) for client in clients[begin : begin + AT_ONCE]]
            rows = self.rows[: len(shards)]
            rows.copy_(self.start)
            for first in range(0, max(map(len, shards)), self.size):
                parts = [shard[first : first + self.size] for shard in shards if len(shard) > first]
                active = len(parts)
                if self.compiled:
                    parts += [parts[-1]] * (AT_ONCE - active)
                index = torch.from_numpy(np.array([np.resize(part, self.size) for part in parts]))
                counts = torch.tensor([len(part) for part in parts])
                share = (torch.arange(self.size) < counts[:, None]) / counts[:, None]
                x, y = self.x.index_select(0, index.view(-1)).float().mul_(1 / 255).movedim(-1, 1), self.y[index]
                leaves = {e.name: e.view(self.rows[: len(parts)]).detach() for e in self.layout.entries}
                if self.compiled:
                    with torch.no_grad():
                        found = self.compiled(leaves, x.unflatten(0, index.shape), y, share)
                    gradients = [found[name][:active] for name in leaves]
                    tensors = [e.view(rows[:active]) for e in self.layout.entries]
                else:
                    tensors = [leaf.requires_grad_() for leaf in leaves.values()]
                    losses = torch.vmap(self._losses)(leaves, x.unflatten(0, index.shape), y)
                    gradients = list(torch.autograd.grad(losses, tensors, grad_outputs=share))
                with torch.no_grad():
                    torch._foreach_add_(tensors, gradients, alpha=-self.lr)
            self.total.add_(torch.from_numpy(weights[begin : begin + AT_ONCE]).float() @ rows)
