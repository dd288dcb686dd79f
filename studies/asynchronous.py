"""Synchronous and asynchronous methods over virtual time, on Fashion-MNIST with clients of very different speed.

LeNet, 100 clients split by Dirichlet(0.3), speeds lognormal with sigma 1, one local epoch in batches of 50 at a
learning rate of 0.05. In every method 20 clients train at any time: FedAvg waits for all of them, FedAvg with
over-selection uses the first 15 of 20, FedBuff updates at every tenth arrival, and FedAsync at each. All runs have
about 600 updates of clients. Beside each accuracy stands the share of the updates that come from the slowest tenth of
the clients: 10 % would be their due.

A cell is METHOD/SEED, such as fedbuff/0; small/0 is a run of FedBuff with 12 clients.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fedmpi import results
from fedmpi.policies import Heterogeneous
from fedmpi.results import Run
from studies.study import Files, Study

CLIENTS, AT_ONCE, SPREAD = 100, 20, 1.0
PROTOCOL = (
    f"--dataset FashionMNIST --partition Dirichlet --partition.alpha 0.3 --model LeNet --clients {CLIENTS}"
    f" --conditions Heterogeneous --conditions.speed_spread {SPREAD} --conditions.bandwidth_spread {SPREAD}"
    " --local.epochs 1 --local.batch_size 50 --local.lr 0.05 --weighting uniform"
)
METHODS = {
    "fedavg_waits": f"--algorithm FedAvg --cohort {AT_ONCE} --rounds 30",
    "fedavg_over_selects": "--algorithm FedAvg --cohort 15 --conditions.over_select 1.3 --rounds 40",
    "fedbuff": f"--algorithm FedBuff --algorithm.concurrency {AT_ONCE} --cohort 10 --rounds 60",
    "fedbuff_lr_2": f"--algorithm FedBuff --algorithm.concurrency {AT_ONCE} --cohort 10 --rounds 60"
    " --server_optimizer Momentum --server_optimizer.lr 2 --server_optimizer.momentum 0",
    "fedasync": f"--algorithm FedAsync --algorithm.concurrency {AT_ONCE} --cohort 10 --rounds 62",
}
SEEDS = range(3)
#: A run so small that a chart of its jobs can be read.
SMALL = (
    "--dataset FashionMNIST --model LogisticRegression --clients 12 --cohort 3 --rounds 8 --local.epochs 1"
    f" --algorithm FedBuff --algorithm.concurrency 6 --conditions Heterogeneous --conditions.speed_spread {SPREAD}"
)
TARGETS = (0.6, 0.7, 0.75)


def share_of_slowest(run: Run) -> float:
    """The share of the updates that come from the slowest tenth of the clients, by seconds per step."""
    seed = int(run.attributes["seed"])
    speeds = Heterogeneous(speed_spread=SPREAD).profile(np.arange(CLIENTS), CLIENTS, seed).seconds_per_step
    slowest = np.argsort(speeds)[-CLIENTS // 10 :]
    return float(np.isin(run.clients["client"], slowest).mean())


def seconds_to(run: Run, target: float) -> float:
    """Virtual seconds until the test accuracy has reached a target; infinite if it has not."""
    reached = np.flatnonzero(run.rounds["test_accuracy"] >= target)
    return float(np.cumsum(run.rounds["virtual_seconds"])[reached[0]]) if len(reached) else np.inf


def show_times(files: Files) -> None:
    """Print virtual times to targets, the last accuracy, and the share of the slowest clients."""
    head = [f"seconds to {100 * target:.0f} %" for target in TARGETS]
    rows = [["method", "updates", "seconds", *head, "last (%)", "slowest tenth (%)"]]
    for method in METHODS:
        runs = [results.open(path) for path in files.matching(f"{method}/*")]
        if not runs:
            continue
        times = [_mean([seconds_to(run, target) for run in runs]) for target in TARGETS]
        updates = _mean([len(run.clients["client"]) for run in runs])
        whole = _mean([run.rounds["virtual_seconds"].sum() for run in runs])
        last = [100 * run.statistics().last for run in runs]
        slowest = _mean([100 * share_of_slowest(run) for run in runs])
        rows.append([method, updates, whole, *times, f"{np.mean(last):.2f} ± {np.std(last, ddof=1):.2f}", slowest])
    files.show(rows)


def show_staleness(files: Files) -> None:
    """Print the staleness of updates after the first 100, and its mean by Little's law."""
    rows = [["method", "mean", "expected mean", "median", "90th percentile", "largest", "fresh (%)"]]
    for method, buffer in (("fedbuff", 10), ("fedasync", 1)):
        paths = files.matching(f"{method}/*")
        if paths:
            found = np.concatenate([results.open(path).clients["staleness"][100:] for path in paths])
            cells = [found.mean(), (AT_ONCE - 1) / buffer, *np.percentile(found, (50, 90)), found.max()]
            rows.append([method, *(f"{cell:.3g}" for cell in cells), f"{100 * (found == 0).mean():.1f}"])
    files.show(rows)


def _mean(values: list[float]) -> str:
    mean = float(np.mean(values))
    return f"{mean:.3g}" if np.isfinite(mean) else "-"


def draw(files: Files, folder: Path) -> None:
    """The test accuracy over virtual time, and the jobs of a small run."""
    from fedmpi.results.__main__ import main

    paths = map(str, files.matching(*(f"{method}/*" for method in METHODS)))
    main(["plot", *paths, "--x", "virtual_seconds", "-o", str(folder / "asynchronous.png")])
    main(["plot", *map(str, files.matching("small/*")), "--jobs", "-o", str(folder / "jobs.png")])


STUDY = Study(
    module="studies.asynchronous",
    cells={
        **{
            f"{method}/{seed}": f"{PROTOCOL} {options} --seed {seed}"
            for method, options in METHODS.items()
            for seed in SEEDS
        },
        "small/0": f"{SMALL} --seed 0",
    },
    tables={"times": show_times, "staleness": show_staleness},
    root="--dataset.root",
    draw=draw,
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
