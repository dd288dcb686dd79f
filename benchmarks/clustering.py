"""What clustering costs: python -m benchmarks.clustering --data DATA.

Prints the seconds of each way to cluster 1,000 clients, given the inner products of their changes, and the seconds of
IFCA's choice between models compared with its training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmpi import results
from fedmpi.algorithms.ifca import IFCA
from fedmpi.algorithms.toolbox import clustering
from fedmpi.experiment.command_line import parse
from fedmpi.federation.evaluation import adjusted_rand_index

if TYPE_CHECKING:
    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort

CLIENTS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clustering")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data set (default: data)")
    data = parser.parse_args().data
    print_cost_of_clustering()
    print_cost_of_choice(f"--dataset.root {shlex.quote(str(data))}")


def print_cost_of_clustering() -> None:
    """Seconds of each way to cluster 1,000 clients of 10 groups into 10 clusters, and how right it is."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(CLIENTS) % 10
    changes = rng.standard_normal((10, 500))[groups] + rng.standard_normal((CLIENTS, 500))
    products = changes @ changes.T
    ways: dict[str, Callable[[], np.ndarray]] = {
        "FeSEM, k-means": lambda: clustering.k_means(clustering.points(products), 10, rng),
        "FLHC, ward": lambda: clustering.hierarchical(clustering.distances(products), "ward", 10),
        "FLHC, average cosine": lambda: clustering.hierarchical(1 - clustering.cosines(products), "average", 10),
        "FedGroup, edc": lambda: clustering.k_means(clustering.decomposed_cosines(products, 10), 10, rng),
        "FedGroup, madc": lambda: clustering.hierarchical(
            clustering.mean_differences(clustering.cosines(products)), "complete", 10
        ),
    }
    print(f"{CLIENTS} clients from their inner products")
    for way in ways.values():  # for imports
        way()
    for name, way in ways.items():
        began = time.perf_counter()
        found = way()
        took = time.perf_counter() - began
        print(f"{name:22}{took:8.3f} s, ARI {adjusted_rand_index(found, groups):.2f}")


class Timed(IFCA):
    """IFCA that logs the seconds of its choices and of its training."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        centers = fed.broadcast(self.centers)
        scanning = training = 0.0
        for block in fed.my_clients(cohort):
            began = time.perf_counter()
            choice = fed.at_clients.losses(block, centers).argmin(1)
            chosen = time.perf_counter()
            fed.train(block, centers[choice], self)
            scanning, training = scanning + chosen - began, training + time.perf_counter() - chosen
        fed.log(scanning=scanning, training=training)


def print_cost_of_choice(data: str) -> None:
    """Seconds of choosing and of training, of the second of two rounds with an epoch each."""
    from fedmpi.mpi.world import World

    print("\nIFCA, 10 clients of 600 samples, one epoch in batches of 50")
    for model, models in product(("LeNet", "MLP", "LogisticRegression"), (2, 4)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "run.h5")
            options = (
                f"--dataset FashionMNIST {data} --partition IID --clients 100 --cohort 10 --rounds 2 --model {model}"
            )
            options += f" --algorithm benchmarks.clustering.Timed --algorithm.models {models} --evaluate_every 0"
            options += f" --local.epochs 1 --local.batch_size 50 --output {path}"
            experiment, config = parse(shlex.split(options))
            with contextlib.redirect_stdout(io.StringIO()):
                experiment.run(World(), config)
            rounds = results.open(path).rounds
        scanning, training = (float(rounds[name][-1]) for name in ("scanning", "training"))
        print(f"{model:20}{models} models: choice {scanning:.3f} s, training {training:.3f} s")


if __name__ == "__main__":
    main()
