"""All methods with one model, and all personalised ones, at a budget at which they can be compared.

Fashion-MNIST, LeNet with batch normalisation, 100 clients split by Dirichlet(0.1) or (0.5), 10 per round, 50 rounds
of one local epoch in batches of 50 at a learning rate of 0.05, measured every tenth round. Everything else is a
method's default; METHODS and PERSONAL have the exceptions. FedAvg and FedBABU are also measured after each client has
fine-tuned the global model for an epoch.

The learning rate of a server optimizer is the best of RATES on a validation set: a tenth of the clients' training
samples, seed 0, Dirichlet(0.1). SERVER_RATES has the choice.

A cell is ALPHA/METHOD/SEED, such as 0.1/fedprox/0, or server_rate/METHOD/RATE.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

import numpy as np

from fedmpi import results
from studies.study import Files, Study

PROTOCOL = (
    "--rounds 50 --dataset FashionMNIST --partition Dirichlet --model LeNet --clients 100 --cohort 10"
    " --local.epochs 1 --local.batch_size 50 --local.lr 0.05 --evaluate_every 10"
)
SERVER_OPTIMIZERS = {"fedavgm": "FedAvgM", "fedadagrad": "FedAdagrad", "fedadam": "FedAdam", "fedyogi": "FedYogi"}
RATES = {
    "fedavgm": ("0.1", "0.3", "1"),
    "fedadagrad": ("0.003", "0.01", "0.03", "0.1"),
    "fedadam": ("0.003", "0.01", "0.03", "0.1"),
    "fedyogi": ("0.003", "0.01", "0.03", "0.1"),
}
SERVER_RATES = {"fedavgm": "0.1", "fedadagrad": "0.01", "fedadam": "0.01", "fedyogi": "0.01"}
METHODS = {
    "fedavg": "--evaluate_fine_tuned 1 --evaluate_every 25",
    "fedprox": "--algorithm FedProx",
    "scaffold": "--algorithm SCAFFOLD",
    "feddyn": "--algorithm FedDyn",
    "moon": "--algorithm MOON",
    "fednova": "--algorithm FedNova",
    "fedcm": "--algorithm FedCM",
    "fedacg": "--algorithm FedACG",
    "fedexp": "--algorithm FedExP",
    "feddisco": "--algorithm FedDisco",
    "mimelite": "--algorithm MimeLite",
    "fedsam": "--algorithm FedSAM",
    "fedlc": "--algorithm FedLC",
    "balanced": "--algorithm BalancedSoftmax",
    "fedrs": "--algorithm FedRS",
    "fedntd": "--algorithm FedNTD",
    "mofedsam": "--algorithm MoFedSAM",
    "ccvr": "--algorithm CCVR",
    **{name: f"--algorithm {SERVER_OPTIMIZERS[name]} --algorithm.lr {rate}" for name, rate in SERVER_RATES.items()},
}
PERSONAL = {
    "fedbabu": "--algorithm FedBABU --evaluate_fine_tuned 1 --evaluate_every 25",
    "fedper": "--algorithm FedPer",
    "fedrep": "--algorithm FedRep --algorithm.head_epochs 1",
    "fedbn": "--algorithm FedBN",
    "ditto": "--algorithm Ditto",
    "lgfedavg": "--algorithm LGFedAvg",
    "fedrod": "--algorithm FedRoD",
    "apfl": "--algorithm APFL",
    "fedala": "--algorithm FedALA",
    "perfedavg": "--algorithm PerFedAvg --algorithm.inner_lr 0.05",
    "pfedme": "--algorithm pFedMe",
    "knnper": "--algorithm KNNPer",
    "fedamp": "--algorithm FedAMP",
    "fedfomo": "--algorithm FedFomo",
    "fedproto": "--algorithm FedProto",
    "fedpac": "--algorithm FedPAC",
    "feddbe": "--algorithm FedDBE",
    "local": "--algorithm LocalOnly",
}
ALPHAS = ("0.1", "0.5")
SEEDS = range(3)


def show(alpha: str, names: tuple[str, ...], files: Files) -> None:
    """Print the accuracy of each method."""
    files.show_results("table", *(f"{alpha}/{name}/*" for name in names), options="--costs")


def show_server_rates(files: Files) -> None:
    """Print the accuracy on the validation set for each learning rate of each server optimizer."""
    rows = [["method", "server's learning rate", "validation accuracy (%)"]]
    for path in files.matching("server_rate/*"):
        run = results.open(path)
        accuracy = 100 * run.rounds["validation_accuracy"][-1]
        rows.append([run.attributes["algorithm"], path.stem.rpartition("-")[2], f"{accuracy:.2f}"])
    files.show(rows)


def show_fine_tuned(files: Files) -> None:
    """Print the accuracy of the clients' models on their own test samples, after fine-tuning of a global model."""
    rows = [["alpha", "method", "runs", "global model (%)", "fine-tuned (%)"]]
    for alpha, name in product(ALPHAS, ("fedavg", "fedbabu")):
        runs = [results.open(path) for path in files.matching(f"{alpha}/{name}/*")]
        if runs:
            kinds = [
                100 * np.array([run.rounds[f"{kind}_accuracy"][-1] for run in runs])
                for kind in ("test", "fine_tuned")
            ]
            spread = [f" ± {values.std(ddof=1):.2f}" if len(runs) > 1 else "" for values in kinds]
            cells = [f"{values.mean():.2f}{part}" for values, part in zip(kinds, spread, strict=True)]
            rows.append([alpha, runs[0].attributes["algorithm"], str(len(runs)), *cells])
    files.show(rows)


STUDY = Study(
    module="studies.methods",
    cells={
        **{
            f"server_rate/{name}/{rate}": f"{PROTOCOL} --partition.alpha 0.1 --seed 0 --validation 0.1"
            f" --algorithm {SERVER_OPTIMIZERS[name]} --algorithm.lr {rate}"
            for name, rates in RATES.items()
            for rate in rates
        },
        **{
            f"{alpha}/{method}/{seed}": f"{PROTOCOL} --partition.alpha {alpha} --seed {seed} {options}"
            for seed, alpha, (method, options) in product(SEEDS, ALPHAS, (METHODS | PERSONAL).items())
        },
    },
    tables={
        **{f"one_model_{alpha}": partial(show, alpha, tuple(METHODS)) for alpha in ALPHAS},
        **{f"personal_{alpha}": partial(show, alpha, tuple(PERSONAL)) for alpha in ALPHAS},
        "server_rates": show_server_rates,
        "fine_tuned": show_fine_tuned,
    },
    root="--dataset.root",
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
