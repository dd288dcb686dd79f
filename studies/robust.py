"""Robust aggregation rules under every attack, on Fashion-MNIST.

LeNet with batch normalisation, 50 clients split by Dirichlet(1), a fifth of them malicious, 10 per round, 12 rounds
of one local epoch in batches of 50 at a learning rate of 0.05. Krum is told of three faulty clients, the most that it
can withstand among ten; multi-Krum then averages five. A run that an attack makes diverge ends there.

A cell is ATTACK/METHOD/SEED, such as sign_flip/krum/0.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

from studies.study import Files, Study

PROTOCOL = (
    "--rounds 12 --dataset FashionMNIST --partition Dirichlet --partition.alpha 1 --model LeNet --clients 50"
    " --cohort 10 --weighting uniform --local.epochs 1 --local.batch_size 50 --local.lr 0.05 --evaluate_every 3"
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


def show(attack: str, files: Files) -> None:
    """Print the accuracy of each rule under an attack."""
    files.show_results("table", f"{attack}/*", options="--costs")


STUDY = Study(
    module="studies.robust",
    cells={
        f"{attack}/{method}/0": f"{PROTOCOL} --seed 0 {METHODS[method]} {ATTACKS[attack]}"
        for attack, method in product(ATTACKS, METHODS)
    },
    tables={attack: partial(show, attack) for attack in ATTACKS},
    root="--dataset.root",
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
