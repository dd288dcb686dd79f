"""A workload of the ladder as a plain PyTorch program would hold it: tensors of each client, and the same network."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import count

import torch
from torch import Tensor

from benchmarks.workloads import TRAINING
from fedmpi import randomness
from fedmpi.data import make_split
from fedmpi.experiment.command_line import parse
from fedmpi.policies import Pool


class Work:
    """The samples, the network and the settings of one workload, the same bits as in fedmpi.

    The images are converted to float32 beforehand, which spares the peers work that fedmpi does for every batch.

    Args:
        rung: name of the workload.
        channels_last: keep images and weights of convolutions in this memory order.

    Attributes:
        experiment: the settings.
        network: with fedmpi's initial weights.
        samples: [clients] how many each has.
        shards: of each client, images [n, C, H, W] and labels [n].
    """

    def __init__(self, rung: str, channels_last: bool) -> None:
        self.experiment, _ = parse(shlex.split(TRAINING[rung].options), speaks=False)
        dataset, seed = self.experiment.dataset, self.experiment.seed
        arrays = dataset.read(print)
        partition, clients = self.experiment.partition, self.experiment.clients
        split = make_split(partition, arrays.train_y, arrays.test_y, dataset.classes, clients, seed)
        order = torch.channels_last if channels_last else torch.contiguous_format
        torch.manual_seed(randomness.key(seed, "initial weights"))
        network = self.experiment.model.build(arrays.train_x.shape[1:], dataset.classes)
        self.network = network.to(memory_format=order).train()
        self.start = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        self.samples = split.samples
        self.pool = Pool(split.samples, lambda: split.label_counts)
        x, y = torch.from_numpy(arrays.train_x), torch.from_numpy(arrays.train_y)
        # `to`, for `contiguous` would leave images of one channel as they are.
        self.shards = [((x[part].float() / 255).to(memory_format=order), y[part]) for part in split.train]

    def clients(self) -> Iterator[int]:
        """The members of fedmpi's cohorts, one cohort after the other, without end."""
        of = self.experiment
        for round in count(1):
            yield from of.sampler.cohort(round, of.cohort, self.pool, of.weighting, of.seed).clients.tolist()

    def report(self, seconds: float, samples: float, parameters: Mapping[str, Tensor]) -> None:
        """Print a line: what a round took, the clients of mean size it trained, how far the model is from the start.

        The distance (L2) shows that the work was done; other cohorts and another order of samples change it somewhat.
        """
        moved = math.hypot(*(float((parameters[name].detach() - old).norm()) for name, old in self.start.items()))
        print("round", seconds, samples / self.samples.mean(), moved, file=sys.__stdout__, flush=True)


load = cache(Work)


def arguments() -> argparse.Namespace:
    """What every program is started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rung")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--channels_last", action="store_true")
    return parser.parse_args()
