"""Groups of runs that repeat one experiment with several seeds: one row in tables, one curve in pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fedmpi.errors import BadInput
from fedmpi.results.reader import Run
from fedmpi.results.settings import methods, same_but_seed, table
from fedmpi.results.settings import names as short_names

Group = Sequence[Run]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups of runs that differ only in the seed, in the order in which their settings first appear.

    A group has one run per seed, because several runs with the same seed are not independent repetitions. The run
    with the most rounds is used, and the first one if several have equally many.
    """
    return [[max(same, key=_rounds) for same in by_seed.values()] for by_seed in _by_seed(runs)]


def repeated(runs: Sequence[Run]) -> list[Group]:
    """Groups of at least two runs with the same settings and the same seed."""
    return [same for by_seed in _by_seed(runs) for same in by_seed.values() if len(same) > 1]


def columns(groups: Sequence[Group], taken: Collection[str] = ()) -> dict[str, list[str]]:
    """Columns of a table: the method of each group, and the other settings in which the groups differ.

    Args:
        groups: the groups, one row per group.
        taken: names that other columns already have.

    Returns:
        Name of the column -> one text per group.
    """
    return table([group[0].identity for group in groups], taken)


def names(groups: Sequence[Group]) -> list[str]:
    """A short name per group: the settings that distinguish it from the others, or its method if none does."""
    identities = [group[0].identity for group in groups]
    without_seed = [{**identity, "seed": None} for identity in identities]
    return [label or name for label, name in zip(short_names(without_seed), methods(identities), strict=True)]


def references(groups: Sequence[Group], method: str) -> list[Group | None]:
    """The reference of each group: the group of the given method whose other settings differ least.

    A group of the method itself is its own reference. The reference is None if several groups differ equally little.

    Args:
        groups: all groups.
        method: the name of the reference method.

    Raises:
        BadInput: no run has this method.
    """
    of = methods([group[0].identity for group in groups])
    found = [group for group, name in zip(groups, of, strict=True) if name == method]
    if not found:
        raise BadInput(f"--reference = {method}: must be a method of these runs ({', '.join(dict.fromkeys(of))})")
    return [group if group in found else _nearest(group, found) for group in groups]


def _by_seed(runs: Sequence[Run]) -> Iterator[dict[Any, list[Run]]]:
    """One dictionary per setting: seed -> runs."""
    found: dict[frozenset[tuple[str, str]], dict[Any, list[Run]]] = {}
    for run in runs:
        found.setdefault(same_but_seed(run.identity), {}).setdefault(run.attributes["seed"], []).append(run)
    yield from found.values()


def _rounds(run: Run) -> int:
    return len(run.rounds.get("round", ()))


def _nearest(group: Group, found: Sequence[Group]) -> Group | None:
    distances = [len(_conditions(group) ^ _conditions(other)) for other in found]
    nearest = min(distances)
    return found[distances.index(nearest)] if distances.count(nearest) == 1 else None


def _conditions(group: Group) -> set[tuple[str, str]]:
    """All settings except those of the method."""
    return {(key, value) for key, value in same_but_seed(group[0].identity) if key.split(".")[0] != "algorithm"}
