"""Checksums of the user's code, by which it is known whether it has changed.

The user's code consists of the modules of the user's classes, and all modules that they import, except fedmpi,
Python, and installed packages (in a folder site-packages). For a script or a notebook only the text of the classes
counts, because the rest may be anything, such as the call that resumes a run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

_ELSEWHERE = [
    Path(__file__).parent.resolve(),
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")),
]
_INSTALLED = {"site-packages", "dist-packages"}


def user_code(classes: Iterable[type]) -> dict[str, str]:
    """Module -> SHA-256 of its file, for all that the code of these classes consists of; nothing for fedmpi's."""
    code: dict[str, str] = {}
    seen: set[str] = set()
    for cls in classes:
        if cls.__module__ == "__main__":
            with suppress(OSError, TypeError):  # nobody knows its text
                code[f"class {cls.__qualname__}"] = hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()
        _add_module(cls.__module__, code, seen)
    return code


def _add_module(name: str, found: dict[str, str], seen: set[str]) -> None:
    """Add the checksums of a module's file and of all that it imports, if they are the user's."""
    path = None if name in seen else _file_of(name)
    seen.add(name)
    if path is None:
        return
    parts = [*name.split("."), "__init__"] if path.stem == "__init__" else name.split(".")
    if name != "__main__":
        found["/".join(parts) + path.suffix] = sha256_of_file(path)
    if path.suffix == ".py":
        for imported in _imports(path.read_bytes(), ".".join(parts[:-1])):
            _add_module(imported, found, seen)


def _file_of(name: str) -> Path | None:
    """A module's file, if it is the user's. The module need not have been imported yet."""
    parent = name.rpartition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    if name not in sys.modules and (not parent or parent in sys.modules):
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(name)
            file = spec.origin if spec and spec.has_location else None
    path = Path(file).resolve() if file else None
    if path is None or not path.is_file() or _INSTALLED.intersection(path.parts):
        return None
    return None if any(path.is_relative_to(folder) for folder in _ELSEWHERE) else path


@cache
def _imports(source: bytes, package: str) -> list[str]:
    """The names of all modules that a module imports; some of the names may not be modules."""
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            with suppress(ImportError):
                base = importlib.util.resolve_name(base, package)
            full = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in full:
            parts = name.split(".")
            found |= dict.fromkeys(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return list(found)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. It is read in parts, because weights may be larger than memory."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()
