"""Memory and time of clients that train adapters of a frozen transformer: python -m benchmarks.adapters FOLDER

Eight clients take two steps of AdamW with LoRA of rank 8, several of them side by side, or one after another. Each
line is of a process of its own with one rank. The memory is the peak during training beyond that after the set-up, in
MB (VmHWM and VmRSS of /proc/self/status). The processor's seconds are those of the second time that all are trained.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.launch import output_of
from benchmarks.shared_base import Tokens
from fedmpi import Experiment
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import IID
from fedmpi.experiment.assembly import assemble
from fedmpi.models import HuggingFace
from fedmpi.models.adapters import LoRA
from fedmpi.mpi.world import World
from fedmpi.training.block import Block
from fedmpi.training.settings import LocalTraining

CLIENTS = 8
#: Texts per batch, tokens per text.
BATCHES = ((1, 8), (10, 48))
#: Clients side by side, and whether activations are computed again in the backward pass.
WAYS = ((1, False), (1, True), (2, False), (4, False), (8, False))


def status(name: str) -> float:
    """A line of /proc/self/status, in MB."""
    return int(Path("/proc/self/status").read_text().split(f"\n{name}:")[1].split()[0]) * 1024 / 1e6


def measure(folder: Path, texts: int, tokens: int, at_once: int, again: bool) -> None:
    """Print MB and seconds."""
    dataset = Tokens()
    dataset.length = tokens
    model = HuggingFace(folder, dropout=0.0, lora=LoRA(8, targets=("query", "value")), checkpointing=again)
    local = LocalTraining(
        steps=2, batch_size=texts, optimizer="adamw", lr=1e-3, vectorize="off" if at_once == 1 else at_once
    )
    settings: dict[str, Any] = {"dataset": dataset, "partition": IID(), "model": model, "local": local}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        experiment = Experiment(FedAvg(), **settings, clients=CLIENTS, cohort=CLIENTS, device="cpu")
        torch.set_num_threads(experiment.threads)
        federation = assemble(experiment, World()).engine.federation
    start, samples = federation.initial_weights(), federation.samples
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(2):
        began = time.process_time()
        for first in range(0, CLIENTS, at_once):
            some = np.arange(first, first + at_once)
            block = Block(some, samples[some], samples[some])
            federation.context.trainer.train(block, start.expand(at_once, -1), experiment.algorithm, 1, 1)
        seconds = time.process_time() - began
    print(status("VmHWM") - before, seconds)


def main(folder: str) -> None:
    """Print a table."""
    print("| texts per batch | tokens per text | side by side | memory of training | processor seconds |")
    print("|---|---|---|---|---|")
    for texts, tokens in BATCHES:
        for at_once, again in WAYS:
            chosen = [folder, texts, tokens, at_once, int(again)]
            said = output_of([sys.executable, "-m", "benchmarks.adapters", *map(str, chosen)])
            megabytes, seconds = map(float, said.split())
            way = f"{at_once}, with checkpointing" if again else str(at_once)
            print(f"| {texts} | {tokens} | {way} | {megabytes:,.0f} MB | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    path, *rest = sys.argv[1:]
    if rest:
        measure(Path(path), int(rest[0]), int(rest[1]), int(rest[2]), rest[3] == "1")
    else:
        main(path)
