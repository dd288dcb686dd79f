"""One round of each backbone on its data: python -m studies.backbones --data DATA.

Two clients of a hundred (of the sample of Sentiment140, of twenty) train one epoch in batches of 50, on one rank.
Prints, as Markdown, what the second of them took, the first being slowed down by what is done once, and the most
memory that the process ever had; PyTorch alone takes a part of that, which the last line gives.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from fedmpi import results

BACKBONES = (
    ("MNIST", "MLP"),
    ("MNIST", "LeNet5"),
    ("MNIST", "McMahanCNN"),
    ("FashionMNIST", "LeNet"),
    ("FashionMNIST", "ExquisiteNetV1"),
    ("CIFAR10", "CifarCNN"),
    ("CIFAR10", "VGG11"),
    ("CIFAR10", "VGG11 --model.norm batch"),
    ("CIFAR10", "MobileNetV2"),
    ("CIFAR10", "DenseNet121 --model.growth 12"),
    ("CIFAR10", "DenseNet121"),
    ("CIFAR10", "ResNet18"),
    ("CIFAR10", "ResNet34"),
    ("Sentiment140", "BiLSTM"),
)
IMPORTS = "import torch; from mpi4py import MPI"


def peak_megabytes(command: list[str]) -> float:
    """Run a command; the most memory that its process had at a time.

    Raises:
        SystemExit: it failed; the message is what it printed last.
    """
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            raise SystemExit(f"{shlex.join(command)}: {log.read().splitlines()[-1]}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.backbones")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data sets (default: data)")
    parser.add_argument("--models", nargs="*", help="names of those to measure (default: all)")
    chosen = parser.parse_args()
    print("| model | data | parameters | samples | seconds a client | MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        for dataset, model in BACKBONES:
            if chosen.models and model.split()[0] not in chosen.models:
                continue
            clients = 20 if dataset == "Sentiment140" else 100
            options = (
                f"--dataset {dataset} --dataset.root {shlex.quote(str(chosen.data))} --partition IID --model {model}"
                f" --clients {clients} --cohort 2 --rounds 1 --evaluate_every 0 --local.epochs 1"
                f" --local.batch_size 50 --local.lr 0.01 --output {path} --overwrite"
            )
            memory = peak_megabytes([sys.executable, "-m", "fedmpi", *shlex.split(options)])
            run = results.open(path)
            name = model.replace("--model.", "")
            size = sum(
                tensor.size for tensor_name, tensor in run.state_dict().items() if "running" not in tensor_name
            )
            samples, seconds = (run.clients[column][-1] for column in ("samples", "seconds"))
            print(f"| {name} | {dataset} | {size:,} | {samples} | {seconds:.3g} | {memory:,.0f} |", flush=True)
    print(f"\nA process that imports torch and mpi4py has {peak_megabytes([sys.executable, '-c', IMPORTS]):,.0f} MB.")


if __name__ == "__main__":
    main()
