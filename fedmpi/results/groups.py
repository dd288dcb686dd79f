"""Runs that repeat one experiment with several seeds: what tables have a line for, and pictures a curve."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fedmpi.errors import BadInput
from fedmpi.results.reader import Run
from fedmpi.results.settings import methods, same_but_seed, table
from fedmpi.results.settings import names as short_names

Group = Sequence[Run]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same settings but for the seed, in the order in which settings first appear.

    Of several runs of one seed, which are no independent repetitions, the one with the most rounds, the first of
    equals.
    """
    return [[max(same, key=_rounds) for same in by_seed.values()] for by_seed in _by_seed(runs)]


def repeated(runs: Sequence[Run]) -> list[Group]:
    """All runs of the same settings and the same seed, of which there are several."""
    return [same for by_seed in _by_seed(runs) for same in by_seed.values() if len(same) > 1]


def columns(groups: Sequence[Group], taken: Collection[str] = ()) -> dict[str, list[str]]:
    """The method of each group, and the other settings in which groups differ; no name is one of those `taken`."""
    return table([group[0].identity for group in groups], taken)


def names(groups: Sequence[Group]) -> list[str]:
    """What tells a group from the others, and no more; its method, where nothing does."""
    identities = [group[0].identity for group in groups]
    without_seed = [{**identity, "seed": None} for identity in identities]
    return [label or name for label, name in zip(short_names(without_seed), methods(identities), strict=True)]


def references(groups: Sequence[Group], method: str) -> list[Group | None]:
    """For each group, the runs of a method that it is compared with: those whose other settings are nearest.

    None where several are equally near.

    Raises:
        BadInput: there are no runs of the method.
    """
    of = methods([group[0].identity for group in groups])
    found = [group for group, name in zip(groups, of, strict=True) if name == method]
    if not found:
        raise BadInput(f"--reference = {method}: must be a method of these runs ({', '.join(dict.fromkeys(of))})")
    return [group if group in found else _nearest(group, found) for group in groups]


def _by_seed(runs: Sequence[Run]) -> Iterator[dict[Any, list[Run]]]:
    """For each setting, the runs of each seed."""
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
    """All settings but the method's own."""
    return {(key, value) for key, value in same_but_seed(group[0].identity) if key.split(".")[0] != "algorithm"}
