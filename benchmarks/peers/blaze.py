# mypy: disable-error-code="import-not-found,import-untyped,misc"
"""BlazeFL's FedAvg on threads, as its examples are written: python -m benchmarks.peers.blaze A 6 (workload, rounds).

Two threads of one process. Unlike in the examples, samples stay in memory, batches are cut from tensors, without a
DataLoader, and a client's network is a copy instead of one that is drawn. Cohorts are fedmpi's.
"""

import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from blazefl.contrib.fedavg import FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer
from torch import Generator, Tensor, nn

from benchmarks.peers.work import Work, arguments, load


class Batches:
    """The batches of a client, in another order in every epoch."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, generator: Generator) -> None:
        self.x, self.y, self.batch_size, self.generator = x, y, batch_size, generator

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.randperm(len(self.y), generator=self.generator).split(self.batch_size):
            yield self.x[batch], self.y[batch]


class Workload:
    """What BlazeFL asks for: a data set in parts, and a network."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def get_dataloader(self, type_: Any, cid: int, batch_size: int, generator: Generator) -> Batches:
        return Batches(*self.work.shards[cid], batch_size, generator)

    def select_model(self, model_name: str) -> nn.Module:
        return deepcopy(self.work.network)


class Server(FedAvgBaseServerHandler):
    """A server that chooses fedmpi's cohorts."""

    members: Iterator[int] = iter(())

    def sample_clients(self) -> list[int]:
        return [next(self.members) for _ in range(self.num_clients_per_round)]


def main(rung: str, rounds: int, channels_last: bool) -> None:
    torch.set_num_threads(1)
    work = load(rung, channels_last)
    of, workload = work.experiment, Workload(work)
    shared = {
        "model_selector": workload,
        "model_name": "",
        "dataset": workload,
        "device": "cpu",
        "num_clients": of.clients,
        "batch_size": of.local.batch_size,
        "seed": of.seed,
    }
    server = Server(**shared, global_round=rounds, sample_ratio=of.cohort / of.clients)
    server.members = work.clients()
    trainer = FedAvgThreadPoolClientTrainer(**shared, epochs=of.local.epochs, lr=of.local.lr, num_parallels=2)
    began = time.perf_counter()
    while not server.if_stop():
        cohort = server.sample_clients()
        trainer.local_process(server.downlink_package(), cohort)
        for package in trainer.uplink_package():
            server.load(package)
        seconds = time.perf_counter() - began
        work.report(seconds, work.samples[cohort].sum(), dict(server.model.named_parameters()))
        began = time.perf_counter()


if __name__ == "__main__":
    options = arguments()
    main(options.rung, options.rounds, options.channels_last)
