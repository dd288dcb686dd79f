"""FeatureFusion: FedAvg and the three fusion operators, at a size that two cores carry.

The paper's learning rates and decay, the momentum and weight decay of the authors' code. `local_accuracy` is the
accuracy of the clients' own models on their own test samples, right after local training: the authors' code measures
nothing else at clients. `client_accuracy_mean` is the aggregated model's on the same samples.

    permuted  the paper's experiment (c), its network on MNIST and one permutation of the pixels per client, with few
              clients that have many samples: three clients and one held-out client with 15,000 samples, 40 rounds of
              400 steps in batches of 10
    classes   like experiment (a), on Fashion-MNIST in place of CIFAR-10: two classes per client, ten clients with 300
              samples, three per round, ten rounds

conv_average is conv whose operator starts as the mean of both extractors.

A cell is EXPERIMENT/METHOD/SEED, such as permuted/multi/0.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

from studies.study import Files, Study

COMMON = (
    "--dataset Subset --model McMahanCNN --local.momentum 0.9 --local.weight_decay 5e-4 --local.schedule exponential"
    " --evaluate_local true"
)
EXPERIMENTS = {
    "permuted": "--rounds 40 --dataset.over MNIST --dataset.samples 60000 --dataset.test_samples 4000"
    " --partition Permuted --clients 3 --held_out 1 --held_out_epochs 10 --local.steps 400 --local.batch_size 10"
    " --local.lr 2e-3 --local.decay 0.99",
    "classes": "--rounds 10 --dataset.over FashionMNIST --dataset.samples 3000 --dataset.test_samples 2000"
    " --partition ClassesPerClient --clients 10 --cohort 3 --local.epochs 5 --local.batch_size 10 --local.lr 3e-3"
    " --local.decay 0.985",
}
METHODS = {
    "fedavg": "--algorithm FedAvg",
    "single": "--algorithm FeatureFusion --algorithm.operator single",
    "multi": "--algorithm FeatureFusion --algorithm.operator multi",
    "conv": "--algorithm FeatureFusion --algorithm.operator conv",
    "conv_average": "--algorithm FeatureFusion --algorithm.operator conv --algorithm.start average",
}
TARGETS = {"permuted": "0.92 0.93 0.94 0.95", "classes": "0.4 0.5"}
SEEDS = range(3)


def show(experiment: str, column: str, files: Files) -> None:
    """Print one kind of accuracy of each method."""
    files.show_results(
        "table", *(f"{experiment}/{method}/*" for method in METHODS), options=f"--costs --column {column}"
    )


def show_rounds(experiment: str, column: str, files: Files) -> None:
    """Print the rounds that each method takes to the targets."""
    options = f"--costs --column {column} --reference FedAvg --targets {TARGETS[experiment]}"
    files.show_results("rounds", *(f"{experiment}/{method}/*" for method in METHODS), options=options)


COLUMNS = ("local_accuracy", "client_accuracy_mean")
STUDY = Study(
    module="studies.feature_fusion",
    cells={
        f"{experiment}/{method}/{seed}": f"{COMMON} {EXPERIMENTS[experiment]} --seed {seed} {METHODS[method]}"
        for seed, experiment, method in product(SEEDS, EXPERIMENTS, METHODS)
    },
    tables={
        **{f"{name}_{column}": partial(show, name, column) for name, column in product(EXPERIMENTS, COLUMNS)},
        "permuted_rounds": partial(show_rounds, "permuted", "local_accuracy"),
        "classes_rounds": partial(show_rounds, "classes", "client_accuracy_mean"),
    },
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
