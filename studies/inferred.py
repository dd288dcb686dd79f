"""The figures of DistributionFusion's paper, from results files.

    python -m studies.inferred labels RUN.h5 ...
    python -m studies.inferred statistics CENTRAL.h5 RUN.h5 ... -o cdf.png

labels: the class shares that the global model is trained on, sum_k omega_k p_k(y), compared with the true ones of all
clients' samples and with those of FedAvg's weights. The method infers weights only: no labels, and no density of
data.

statistics: the distance of the running means and variances of a run's normalisation layers from those of a model that
was trained on all samples in one place (`--algorithm Centralized`). It is KL(global || central) of histograms from -2
to 2 in steps of 0.1, with one count added to each bin. Also the share of values outside this range, and a figure of
the cumulative distributions. For methods with several models, the model of most clients is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.results import Run
from fedmpi.results.formats import FORMATS

Floats = NDArray[np.float64]
EDGES = np.linspace(-2, 2, 41)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.inferred")
    commands = parser.add_subparsers(required=True, metavar="labels|statistics")
    labels = commands.add_parser("labels", help="class shares, inferred and true")
    labels.set_defaults(command=lambda options: show_labels(list(map(results.open, options.runs))))
    statistics = commands.add_parser("statistics", help="distance of normalisation statistics from central training")
    statistics.set_defaults(command=show_statistics)
    statistics.add_argument("central", type=Path, metavar="CENTRAL.h5")
    statistics.add_argument("-o", "--output", type=Path, help="PNG, PDF or SVG file for the cumulative distributions")
    for command in (labels, statistics):
        command.add_argument("runs", type=Path, nargs="+", metavar="RUN.h5")
    options = parser.parse_args()
    try:
        options.command(options)
    except BadInput as error:
        sys.exit(str(error))


def show_labels(runs: Sequence[Run]) -> None:
    """Print class shares of each run, and their distances from the true ones over all rounds."""
    for run in runs:
        true, fused, plain = label_shares(run)
        print(f"{run.path}: mean over rounds of half the l1 distance from the true class shares:")
        for name, shares in (("weights omega", fused), ("FedAvg's weights", plain)):
            print(f"  {name:18}{np.abs(shares - true).sum(1).mean() / 2:.4f}")
        rows = [["class", "true (%)", "omega, last round (%)", "FedAvg's weights (%)"]]
        for label, values in enumerate(zip(true, fused[-1], plain[-1], strict=True)):
            rows.append([str(label), *(f"{100 * value:.2f}" for value in values)])
        print(f"\n{FORMATS['text'](rows)}\n")


def label_shares(run: Run) -> tuple[Floats, Floats, Floats]:
    """[classes], the true ones; [rounds, classes], those by the weights omega, and by FedAvg's.

    Raises:
        BadInput: the run has no such weights.
    """
    if "omega" not in run.clients:
        raise BadInput(f"{run.path}: has no weights omega; it must be one of DistributionFusion")
    counts = run.partition["label_counts"]
    own = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    clients, rounds = run.clients["client"], run.clients["round"]
    fused, plain = [], []
    for round in np.unique(rounds):
        here = rounds == round
        samples = counts.sum(1)[clients[here]]
        fused.append(run.clients["omega"][here] @ own[clients[here]])
        plain.append(samples / samples.sum() @ own[clients[here]])
    return counts.sum(0) / counts.sum(), np.array(fused), np.array(plain)


def show_statistics(options: argparse.Namespace) -> None:
    """Print the divergence of each run, and draw."""
    central, *runs = map(results.open, (options.central, *options.runs))
    known = {run: running_statistics(run) for run in (central, *runs)}
    rows = [["run", "KL(global || central)", "values", "outside -2..2 (%)"]]
    for run, values in known.items():
        outside = 100 * np.mean(np.abs(values) > EDGES[-1])
        rows.append([run.path.stem, f"{divergence(values, known[central]):.4f}", str(len(values)), f"{outside:.1f}"])
    print(FORMATS["text"](rows))
    if options.output:
        draw(known, options.output)
        print(options.output)


def running_statistics(run: Run) -> Floats:
    """All running means and variances of the global model.

    Raises:
        BadInput: it has none.
    """
    found = [x.ravel() for name, x in run.state_dict().items() if name.endswith(("running_mean", "running_var"))]
    if not found:
        raise BadInput(f"{run.path}: a model without running statistics")
    return np.concatenate(found).astype(np.float64)


def divergence(some: Floats, others: Floats) -> float:
    """KL of the histograms, one count added to each bin."""
    p, q = (np.histogram(values, EDGES)[0] + 1.0 for values in (some, others))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def draw(known: dict[Run, Floats], path: Path) -> None:
    """The cumulative distribution of each run's statistics."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for run, values in known.items():
        axes.ecdf(values, label=run.path.stem)
    axes.set(xlim=(EDGES[0], EDGES[-1]), xlabel="running mean or variance", ylabel="share of channels below")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
