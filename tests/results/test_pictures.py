from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedmpi.results
from fedmpi.results.__main__ import main
from fedmpi.results.pictures.clients import client_values
from fedmpi.results.pictures.curves import band, curve
from tests.results.made_runs import add_round, finished, started


def test_pictures_are_made_in_the_format_of_their_suffix(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [str(finished(tmp_path / f"{mu}.h5", mu=mu)) for mu in (0.01, 1.0)]
    for name, magic in (("out.png", b"\x89PNG"), ("out.pdf", b"%PDF")):
        assert main(["plot", *runs, "-o", str(tmp_path / name), "--x", "seconds"]) == 0
        content = (tmp_path / name).read_bytes()
        assert content.startswith(magic)
        assert len(content) > 5000


def test_the_same_results_give_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = str(finished(tmp_path / "run.h5"))
    for suffix in ("svg", "pdf", "png"):
        for name in ("one", "other"):
            assert main(["plot", run, "-o", str(tmp_path / f"{name}.{suffix}")]) == 0
        one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "other"))
        assert one == other, suffix


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every figure that is written."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn: list[Any] = []
    save = figure.savefig

    def noting_save(self: Any, *arguments: Any, **options: Any) -> None:
        drawn.append(self.axes)
        save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", noting_save)
    return drawn


def test_bubbles_of_a_partition(tmp_path: Path, drawn: list[Any]) -> None:
    """Oracle: the counts in the file: places, areas in their proportion and on one scale, no bubble for 0."""
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


def test_a_curve_over_virtual_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: 2.5 virtual seconds a round, added up; a run without a virtual clock is named."""
    with_clock = finished(tmp_path / "clock.h5", rounds=4, clock=True)
    assert curve(fedmpi.results.open(with_clock), "test_accuracy", "virtual_seconds")[0].tolist() == [0, 5, 10]
    without = str(finished(tmp_path / "run.h5", rounds=4))
    assert main(["plot", without, "--x", "virtual_seconds", "-o", str(tmp_path / "out.png")]) == 2
    assert capsys.readouterr().err.startswith(f"{without}: no column 'virtual_seconds' in its rounds (round, ")


def test_seeds_are_one_curve_with_a_band(tmp_path: Path, drawn: list[Any]) -> None:
    """Oracle: by hand; 2 s and 0.04 of accuracy a round, measured every other; by seconds 8 % on from 4 s to 8 s."""
    files = [finished(tmp_path / f"{seed}.h5", rounds=rounds, seed=seed) for seed, rounds in ((1, 4), (2, 6))]
    other = started(tmp_path / "other.h5", seed=3)
    for round in (1, 2, 3, 4):
        add_round(other, round)
    other.add_round(
        {**dict.fromkeys(("bytes_up", "bytes_down"), 0), "round": 5, "seconds": 3.0, "test_accuracy": 0.3}
    )
    other.finish("finished")
    runs = [fedmpi.results.open(path) for path in (*files, other.path)]
    xs, means, deviations = band(runs[:2], "test_accuracy", "round")
    assert (xs.tolist(), deviations.tolist()) == ([0, 2, 4], [0, 0, 0])
    assert means == pytest.approx([10, 8, 16])
    xs, means, deviations = band(runs[1:], "test_accuracy", "seconds")
    assert xs.tolist() == [0, 4, 8, 11]  # the shorter one ends at 11 s, where the longer is on its way to 12 s
    assert means == pytest.approx([10, 8, 16, (30 + 22) / 2])
    assert deviations == pytest.approx([0, 0, 0, 8 / 2**0.5])

    alone = finished(tmp_path / "alone.h5", mu=3.0)
    assert main(["plot", *map(str, (*files, other.path, alone)), "-o", str(tmp_path / "out.pdf")]) == 0
    (axes,) = drawn[-1]
    assert [line.get_label() for line in axes.lines] == ["mu 0.01", "mu 3.0"]
    assert len(axes.collections) == 1, "a single run has no band"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Round", "Test accuracy (%)")


def test_the_other_kinds(tmp_path: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: what made_runs wrote: half right for every client, classes from 0 to 1, busy 1.0 and 1.5 of 2 s."""
    files = [str(finished(tmp_path / f"{mu}-{seed}.h5", mu=mu, seed=seed)) for mu in (0.01, 1.0) for seed in (1, 2)]
    young = started(tmp_path / "young.h5")
    young.write()
    reasons = {
        "clients": "no client_accuracy yet",
        "classes": "no accuracies per class yet",
        "confusion": "no confusion matrix yet",
        "timeline": "no rounds yet",
    }
    for kind, reason in reasons.items():
        output = tmp_path / f"{kind}.pdf"
        assert main(["plot", *files, str(young.path), f"--{kind}", "-o", str(output)]) == 1
        assert capsys.readouterr().err == f"{young.path}: {reason}\n"
        assert output.read_bytes().startswith(b"%PDF")
    boxes, classes, confusion, timeline = drawn
    assert [label.get_text() for label in boxes[0].get_yticklabels()] == ["mu 0.01", "mu 1.0"]
    dots = [line.get_xdata() for line in boxes[0].lines if line.get_marker() == "."]
    assert [(len(values), set(values)) for values in dots] == [(2 * 20, {50.0})] * 2

    assert [axes.get_title() for axes in classes[:2]] == ["mu 0.01", "mu 1.0"]
    np.testing.assert_allclose(classes[0].images[0].get_array(), np.outer(np.linspace(0, 100, 10), np.ones(10)))

    shares = confusion[0].images[0].get_array()
    assert shares[0, :2].tolist() == [0, 100]  # of the class without samples of its own
    assert shares[4, 3:6].tolist() == [0, 80, 20]
    assert [text.get_text() for text in confusion[0].texts[44:46]] == ["80", "20"]

    assert len(timeline) == 4
    spans = [bars.get_paths() for bars in timeline[0].collections]
    of_rank_1 = [
        path.vertices[:, 0] for path in spans[2]
    ]  # rank 0 has no rows here; then busy, waiting of ranks 1, 2
    assert [(corners.min(), corners.max()) for corners in of_rank_1[:2]] == [(0, 1.0), (2, 3.0)]

    assert client_values(fedmpi.results.open(files[0])).tolist() == [50.0] * 20
