"""What is measured: made-up data of published sizes, and networks that only benchmarks need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi import models
from fedmpi.data import Arrays, Dataset, Partition


class MadeUp(Dataset):
    """Random images; what they show makes no difference to the time.

    Args:
        samples: how many.
        channels: of each image.
        side: height and width.
    """

    classes = 10

    def __init__(self, samples: int = 60_000, channels: int = 1, side: int = 28) -> None:
        self.samples = samples
        self.channels = channels
        self.side = side

    def read(self, progress: Callable[[str], None]) -> Arrays:
        rng = np.random.default_rng(0)
        shape = (self.samples, self.channels, self.side, self.side)
        x = rng.integers(0, 256, shape, dtype=np.uint8)
        y = rng.integers(0, self.classes, self.samples)
        return Arrays(x, y, x[:1000], y[:1000])


class Ragged(Partition):
    """Sizes drawn uniformly.

    Args:
        smallest: samples of a client.
        largest: likewise.
    """

    def __init__(self, smallest: int = 2, largest: int = 20) -> None:
        self.smallest = smallest
        self.largest = largest

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        sizes = rng.integers(self.smallest, self.largest + 1, clients)
        return np.split(rng.permutation(len(labels))[: sizes.sum()], np.cumsum(sizes)[:-1])


class PflCNN(models.Model):
    """The simple CNN of pfl-research's CIFAR-10 benchmark: 1,626,442 parameters on 32x32 images."""

    def build(self, shape: tuple[int, ...], classes: int) -> models.Backbone:
        from torch import nn

        channels, height, width = self.image(shape, at_least=8)
        inner = 64 * ((height - 4) // 2) * ((width - 4) // 2)
        extractor = nn.Sequential(
            nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)
        )
        classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(inner, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes)
        )
        return models.Backbone(extractor, classifier)


@dataclass(frozen=True)
class Workload:
    """One rung of the ladder.

    Attributes:
        title: what it is.
        options: of fedmpi.
        pairs: how many are measured; one is this many rounds of fedmpi and as many of the bare loop:
        rounds_a_pair: enough for half a second at least.
        vectorised: whether the bare loop trains clients side by side, which only pays for small networks.
        compiled: whether it does so by compiled code.
    """

    title: str
    options: str
    pairs: int = 12
    rounds_a_pair: int = 1
    vectorised: bool = False
    compiled: bool = False

    @property
    def cohort(self) -> int:
        """Clients per round."""
        words = self.options.split()
        return int(words[words.index("--cohort") + 1])


TRAINING = {
    "A": Workload(
        "McMahan CNN, 1.66 M",
        "--dataset benchmarks.workloads.MadeUp --model McMahanCNN --partition IID"
        " --clients 1000 --cohort 50 --local.epochs 1 --local.batch_size 10 --local.lr 0.01",
    ),
    "B": Workload(
        "pfl's CIFAR-10 CNN, 1.63 M",
        "--dataset benchmarks.workloads.MadeUp --dataset.samples 50000 --dataset.channels 3 --dataset.side 32"
        " --model benchmarks.workloads.PflCNN --partition IID"
        " --clients 1000 --cohort 50 --local.epochs 1 --local.batch_size 10 --local.lr 0.01",
    ),
    "C": Workload(
        "ResNet18, BatchNorm, 11.2 M",
        "--dataset benchmarks.workloads.MadeUp --dataset.samples 1000 --dataset.channels 3 --dataset.side 32"
        " --model ResNet18 --partition IID"
        " --clients 10 --cohort 10 --local.epochs 1 --local.batch_size 50 --local.lr 0.01",
        pairs=4,
    ),
    "D": Workload(
        "MLP 64-32-10, 500 of 1000",
        "--dataset benchmarks.workloads.MadeUp --dataset.samples 20000 --dataset.side 8"
        " --model MLP --model.hidden [32] --partition benchmarks.workloads.Ragged"
        " --clients 1000 --cohort 500 --local.epochs 1 --local.batch_size 10 --local.lr 0.1",
        pairs=20,
        rounds_a_pair=50,
        vectorised=True,
    ),
    "D compiled": Workload(
        "as D, compiled",
        "--dataset benchmarks.workloads.MadeUp --dataset.samples 20000 --dataset.side 8"
        " --model MLP --model.hidden [32] --partition benchmarks.workloads.Ragged"
        " --clients 1000 --cohort 500 --local.epochs 1 --local.batch_size 10 --local.lr 0.1 --local.compile on",
        pairs=20,
        rounds_a_pair=50,
        vectorised=True,
        compiled=True,
    ),
    "E": Workload(
        "as A, log-normal sizes",
        "--dataset benchmarks.workloads.MadeUp --model McMahanCNN --partition LogNormal --partition.sigma 1.0"
        " --partition.min_samples 10"
        " --clients 1000 --cohort 50 --local.epochs 1 --local.batch_size 10 --local.lr 0.01",
    ),
}

# For `python -m benchmarks.scaling`; `pairs` are rounds, and repeats of each timing.
SCALING = {
    "MLP": Workload(
        "MLP 64-32-10, 2.4 k, side by side",
        "--dataset benchmarks.workloads.MadeUp --dataset.samples 20000 --dataset.side 8"
        " --model MLP --model.hidden [32] --partition benchmarks.workloads.Ragged"
        " --clients 1000 --cohort 320 --local.epochs 1 --local.batch_size 10 --local.lr 0.1",
        pairs=25,
    ),
    "wide MLP": Workload(
        "MLP 784-2084-10, 1.66 M, one step per client",
        "--dataset benchmarks.workloads.MadeUp --dataset.samples 10000 --model MLP --model.hidden [2084]"
        " --partition IID --clients 1000 --cohort 32 --local.epochs 1 --local.batch_size 10 --local.lr 0.01",
        pairs=12,
    ),
    "CNN": Workload(
        "McMahan CNN, 1.66 M, log-normal sizes",
        "--dataset benchmarks.workloads.MadeUp --model McMahanCNN --partition LogNormal --partition.sigma 1.0"
        " --partition.min_samples 10"
        " --clients 1000 --cohort 16 --local.epochs 1 --local.batch_size 10 --local.lr 0.01",
        pairs=5,
    ),
    "ResNet18": Workload(
        "ResNet18, 11.2 M",
        "--dataset benchmarks.workloads.MadeUp --dataset.samples 1000 --dataset.channels 3 --dataset.side 32"
        " --model ResNet18 --partition benchmarks.workloads.Ragged --partition.smallest 5 --partition.largest 40"
        " --clients 20 --cohort 4 --local.epochs 1 --local.batch_size 10 --local.lr 0.01",
        pairs=2,
    ),
}
# Those whose rounds are also measured.
CHECKED = ("MLP", "wide MLP", "CNN")
