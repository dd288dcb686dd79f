"""FedBuff and FedAsync: limits in which they are FedAvg, weights by hand, any number of ranks, kills."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedmpi import results
from fedmpi.algorithms import FedAvg
from fedmpi.algorithms.asynchronous import Asynchronous
from fedmpi.algorithms.fedasync import FedAsync
from fedmpi.algorithms.fedbuff import FedBuff
from fedmpi.data import Arrays, Dataset, Progress
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import LeNet, Model
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import Heterogeneous, Uniform
from fedmpi.policies.clock import TICKS
from fedmpi.policies.conditions import Conditions, Job, JobCosts, RoundPlan, Workload
from fedmpi.policies.sampling import Cohort
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.results.check import problems
from fedmpi.results.summary import summarize
from fedmpi.tasks import Regression
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import Cut, run
from tests.support.mpi import fedmpi, start, succeed
from tests.support.same_bits import assert_same_bits

#: What the clients of the schedule by hand return, and how many seconds each takes.
RETURNED, SECONDS = (1.0, 2.0, 4.0), (2, 3, 7)


class Numbers(Dataset):
    """Client k's only sample is (1, RETURNED[k])."""

    task = Regression()

    def read(self, progress: Progress) -> Arrays:
        x, y = np.ones((3, 1), np.float32), np.array(RETURNED, np.float32)[:, None]
        return Arrays(x, y, x, y)


class One(Model):
    """One number, which begins as 0."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(network.weight)
        return network


class Fixed(Conditions):
    """Client k's jobs take SECONDS[k]."""

    def check_asynchronous(self) -> None:
        pass

    def job(self, costs: JobCosts, seed: int) -> Job:
        return lambda client, number: (SECONDS[client] * TICKS, "arrives")

    def plan(self, asked: Cohort, size: int, workload: Workload, seed: int) -> RoundPlan:
        raise NotImplementedError


def by_hand(path: Path, method: Asynchronous, cohort: int, rounds: int) -> results.Run:
    parts: dict[str, Any] = {"dataset": Numbers(), "model": One(), "partition": Cut(1, 1, 1), "conditions": Fixed()}
    local = LocalTraining(epochs=1, lr=0.5)  # the gradient is 2 (w - b), so one step ends at b
    settings = {**parts, "sampler": Uniform(), "clients": 3, "cohort": cohort, "rounds": rounds, "local": local}
    return run(path, method, overwrite=True, **settings)


def test_weights_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    expected: dict[int, float] = {1: 1.030330, 2: 1.019607, 3: 1.847672}
    for rounds, weight in expected.items():
        made = by_hand(path, FedAsync(concurrency=3, alpha=0.5), cohort=3, rounds=rounds)
        assert made.weights[0] == pytest.approx(weight, abs=1e-6)
    assert made.rounds["updates"].tolist() == [2, 1, 3]
    assert made.rounds["virtual_seconds"].tolist() == [3, 1, 3]
    assert made.clients["start_version"].tolist() == [0, 0, 1, 3, 2, 0]
    assert made.clients["staleness"].tolist() == [0, 1, 1, 0, 2, 5]
    for rounds, weight in enumerate((1.5, 1.5, 2.404701, 1.879127), 1):
        made = by_hand(path, FedBuff(concurrency=3), cohort=2, rounds=rounds)
        assert made.weights[0] == pytest.approx(weight, abs=1e-6)
    assert made.clients["staleness"].tolist() == [0, 0, 0, 0, 0, 2, 0, 1]
    assert not problems(path)


def few(cohort: int, rounds: int = 3, **more: Any) -> dict[str, Any]:
    local = LocalTraining(steps=3, batch_size=10)
    settings = {"clients": 12, "cohort": cohort, "rounds": rounds, "sampler": Uniform(), "weighting": "uniform"}
    return {**settings, "local": local, "model": LogisticRegression(), **more}


def test_in_step_they_are_fedavg(tmp_path: Path) -> None:
    """As many in flight as in a buffer, all equally fast: FedAvg's bits. One client at a time, alpha 1: too."""
    equal = Heterogeneous(speed_spread=0, bandwidth_spread=0)
    cases: list[dict[str, Any]] = [{}, {"conditions": equal, "server_optimizer": Momentum()}, {"model": LeNet()}]
    for number, more in enumerate(cases):
        plain = run(tmp_path / f"plain{number}.h5", FedAvg(), **few(4, **more))
        buffered = run(tmp_path / f"buffered{number}.h5", FedBuff(concurrency=4), **few(4, **more))
        assert buffered.weights_sha256 == plain.weights_sha256
        assert buffered.clients["client"].tolist() == plain.clients["client"].tolist()
        assert buffered.rounds["staleness_max"].tolist() == [0, 0, 0]
    plain = run(tmp_path / "plain.h5", FedAvg(), **few(1))
    method = FedAsync(concurrency=1, alpha=1.0, discount="constant")
    alone = run(tmp_path / "alone.h5", method, **few(1))
    assert alone.weights_sha256 == plain.weights_sha256
    twice = run(tmp_path / "twice.h5", FedBuff(concurrency=10), **few(5, rounds=4, clients=24))
    assert twice.rounds["staleness_mean"].tolist() == [0, 1, 0, 1]


#: Lost, late and old updates, in a run that is killed.
LOSSY = (
    "--clients 14 --cohort 4 --rounds 20 --local.epochs 1 --algorithm.concurrency 6 --algorithm.max_staleness 9"
    " --conditions Heterogeneous --conditions.speed_spread 1 --conditions.dropout 0.2 --conditions.deadline 1.5"
    " --model LogisticRegression --evaluate_every 5 --checkpoint.every_rounds 1"
)


@pytest.mark.further
@pytest.mark.parametrize("method", ["FedBuff", "FedAsync --algorithm.mu 0.1"])
def test_killed_and_continued(method: str, tmp_path: Path) -> None:
    """kill -9 in the middle, then on another number of ranks; and more rounds after the end: the bits of one run."""
    options = f"--algorithm {method} {LOSSY}".split()
    whole, path = tmp_path / "whole.h5", tmp_path / "killed.h5"
    succeed(fedmpi(0, *options, "--output", whole))
    process = start(3, "-m", "fedmpi", *options, "--output", path)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("round  7/"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    succeed(fedmpi(2, *options, "--output", path, "--resume"))
    assert results.open(path).rounds["round"].tolist() == list(range(1, 21))
    assert_same_bits(results.open(whole), results.open(path))
    if method == "FedBuff":
        longer = tmp_path / "longer.h5"
        for rounds in ("10", "20"):
            keeps = ["--checkpoint.keep", "true", "--rounds", rounds, "--resume"]
            succeed(fedmpi(0, *options, *keeps, "--output", longer))
        assert results.open(longer).weights_sha256 == results.open(whole).weights_sha256


def test_nobody_is_in_time(tmp_path: Path) -> None:
    """A deadline before the fastest job: empty rows, and a model that does not change."""
    slow = Heterogeneous(deadline=1e-6)
    for method in (FedBuff(concurrency=4), FedAsync(concurrency=4)):
        made = run(tmp_path / f"{type(method).__name__}.h5", method, **few(4, conditions=slow))
        assert made.rounds["updates"].tolist() == [0, 0, 0]
        assert made.rounds["test_loss"].tolist() == [made.initial["test_loss"]] * 3
        assert made.rounds["late"].sum() > 0


def test_a_summary_counts_jobs(tmp_path: Path) -> None:
    """Oracle: the rows of /clients, and the columns of jobs that came to nothing."""
    clocked = Heterogeneous(speed_spread=1, dropout=0.3)
    made = run(tmp_path / "run.h5", FedBuff(concurrency=8, max_staleness=1), **few(3, rounds=10, conditions=clocked))
    dropped, late, discarded = (int(made.rounds[name].sum()) for name in ("dropped", "late", "discarded"))
    assert min(dropped, discarded) > 0
    jobs = len(made.clients["client"]) + dropped + late + discarded
    said = f"of {jobs} jobs {dropped} dropped out, {late} were late, {discarded} were too old"
    assert said in " ".join(summarize(made).split())


def test_little(tmp_path: Path) -> None:
    """Mean staleness is (C - 1) / Z, whatever the speeds; the versions that are kept are those in flight."""
    clocked = Heterogeneous(speed_spread=1)
    made = run(tmp_path / "run.h5", FedBuff(concurrency=20), **few(5, rounds=200, clients=60, conditions=clocked))
    assert made.rounds["staleness_mean"][50:].mean() == pytest.approx(19 / 5, rel=0.1)
    assert "versions" not in made.model
    assert made.rounds["in_flight"].max() <= 20


def test_evaluated_by_the_clock(tmp_path: Path) -> None:
    """The first round that ends at or after each multiple, and the last one; also for a synchronous method."""
    clocked = Heterogeneous(speed_spread=1)
    for number, method in enumerate((FedBuff(concurrency=6), FedAvg())):
        more: dict[str, Any] = {"conditions": clocked, "evaluate_seconds": 0.7}
        made = run(tmp_path / f"{number}.h5", method, **few(3, rounds=20, **more))
        ends = np.cumsum(made.rounds["virtual_seconds"])
        expected = np.diff(np.floor(ends / 0.7), prepend=0) > 0
        expected[-1] = True
        assert np.isfinite(made.rounds["test_accuracy"]).tolist() == expected.tolist()
        assert 1 < expected.sum() < 20


REFUSED = {
    "--algorithm.concurrency 13": "--algorithm.concurrency = 13: must be at most the number of clients, 12",
    "--sampler All --cohort 12": "cannot be combined with an asynchronous method",
    "--sampler PowerOfChoice": "cannot be combined with an asynchronous method",
    "--conditions Heterogeneous --conditions.over_select 1.3": "--conditions.over_select = 1.3: must be 1",
    "--conditions Heterogeneous --conditions.stragglers 0.3 --local.epochs 3": "--conditions.stragglers = 0.3:",
    "--weighting horvitz_thompson": "--weighting = horvitz_thompson: ",
    "--privacy CentralDP --weighting uniform": "must be a method whose server sees only one mean of models",
    "--evaluate_means cohort": "FedBuff does not average its clients' models",
}


def test_refused(tmp_path: Path) -> None:
    for options, reason in REFUSED.items():
        words = f"--algorithm FedBuff --clients 12 --cohort 4 --rounds 1 --output {tmp_path}/run.h5 {options}"
        with pytest.raises(BadInput) as refused:
            parse(words.split())
        assert reason in str(refused.value), options
