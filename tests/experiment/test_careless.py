"""What a method may not do is refused in one line, on every rank alike, before a wrong result is written."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from tests.support.mpi import REPOSITORY, mpirun, succeed

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
