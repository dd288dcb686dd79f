"""What goes with what, as Markdown: `python -m fedmpi.experiment > docs/compatibility.md`."""

from __future__ import annotations

from fedmpi.algorithms import Algorithm
from fedmpi.experiment import compatibility
from fedmpi.experiment.catalogue import public
from fedmpi.streams import outlast


def main() -> None:
    """Print the page."""
    outlast()
    print("\n".join(compatibility.page([cls() for cls in public(Algorithm)])))


if __name__ == "__main__":
    main()
