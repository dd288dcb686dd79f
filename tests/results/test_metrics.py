"""Runs of other tasks than classification, with further metrics, and with validation sets."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.results.__main__ import main
from fedmpi.results.check import problems
from fedmpi.results.metrics import Metric
from fedmpi.results.summary import summarize
from fedmpi.results.watch import progress
from tests.results.made_runs import finished, started, weights
from tests.results.test_check import CHANGED_TEXT
from tests.results.test_pictures import drawn
from tests.results.test_rounds import as_method

__all__ = ["drawn"]  # the fixture

PERCENT, NUMBER, LOSS = (
    {"better": better, "unit": unit} for better, unit in (("higher", "%"), ("higher", ""), ("lower", ""))
)
REGRESSION = {"rmse": LOSS, "r2": NUMBER, "loss": LOSS}
CLASSIFICATION = {"accuracy": PERCENT, "loss": LOSS, "macro_f1": PERCENT, "top_5": PERCENT, "ece": LOSS}
NAN = float("nan")


def made(
    path: Path,
    columns: Mapping[str, Sequence[float]],
    main_metric: str = "accuracy",
    metrics: Mapping[str, Any] | None = None,
    changes: Mapping[str, str] | None = None,
    seed: int = 7,
    mu: float = 0.01,
) -> str:
    """A run whose /rounds has these columns, one value per round, and whose file has these metrics."""
    run = started(path, mu=mu, seed=seed, changes=changes)
    timings = ("train_seconds", "communication_seconds", "evaluation_seconds")
    for round, row in enumerate(zip(*columns.values(), strict=True), start=1):
        fixed = {"round": round, "seconds": 2.0, "train_loss": 1 / round, **dict.fromkeys(timings, 0.5)}
        run.add_round(
            {**fixed, "bytes_up": 1_000_000, "bytes_down": 3_000_000, **dict(zip(columns, row, strict=True))}
        )
    run.finish("finished")
    with h5py.File(path, "r+") as file:
        if metrics:
            file.attrs.update(main_metric=main_metric, metrics=json.dumps(metrics))
        if main_metric != "accuracy":
            file.attrs["task"] = "Regression"
            file["evaluation"].attrs[f"test_{main_metric}"] = 4.0
            file["evaluation/round"] = np.arange(1, 3)
            file[f"evaluation/client_{main_metric}"] = np.stack([np.full(20, 9.0), np.arange(20.0)])
    return str(path)


def regression(path: Path, values: Sequence[float] = (3, 1, 2, NAN), **more: Any) -> str:
    columns: dict[str, Sequence[float]] = {
        "test_rmse": values,
        "test_r2": [-value for value in values],
        "test_loss": [value**2 for value in values],
    }
    clients = {f"client_rmse_{name}": values for name in ("mean", "std", "p90", "worst10")}
    return made(path, {**columns, **clients}, "rmse", REGRESSION, **more)


def validated(path: Path, **more: Any) -> str:
    """The best on the validation set is in rounds 3 and 4, on the test set in round 2; round 5 is not evaluated."""
    columns = {
        "test_accuracy": (0.5, 0.9, 0.7, 0.6, NAN),
        "test_loss": (0.2, 0.1, 0.4, 0.3, NAN),
        "validation_accuracy": (0.4, 0.5, 0.8, 0.8, NAN),
        "validation_loss": (0.3, 0.2, 0.5, 0.6, NAN),
        "client_accuracy_worst10": (0.1, 0.3, 0.2, 0.4, NAN),
    }
    changes = {"rounds: 20": "rounds: 20\nvalidation: 0.1"}
    return made(path, columns, metrics={"accuracy": PERCENT, "loss": LOSS}, changes=changes, **more)


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    assert main([*arguments, "--format", "csv"]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_a_run_knows_its_metrics(tmp_path: Path) -> None:
    """Oracle: by hand; files without the attributes are of classification."""
    run, old = results.open(regression(tmp_path / "a.h5")), results.open(finished(tmp_path / "old.h5"))
    assert (run.task, run.main_metric, list(run.metrics)) == ("Regression", "rmse", ["rmse", "r2", "loss"])
    assert run.metrics["r2"] == Metric("higher", "")
    assert (old.task, old.main_metric) == ("Classification", "accuracy")
    assert old.metrics == {"accuracy": Metric("higher", "%"), "loss": Metric("lower", "")}
    assert run.statistics() == (4, 2, 1, 2, 2), "initial, last, best, its round, mean"
    assert run.statistics("test_r2")[1:4] == (-2, -1, 2)
    assert run.statistics("client_rmse_p90").best == 1
    more = results.open(made(tmp_path / "b.h5", {"test_top_5": [0.5]}, metrics=CLASSIFICATION))
    assert run.evaluation["client_rmse"].shape == (2, 20)
    expected: dict[tuple[results.Run, str], tuple[str | None, str]] = {
        (run, "test_rmse"): ("lower", ""),
        (run, "client_rmse_worst10"): ("lower", ""),
        (run, "client_rmse_std"): ("lower", ""),
        (run, "fine_tuned_rmse"): ("lower", ""),
        (run, "validation_r2"): ("higher", ""),
        (run, "global_matched_rmse"): ("lower", ""),
        (run, "test_accuracy"): (None, ""),
        (run, "leaky_client_accuracy"): ("higher", "%"),
        (run, "epsilon"): ("lower", ""),
        (old, "client_accuracy_std"): ("lower", "%"),
        (old, "client_accuracy_worst10"): ("higher", "%"),
        (old, "cluster_size_3"): (None, ""),
        (old, "test_loss"): ("lower", ""),
        (more, "test_top_5"): ("higher", "%"),
        (more, "test_macro_f1"): ("higher", "%"),
        (more, "test_ece"): ("lower", ""),
        (more, "global_accuracy"): ("higher", "%"),
    }
    for (of, column), found in expected.items():
        about = of.described(column)
        assert (about.better, about.unit) == found, column
    assert more.described("test_macro_f1").label == "Test macro f1"


def test_tables_of_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: 1 is better than 1.5, and nothing is in percent."""
    files = [regression(tmp_path / "a.h5"), regression(tmp_path / "b.h5", (4, 1.5, 2.5, NAN), mu=1.0)]
    first, second = rows(capsys, "table", *files)
    assert (first["last"], first["best on test, optimistic"], first["last 10"]) == ("2.000", "1.000", "2.000")
    assert second["best on test, optimistic"] == "1.500"
    assert main(["table", *files, "--format", "markdown"]) == 0
    assert "| **2.000** | **1.000** | **2.000** |" in capsys.readouterr().out
    tuned = made(tmp_path / "c.h5", {"fine_tuned_rmse": [1.0]}, "rmse", REGRESSION)
    (line,) = rows(capsys, "table", tuned, "--column", "fine_tuned_rmse")
    assert (line["last"], line["evaluated model"]) == ("1.000", "personal")
    (line, _) = rows(capsys, "table", *files, "--column", "client_rmse_worst10", "--statistic", "best")
    assert line["best on test, optimistic"] == "1.000"
    assert [line["rounds to 1.5"] for line in rows(capsys, "rounds", *files, "--targets", "1.5")] == ["2", "2"]
    lines = rows(capsys, "rounds", *files, "--targets", "70", "1")
    assert [(line["rounds to 70"], line["rounds to 1"]) for line in lines] == [("1", "2"), ("1", "-")]
    lines = rows(capsys, "rounds", *files, "--targets", "-1.2", "--column", "test_r2")
    assert [line["rounds to -1.2"] for line in lines] == ["2", "-"]
    _, line = rows(capsys, "compare", *files)
    assert (line["last"], line["difference"]) == ("2.500", "+0.5")


def test_screens_of_a_regression(tmp_path: Path) -> None:
    run = results.open(regression(tmp_path / "a.h5"))
    lines = summarize(run).splitlines()
    assert "untrained   rmse 4, loss 2.5 (of the initial model)" in lines
    assert "rmse        last 2, best on test 1 (round 2, optimistic), last 3 evaluations 2" in lines
    assert "r2          last -2, best on test -1 (round 2, optimistic), last 3 evaluations" in lines
    assert "loss        test 4, training 0.25" in lines
    assert progress(run).splitlines()[3:5] == [
        "test rmse      █▁▅ 2",
        "               best on test 1 (round 2, optimistic)",
    ]


def test_pictures_of_a_regression(tmp_path: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the values as they are in the file."""
    file, output = regression(tmp_path / "a.h5"), tmp_path / "out.png"
    for options in ([], ["--clients"]):
        assert main(["plot", file, "-o", str(output), *options]) == 0
    (curve,), (boxes,) = drawn
    assert curve.get_ylabel() == "Test rmse"
    assert curve.lines[0].get_xydata().tolist() == [[0, 4], [1, 3], [2, 1], [3, 2]]
    assert boxes.get_xlabel() == "Rmse per client"
    assert boxes.lines[0].get_xdata().tolist() == list(range(20))
    with h5py.File(file, "r+") as made:
        made["held_out/rmse"], made["held_out/epochs"] = np.array([[3.0, 1.0], [5.0, 2.0]]), np.array([1.0, NAN])
    assert main(["plot", file, "-o", str(output), "--column", "held_out"]) == 0
    (axes,) = drawn[-1]
    assert axes.get_ylabel() == "Held-out clients' rmse"
    assert axes.lines[0].get_ydata().tolist() == [4, 1.5]
    assert "held-out    2 clients, rmse of the global model 4, after 1 epochs of fine-tuning 1.5" in summarize(
        results.open(file)
    ).replace("\n            ", " ")
    capsys.readouterr()
    for kind, said in (("classes", "no accuracies per class yet"), ("confusion", "no confusion matrix yet")):
        assert main(["plot", file, f"--{kind}", "-o", str(output)]) == 2
        assert capsys.readouterr().err == f"{file}: {said}\n"


def test_the_round_is_chosen_on_the_validation_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand, see `validated`: round 3, whatever the test set says."""
    file = validated(tmp_path / "a.h5")
    run = results.open(file)
    assert run.statistics()[1:4] == (0.6, 0.7, 3)
    assert run.statistics("test_loss")[2:4] == (0.4, 3)
    assert run.statistics("client_accuracy_worst10")[2:4] == (0.2, 3)
    assert run.statistics("test_accuracy", "lower")[2:4] == (0.7, 3)
    assert run.statistics("validation_accuracy")[2:4] == (0.8, 3), "its own best, the earliest"
    assert run.statistics("validation_loss")[2:4] == (0.2, 2)
    assert run.statistics("train_loss")[2:4] == (0.2, 5)
    names = ("test_accuracy", "client_accuracy_std", "validation_accuracy", "train_loss", "mine")
    assert [run.best_is(name) for name in names] == ["best on validation"] * 2 + ["best"] * 3
    (line,) = rows(capsys, "table", file)
    assert (line["last (%)"], line["best on validation (%)"]) == ("60.00", "70.00")
    (line,) = rows(capsys, "table", file, "--statistic", "best", "--column", "validation_loss")
    assert line["best"] == "0.2000"
    lines = summarize(run).splitlines()
    assert "accuracy    last 60.00 %, best on validation 70.00 % (round 3), last 4" in lines
    assert "validation  last 80.00 %, best 80.00 % (round 3), last 4 evaluations 62.50 %" in lines
    assert "loss        test 0.3, validation 0.6, training 0.2" in lines
    assert "               best on validation 70.00 % (round 3)" in progress(run).splitlines()


def test_a_round_that_was_not_evaluated_on_both_has_no_best_value(tmp_path: Path) -> None:
    columns = {"test_accuracy": (0.5, 0.6, NAN), "validation_accuracy": (0.5, NAN, 0.9)}
    last, best, best_round = results.open(made(tmp_path / "a.h5", columns)).statistics()[1:4]
    assert (last, best_round) == (0.6, 3)
    assert np.isnan(best)
    nothing = results.open(made(tmp_path / "b.h5", {**columns, "validation_accuracy": (NAN, NAN, NAN)}))
    assert np.isnan(nothing.statistics().best)
    assert nothing.statistics().best_round == 0


def test_the_two_kinds_of_best_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: 70 % on validation, 80 % on test in `finished`; neither is better than the other."""
    files = [validated(tmp_path / "a.h5"), str(finished(tmp_path / "b.h5"))]
    one, other = rows(capsys, "table", *files)
    assert (one["best on validation (%)"], one["best on test, optimistic (%)"]) == ("70.00", "-")
    assert (other["best on validation (%)"], other["best on test, optimistic (%)"]) == ("-", "80.00")
    heads = ["method", "statistic", "validation 0.1", "no validation"]
    lines = rows(capsys, "table", *files, "--statistic", "best")
    assert [[line[head] for head in heads] for line in lines] == [
        ["FedProx", "best on validation", "70.00", "-"],
        ["FedProx", "best on test, optimistic", "-", "80.00"],
    ]
    methods = [files[0], as_method(finished(tmp_path / "c.h5"), "FedAvg")]
    lines = rows(capsys, "table", *methods, "--statistic", "best")
    assert [(line["method"], line["statistic"], line["best (%)"]) for line in lines] == [
        ("FedProx", "best on validation", "70.00"),
        ("FedAvg", "best on test, optimistic", "80.00"),
    ]
    one, other = rows(capsys, "compare", *files, "--statistic", "best")
    assert (one["statistic"], one["best (%)"]) == ("best on validation", "70.00")
    assert (other["pairs"], other["difference (points)"]) == ("0", "-")
    alphas = [validated(tmp_path / f"{mu}.h5", mu=mu) for mu in (0.1, 1.0)]
    with h5py.File(alphas[1], "r+") as file:
        file.attrs["config"] = (
            str(file.attrs["config"]).replace("alpha: 0.3", "alpha: 0.7").replace("mu: 1.0", "mu: 0.1")
        )
    (line,) = rows(capsys, "table", *alphas, "--statistic", "best")
    assert line == {
        "method": "FedProx",
        "statistic": "best on validation",
        "alpha 0.3": "70.00",
        "alpha 0.7": "70.00",
    }
    assert main(["table", *alphas, "--statistic", "best", "--format", "latex"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "% in all rows: statistic best on validation" in shown
    assert r"method & $\alpha$ 0.3 & $\alpha$ 0.7 \\" in shown


def test_runs_with_several_main_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(finished(tmp_path / "a.h5")), regression(tmp_path / "b.h5", mu=1.0)]
    output = ["-o", str(tmp_path / "out.png")]
    told = f"{files[0]} has the main metric accuracy, {files[1]} has rmse: "
    column = "give --column, such as --column train_loss"
    for command, advice in (
        (["table"], column),
        (["compare"], column),
        (["rounds", "--targets", "1"], column),
        (["plot", *output], column),
        (["plot", *output, "--clients"], "plot them one by one"),
    ):
        assert main([command[0], *files, *command[1:]]) == 2
        assert capsys.readouterr().err == f"{told}{advice}\n", command
    assert [line["last"] for line in rows(capsys, "table", *files, "--column", "train_loss")] == ["0.05000", "0.2500"]
    personal = made(tmp_path / "personal.h5", {"global_matched_accuracy": [0.25]}, mu=3.0)
    lines = rows(capsys, "table", personal, files[1], "--column", "train_loss")
    assert [line["global test set (%)"] for line in lines] == ["25.00", "-"]
    other = made(tmp_path / "c.h5", {"test_accuracy": [1]}, metrics={"accuracy": NUMBER, "loss": LOSS})
    assert main(["table", files[0], other]) == 2
    said = "--column = test_accuracy: has another unit or direction in"
    assert capsys.readouterr().err == f"{said} {other} than in {files[0]}\n"


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"metrics": "rmse"}, "metrics does not give the direction and the unit of each metric"),
        ({"metrics": "[1]"}, "metrics does not give the direction and the unit of each metric"),
        (
            {"metrics": '{"a/b": {"better": null, "unit": ""}}'},
            "metrics does not give the direction and the unit of ",
        ),
        (
            {"metrics": '{"a": {"better": "up", "unit": ""}}'},
            "metrics does not give the direction and the unit of each",
        ),
        (
            {"metrics": '{"a": {"better": [], "unit": ""}}'},
            "metrics does not give the direction and the unit of each",
        ),
        ({"metrics": '{"a": {"better": null}}'}, "metrics does not give the direction and the unit of each metric"),
        ({"metrics": "[" * 100_000}, "metrics does not give the direction and the unit of each metric"),
        ({"main_metric": "rmse"}, "main_metric is none of accuracy, loss"),
        ({"main_metric": 7}, "attribute main_metric is 7"),
        ({"task": 7}, "attribute task is 7"),
    ],
)
def test_attributes_that_are_wrong(attributes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = finished(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)
    with pytest.raises(BadInput) as error:
        results.open(path)
    assert str(error.value).startswith(f"{path}: damaged: /: {said}")
    assert any(line.startswith(f"/: {said}") for line in problems(path))


def test_what_the_check_knows(tmp_path: Path) -> None:
    """Oracle: what is done to valid files."""
    path = Path(validated(tmp_path / "run.h5"))
    with h5py.File(path, "r+") as file:
        file["partition/validation"] = np.ones(20, np.int64)
        file["best/weights"], file["best/centers"] = weights(), np.zeros((3, 9), "f4")
        about = {"round": 3, "column": "validation_accuracy", "value": 0.8}
        file["best"].attrs.update(sha256=file["model"].attrs["sha256"], **about)
    assert problems(path) == [CHANGED_TEXT]
    np.testing.assert_array_equal(results.open(path).best["weights"], weights())
    assert results.open(path).partition["validation"].sum() == 20
    assert problems(Path(regression(tmp_path / "regression.h5"))) == [CHANGED_TEXT]
    faults: dict[str, dict[str, Any]] = {
        "/best: round is 2, validation_accuracy is the best in round 3": {"round": 2},
        "/best: column is validation_rmse, which /rounds does not have": {"column": "validation_rmse"},
        "/best: sha256 does not match the weights": {"sha256": "0" * 64},
        "/best: attribute round is x": {"round": "x"},
    }
    for expected, attributes in faults.items():
        with h5py.File(path, "r+") as file:
            before = dict(file["best"].attrs)
            file["best"].attrs.update(attributes)
        assert expected in problems(path)
        with h5py.File(path, "r+") as file:
            file["best"].attrs.update(before)
    with h5py.File(path, "r+") as file:
        del file["best/weights"]
        file["best/weights"] = weights()[:8]
        file["evaluation/client_rmse"] = np.ones((0, 20))
        file["evaluation"].attrs["test_loss"] = "x"
    found = problems(path)
    assert "/best/weights: has the shape (8,), /model/weights has (9,)" in found
    assert "/evaluation/client_rmse: is not in the schema" in found
    assert "/evaluation: attribute test_loss is x" in found
