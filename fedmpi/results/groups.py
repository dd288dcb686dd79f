"""Runs that repeat one experiment with several seeds: what tables have a line for, and pictures a curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmpi.errors import BadInput
from fedmpi.results.reader import Run
from fedmpi.results.settings import names as short_names
from fedmpi.results.settings import same_but_seed, table

Group = Sequence[Run]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same settings but for the seed, in the order in which settings first appear."""
    found: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        found.setdefault(same_but_seed(run.settings), []).append(run)
    return list(found.values())


def columns(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The method of each group, and the other settings in which groups differ."""
    return table([group[0].settings for group in groups])


def names(groups: Sequence[Group]) -> list[str]:
    """What tells a group from the others, and no more; its method, where nothing does."""
    method = [str(group[0].attributes["algorithm"]) for group in groups]
    without_seed = [{**group[0].settings, "seed": None} for group in groups]
    return [label or name for label, name in zip(short_names(without_seed), method, strict=True)]


def references(groups: Sequence[Group], method: str) -> list[Group | None]:
    """For each group, the runs of a method that it is compared with: those whose other settings are nearest.

    None where several are equally near.

    Raises:
        BadInput: there are no runs of the method.
    """
    found = [group for group in groups if group[0].attributes["algorithm"] == method]
    if not found:
        known = ", ".join(dict.fromkeys(str(group[0].attributes["algorithm"]) for group in groups))
        raise BadInput(f"--reference = {method}: must be a method of these runs ({known})")
    return [group if group in found else _nearest(group, found) for group in groups]


def spread(values: Sequence[float], of_mean: bool = False) -> str:
    """`mean ± standard deviation` (with n-1) or, `of_mean`, standard error; of one value itself, of none `-`."""
    if not len(values):
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    deviation = np.std(values, ddof=1) / (np.sqrt(len(values)) if of_mean else 1)
    return f"{np.mean(values):.2f} ± {deviation:.2f}"


def _nearest(group: Group, found: Sequence[Group]) -> Group | None:
    distances = [len(_conditions(group) ^ _conditions(other)) for other in found]
    nearest = min(distances)
    return found[distances.index(nearest)] if distances.count(nearest) == 1 else None


def _conditions(group: Group) -> set[tuple[str, str]]:
    """All settings but the method's own."""
    return {(key, value) for key, value in same_but_seed(group[0].settings) if key.split(".")[0] != "algorithm"}
