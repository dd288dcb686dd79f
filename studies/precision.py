"""FedAvg in float32 and with networks in bfloat16: the same rounds, and whether the accuracy is the same.

Fashion-MNIST, LeNet with batch normalisation, 100 clients split by Dirichlet(0.5), 10 per round, 30 rounds of one
local epoch in batches of 50 at a learning rate of 0.05, measured every second round.

A cell is PRECISION/SEED, such as bf16/0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.results import Run
from studies.study import Files, Study

PROTOCOL = (
    "--rounds 30 --dataset FashionMNIST --partition Dirichlet --partition.alpha 0.5 --model LeNet --clients 100"
    " --cohort 10 --local.epochs 1 --local.batch_size 50 --local.lr 0.05 --evaluate_every 2"
)
PRECISIONS = ("float32", "bf16")
SEEDS = range(3)
#: Rounds of the table.
SHOWN = (2, 6, 10, 20, 30)


def show(files: Files) -> None:
    """Print the test accuracy of each precision at some rounds, and the differences of runs with the same seed."""
    rows = [["precision", "runs", *(f"round {round} (%)" for round in SHOWN)]]
    found = {name: [results.open(path) for path in files.matching(f"{name}/*")] for name in PRECISIONS}
    values = {
        name: np.array([accuracy(run)[np.isin(run.rounds["round"], SHOWN)] for run in runs])
        for name, runs in found.items()
        if len(runs) > 1
    }
    for name, table in values.items():
        rows.append([name, str(len(table)), *_columns(table)])
    if len(values) == len(PRECISIONS) and len({len(table) for table in values.values()}) == 1:
        apart = values["bf16"] - values["float32"]
        rows.append(["bf16 minus float32, by seed", str(len(apart)), *_columns(apart, sign="+")])
    files.show(rows)


def accuracy(run: Run) -> NDArray[np.float64]:
    """[rounds]: the test accuracy in % after each round; NaN where it was not measured."""
    return 100 * run.rounds["test_accuracy"]


def _columns(table: NDArray[np.float64], sign: str = "") -> list[str]:
    """Mean and standard deviation over the runs."""
    return [f"{column.mean():{sign}.2f} ± {column.std(ddof=1):.2f}" for column in table.T]


def draw(files: Files, folder: Path) -> None:
    """The test accuracy by round: means over the seeds, in bands from the lowest to the highest."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.5, 2.8), layout="constrained")
    for name, style in zip(PRECISIONS, ("-", "--"), strict=True):
        runs = [results.open(path) for path in files.matching(f"{name}/*")]
        values = np.array([accuracy(run) for run in runs])
        measured = ~np.isnan(values[0])
        rounds, values = runs[0].rounds["round"][measured], values[:, measured]
        axis.plot(rounds, values.mean(0), style, label=name)
        axis.fill_between(rounds, values.min(0), values.max(0), alpha=0.2)
    axis.set(xlabel="round", ylabel="test accuracy (%)", ylim=(50, None))
    axis.legend()
    figure.savefig(folder / "precision.svg", metadata={"Date": None})
    plt.close(figure)


STUDY = Study(
    module="studies.precision",
    cells={
        f"{name}/{seed}": f"{PROTOCOL} --local.precision {name} --seed {seed}"
        for seed in SEEDS
        for name in PRECISIONS
    },
    tables={"accuracy": show},
    root="--dataset.root",
    draw=draw,
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
