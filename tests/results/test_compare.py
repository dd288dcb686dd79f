from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats

import fedmpi.results
from fedmpi.results.__main__ import main
from fedmpi.results.compare import differing_parts
from tests.results.made_runs import finished, started, weights


def with_accuracy(path: Path, accuracy: float, mu: float, seed: int) -> str:
    finished(path, rounds=2, mu=mu, seed=seed)
    with h5py.File(path, "r+") as file:
        file["rounds/test_accuracy"][-1] = accuracy
    return str(path)


def test_differences_are_paired_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: SciPy's tests of the same pairs; the seed that only one method has is left out."""
    first = {1: 0.50, 2: 0.60, 3: 0.40, 4: 0.70, 5: 0.55, 6: 0.65}
    second = {2: 0.61, 3: 0.43, 4: 0.72, 5: 0.59, 6: 0.645, 7: 0.99}
    files = [
        with_accuracy(tmp_path / f"{mu}-{seed}.h5", accuracy, mu, seed)
        for mu, accuracies in ((0.1, first), (1.0, second))
        for seed, accuracy in accuracies.items()
    ]
    assert main(["compare", *files, "--format", "csv"]) == 0
    one, other = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (one["method"], one["pairs"], one["last (%)"]) == ("FedProx (mu 0.1)", "-", "56.67 ± 10.80")
    both = [100 * np.array([each[seed] for seed in range(2, 7)]) for each in (second, first)]
    test = stats.ttest_rel(*both)
    interval = test.confidence_interval(0.95)
    assert (other["method"], other["runs"], other["pairs"]) == ("FedProx (mu 1.0)", "6", "5")
    assert other["difference (points)"] == f"{np.mean(both[0] - both[1]):+.2f}"
    assert other["95 % interval"] == f"{interval.low:+.2f} to {interval.high:+.2f}"
    assert other["p (Wilcoxon)"] == f"{stats.wilcoxon(*both).pvalue:.3g}"


def test_methods_are_compared_under_the_same_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: rounds 4 and 10 at one alpha, 12 and 14 at the other, at 0.04 a round."""
    files = []
    for name, rounds, changes in (
        ("FedAvg", 5, {}),
        ("FedProx", 10, {}),
        ("FedAvg", 12, {"alpha: 0.3": "alpha: 0.7"}),
        ("FedProx", 15, {"alpha: 0.3": "alpha: 0.7"}),
    ):
        path = finished(tmp_path / f"{name}-{rounds}.h5", rounds=rounds, changes=changes)
        with h5py.File(path, "r+") as file:
            file.attrs["algorithm"] = name
            file.attrs["config"] = str(file.attrs["config"]).replace("fedprox.FedProx", f"x.{name}")
        files.append(str(path))
    assert main(["compare", *files, "--format", "csv"]) == 0
    lines = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [line["difference (points)"] for line in lines] == ["-", "+24.00", "-", "+8.00"]


def test_few_pairs_have_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [with_accuracy(tmp_path / f"{mu}.h5", mu, mu, 1) for mu in (0.5, 0.25, 0.75)]
    with_accuracy(tmp_path / "other seed.h5", 0.5, 0.9, 2)
    assert main(["compare", *files, str(tmp_path / "other seed.h5"), "--statistic", "best", "--format", "csv"]) == 0
    lines = [line.split(",")[3:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [["-"] * 4, ["1", "-25.00", "-", "-"], ["1", "+25.00", "-", "-"], ["0", "-", "-", "-"]]


def test_same_bits_but_for_timings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: what is changed in a copy."""
    one, other = (finished(tmp_path / name) for name in ("one.h5", "other.h5"))
    with h5py.File(other, "r+") as file:
        for name in ("rounds/seconds", "rounds/train_seconds", "ranks/busy_seconds"):
            file[name][...] += 1
        file["environment"].attrs["ranks"] = 5
    assert main(["compare", str(one), str(other)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(one),
        str(other),
        "  ran on    ranks 3 | 5",
        "  bits      identical apart from timings",
    ]
    with h5py.File(other, "r+") as file:
        file["rounds/test_loss"][3] = np.nextafter(file["rounds/test_loss"][3], 9)
        file["rounds/train_loss"][15] = -1
        file["clients/loss"][4 * 6] = 2
        file["model/weights"][3] = 0.5
        del file["evaluation/client_accuracy"]
    assert list(differing_parts(*map(fedmpi.results.open, (one, other)))) == [
        "clients from round 7 (loss)",
        "evaluation (client_accuracy)",
        "model (weights)",
        "rounds from round 4 (train_loss, test_loss)",
    ]
    third = finished(tmp_path / "third.h5", mu=1.0)
    assert main(["compare", *map(str, (one, other, third))]) == 0
    table, repeat, note = capsys.readouterr().out.split("\n\n")
    assert table.splitlines()[2].split() == ["FedProx", "(mu", "1.0)", "1", "80.00", "1", "+0.00", "-", "-"]
    assert repeat.splitlines()[:2] == [str(one), str(other)], "the pair of one setting and seed"
    assert note.startswith(f"FedProx, seed 7: 2 runs count once; used: {one}; not used: {other} (other results, ")
    assert main(["compare", str(one), str(third)]) == 0
    assert "  settings  mu 0.01 | mu 1.0\n" in capsys.readouterr().out


def test_a_shorter_run_differs_where_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, short = finished(tmp_path / "long.h5", rounds=5), finished(tmp_path / "short.h5", rounds=3)
    assert main(["compare", str(long)]) == 2
    assert capsys.readouterr().err == f"{long}: compare needs at least two runs\n"
    started(tmp_path / "none.h5").write()
    runs = [fedmpi.results.open(path) for path in (long, short, tmp_path / "none.h5")]
    rounds = [part for part in differing_parts(*runs[:2]) if part.startswith("rounds")]
    assert rounds == [
        "rounds from round 4 (round, train_loss, bytes_up, bytes_down, test_loss, test_accuracy)",
    ]
    assert [part.split()[0] for part in differing_parts(*runs[::2])] == [
        "clients",
        "confusion",
        "evaluation",
        "rounds",
    ]
    assert runs[0].weights.tolist() == weights().tolist()


def test_rounds_are_named_only_where_rows_are_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: what is changed in a copy, in the last row of every dataset, which in most groups is no round."""
    one, other = (finished(tmp_path / name, rounds=6) for name in ("one.h5", "other.h5"))
    for path in (one, other):
        with h5py.File(path, "r+") as file:
            file.attrs["user_code"] = json.dumps({"mine.py": path.name, "same.py": "1"})
            file["clusters/round"], file["clusters/cluster"] = np.arange(3, 7), np.zeros((4, 20), np.int64)
            file["held_out/accuracy"], file["held_out/epochs"] = np.zeros((9, 3)), np.zeros(9)
            file["stages/generator/round"], file["stages/generator/train_loss"] = np.arange(1, 9), np.zeros(8)
            file["synthetic/images"], file["synthetic/labels"] = np.zeros((30, 1, 2, 2), np.uint8), np.zeros(30, int)
            file["rounds/whole"] = np.ones(6, dtype=np.int64)
    with h5py.File(other, "r+") as file:
        file["confusion/counts"][-1, 3] = 77
        file["partition/samples"][-1] = 77
        file["clients/loss"][-1] = 77
        file["evaluation/per_class_accuracy"][-1, -1] = 0.77
        file["evaluation"].attrs["test_loss"] = 77.0
        file["clusters/cluster"][-1, 5] = 7
        file["held_out/accuracy"][-1, 1] = 0.77
        file["stages/generator/train_loss"][-1] = 77
        file["synthetic/labels"][-1] = 7
        file["model/weights"][-1] = 77
        del file["rounds/whole"]
        file["rounds/whole"] = np.array([1, 1, 1, 1, 1, np.nan])
    expected = {
        "clients from round 6 (loss)",
        "clusters from round 6 (cluster)",
        "confusion (counts)",
        "evaluation from round 6 (initial test_loss, per_class_accuracy)",
        "model (weights)",
        "held_out (accuracy)",
        "partition (samples)",
        "rounds from round 6 (whole)",
        "stages/generator from round 8 (train_loss)",
        "synthetic (labels)",
    }
    assert set(differing_parts(*map(fedmpi.results.open, (one, other)))) == expected
    with h5py.File(other, "r+") as file:
        file["confusion/counts"][0, 3] = 77
    assert set(differing_parts(*map(fedmpi.results.open, (one, other)))) == expected, "the first row is no round, too"
    assert main(["compare", str(one), str(other)]) == 0
    assert "  files     mine.py\n" in capsys.readouterr().out
