"""The options of classes, from their signatures and docstrings, for --help and docs/command_line.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from docstring_parser import parse as parse_docstring

from fedmpi.described import is_group
from fedmpi.experiment.catalogue import BY_DATA, COMPONENTS, GROUPS
from fedmpi.experiment.experiment import Experiment
from fedmpi.options import Configured, kinds, shown

#: The experiment's own options by subject. GROUPS are options with a prefix, such as --local.lr.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "What is trained": (
        "algorithm",
        "dataset",
        "task",
        "partition",
        "model",
        "clients",
        "cohort",
        "rounds",
        "seed",
        "init",
    ),
    "Local training of a client": ("local",),
    "Clients of a round, and the server": (
        "sampler",
        "availability",
        "conditions",
        "weighting",
        "server_optimizer",
        "compression",
        "privacy",
        "attack",
    ),
    "Evaluation": (
        "evaluate_every",
        "evaluate_seconds",
        "metrics",
        "validation",
        "evaluate_means",
        "evaluate_local",
        "evaluate_fine_tuned",
        "held_out",
        "held_out_epochs",
    ),
    "Stopping before all rounds are done": ("stop",),
    "Results file, checkpoints": (
        "output",
        "overwrite",
        "every_client",
        "store_frozen",
        "resume",
        "checkpoint",
        "track",
    ),
    "Hardware": ("device", "threads", "deadline"),
}


@dataclass(frozen=True)
class Option:
    """An option of the experiment or of a class.

    Attributes:
        name: the dotted name, without dashes.
        kind: its type, in words.
        allowed: its range, in words; empty: any value of the type.
        default: as the command line takes it; None: a value must be given.
        text: the description.
    """

    name: str
    kind: str
    allowed: str
    default: str | None
    text: str

    @property
    def first_sentence(self) -> str:
        """The first sentence of the description, without a full stop."""
        return self.text.partition(". ")[0].removesuffix(".")


def summary(cls: type) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def options(cls: type, prefix: str = "") -> Iterator[Option]:
    """The options of a class, in the order of its signature. One that is inherited may be described in a base."""
    described = {
        each.arg_name: " ".join((each.description or "").split())
        for base in reversed(cls.__mro__)
        for each in parse_docstring(base.__doc__ or "").params
    }
    known = kinds(cls)
    for parameter in inspect.signature(cls).parameters.values():
        name, default = parameter.name, parameter.default
        if isinstance(type(default), Configured) and is_group(type(default)):
            yield from options(type(default), f"{prefix}{name}.")
            continue
        if isinstance(default, tuple):
            default = list(default)
        yield Option(
            f"{prefix}{name}",
            *known[name],
            None if default is parameter.empty else shown(default),
            described.get(name, ""),
        )


def subjects() -> Iterator[tuple[str, list[Option]]]:
    """The experiment's own options, group by group."""
    usual = Experiment()
    known = {each.name: each for each in options(Experiment)}
    for subject, names in SUBJECTS.items():
        found: list[Option] = []
        for name in names:
            if name in GROUPS:
                found += options(GROUPS[name], f"{name}.")
            elif name in COMPONENTS:
                base = COMPONENTS[name].__name__
                default = "as the data set" if name in BY_DATA else type(getattr(usual, name)).__name__
                found.append(Option(name, f"a class of {base}", "", default, known[name].text))
            else:
                found.append(known[name])
        yield subject, found
