# mypy: disable-error-code="import-not-found,import-untyped,misc"
"""fluke, as its documentation is written: python -m benchmarks.peers.fluke A 6 (workload, rounds).

One process that trains one client after another, with one thread: with two it was slower on a busy machine.
Evaluation and loggers are left out. Clients keep nothing between rounds (`persistency`), which saves memory. Cohorts
are fedmpi's.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.client import Client
from fluke.data import FastDataLoader
from fluke.server import Server
from fluke.utils import FederationObserver

from benchmarks.peers.work import Work, arguments, load


class Shards:
    """The samples of the clients, in the place of fluke's data splitter."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def assign(self, n_clients: int, batch_size: int) -> Any:
        """Loaders of the clients' training samples; nobody has test samples."""
        classes = self.work.experiment.dataset.classes
        loaders = [
            # `skip_singleton` would pass over a last batch of one sample.
            FastDataLoader(*shard, num_labels=classes, batch_size=batch_size, shuffle=True, skip_singleton=False)
            for shard in self.work.shards
        ]
        return (loaders, [None] * n_clients), None


class Clock(FederationObserver):
    """Reports the rounds."""

    def __init__(self, work: Work, method: "Method") -> None:
        self.work, self.method = work, method
        self.began = time.perf_counter()

    def end_round(self, round: int) -> None:
        seconds = time.perf_counter() - self.began
        server = self.method.server
        self.work.report(seconds, server.samples, dict(server.model.named_parameters()))
        self.began = time.perf_counter()


class Cohorts(Server):
    """A server that chooses fedmpi's cohorts."""

    members: Iterator[int] = iter(())
    samples = 0

    def get_eligible_clients(self, eligible_perc: float) -> Sequence[Client]:
        chosen = [self.clients[next(self.members)] for _ in range(round(self.n_clients * eligible_perc))]
        self.samples = sum(client.n_examples for client in chosen)
        return chosen


class Method(FedAVG):
    def get_server_class(self) -> type[Server]:
        return Cohorts


def main(rung: str, rounds: int, channels_last: bool) -> None:
    torch.set_num_threads(1)
    work = load(rung, channels_last)
    local = work.experiment.local
    FlukeENV().set_eval_cfg(server=False)
    method = Method(
        n_clients=work.experiment.clients,
        data_splitter=Shards(work),
        hyper_params=DDict(
            model=work.network,
            client=DDict(
                batch_size=local.batch_size,
                local_epochs=local.epochs,
                loss="CrossEntropyLoss",
                optimizer=DDict(name="SGD", lr=local.lr),
                scheduler=DDict(name="StepLR", step_size=1, gamma=1),
                persistency=False,
            ),
            server=DDict(weighted=True),
        ),
    )
    method.server.members = work.clients()
    method.set_callbacks([Clock(work, method)])
    method.run(rounds, work.experiment.cohort / work.experiment.clients)


if __name__ == "__main__":
    options = arguments()
    main(options.rung, options.rounds, options.channels_last)
