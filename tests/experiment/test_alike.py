"""What all ranks must derive alike from a user's code is alike, or the run ends in one line that names the class.

That a class may draw from the generators of random, numpy.random and torch in every place is the case `drawn` of
tests/experiment/test_any_number_of_ranks.py.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi import randomness, results
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.experiment.alike import check_rebuilt, numbers
from fedmpi.experiment.experiment import Experiment
from fedmpi.models import LeNet, Model
from fedmpi.mpi.world import World
from tests.support.experiments import SEED, run
from tests.support.mpi import REPOSITORY, fedmpi, mpirun, succeed

PROGRAMS = REPOSITORY / "tests" / "jobs"
PATHS = os.pathsep.join(map(str, [REPOSITORY, PROGRAMS]))
SMALL = "--clients 6 --cohort 3 --rounds 3 --local.epochs 1"
NETWORK = "--model unlike.Network --model.what"
BUILT = "--model = unlike.Network: ranks built different networks"
SPLITS = "--partition = unlike.Split: ranks"
# At set-up: options, and how the line begins.
REFUSED = {
    "weights": (f"{NETWORK} weights", f"{BUILT} (`layer.bias` differs); it must not depend on rank, process, "),
    "array": (f"{NETWORK} array", f"{BUILT} (`factor` differs); "),
    "tensors": (f"{NETWORK} tensors", f"{BUILT} (`factor.all.1` differs); "),
    "number": (f"{NETWORK} number", f"{BUILT} (`factor` differs); "),
    "shape": (f"{NETWORK} shape", f"{BUILT}; it must "),
    "each_time": (f"{NETWORK} 'each time'", f"{BUILT} (`factor` differs); "),
    "extended": (
        "--algorithm unlike.Extending",
        "--model = LeNet in --algorithm = unlike.Extending: ranks built different networks (`mark` differs); ",
    ),
    "split": ("--partition unlike.Split", f"{SPLITS} split the samples differently; it must not depend on rank"),
    "members": ("--partition unlike.Split --partition.what members", f"{SPLITS} split the samples differently; "),
    "groups": ("--partition unlike.Split --partition.what groups", f"{SPLITS} put clients into different groups; "),
    "labels": ("--partition unlike.Split --partition.what labels", f"{SPLITS} "),
    "pixels": ("--partition unlike.Split --partition.what pixels", f"{SPLITS} see pixels in different orders; "),
    "attack": ("--attack unlike.Poison", "--attack = unlike.Poison: ranks poison different labels; "),
    "tuple": ("--model unlike.Odd --model.kind tuple", "--model = unlike.Odd: gives a tuple "),
    "fails": ("--model unlike.Odd --model.kind fails", "--model = unlike.Odd: forward fails on inputs "),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each of three ranks printed, and its exit status, for every line of REFUSED."""
    folder = tmp_path_factory.mktemp("refusals")
    lines = [f"{name} {SMALL} {options} --output {folder}/new.h5" for name, (options, _) in REFUSED.items()]
    (folder / "lines").write_text("\n".join(lines))
    succeed(mpirun(3, PROGRAMS / "complaints.py", folder, PYTHONPATH=PATHS))
    assert not list(folder.glob("*.h5"))
    return {name: [json.loads((folder / f"{name}-{r}.json").read_text()) for r in range(3)] for name in REFUSED}


@pytest.mark.parametrize("name", REFUSED)
def test_ranks_that_differ_do_not_start(name: str, refusals: dict[str, list[dict[str, Any]]]) -> None:
    """Oracle: the line, which rank 0 alone prints; the same exit status on every rank."""
    first, *others = refusals[name]
    assert first["err"].startswith(f"fedmpi: error: {REFUSED[name][1]}")
    assert len(first["err"].splitlines()) == 1
    assert [seen["status"] for seen in (first, *others)] == [2] * 3
    assert [seen["err"] for seen in others] == [""] * 2


@pytest.mark.parametrize(
    ("options", "round", "said"),
    [
        (
            "--sampler unlike.Draw --sampler.more 2 --algorithm SCAFFOLD",
            2,
            "--sampler = unlike.Draw: ranks disagree on which clients were drawn; ",
        ),
        (
            "--availability unlike.Reach",
            2,
            "--availability = unlike.Reach: ranks disagree on which clients can be reached; ",
        ),
        (
            "--sampler unlike.Wrong --sampler.everywhere false",
            2,
            "--sampler = unlike.Wrong: ranks disagree on which clients were drawn; ",
        ),
        (
            "--availability unlike.Numbers --availability.everywhere false",
            2,
            "--availability = unlike.Numbers: ranks disagree on which clients can be reached; ",
        ),
        (
            "--sampler unlike.Wrong --sampler.everywhere false --algorithm FedAsync",
            2,
            "the schedule: ranks disagree; ",
        ),
        ("--conditions unlike.Lose", 1, "--conditions = unlike.Lose: ranks disagree on which clients take part; "),
        ("--algorithm unlike.Part", 1, "the method: ranks gave `my_clients` different cohorts"),
    ],
)
def test_ranks_that_disagree_on_a_round_stop(options: str, round: int, said: str, tmp_path: Path) -> None:
    """Oracle: one report, without a stack trace, and a file that says that the run failed; no hang."""
    path = tmp_path / "run.h5"
    job = fedmpi(3, *f"{SMALL} {options} --model LogisticRegression --output {path}".split(), PYTHONPATH=PATHS)
    assert job.returncode not in (0, 2)
    assert re.search(rf"^fedmpi: failed on rank \d of 3: round {round}, [^:]*: {re.escape(said)}", job.stderr, re.M)
    assert job.stderr.count("fedmpi: failed") == 1
    assert "Traceback" not in job.stderr
    assert round == 1 or "--availability" in options or "it must not depend on rank" in job.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--sampler unlike.Wrong", r"--sampler = unlike.Wrong: drew client -\d in round 2: must be 0 to 5"),
        (
            "--sampler unlike.Wrong --algorithm FedAsync",
            r"--sampler = unlike.Wrong: drew client -\d in round 2: must be 0 to 5",
        ),
        (
            "--availability unlike.Numbers",
            r"--availability = unlike.Numbers: present\(\) returned int64 of shape \(6,\): must return a bool array"
            r" of shape \(6,\)",
        ),
    ],
)
def test_what_all_ranks_do_wrong_is_one_line(options: str, said: str, tmp_path: Path) -> None:
    """Oracle: the line and the exit status; and the file, which says that the run failed."""
    path = tmp_path / "run.h5"
    job = fedmpi(3, *f"{SMALL} {options} --model LogisticRegression --output {path}".split(), PYTHONPATH=PATHS)
    assert job.returncode == 2
    assert re.fullmatch(rf"fedmpi: error: {said}\n", job.stderr)
    assert results.open(path).status == "failed"


def test_nodes_have_the_same_data_and_settings(tmp_path: Path) -> None:
    """Oracle: by hand. Every rank is a node that reads by itself; on one of them PyTorch rounds differently."""
    succeed(mpirun(2, PROGRAMS / "nodes_of_one.py", tmp_path, PYTHONPATH=PATHS))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert first.pop("normal numbers") != second.pop("normal numbers"), "else nothing is tested"
    assert first.pop("processors") == second.pop("processors") == "0"
    assert first.pop("vouched alike") == second.pop("vouched alike") == "None"
    assert first.pop("vouched") == second.pop("vouched") == "RanksDiffer: the second"
    lines = {
        "samples": "--dataset = unlike.Halves: nodes hold different labels, or samples of different shape; ",
        "pixels": "--dataset = unlike.Halves: nodes hold different samples; ",
        "seed": "--seed = 1 on rank 1: must be 0, as on rank 0",
        "method": "--algorithm",
        "rate": "--local.lr = ",
    }
    for name, line in lines.items():
        assert first[name] == second[name]
        assert first[name].startswith(f"BadInput: {line}"), name


class Counted(Model):
    """Another network each time that it is built."""

    times = 0

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        self.times += 1
        layer = torch.nn.Linear(64, classes)
        layer.bias.data.fill_(self.times)
        return torch.nn.Sequential(torch.nn.Flatten(), layer)


def test_a_network_is_the_same_each_time(tmp_path: Path) -> None:
    """Oracle: with one rank as well, which has a network to train and one to measure with."""
    with pytest.raises(ValueError, match=r"^--model = [\w.]*test_alike\.Counted: another network each time"):
        run(tmp_path / "run.h5", model=Counted())


def state() -> tuple[object, ...]:
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    return tuple(map(repr, generators[:1])), generators[1][1].tolist(), generators[1][2:], generators[2].tolist()  # type: ignore[index]


def test_a_run_and_the_callers_generators_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: their states before and after; and the bits of a run from other states, taken round by round."""
    random.gauss(0, 1)
    np.random.standard_normal(3)  # noqa: NPY002 (an odd number: one is kept for the next call)
    before = state()
    first = run(tmp_path / "first.h5", model=LeNet(), rounds=2)
    assert state() == before
    seen: list[tuple[object, ...]] = []

    def step_by_step(experiment: Experiment, world: World, config: str | None = None) -> int:
        outcomes: Iterator[Any] = experiment.outcomes(world)
        randomness.seed_globals(5)
        for number, _ in enumerate(outcomes):
            seen.append(state())
            randomness.seed_globals(number)
        seen.append(state())
        return experiment.exit_status

    monkeypatch.setattr(Experiment, "complete", step_by_step)
    second = run(tmp_path / "second.h5", model=LeNet(), rounds=2)
    for number, expected in zip((5, 0, 1), seen, strict=True):
        randomness.seed_globals(number)
        assert state() == expected
    assert first.weights_sha256 == second.weights_sha256


def test_global_generators_by_key() -> None:
    """Oracle: the same numbers for a key, others for others, of all three."""

    def drawn(key: int) -> tuple[float, float, float]:
        randomness.seed_globals(key)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    keys = [randomness.key(SEED, purpose, round) for purpose in ("cohort", "method") for round in (1, 2)]
    assert [drawn(key) for key in keys] == [drawn(key) for key in keys]
    for of_one in zip(*map(drawn, keys), strict=True):
        assert len(set(of_one)) == len(keys)


def test_one_number_that_differs() -> None:
    """Oracle: by hand. A single number is enough, but rounding is not."""
    first = torch.nn.Linear(4, 2)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.weight[0, 1] *= 1 + 1e-6
        check_rebuilt(first, second, "the network")
        second.weight[0, 1] += 0.1
    with pytest.raises(
        BadInput, match=r"the network: another network each time that it is built \(`weight` differs\)"
    ):
        check_rebuilt(first, second, "the network")


def test_numbers_of_a_network() -> None:
    """Oracle: by hand. Frozen and constant ones, and those in attributes that are no tensors of the state."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    network[0].weight.requires_grad_(False)
    network.register_buffer("constant", torch.ones(2, dtype=torch.bfloat16), persistent=False)
    vars(network)["mask"] = {"rows": [np.arange(3), (torch.tensor(1), 0.5)], "name": "x"}
    found = dict(numbers(network))
    assert {name for name in found if name.partition(".")[0] in ("constant", "mask")} == {
        "constant",
        "mask.rows.0",
        "mask.rows.1.0",
        "mask.rows.1.1",
    }
    assert {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.num_batches_tracked"} <= found.keys()


def test_samples_do_not_depend_on_the_seed(tmp_path: Path) -> None:
    """Oracle: the checksum in the results file, which is by what tables tell runs on other data apart."""

    class Half(Digits):
        def read(self, progress: Any) -> Any:
            arrays = super().read(progress)
            return type(arrays)(arrays.train_x[self.some(arrays)], arrays.train_y[:700], arrays.test_x, arrays.test_y)

        def some(self, arrays: Any) -> Any:
            return np.random.permutation(len(arrays.train_y))[:700]  # noqa: NPY002

    made = [run(tmp_path / f"{seed}.h5", dataset=Half(), seed=seed) for seed in (1, 2)]
    assert len({run.attributes["data_sha256"] for run in made}) == 1
