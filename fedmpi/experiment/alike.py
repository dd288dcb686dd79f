"""Checks before training that all ranks have made the same data, split and network from the settings.

Each rank builds the network and splits the samples itself, and each node may read the data itself. If a user's code
depended on the rank, the process or the time, ranks would silently have different things.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi.algorithms import Algorithm
from fedmpi.checksum import REMEDY, checksum
from fedmpi.data import Arrays, Split
from fedmpi.errors import BadInput, named
from fedmpi.experiment.settings import Settings
from fedmpi.mpi.world import World

# How far apart numbers of a network may be, in proportion to the largest of their tensor: processors of different
# kinds round PyTorch's normal distribution differently.
ROUNDING = 1e-4


def check_set_up(
    world: World,
    experiment: Settings,
    network: nn.Module,
    data: Mapping[str, tuple[object, Arrays]],
    split: Split,
    pixels: int,
    labels: tuple[NDArray[np.int64], NDArray[np.int64]],
    poisoned: tuple[NDArray[np.int64], NDArray[np.bool_]],
) -> None:
    """Compare data, split and network of all ranks, by one message; a collective.

    Args:
        network: with its initial weights, as the method extends it.
        data: option -> data set and its samples.
        split: of all clients, held-out clients included.
        pixels: number of pixels of a sample.
        labels: of training and test samples, as honest clients see them.
        poisoned: labels of training samples, as all clients see them, and which samples an attack has chosen.

    Raises:
        BadInput: ranks have different things; on every rank alike.
    """
    tensors = dict(numbers(network))
    method = experiment.algorithm
    extended = "" if type(method).extend is Algorithm.extend else f" in --algorithm = {named(method)}"
    built = f"--model = {named(experiment.model)}{extended}: ranks built different networks"
    splits = f"--partition = {named(experiment.partition)}: ranks"
    claims: dict[str, int | None] = {
        **{claim: value for option, read in data.items() for claim, value in _samples(world, option, *read)},
        built: checksum(*(part for name, array in tensors.items() for part in (name, array))),
        f"{splits} split the samples differently": checksum(*_facts(split)),
        f"{splits} put clients into different groups": checksum(*(() if split.groups is None else (split.groups,))),
        f"{splits} see different labels": checksum(*labels),
        f"{splits} see pixels in different orders": checksum(*_pixel_orders(split, pixels)),
        f"--attack = {named(experiment.attack)}: ranks poison different labels": checksum(*poisoned),
    }
    told = [row.split() for row in world.gather_text(" ".join(map(str, claims.values())))]
    for claim, *said in zip(claims, *told, strict=False):
        if len(set(said) - {"None"}) > 1:
            where = _first_apart(world, tensors) if claim == built else ""
            if where is not None:
                with world.agreed():
                    raise BadInput(f"{claim}{where}; {REMEDY}")


def check_rebuilt(first: nn.Module, second: nn.Module, what: str) -> None:
    """Raise BadInput unless a network that is built twice has the same values both times."""
    before, after = dict(numbers(first)), dict(numbers(second))
    apart = next((name for name, array in before.items() if name not in after or _differ(array, after[name])), None)
    if apart is not None or len(before) != len(after):
        where = f" (`{apart}` differs)" if apart else ""
        raise BadInput(f"{what}: another network each time that it is built{where}; {REMEDY}")


def numbers(network: nn.Module) -> Iterator[tuple[str, NDArray[Any]]]:
    """All values in a network, by name: parameters, buffers, and other attributes.

    These are tensors, arrays, floating-point numbers, and lists and dictionaries of them.
    """
    for name, layer in network.named_modules():
        for attribute, value in vars(layer).items():
            yield from _within(value, f"{name}.{attribute}".removeprefix("."), depth=3)


def _within(value: object, name: str, depth: int) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(value, Tensor):
        if value.device.type != "meta" and not nn.parameter.is_lazy(value):
            plain = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
            yield name, (plain.float() if plain.dtype is torch.bfloat16 else plain).cpu().numpy()
    elif isinstance(value, (np.ndarray, np.generic, float)):
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            yield name, array
    elif isinstance(value, (list, tuple)) and depth:
        for place, part in enumerate(value):
            yield from _within(part, f"{name}.{place}", depth - 1)
    elif isinstance(value, dict) and depth:
        inner = {"_parameters", "_buffers"}
        before = name.rpartition(".")[0] if name.rpartition(".")[2] in inner else name
        for key, part in value.items():
            yield from _within(part, f"{before}.{key}".removeprefix("."), depth - 1)


def _samples(world: World, option: str, dataset: object, arrays: Arrays) -> Iterator[tuple[str, int | None]]:
    what, x = f"--{option} = {named(dataset)}: nodes hold different", (arrays.train_x, arrays.test_x)
    yield (
        f"{what} labels, or samples of different shape",
        checksum(*(f"{part.dtype} {part.shape}" for part in x), arrays.train_y, arrays.test_y),
    )
    # The ranks of a node hold the same memory; and where there is one node, so do all.
    reads = world.nodes > 1 and (arrays.on_disk or world.leads)
    yield f"{what} samples", checksum(arrays.checksum) if reads else None


def _facts(split: Split) -> Iterator[Any]:
    for samples in (split.train, split.test, split.validation):
        yield from samples.facts


def _pixel_orders(split: Split, pixels: int) -> list[NDArray[np.int64]]:
    """The order of pixels of one client per group, or of every client."""
    if not split.partition.permutes_pixels:
        return []
    clients = np.arange(len(split.train)) if split.groups is None else np.unique(split.groups, return_index=True)[1]
    return [order for client in clients.tolist() if (order := split.pixels(client, pixels)) is not None]


def _first_apart(world: World, mine: Mapping[str, NDArray[Any]]) -> str | None:
    """The value that differs between ranks by more than rounding; "": the names differ; None: all are equal.

    A collective.
    """
    names = world.from_server(list(mine))
    apart = None if names == list(mine) else ""
    for name in names:
        servers = world.from_server(mine.get(name))
        if apart is None and servers is not None and _differ(servers, mine[name]):
            apart = f" (`{name}` differs)"
    found = world.gather_text("alike" if apart is None else apart)
    return next((text for text in found if text != "alike"), None)


def _differ(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    if one.dtype.kind not in "fc":
        return not np.array_equal(one, other)
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return True
    largest = np.abs(one[finite]).max(initial=0)
    return not bool((np.abs(one[finite] - other[finite]) <= ROUNDING * largest).all())
