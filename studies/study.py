"""Studies: experiments that have names, and tables of their results files.

Each experiment of a study is a cell, such as groups/fedavg/0: a setting, a method and a seed. Its results file,
without weights, is kept in studies/results/, so that anybody prints the tables in seconds:

    python -m studies.partial_participation                               all tables of the study
    python -m studies.partial_participation groups --format markdown      one of them, for a page of the documentation
    python -m studies.partial_participation --cells 'groups/*' --results elsewhere --data DATA      train again

`--cells` trains those cells whose results file is not there yet, as many at a time as there are cores, each in a
process of its own with one rank. A study that is interrupted continues with the same command.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from matplotlib import rc_context
from tqdm import tqdm

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.results.formats import FORMATS, Format
from fedmpi.results.slim import slim

#: Where the results files of all studies are kept.
KEPT = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Files:
    """The results files of a study that are there.

    Args:
        folder: that they are in.
        runs: the folder of the whole files, with weights, as far as they are there.
        cells: all names of the study, in its order.
        format: in which tables are printed.
    """

    folder: Path
    runs: Path
    cells: Sequence[str]
    format: Format

    def matching(self, *patterns: str) -> list[Path]:
        """The files of the cells that match a pattern such as groups/*, pattern by pattern in the study's order."""
        names = [name for pattern in patterns for name in self.cells if fnmatch(name, pattern)]
        return [path for name in names if (path := path_of(self.folder, name)).exists()]

    def whole(self, pattern: str) -> list[Path]:
        """The whole files of the cells that match a pattern, of those that are there."""
        names = [name for name in self.cells if fnmatch(name, pattern)]
        return [path for name in names if (path := path_of(self.runs, name)).exists()]

    def show(self, rows: Sequence[Sequence[str]]) -> None:
        """Print a table whose first row is its head, unless it has no other rows."""
        if len(rows) > 1:
            print(FORMATS[self.format](rows))

    def show_results(self, command: str, *patterns: str, options: str = "") -> None:
        """Print what `python -m fedmpi.results COMMAND` makes of files."""
        from fedmpi.results.__main__ import main

        paths = self.matching(*patterns)
        if paths:
            main([command, *map(str, paths), "--format", self.format, *shlex.split(options)])


@dataclass(frozen=True)
class Study:
    """A study.

    Args:
        module: whose program it is; its last part is the name of the study's folders.
        cells: name -> options of the experiment, without its output; `{data}` stands for the folder of the data sets.
            `{runs}` stands for the folder of the whole files; such a cell is trained after those that do not need
            them.
        tables: name -> what prints it.
        root: the option of all experiments that is given the folder of the data sets; empty: there is none.
        draw: what draws the study's figures into a folder.
        unused: tables of results files that no table of the study reads; they have no rows in the kept files.
    """

    module: str
    cells: Mapping[str, str]
    tables: Mapping[str, Callable[[Files], None]]
    root: str = "--dataset.over.root"
    draw: Callable[[Files, Path], None] | None = None
    unused: Sequence[str] = ("evaluation",)

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]

    def main(self, words: Sequence[str] | None = None) -> int:
        """The program: train what is chosen, then print tables.

        Args:
            words: of the command line; null: those of this process.

        Returns:
            The exit status: 1 if an experiment failed.
        """
        parser = self._parser()
        chosen = parser.parse_args(words)
        if unknown := [name for name in chosen.tables if name not in self.tables]:
            parser.error(f"no table {unknown[0]}: there are {', '.join(self.tables)}")
        if chosen.options and chosen.results == KEPT / self.name:
            parser.error("--options needs --results: the files that are kept are of the study's own options")
        if chosen.cells and not any(fnmatch(name, pattern) for name in self.cells for pattern in chosen.cells):
            parser.error(f"no cell matches {' '.join(chosen.cells)}: they are like {next(iter(self.cells))}")
        is_kept = chosen.results == KEPT / self.name
        chosen.runs = chosen.runs or (Path("runs") / self.name if is_kept else chosen.results / "whole")
        went_well = True
        if chosen.cells is not None:
            wanted = [name for name in self.cells if any(fnmatch(name, pattern) for pattern in chosen.cells)]
            root = f"{self.root} {{data}}" if self.root else ""
            went_well = self._train(wanted, chosen.runs, chosen.results, chosen.data, f"{root} {chosen.options}")
        files = Files(chosen.results, chosen.runs, list(self.cells), chosen.format)
        if self.draw and chosen.draw:
            chosen.draw.mkdir(parents=True, exist_ok=True)
            with rc_context({"svg.hashsalt": self.name}):  # or a file differs from one drawing to the next
                self.draw(files, chosen.draw)
        tables = chosen.tables or list(self.tables)
        for name in tables:
            if len(tables) > 1:
                print(f"\n{name}\n")
            self.tables[name](files)
        return int(not went_well)

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", allow_abbrev=False)
        add = parser.add_argument
        add("tables", nargs="*", metavar="TABLE", help=f"one of {', '.join(self.tables)} (default: all)")
        add("--cells", nargs="+", metavar="PATTERN", help="train these of the cells, unless their files are there")
        add("--data", type=Path, default=Path("data"), help="root of the data sets (default: %(default)s)")
        add("--runs", type=Path, help=f"for whole files (default: runs/{self.name}, or whole/ in a given --results)")
        add("--results", type=Path, default=KEPT / self.name, help="for files without weights (default: those kept)")
        add("--options", default="", help="further options of every experiment, as one text")
        if self.draw:
            add("--draw", type=Path, metavar="FOLDER", help="draw the figures of the study into this folder")
        add("--format", choices=list(FORMATS), default="text", help="of the tables (default: %(default)s)")
        return parser

    def _train(self, names: Sequence[str], runs: Path, kept: Path, data: Path, options: str) -> bool:
        """Train cells; whether all went well. What those that failed printed, is printed."""

        def whole_options(name: str) -> str:
            own = f"{self.cells[name]} {options}"
            for place, folder in (("{runs}", runs), ("{data}", data)):
                own = own.replace(place, shlex.quote(str(folder)))
            return own

        def train(name: str) -> str:
            return _train(whole_options(name), path_of(runs, name), path_of(kept, name), self.unused)

        found: list[str] = []
        for name in names:
            path = path_of(kept, name)
            if path.exists() and not is_of(path, whole_options(name)):
                found.append(f"{path}: is of other options; give another --results")
        if found:
            names = []
        with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(names), unit="run") as progress:
            for is_later in (False, True):
                for problem in pool.map(
                    train, [name for name in names if ("{runs}" in self.cells[name]) == is_later]
                ):
                    found.append(problem)
                    progress.update()
        for problem in filter(None, found):
            print(problem, file=sys.stderr)
        return not any(found)


def path_of(folder: Path, name: str) -> Path:
    """Where the results file of a cell is."""
    return folder / f"{name.replace('/', '-')}.h5"


def _train(options: str, whole: Path, kept: Path, unused: Sequence[str]) -> str:
    """Run one experiment unless it has been; what it printed if it failed."""
    if kept.exists():
        return ""
    whole.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fedmpi", *shlex.split(options), "--output", str(whole), "--resume"]
    found = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if found.returncode:
        return f"{whole}: {found.stderr.strip()}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    slim(whole, kept, without=unused)
    return ""


def is_of(path: Path, options: str) -> bool:
    """Whether a results file is of a run that has finished, and that these options describe today."""
    from fedmpi.experiment.command_line import parse

    run = results.open(path)
    if run.status != "finished":
        return False
    _, config = parse(shlex.split(f"{options} --output x.h5"))
    if _settings(run.config) == _settings(config):
        return True
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(run.config)
        file.flush()
        try:
            _, theirs = parse(["--config", file.name])  # an option that did not exist yet has its default
        except BadInput:
            return False
    return _settings(theirs) == _settings(config)


def _settings(config: str) -> dict[str, Any]:
    """Those that results depend on; where data lie is none of them."""
    found: dict[str, Any] = yaml.safe_load(re.sub(r"^ *(root|path|tokenizer): .*$", "", config, flags=re.MULTILINE))
    launch = ("output", "overwrite", "resume", "checkpoint", "device", "threads", "deadline")
    return {name: value for name, value in found.items() if name not in launch}
