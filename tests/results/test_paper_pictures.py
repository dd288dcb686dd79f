"""Pictures that go into a paper as they are: size, fonts, and what can be told apart."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.results.__main__ import main
from fedmpi.results.pictures.figure import COLOURS
from tests.results.made_runs import add_round, finished, started
from tests.results.test_pictures import drawn

__all__ = ["drawn"]  # the fixture


def with_values(path: Path, values: np.ndarray, mu: float | str, seed: int = 7) -> str:
    """A run with these accuracies, one per round."""
    results = started(path, seed=seed, changes={"mu: 0.01": f"mu: {mu}"})
    for round, value in enumerate(values, start=1):
        row = {"round": round, "test_accuracy": float(value), "test_loss": 1 - float(value), "seconds": 1.0}
        results.add_round({**row, "bytes_up": 1, "bytes_down": 1})
    results.finish("finished")
    return str(path)


def plot(tmp_path: Path, files: list[str], *options: str, name: str = "out.png") -> Path:
    output = tmp_path / name
    assert main(["plot", *files, "-o", str(output), *options]) == 0
    return output


@pytest.mark.parametrize(
    ("width", "points"),
    [("IEEE-column", 252), ("IEEE-page", 516), ("ICML-column", 234.9), ("NeurIPS-page", 397.5), ("4.5", 325.2)],
)
@pytest.mark.parametrize("kind", [[], ["--confusion"], ["--clients"], ["--timeline"], ["--partition", "5"]])
def test_the_width_is_that_of_the_column(width: str, points: float, kind: list[str], tmp_path: Path) -> None:
    """Oracle: \\columnwidth and \\textwidth as LaTeX prints them with these classes; 72.27 points per inch."""
    pytest.importorskip("matplotlib")
    files = [str(finished(tmp_path / f"{mu}.h5", rounds=2, mu=mu)) for mu in (0.1, 0.2)]
    picture = plot(tmp_path, files, "--width", width, *kind).read_bytes()
    assert struct.unpack(">I", picture[16:20])[0] == pytest.approx(300 * points / 72.27, abs=1)


def test_the_height_as_well(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [str(finished(tmp_path / f"{mu}.h5", rounds=2, mu=mu)) for mu in (0.1, 0.2)]
    for legend in ([], ["--x", "seconds"]):
        picture = plot(tmp_path, files, "--width", "4", "--height", "2.5", *legend).read_bytes()
        assert struct.unpack(">II", picture[16:24]) == (1200, 750)


def test_fonts_and_style(tmp_path: Path, drawn: list[Any]) -> None:
    """A style has its say about all but colours and size, even where it crops pictures."""
    style = tmp_path / "mine.mplstyle"
    style.write_text("axes.facecolor: abcdef\nsavefig.bbox: tight\nfigure.figsize: 9, 9\nfont.size: 20\n")
    files = [str(finished(tmp_path / f"{mu}.h5", rounds=2, mu=mu)) for mu in (0.1, 0.2)]
    options = ["--font", "STIXGeneral", "--font_size", "7", "--style", str(style), "--width", "4"]
    picture = plot(tmp_path, files, *options).read_bytes()
    assert struct.unpack(">I", picture[16:20]) == (1200,)
    (axes,) = drawn[-1]
    assert axes.xaxis.label.get_fontsize() == axes.get_xticklabels()[0].get_fontsize() == 7
    assert axes.yaxis.label.get_fontname() == "STIXGeneral"
    assert [round(255 * share) for share in axes.get_facecolor()[:3]] == [0xAB, 0xCD, 0xEF]
    assert [line.get_color() for line in axes.lines] == [*COLOURS[:2]]
    plot(tmp_path, files, "--style", str(style))
    assert drawn[-1][0].xaxis.label.get_fontsize() == 20, "the style's own size"
    plot(tmp_path, files)
    assert drawn[-1][0].xaxis.label.get_fontsize() == 9, "nothing is left of it"


def test_rounds_are_whole_numbers(tmp_path: Path, drawn: list[Any]) -> None:
    file = with_values(tmp_path / "a.h5", np.array([0.5, 0.6, 0.7]), 0.1)
    plot(tmp_path, [file])
    ticks = drawn[-1][0].get_xticks()
    assert len(ticks) > 2
    assert all(tick == round(tick) for tick in ticks)
    plot(tmp_path, [file], "--x", "seconds")
    assert any(tick != round(tick) for tick in drawn[-1][0].get_xticks()), "the same range, where that does not hold"


def test_curves_on_one_another_can_be_told_apart(tmp_path: Path, drawn: list[Any]) -> None:
    """Eight equal curves: no two look alike, dashes lie above lines, and markers are not all at the same points."""
    values = np.linspace(0.1, 0.9, 40)
    plot(tmp_path, [with_values(tmp_path / f"{mu}.h5", values, mu) for mu in range(1, 9)])
    (axes,) = drawn[-1]
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines]
    assert len(set(looks)) == 8
    assert all(x != y for one, other in itertools.pairwise(looks) for x, y in zip(one, other, strict=True))
    solid = [line.get_zorder() for line in axes.lines if line.get_linestyle() == "-"]
    dashed = [line.get_zorder() for line in axes.lines if line.get_linestyle() != "-"]
    assert len(solid) == 2
    assert max(solid) < min(dashed)
    places: list[tuple[int, int]] = [line.get_markevery() for line in axes.lines]
    marked = [frozenset(range(first, 40, step)) for first, step in places]
    assert len({*marked}) >= 4
    assert all(len(points) >= 3 for points in marked)


def test_bands_are_pale_and_lie_below(tmp_path: Path, drawn: list[Any]) -> None:
    files = [
        with_values(tmp_path / f"{mu}-{seed}.h5", np.full(9, 0.1 * seed), mu, seed)
        for mu in (1, 2)
        for seed in (1, 2)
    ]
    plot(tmp_path, files)
    (axes,) = drawn[-1]
    assert len(axes.collections) == 2
    for band in axes.collections:
        assert band.get_alpha() < 0.2
        assert band.get_zorder() < min(line.get_zorder() for line in axes.lines)


@pytest.mark.parametrize(("column", "order"), [("test_accuracy", ["2", "3", "1"]), ("test_loss", ["1", "3", "2"])])
def test_the_legend_has_the_order_of_the_ends(
    column: str, order: list[str], tmp_path: Path, drawn: list[Any]
) -> None:
    """Oracle: by hand: ends of 0.2, 0.9 and 0.4; the highest value is on top, as in the picture."""
    values = {1: [0.9, 0.2], 2: [0.1, 0.9], 3: [0.5, 0.4]}
    files = [with_values(tmp_path / f"{mu}.h5", np.array(each), mu) for mu, each in values.items()]
    plot(tmp_path, files, "--column", column)
    (axes,) = drawn[-1]
    legend = axes.get_legend() or axes.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [f"mu {mu}" for mu in order]


def test_the_legend_covers_no_data(tmp_path: Path, drawn: list[Any]) -> None:
    """Inside where a corner is free; where curves fill the axes below them, and the axes are no smaller for it."""
    free = [with_values(tmp_path / f"free{mu}.h5", np.linspace(0.1, 0.9, 30) ** 0.2, mu) for mu in (1, 2)]
    plot(tmp_path, free)
    (axes,) = drawn[-1]
    assert axes.get_legend() is not None
    assert not axes.figure.legends
    height = axes.bbox.height / axes.figure.dpi

    full = [
        with_values(tmp_path / f"full{mu}.h5", np.resize([0.0, 1.0], 60), mu)
        for mu in (1, 2, "a setting with a long name", "another one that is longer still, and has more words")
    ]
    for width in ("5", "3.25", "2"):
        plot(tmp_path, full, "--width", width)
        (axes,) = drawn[-1]
        assert axes.get_legend() is None
        (legend,) = axes.figure.legends
        axes.figure.draw_without_rendering()  # the file has another resolution
        box, page = legend.get_window_extent(), axes.figure.bbox
        assert box.y1 < axes.bbox.y0
        assert 0 <= box.x0 < box.x1 <= page.width
        assert box.y0 >= 0
        if width == "5":
            assert axes.bbox.height / axes.figure.dpi == pytest.approx(height, rel=0.1)


def test_a_band_is_data_as_well(tmp_path: Path, drawn: list[Any]) -> None:
    """A band that fills the axes leaves no room, though the curve within it does."""
    high, low = np.full(30, 1.0), np.full(30, 0.0)
    files = [with_values(tmp_path / f"{seed}.h5", each, 1, seed) for seed, each in enumerate((high, low))]
    files.append(with_values(tmp_path / "other.h5", np.full(30, 0.5), 2))
    plot(tmp_path, files)
    assert drawn[-1][0].figure.legends


def test_long_labels_stay_within_a_narrow_picture(tmp_path: Path, drawn: list[Any]) -> None:
    results = started(tmp_path / "a.h5")
    add_round(results, 1)
    results.add_round(
        {"round": 2, "seconds": 1.0, "bytes_up": 1, "bytes_down": 1, "train_loss": 1, "diverged_clients": 1}
    )
    results.finish("finished")
    column = ["--column", "diverged_clients", "--x", "bytes"]
    plot(tmp_path, [str(tmp_path / "a.h5")], *column, "--width", "2", "--font_size", "11", "--height", "2")
    (axes,) = drawn[-1]
    axes.figure.draw_without_rendering()  # the file has another resolution
    page = axes.figure.bbox
    for label in (axes.xaxis.label, axes.yaxis.label):
        box = label.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= page.width
        assert box.y1 <= page.height


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--width", "0"], "--width: 0 must be a number of inches from 1 to 40, or NeurIPS-column, NeurIPS-page, "),
        (["--width", "IEEE"], "--width: IEEE must be a number of inches from 1 to 40, or NeurIPS-column, "),
        (["--width", "nan"], "--width: nan must be a number of inches from 1 to 40, or "),
        (["--height", "100"], "--height: 100 must be a number from 0.5 to 40"),
        (["--font_size", "big"], "--font_size: big must be a number from 4 to 40"),
        (["--font", "DejaVu Serf"], "--font = DejaVu Serf: must be serif, sans-serif, monospace or the name of an "),
        (["--style", "fancy"], "--style = fancy: must be a file, or one of matplotlib's styles "),
        (["--style", "bad_key"], "--style = bad_key: cannot be used: Bad key foo in file bad_key, line 2 ('foo: 1')"),
        (["--style", "bad_value"], "--style = bad_value: cannot be used: Bad value in file 'bad_value', line 1 ("),
        (["--style", "no_text"], "--style = no_text: cannot be used: Cannot decode configuration file 'no_text' as"),
        (["--style", "no_font"], "--style = no_font without --font: cannot be used: Failed to find font Nope"),
        (["--width", "1", "--font_size", "30"], "out.png: is too small for its labels; a larger --width or --height"),
    ],
)
def test_what_does_not_serve_is_one_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("bad_key", b"axes.grid: true\nfoo: 1\n"),
        ("bad_value", b"font.size: huge\n"),
        ("no_text", bytes(range(256))),
        ("no_font", b"font.family: Nope\n"),
    ):
        (tmp_path / name).write_bytes(content)
    files = [str(finished(tmp_path / f"{mu}.h5", rounds=2, mu=mu)) for mu in (0.1, 0.2)]
    try:
        status = main(["plot", *files, *options])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("out.png").exists()
