"""What there is to know of a machine with a GPU, in a few minutes: python -m benchmarks gpu --minutes 8.

First correctness: every method on the GPU compared with the CPU, twice, and on several ranks that share the GPU. Then
speed: clients trained one by one and side by side, uncompiled and compiled. Then the published workloads of other
simulators. Everything is measured in this order until the time is up, and every row is printed once it is known. On a
machine without a GPU the same is measured on the CPU, with smaller sizes.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.every_method import methods
from benchmarks.launch import mpirun
from fedmpi import results

#: The largest distance between weights on a GPU and on a CPU, as a share of their length.
TOLERANCE = 0.001
NETWORKS = {
    "CIFAR CNN": "--model CifarCNN --dataset.channels 3 --dataset.side 32",
    "LeNet": "--model LeNet",
    "ResNet18": "--model ResNet18 --dataset.channels 3 --dataset.side 32",
}
ONE_STEP = "--local.epochs 1 --local.batch_size 10 --local.lr 0.01 --evaluate_every 0 --partition IID"


@dataclass(frozen=True)
class Finding:
    """A measurement, and what it is compared with: larger ratios are better.

    Attributes:
        what: in words.
        unit: of both.
        found: for example seconds.
        reference: a target, a tolerance or a published figure; NaN: none.
        ratio: NaN: none.
    """

    what: str
    unit: str
    found: float
    reference: float = float("nan")
    ratio: float = float("nan")


class Course:
    """Measures part by part until the time is up.

    Args:
        minutes: for everything.
        folder: for results files.
    """

    def __init__(self, minutes: float, folder: Path) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._folder = folder
        self.on_gpu = torch.cuda.is_available()
        self._device = f"--device {'cuda' if self.on_gpu else 'cpu'}"

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def findings(self) -> Iterator[Finding]:
        yield from self._correctness()
        yield from self._speed()
        yield from self._published()

    def _run(
        self, what: str, options: Mapping[str, str], ranks: int = 1, share: float = 1.0
    ) -> Iterator[dict[str, Any]]:
        """The runs of a job, as they end; the job is ended when its share of the time that is left is over."""
        folder = self._folder / what
        folder.mkdir()
        lines = [
            f"{shlex.quote(name)} {words} --output {shlex.quote(str(folder / f'{number}.h5'))}"
            for number, (name, words) in enumerate(options.items())
        ]
        (folder / "lines").write_text("\n".join(lines))
        command = [*mpirun(ranks), "-m", "benchmarks.in_turn", str(folder / "lines")]
        job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert job.stdout
        end = time.monotonic() + share * self.seconds_left
        try:
            for line in job.stdout:
                yield json.loads(line)
                if time.monotonic() > end:
                    return
        finally:
            job.terminate()
            job.wait()

    def _correctness(self) -> Iterator[Finding]:
        """All methods: GPU against CPU, the GPU twice, and several ranks on the GPU."""
        on_cpu = {name: f"{options} --device cpu" for name, options in methods().items()}
        on_gpu = {name: f"{options} {self._device}" for name, options in methods().items()}
        if not self.on_gpu:
            on_cpu, on_gpu = (dict(list(options.items())[:3]) for options in (on_cpu, on_gpu))
        cpu = {run["name"]: run for run in self._run("cpu", on_cpu, share=0.15)}
        gpu = {run["name"]: run for run in self._run("gpu", on_gpu, share=0.15)}
        for name, run in gpu.items():
            if "error" in run:
                yield Finding(f"{name}: {run['error']}", "", float("nan"))
            elif "sha256" in cpu.get(name, {}):
                one, other = (results.open(found["file"]).weights for found in (cpu[name], run))
                apart = float(np.linalg.norm(one - other) / np.linalg.norm(one))
                what = f"{name}: distance of weights on the GPU from those on the CPU, compared with the tolerance"
                yield Finding(what, "", apart, TOLERANCE, TOLERANCE / max(apart, TOLERANCE / 1000))
        for what, ranks in {"the GPU twice": 1, "3 ranks and 1": 3, "5 ranks and 1": 5}.items():
            again = list(self._run(what, on_gpu, ranks, share=0.15))
            equal = [run["name"] for run in again if run.get("sha256") == gpu.get(run["name"], {}).get("sha256")]
            others = ", ".join(run["name"] for run in again if run["name"] not in equal) or "none"
            told = f"{what}: methods with the same sha256, compared with those that ended; others: {others}"
            yield Finding(told, "methods", len(equal), len(again), len(equal) / max(len(again), 1))

    def _speed(self) -> Iterator[Finding]:
        """Clients per second of each network, by the number of clients that are trained side by side."""
        samples, most = (20_000, 256) if self.on_gpu else (400, 8)
        for network, model in NETWORKS.items() if self.on_gpu else list(NETWORKS.items())[1:2]:
            for cohort in (10, 100) if self.on_gpu else (10,):
                ways = {"one by one": "--local.vectorize off"}
                for at_once in (8, 32, 128, 256):
                    if at_once <= most and at_once < 2 * cohort:
                        ways[f"{at_once} side by side"] = f"--local.vectorize {at_once}"
                        ways[f"{at_once} side by side, compiled"] = f"--local.vectorize {at_once} --local.compile on"
                data = f"--dataset benchmarks.workloads.MadeUp --dataset.samples {samples}"
                common = f"{data} {model} {ONE_STEP} --clients 200 --cohort {cohort} --rounds 4 {self._device}"
                if self.seconds_left < 5:
                    return
                runs = {f"{network}, {cohort} clients, {way}": f"{common} {options}" for way, options in ways.items()}
                alone = float("nan")
                for run in self._run(f"speed {network} {cohort}", runs, share=0.25):
                    if "error" in run:
                        yield Finding(f"{run['name']}: {run['error']}", "1/s", float("nan"))
                        continue
                    rate = cohort / float(np.median(run["seconds"][1:]))
                    alone = rate if "one by one" in run["name"] else alone
                    memory = f", {run['bytes'] / 1e6:,.0f} MB" if "bytes" in run else ""
                    yield Finding(
                        f"{run['name']}{memory}, compared with one by one", "1/s", rate, alone, rate / alone
                    )

    def _published(self) -> Iterator[Finding]:
        """Workloads that other simulators publish, on made-up data of the same size; targets in seconds."""
        cifar = "--dataset benchmarks.workloads.MadeUp --dataset.samples 50000 --dataset.channels 3 --dataset.side 32"
        digits = "--dataset benchmarks.workloads.MadeUp --dataset.samples 60000"
        five = "--clients 100 --cohort 100 --local.epochs 5 --local.batch_size 50 --local.lr 0.01 --rounds 2"
        pfl = "--model benchmarks.workloads.PflCNN --clients 1000 --cohort 50 --local.epochs 1 --local.batch_size 10"
        # (title, options, seconds per round that are the target)
        rows = [
            ("pfl-research's CIFAR-10 benchmark, a round of 1500", f"{cifar} {pfl} --local.lr 0.1", 60 / 1500),
            ("PFLlib's quick start, a round", f"{digits} --model McMahanCNN --clients 20 --local.batch_size 10", 1.0),
            ("BlazeFL's table, CNN, a round of 5", f"{cifar} --model CifarCNN {five}", 5 / 5),
            ("BlazeFL's table, ResNet18, a round of 5", f"{cifar} --model ResNet18 {five}", 40 / 5),
        ]
        for number, (title, options, target) in enumerate(rows):
            if self.seconds_left < 5:
                return
            small = "" if self.on_gpu else " --dataset.samples 500 --clients 20 --cohort 2 --local.epochs 1"
            every = "--sampler All --cohort null --local.epochs 1 --local.lr 0.01" if "quick start" in title else ""
            line = f"{options} --partition IID --evaluate_every 0 --rounds 3 {self._device}{small} {every}"
            for run in self._run(f"published {number}", {title: line}, share=0.5):
                if "error" in run:
                    yield Finding(f"{title}: {run['error']}", "s", float("nan"), target)
                else:
                    seconds = float(np.median(run["seconds"][1:]))
                    yield Finding(f"{title}, compared with the target", "s", seconds, target, target / seconds)
