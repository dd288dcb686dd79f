"""DistributionFusion and the baselines of its paper where a tenth of the clients takes part in a round.

LeNet with batch normalisation on 4,000 images; 100 clients with 40 images each, of whom 10 are drawn in each of 80
rounds for one local epoch in batches of 10 at a learning rate of 0.05. Settings:

    groups          five groups of 20 clients, each with two classes of its own
    unequal_groups  five such groups of 40, 30, 15, 10 and 5 clients
    shards          two classes per client
    dirichlet_0.1   class shares drawn from Dirichlet(0.1)

A cell is DATA/SETTING/METHOD/SEED, such as fashion_mnist/groups/fedavg/0. All statistics are means over the second
half of the rounds, then mean ± standard deviation over seeds:

    accuracy         on the test set; for methods with several models the mean over clients of their model's
    minus FedAvg     the difference in accuracy from FedAvg with the same seed
    local test sets  mean over clients of the accuracy on the client's own part of the test set
    change           mean absolute change in accuracy from one round to the next
    train loss       the clients' own loss during local training
    rand index       adjusted Rand index between clusters or components of clients, and the true groups
    twin             correlation between the weights and those of a second autoencoder from other random numbers
    label l1         distance between the label mix that a round trains on and that of all clients
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedmpi import results
from studies.study import Files, Study

PROTOCOL = (
    "--rounds 80 --dataset Subset --dataset.samples 4000 --dataset.test_samples 2000 --model LeNet --clients 100"
    " --sampler Uniform --cohort 10 --local.epochs 1 --local.batch_size 10 --local.lr 0.05"
)
DATA = {"fashion_mnist": "--dataset.over FashionMNIST", "mnist": "--dataset.over MNIST"}
SETTINGS = {
    "groups": "--partition studies.label_groups.LabelGroups",
    "unequal_groups": "--partition studies.label_groups.LabelGroups --partition.shares '[8, 6, 3, 2, 1]'",
    "shards": "--partition Shards",
    "dirichlet_0.1": "--partition Dirichlet --partition.alpha 0.1",
}
FUSION = "--algorithm DistributionFusion"
#: DistributionFusion with its defaults, without memory, and with the cohort's mixture.
OURS = {
    "fusion": FUSION,
    "fusion_without_memory": f"{FUSION} --algorithm.memory false",
    "fusion_cohort": f"{FUSION} --algorithm.mixture cohort",
}
#: The other methods of the paper's table, by its names but for FLHC, which the paper calls FedCluster.
BASELINES = {
    "fedavg": "",
    "fedprox": "--algorithm FedProx",
    "fedgn": "--model.norm group",
    "fedma": "--algorithm FedMA",
    "fesem": "--algorithm FeSEM",
    "ifca": "--algorithm IFCA",
    "flhc": "--algorithm FLHC",
    "fedgroup": "--algorithm FedGroup",
}
COMPONENTS = {f"fusion_M_{number}": f"{FUSION} --algorithm.components {number}" for number in (2, 5, 30)}
SEEDS = range(5)
WINDOW = 9  # rounds that a point of a curve is the mean of


def cells() -> dict[str, str]:
    """Name -> options of all experiments."""
    chosen = [
        *((data, setting, BASELINES | OURS) for data, setting in product(DATA, SETTINGS)),
        ("fashion_mnist", "groups", COMPONENTS),
    ]
    return {
        f"{data}/{setting}/{method}/{seed}": f"{PROTOCOL} {DATA[data]} {SETTINGS[setting]} --seed {seed} {options}"
        for seed in SEEDS
        for data, setting, methods in chosen
        for method, options in methods.items()
    }


def show(place: str, methods: Sequence[str], files: Files) -> None:
    """Print the table of a data set and setting: one row per method that has results files."""
    plain = {path.stem[-1]: late(path, "test_accuracy").mean() for path in files.matching(f"{place}/fedavg/*")}
    rows = []
    for method in methods:
        paths = files.matching(f"{place}/{method}/*")
        if paths:
            accuracies = [accuracy(path) for path in paths]
            means = np.array([values.mean() for values in accuracies])
            gains = means - [plain.get(path.stem[-1], np.nan) for path in paths]
            changes = np.array([np.abs(np.diff(values)).mean() for values in accuracies])
            row = {
                "method": method,
                "seeds": str(len(paths)),
                "accuracy (%)": shown(100 * means, 2),
                "minus FedAvg": shown(100 * gains, 2) if method != "fedavg" else "-",
                "local test sets (%)": of_column(paths, "client_accuracy_mean", 2, 100),
                "change": shown(100 * changes, 2),
                "train loss": of_column(paths, "train_loss", 3),
                "rand index": of_column(paths, "adjusted_rand_index", 2),
                "twin": of_column(paths, "twin_correlation", 2),
                "label l1": shown(np.array([second_half(label_distances(path)).mean() for path in paths]), 3),
            }
            rows.append(row)
    if rows:
        used = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
        files.show([used, *([row[name] for name in used] for row in rows)])


@cache
def rounds_of(path: Path) -> Mapping[str, NDArray[Any]]:
    """The table /rounds of a file, read once."""
    return dict(results.open(path).rounds)


def accuracy(path: Path) -> NDArray[np.float64]:
    """Accuracy on the whole test set in the second half of the rounds, of one model or on average over clients."""
    has_several = "global_matched_accuracy" in rounds_of(path)
    return late(path, "global_matched_accuracy" if has_several else "test_accuracy")


def late(path: Path, column: str) -> NDArray[np.float64]:
    """The known values of a column in the second half of the rounds; one NaN if there are none."""
    rounds = rounds_of(path)
    found = second_half(np.asarray(rounds.get(column, []), dtype=np.float64))
    known = found[~np.isnan(found)]
    return known if len(known) else np.array([np.nan])


def second_half(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those of the later rounds."""
    return values[len(values) // 2 :]


def of_column(paths: Sequence[Path], column: str, digits: int, scale: float = 1) -> str:
    """Mean and standard deviation over files of a column's mean over the second half of the rounds."""
    return shown(scale * np.array([late(path, column).mean() for path in paths]), digits)


@cache
def label_distances(path: Path) -> NDArray[np.float64]:
    """[rounds] l1 distance of the cohort's label mix, weighted as the clients' models, from that of all clients.

    NaN for methods with several models.
    """
    run = results.open(path)
    if "cluster_size_0" in run.rounds and "omega" not in run.clients:
        return np.array([np.nan])
    counts, clients = run.partition["label_counts"], run.clients["client"]
    samples = counts.sum(1)
    weights = run.clients.get("omega", samples[clients])
    found = []
    for round in np.unique(run.clients["round"]):
        here = run.clients["round"] == round
        mix = weights[here] @ (counts / samples[:, None])[clients[here]] / weights[here].sum()
        found.append(np.abs(mix - counts.sum(0) / samples.sum()).sum())
    return np.array(found)


def draw(files: Files, folder: Path) -> None:
    """Accuracy and the distance of label mixes over rounds, where groups of clients have classes of their own."""
    methods = {
        "FedAvg": "fedavg",
        "cohort's mixture": "fusion_cohort",
        "without memory": "fusion_without_memory",
        "DistributionFusion": "fusion",
    }
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (label, method), colour in zip(methods.items(), ("#000000", "#CC79A7", "#56B4E9", "#D55E00"), strict=True):
        paths = files.matching(f"fashion_mnist/groups/{method}/*")
        accuracies = np.array([100 * rounds_of(path)["test_accuracy"] for path in paths])
        distances = np.array([label_distances(path) for path in paths])
        for axes, values in ((left, accuracies), (right, distances)):
            smooth = np.convolve(values.mean(0), np.ones(WINDOW) / WINDOW, "valid")
            axes.plot(np.arange(len(smooth)) + (WINDOW + 1) / 2, smooth, label=label, color=colour, linewidth=1.2)
    left.set(xlabel="Round", ylabel="Test accuracy (%)")
    right.set(xlabel="Round", ylabel="l1 distance of label mix")
    left.legend(fontsize=7, frameon=False)
    figure.savefig(folder / "distribution_fusion.svg", metadata={"Date": None})


def shown(values: NDArray[np.float64], digits: int) -> str:
    """Mean and standard deviation of the known values."""
    known = values[~np.isnan(values)]
    if not len(known):
        return "-"
    return f"{known.mean():.{digits}f}" + (f" ± {known.std(ddof=1):.{digits}f}" if len(known) > 1 else "")


STUDY = Study(
    module="studies.partial_participation",
    cells=cells(),
    tables={
        **{
            f"{data}/{setting}": partial(show, f"{data}/{setting}", [*BASELINES, *OURS])
            for data, setting in product(DATA, SETTINGS)
        },
        "components": partial(show, "fashion_mnist/groups", ["fedavg", *COMPONENTS, "fusion"]),
    },
    draw=draw,
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
