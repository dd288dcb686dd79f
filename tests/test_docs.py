"""The documents' code runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fedmpi import results
from fedmpi.results.check import problems
from tests.support.mpi import REPOSITORY, mpirun, succeed

DOCS = REPOSITORY / "docs"
EXTENDING = (DOCS / "extending.md").read_text()
EXAMPLE = next(block for block in re.findall(r"```python\n(.*?)```", EXTENDING, re.DOTALL) if "# own.py" in block)


def test_a_method_a_model_a_data_set_and_a_partition_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(EXAMPLE)
    monkeypatch.chdir(tmp_path)
    text = re.search(r"^    python -m fedmpi --algorithm own.*?[^\\]$", EXTENDING, re.DOTALL | re.MULTILINE)
    assert text
    words = shlex.split(text[0].replace("\\\n", " "))
    succeed(mpirun(2, *words[1:]))
    run = results.open(tmp_path / "runs" / "own.h5")
    names = [run.settings[name]["class_path"] for name in ("algorithm", "model", "dataset", "partition")]
    assert names == ["own.Cautious", "own.Tiny", "own.Rings", "own.Neighbours"]
    assert run.settings["algorithm"]["init_args"] == {"share": 0.8}
    assert (run.rounds["change"] > 0).all()
    assert problems(run.path) == [], "a column of one's own is part of the schema"
    assert run.accuracy().last > 0.7
    counts = run.partition["label_counts"]
    assert counts.sum(1).tolist() == [250] * 8
    assert counts[0].argmax() == 0
    assert counts[-1].argmax() == 3


def test_a_sweep_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page has it, but for the number of rounds; on two ranks."""
    text = (DOCS / "python.md").read_text()
    (script,) = re.findall(r"```python\n(# sweep.py.*?)```", text, re.DOTALL)
    assert "mpirun -n 16 python -m mpi4py sweep.py" in text
    (tmp_path / "sweep.py").write_text(script.replace("rounds=5", "rounds=1"))
    monkeypatch.chdir(tmp_path)
    output = succeed(mpirun(2, "-m", "mpi4py", "sweep.py"))
    runs = [results.open(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert [run.settings["algorithm"]["init_args"]["mu"] for run in runs] == [0.01, 1.0]
    assert all(output.count(f"{run.accuracy().last}") == 2 for run in runs), "both ranks have the results"
    rows = succeed(mpirun(0, "-m", "fedmpi.results", "table", *(run.path for run in runs)))
    assert re.search(r"FedProx \(mu 0.01\).*\n.*FedProx \(mu 1.0\)", rows)


def test_every_method_has_a_page() -> None:
    """The names of the README's table of methods, each in some page of docs/methods."""
    readme = (REPOSITORY / "README.md").read_text()
    section = readme[readme.index("\n## Methods\n") : readme.index("Fed-GN is FedAvg")]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")]
    known = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(known) > 30
    pages = "\n".join(path.read_text() for path in [*DOCS.glob("methods*.md"), *DOCS.glob("methods/*.md")])
    missing = [name for name in known if not re.search(rf"\b{name}\b", pages)]
    assert not missing
