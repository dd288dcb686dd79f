"""Print pages of the documentation that are made from the code: `python -m fedmpi.experiment options`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from fedmpi.algorithms import Algorithm
from fedmpi.experiment import compatibility, options_page
from fedmpi.experiment.catalogue import public
from fedmpi.streams import outlast

PAGES: dict[str, Callable[[], Iterable[str]]] = {
    "options": options_page.page,
    "compatibility": lambda: compatibility.page([cls() for cls in public(Algorithm)]),
}


def main() -> None:
    """Print a page."""
    outlast()
    parser = argparse.ArgumentParser(
        prog="python -m fedmpi.experiment", description="Print a page of the documentation, as Markdown."
    )
    parser.add_argument(
        "page", choices=PAGES, help="options: docs/command_line.md; compatibility: docs/compatibility.md"
    )
    print("\n".join(PAGES[parser.parse_args().page]()))


if __name__ == "__main__":
    main()
