"""The page of all options, as Markdown: `python -m fedmpi.experiment options > docs/command_line.md`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from fedmpi.experiment.catalogue import COMPONENTS, NESTED, public
from fedmpi.experiment.documented import Option, options, subjects, summary
from fedmpi.experiment.help import USAGE

ABOUT = """\
This page lists every option of an experiment, and every class that can be named, with its options. It is what
`python -m fedmpi.experiment options` prints. `python -m fedmpi --help` is an overview, and `--help all` has the same
contents as this page.

- Later options override earlier ones. Name a class before its options: `--algorithm FedProx --algorithm.mu 0.1`.
- Instead of a name, give the import path of your own class: `--model mine.Small` ([tutorial](tutorial.md)).
- Lists are written as `[64,32]`, and yes or no as `true` or `false`. What `null` means is said at each option.
- `--config FILE` reads a YAML file of settings. `--print_config` prints the settings as such a file and exits. A file
  may also have the dotted names of options: `algorithm: FedProx` and `algorithm.mu: 0.1`. The order of its keys does
  not matter. An option that is given twice is refused.
- `--overwrite` and `--resume` need no value.
- Some combinations are refused: [what goes with what](compatibility.md).
"""


def page() -> Iterator[str]:
    """The lines of docs/command_line.md."""
    yield "# The command line\n"
    yield f"    {USAGE}\n"
    yield ABOUT
    described: dict[str, str] = {}
    for subject, known in subjects():
        yield f"## {subject}\n"
        yield from _table(known)
        described |= {option.name: option.text for option in known}
    for name, base in [*COMPONENTS.items(), *NESTED.items()]:
        yield f"## `--{name}`\n"
        about = described.get(name) or summary(base)
        yield from textwrap.wrap(_markdown(about[0].upper() + about[1:]), 116)
        yield ""
        for cls in public(base):
            yield f"### {cls.__name__}\n"
            yield from textwrap.wrap(_markdown(summary(cls)), 116)
            yield ""
            if known := list(options(cls, f"{name}.")):
                yield from _table(known)


def _table(known: Iterable[Option]) -> Iterator[str]:
    yield "| option | type | range | default | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for option in known:
        default = "a value is needed" if option.default is None else f"`{option.default}`"
        cells = (f"`--{option.name}`", option.kind, option.allowed, default, _markdown(option.text))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _markdown(text: str) -> str:
    """A text whose characters stand for themselves in Markdown, also in a cell of a table."""
    return re.sub(r"([*|<])", r"\\\1", text)
