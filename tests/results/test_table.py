from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.results import open as open_run
from fedmpi.results.__main__ import main
from fedmpi.results.pictures.curves import curve
from tests.results.made_runs import add_round, finished, started


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    assert main(["table", *arguments, "--format", "csv"]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_runs_that_differ_by_their_seed_alone_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Accuracy is 0.04 times the round, every other round: 24 % after 6 rounds, 32 % after 8.
    files = [finished(tmp_path / "a.h5", rounds=6, seed=1), finished(tmp_path / "b.h5", rounds=6, seed=2)]
    files += [finished(tmp_path / "c.h5", rounds=8, mu=1.0)]
    plain, strong = rows(capsys, *map(str, files), "--costs")
    assert (plain["method"], strong["method"]) == ("FedProx (mu 0.01)", "FedProx (mu 1.0)")
    assert (plain["runs"], strong["runs"]) == ("2", "1")
    assert (plain["last (%)"], strong["last (%)"]) == ("24.00 ± 0.00", "32.00")
    assert (plain["last 10 (%)"], strong["last 10 (%)"]) == ("16.00 ± 0.00", "20.00")
    assert (plain["traffic (GB)"], strong["traffic (GB)"]) == ("0.024", "0.032")
    assert (plain["time (s)"], strong["time (s)"]) == ("12", "16")
    assert plain["evaluated model"] == "global"
    assert "seed" not in plain


def test_spread_is_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for seed, rounds in ((1, 4), (2, 6), (3, 8)):  # as if trained for as long, and learnt as much
        files.append(str(finished(tmp_path / f"{seed}.h5", rounds=rounds, seed=seed)))
    (line,) = rows(capsys, *files)
    assert line["best on test, optimistic (%)"] == "24.00 ± 8.00"  # of 16, 24, 32, with n-1
    (line,) = rows(capsys, *files, "--standard_error")
    assert line["best on test, optimistic (%)"] == "24.00 ± 4.62"  # 8 / sqrt(3)
    (line,) = rows(capsys, *files, "--column", "train_loss")
    assert line["last"] == line["best"] == "0.1806 ± 0.0636"  # of 1/4, 1/6, 1/8: losses fall


def test_settings_that_differ_are_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"model: Linear": "model:\n  class_path: a.b.Wide\n  init_args:\n    norm: batch"}
    one = finished(tmp_path / "one.h5")
    other = finished(tmp_path / "other.h5", changes={"alpha: 0.3": "alpha: 0.7", "lr: 1.0e-05": "lr: 0.1"})
    third = finished(tmp_path / "third.h5", changes=wide)
    fourth = finished(tmp_path / "fourth.h5", changes={**wide, "norm: batch": "norm: group"})
    lines = rows(capsys, str(one), str(other))
    assert [(line["alpha"], line["lr"]) for line in lines] == [("0.3", "1e-05"), ("0.7", "0.1")]
    assert "epochs" not in lines[0]
    assert [line["model"] for line in rows(capsys, str(one), str(third))] == ["Linear", "Wide"]
    models = [line["model"] for line in rows(capsys, str(one), str(third), str(fourth))]
    assert models == ["Linear", "Wide (norm batch)", "Wide (norm group)"]


def test_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(finished(tmp_path / f"{seed}.h5", rounds=2, seed=seed)) for seed in (1, 2)]
    shown = {}
    for format in ("text", "markdown", "latex"):
        assert main(["table", *files, "--format", format]) == 0
        shown[format] = capsys.readouterr().out.splitlines()
    head = "method runs last (%) best on test, optimistic (%) last 10 (%) evaluated model"
    assert " ".join(shown["text"][0].split()) == head
    first = "FedProx     2  8.00 ± 0.00                   8.00 ± 0.00"
    assert shown["text"][1].startswith(first), "one of a kind, no arguments"
    assert shown["markdown"][1] == "| --- | ---: | ---: | ---: | ---: | --- |"
    assert shown["markdown"][2].startswith("| FedProx | 2 | 8.00 ± 0.00 | ")
    assert shown["latex"] == [
        r"% needs \usepackage{booktabs}",
        "% in all rows: runs 2",
        "% in all rows: evaluated model global",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"method & last (\%) & best on test, optimistic (\%) & last 10 (\%) \\",
        r"\midrule",
        r"FedProx & 8.00 $\pm$ 0.00 & 8.00 $\pm$ 0.00 & 8.00 $\pm$ 0.00 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_files_that_do_not_serve_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "good.h5")
    going, young = tmp_path / "going.h5", tmp_path / "young.h5"
    results = started(going, mu=3.0)
    add_round(results, 1)
    add_round(results, 2)
    results.write()
    started(young).write()
    (tmp_path / "text.h5").write_text("no HDF5")
    files = [str(tmp_path / name) for name in ("good.h5", "going.h5", "young.h5", "text.h5")]
    assert main(["table", *files, "--format", "csv"]) == 1
    output = capsys.readouterr()
    assert [line.split(",")[0] for line in output.out.splitlines()] == [
        "method",
        "FedProx (mu 0.01)",
        "FedProx (mu 3.0)",
    ]
    going_line, young_line, text_line = output.err.splitlines()
    assert going_line == f"{going}: running, included up to its last round"
    assert young_line == f"{young}: no column 'test_accuracy' in its rounds (no rounds yet)"
    assert text_line.startswith(f"{tmp_path / 'text.h5'}: ")


def test_methods_by_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand. Most methods have both alphas, so they are columns; one has another cohort, which is not."""
    files = []
    for name, mu, seed, rounds, changes in (
        ("a", 0.1, 1, 4, {}),
        ("b", 0.1, 2, 6, {}),
        ("c", 0.1, 1, 8, {"alpha: 0.3": "alpha: 0.7"}),
        ("d", 1.0, 1, 10, {}),
        ("e", 1.0, 1, 12, {"alpha: 0.3": "alpha: 0.7"}),
        ("f", 1.0, 1, 14, {"alpha: 0.3": "alpha: 0.7", "cohort: 4": "cohort: 5"}),
    ):
        files.append(str(finished(tmp_path / f"{name}.h5", rounds=rounds, mu=mu, seed=seed, changes=changes)))
    assert main(["table", *files, "--statistic", "last", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "method,cohort,alpha 0.3,alpha 0.7",
        "FedProx (mu 0.1),4,20.00 ± 5.66,32.00",
        "FedProx (mu 1.0),4,40.00,48.00",
        "FedProx (mu 1.0),5,-,56.00",
    ]
    assert main(["table", *files[:2], "--statistic", "best", "--format", "csv"]) == 0
    assert capsys.readouterr().out == 'method,"best on test, optimistic (%)"\nFedProx,20.00 ± 5.66\n'


def test_held_out_clients_have_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: one has settled after the first epoch, one after the third, one has not."""
    results = started(tmp_path / "new.h5", mu=3.0)
    add_round(results, 1)
    add_round(results, 2)
    grown = [[0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4]]
    results.set_held_out(np.array([*grown, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]]))
    results.finish("finished")
    other = finished(tmp_path / "none.h5", rounds=2)
    with_them, without = rows(capsys, str(tmp_path / "new.h5"), str(other))
    assert with_them["epochs of held-out clients"] == "2 (2 of 3)"
    assert without["epochs of held-out clients"] == "-"
    picture = tmp_path / "held_out.png"
    assert main(["plot", str(tmp_path / "new.h5"), "--column", "held_out", "-o", str(picture)]) == 0
    assert picture.stat().st_size > 1000
    run = open_run(tmp_path / "new.h5")
    means = np.mean([*grown, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]], 0)
    np.testing.assert_allclose(curve(run, "held_out", "round"), [range(7), 100 * means])
    assert main(["plot", str(other), "--column", "held_out", "-o", str(tmp_path / "never.png")]) == 2
    assert capsys.readouterr().err == f"{other}: no held-out clients\n"


def test_what_only_some_methods_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: the last values over the seeds, in percent or as they are; a dash for a run without them."""
    runs: dict[str, list[tuple[float, float]]] = {
        "one": [(0.2, np.nan), (0.5, 0.25)],
        "other": [(0.3, 0.5), (np.nan, 0.75)],
        "plain": [],
    }
    for number, (name, values) in enumerate(runs.items()):
        results = started(tmp_path / f"{name}.h5", mu=0.5 if values else 0.1, seed=number)
        add_round(results, 2)
        for matched, index in values:
            row = {"round": 4, "test_accuracy": 0.5, "bytes_up": 0, "bytes_down": 0, "seconds": 0}
            results.add_round({**row, "global_matched_accuracy": matched, "adjusted_rand_index": index})
        results.finish("finished")
    some, plain = rows(capsys, *(str(tmp_path / f"{name}.h5") for name in runs))
    assert (some["global test set (%)"], plain["global test set (%)"]) == ("40.00 ± 14.14", "-")
    assert (some["ARI"], plain["ARI"]) == ("0.50 ± 0.35", "-")


def with_column(path: Path, name: str, values: list[float], seed: int = 1) -> str:
    """A run with a column of these values."""
    results = started(path, seed=seed)
    for round, value in enumerate(values, start=1):
        row = {"round": round, "test_accuracy": 0.5, "bytes_up": 0, "bytes_down": 0, "seconds": 0}
        results.add_round({**row, name: value})
    results.finish("finished")
    return str(path)


def test_the_best_of_a_column_is_its_highest_or_its_lowest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: by hand: a loss, an accuracy, what privacy costs, and a column that nobody knows, of 2, 0.5 and 1."""
    columns = {"test_loss": "0.5000", "local_accuracy": "200.00", "epsilon": "0.5000", "my_accuracy": "?"}
    for column, best in columns.items():
        file = with_column(tmp_path / f"{column}.h5", column, [2, 0.5, 1])
        unit = " (%)" if column == "local_accuracy" else ""
        (line,) = rows(capsys, file, "--column", column)
        title = "best" if column == "epsilon" else "best on test, optimistic"
        assert line.get(f"{title}{unit}", "?") == best
        assert line[f"last{unit}"] == ("100.00" if unit else "1.000"), "shown in its unit, or without one"
        if best != "?":
            assert main(["table", file, "--column", column, "--statistic", "best", "--format", "csv"]) == 0
            head, shown = csv.reader(capsys.readouterr().out.splitlines())
            assert (head, shown) == (["method", f"{title}{unit}"], ["FedProx", best])
    for command in (
        ["table", "--statistic", "best"],
        ["compare", "--statistic", "best"],
        ["rounds", "--targets", "1"],
    ):
        assert main([command[0], file, *command[1:], "--column", "my_accuracy"]) == 2
        assert capsys.readouterr().err == (
            "--column = my_accuracy: say which values are better by --direction higher or lower\n"
        )
    for direction, best in (("higher", "2.000"), ("lower", "0.5000")):
        (line,) = rows(capsys, file, "--column", "my_accuracy", "--direction", direction)
        assert line["best"] == best
        arguments = ["table", file, "--column", "my_accuracy", "--statistic", "best", "--direction", direction]
        assert main([*arguments, "--format", "csv"]) == 0
        assert capsys.readouterr().out == f"method,best\nFedProx,{best}\n"


def test_a_seed_that_was_run_again_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the same table as of one run of each seed, and a line about the other files."""
    files = [
        str(finished(tmp_path / f"{name}.h5", rounds=6, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    once = [files[0], files[2]]
    assert rows(capsys, *once) == rows(capsys, *files)
    assert main(["table", *files]) == 0
    output = capsys.readouterr()
    note = f"FedProx, seed 1: 2 runs count once; used: {files[0]}; not used: {files[1]} (the same results)"
    assert output.out.splitlines()[-2:] == ["", note]
    assert not output.err
    assert main(["table", *files, "--format", "latex"]) == 0
    output = capsys.readouterr()
    assert output.err == f"{note}\n", "so that the table can be read by a program"
    longer = str(finished(tmp_path / "longer.h5", rounds=8, seed=1))
    (line,) = rows(capsys, *once, longer)
    assert (line["runs"], line["last (%)"]) == ("2", "28.00 ± 5.66"), (
        "of the longest run of a seed, and the other seed"
    )
    assert main(["rounds", *once, longer, "--targets", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "8 (1 of 2)" in shown
    assert f"2 runs count once; used: {longer}; not used: {files[0]} (other results, " in shown
    assert main(["plot", *files, "-o", str(tmp_path / "x.png")]) == 0
    assert capsys.readouterr().err == f"{note}\n"


def test_runs_on_other_data_are_other_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for number, (root, checksum) in enumerate((("a", "1"), ("b", "1"), ("a", "2"))):
        path = finished(tmp_path / f"{number}.h5", seed=number, changes={"root: null": f"root: {root}"})
        with h5py.File(path, "r+") as file:
            file.attrs["data_sha256"] = checksum * 64
        files.append(str(path))
    (line,) = rows(capsys, *files[:2])
    assert line["runs"] == "2", "the same data in another place"
    lines = rows(capsys, *files)
    assert [(line["data"], line["runs"]) for line in lines] == [("11111111", "2"), ("22222222", "1")]
    assert [line["root"] for line in rows(capsys, *files[1:])] == ["b", "a"]


def test_runs_of_other_code_are_other_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds before and after a change of the user's own class are not repetitions of one experiment."""
    for seed, code in ((1, "a"), (2, "a"), (3, "b")):
        with h5py.File(finished(tmp_path / f"{seed}.h5", seed=seed), "r+") as file:
            file.attrs.update(user_code=json.dumps({"mine.py": code * 64}), input_files="{}")
    assert main(["table", *map(str, sorted(tmp_path.iterdir()))]) == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[:3] == ["method", "code", "runs"]
    assert [row[2] for row in rows] == ["2", "1"]
    assert rows[0][1] != rows[1][1]
    assert main(["table", *(str(tmp_path / f"{seed}.h5") for seed in (1, 2))]) == 0
    assert "code" not in capsys.readouterr().out


def test_what_was_not_measured_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that ended before its first evaluation counts, but not with an accuracy; and a run without settings."""
    nothing = with_column(tmp_path / "nothing.h5", "test_loss", [1, 1], seed=2)
    other = with_column(tmp_path / "other.h5", "test_loss", [1, 0.25], seed=3)
    with h5py.File(nothing, "r+") as file:
        file["rounds/test_accuracy"][:] = np.nan
    (line,) = rows(capsys, nothing, other)
    assert (line["runs"], line["last (%)"], line["best on test, optimistic (%)"]) == (
        "2",
        "50.00 (1 of 2)",
        "50.00 (1 of 2)",
    )
    for path in (nothing, other):
        with h5py.File(path, "r+") as file:
            file.attrs["config"] = ""
    (line,) = rows(capsys, nothing, other)
    assert (line["method"], line["runs"]) == ("FedProx", "2")
    assert main(["table", other, "--column", "held_out"]) == 2
    assert main(["rounds", other, "--column", "held_out", "--targets", "0.1", "--direction", "higher"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
