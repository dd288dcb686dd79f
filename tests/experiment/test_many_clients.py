"""More clients than any list of them should have: memory, time, the same bits, and what the results leave out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.results.check import problems
from fedmpi.results.summary import summarize
from tests.support.experiments import Alone
from tests.support.mpi import mpirun, succeed

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc/self/smaps_rollup")


def measured(ranks: int, clients: int, *options: str) -> tuple[float, float, str]:
    """Memory of all ranks in GB, seconds per round beyond training, and the last model's checksum."""
    printed = succeed(mpirun(ranks, "-m", "benchmarks.clients", str(clients), *options))
    memory, seconds, digest = printed.split()
    return float(memory), float(seconds), digest


@pytest.mark.further
@needs_proc
def test_a_million() -> None:
    """Oracle: a thousand clients. A list of a million clients would have 8 MB or more on each of three ranks."""
    small = ["--rounds", "2", "--cohort", "20", "--model", "LogisticRegression"]
    few, _, _ = measured(3, 1000, *small)
    many, _, digest = measured(3, 1_000_000, *small)
    assert many - few < 0.1
    assert measured(1, 1_000_000, *small)[2] == digest, "the same bits"


@pytest.mark.slow
@needs_proc
def test_fifteen_million() -> None:
    """The goal: at most 2 GB for three ranks, and a second per round beyond training."""
    memory, seconds, _ = measured(3, 15_000_000)
    assert memory <= 2
    assert seconds <= 1


@pytest.mark.parametrize("sampler", ["Bernoulli", "RoundRobin"])
def test_resumed(sampler: str, tmp_path: Path) -> None:
    """Oracle: the unbroken run, with states of clients."""
    options = (
        f"--clients 200000 --cohort 5 --partition Repeated --algorithm SCAFFOLD --sampler {sampler} --rounds 4"
        " --model LogisticRegression --local.epochs 1 --evaluate_every 0 --checkpoint.every_rounds 1"
    )
    (tmp_path / "broken").mkdir()
    experiment, config = parse([*options.split(), "--output", str(tmp_path / "run.h5")])
    for outcome in experiment.outcomes(Alone(), config):
        if outcome.row["round"] == 3:  # the checkpoint of round 2 is there
            for file in tmp_path.glob("run.h5*"):
                shutil.copy(file, tmp_path / "broken")
    again, config = parse([*options.split(), "--output", str(tmp_path / "broken" / "run.h5"), "--resume"])
    assert len([*again.outcomes(Alone(), config)]) == 2
    whole, resumed = results.open(experiment.output), results.open(again.output)
    assert whole.weights_sha256 == resumed.weights_sha256
    assert whole.clients["client"].tolist() == resumed.clients["client"].tolist()


@pytest.mark.parametrize("told", ["auto", "true"])
def test_results(told: str, tmp_path: Path) -> None:
    """What the file has of single clients; statistics over them are there in any case."""
    options = "--clients 100001 --cohort 5 --partition Repeated --rounds 1 --model LogisticRegression --every_client"
    arguments = [*options.split(), told, "--output", str(tmp_path / "run.h5")]
    experiment, config = parse(arguments)
    for _ in experiment.outcomes(Alone(), config):
        pass
    run = results.open(experiment.output)
    assert problems(experiment.output) == []
    assert "100001, 5 per round, Repeated (samples 20)" in summarize(run)
    assert run.rounds["client_accuracy_p50"][0] >= 0
    assert run.evaluation["per_class_accuracy"].shape == (1, 10)
    if told == "true":
        assert run.partition["samples"].tolist() == [20] * 100_001
        assert run.evaluation["client_accuracy"].shape == (1, 100_001)
    else:
        assert run.partition == {}
        assert "client_accuracy" not in run.evaluation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--validation 0.1", "validation = 0.1: some clients would be trained on the validation samples of others"),
        ("--held_out 2", "held_out = 2: held-out clients would have samples of others"),
        ("--attack LabelFlip", "attack = LabelFlip: honest clients would be trained on the labels of malicious"),
        ("--partition SwappedLabels --partition.over Repeated", "partition = SwappedLabels: changes the label"),
        ("--algorithm Centralized", "partition = Repeated: repeats samples, and Centralized trains one model"),
        ("--clients 2 --partition.samples 2000", "partition.samples = 2000: must be at most 1442"),
    ],
)
def test_refused(options: str, message: str, tmp_path: Path) -> None:
    arguments = f"--partition Repeated --rounds 1 {options} --output {tmp_path / 'run.h5'}".split()

    def run() -> None:
        experiment, config = parse(arguments)
        for _ in experiment.outcomes(Alone(), config):
            pass

    with pytest.raises(BadInput, match=message):
        run()
