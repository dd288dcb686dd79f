from __future__ import annotations

import csv
from pathlib import Path

import h5py
import pytest

from fedmpi.results.__main__ import main
from tests.results.made_runs import finished

# Accuracy is 0.04 times the round, every other round; a round moves 4 MB.


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    assert main(["rounds", *arguments, "--format", "csv"]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def as_method(path: Path, name: str, factor: float = 1.0) -> str:
    """The file, of another method, with accuracies times a factor."""
    with h5py.File(path, "r+") as file:
        file["rounds/test_accuracy"][...] *= factor
        file.attrs["algorithm"] = name
        file.attrs["config"] = str(file.attrs["config"]).replace("fedprox.FedProx", f"x.{name}")
    return str(path)


def test_the_first_rounds_are_means_over_those_that_reach_the_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(finished(tmp_path / f"{seed}.h5", rounds=rounds, seed=seed)) for seed, rounds in ((1, 4), (2, 8))]
    assert list(rows(capsys, *files, "--targets", "0.15")[0]) == ["method", "runs", "rounds to 15 %"]
    (line,) = rows(capsys, *files, "--costs", "--targets", "0.15", "0.3", "0.5")
    assert line["runs"] == "2"
    assert [line[f"rounds to {target} %"] for target in (15, 30, 50)] == ["4", "8 (1 of 2)", "-"]
    assert [line[f"traffic to {target} % (GB)"] for target in (15, 30, 50)] == ["0.016", "0.032", "-"]
    assert main(["rounds", *files, "--targets", "70"]) == 2
    assert capsys.readouterr().err == "--targets = 70.0: must be from 0 to 1 for test_accuracy\n"
    with pytest.raises(SystemExit) as raised:
        main(["rounds", "--targets", "0.7", *files])
    assert raised.value.code == 2
    assert capsys.readouterr().err.endswith(f"{files[0]} is not a number; files come before --targets\n")


def test_a_loss_reaches_its_target_from_above(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: the test loss is 2 over the round, in even rounds, the training loss 1 over it in all."""
    files = [str(finished(tmp_path / f"{seed}.h5", rounds=rounds, seed=seed)) for seed, rounds in ((1, 4), (2, 8))]
    (line,) = rows(capsys, *files, "--column", "test_loss", "--costs", "--targets", "1.5", "0.5", "0.3")
    assert [line[f"rounds to {target}"] for target in ("1.5", "0.5", "0.3")] == ["2", "4", "8 (1 of 2)"]
    assert line["traffic to 0.5 (GB)"] == "0.016"
    (line,) = rows(capsys, *files, "--column", "train_loss", "--targets", "0.34")
    assert line["rounds to 0.34"] == "3"
    (line,) = rows(capsys, *files, "--column", "train_loss", "--targets", "0.34", "--direction", "higher")
    assert line["rounds to 0.34"] == "1", "as asked for"


def test_the_reduction_beside_the_reference_under_the_same_conditions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: by hand; at alpha 0.3 the reference takes 8 rounds to 15 %, at 0.7 it takes 4."""
    other = {"alpha: 0.3": "alpha: 0.7"}
    files = [
        str(finished(tmp_path / "a.h5", rounds=8, mu=1.0)),
        str(finished(tmp_path / "b.h5", rounds=8, mu=1.0, changes={**other, "cohort: 4": "cohort: 5"})),
        as_method(finished(tmp_path / "c.h5", rounds=8), "FedAvg", 0.5),
        as_method(finished(tmp_path / "d.h5", rounds=8, changes=other), "FedAvg"),
        as_method(finished(tmp_path / "e.h5", rounds=8, changes=other), "Slow", 0.5),
    ]
    found = rows(capsys, *files, "--targets", "0.15", "0.3", "--reference", "FedAvg")
    assert [line["reduction at 15 %"] for line in found] == ["50 %", "0 %", "0 %", "0 %", "-100 %"]
    assert [line["reduction at 30 %"] for line in found] == ["-", "0 %", "-", "0 %", "-"]
    assert main(["rounds", files[0], "--targets", "0.1", "--reference", "FedAvg"]) == 2
    assert capsys.readouterr().err == "--reference = FedAvg: must be a method of these runs (FedProx)\n"
    far = str(finished(tmp_path / "f.h5", changes={"alpha: 0.3": "alpha: 0.5"}))
    *_, line = rows(capsys, *files[2:4], far, "--targets", "0.1", "--reference", "FedAvg")
    assert line["reduction at 10 %"] == "-", "two settings of the reference are equally near"
