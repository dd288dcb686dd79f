"""What a method may not do is refused in one line, on every rank alike, before a wrong result is written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import h5py
import pytest

from fedmpi import results
from fedmpi.errors import BadInput
from tests.jobs.careless import Keeping
from tests.support.experiments import run
from tests.support.mpi import REPOSITORY, fedmpi, mpirun, succeed

PROGRAMS = REPOSITORY / "tests" / "jobs"
PATHS = os.pathsep.join(map(str, [REPOSITORY, PROGRAMS]))
SMALL = "--clients 6 --cohort 3 --rounds 3 --local.steps 1 --model LogisticRegression"
TAKEN = "a name that is taken: choose another one for each stage"
#: What tells the server more than a private mean does, and how the line names it.
TELLING = {
    "stack": "fed.stack",
    "gather": "fed.gather",
    "records": "fed.gather_records",
    "total": "fed.at_clients.total",
    "losses": "fed.at_clients.losses_of_all",
    "keep_models": "fed.at_server.keep_models",
    "groups": "fed.weighted_mean of groups",
    "second mean": "a second mean in a round",
}
PRIVATE = "--sampler Bernoulli --weighting uniform --privacy CentralDP --algorithm careless.Telling --algorithm.what"
#: States of a server that a checkpoint could not hold, and what is said of them.
STATES = {
    "missing": "does not exist after setup: must be a tensor, such as torch.tensor(0)",
    "number": "is of type int: must be a tensor, such as torch.tensor(0)",
    "array": "is of type ndarray: must be a tensor, such as torch.tensor(0)",
    "list": "is of type list: must be a tensor, such as torch.tensor(0)",
    "parameter": "requires gradients: must be a plain tensor, without gradients and not of bfloat16",
    "bfloat16": "is torch.strided, torch.bfloat16: must be a plain tensor, without gradients and not of bfloat16",
}
#: Options, and the whole line.
REFUSED = {
    **{
        what.replace(" ", "_"): (
            f"{PRIVATE} '{what}'",
            f"--privacy = CentralDP: {named} is not private: must be one fed.weighted_mean per round,"
            " which gets noise",
        )
        for what, named in TELLING.items()
    },
    "twice": (
        f"{PRIVATE} twice",
        "--privacy = CentralDP: client CLIENT was added to a mean twice: must be one vector of each client per round",
    ),
    "same_state": (
        "--algorithm careless.Personal",
        "fed.client_state: clients have a state 'personal' already: choose another name",
    ),
    "reserved_state": (
        "--algorithm careless.Reserved --evaluate_means clients",
        "fed.client_state: 'fedmpi: last model': must not begin with 'fedmpi: ': choose another name",
    ),
    **{
        f"optimizer_{round}": (
            f"--algorithm careless.Halving --algorithm.after {round - 1} --server_optimizer Adam",
            f"--server_optimizer = Adam: careless.Halving changed the model in round {round} without it: must be"
            " Replace, or the method must call self.server_step",
        )
        for round in (1, 2)
    },
    **{
        f"state_{kind}": (
            f"--algorithm careless.Declared --algorithm.kind {kind}",
            f"--algorithm = Declared: server_state names n, which {said}",
        )
        for kind, said in STATES.items()
    },
    "stack_twice": (
        "--algorithm careless.Everywhere --algorithm.to stack --cohort 1",
        "fed.stack: client CLIENT was added twice: must be one vector of each client",
    ),
    "everywhere": (
        "--algorithm careless.Everywhere --algorithm.to mean --cohort 1",
        "fed.weighted_mean: a client that is the whole cohort was added on several ranks: must be added in one loop"
        " over fed.my_clients",
    ),
    "same_stage": (
        "--algorithm careless.Staged --algorithm.names '[one, two, one]'",
        f"--algorithm = careless.Staged: yields a stage 'one', {TAKEN}",
    ),
    "stage_of_rounds": (
        "--algorithm careless.Staged --algorithm.names '[rounds]'",
        f"--algorithm = careless.Staged: yields a stage 'rounds', {TAKEN}",
    ),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each of three ranks printed, and its exit status, for every line of REFUSED."""
    folder = tmp_path_factory.mktemp("refusals")
    lines = [f"{name} {SMALL} {options} --output {folder}/{name}.h5" for name, (options, _) in REFUSED.items()]
    (folder / "lines").write_text("\n".join(lines))
    succeed(mpirun(3, PROGRAMS / "complaints.py", folder, PYTHONPATH=PATHS))
    return {name: [json.loads((folder / f"{name}-{r}.json").read_text()) for r in range(3)] for name in REFUSED}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_on_every_rank(name: str, refusals: dict[str, list[dict[str, Any]]]) -> None:
    """Oracle: the line, which rank 0 alone prints; the same exit status on every rank."""
    first, *others = refusals[name]
    assert re.sub(r"client \d ", "client CLIENT ", first["err"]) == f"fedmpi: error: {REFUSED[name][1]}\n"
    assert [seen["status"] for seen in (first, *others)] == [2] * 3
    assert [seen["err"] for seen in others] == [""] * 2


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"group": "partition"}, "fed.keep: name = partition: must be a name without / that is not a group of"),
        ({"group": "confusion"}, "fed.keep: name = confusion: must be a name without / that is not a group of"),
        ({"group": "mine/1"}, "fed.keep: name = mine/1: must be a name without / that is not a group of"),
        ({"group": ""}, "fed.keep: name = : must be a name without / that is not a group of"),
        ({"array": "a/b"}, "fed.keep: mine: name = a/b: must be a name without /"),
        ({"texts": True}, "fed.keep: mine: numbers: type = <U1: must be of numbers"),
    ],
    ids=str,
)
def test_what_cannot_be_kept(chosen: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Oracle: the line, before the first round."""
    with pytest.raises(BadInput, match=f"^{re.escape(said)}"):
        run(tmp_path / "run.h5", Keeping(**chosen))
    assert results.open(tmp_path / "run.h5").status == "failed"


def test_what_can_be_kept(tmp_path: Path) -> None:
    """Oracle: the array of the last round."""
    run(tmp_path / "run.h5", Keeping(), rounds=2)
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["mine/numbers"][()].tolist() == [0, 1, 2, 3]


def test_what_cannot_be_kept_on_two_ranks(tmp_path: Path) -> None:
    """Oracle: a report of one line."""
    options = f"{SMALL} --algorithm careless.Keeping --algorithm.group clients --output {tmp_path}/run.h5"
    job = fedmpi(2, *options.split(), PYTHONPATH=PATHS)
    assert job.returncode == 1
    assert re.search(
        r"^fedmpi: failed on rank \d of 2: .*: fed.keep: name = clients: must be a name", job.stderr, re.M
    )
    assert "Traceback" not in job.stderr
