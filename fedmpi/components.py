"""How classes become usable by name: a subclass in a file of the right package is found automatically."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def import_all(package: ModuleType) -> None:
    """Import every module of a package, so that its classes can be named on the command line."""
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{module.name}")


def subclasses(base: type) -> list[type]:
    """All classes imported so far that derive from `base`, without `base` itself, sorted by name."""
    found: set[type] = set()
    waiting = [base]
    while waiting:
        children: list[type] = waiting.pop().__subclasses__()
        for child in children:
            if child not in found:
                found.add(child)
                waiting.append(child)
    return sorted(found, key=lambda cls: cls.__name__)
