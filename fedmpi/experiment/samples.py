"""The samples of all clients on every rank (one copy per node), and the order in which clients see pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedmpi.data import Arrays, Dataset, Split, prepared
from fedmpi.errors import BadInput, option_of
from fedmpi.mpi.shared import share
from fedmpi.mpi.world import World
from fedmpi.streams import say
from fedmpi.tasks import Task


def load_shared(world: World, dataset: Dataset, task: Task | None = None) -> Arrays:
    """The arrays of a data set, one copy per node: mapped from prepared files, or in memory that the ranks share.

    Args:
        task: what the targets are for; None: the data set's own task.

    Raises:
        BadInput: a node cannot read the data; on every rank alike.
    """
    arrays: Arrays | None = None
    with world.agreed(), option_of("dataset"):
        if world.is_server:
            arrays = prepared.load(dataset, say, task)
    if world.from_server(arrays is not None and arrays.on_disk):
        with world.agreed():
            arrays = arrays or prepared.open_prepared(dataset)
            if arrays is None:
                reason = "does not exist, or differs from that on rank 0's node"
                raise BadInput(f"{dataset.folder()} on {world.host} {reason}: copy it, or share it between nodes")
        return arrays

    def read() -> dict[str, np.ndarray]:
        return (arrays or prepared.load(dataset, lambda line: None, task)).stored()

    return Arrays.of_stored(share(world, read))


class PixelOrders:
    """client -> the order [pixels] in which it sees the pixels of its samples; None: unchanged.

    Each order is computed on first use and kept on the training device.
    """

    def __init__(self, split: Split, pixels: int, device: torch.device) -> None:
        self._split = split
        self._pixels = pixels
        self._device = device
        self._known: dict[int, Tensor | None] = {}

    def __call__(self, client: int) -> Tensor | None:
        if client not in self._known:
            order = self._split.pixels(client, self._pixels)
            self._known[client] = None if order is None else torch.from_numpy(order).to(self._device)
        return self._known[client]
