"""Every single-model and personalised method on real Fashion-MNIST: python -m studies.baselines --data DATA.

LeNet with batch normalisation, 100 clients split by Dirichlet(0.1) and (0.5), 10 a round, one local epoch of batches
of 50 at a learning rate of 0.05, and for the rest every method as fedmpi has it by default, without any tuning; what
differs stands in METHODS. Each run is a process of its own on one rank, as many at a time as there are cores; those
whose file is there and finished with as many rounds are not repeated. Prints tables at the end: they are
`python -m fedmpi.results table` and `rounds`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import product
from pathlib import Path

from fedmpi.results.__main__ import main as show
from studies.runs import train_all

PROTOCOL = (
    "--dataset FashionMNIST --partition Dirichlet --model LeNet --clients 100 --cohort 10"
    " --local.epochs 1 --local.batch_size 50 --local.lr 0.05 --evaluate_every 3"
)
METHODS = {
    "fedavg": "",
    "fedgn": "--model.norm group",
    "fedprox": "--algorithm FedProx",
    "scaffold": "--algorithm SCAFFOLD",
    "feddyn": "--algorithm FedDyn",
    "moon": "--algorithm MOON",
    "fedgen": "--algorithm FedGen",
    "moon_projected": "--algorithm MOON --model Projected --model.over LeNet",
    "fednova": "--algorithm FedNova",
    "fedavg_4": "--local.epochs 4",  # as much training as FedMA's, of four phases
    "fedma": "--algorithm FedMA",
    "fedma_cheap": "--algorithm FedMA --algorithm.retrain false",
    "fedavgm": "--algorithm FedAvgM",
    "fedadagrad": "--algorithm FedAdagrad",
    "fedadam": "--algorithm FedAdam",
    "fedyogi": "--algorithm FedYogi",
    "fedbn": "--algorithm FedBN",
    "fedper": "--algorithm FedPer",
    "fedrep": "--algorithm FedRep --algorithm.head_epochs 1",
    "ditto": "--algorithm Ditto",
    "local": "--algorithm LocalOnly",
    "centralized": "--algorithm Centralized",
}
ALPHAS = (0.1, 0.5)
TARGETS = ("0.7", "0.8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.baselines")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data set (default: data)")
    parser.add_argument("--folder", type=Path, default=Path("runs/baselines"), help="(default: runs/baselines)")
    parser.add_argument("--rounds", type=int, default=30, help="(default: 30)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="(default: all)")
    chosen = parser.parse_args()
    experiments = {
        chosen.folder / f"{method}-{alpha}-{seed}.h5": f"{PROTOCOL} --dataset.root {shlex.quote(str(chosen.data))}"
        f" --partition.alpha {alpha} --seed {seed} {METHODS[method]}"
        for seed, alpha, method in product(range(chosen.seeds), ALPHAS, chosen.methods)
    }
    went_well = train_all(experiments, chosen.rounds)
    by_method = sorted(experiments, key=lambda path: (path.name.split("-")[1], list(experiments).index(path)))
    files = [str(path) for path in by_method]
    status = show(["table", *files, "--costs"])
    print()
    sys.exit(max(status, show(["rounds", *files, "--costs", "--targets", *TARGETS]), not went_well))


if __name__ == "__main__":
    main()
