"""Data sets on disk: `python -m fedmpi.data fetch|prepare|check NAME --root DIR`, and `list`.

Other options of a data set are given likewise: `prepare ImageFolder --root photographs --size 32`.
"""

from __future__ import annotations

import inspect
import sys
from argparse import SUPPRESS, ArgumentParser
from typing import NoReturn, get_type_hints

from fedmpi.components import subclasses
from fedmpi.data import Dataset, prepared
from fedmpi.errors import BadInput
from fedmpi.streams import outlast


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        options, own = _parser().parse_known_args(arguments)
        if options.command == "list":
            _Parser().parse_args(own)
            for name, cls in _known().items():
                print(f"{name:15} {(cls.__doc__ or '').splitlines()[0]}")
        else:
            _run(options.command, options.name, own)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(command: str, name: str, options: list[str]) -> None:
    known = _known()
    if name not in known:
        raise BadInput(f"unknown data set {name}: must be one of {', '.join(known)}")
    if known[name].folder is Dataset.folder:
        raise BadInput(f"{name} keeps no arrays on disk: there is nothing to {command}")
    dataset = _dataset(known[name], options)
    if command == "fetch":
        dataset.fetch()
    if command == "check":
        prepared.verify(dataset)
    elif not prepared.load(dataset, _say).on_disk:
        raise BadInput(f"the arrays of {name} could not be kept on disk")
    _say(f"{name}: intact" if command == "check" else f"{name}: ready")


def _parser() -> ArgumentParser:
    about = "Data sets on disk. Options of a data set, such as --root: `python -m fedmpi --dataset.help NAME`."
    parser = _Parser(prog="python -m fedmpi.data", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in (
        ("fetch", "download what is missing (needs internet access), and prepare"),
        ("prepare", "decode the published files into arrays that all jobs map into memory"),
        ("check", "compare the checksums of all files"),
    ):
        sub = commands.add_parser(command, help=what, description=about, allow_abbrev=False)
        sub.add_argument("name", help="name of the data set, for example FashionMNIST")
    commands.add_parser("list", help="show the known data sets")
    return parser


def _known() -> dict[str, type[Dataset]]:
    ours = [cls for cls in subclasses(Dataset) if cls.__module__.startswith("fedmpi.")]
    named = [cls for cls in ours if not (cls.__name__.startswith("_") or inspect.isabstract(cls))]
    return {cls.__name__: cls for cls in named}


def _dataset(cls: type[Dataset], options: list[str]) -> Dataset:
    types = get_type_hints(cls.__init__)
    parser = _Parser(allow_abbrev=False, argument_default=SUPPRESS, add_help=False)
    for option in inspect.signature(cls).parameters:
        parser.add_argument(f"--{option}", type=types[option])
    return cls(**vars(parser.parse_args(options)))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    outlast()  # preparing may take minutes
    sys.exit(main(sys.argv[1:]))
