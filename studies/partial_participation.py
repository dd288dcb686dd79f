"""DistributionFusion where a tenth of the clients takes part in a round: python -m studies.partial_participation.

LeNet with batch normalisation on 4,000 images of Fashion-MNIST, 100 clients of 40, of whom 10 are drawn in each round
for one pass in batches of 10 at a learning rate of 0.05. Settings: five groups of clients, each with two classes of
its own; five such groups of 40, 30, 15, 10 and 5 clients; shards of two classes; Dirichlet(0.1).

A cell is a setting, a method and a seed, such as groups/fedavg/0; `--cells 'groups/*'` chooses some. Those that are
finished are not trained again, and the table is of these: accuracy over the second half of the rounds,
its difference from FedAvg's with the same seed, how far it jumps from one round to the next, and what was inferred;
means ± standard deviations over seeds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.results.formats import FORMATS
from studies.runs import is_done, train_all

PROTOCOL = (
    "--dataset Subset --dataset.over FashionMNIST --dataset.samples 4000 --dataset.test_samples 2000 --model LeNet"
    " --clients 100 --sampler Uniform --cohort 10 --local.epochs 1 --local.batch_size 10 --local.lr 0.05"
)
SETTINGS = {
    "groups": "--partition studies.label_groups.LabelGroups",
    "unequal_groups": "--partition studies.label_groups.LabelGroups --partition.shares '[8, 6, 3, 2, 1]'",
    "shards": "--partition Shards",
    "dirichlet_0.1": "--partition Dirichlet --partition.alpha 0.1",
}
FUSED = "--algorithm DistributionFusion --algorithm.twin false"
METHODS = {
    "fedavg": "",
    "cohort": f"{FUSED} --algorithm.mixture cohort",
    "population": f"{FUSED} --algorithm.memory false",
    "memory": FUSED,
    "population_M_5": f"{FUSED} --algorithm.memory false --algorithm.components 5",
    "memory_M_5": f"{FUSED} --algorithm.components 5",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.partial_participation")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data sets (default: data)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/partial_participation"), help="(default: %(default)s)"
    )
    parser.add_argument("--cells", nargs="*", default=["*"], help="patterns of SETTING/METHOD/SEED (default: all)")
    parser.add_argument("--rounds", type=int, default=80, help="(default: 80)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--format", choices=list(FORMATS), default="text", help="of the tables (default: text)")
    chosen = parser.parse_args()
    cells = {
        f"{setting}/{method}/{seed}": f"{PROTOCOL} --dataset.over.root {shlex.quote(str(chosen.data))}"
        f" {SETTINGS[setting]} --seed {seed} {METHODS[method]}"
        for seed, setting, method in product(range(chosen.seeds), SETTINGS, METHODS)
    }
    wanted = {
        chosen.folder / f"{cell.replace('/', '-')}.h5": options
        for cell, options in cells.items()
        if any(fnmatch(cell, pattern) for pattern in chosen.cells)
    }
    went_well = train_all(wanted, chosen.rounds)
    for setting in SETTINGS:
        paths = {m: [chosen.folder / f"{setting}-{m}-{seed}.h5" for seed in range(chosen.seeds)] for m in METHODS}
        there = {method: [path for path in some if is_done(path, chosen.rounds)] for method, some in paths.items()}
        if any(there.values()):
            print(f"\n{setting}\n\n{FORMATS[chosen.format](table(there))}")
    sys.exit(not went_well)


def table(paths: dict[str, list[Path]]) -> list[list[str]]:
    """The rows of a table, one for each method that has runs."""
    rows = [["method", "accuracy (%)", "minus FedAvg's", "jump", "adjusted Rand index", "label_l1"]]
    plain = {seed_of(path): late(path, "test_accuracy").mean() for path in paths["fedavg"]}
    for method, some in paths.items():
        if some:
            means = np.array([late(path, "test_accuracy").mean() for path in some])
            gains = [mean - plain.get(seed_of(path), np.nan) for mean, path in zip(means, some, strict=True)]
            jumps = np.array([np.abs(np.diff(late(path, "test_accuracy"))).mean() for path in some])
            index = np.array([late(path, "adjusted_rand_index").mean() for path in some])
            labels = np.array([label_distances(path).mean() for path in some])
            shown = [shown_as(100 * values, 2) for values in (means, np.array(gains), jumps)]
            rows.append([method, *shown, shown_as(index, 2), shown_as(labels, 3)])
    return rows


def seed_of(path: Path) -> str:
    """As the file's name says."""
    return path.stem.rpartition("-")[2]


def late(path: Path, column: str) -> NDArray[np.float64]:
    """A column of the second half of the rounds; NaN if there is none."""
    rounds = results.open(path).rounds
    found = rounds.get(column, np.full(len(rounds["round"]), np.nan))
    return np.asarray(found[len(found) // 2 :], dtype=np.float64)


def label_distances(path: Path) -> NDArray[np.float64]:
    """The column label_l1 of the second half of the rounds; of FedAvg, what it would be."""
    run = results.open(path)
    counts, clients = run.partition["label_counts"], run.clients["client"]
    samples = counts.sum(1)
    weights = run.clients.get("omega", samples[clients])
    found = []
    for round in np.unique(run.clients["round"]):
        here = run.clients["round"] == round
        mix = weights[here] @ (counts / samples[:, None])[clients[here]] / weights[here].sum()
        found.append(np.abs(mix - counts.sum(0) / samples.sum()).sum())
    return np.array(found[len(found) // 2 :])


def shown_as(values: NDArray[np.float64], digits: int) -> str:
    """Mean and standard deviation of those that are known."""
    known = values[~np.isnan(values)]
    if not len(known):
        return "-"
    return f"{known.mean():.{digits}f}" + (f" ± {known.std(ddof=1):.{digits}f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
