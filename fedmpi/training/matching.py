"""Permutes the hidden units of a model to match those of another model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.training.layout import Entry, Layout
from fedmpi.training.symmetry import Axis, Group


@dataclass(frozen=True)
class Layer:
    """Groups of units that are matched together.

    Attributes:
        groups: the units.
        columns: int64, ascending, the columns of the model's vector that are in order when these units are.
        rest: the remaining trained columns, as contiguous runs.
    """

    groups: tuple[Group, ...]
    columns: NDArray[np.int64]
    rest: tuple[slice, ...]


class Matching:
    """The layers of a network, and methods to permute their units.

    Args:
        layout: of the network's vector [P].
        groups: of the network, in the order of the forward pass.
        layer_by_layer: whether each layer is matched separately; else all units are one layer.

    Attributes:
        layers: in forward order. The columns of a layer are those that its units complete. The network's outputs, in
            the order of the classes, belong to no layer.
        outputs: the columns that are in no layer.
    """

    def __init__(self, layout: Layout, groups: list[Group], layer_by_layer: bool) -> None:
        self._entries = {entry.name: entry for entry in layout.entries}
        self._number = {id(group): i for i, group in enumerate(groups)}
        # Of each dimension of each tensor, the number of the last group that it has units of.
        self._last = {(axis.tensor, axis.dim): i for i, group in enumerate(groups) for axis in group.axes}
        completed: list[list[Entry]] = [[] for _ in groups]
        for name in dict.fromkeys(axis.tensor for group in groups for axis in group.axes if axis.makes):
            completed[max(i for (tensor, _), i in self._last.items() if tensor == name)].append(self._entries[name])
        self.layers: list[Layer] = []
        left = list(layout.entries)
        waiting: list[Group] = []
        for group, entries in zip(groups, completed, strict=True):
            waiting.append(group)
            if not entries or not layer_by_layer:
                continue  # as of a group of group norm, which completes nothing by itself
            left = [entry for entry in left if entry not in entries]
            self.layers.append(Layer(tuple(waiting), _columns(entries), _runs(left)))
            waiting = []
        if not layer_by_layer:
            inside = [entry for entries in completed for entry in entries]
            left = [entry for entry in left if entry not in inside]
            self.layers.append(Layer(tuple(groups), _columns(inside), _runs(left)))
        self.outputs = _columns(left)

    def align(self, weights: Tensor, target: Tensor, layer: Layer) -> None:
        """Permute a layer's units of `weights` [P] to match those of `target` [P], in place.

        Earlier layers must be aligned already. Weights that are not finite are not permuted.
        """
        for group in layer.groups:
            cost = self.cost(group, target, weights)
            if not np.isfinite(cost).all():  # squares of large numbers
                cost = self.cost(group, target.double(), weights.double())
            if np.isfinite(cost).all():  # else the client has diverged, which the mean will say
                self.permute(weights, group, assign(cost))

    def cost(self, group: Group, target: Tensor, weights: Tensor) -> NDArray:
        """[n, n], the squared distance of each unit of `weights` from each of `target`, up to a constant per column.

        The compared values are the parameters that produce the units, if all their inputs are aligned; no running
        statistics.
        """
        distance = torch.zeros(group.size, group.size, dtype=weights.dtype, device=weights.device)
        for axis in group.axes:
            entry, dims = self._entries[axis.tensor], range(len(self._entries[axis.tensor].shape))
            reads = [self._last.get((axis.tensor, dim), -1) for dim in dims if dim != axis.dim]
            if axis.makes and entry.is_parameter and max(reads, default=-1) < self._number[id(group)]:
                wanted, found = (_features(entry.view(vector), axis) for vector in (target, weights))
                distance.addmm_(wanted, found.T, alpha=-2)
                distance += wanted.square().sum(1, keepdim=True)
        return distance.cpu().numpy()

    def permute(self, weights: Tensor, group: Group, order: NDArray[np.int64]) -> None:
        """Permute in place: unit i of `weights` [P] becomes the former unit order[i]."""
        for axis in group.axes:
            view = self._entries[axis.tensor].view(weights)
            source = np.arange(view.shape[axis.dim])
            source[axis.positions] = axis.positions[order]
            view.copy_(view.index_select(axis.dim, torch.from_numpy(source).to(view.device)))


def assign(cost: NDArray) -> NDArray[np.int64]:
    """[n] the assignment of rows to columns with the lowest cost."""
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(cost)[1])


def _features(tensor: Tensor, axis: Axis) -> Tensor:
    """[units, ...] the values of each unit in a tensor."""
    positions = torch.from_numpy(axis.positions).to(tensor.device)
    return tensor.movedim(axis.dim, 0)[positions].flatten(1)


def _columns(entries: list[Entry]) -> NDArray[np.int64]:
    parts = [np.arange(entry.offset, entry.offset + entry.size) for entry in entries]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def _runs(entries: list[Entry]) -> tuple[slice, ...]:
    """The columns of parameters, as the smallest number of slices."""
    runs: list[slice] = []
    for entry in sorted(entries, key=lambda entry: entry.offset):
        end = entry.offset + entry.size
        if entry.is_parameter:
            if runs and runs[-1].stop == entry.offset:
                runs[-1] = slice(runs[-1].start, end)
            else:
                runs.append(slice(entry.offset, end))
    return tuple(runs)
