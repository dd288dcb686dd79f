"""Variants of FedAvg and MOON, FedGen, FedMA, LocalOnly and Centralized on Fashion-MNIST.

LeNet with batch normalisation, 100 clients split by Dirichlet(0.1) or (0.5), 10 per round, 15 rounds of one local
epoch in batches of 50 at a learning rate of 0.05. Everything else is a method's default, without any tuning; METHODS
below has the exceptions.

A cell is ALPHA/METHOD/SEED, such as 0.1/fedprox/0.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

from studies.study import Files, Study

PROTOCOL = (
    "--rounds 15 --dataset FashionMNIST --partition Dirichlet --model LeNet --clients 100 --cohort 10"
    " --local.epochs 1 --local.batch_size 50 --local.lr 0.05 --evaluate_every 3"
)
METHODS = {
    "fedavg": "",
    "fedgn": "--model.norm group",
    "fedgen": "--algorithm FedGen",
    "moon_projected": "--algorithm MOON --model Projected --model.over LeNet",
    "fedavg_4": "--local.epochs 4",  # as much training as FedMA's, of four phases
    "fedma": "--algorithm FedMA",
    "fedma_cheap": "--algorithm FedMA --algorithm.retrain false",
    "local": "--algorithm LocalOnly",
    "centralized": "--algorithm Centralized",
}
ALPHAS = ("0.1", "0.5")
SEEDS = range(3)


def show(alpha: str, files: Files) -> None:
    """Print the accuracy of each method."""
    files.show_results("table", *(f"{alpha}/{method}/*" for method in METHODS), options="--costs")


def show_rounds(alpha: str, files: Files) -> None:
    """Print the rounds that each method takes to 70 and 80 %."""
    files.show_results("rounds", *(f"{alpha}/{method}/*" for method in METHODS), options="--costs --targets 0.7 0.8")


STUDY = Study(
    module="studies.baselines",
    cells={
        f"{alpha}/{method}/{seed}": f"{PROTOCOL} --partition.alpha {alpha} --seed {seed} {METHODS[method]}"
        for seed, alpha, method in product(SEEDS, ALPHAS, METHODS)
    },
    tables={
        **{f"accuracy_{alpha}": partial(show, alpha) for alpha in ALPHAS},
        **{f"rounds_{alpha}": partial(show_rounds, alpha) for alpha in ALPHAS},
    },
    root="--dataset.root",
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
