from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.results import open as open_run
from fedmpi.results.__main__ import main
from fedmpi.results.plot import curve
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
    plain, strong = rows(capsys, *map(str, files), "--targets", "0.15", "0.3")
    assert (plain["method"], strong["method"]) == ("FedProx (mu 0.01)", "FedProx (mu 1.0)")
    assert (plain["runs"], strong["runs"]) == ("2", "1")
    assert (plain["last (%)"], strong["last (%)"]) == ("24.00 ± 0.00", "32.00")
    assert (plain["last 10 (%)"], strong["last 10 (%)"]) == ("16.00 ± 0.00", "20.00")
    assert (plain["rounds to 15 %"], strong["rounds to 15 %"]) == ("4", "4")
    assert (plain["rounds to 30 %"], strong["rounds to 30 %"]) == ("-", "8")
    assert (plain["GB"], strong["GB"]) == ("0.024", "0.032")
    assert (plain["seconds"], strong["seconds"]) == ("12", "16")
    assert plain["whose"] == "server's"
    assert "seed" not in plain


def test_spread_is_over_seeds_and_targets_count_who_reached_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for seed, rounds in ((1, 4), (2, 6), (3, 8)):  # as if trained for as long, and learnt as much
        files.append(str(finished(tmp_path / f"{seed}.h5", rounds=rounds, seed=seed)))
    (line,) = rows(capsys, *files, "--targets", "0.2")
    assert line["best (%)"] == "24.00 ± 8.00"  # of 16, 24, 32, with n-1
    assert line["rounds to 20 %"] == "6 (2 of 3)"


def test_settings_that_differ_are_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tests.results.made_runs as made

    one = finished(tmp_path / "one.h5")
    config = made.CONFIG
    try:
        made.CONFIG = config.replace("alpha: 0.3", "alpha: 0.7").replace("lr: 1.0e-05", "lr: 0.1")
        other = finished(tmp_path / "other.h5")
    finally:
        made.CONFIG = config
    lines = rows(capsys, str(one), str(other))
    assert [(line["alpha"], line["lr"]) for line in lines] == [("0.3", "1e-05"), ("0.7", "0.1")]
    assert "epochs" not in lines[0]
    try:
        made.CONFIG = config.replace("model: Linear", "model:\n  class_path: a.b.Wide\n  init_args:\n    norm: batch")
        third = finished(tmp_path / "third.h5")
    finally:
        made.CONFIG = config
    assert [line["model"] for line in rows(capsys, str(one), str(third))] == ["Linear", "Wide (norm batch)"]


def test_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(finished(tmp_path / f"{seed}.h5", rounds=2, seed=seed)) for seed in (1, 2)]
    shown = {}
    for format in ("text", "markdown", "latex"):
        assert main(["table", *files, "--format", format]) == 0
        shown[format] = capsys.readouterr().out.splitlines()
    assert " ".join(shown["text"][0].split()) == "method runs last (%) best (%) last 10 (%) whose GB seconds"
    assert shown["text"][1].startswith("FedProx (mu 0.01)  2     8.00 ± 0.00")
    assert shown["markdown"][1] == "| " + " | ".join(["---"] * 8) + " |"
    assert shown["markdown"][2].startswith("| FedProx (mu 0.01) | 2 | 8.00 ± 0.00 | ")
    assert shown["latex"][0] == r"\begin{tabular}{llllllll}"
    assert shown["latex"][2].startswith(r"method & runs & last (\%) & ")
    assert r"8.00 $\pm$ 0.00" in shown["latex"][4]


def test_files_that_do_not_serve_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, going, young = finished(tmp_path / "good.h5"), tmp_path / "going.h5", tmp_path / "young.h5"
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
    assert going_line == f"{going}: running, counted as far as it is"
    assert young_line == f"{young}: no column 'test_accuracy' in its rounds (no rounds yet)"
    assert text_line.startswith(f"{tmp_path / 'text.h5'}: ")
    with pytest.raises(SystemExit) as raised:
        main(["table", str(good), "--targets", "70"])
    assert raised.value.code == 2
    assert capsys.readouterr().err.endswith("70 must be a share from 0 to 1\n")


def test_rounds_beside_a_reference_and_traffic_until_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: 0.04 of accuracy and 4 MB a round, measured every other round; rounds by hand."""
    fast = finished(tmp_path / "fast.h5", rounds=8, mu=1.0)
    slow = finished(tmp_path / "slow.h5", rounds=8)
    with h5py.File(slow, "r+") as file:
        file["rounds/test_accuracy"][...] /= 2
        file.attrs["algorithm"] = "FedAvg"
    fast_line, slow_line = rows(capsys, str(fast), str(slow), "--targets", "0.15", "0.3", "--reference", "FedAvg")
    assert (fast_line["rounds to 15 %"], slow_line["rounds to 15 %"]) == ("4 (-50 %)", "8")
    assert (fast_line["rounds to 30 %"], slow_line["rounds to 30 %"]) == ("8", "-")
    assert (fast_line["GB to 15 %"], slow_line["GB to 15 %"]) == ("0.016", "0.032")
    assert slow_line["GB to 30 %"] == "-"
    assert main(["table", str(fast), "--reference", "FedAvg"]) == 2
    assert capsys.readouterr().err == "--reference = FedAvg: must have runs of one setting, here 0\n"


def test_newcomers_have_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand: one has settled after the first epoch, one after the third, one has not."""
    results = started(tmp_path / "new.h5", mu=3.0)
    add_round(results, 1)
    add_round(results, 2)
    grown = [[0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4]]
    results.set_newcomers(np.array([*grown, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]]))
    results.finish("finished")
    other = finished(tmp_path / "none.h5", rounds=2)
    with_them, without = rows(capsys, str(tmp_path / "new.h5"), str(other))
    assert with_them["newcomers' epochs"] == "2 (2 of 3)"
    assert without["newcomers' epochs"] == "-"
    picture = tmp_path / "newcomers.png"
    assert main(["plot", str(tmp_path / "new.h5"), "--column", "newcomers", "-o", str(picture)]) == 0
    assert picture.stat().st_size > 1000
    run = open_run(tmp_path / "new.h5")
    means = np.mean([*grown, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]], 0)
    np.testing.assert_allclose(curve(run, "newcomers", "round"), [range(7), 100 * means])
    assert main(["plot", str(other), "--column", "newcomers", "-o", str(tmp_path / "never.png")]) == 2
    assert capsys.readouterr().err == f"{other}: no newcomers\n"


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
    assert (some["global (%)"], plain["global (%)"]) == ("40.00 ± 14.14", "-")
    assert (some["ARI"], plain["ARI"]) == ("0.50 ± 0.35", "-")
