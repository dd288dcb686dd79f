"""The papers' experiments that need a GPU, in an order for a day with one H200: python -m studies.gpu_day.

Prints studies/gpu_day.list, which jobs/slurm_array.sbatch takes: all rows of jobs/papers/ in the order of their value
per expected minute. Nothing has been measured on a GPU yet. The expected minutes follow from these assumptions:

- A step takes the longer of two times: arithmetic at 40 TFLOP/s, counted by PyTorch, and 12 launches of kernels of 8
  microseconds per layer, forward, backward and update.
- Eight ranks share the GPU, so that the launches of eight clients overlap.
- FedMA trains as often per round as the network has layers with weights, and a personalised or contrastive method
  processes each batch as often as METHODS says.

The value of a row is 3 for the method that a paper proposes and for FedAvg, without which a table shows nothing, and
1 for the other baselines; half of it if the data set is not MNIST, Fashion-MNIST or CIFAR-10.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedmpi.algorithms.genfl import GenFL
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.settings import Settings
from fedmpi.models import Model

PAPERS = Path(__file__).parents[1] / "jobs" / "papers"
FLOPS, LAUNCH_SECONDS, LAUNCHES, RANKS = 40e12, 8e-6, 12, 8
#: Training samples, shape and classes of the data sets.
DATA = {
    "MNIST": (60_000, (1, 28, 28), 10),
    "FashionMNIST": (60_000, (1, 28, 28), 10),
    "CIFAR10": (50_000, (3, 32, 32), 10),
    "CIFAR100": (50_000, (3, 32, 32), 100),
    "TinyImageNet": (100_000, (3, 64, 64), 200),
}
AT_HAND = ("MNIST", "FashionMNIST", "CIFAR10")
PROPOSED = ("DistributionFusion", "FeatureFusion", "FedFTG", "GenFL", "FedAvg")
#: How many times a method processes a batch of local training, if it is not once.
METHODS = {"MOON": 2.0, "IFCA": 2.0, "FedGen": 1.5, "FeatureFusion": 1.3, "FedFTG": 1.5, "FedDF": 2.0}
FEATURE_FUSION = {
    "fedavg": "--algorithm FedAvg",
    **{name: f"--algorithm FeatureFusion --algorithm.operator {name}" for name in ("single", "multi", "conv")},
}


@dataclass(frozen=True)
class Row:
    """A row of a paper's table: the words of its line, its value and its expected minutes."""

    line: str
    value: float
    minutes: float


def rows() -> Iterator[Row]:
    """All rows whose data set has a known size and shape."""
    for line in lines():
        _, config, *options = line.split()
        experiment, _ = parse(["--config", str(PAPERS.parents[1] / config), *options, "--output", "x.h5"])
        data = type(experiment.dataset).__name__
        if data in DATA:
            algorithm = type(experiment.algorithm).__name__
            value = (3 if algorithm in PROPOSED else 1) * (1 if data in AT_HAND else 0.5)
            yield Row(line, value, minutes(experiment, algorithm, data))


def lines() -> Iterator[str]:
    """The lines of the papers' lists, and those of FeatureFusion, which has none."""
    for path in sorted(PAPERS.glob("*.list")):
        for line in path.read_text().splitlines():
            if line and not line.startswith("#"):
                yield line
    for part in "abcd":
        for name, options in FEATURE_FUSION.items():
            yield f"feature_fusion_{part}-{name} jobs/papers/feature_fusion_{part}.yaml {options}"


def minutes(experiment: Settings, algorithm: str, data: str) -> float:
    """Expected minutes of training."""
    samples, shape, classes = DATA[data]
    local = experiment.local
    flops, layers, with_weights = costs(experiment.model, shape, classes, local.batch_size)
    own = samples / experiment.clients
    steps = local.steps or math.ceil(own / local.batch_size) * local.epochs
    seconds = max(flops / FLOPS, layers * LAUNCHES * LAUNCH_SECONDS / RANKS)
    times = with_weights if algorithm == "FedMA" else METHODS.get(algorithm, 1.0)
    at_clients = experiment.rounds * (experiment.cohort or experiment.clients) * steps * times
    return (at_clients * seconds + on_one_rank(experiment) * max(seconds, layers * LAUNCHES * LAUNCH_SECONDS)) / 60


def on_one_rank(experiment: Settings) -> float:
    """Steps of GenFL's pre-training and score, in which the launches of several clients do not overlap."""
    algorithm = experiment.algorithm
    if not isinstance(algorithm, GenFL):
        return 0
    epochs = algorithm.cas_epochs + algorithm.pretrain_epochs * algorithm.pretrain
    return epochs * algorithm.synthetic / experiment.local.batch_size


def costs(model: Model, shape: tuple[int, ...], classes: int, batch: int) -> tuple[float, int, int]:
    """Operations of a step with a batch, the number of layers, and of those with weights."""
    key = f"{type(model).__name__} {sorted(vars(model).items())} {shape} {classes} {batch}"
    if key not in _known:
        with torch.device("meta"):
            backbone = model.build(shape, classes)
            with FlopCounterMode(display=False) as counter:
                backbone(torch.empty(batch, *shape)).sum().backward()
        leaves = [module for module in backbone.modules() if not list(module.children())]
        with_weights = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in leaves)
        _known[key] = counter.get_total_flops(), len(leaves), with_weights
    return _known[key]


_known: dict[str, tuple[float, int, int]] = {}


def main() -> int:
    print("# The rows of jobs/papers/ by value per minute: python -m studies.gpu_day says how minutes are estimated.")
    for row in sorted(rows(), key=lambda row: (-row.value / row.minutes, row.line)):
        print(f"# about {max(row.minutes, 1):.0f} minutes, value {row.value:g}\n{row.line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
