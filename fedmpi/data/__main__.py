"""Data sets on disk: `python -m fedmpi.data fetch|prepare|check NAME --root DIR`, and `list`."""

from __future__ import annotations

import inspect
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn

from fedmpi.components import subclasses
from fedmpi.data import Dataset, prepared
from fedmpi.errors import BadInput


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        if options.command == "list":
            for name, cls in _known().items():
                print(f"{name:15} {(cls.__doc__ or '').splitlines()[0]}")
        else:
            _run(options.command, options.name, options.root)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(command: str, name: str, root: Path) -> None:
    dataset = _dataset(name, root)
    if dataset.folder() is None:
        raise BadInput(f"{name} needs no files of its own: there is nothing to {command}")
    if command == "fetch":
        dataset.fetch()
    if command == "check":
        prepared.verify(dataset)
    elif not prepared.load(dataset, _say).on_disk:
        raise BadInput(f"the arrays of {name} could not be kept on disk")
    _say(f"{name}: intact" if command == "check" else f"{name}: ready")


def _parser() -> ArgumentParser:
    parser = _Parser(prog="python -m fedmpi.data", description="Data sets on disk.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in (
        ("fetch", "download what is missing (needs internet access), and prepare"),
        ("prepare", "decode the published files into arrays that all jobs map into memory"),
        ("check", "compare the checksums of all files"),
    ):
        sub = commands.add_parser(command, help=what, allow_abbrev=False)
        sub.add_argument("name", help="name of the data set, for example FashionMNIST")
        sub.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets")
    commands.add_parser("list", help="show the known data sets")
    return parser


def _known() -> dict[str, type[Dataset]]:
    ours = [cls for cls in subclasses(Dataset) if cls.__module__.startswith("fedmpi.")]
    return {cls.__name__: cls for cls in ours if not cls.__name__.startswith("_")}


def _dataset(name: str, root: Path) -> Dataset:
    known = _known()
    if name not in known:
        raise BadInput(f"unknown data set {name}: must be one of {', '.join(known)}")
    takes_root = "root" in inspect.signature(known[name]).parameters
    return known[name](**({"root": root} if takes_root else {}))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
