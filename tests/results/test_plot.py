from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedmpi.results
from fedmpi.results.__main__ import main
from fedmpi.results.plot import curve
from fedmpi.results.settings import describe, differences
from tests.results.made_runs import finished, started


def test_pictures_are_made_in_the_format_of_their_suffix(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [str(finished(tmp_path / f"{mu}.h5", mu=mu)) for mu in (0.01, 1.0)]
    for name, magic in (("out.png", b"\x89PNG"), ("out.pdf", b"%PDF")):
        assert main(["plot", *runs, "-o", str(tmp_path / name), "--x", "seconds"]) == 0
        content = (tmp_path / name).read_bytes()
        assert content.startswith(magic)
        assert len(content) > 5000


def test_bubbles_of_a_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the counts in the file: places, areas in their proportion and on one scale, no bubble for 0."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn, save = [], figure.savefig

    def noting_save(self: Any, *arguments: Any, **options: Any) -> None:
        drawn.append(self.axes)
        save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", noting_save)
    counts = [np.array([[4, 0, 1], [2, 8, 0], [0, 0, 3]]), np.full((3, 3), 5)]
    files = []
    for number, count in enumerate(counts):
        run = started(tmp_path / f"{number}.h5", mu=number)
        run.set_partition(count, count.sum(1))
        run.finish("finished")
        files.append(str(tmp_path / f"{number}.h5"))
    for output, clients in (("two.png", 2), ("all.pdf", 9)):
        assert main(["plot", *files, "-o", str(tmp_path / output), "--partition", str(clients)]) == 0
        areas = []
        for axes, count in zip(drawn[-1], counts, strict=True):
            bubbles, (client, of_class) = axes.collections[0], np.nonzero(count[:clients])
            assert bubbles.get_offsets().tolist() == np.stack([client, of_class], 1).tolist()
            areas.append(bubbles.get_sizes() / count[client, of_class])
        assert np.ptp(np.concatenate(areas)) < 1e-9
        assert [axes.get_title() for axes in drawn[-1]] == ["mu 0", "mu 1"]
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(SystemExit):
        main(["plot", *files, "--partition", "0"])


def test_a_curve_starts_at_the_initial_model_and_skips_rounds_not_evaluated(tmp_path: Path) -> None:
    run = fedmpi.results.open(finished(tmp_path / "run.h5", rounds=4))
    expected = {"round": [0, 2, 4], "seconds": [0, 4, 8], "bytes": [0, 0.008, 0.016]}
    for x, xs in expected.items():
        found, accuracies = curve(run, "test_accuracy", x)
        assert found.tolist() == pytest.approx(xs)
        assert accuracies.tolist() == pytest.approx([10, 8, 16])
    assert curve(run, "train_loss", "round")[0].tolist() == [1, 2, 3, 4]


def test_files_without_the_column_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(finished(tmp_path / "run.h5"))
    output = tmp_path / "out.png"
    assert main(["plot", run, "--column", "drift", "-o", str(output)]) == 2
    assert capsys.readouterr().err.startswith(f"{run}: no column 'drift' in its rounds (round, seconds, ")
    assert not output.exists()


def test_what_cannot_be_drawn_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(finished(tmp_path / "run.h5"))
    with pytest.raises(SystemExit):
        main(["plot", run, "-o", "out.gif"])
    assert capsys.readouterr().err.endswith("out.gif must end in .png, .pdf, .svg\n")
    missing = str(tmp_path / "missing" / "out.png")
    assert main(["plot", run, "-o", missing]) == 2
    assert capsys.readouterr().err == f"{missing}: No such file or directory\n"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", run]) == 2
    assert capsys.readouterr().err == "matplotlib is not installed: pip install 'fedmpi[plot]'\n"


def test_runs_are_told_apart_by_what_differs_in_their_settings() -> None:
    def settings(name: str, seed: int, **arguments: float) -> dict:
        return {
            "algorithm": {"class_path": f"fedmpi.algorithms.{name.lower()}.{name}", "init_args": arguments},
            "dataset": "Digits",
            "local": {"lr": 0.1, "clip": None},
            "seed": seed,
            "output": f"{name}-{seed}.h5",
        }

    runs = [settings("FedAvg", 0), settings("FedProx", 0, mu=0.1), settings("FedProx", 1, mu=1.0)]
    assert differences(runs) == ["FedAvg, seed 0", "FedProx, mu 0.1, seed 0", "FedProx, mu 1.0, seed 1"]
    assert differences(runs[:2]) == ["FedAvg", "FedProx"], "whose mu is one of a kind"
    assert differences([runs[0], {**runs[0], "local": {"lr": 0.1, "clip": 1}}]) == ["", "clip 1"]
    assert differences(runs[:1] * 2) == ["", ""]


def test_settings_read_like_prose() -> None:
    inner = {
        "class_path": "fedmpi.data.Dirichlet",
        "init_args": {"alpha": 1e-5, "root": "x", "minimum": None},
    }
    assert (
        describe({"class_path": "a.b.Permuted", "init_args": {"over": inner}})
        == "Permuted (over Dirichlet (alpha 1e-05))"
    )
    assert describe({"class_path": "a.b.IID"}) == "IID"
    assert describe({"epochs": 2, "lr": 0.1}) == "epochs 2, lr 0.1"
    assert describe("my_package.Mine") == "Mine"
    assert describe(1.5) == "1.5"


def test_a_curve_over_virtual_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: 2.5 virtual seconds a round, added up; a run without a virtual clock is named."""
    with_clock = finished(tmp_path / "clock.h5", rounds=4, clock=True)
    assert curve(fedmpi.results.open(with_clock), "test_accuracy", "virtual_seconds")[0].tolist() == [0, 5, 10]
    without = str(finished(tmp_path / "run.h5", rounds=4))
    assert main(["plot", without, "--x", "virtual_seconds", "-o", str(tmp_path / "out.png")]) == 2
    assert capsys.readouterr().err.startswith(f"{without}: no column 'virtual_seconds' in its rounds (round, ")
