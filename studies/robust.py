"""Robust rules under every attack on real Fashion-MNIST: python -m studies.robust --data DATA.

LeNet with batch normalisation, 50 clients split by Dirichlet(1), a fifth of them malicious, 10 a round, one local
epoch of batches of 50 at a learning rate of 0.05. Krum is told of three faulty clients, the most that it can
withstand among ten; multi-Krum then averages five. Each run is a process of its own on one rank, as many at a time as
there are cores; those whose file is there and finished with as many rounds are not repeated. Prints the table at the
end: it is `python -m fedmpi.results table`. Of a run that an attack makes diverge it has what was measured before.
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
    "--dataset FashionMNIST --partition Dirichlet --partition.alpha 1 --model LeNet --clients 50 --cohort 10"
    " --weighting uniform --local.epochs 1 --local.batch_size 50 --local.lr 0.05 --evaluate_every 3"
)
METHODS = {
    "fedavg": "",
    "median": "--algorithm Median",
    "trimmed_mean": "--algorithm TrimmedMean --algorithm.trim 0.3",
    "krum": "--algorithm Krum --algorithm.faulty 3",
    "multi_krum": "--algorithm Krum --algorithm.faulty 3 --algorithm.select 5",
}
ATTACKS = {
    "none": "",
    "sign_flip": "--attack SignFlip --attack.scale 4",
    "gaussian": "--attack Gaussian",
    "label_flip": "--attack LabelFlip",
    "alie": "--attack ALIE --attack.z 1.5",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.robust")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data set (default: data)")
    parser.add_argument("--folder", type=Path, default=Path("runs/robust"), help="(default: runs/robust)")
    parser.add_argument("--rounds", type=int, default=12, help="(default: 12)")
    parser.add_argument("--seeds", type=int, default=1, help="(default: 1)")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="(default: all)")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS), help="(default: all)")
    chosen = parser.parse_args()
    experiments = {
        chosen.folder / f"{attack}-{method}-{seed}.h5": f"{PROTOCOL} --dataset.root {shlex.quote(str(chosen.data))}"
        f" --seed {seed} {METHODS[method]} {ATTACKS[attack]}"
        for attack, method, seed in product(chosen.attacks, chosen.methods, range(chosen.seeds))
    }
    went_well = train_all(experiments, chosen.rounds)
    sys.exit(max(show(["table", *map(str, experiments), "--costs"]), not went_well))


if __name__ == "__main__":
    main()
