"""Methods with several models on real Fashion-MNIST: python -m studies.clusters --data DATA.

LeNet with batch normalisation, 40 clients, 10 a round, ten steps of batches of 50 at a learning rate of 0.05.

    groups   samples are spread evenly, and each of four groups of clients sees its images turned by another angle
    shards   two of 80 shards sorted by label for each client: the rows of the distribution-fusion paper's table that
             there are, where FedCluster is FL+HC and three models stand for as many as the paper used, which it does
             not say; the cyclic FedCluster besides

Each run is a process of its own on one rank, as many at a time as there are cores; those whose file is there and
finished with as many rounds are not repeated. Prints a table of each protocol at the end: it is
`python -m fedmpi.results table`.

    python -m studies.clusters --data DATA --cost

prints instead what a clustering of 1,000 clients takes, given the inner products of their changes, and what a round's
choice between models takes beside its training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import sys
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
from fedmpi.results.__main__ import main as show
from studies.runs import train_all

if TYPE_CHECKING:
    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort

PROTOCOL = (
    "--dataset FashionMNIST --model LeNet --clients 40 --cohort 10 --local.steps 10 --local.batch_size 50"
    " --local.lr 0.05 --evaluate_every 4"
)
PARTITIONS = {"groups": "--partition Rotated", "shards": "--partition Shards"}
METHODS = {
    "groups": {
        "fedavg": "",
        "fedcluster": "--algorithm FedCluster --algorithm.clusters 4",
        "fesem": "--algorithm FeSEM --algorithm.models 4",
        "ifca": "--algorithm IFCA --algorithm.models 4 --algorithm.balance 0.1",
        "flhc": "--algorithm FLHC --algorithm.models 4",
        "fedgroup": "--algorithm FedGroup --algorithm.models 4",
        "fedgroup_madc": "--algorithm FedGroup --algorithm.models 4 --algorithm.measure madc",
        "fedgrouprox": "--algorithm FedGrouProx --algorithm.models 4",
        # Both criteria off and told the size of a group, as the others are told how many there are.
        "cfl": "--sampler All --algorithm CFL --algorithm.mean_below 1e9 --algorithm.largest_above 0"
        " --algorithm.warmup 1 --algorithm.min_size 10",
        # The method itself: by both criteria, chosen on a run with another seed, and told nothing of the groups.
        "cfl_criteria": "--sampler All --algorithm CFL --algorithm.mean_below 0.3 --algorithm.largest_above 0.45"
        " --algorithm.warmup 1",
    },
    "shards": {
        "fedavg": "",
        "fedprox": "--algorithm FedProx",
        "fedgn": "--model.norm group",
        "fedma": "--algorithm FedMA",
        "fesem": "--algorithm FeSEM",
        "ifca": "--algorithm IFCA",
        "flhc": "--algorithm FLHC",
        "fedcluster": "--algorithm FedCluster --algorithm.clusters 4",
        "fedgroup": "--algorithm FedGroup",
    },
}
CLIENTS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.clusters")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data set (default: data)")
    parser.add_argument("--folder", type=Path, default=Path("runs/clusters"), help="(default: runs/clusters)")
    parser.add_argument("--rounds", type=int, default=8, help="(default: 8)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--cost", action="store_true", help="what clustering takes, and choosing between models")
    chosen = parser.parse_args()
    data = f"--dataset.root {shlex.quote(str(chosen.data))}"
    if chosen.cost:
        print_cost_of_clustering()
        print_cost_of_choice(data)
        return
    experiments = {
        chosen.folder
        / f"{protocol}-{method}-{seed}.h5": f"{PROTOCOL} {data} {PARTITIONS[protocol]} --seed {seed} {options}"
        for seed, protocol in product(range(chosen.seeds), PARTITIONS)
        for method, options in METHODS[protocol].items()
    }
    statuses = [int(not train_all(experiments, chosen.rounds))]
    for protocol, methods in METHODS.items():
        paths = [chosen.folder / f"{protocol}-{m}-{seed}.h5" for m in methods for seed in range(chosen.seeds)]
        print(f"\n{protocol}\n")
        statuses.append(show(["table", *map(str, paths), "--costs"]))
    sys.exit(max(statuses))


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
            options += f" --algorithm studies.clusters.Timed --algorithm.models {models} --evaluate_every 0"
            options += f" --local.epochs 1 --local.batch_size 50 --output {path}"
            experiment, config = parse(shlex.split(options))
            with contextlib.redirect_stdout(io.StringIO()):
                experiment.run(World(), config)
            rounds = results.open(path).rounds
        scanning, training = (float(rounds[name][-1]) for name in ("scanning", "training"))
        print(f"{model:20}{models} models: choice {scanning:.3f} s, training {training:.3f} s")


if __name__ == "__main__":
    main()
