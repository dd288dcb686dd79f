"""The README's examples are run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmpi import results
from fedmpi.models import LeNet
from tests.launch import REPOSITORY, mpirun, succeed

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
    assert run.accuracy().last > 0.9
    assert f"{100 * run.accuracy().last:.2f} %" in output
    assert "--algorithm.share" in succeed(mpirun(0, "-m", "fedmpi", "--algorithm.help", "mine.SignedSGD"))


def test_the_first_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command, and what the README shows of its end: all but the times."""
    monkeypatch.chdir(tmp_path)
    assert "mpirun -n 4 python -m fedmpi  " in README
    output = succeed(mpirun(4, "-m", "fedmpi"))
    (file,) = (tmp_path / "runs").iterdir()
    run = results.open(file)
    assert run.accuracy().last > 0.95
    (line,) = [line for line in output.splitlines() if line.startswith("experiment")]
    assert line in README, "the README shows another experiment: paste the new one"
    accuracy = re.search(r"^accuracy +last ([\d.]+) %", README, re.MULTILINE)
    assert accuracy
    assert 100 * run.accuracy().last == pytest.approx(float(accuracy[1]), abs=1), (
        "the last bits depend on the processor"
    )
    for shown in ("status", "time ", "speed", "file"):
        assert re.search(rf"^{shown}", output, re.MULTILINE)
    assert str(file) in output

    module = LeNet().build((1, 8, 8), 10)
    loaded = module.load_state_dict({name: torch.from_numpy(x) for name, x in run.state_dict().items()}, strict=False)
    assert not loaded.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in loaded.missing_keys)
    flat = np.concatenate([run.state_dict()[name].ravel() for name in run.model["names"]])
    np.testing.assert_array_equal(flat, run.weights)
