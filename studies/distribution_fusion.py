"""DistributionFusion on real data, as far as two cores carry it: python -m studies.distribution_fusion.

LeNet with batch normalisation on 4,000 images, 20 clients, all of them in each of 12 rounds of one local epoch, in
batches of 25 at a learning rate of 0.05; because there are few rounds, a fit every fourth.

With all clients in every round the method's population mixture is FedAvg by definition: these runs have the cohort's.
`python -m studies.partial_participation` has both, where some of the clients take part.

    methods      the nine of the paper's table, on MNIST and Fashion-MNIST, split by shards (two classes a client) and
                 by Dirichlet(0.1) and (0.5). FedCluster is FL+HC; methods with several models have three
    choices      what the paper leaves open, one at a time, on Fashion-MNIST and Dirichlet(0.1): tau, how clients are
                 allotted, M, how variances are merged, the cap; not which layers, of which LeNet has just two
    sensitivity  DistributionFusion and FedAvg there with other numbers of clients and local epochs, and other M

Each run is a process of its own on one rank, as many at a time as there are cores; those whose file is there and
finished with as many rounds are not repeated. Prints a table of each setting, and what the weights omega were: the
mean over rounds and runs, ± standard deviation over runs.

    python -m studies.distribution_fusion --cost

prints instead what a round of workload C takes (ResNet18, ten clients), what of it the server needs for statistics,
inference and weights, and the bytes; a fit in every other round, so that all kinds of rounds are there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import sys
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.workloads import TRAINING
from fedmpi import results
from fedmpi.experiment.command_line import parse
from fedmpi.results.__main__ import main as show
from fedmpi.results.formats import FORMATS
from studies.runs import train_all

PROTOCOL = (
    "--dataset Subset --dataset.samples 4000 --dataset.test_samples 2000 --model LeNet --sampler All --clients 20"
    " --local.epochs 1 --local.batch_size 25 --local.lr 0.05 --evaluate_every 2"
)
DATA = {"mnist": "--dataset.over MNIST", "fashion_mnist": "--dataset.over FashionMNIST"}
PARTITIONS = {
    "shards": "--partition Shards",
    "dirichlet_0.1": "--partition Dirichlet --partition.alpha 0.1",
    "dirichlet_0.5": "--partition Dirichlet --partition.alpha 0.5",
}
#: Of the cohort's mixture: that of the population is FedAvg with all clients in every round.
OURS = "--algorithm DistributionFusion --algorithm.mixture cohort --algorithm.fit_every 4"
METHODS = {
    "fedavg": "",
    "fedprox": "--algorithm FedProx",
    "fedgn": "--model.norm group",
    "fedma": "--algorithm FedMA",
    "fesem": "--algorithm FeSEM",
    "ifca": "--algorithm IFCA",
    "fedcluster": "--algorithm FLHC",
    "fedgroup": "--algorithm FedGroup",
    "fused": OURS,
}
CHOICES = {
    "fused": OURS,
    "tau_0": f"{OURS} --algorithm.pi_power 0",
    "tau_1": f"{OURS} --algorithm.pi_power 1",
    "soft": f"{OURS} --algorithm.allocation soft",
    "M_5": f"{OURS} --algorithm.components 5",
    "linear": f"{OURS} --algorithm.bn_merge linear",
    "uncapped": f"{OURS} --algorithm.pi_power 0 --algorithm.cap null",
    "fedavg": "",
}
OTHERS = {"clients_10": "--clients 10", "clients_40": "--clients 40", "epochs_3": "--local.epochs 3"}
SENSITIVITY = {
    **{f"{name}_fused": f"{OURS} {options}" for name, options in OTHERS.items()},
    **{f"{name}_fedavg": options for name, options in OTHERS.items()},
    **{f"M_{components}": f"{OURS} --algorithm.components {components}" for components in (2, 5, 30)},
    "fused": OURS,
    "fedavg": "",
}
PARTS = {"methods": METHODS, "choices": CHOICES, "sensitivity": SENSITIVITY}
#: Columns of /rounds of the weights.
OF_WEIGHTS = ("weights_l1", "effective_clients", "components_alive", "between_components", "twin_correlation")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.distribution_fusion")
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="(default: methods and choices)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data sets (default: data)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/distribution_fusion"), help="(default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=12, help="(default: 12)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--datasets", nargs="*", default=list(DATA), choices=list(DATA), help="(default: both)")
    parser.add_argument(
        "--partitions", nargs="*", default=list(PARTITIONS), choices=list(PARTITIONS), help="(default: all)"
    )
    parser.add_argument("--methods", nargs="*", help="of a part's runs only these (default: all)")
    parser.add_argument("--format", choices=list(FORMATS), default="text", help="of the tables (default: text)")
    parser.add_argument("--cost", action="store_true", help="what a round takes")
    chosen = parser.parse_args()
    if chosen.cost:
        print_cost()
        return
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    statuses = [0]
    for part in chosen.parts or ["methods", "choices"]:
        runs = PARTS[part]
        names = [name for name in runs if chosen.methods is None or name in chosen.methods]
        places = list(product(chosen.datasets, chosen.partitions))
        if part != "methods":
            places = [("fashion_mnist", "dirichlet_0.1")]
        experiments = {
            chosen.folder / f"{dataset}-{partition}-{name}-{seed}.h5": f"{PROTOCOL} {DATA[dataset]}"
            f" --dataset.over.root {shlex.quote(str(chosen.data))} {PARTITIONS[partition]} --seed {seed} {runs[name]}"
            for seed, (dataset, partition), name in product(range(chosen.seeds), places, names)
        }
        statuses.append(int(not train_all(experiments, chosen.rounds)))
        for dataset, partition in places:
            paths = [
                chosen.folder / f"{dataset}-{partition}-{name}-{seed}.h5"
                for name, seed in product(names, range(chosen.seeds))
            ]
            print(f"\n{part}: {dataset}, {partition}\n")
            statuses.append(show(["table", *map(str, paths), "--format", chosen.format, "--costs"]))
            print(f"\n{FORMATS[chosen.format](weights_of(paths))}")
    sys.exit(max(statuses))


def weights_of(paths: Iterable[Path]) -> list[list[str]]:
    """The rows of a table of the weights, one for each name of runs that have any; NaN counts in no mean."""
    means: dict[str, list[list[float]]] = {}
    for path in paths:
        rounds = results.open(path).rounds if path.exists() else {}
        if OF_WEIGHTS[0] in rounds:
            columns = (rounds[name][~np.isnan(rounds[name])] for name in OF_WEIGHTS)
            found = [float(known.mean()) if len(known) else np.nan for known in columns]
            means.setdefault(path.stem.rsplit("-", 2)[1], []).append(found)
    return [["runs", *OF_WEIGHTS], *([name, *map(_shown, np.array(runs).T)] for name, runs in means.items())]


def print_cost() -> None:
    """Seconds and bytes of three rounds: a first fit, none, and another."""
    from fedmpi.mpi.world import World

    with tempfile.TemporaryDirectory() as folder:
        options = f"{TRAINING['C'].options} --algorithm DistributionFusion --algorithm.fit_every 2 --rounds 3"
        experiment, config = parse(shlex.split(f"{options} --evaluate_every 0 --output {folder}/run.h5"))
        with contextlib.redirect_stdout(io.StringIO()):
            experiment.run(World(), config)
        run = results.open(Path(folder, "run.h5"))
        rounds, weights, clients = run.rounds, run.state_dict(), len(run.clients["client"]) // 3
    for kind, whole, server in zip(
        ("first fit", "no fit", "fit"), rounds["seconds"], rounds["server_seconds"], strict=True
    ):
        print(f"{kind:10}{whole:8.2f} s a round, {server:.3f} s at the server ({100 * server / whole:.1f} %)")
    buffers = sum(x.size for name, x in weights.items() if name.endswith(("running_mean", "running_var")))
    told = 2 * buffers  # as many scales and shifts as means and variances
    up = int(rounds["bytes_up"][0]) // clients
    size = 4 * sum(x.size for x in weights.values())
    print(f"a client sends {up:,} bytes, {4 * told:,} of them first, for the weights; a model has {size:,}")


def _shown(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    if not len(known):
        return "-"
    return f"{known.mean():.3f}" + (f" ± {known.std(ddof=1):.3f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
