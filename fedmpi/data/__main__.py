"""Data sets on disk: `python -m fedmpi.data fetch|prepare|check NAME --root DIR`, and `list`.

Other options of a data set are given likewise: `prepare ImageFolder --root photographs --size 32`.
`python -m fedmpi.data traces KIND FILE OUTPUT` converts measurements of devices (`fedmpi.data.device_traces`).
"""

from __future__ import annotations

import inspect
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from fedmpi.components import subclasses
from fedmpi.data import Dataset, device_traces, prepared
from fedmpi.errors import BadInput
from fedmpi.streams import outlast
from fedmpi.tasks import Task


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
        elif options.command == "traces":
            _Parser().parse_args(own)
            _convert(options)
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


def _convert(options: Namespace) -> None:
    """Convert a file of measurements, and print what the new file has."""
    period = None
    if options.kind == "fedscale-devices":
        header, rows = device_traces.SPEEDS, device_traces.fedscale_devices(options.file, options.batch_size)
    elif options.kind == "flash-devices":
        header, rows = device_traces.SPEEDS, device_traces.flash_devices(options.file, options.seconds_per_step)
    else:
        read = device_traces.fedscale_times if options.kind == "fedscale-times" else device_traces.flash_times
        header, (rows, period) = device_traces.TIMES, read(options.file)
    if not rows:
        raise BadInput(f"{options.file}: no device is ever available")
    device_traces.write(options.output, header, rows)
    if period is None:
        _say(f"{options.output}: {len(rows)} device{'s' * (len(rows) > 1)}")
    else:
        devices = len({row[0] for row in rows})
        _say(f"{options.output}: {len(rows)} intervals of {devices} devices; --availability.period {period:.10g}")


def _above_0(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise ArgumentTypeError(f"{text}: must be a number above 0")
    return value


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
    about = "Convert measurements of devices to the files of --conditions Trace and --availability Intervals."
    traces = commands.add_parser("traces", help=about[0].lower() + about[1:-1], description=about, allow_abbrev=False)
    traces.add_argument("kind", choices=("fedscale-devices", "fedscale-times", "flash-devices", "flash-times"))
    traces.add_argument("file", type=Path, help="the published file")
    traces.add_argument("output", type=Path, help="the CSV file to write")
    size = "fedscale-devices: samples per step (default 10)"
    traces.add_argument("--batch_size", type=_above_0, default=10, help=size)
    seconds = "flash-devices: virtual seconds per step, which that file does not have (default 0.05)"
    traces.add_argument("--seconds_per_step", type=_above_0, default=0.05, help=seconds)
    return parser


def _known() -> dict[str, type[Dataset]]:
    ours = [cls for cls in subclasses(Dataset) if cls.__module__.startswith("fedmpi.")]
    named = [cls for cls in ours if not (cls.__name__.startswith("_") or inspect.isabstract(cls))]
    return {cls.__name__: cls for cls in named}


def _dataset(cls: type[Dataset], options: list[str]) -> Dataset:
    types = get_type_hints(cls.__init__)
    parser = _Parser(allow_abbrev=False, argument_default=SUPPRESS, add_help=False)
    for option in inspect.signature(cls).parameters:
        parser.add_argument(f"--{option}", type=_reader(types[option]))
    return cls(**vars(parser.parse_args(options)))


def _reader(kind: Any) -> Callable[[str], Any]:
    """What makes a value of an option of this type from a word."""
    if get_origin(kind) in (Union, UnionType):
        some = next(each for each in get_args(kind) if each is not NoneType)
        return lambda word: None if word == "null" else _reader(some)(word)
    if get_origin(kind) is Literal or kind is bool:
        words = {"true": True, "false": False} if kind is bool else {each: each for each in get_args(kind)}
    elif isinstance(kind, type) and issubclass(kind, Task):
        words = {cls.__name__: cls() for cls in subclasses(Task) if cls.__module__.startswith("fedmpi.")}
    else:
        return kind

    def read(word: str) -> Any:
        if word not in words:
            raise ArgumentTypeError(f"{word}: must be one of {', '.join(words)}")
        return words[word]

    return read


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    outlast()  # preparing may take minutes
    sys.exit(main(sys.argv[1:]))
