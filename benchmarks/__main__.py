"""python -m benchmarks [NAME ...]: measure fedmpi and what it is compared with; print one table and write it as CSV.

Every benchmark is repeated several times, fedmpi and its reference in turn, because the speed of a machine drifts.
The ratios of pairs matter, not the absolute values.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from math import isnan
from pathlib import Path

import numpy as np

from benchmarks.asynchronous import ARRIVALS, SPED_UP, schedule_seconds, seconds_of_later_rounds, simulated_speed_up
from benchmarks.gpu import Course
from benchmarks.launch import mpirun, output_of
from benchmarks.methods import ASYNCHRONOUS, METHODS
from benchmarks.precision import WORKLOADS
from benchmarks.workloads import TRAINING
from fedmpi import results

LR_MNIST = (
    "--dataset MNIST --model LogisticRegression --partition ClassesPerClient --clients 1000 --cohort 10"
    " --rounds 100 --evaluate_every 20 --local.epochs 1 --local.batch_size 10 --local.lr 0.03"
)

IDLE = (
    "--algorithm benchmarks.null_round.Idle --model LogisticRegression --clients 100 --cohort 10"
    " --rounds 2000 --evaluate_every 0"
)
# What the engine may add to a round on one rank.
ENGINE_MS = 0.15
# Of fedmpi and a peer, at least: single pairs of the same two programs gave ratios from 0.87 to 1.45.
PAIRS = 3


def machine() -> str:
    """The machine and the versions of a measurement, one fact per line."""
    program = (
        "import torch; from fedmpi.experiment.environment import describe; from fedmpi.mpi.world import World;"
        "facts = describe(World(), torch.device('cpu'));"
        "names = 'hosts', 'cpu', 'python', 'torch', 'numpy', 'mpi4py', 'mpi', 'git_revision';"
        "print(*(f'{name}: {facts[name]}' for name in names), sep='\\n')"
    )
    described = output_of([*mpirun(1), "-c", program]).strip()
    return f"measured: {datetime.now():%Y-%m-%d %H:%M}\ncores: {os.cpu_count()}\n{described}"


@dataclass
class Row:
    """A measurement of fedmpi and of its reference. The ratio says how many times as fast, or as small, fedmpi is."""

    rung: str
    what: str
    unit: str
    fedmpi: float
    reference: float
    ratios: list[float]


def fedmpi(ranks: int, options: str, folder: Path) -> results.Run:
    output = folder / "run.h5"
    output_of([*mpirun(ranks), "-m", "fedmpi", *shlex.split(options), "--output", str(output), "--overwrite"])
    return results.open(output)


def paired(
    repeats: int, ours: Callable[[], float], reference: Callable[[], float]
) -> tuple[float, float, list[float]]:
    """Medians of both, and the ratio of each pair; larger is better for both."""
    pairs = [(ours(), reference()) for _ in range(repeats)]
    return (*np.median(pairs, axis=0).tolist(), [a / b for a, b in pairs])


def training(rung: str, repeats: int) -> Iterator[Row]:
    """Clients per second in whole rounds, with the results file: a server and two workers, against a plain loop."""
    workload = TRAINING[rung]
    pairs = [
        [workload.cohort / float(seconds) for seconds in line.split()]
        for _ in range(repeats)
        for line in output_of([*mpirun(3), "-m", "benchmarks.pairs", rung, str(workload.pairs)]).splitlines()
    ]
    ours, bare = np.median(pairs, axis=0).tolist()
    yield Row(rung, f"{workload.title}: clients/s, plain loop", "1/s", ours, bare, [a / b for a, b in pairs])


def bf16(repeats: int, rungs: Collection[str]) -> Iterator[Row]:
    """Clients per second in whole rounds of networks in bfloat16, compared with float32: a server and two workers."""
    for rung in filter(rungs.__contains__, WORKLOADS):
        workload = TRAINING[rung]
        pairs = [
            [workload.cohort / float(seconds) for seconds in line.split()]
            for _ in range(repeats)
            for line in output_of([*mpirun(3), "-m", "benchmarks.precision", rung, "4"]).splitlines()
        ]
        ours, plain = np.median(pairs, axis=0).tolist()
        what = f"{rung}, {workload.title}: clients/s, float32"
        yield Row("bf16", what, "1/s", ours, plain, [a / b for a, b in pairs])


def balance(rung: str, repeats: int, folder: Path, rounds: int = 10) -> Iterator[Row]:
    """Time of the slowest rank after round 3, compared with a lower bound for any placement on equal ranks."""
    pairs = []
    for _ in range(repeats):
        run = fedmpi(3, f"{TRAINING[rung].options} --rounds {rounds} --evaluate_every 0", folder)
        for round in range(4, rounds + 1):
            busy = run.ranks["busy_seconds"][run.ranks["round"] == round]
            longest_client = run.clients["seconds"][run.clients["round"] == round].max()
            pairs.append((busy.max(), max(busy.sum() / np.count_nonzero(busy), longest_client)))
    makespan, bound = np.median(pairs, axis=0).tolist()
    ratios = [bound / makespan for makespan, bound in pairs]
    yield Row(rung, "slowest rank after round 3, lower bound; the target is 0.95", "s", makespan, bound, ratios)


def null(repeats: int, folder: Path) -> Iterator[Row]:
    """Broadcast and mean without training, compared with MPI_Bcast and MPI_Reduce; and whole rounds of the engine."""
    for ranks in (1, 2, 4, 16):
        runs = [fedmpi(ranks, IDLE, folder) for _ in range(repeats)]
        found_ms = [1e3 * float(np.median(run.rounds["seconds"])) for run in runs]
        what = f"a whole round of 10 clients with nothing to do, {ranks} ranks, compared with the target"
        yield Row("null", what, "ms", float(np.median(found_ms)), ENGINE_MS, [ENGINE_MS / ms for ms in found_ms])
    for ranks in (2, 4, 16):
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(repeats):
            for line in output_of([*mpirun(ranks), "-m", "benchmarks.null_round"]).splitlines():
                size, ours, plain = line.split()
                found.setdefault(size, []).append((float(ours), float(plain)))
        for size, pairs in found.items():
            ours_ms, plain_ms = np.median(pairs, axis=0).tolist()
            what = f"{ranks} ranks, {int(size):,} parameters, compared with MPI"
            yield Row("null", what, "ms", ours_ms, plain_ms, [b / a for a, b in pairs])


def methods(repeats: int, folder: Path) -> Iterator[Row]:
    """Seconds per round of other methods on workload A, compared with FedAvg and the additional work of clients."""
    yield from _compared_with_fedavg("methods", METHODS, repeats)


def asynchronous(repeats: int, folder: Path) -> Iterator[Row]:
    """FedBuff compared with FedAvg, FedAsync on two workers compared with one, and the schedule without training."""
    yield from _compared_with_fedavg("asynchronous", ASYNCHRONOUS, repeats)
    for method, options in SPED_UP.items():
        found = []
        for _ in range(repeats):
            one, two = fedmpi(2, options, folder), fedmpi(3, options, folder)
            measured = seconds_of_later_rounds(one) / seconds_of_later_rounds(two)
            found.append((measured, simulated_speed_up(two, workers=2)))
        ours, simulated = np.median(found, axis=0).tolist()
        what = f"{method} on workload A: speed-up by a second worker, compared with the simulated one"
        yield Row("asynchronous", what, "times", ours, simulated, [a / b for a, b in found])
    seconds = [schedule_seconds() for _ in range(repeats)]
    what = f"the schedule of {ARRIVALS:,} arrivals, compared with the target"
    yield Row("asynchronous", what, "s", float(np.median(seconds)), 10.0, [10.0 / s for s in seconds])


def _compared_with_fedavg(rung: str, methods: Mapping[str, str], repeats: int) -> Iterator[Row]:
    for method in methods:
        pairs = [
            [float(seconds) for seconds in line.split()]
            for _ in range(repeats)
            for line in output_of([*mpirun(3), "-m", "benchmarks.methods", method, "4"]).splitlines()
        ]
        ours, plain, work = np.median(pairs, axis=0).tolist()
        what = f"{method} on workload A {methods[method]}".strip()
        told = f"{what}: a round, compared with FedAvg's times the work of clients ({work:.2f})"
        yield Row(rung, told, "s", ours, plain * work, [b * c / a for a, b, c in pairs])


def state(repeats: int, folder: Path) -> Iterator[Row]:
    """Growth of the ranks' memory by the state of 10,000 clients, compared with the bytes of this state."""
    found = [output_of([*mpirun(3), "-m", "benchmarks.state", "10000", "100000"]).split() for _ in range(repeats)]
    grown, needed = np.median(np.array(found, dtype=np.float64), axis=0).tolist()
    what = "memory for 100,000 numbers of each of 10,000 clients, compared with their bytes"
    yield Row("state", what, "GB", grown / 1e9, needed / 1e9, [float(b) / float(a) for a, b in found])


def clients(repeats: int, folder: Path) -> Iterator[Row]:
    """Memory of three ranks, and time per round beyond training, with very many clients, compared with 1,000."""
    for number in (1_000_000, 15_000_000):
        pairs = [
            [output_of([*mpirun(3), "-m", "benchmarks.clients", str(each)]).split()[:2] for each in (number, 1000)]
            for _ in range(repeats)
        ]
        found = np.array(pairs, dtype=np.float64)  # [repeats, 2, 2]
        for place, (what, unit) in enumerate((("memory of 3 ranks", "GB"), ("a round beyond training", "s"))):
            ours, reference = np.median(found[:, :, place], axis=0).tolist()
            ratios = (found[:, 1, place] / found[:, 0, place]).tolist()
            told = f"{number:,} clients, 100 per round: {what}, compared with 1,000 clients"
            yield Row("clients", told, unit, ours, reference, ratios)


def start(repeats: int, folder: Path) -> Iterator[Row]:
    """Seconds from mpirun to the first round, compared with importing torch and mpi4py on as many ranks."""
    options = "--rounds 1 --evaluate_every 0 --clients 20 --cohort 2 --local.epochs 1"

    def ours(ranks: int) -> float:
        began = time.time()
        run = fedmpi(ranks, options, folder)
        return 1 / (datetime.fromisoformat(str(run.attributes["started"])).timestamp() - began)

    def imports(ranks: int) -> float:
        began = time.time()
        output_of([*mpirun(ranks), "-c", "import torch, mpi4py.MPI"])
        return 1 / (time.time() - began)

    for ranks in (2, 4, 16):
        rate, reference, ratios = paired(repeats, lambda n=ranks: ours(n), lambda n=ranks: imports(n))  # type: ignore[misc]
        yield Row("start", f"{ranks} ranks, digits, imports alone", "s", 1 / rate, 1 / reference, ratios)


def lr_mnist(repeats: int, folder: Path, data: Path) -> Iterator[Row]:
    """The LR-MNIST row of FLUTE's table, the whole run with start-up, two workers."""
    seconds, accuracy = [], []
    for _ in range(repeats):
        began = time.time()
        run = fedmpi(3, f"{LR_MNIST} --dataset.root {data}", folder)
        seconds.append(time.time() - began)
        accuracy.append(run.statistics().last)
    what = f"100 rounds, whole run (accuracy {100 * np.median(accuracy):.1f} %), compared with FLUTE on CPU"
    yield Row("lr_mnist", what, "s", float(np.median(seconds)), 200.0, [200.0 / s for s in seconds])


def peers(repeats: int, rungs: Collection[str]) -> Iterator[Row]:
    """Clients per second of whole runs, with the results file: fedmpi and a peer in turn, both on two cores."""
    from benchmarks.peers.programs import FEDMPI, PEERS, course, same_work

    for package in dict.fromkeys(peer.package for peer in PEERS if not peer.is_installed):
        print(f"peers: {package} is not installed: pip install -e '.[bench]'", file=sys.stderr)
    for rung in filter(rungs.__contains__, ("A", "B", "D", "E")):
        for peer in PEERS:
            if not peer.is_installed or (peer.channels_last and TRAINING[rung].vectorised):
                continue  # a small network has no convolutions
            pairs = []
            for _ in range(max(repeats, PAIRS)):
                (ours, our_way), (theirs, their_way) = course(FEDMPI, rung), course(peer, rung)
                if not same_work(their_way, our_way):
                    way = f"by {their_way} from the start after each round, fedmpi by {our_way}"
                    raise SystemExit(f"{peer.title} on {rung}: the model is {way}: not the same work")
                pairs.append((ours, theirs))
            what = f"{rung}, {TRAINING[rung].title}: clients/s, compared with {peer.title}"
            fedmpi, reference = np.median(pairs, axis=0).tolist()
            yield Row("peers", what, "1/s", fedmpi, reference, [a / b for a, b in pairs])


def gpu(minutes: float, folder: Path) -> Iterator[Row]:
    """Correctness and speed on a GPU, see `benchmarks.gpu`."""
    for found in Course(minutes, folder).findings():
        yield Row(
            "gpu", found.what, found.unit, found.found, found.reference, [] if isnan(found.ratio) else [found.ratio]
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    measures = {"null": null, "start": start, "methods": methods, "asynchronous": asynchronous}
    measures |= {"state": state, "clients": clients}
    of_workloads = {"bf16": bf16, "peers": peers}
    known = [*TRAINING, *measures, *of_workloads, "lr_mnist", "gpu"]
    parser.add_argument("rungs", nargs="*", metavar="NAME", help=f"one of {', '.join(known)} (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of every measurement (default: 3)")
    on = "workloads of bf16 and peers (default: all)"
    parser.add_argument("--on", nargs="+", metavar="NAME", choices=list(TRAINING), help=on)
    parser.add_argument("--minutes", type=float, default=8, help="the time of gpu (default: 8)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the MNIST files (default: data)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks.csv"), help="(default: benchmarks.csv)")
    options = parser.parse_args()
    if unknown := set(options.rungs) - set(known):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    facts = machine()
    print(f"{facts}\n", flush=True)
    print(f"{'name':13}{'fedmpi':>10}{'reference':>10}   {'ratio (of pairs)':22}  what", flush=True)
    with tempfile.TemporaryDirectory() as folder, options.output.open("w", newline="", buffering=1) as file:
        file.writelines(f"# {fact}\n" for fact in facts.splitlines())
        writer = csv.writer(file)
        writer.writerow(["rung", "what", "unit", "fedmpi", "reference", "ratios"])
        for rung in options.rungs or known:
            if rung == "lr_mnist":
                found = lr_mnist(options.repeats, Path(folder), options.data)
            elif rung == "gpu":
                found = gpu(options.minutes, Path(folder))
            elif rung in of_workloads:
                found = of_workloads[rung](options.repeats, options.on or TRAINING)
            elif rung in measures:
                found = measures[rung](options.repeats, Path(folder))
            else:
                found = training(rung, options.repeats)
                if rung == "E":
                    found = chain(found, balance(rung, options.repeats, Path(folder)))
            for row in found:
                ratios = sorted(row.ratios)
                spread = f"{np.median(ratios):5.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})" if ratios else ""
                figures = f"{row.fedmpi:10.3g}{row.reference:10.3g}"
                print(f"{row.rung:13}{figures}   {spread:22}  {row.what} [{row.unit}]", flush=True)
                kept = " ".join(map(str, row.ratios))
                writer.writerow([row.rung, row.what, row.unit, row.fedmpi, row.reference, kept])


if __name__ == "__main__":
    main()
