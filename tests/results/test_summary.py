from __future__ import annotations

from pathlib import Path

import pytest

import fedmpi.results
from fedmpi.algorithms import FedAvg, LocalOnly
from fedmpi.results.__main__ import main
from fedmpi.results.summary import summarize
from tests.results.made_runs import finished, started
from tests.support import experiments


def test_a_summary_says_what_the_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = fedmpi.results.open(finished(Path("run.h5")))
    assert summarize(run).splitlines() == [
        "status      finished",
        "experiment  FedProx (mu 0.01), Linear, Digits, seed 7",
        "clients     20, 4 per round, Permuted (over Dirichlet (alpha 0.3))",
        "local       epochs 2, lr 1e-05, compile off, accumulate 1, warmup 0.0,",
        "            schedule_by round",
        "rounds      20 of 20, 40 s",
        "untrained   accuracy 10.00 %, loss 2.5 (of the initial model)",
        "accuracy    last 80.00 %, best on test 80.00 % (round 20, optimistic), last 10",
        "            evaluations 44.00 %",
        "loss        test 0.1, training 0.05",
        "time        training 50 %, MPI 5 %, evaluation 20 %, idle 25 % (waiting for the",
        "            slowest rank)",
        "speed       2 clients/s, 2 s per round, 3 ranks",
        "traffic     20 MB up, 60 MB down (what simulated clients would send and receive;",
        "            not MPI)",
        f"sha256      {run.weights_sha256}",
        "file        run.h5",
    ]


def test_a_summary_tells_virtual_time(tmp_path: Path) -> None:
    """Oracle: 20 rounds of 2.5 virtual seconds, with 7 clients asked, 1 dropped out, 2 late."""
    text = summarize(fedmpi.results.open(finished(tmp_path / "run.h5", clock=True)))
    assert "virtual     50 s; of 140 asked clients 20 dropped out, 40 were late\n" in text
    assert len(text.splitlines()) < 20


def test_a_summary_fits_on_a_screen(tmp_path: Path) -> None:
    text = summarize(fedmpi.results.open(finished(tmp_path / "run.h5")))
    *lines, _ = text.splitlines()
    assert len(lines) < 20
    assert max(map(len, lines)) <= 80


def test_a_summary_says_what_the_checksum_covers(tmp_path: Path) -> None:
    """The models that clients keep are not in the file: the checksum does not tell runs of LocalOnly apart."""
    for method in (FedAvg(), LocalOnly()):
        made = experiments.run(tmp_path / f"{type(method).__name__}.h5", method, clients=4, cohort=4, rounds=1)
        is_limited = f"{made.weights_sha256} (of the server's model alone; " in " ".join(summarize(made).split())
        assert is_limited is isinstance(method, LocalOnly)


def test_a_run_that_has_not_got_far_has_a_summary(tmp_path: Path) -> None:
    results = started(tmp_path / "run.h5")
    results.write()
    assert "rounds      0 of 20\n" in summarize(fedmpi.results.open(results.path))
    results.add_round({"round": 1, "seconds": 75.0, "bytes_up": 5, "bytes_down": 5})
    results.write()
    text = summarize(fedmpi.results.open(results.path))
    assert "rounds      1 of 20, 1 min 15 s\n" in text
    assert "accuracy    -\n" in text


def test_files_that_cannot_be_read_are_named_and_the_others_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = str(finished(tmp_path / "run.h5")), str(tmp_path / "missing.h5")
    assert main(["summary", good]) == 0
    capsys.readouterr()
    assert main(["summary", bad, good]) == 1
    output, errors = capsys.readouterr()
    assert output.startswith("status      finished\n")
    assert errors == f"{bad}: No such file or directory\n"
    assert main(["summary", bad]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["table"],
        ["summary"],
        ["summary", "--x"],
        ["plot", "f", "--x", "time"],
        ["plot", "f", "--col", "a"],
    ],
)
def test_bad_options_give_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
