"""--help on two screens, --help all, and the page of all options are made from the classes."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpi.errors import BadInput
from fedmpi.experiment import options_page
from fedmpi.experiment.catalogue import COMPONENTS, GROUPS, NESTED, public
from fedmpi.experiment.command_line import HelpPrinted, parse
from fedmpi.experiment.documented import SUBJECTS, options
from fedmpi.experiment.experiment import Experiment
from fedmpi.experiment.help import RARE
from tests.support.mpi import REPOSITORY


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(HelpPrinted):
        parse(list(arguments))
    return capsys.readouterr().out


def own_options() -> list[str]:
    """The experiment's own options, with those of its groups."""
    found = []
    for name in inspect.signature(Experiment).parameters:
        group = inspect.signature(GROUPS[name]).parameters if name in GROUPS else ()
        found += [f"{name}.{option}" for option in group] or [name]
    return found


def test_the_overview_fits_on_two_screens(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help")
    lines = text.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 80
    for name in own_options():
        assert (f"--{name} " in text or f"--{name}\n" in text) == (name not in RARE)
    for option, base in COMPONENTS.items():
        beginning = text.index(f"--{option} ")
        assert all(f" {cls.__name__}" in text[beginning : beginning + 900] for cls in public(base))
    assert text == printed(capsys, "--rounds", "3", "-h")


def test_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option of each class with its default, on lines of 80 columns, and every option has a description."""
    text = printed(capsys, "--help", "all")
    assert max(map(len, text.splitlines())) <= 80
    text = " ".join(text.split())
    for name in own_options():
        assert f" --{name} " in text
    for option, base in [*COMPONENTS.items(), *NESTED.items()]:
        for cls in public(base):
            about = text[text.index(f"--{option} {cls.__name__} ") :]
            for parameter in options(cls, f"{option}."):
                assert parameter.text, f"{cls.__name__}: {parameter.name}"
                default = "no default" if parameter.default is None else f"default: {parameter.default}"
                assert f"--{parameter.name} {parameter.text} ({parameter.kind}" in about
                assert f"; {default})" in about


def test_every_option_belongs_to_a_subject() -> None:
    named = [name for names in SUBJECTS.values() for name in names]
    assert sorted(named) == sorted(inspect.signature(Experiment).parameters)


def test_of_what_help_is_asked() -> None:
    with pytest.raises(BadInput, match=r"^--help = FedProx: must be all, or left out; --algorithm.help FedProx "):
        parse(["--help", "FedProx"])


@pytest.mark.parametrize("words", [["--help"], ["--help", "all"]])
def test_help_does_without_torch(words: list[str]) -> None:
    program = (
        "import sys, fedmpi.__main__\n"
        f"sys.argv = ['fedmpi', *{words}]\n"
        "fedmpi.__main__.main()\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'matplotlib', 'pandas', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--algorithm Fed" in result.stdout


def test_the_page_is_what_the_classes_say() -> None:
    page = (REPOSITORY / "docs" / "command_line.md").read_text()
    assert page == "\n".join(options_page.page()) + "\n", "python -m fedmpi.experiment options > docs/command_line.md"
    for base in [*COMPONENTS.values(), *NESTED.values()]:
        assert all(f"### {cls.__name__}\n" in page for cls in public(base))
    assert "`--local.lr` | a number | above 0 | `0.1` | learning rate" in page


OWN = """
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.options import with_options


@with_options
class Own(FedAvg):
    \"\"\"FedAvg of mine.

    Args:
        gain: a factor.
    \"\"\"

    gain: float = 0.5
"""


def test_help_of_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle, by hand: a class of fedmpi by its name, a nested one, and an own class by its import path."""
    (tmp_path / "own_help.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    for words, lines in (
        (["--algorithm.help", "FedProx"], ["--algorithm FedProx  FedAvg with", "    --algorithm.mu  strength of"]),
        (["--model.over.help=LeNet"], ["--model.over LeNet  ", "    --model.over.norm  "]),
        (
            ["--algorithm.help", "own_help.Own"],
            ["--algorithm Own  FedAvg of mine.", "    --algorithm.gain  a factor."],
        ),
    ):
        text = printed(capsys, *words)
        assert all(line in text for line in lines), text
        assert "usage" not in text
