"""FeatureFusion on real data, as far as two cores carry it: python -m studies.feature_fusion permuted --data DATA.

FedAvg and the three fusion operators, with the paper's learning rate and its decay, the momentum and weight decay of
the authors' code, and batches of 10, for that few samples make few steps. Rounds are counted to accuracies of the
clients' own models on their own test samples, right after local training: the only one that the authors' code has at
clients.

- permuted: the paper's experiment (c), smaller: its network on MNIST, a permutation of pixels for every client.
- classes: like (a), on Fashion-MNIST in place of CIFAR-10: two classes a client.

Each run is a process of its own on one rank, as many at a time as there are cores; those whose file is there and
finished with as many rounds are not repeated. Prints the table at the end: it is `python -m fedmpi.results table`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import product
from pathlib import Path

from fedmpi.results.__main__ import main as show
from studies.runs import train_all

COMMON = (
    "--dataset Subset --model McMahanCNN --local.batch_size 10 --local.momentum 0.9 --local.weight_decay 5e-4"
    " --local.schedule exponential --evaluate_local true"
)
EXPERIMENTS = {
    "permuted": "--dataset.over MNIST --dataset.samples 16000 --dataset.test_samples 4000 --partition Permuted"
    " --clients 3 --held_out 1 --held_out_epochs 12 --local.epochs 1 --local.lr 2e-3 --local.decay 0.99",
    "classes": "--dataset.over FashionMNIST --dataset.samples 3000 --dataset.test_samples 2000"
    " --partition ClassesPerClient --clients 10 --cohort 3 --local.epochs 5 --local.lr 3e-3 --local.decay 0.985",
}
METHODS = {
    "fedavg": "--algorithm FedAvg",
    "single": "--algorithm FeatureFusion --algorithm.operator single",
    "multi": "--algorithm FeatureFusion --algorithm.operator multi",
    "conv": "--algorithm FeatureFusion --algorithm.operator conv",
}
ROUNDS = {"permuted": 16, "classes": 10}
TARGETS = ("0.85", "0.9", "0.94", "0.95")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.feature_fusion")
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data sets (default: data)")
    parser.add_argument("--folder", type=Path, default=Path("runs/feature_fusion"), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, help=f"(default: {ROUNDS})")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="(default: all)")
    parser.add_argument("--options", default="", help="further options of every run, as one text")
    chosen = parser.parse_args()
    options = f"{COMMON} {EXPERIMENTS[chosen.experiment]} --dataset.over.root {shlex.quote(str(chosen.data))}"
    experiments = {
        chosen.folder / f"{chosen.experiment}-{method}-{seed}.h5": f"{options} --seed {seed} {METHODS[method]}"
        f" {chosen.options}"
        for seed, method in product(range(chosen.seeds), chosen.methods)
    }
    went_well = train_all(experiments, chosen.rounds or ROUNDS[chosen.experiment])
    by_method = sorted(map(str, experiments), key=lambda name: list(METHODS).index(name.split("-")[-2]))
    for column in ("local_accuracy", "client_accuracy_mean"):
        print(f"\n{column}")
        went_well = not show(["table", *by_method, "--column", column, "--costs"]) and went_well
    print("\nlocal_accuracy")
    rounds = ["rounds", *by_method, "--costs", "--column", "local_accuracy", "--reference", "FedAvg"]
    rounds += ["--targets", *TARGETS]
    went_well = not show(rounds) and went_well
    sys.exit(not went_well)


if __name__ == "__main__":
    main()
