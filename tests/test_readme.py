"""The README's examples are run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import results
from fedmpi.data import Digits
from tests.support.mpi import REPOSITORY, mpirun, succeed

README = (REPOSITORY / "README.md").read_text()
EXAMPLE = next(
    block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if block.startswith("# mine.py")
)


def command(beginning: str) -> list[str]:
    """A command of the README, without `mpirun -n N python`."""
    text = re.search(rf"^    {re.escape(beginning)}.*?[^\\]$", README, re.DOTALL | re.MULTILINE)
    assert text, f"README has no command {beginning}"
    words = shlex.split(text[0].replace("\\\n", " "), comments=True)
    return words[words.index("python") + 1 :]


@pytest.mark.further
def test_a_method_a_model_and_a_data_set_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(EXAMPLE.splitlines()) < 40
    (tmp_path / "mine.py").write_text(EXAMPLE)
    monkeypatch.chdir(tmp_path)
    output = succeed(mpirun(3, *command("mpirun -n 3 python -m fedmpi --algorithm mine.SignedSGD")))
    run = results.open(tmp_path / "runs" / "mine.h5")
    assert run.status == "finished"
    assert run.settings["algorithm"] == {"class_path": "mine.SignedSGD", "init_args": {"share": 0.2}}
    assert run.attributes["dataset"] == "TwoMoons"
    assert run.model["names"].tolist() == [
        "classifier.weight",
        "classifier.bias",
        "extractor.0.weight",
        "extractor.0.bias",
    ]
    assert len(run.rounds["round"]) == 20
    assert run.statistics().last > 0.9
    assert f"{100 * run.statistics().last:.2f} %" in output
    assert "--algorithm.share" in succeed(mpirun(0, "-m", "fedmpi", "--algorithm.help", "mine.SignedSGD"))


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for the number of rounds."""
    monkeypatch.chdir(tmp_path)
    (snippet,) = (
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import Experiment" in block
    )
    assert "rounds=20" in snippet
    (tmp_path / "snippet.py").write_text(snippet.replace("rounds=20", "rounds=1"))
    succeed(mpirun(0, "snippet.py"))
    assert results.open(tmp_path / "runs" / "prox.h5").settings["algorithm"]["init_args"]["mu"] == 0.01


def test_the_first_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command, and what the README shows of its end: all but the times."""
    monkeypatch.chdir(tmp_path)
    assert "mpirun -n 4 python -m fedmpi  " in README
    output = succeed(mpirun(4, "-m", "fedmpi"))
    (file,) = (tmp_path / "runs").iterdir()
    run = results.open(file)
    assert run.statistics().last > 0.95
    (line,) = [line for line in output.splitlines() if line.startswith("experiment")]
    assert line in README, "the README shows another experiment: paste the new one"
    accuracy = re.search(r"^accuracy +last ([\d.]+) %", README, re.MULTILINE)
    assert accuracy
    assert 100 * run.statistics().last == pytest.approx(float(accuracy[1]), abs=1), (
        "the last bits depend on the processor"
    )
    for shown in ("status", "time ", "speed", "file"):
        assert re.search(rf"^{shown}", output, re.MULTILINE)
    assert str(file) in output

    images = Digits().read(print)
    snippet = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "run.network()" in block
    )
    (load, use) = [line.partition("  #")[0] for line in snippet.splitlines() if "network" in line]
    known: dict[str, Any] = {"run": run, "images": images.test_x}
    exec(f"{load}\n{use}", known)
    assert (known["logits"].argmax(1).numpy() == images.test_y).mean() == run.statistics().last
    flat = np.concatenate([run.state_dict()[name].ravel() for name in run.model["names"]])
    np.testing.assert_array_equal(flat, run.weights)
