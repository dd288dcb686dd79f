"""The limit: one workload by hand and nothing else: mpirun -n 2 python -m benchmarks.bare A 5 (rung, rounds).

No server rank, no results, no randomness that can be repeated, no exact sums, no checks; but every trick that is
known to pay: parameters as views of one vector, convolution weights in channels_last order within it, steps taken
inside the backward pass, small networks side by side by vmap. Prints the seconds of each round.
"""

import os
import shlex
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from mpi4py import MPI
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.workloads import TRAINING
from fedmpi.command_line import parse
from fedmpi.data import make_split
from fedmpi.scheduling.placement import place
from fedmpi.training.layout import Layout, aligned_rows

AT_ONCE = 125


def bind(network: nn.Module, flat: torch.Tensor, layout: Layout, lr: float) -> None:
    """Parameters become views of `flat`, and each is updated as soon as its gradient is there."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    for entry in layout.entries:
        entry.view(flat).copy_(tensors[entry.name].detach())
        tensors[entry.name].data = entry.view(flat)

    def update(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.data.add_(parameter.grad, alpha=-lr)
        parameter.grad = None

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(update)


def main(name: str, rounds: int) -> None:
    comm = MPI.COMM_WORLD
    torch.set_num_threads(1)
    experiment, _ = parse([*shlex.split(TRAINING[name].options), "--seed", "0"], speaks=False)
    arrays = experiment.dataset.read(print)
    split = make_split(experiment.partition, arrays.train_y, arrays.test_y, 10, experiment.clients, 0)
    x = torch.from_numpy(np.ascontiguousarray(arrays.train_x.transpose(0, 2, 3, 1)))
    y, size, lr = torch.from_numpy(arrays.train_y), experiment.local.batch_size, experiment.local.lr
    network = experiment.model.build(arrays.train_x.shape[1:], 10).train()
    layout = Layout.of(network)
    start, total = torch.zeros(layout.size), torch.zeros(layout.size)
    small = name == "D"
    flat = aligned_rows(AT_ONCE if small else 1, layout.size, torch.device("cpu"))
    if not small:
        bind(network, flat[0], layout, lr)
        start.copy_(flat[0])
    rng = np.random.default_rng(0)

    def one_by_one(clients: np.ndarray, weights: np.ndarray) -> None:
        for client, weight in zip(clients, weights, strict=True):
            flat[0].copy_(start)
            order = torch.from_numpy(rng.permutation(split.train[client]))
            for first in range(0, len(order), size):
                index = order[first : first + size]
                batch = x.index_select(0, index).float().mul_(1 / 255).movedim(-1, 1)
                cross_entropy(network(batch), y.index_select(0, index)).backward()
            total.add_(flat[0], alpha=float(weight))

    def losses(tensors: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(torch.func.functional_call(network, tensors, (x,)), y, reduction="none")

    def side_by_side(clients: np.ndarray, weights: np.ndarray) -> None:
        for begin in range(0, len(clients), AT_ONCE):
            some = clients[begin : begin + AT_ONCE]
            shards = [rng.permutation(split.train[client]) for client in some]
            rows = flat[: len(some)]
            rows.copy_(start)
            for first in range(0, max(map(len, shards)), size):
                parts = [shard[first : first + size] for shard in shards if len(shard) > first]
                index = torch.from_numpy(np.array([np.resize(part, size) for part in parts]))
                counts = torch.tensor([len(part) for part in parts])
                share = (torch.arange(size) < counts[:, None]) / counts[:, None]
                leaves = {e.name: e.view(rows[: len(parts)]).detach().requires_grad_() for e in layout.entries}
                batch = x.index_select(0, index.view(-1)).float().mul_(1 / 255).movedim(-1, 1)
                batch = batch.unflatten(0, index.shape)
                found = torch.vmap(losses)(leaves, batch, y[index])
                gradients = torch.autograd.grad(found, list(leaves.values()), grad_outputs=share)
                with torch.no_grad():
                    torch._foreach_add_(list(leaves.values()), gradients, alpha=-lr)
            total.add_(torch.from_numpy(weights[begin : begin + AT_ONCE]).float() @ rows)

    for round in range(rounds):
        comm.Barrier()
        began = time.perf_counter()
        comm.Bcast(start.numpy(), root=0)
        total.zero_()
        cohort = np.random.default_rng(round).choice(experiment.clients, experiment.cohort, replace=False)
        samples = split.samples[cohort]
        mine = np.flatnonzero(place(-(-samples // size), comm.size) == comm.rank)
        mine = mine[np.argsort(-samples[mine])]
        (side_by_side if small else one_by_one)(cohort[mine], samples[mine] / samples.sum())
        comm.Allreduce(MPI.IN_PLACE, total.numpy())
        start.copy_(total)
        if comm.rank == 0:
            print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
