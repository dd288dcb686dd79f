"""Methods with several models on Fashion-MNIST.

LeNet with batch normalisation, 40 clients, 10 per round, 8 rounds of ten steps in batches of 50 at a learning rate of
0.05.

    groups   samples are spread evenly, and each of four groups of clients sees its images turned by another angle
    shards   two of 80 shards sorted by label per client: the methods of the distribution-fusion paper's table, with
             three models, for the paper does not say how many it used, and the cyclic FedCluster

A cell is PARTITION/METHOD/SEED, such as groups/ifca/0. `python -m benchmarks.clustering` measures what clustering
costs.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

from studies.study import Files, Study

PROTOCOL = (
    "--rounds 8 --dataset FashionMNIST --model LeNet --clients 40 --cohort 10 --local.steps 10 --local.batch_size 50"
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
        "cfl": "--sampler All --cohort 40 --algorithm CFL --algorithm.mean_below 1e9 --algorithm.largest_above 0"
        " --algorithm.warmup 1 --algorithm.min_size 10",
        # The method itself: by both criteria, chosen on a run with another seed, and told nothing of the groups.
        "cfl_criteria": "--sampler All --cohort 40 --algorithm CFL --algorithm.mean_below 0.3"
        " --algorithm.largest_above 0.45 --algorithm.warmup 1",
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
SEEDS = range(3)


def show(partition: str, files: Files) -> None:
    """Print the accuracy of each method."""
    files.show_results("table", *(f"{partition}/{method}/*" for method in METHODS[partition]), options="--costs")


STUDY = Study(
    module="studies.clusters",
    cells={
        f"{partition}/{method}/{seed}": f"{PROTOCOL} {PARTITIONS[partition]} --seed {seed} {options}"
        for seed, partition in product(SEEDS, PARTITIONS)
        for method, options in METHODS[partition].items()
    },
    tables={partition: partial(show, partition) for partition in PARTITIONS},
    root="--dataset.root",
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
