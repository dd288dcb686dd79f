"""Studies: cells are trained once, kept files belong to them, and the documentation has what is printed from them."""

from __future__ import annotations

import importlib
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from fedmpi import results
from fedmpi.experiment.command_line import parse
from fedmpi.results.check import problems
from studies import gpu_day
from studies.__main__ import main as print_again
from studies.__main__ import renewed
from studies.study import KEPT, Files, Study, is_of

STUDIES = {
    study.name: study
    for path in sorted(Path(__file__).parents[2].glob("studies/*.py"))
    if path.stem != "__main__" and (study := getattr(importlib.import_module(f"studies.{path.stem}"), "STUDY", None))
}
KEPT_OF = [name for name in STUDIES if any((KEPT / name).glob("*.h5"))]
SMALL = "--clients 4 --cohort 2 --model LogisticRegression --rounds 2 --local.epochs 1"


def test_cells_are_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: what `fedmpi` trains with these options; files that are there are left alone."""

    def show(files: Files) -> None:
        files.show_results("table", "some/*/0")

    cells = {f"some/{name}/0": f"{SMALL} --algorithm {name}" for name in ("FedAvg", "FedProx")}
    study = Study("studies.made", {**cells, "other/broken/0": "--rounds 0"}, {"one": show}, root="--threads")
    words = ["--data", "1", "--results", str(tmp_path / "kept"), "--runs", str(tmp_path / "runs")]
    assert study.main([*words, "--cells", "some/FedAvg/*"]) == 0
    assert capsys.readouterr().out.count("FedAvg") == 1
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.name == "some-FedAvg-0.h5"
    assert problems(kept) == []
    run = results.open(kept)
    assert (run.settings["rounds"], run.settings["clients"]) == (2, 4)
    written = kept.stat().st_mtime_ns
    assert study.main([*words, "--cells", "some/*"]) == 0
    assert capsys.readouterr().out.count("FedProx") == 1
    assert kept.stat().st_mtime_ns == written
    assert study.main([*words, "--cells", "some/*", "--options", "--rounds 3"]) == 1
    assert f"{kept}: is of other options; give another --results" in capsys.readouterr().err
    assert study.main([*words, "--cells", "other/*"]) == 1
    assert "rounds = 0" in capsys.readouterr().err
    assert not list((tmp_path / "kept").glob("other*"))
    for wrong in (["two"], ["--cells", "nothing/*"]):
        with pytest.raises(SystemExit) as stopped:
            study.main([*words, *wrong])
        assert stopped.value.code == 2
        assert f"no {'table two' if wrong == ['two'] else 'cell matches nothing/*'}: " in capsys.readouterr().err


def whole(study: Study, options: str) -> str:
    """The options of a cell, with the folder of the data."""
    root = f"{study.root} {{data}}" if study.root else ""
    return f"{options} {root}".replace("{data}", "data")


@pytest.mark.further
@pytest.mark.parametrize("name", STUDIES)
def test_options_of_cells_are_known(name: str) -> None:
    """Oracle: the command line accepts every option of the study; its tables can be printed from what is kept."""
    study = STUDIES[name]
    seen: set[str] = set()
    for options in study.cells.values():
        words = {pair.strip() for pair in f" {options}".split(" --")}
        if words - seen:
            seen |= words | {f"seed {seed}" for seed in range(9)}
            parse(shlex.split(f"{whole(study, options)} --output x.h5"))
    assert len(seen) > 9
    assert study.main([]) == 0


@pytest.mark.further
@pytest.mark.parametrize("name", KEPT_OF)
def test_kept_files_are_of_the_study_as_it_is(name: str) -> None:
    """Oracle: the settings that the study's options amount to today."""
    study = STUDIES[name]
    names = {cell.replace("/", "-"): cell for cell in study.cells}
    known = set()
    for path in (KEPT / name).iterdir():
        options = study.cells[names[path.stem]]
        plain = re.sub(r"--seed \d+", "", options)
        if plain not in known:  # reading the options of all seeds takes longer than the rest of the test
            known.add(plain)
            assert is_of(path, whole(study, options)), path
        run = results.open(path)
        assert run.status == "finished"
        assert f"--seed {run.attributes['seed']} " in f"{options} "
        said = [run.config, *(str(run.environment.get(fact, "")) for fact in ("command", "folder"))]
        assert not re.search(r"(?<![\w.])/\w", " ".join(said)), f"{path}: has a path of the machine that made it"
        left = re.search(rb"/venv/bin/|/home/|/root/|/tmp/", path.read_bytes())  # HDF5 may keep replaced attributes
        assert not left, f"{path}: has a path of the machine that made it"


def test_the_documentation_has_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_again(["--check"]) == 0, capsys.readouterr().out


def test_what_differs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle, by hand: the table of a page that has another one, and one that has none; other text stays."""
    monkeypatch.chdir(tmp_path)
    command = "<!-- python -m fedmpi.results schema -->\n\n"
    page = f"Before.\n\n{command}| old |\n| --- |\n\nAfter.\n"
    after = renewed(page, draw=False)
    assert after.startswith(f"Before.\n\n{command}# ")
    assert after.endswith("\n\nAfter.\n")
    assert renewed(f"{command}![a](b.svg)\n", draw=False) == f"{command}![a](b.svg)\n"


def test_the_list_for_a_day_with_a_gpu() -> None:
    """Oracle: it has the lines of the papers' lists, by falling value per minute as its comments say."""
    known = set(gpu_day.lines())
    text = (KEPT.parent / "gpu_day.list").read_text()
    found = re.findall(r"^# about (\d+) minutes, value ([\d.]+)\n(.*)$", text, re.MULTILINE)
    assert len(found) > 100
    assert {line for _, _, line in found} <= known
    rates = [float(value) / float(minutes) for minutes, value, _ in found if int(minutes) > 20]
    assert all(after <= before * 1.05 for before, after in pairwise(rates))
