"""What FedFTG's server phase costs: python -m benchmarks.server_phase.

Three iterations with LeNet on random images of Fashion-MNIST's size, on 1, 2 and 4 ranks, with cohorts of 10 and 50;
compared with plain PyTorch that has all teachers in one process. Prints a table: seconds of a phase, what rank 0
sends and receives in it (in one place: the clients' models), and by how much the memory of rank 0 has grown since the
set-up, at its highest. With one rank that is also the memory of training.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.launch import mpirun, output_of
from benchmarks.state import resident
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedftg import FedFTG
from fedmpi.data import Arrays, Dataset, Progress
from fedmpi.experiment.command_line import parse
from fedmpi.federation.federation import Federation
from fedmpi.models import LeNet
from fedmpi.models.generators.images import ImageGenerator
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort
from fedmpi.training.flat import FlatModel

RANKS, COHORTS, ITERATIONS, ROUNDS = (1, 2, 4), (10, 50), 3, 3
SHAPE, CLASSES, BATCH, NOISE, STUDENT_STEPS = (1, 28, 28), 10, 50, 100, 5


class Noise(Dataset):
    """Random images and labels."""

    classes = CLASSES

    def read(self, progress: Progress) -> Arrays:
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (2000, *SHAPE), dtype=np.uint8)
        y = rng.integers(0, CLASSES, len(x))
        return Arrays(x, y, x[:10], y[:10])


class Counting(World):
    """Counts the bytes that rank 0 tells, and those that it gets as sums."""

    moved = 0

    def tell(self, vector: NDArray) -> NDArray:
        self.moved += vector.nbytes
        return super().tell(vector)

    def sum(self, buffer: NDArray) -> None:
        self.moved += buffer.nbytes
        super().sum(buffer)


class Timed(FedFTG):
    """Takes time and bytes of the server's phases but the first."""

    def __init__(self) -> None:
        super().__init__(FedAvg(), iterations=ITERATIONS)
        self.phases: list[tuple[float, int]] = []

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.memory = resident()

    def distill(self, fed: Federation, cohort: Cohort, weights: Tensor) -> Tensor:
        world: Any = fed.context.world
        world.meet()
        began, before = time.perf_counter(), world.moved
        result = super().distill(fed, cohort, weights)
        if fed.round > 1:
            self.phases.append((time.perf_counter() - began, world.moved - before))
        return result


def peak() -> int:
    """The most bytes of this process that ever were in memory; the C library's figure has its parent's as well."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def distributed(cohort: int) -> None:
    """Prints seconds, bytes and memory of one job's phases."""
    world = Counting()
    options = f"--dataset benchmarks.server_phase.Noise --partition IID --clients {cohort} --cohort {cohort}"
    options += f" --rounds {ROUNDS} --local.steps 1 --evaluate_every 0 --algorithm benchmarks.server_phase.Timed"
    with tempfile.TemporaryDirectory() as folder:
        experiment, config = parse([*options.split(), "--output", f"{folder}/run.h5"])
        for _ in experiment.outcomes(world, config):
            pass
    algorithm: Any = experiment.algorithm  # not this module's Timed, for this one is called __main__
    if world.is_server:
        print("found", *np.median(algorithm.phases, axis=0), peak() - algorithm.memory, flush=True)


def gathered(cohort: int) -> None:
    """The same of the same steps in plain PyTorch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    memory = resident()
    generator, student = ImageGenerator(NOISE).build(SHAPE, CLASSES), LeNet().build(SHAPE, CLASSES)
    teachers = [LeNet().build(SHAPE, CLASSES).eval().requires_grad_(False) for _ in range(cohort)]
    parts = torch.full((cohort,), 1 / cohort)
    seconds = []
    for _ in range(ROUNDS - 1):
        began = time.perf_counter()
        adam = torch.optim.Adam(generator.parameters(), lr=0.01)
        sgd = torch.optim.SGD(student.parameters(), lr=0.01, weight_decay=1e-3)
        for _ in range(ITERATIONS):
            noise, labels = torch.randn(BATCH, NOISE), torch.randint(CLASSES, (BATCH,))
            x = generator.train()(noise, labels)
            loss = loss_of_generator(x, noise, labels, student.eval(), teachers, parts)
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                x = generator.eval()(noise, labels)
                target = torch.stack([p * teacher(x).softmax(1) for p, teacher in zip(parts, teachers, strict=True)])
            student.train()
            for _ in range(STUDENT_STEPS):
                sgd.zero_grad()
                functional.cross_entropy(student(x), target.sum(0)).backward()
                sgd.step()
        seconds.append(time.perf_counter() - began)
    sent = cohort * 4 * FlatModel(student, torch.device("cpu")).layout.size
    print("found", np.median(seconds), sent, peak() - memory, flush=True)


def loss_of_generator(
    x: Tensor, noise: Tensor, labels: Tensor, student: nn.Module, teachers: Sequence[nn.Module], parts: Tensor
) -> Tensor:
    log_q = functional.log_softmax(student(x), 1)
    flat = x.flatten(1)
    distances = torch.cdist(flat, flat, p=1) / flat.shape[1] * (noise[:, None] - noise).square().mean(2)
    loss = torch.exp(-distances.mean())
    for part, teacher in zip(parts, teachers, strict=True):
        logits = teacher(x)
        apart = functional.kl_div(log_q, logits.log_softmax(1), reduction="batchmean", log_target=True)
        loss = loss + part * (functional.cross_entropy(logits, labels) - apart)
    return loss


def measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds, and MB of traffic and memory."""
    (line,) = [line for line in output_of(command).splitlines() if line.startswith("found ")]
    seconds, sent, grown = map(float, line.split()[1:])
    return seconds, sent / 1e6, grown / 1e6


def main() -> None:
    program = "-m", "benchmarks.server_phase"
    ways = {"in one place": [sys.executable, *program, "gathered"]}
    ways |= {f"on {ranks} ranks": [*mpirun(ranks), *program, "distributed"] for ranks in RANKS}
    print("| teachers | cohort | seconds | MB through rank 0 | MB of memory |")
    print("| --- | --- | --- | --- | --- |")
    for way, command in ways.items():
        for cohort in COHORTS:
            seconds, sent, grown = measured([*command, str(cohort)])
            print(f"| {way} | {cohort} | {seconds:.2f} | {sent:.3g} | {grown:.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"distributed": distributed, "gathered": gathered}[sys.argv[1]](int(sys.argv[2]))
    else:
        main()
