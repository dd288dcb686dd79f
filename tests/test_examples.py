"""The programs in examples/ run with the commands that stand in them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpi import results
from fedmpi.results.check import problems
from tests.results.made_runs import finished
from tests.support.mpi import REPOSITORY, mpirun, succeed

EXAMPLES = REPOSITORY / "examples"
#: What makes a run short, or does without data that is not there.
SHORT = {
    "own_method": "--rounds 2 --clients 6 --cohort 3 --local.epochs 1",
    "own_model": "--dataset Digits --clients 6 --cohort 2 --rounds 1 --local.steps 1 --output runs/own_model.h5",
    "own_data": "--rounds 4",
}


@pytest.mark.further
@pytest.mark.parametrize("name", SHORT)
def test_an_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the schema, classes of the example's own, and, of the one that trains long enough, an accuracy."""
    monkeypatch.chdir(tmp_path)
    text = re.search(r"^    python -m fedmpi .*?[^\\]$", (EXAMPLES / f"{name}.py").read_text(), re.M | re.S)
    assert text
    words = shlex.split(text[0].replace("\\\\\n", " ").replace("\\\n", " "))
    words = [word for word in words if word not in ("--dataset.root", "data")]
    succeed(mpirun(2, *words[1:], *shlex.split(SHORT[name])))
    (path,) = Path("runs").glob("*.h5")
    run = results.open(path)
    assert run.status == "finished"
    assert problems(path) == []
    assert f"examples.{name}." in run.config
    if name == "own_data":
        assert run.statistics().last > 0.9


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SHORT, "analysis"}


def test_the_analysis_of_results(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    files = [finished(tmp_path / f"{seed}.h5", seed=seed) for seed in (1, 2)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(
        [sys.executable, EXAMPLES / "analysis.py", *files],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "FedProx   0.8  0.0      2" in output
    assert (tmp_path / "example.png").read_bytes().startswith(b"\x89PNG")
