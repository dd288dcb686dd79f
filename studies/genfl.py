"""GenFL's poster on MNIST and Fashion-MNIST: the score of the generator, and accuracy with and without pre-training.

ExquisiteNetV1 and all settings of the poster and the authors' code: ten clients, all of them in each round, 20 rounds
of the autoencoder, as many synthetic images as samples, 10 rounds of two local epochs in batches of 32 at a learning
rate of 0.001, 20 epochs for the CAS. `full` has the poster's 60,000 samples, `quarter` has 15,000. The poster's
accuracies are of samples of which most were trained on; ours are not. Our standard deviations have n - 1.

    pretrained  the model is pre-trained on images of the clients' generator
    control     without pre-training
    other       pre-trained on images of the generator of IID clients

A cell is SIZE/DATA/CLIENTS/KIND/SEED, such as quarter/MNIST/0.01/control/0; `local` clients are a single one that has
all samples. `--draw` draws accuracy over rounds at alpha 0.01, and synthetic images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from fedmpi import results
from studies.study import Files, Study

COMMON = (
    "--dataset Subset --model ExquisiteNetV1 --clients 10 --cohort 10 --local.epochs 2 --local.batch_size 32"
    " --local.lr 0.001 --local.momentum 0.5 --algorithm GenFL"
)
SIZES = {
    "quarter": "--dataset.samples 15000 --dataset.test_samples 10000 --algorithm.synthetic 15000",
    "full": "--dataset.samples 60000 --dataset.test_samples 10000 --algorithm.synthetic 60000",
}
SEEDS = {"quarter": range(3), "full": range(1)}
DATA = ("MNIST", "FashionMNIST")
PARTITIONS = {
    "iid": "--partition IID",
    **{
        alpha: f"--partition Dirichlet --partition.min_samples 40 --partition.alpha {alpha}"
        for alpha in ("100", "10", "1", "0.1", "0.01")
    },
}
KINDS = {"pretrained": "", "control": "--algorithm.pretrain false --algorithm.cas_epochs 0"}
LOCAL = "--rounds 1 --partition IID --clients 1 --cohort 1 --algorithm.pretrain false"
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


def cells() -> dict[str, str]:
    """Name -> options of all experiments."""
    found = {}
    for size, data in product(SIZES, DATA):
        for seed in SEEDS[size]:
            options = f"{COMMON} {SIZES[size]} --dataset.over {data} --seed {seed}"
            for (clients, partition), (kind, pretraining) in product(PARTITIONS.items(), KINDS.items()):
                found[f"{size}/{data}/{clients}/{kind}/{seed}"] = f"{options} --rounds 10 {partition} {pretraining}"
            found[f"{size}/{data}/local/control/{seed}"] = f"{options} {LOCAL}"
            images = f"--algorithm.cas_epochs 0 --algorithm.earlier {{runs}}/{size}-{data}-iid-pretrained-{seed}.h5"
            found[f"{size}/{data}/0.01/other/{seed}"] = f"{options} --rounds 10 {PARTITIONS['0.01']} {images}"
    return found


def show_scores(size: str, files: Files) -> None:
    """Print the poster's Table 1: the CAS."""
    heads = [f"{data}{whose}" for data, whose in product(DATA, ("", ", poster"))]
    rows = [["clients", *heads]]
    for clients, theirs in SCORES.items():
        kind = "control" if clients == "local" else "pretrained"
        ours = [last(files, f"{size}/{data}/{clients}/{kind}/*", "cas") for data in DATA]
        rows.append([clients, *(cell for pair in zip(ours, theirs, strict=True) for cell in pair)])
    files.show(rows)


def show_accuracies(size: str, files: Files) -> None:
    """Print the poster's Table 2: accuracy after ten rounds."""
    columns = list(product(DATA, ("control", "pretrained")))
    heads = [f"{data}, {kind}{whose}" for (data, kind), whose in product(columns, ("", ", poster"))]
    rows = [["clients", *heads]]
    for clients, theirs in ACCURACIES.items():
        ours = [last(files, f"{size}/{data}/{clients}/{kind}/*", METRIC) for data, kind in columns]
        rows.append([clients, *(cell for pair in zip(ours, theirs, strict=True) for cell in pair)])
    files.show(rows)


def last(files: Files, pattern: str, column: str) -> str:
    """Mean ± standard deviation over seeds of the last value of a column in percent."""
    found = [curve(path, column)[-1] for path in files.matching(pattern)]
    if not found:
        return "-"
    return f"{np.mean(found):.2f}" + (f" ± {np.std(found, ddof=1):.2f}" if len(found) > 1 else "")


def curve(path: Path, column: str) -> NDArray[np.float64]:
    """[rounds], in percent."""
    return 100 * results.open(path).rounds[column]


def draw(files: Files, folder: Path) -> None:
    """Draw accuracy over rounds at alpha 0.01 (the poster's figures 4 to 7), and synthetic images."""
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    labels = {"control": "without pre-training", "pretrained": "with", "other": "with images of IID clients"}
    for axes, data in zip(figure.subplots(1, len(DATA)), DATA, strict=True):
        for (kind, label), colour in zip(labels.items(), ("#0072B2", "#D55E00", "#009E73"), strict=True):
            curves = np.array([curve(path, METRIC) for path in files.matching(f"quarter/{data}/0.01/{kind}/*")])
            rounds = np.arange(1, curves.shape[1] + 1)
            axes.plot(rounds, curves.mean(0), color=colour, marker="o", markersize=3, label=label)
            axes.fill_between(rounds, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.set_title(f"{data}, alpha 0.01", fontsize=9)
        axes.set_xlabel("Round")
        axes.set_ylabel("Accuracy (%)")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "genfl.png", dpi=160)
    rows = []
    for clients in ("iid", "0.01"):
        paths = [path for data in DATA for path in files.whole(f"quarter/{data}/{clients}/pretrained/0")]
        if len(paths) == len(DATA):
            rows.append(np.concatenate([grid(path) for path in paths], 1))
    if rows:
        imsave(folder / "genfl_synthetic.png", np.concatenate(rows), cmap="gray")


def grid(path: Path) -> NDArray[np.uint8]:
    """[rows of images, classes side by side] of a run's synthetic images."""
    synthetic = results.open(path).synthetic
    images, labels = synthetic["images"][:, 0], synthetic["labels"]
    columns = [np.concatenate(padded(images[labels == label][:SHOWN])) for label in range(labels.max() + 1)]
    return np.concatenate(columns, axis=1)


def padded(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """With a grey frame."""
    return [np.pad(image, 1, constant_values=96) for image in images]


STUDY = Study(
    module="studies.genfl",
    cells=cells(),
    tables={
        **{f"cas_{size}": partial(show_scores, size) for size in SIZES},
        **{f"accuracy_{size}": partial(show_accuracies, size) for size in SIZES},
    },
    draw=draw,
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
