"""Exact, order-free weighted means.

Floating-point sums depend on their order, hence on how clients are spread over ranks. Here every term is first
rounded to a multiple of a fixed unit, small enough to be lost in float32 and large enough that sums of such terms
are exact in float64. Whatever the order or grouping, MPI's sum included, the bits are the same.

Rounding to a multiple of u is two additions: with M = 1.5 * 2^52 u, (t + M) - M is t rounded, for |t| < 2^51 u.
Parameters use u = 2^-43 (|t| < 2^8), floating-point buffers such as running variances u = 2^-29 (|t| < 2^22).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.mpi.world import World

if TYPE_CHECKING:
    from fedmpi.training.block import Block

PARAMETER_UNIT, PARAMETER_LIMIT = 2.0**-43, 2.0**8
BUFFER_UNIT, BUFFER_LIMIT = 2.0**-29, 2.0**22
# Large enough that the cost of calls does not count, small enough for a cache.
BLOCK_ELEMENTS = 1 << 17


class Diverged(ArithmeticError):
    """A client's weights are too large or not finite: training has diverged, and a mean would be meaningless."""


class WeightedMean:
    """Collects the clients' vectors of a round on every rank, then forms one mean (or one per group) at the server.

    Args:
        world: the ranks.
        parameters: elements [0, parameters) of a vector are parameters, the others floating-point buffers.
        size: P, the length of a vector.
        total_mass: of the cohort; every vector is scaled by its client's mass / total_mass before it is summed.
        groups: how many means are formed side by side; None for one mean without a leading dimension.
        device: where the vectors are summed.
    """

    def __init__(
        self,
        world: World,
        parameters: int,
        size: int,
        total_mass: int,
        groups: int | None,
        device: torch.device,
    ) -> None:
        self._world = world
        self._size = size
        self._total_mass = total_mass
        self._grouped = groups is not None
        self._shared = world.shared_mean(groups or 1, size)
        shared_rows = torch.from_numpy(self._shared.rows)
        self._rows = shared_rows if device.type == "cpu" else torch.empty_like(shared_rows, device=device)
        self._scratch = torch.empty(BLOCK_ELEMENTS, dtype=torch.float64, device=device)
        self._segments = (
            (0, parameters, PARAMETER_UNIT, PARAMETER_LIMIT),
            (parameters, size, BUFFER_UNIT, BUFFER_LIMIT),
        )
        self.bytes_added = 0

    def add(self, vectors: Tensor, block: Block, group: Tensor | NDArray[np.int64] | None = None) -> None:
        """Add `vectors` [K, P] with the block's masses, each to the mean number `group` [K] (default: 0).

        Raises:
            Diverged: a vector is not finite or too large to be summed exactly.
        """
        self.bytes_added += len(vectors) * self._size * 4
        groups = np.zeros(len(vectors), dtype=np.int64) if group is None else torch.as_tensor(group).cpu().numpy()
        counted = np.flatnonzero(block.mass)
        if len(counted) < len(vectors):
            vectors, groups, block = vectors[counted], groups[counted], block.rows(counted.tolist())
        if not len(block):
            return
        for row in np.unique(groups).tolist():
            if not self._shared.masses[row]:
                self._rows[row].zero_()
            self._shared.masses[row] += block.mass[groups == row].sum()
        weights = torch.from_numpy(block.mass / self._total_mass).to(self._rows.device)
        rows = torch.from_numpy(groups).to(self._rows.device)
        for start, stop, unit, limit in self._segments:
            part = vectors[:, start:stop]
            self._check(part, limit, block)
            self._add_rounded(start, part, weights, unit, rows)

    def reduce(self, empty: Tensor | None = None) -> Tensor:
        """The mean over all ranks' vectors: [P], or [groups, P].

        Args:
            empty: what a mean without a single vector becomes, in the shape of the result; default zeros.

        Returns:
            The float32 mean at the server. On the other ranks a tensor of the same shape on the meta device: it
            takes no memory, goes through the server's arithmetic, and cannot be read by mistake.
        """
        if self._rows.device.type != "cpu":
            torch.from_numpy(self._shared.rows).copy_(self._rows)
        means, masses = self._shared.form(self._total_mass)
        shape = means.shape if self._grouped else means.shape[1:]
        if not self._world.is_server:
            return torch.empty(shape, device="meta")
        result = torch.from_numpy(means).clone()
        for row in np.flatnonzero(masses == 0):
            result[row] = 0 if empty is None else empty.view(result.shape)[row]
        return result.view(shape)

    def _add_rounded(self, at: int, vectors: Tensor, weights: Tensor, unit: float, rows: Tensor) -> None:
        magic = 1.5 * 2.0**52 * unit
        # A client of weight one is alone, and so passed through as it is: nothing to round it for.
        alone = bool((weights == 1).any())
        width = max(BLOCK_ELEMENTS // len(vectors), 1)
        for start in range(0, vectors.shape[1], width):
            part = vectors[:, start : start + width]
            term = self._scratch[: part.numel()].view(part.shape)
            term.copy_(part).mul_(weights[:, None])
            if not alone:
                term.add_(magic).sub_(magic)
            into = self._rows[:, at + start : at + start + part.shape[1]]
            if len(into) == 1:
                into[0].add_(term.sum(0) if len(term) > 1 else term[0])
            else:
                into.index_add_(0, rows, term)

    @staticmethod
    def _check(part: Tensor, limit: float, block: Block) -> None:
        if part.shape[1]:
            low, high = torch.aminmax(part)
            if not (-limit < low and high < limit):  # also of NaN, which aminmax passes on
                largest = part.abs().amax(1)
                k = int(torch.nonzero(~(largest < limit))[0])
                raise Diverged(
                    f"client {block.clients[k]} diverged: its largest weight is {largest[k]:g} (limit {limit:g});"
                    " lower --local.lr, or set --local.clip_norm"
                )
