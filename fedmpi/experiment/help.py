"""What --help prints: an overview on two screens, or everything (--help all)."""

from __future__ import annotations

import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

from fedmpi.errors import BadInput
from fedmpi.experiment.catalogue import COMPONENTS, NESTED, base_of, own_class, public
from fedmpi.experiment.documented import Option, options, subjects, summary

USAGE = "mpirun -n RANKS python -m fedmpi [--config FILE] [--OPTION VALUE ...]"
ABOUT = (
    "Run one federated learning experiment as one MPI job: rank 0 is the server, the other ranks train the clients."
    " Later options override earlier ones. Name a class before its options: --algorithm FedProx --algorithm.mu 0.1"
)
#: Options that the overview leaves out.
RARE = (
    "local.decay",
    "local.clip_norm",
    "local.vectorize",
    "local.precision",
    "local.augmentation",
    "evaluate_seconds",
    "evaluate_means",
    "evaluate_local",
    "evaluate_fine_tuned",
    "held_out",
    "held_out_epochs",
    "every_client",
    "init",
    "stop.metric",
    "stop.target",
    "stop.seconds",
    "stop.virtual_seconds",
    "stop.gigabytes",
    "checkpoint.every_minutes",
    "checkpoint.every_rounds",
    "checkpoint.keep",
    "checkpoint.copies",
    "deadline",
    "track",
)
#: Options that need no value on the command line.
FLAGS = ("overwrite", "resume")
#: What the command line takes in addition to settings.
FURTHER = {
    "--config FILE": "read settings from a YAML file",
    "--print_config": "print all settings as YAML, and run nothing",
    "--algorithm.help FedProx": "describe the options of one class; likewise --model.help LeNet, ...",
    "--help all": "describe every option, and the options of every class",
}
PAGES = "The same as --help all on one page: docs/command_line.md. To begin: README.md."


class Help(Action):
    """The option --help: prints, and exits."""

    def __init__(self, option_strings: list[str], **options: Any) -> None:
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, nargs="?", const="", help=SUPPRESS)

    def __call__(self, parser: Any, namespace: object, values: object, option_string: str | None = None) -> None:
        if values not in ("", "all"):
            raise BadInput(
                f"= {values}: must be all, or left out; --algorithm.help FedProx describes one class", "--help"
            )
        print("\n".join(everything() if values else overview()))
        parser.exit()


def of_one_class(arguments: Sequence[str]) -> Iterator[str]:
    """The description that `--algorithm.help FedProx` asks for; nothing if the arguments ask for no known class."""
    for argument, following in pairwise([*arguments, ""]):
        option, _, name = argument.removeprefix("--").partition(".help")
        if argument.startswith("--") and option.split(".")[0] in COMPONENTS and argument != f"--{option}":
            base, name = base_of(option), name.removeprefix("=") or following
            if not name or name.startswith("--"):
                yield from _wrapped(f"--{option}.help needs a name: {', '.join(c.__name__ for c in public(base))}", 0)
            elif cls := _class_named(name, base):
                yield from _of_class(option, cls)


def _class_named(name: str, base: type) -> type | None:
    """One of fedmpi's classes, or a class at an import path. If it cannot be imported, the parser says why."""
    module, _, short = name.rpartition(".")
    if own := own_class(name, base):
        return own
    try:
        found = getattr(import_module(module), short)
    except Exception:  # a user's file may raise anything
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


def _of_class(option: str, cls: type) -> Iterator[str]:
    yield from _wrapped(f"--{option} {cls.__name__}  {summary(cls)}", 0)
    for known in options(cls, f"{option}."):
        yield from _entry(known, 4)


def overview() -> Iterator[str]:
    """The usual options of the experiment with their defaults, each in a few words, and the names of all classes."""
    yield from _beginning()
    for subject, known in subjects():
        yield f"\n{subject}"
        for option in known:
            if option.name in RARE:
                continue
            head = f"--{option.name}" if option.name in FLAGS else f"--{option.name} {option.default}"
            yield from _in_columns(head, option.first_sentence)
            if option.name in COMPONENTS:
                names = " ".join(cls.__name__ for cls in public(COMPONENTS[option.name]))
                yield from textwrap.wrap(names, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    yield "\nMore"
    for head, text in FURTHER.items():
        yield from _in_columns(head, text)
    yield f"\n{PAGES}"


def everything() -> Iterator[str]:
    """All options of the experiment and of every class, with types, ranges and defaults."""
    yield from _beginning()
    for subject, known in subjects():
        yield f"\n{subject}"
        for option in known:
            yield from _entry(option, 2)
    yield "\nMore"
    for head, text in FURTHER.items():
        yield from _in_columns(head, text)
    yield "\nClasses and their options (a class of your own is named by its import path)"
    for name, base in [*COMPONENTS.items(), *NESTED.items()]:
        for cls in public(base):
            yield ""
            yield from _of_class(name, cls)


def _beginning() -> Iterator[str]:
    yield f"usage: {USAGE}\n"
    yield from textwrap.wrap(ABOUT, 80)


def _entry(option: Option, indent: int) -> list[str]:
    default = "no default" if option.default is None else f"default: {option.default}"
    facts = f"{option.kind}, {option.allowed}" if option.allowed else option.kind
    return _wrapped(f"--{option.name}  {option.text} ({facts}; {default})", indent)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text, 80, initial_indent=" " * indent, subsequent_indent=" " * (indent + 4), break_on_hyphens=False
    )


def _in_columns(head: str, text: str) -> list[str]:
    """A head, and a text in a column of its own."""
    return textwrap.wrap(f"{head:27} {text}", 80, initial_indent="  ", subsequent_indent=" " * 30)
