"""GenFL on real MNIST and Fashion-MNIST, as far as two cores carry it: python -m studies.genfl --data DATA.

The poster's two tables, on six partitions, beside its own numbers, and its figures. Cut are the samples (3,200 of
60,000, and 2,000 for tests), the synthetic images (3,200), the epochs of the CAS (5 of 20) and the network (LeNet in
place of ExquisiteNetV1), whose learning rate is ten times the poster's, for there are a nineteenth of the steps; all
else is the poster's. Its accuracies are of samples of which most were trained on; ours are not.

In the folder: a file a run; curves.png, accuracy over rounds at alpha 0.01, without pre-training, with it, and with
the images of IID clients' generator (figures 4 to 7); and synthetic.png, images of IID clients' generators and below
them of those at alpha 0.01, a column a class of each data set. Each run is a process of its own on one rank, as many
at a time as there are cores; those whose file is there and finished with as many rounds are not repeated.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.results.formats import FORMATS
from studies.runs import train_all

COMMON = (
    "--dataset Subset --dataset.samples 3200 --dataset.test_samples 2000 --model LeNet --clients 10 --cohort 10"
    " --local.epochs 2 --local.batch_size 32 --local.lr 0.01 --local.momentum 0.5 --algorithm GenFL"
    " --algorithm.synthetic 3200 --algorithm.cas_epochs 5"
)
CONTROL = "--algorithm.pretrain false --algorithm.cas_epochs 0"
DATA = ("MNIST", "FashionMNIST")
PARTITIONS = {
    "iid": "--partition IID",
    **{alpha: f"--partition Dirichlet --partition.min_samples 40 --partition.alpha {alpha}"
       for alpha in ("100", "10", "1", "0.1", "0.01")},
}  # fmt: skip
#: The poster's Table 1: CAS, data set by data set.
SCORES = {
    "local": ("89.03 ± 0.33", "65.27 ± 0.52"),
    "iid": ("87.09 ± 0.17", "62.11 ± 0.27"),
    "100": ("87.48 ± 0.52", "63.41 ± 0.13"),
    "10": ("86.77 ± 0.32", "63.83 ± 0.40"),
    "1": ("86.87 ± 0.56", "63.90 ± 0.28"),
    "0.1": ("84.38 ± 0.30", "62.85 ± 0.09"),
    "0.01": ("60.65 ± 1.16", "48.71 ± 0.47"),
}
#: Its Table 2: accuracy without pre-training and with it.
ACCURACIES = {
    "iid": ("87.08 ± 1.03", "93.92 ± 0.28", "71.35 ± 1.02", "78.21 ± 0.24"),
    "100": ("83.78 ± 5.32", "93.80 ± 0.33", "70.26 ± 1.93", "78.32 ± 0.13"),
    "10": ("81.70 ± 8.91", "93.85 ± 0.16", "70.23 ± 2.55", "78.00 ± 0.21"),
    "1": ("85.87 ± 2.87", "93.59 ± 0.26", "69.48 ± 2.64", "77.70 ± 0.21"),
    "0.1": ("41.35 ± 15.28", "88.24 ± 2.43", "56.94 ± 4.32", "68.96 ± 3.42"),
    "0.01": ("22.52 ± 5.24", "57.45 ± 6.67", "30.90 ± 4.90", "48.85 ± 8.39"),
}
METRIC = "weighted_client_accuracy"
SHOWN = 5  # images of a class


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.genfl")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data sets (default: data)")
    parser.add_argument("--folder", type=Path, default=Path("runs/genfl"), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: 10)")
    parser.add_argument("--seeds", type=int, default=2, help="(default: 2)")
    parser.add_argument("--options", default="", help="further options of every run, as one text")
    chosen = parser.parse_args()
    folder: Path = chosen.folder

    def options(data: str, seed: int, *more: str) -> str:
        root = shlex.quote(str(chosen.data))
        where = f"--dataset.over {data} --dataset.over.root {root} --seed {seed}"
        return " ".join([COMMON, where, *more, chosen.options])

    cells = list(product(range(chosen.seeds), DATA))
    alone = f"{PARTITIONS['iid']} --clients 1 --cohort 1 --algorithm.pretrain false"
    main_runs = {
        folder / f"{data}-{name}{control and '-control'}-{seed}.h5": options(data, seed, partition, control)
        for (seed, data), (name, partition), control in product(cells, PARTITIONS.items(), ("", CONTROL))
    }
    other_images = {
        folder / f"{data}-0.01-other-{seed}.h5": options(
            data,
            seed,
            PARTITIONS["0.01"],
            f"--algorithm.cas_epochs 0 --algorithm.earlier {folder}/{data}-iid-{seed}.h5",
        )
        for seed, data in cells
    }
    local = {folder / f"{data}-local-{seed}.h5": options(data, seed, alone) for seed, data in cells}
    if not (train_all(main_runs, chosen.rounds) and train_all(other_images, chosen.rounds) and train_all(local, 1)):
        sys.exit(1)

    def ours(data: str, name: str, column: str) -> str:
        last = [curve(folder / f"{data}-{name}-{seed}.h5", column)[-1] for seed in range(chosen.seeds)]
        return f"{np.mean(last):.2f} ± {np.std(last):.2f}"

    print("\nTable 1: CAS (%), mean ± standard deviation (with n) over the seeds\n")
    heads = [f"{data}{whose}" for data, whose in product(DATA, ("", ", poster"))]
    lines = [
        [name, *(cell for d, data in enumerate(DATA) for cell in (ours(data, name, "cas"), theirs[d]))]
        for name, theirs in SCORES.items()
    ]
    print(FORMATS["markdown"]([["clients", *heads], *lines]))
    print(f"\nTable 2: accuracy after {chosen.rounds} rounds (%), weighted mean over the clients\n")
    kinds = {"without": "-control", "with": ""}
    heads = [f"{data} {kind}{whose}" for data, kind, whose in product(DATA, kinds, ("", ", poster"))]
    lines = []
    for name, poster in ACCURACIES.items():
        cells_of_name = product(DATA, kinds.values())
        pairs = zip([ours(data, name + kind, METRIC) for data, kind in cells_of_name], poster, strict=True)
        lines.append([name, *(cell for pair in pairs for cell in pair)])
    print(FORMATS["markdown"]([["clients", *heads], *lines]))
    draw(folder, chosen.seeds)
    rows = [np.concatenate([grid(folder / f"{data}-{name}-0.h5") for data in DATA], 1) for name in ("iid", "0.01")]
    imsave(folder / "synthetic.png", np.concatenate(rows), cmap="gray")
    print(f"{folder}/curves.png {folder}/synthetic.png")


def curve(path: Path, column: str) -> NDArray[np.float64]:
    """[rounds], in percent."""
    return 100 * results.open(path).rounds[column]


def draw(folder: Path, seeds: int) -> None:
    """Accuracy over rounds at alpha 0.01: the mean over seeds, and from the least to the largest."""
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    kinds = {"without pre-training": "-control", "with": "", "with images of IID clients": "-other"}
    for axes, data in zip(figure.subplots(1, len(DATA)), DATA, strict=True):
        for (label, kind), colour in zip(kinds.items(), ("#0072B2", "#D55E00", "#009E73"), strict=True):
            curves = np.array([curve(folder / f"{data}-0.01{kind}-{seed}.h5", METRIC) for seed in range(seeds)])
            rounds = np.arange(1, curves.shape[1] + 1)
            axes.plot(rounds, curves.mean(0), color=colour, marker="o", markersize=3, label=label)
            axes.fill_between(rounds, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.set_title(f"{data}, alpha 0.01", fontsize=9)
        axes.set_xlabel("Round")
        axes.set_ylabel("Accuracy (%)")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "curves.png", dpi=160)


def grid(path: Path) -> NDArray[np.uint8]:
    """[rows of images, classes side by side] of a run's synthetic images."""
    synthetic = results.open(path).synthetic
    images, labels = synthetic["images"][:, 0], synthetic["labels"]
    columns = [np.concatenate(padded(images[labels == label][:SHOWN])) for label in range(labels.max() + 1)]
    return np.concatenate(columns, axis=1)


def padded(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """With a grey frame."""
    return [np.pad(image, 1, constant_values=96) for image in images]


if __name__ == "__main__":
    main()
