"""The table of the distribution-fusion paper in its authors' setting, where all clients take part in each round.

LeNet with batch normalisation on 4,000 images, shards of two classes over 50 clients, all of them in each of 50
rounds of one local epoch in batches of 25 at a learning rate of 0.05. FedAvg's weights n_k / N are right here by
definition, so DistributionFusion with its defaults is FedAvg; with the cohort's mixture it prefers rare components.

A cell is DATA/METHOD/SEED, such as fashion_mnist/fedma/0.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

from studies.partial_participation import BASELINES, DATA, OURS
from studies.study import Files, Study

PROTOCOL = (
    "--rounds 50 --dataset Subset --dataset.samples 4000 --dataset.test_samples 2000 --model LeNet --clients 50"
    " --sampler All --partition Shards --local.epochs 1 --local.batch_size 25 --local.lr 0.05 --evaluate_every 2"
)
METHODS = BASELINES | {name: OURS[name] for name in ("fusion", "fusion_cohort")}
SEEDS = range(3)


def show(data: str, files: Files) -> None:
    """Print the accuracy of each method: for several models, of each client's own on its part of the test set."""
    files.show_results("table", *(f"{data}/{method}/*" for method in METHODS), options="--costs")


STUDY = Study(
    module="studies.full_participation",
    cells={
        f"{data}/{method}/{seed}": f"{PROTOCOL} {DATA[data]} --seed {seed} {METHODS[method]}"
        for seed, data, method in product(SEEDS, DATA, METHODS)
    },
    tables={data: partial(show, data) for data in DATA},
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
