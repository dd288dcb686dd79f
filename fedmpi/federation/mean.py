"""Exact weighted means and sums, which do not depend on the order of terms.

Floating-point sums depend on the order of terms, and so on the placement of clients on ranks. Here every term is
first rounded to a multiple of a unit. The unit is so small that it is lost in float32, and so large that sums of such
terms are exact, like sums of integers (`fedmpi.mpi.shared_mean.FixedPoint`). So the result is bit-identical for any
order and grouping, including MPI's sum. The unit is 2^-43, about 1e-13, for numbers below 2^8. Larger numbers, which
are rare, are summed separately, in classes with other units. The class of a number depends on the number alone, so
the order does not matter there either. So any finite float32 can be averaged.

Each vector is multiplied by its client's share of the weight before it is rounded. So the error of a mean of n
vectors is at most n / 2 units. A method that averages much smaller numbers scales them by a power of two before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.errors import REMEDY, Diverged
from fedmpi.federation.uplink import Uplink
from fedmpi.mpi.shared_mean import TERMS, FixedPoint
from fedmpi.mpi.world import World
from fedmpi.training.block import Block
from fedmpi.training.samples import upload

# Of numbers that are too large for these, each class reaches 2^16 times as far as the one before: its numbers are
# rounded by 2^-36 of themselves at the most, and have room for clients that count 2^-12 of all.
CLASS_BITS = 16
# Large enough that the cost of calls does not count, small enough for a core's cache, or a GPU's memory.
BLOCK_ELEMENTS, BLOCK_ELEMENTS_ON_GPU = 1 << 17, 1 << 22

#: (columns [k, c] of vectors, their clients [k], which columns) -> [k, c]
Arrive = Callable[[Tensor, NDArray[np.int64], slice], Tensor]


@dataclass
class Part:
    """Some vectors and some of their columns, which are added together: their `values` [k, c]."""

    vectors: slice
    columns: slice
    values: Tensor


def diverged(weights: Tensor) -> dict[int, tuple[int, float]]:
    """The models [K, P] that are not finite: number, first element that is not finite, and its value."""
    if _is_finite(weights):
        return {}
    lost = {}
    for k, row in enumerate(weights):
        if not _is_finite(row):
            first = int((~row.isfinite()).nonzero()[0])
            lost[k] = first, row[first].item()
    return lost


class WeightedMean:
    """Collects the clients' vectors of a round on every rank, then forms one mean (or one per group) at the server.

    On a GPU, sums over the rank's own clients are formed there. One copy of them, of 8 bytes per element, goes to the
    host. For each call of `add` the host waits for the device once, to know whether all numbers are finite and small.

    Args:
        world: the ranks.
        parameters: elements [0, parameters) of a vector are parameters, the others floating-point buffers.
        size: P, the length of a vector.
        total_mass: sum of the cohort's weights. Every vector is scaled by its client's weight / total_mass before it
            is summed.
        groups: number of means; None: one mean without a leading dimension.
        device: device of the sums.
        expected_mass: divide the parameters by this mass (Horvitz-Thompson); `empty` in `reduce` fills the
            difference. None: divide by the mass that was added.
        uplink: changes the vectors on their way; None: they are not changed.
        arrive: changes vectors after the uplink, part by part; a part has either parameters or buffers. None: they
            are averaged as they are. The groups given to `add` are then only those of the starts; there is one mean.
        name_at: the name of the tensor that an element of a vector belongs to.

    Attributes:
        mass: sum of the weights of all vectors on all ranks; known after `reduce`.

    Raises:
        ValueError: `expected_mass` was given for several means.
    """

    def __init__(
        self,
        world: World,
        parameters: int,
        size: int,
        total_mass: int,
        groups: int | None,
        device: torch.device,
        expected_mass: float | None = None,
        uplink: Uplink | None = None,
        arrive: Arrive | None = None,
        name_at: Callable[[int], str] = str,
    ) -> None:
        if groups is not None and expected_mass is not None:
            raise ValueError("Horvitz-Thompson weights are for one mean, not for one of each group")
        self._world = world
        self._parameters = parameters
        self._size = size
        self._total_mass = total_mass
        self._expected_mass = expected_mass
        self._uplink = uplink
        self._arrive = arrive
        self._name_at = name_at
        self._grouped = groups is not None
        self._shared = world.shared_mean(groups or 1, size)
        shared_rows = torch.from_numpy(self._shared.rows)
        self._rows = shared_rows if device.type == "cpu" else torch.empty_like(shared_rows, device=device)
        self._elements = BLOCK_ELEMENTS if device.type == "cpu" else BLOCK_ELEMENTS_ON_GPU
        self._scratch = torch.empty(self._elements, dtype=torch.float64, device=device)
        self._segments = (0, parameters), (parameters, size)

    def add(self, vectors: Tensor, block: Block, group: Tensor | NDArray[np.int64] | None = None) -> None:
        """Add `vectors` [K, P] with the block's weights, each to the mean with the number `group` [K] (default: 0).

        Vectors of clients whose training diverged are left out.

        Raises:
            Diverged: a vector is not finite.
            RuntimeError: they are weights that a later training has overwritten.
        """
        block.check(vectors)
        groups = np.zeros(len(vectors), dtype=np.int64) if group is None else torch.as_tensor(group).cpu().numpy()
        if block.diverged:
            left = block.undiverged()
            vectors, block, groups = vectors[left], block.rows(left), groups[left]
        if self._uplink:
            vectors, block, groups = self._uplink.send(vectors, block, groups)
        self._add(vectors, block, groups)

    def reduce(self, empty: Tensor | None = None) -> Tensor:
        """The mean over all ranks' vectors: [P], or [groups, P].

        Args:
            empty: the value for missing weight, usually that of a mean without vectors; in the shape of the result;
                default: zeros.

        Raises:
            Diverged: as `add`, for a vector that the uplink had held back.
            BadInput: under `--privacy`, a client was added twice; on every rank alike.

        Returns: The float32 mean at the server. It is in memory that the ranks of the node share, so it can be
            broadcast without a copy; do not change it in place while they may read it. On the other ranks a meta
            tensor of the same shape: it takes no memory, can be used in the server's arithmetic, and cannot be read
            by mistake.
        """
        if self._uplink:
            self._uplink.check(self._world)
        for late in self._uplink.late() if self._uplink else ():
            self._add(*late)
        if self._rows.device.type != "cpu":
            pinned = torch.empty(self._rows.shape, dtype=torch.int64, pin_memory=True)  # several times as fast
            np.copyto(self._shared.rows, pinned.copy_(self._rows).numpy())
        means, masses = self._shared.form(self._total_mass)
        self.mass = int(masses.sum())
        shape = self._rows.shape if self._grouped else self._rows.shape[1:]
        if means is None or not self._world.is_server:
            return torch.empty(shape, device="meta")
        result = torch.from_numpy(means)
        for row in np.flatnonzero(masses == 0):
            result[row] = 0 if empty is None else empty.view(result.shape)[row]
        result = result.view(shape)
        if self._expected_mass is not None and self._expected_mass != masses[0]:
            # sum_k m_k x_k / expected + (1 - sum_k m_k / expected) empty; a variance could become negative so.
            trained = result[: self._parameters]
            start = torch.zeros_like(trained) if empty is None else empty[: self._parameters]
            trained.copy_(start.lerp(trained, masses[0] / self._expected_mass))
        if self._uplink and (noise := self._uplink.noise()) is not None:
            result[..., : self._parameters] += noise
        return result

    def _add(self, vectors: Tensor, block: Block, groups: NDArray[np.int64]) -> None:
        if self._arrive:
            groups = np.zeros_like(groups)
        counted = np.flatnonzero(block.mass)
        if len(counted) < len(vectors):
            vectors, groups, block = vectors[counted], groups[counted], block.rows(counted.tolist())
        if not len(block):
            return
        # A client that is the whole cohort is passed through as it is, unless it is added again.
        alone = bool((block.mass == self._total_mass).any() and not self._shared.masses[groups].any())
        for row in np.unique(groups).tolist():
            if not self._shared.masses[row]:
                self._rows[row].zero_()
            if self._shared.unrounded[row]:
                self._round(row)
            self._shared.masses[row] += block.mass[groups == row].sum()
            self._shared.unrounded[row] = alone
            self._shared.terms[row] += 0 if alone else (groups == row).sum()
        shares = block.mass[:, None] / self._total_mass
        self._sum(self._parts(vectors, block.clients, self._arrive), block.clients, shares, groups, alone)

    def _round(self, row: int) -> None:
        """Turn the unrounded term of a row into a rounded one, to which others can be added."""
        vector = self._rows[row].view(torch.float64).float()
        self._rows[row].zero_()
        self._shared.unrounded[row], self._shared.terms[row] = 0, 1
        one = np.ones(1, dtype=np.int64)
        self._sum(self._parts(vector[None], one, None), one, np.ones((1, 1)), one * row, alone=False)

    def _sum(
        self,
        parts: Iterator[list[Part]],
        clients: NDArray[np.int64],
        shares: NDArray[np.float64],
        groups: NDArray[np.int64],
        alone: bool,
    ) -> None:
        """Add parts of vectors to the rows of their groups, each times the share [K, 1] of its client.

        Args:
            alone: whether the numbers are stored unrounded.
        """
        patterns, rows = upload(self._rows.device, shares.view(np.int64), groups)
        weights = patterns.view(torch.float64)
        for together in parts:
            for part, (low, high) in zip(together, _ranges([part.values for part in together]), strict=True):
                values, some, limit = part.values, part.vectors, TERMS.limit
                if not (-limit < low and high < limit):
                    self._check(values, clients[some], part.columns.start)
                    if not alone:
                        values = self._set_aside(values, weights[some], rows[some], part.columns)
                term = self._scratch[: values.numel()].view(values.shape)
                if len(values) == 1 and values.device.type == "cpu":  # in one pass, which PyTorch cannot do
                    np.multiply(values.detach().numpy(), shares[some].item(), out=term.numpy(), dtype=np.float64)
                else:
                    term.copy_(values).mul_(weights[some])
                if not alone:
                    term.add_(TERMS.magic)
                _accumulate(self._rows[:, part.columns], rows[some], term.view(torch.int64))

    def _parts(self, vectors: Tensor, clients: NDArray[np.int64], arrive: Arrive | None) -> Iterator[list[Part]]:
        """All parts of the vectors, in lists that are checked at once.

        On a CPU one by one, because the check brings a part into the cache. On a GPU all, because the host waits for
        the check.
        """
        parts = (
            Part(some, columns, vectors[some, columns])
            for begin, end in self._segments
            for some, columns in _tiles(len(vectors), begin, end, self._elements)
        )
        if arrive:
            parts = (replace(p, values=arrive(p.values, clients[p.vectors], p.columns)) for p in parts)
        if self._rows.device.type == "cpu":
            for part in parts:
                yield [part]
        elif together := list(parts):
            yield together

    def _check(self, part: Tensor, clients: NDArray[np.int64], first: int) -> None:
        for k, (place, value) in diverged(part).items():
            raise Diverged(f"client {clients[k]} diverged: {self._name_at(first + place)} is {value:g}; {REMEDY}")

    def _set_aside(self, part: Tensor, weights: Tensor, rows: Tensor, columns: slice) -> Tensor:
        """Sum numbers that are too large for fixed point separately, and replace them by zero."""
        beyond = part.frexp().exponent - math.frexp(TERMS.limit)[1]
        number = beyond.div(CLASS_BITS, rounding_mode="floor")  # negative: it is not too large
        for one in number.unique().tolist():
            if one >= 0:
                magic = FixedPoint(TERMS.unit * 2.0 ** (CLASS_BITS * (one + 1))).magic
                term = torch.where(number == one, part, 0).double().mul_(weights)
                rounded = term.add_(magic).sub_(magic).cpu()
                torch.from_numpy(self._shared.class_of_larger(one, columns)).index_add_(0, rows.cpu(), rounded)
        return torch.where(number >= 0, 0, part)


def total(world: World, terms: Sequence[Sequence[Tensor]], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Sums over all ranks of small tensors of several kinds, bit-identical in any order and grouping.

    Each term is rounded to about 2^-50 of the largest term of its kind.

    Args:
        terms: any number of terms of this rank. Each has one tensor of each kind.
        shapes: of the kinds.

    Returns: The sums in float64, on every rank; all NaN if a term is not finite.
    """
    # Each rank fills in a row of its own, so that a sum tells everybody the largest.
    known = np.zeros((world.size, 1 + len(shapes)))
    known[world.rank, 0] = len(terms)
    if terms:
        known[world.rank, 1:] = np.max([[part.abs().max().item() for part in term] for term in terms], axis=0)
    world.sum(known)
    count, largest = int(known[:, 0].sum()), known[:, 1:].max(axis=0)
    # Of a unit 2^(e + b - 52), where 2^e > |t| and 2^b > count, each term is less than 2^51, and all less than 2^53.
    units = np.ldexp(1.0, np.frexp(np.where(np.isfinite(largest), largest, 1))[1] + count.bit_length() - 52)
    sums = torch.zeros(sum(map(math.prod, shapes)), dtype=torch.float64)
    kinds = [part.view(shape) for part, shape in zip(sums.split(list(map(math.prod, shapes))), shapes, strict=True)]
    magics = [FixedPoint(unit).magic for unit in units.tolist()]
    for term in terms:
        for into, part, magic in zip(kinds, term, magics, strict=True):
            into += (part.cpu().double() + magic).sub_(magic)
    world.sum(sums.numpy())
    return [
        into if np.isfinite(peak) else torch.full(shape, math.nan, dtype=torch.float64)
        for into, shape, peak in zip(kinds, shapes, largest, strict=True)
    ]


def _tiles(rows: int, begin: int, end: int, elements: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns (from `begin` to `end`) of blocks, as wide as possible and then as high as possible."""
    width = min(end - begin, elements)
    for first in range(begin, end, max(width, 1)):
        for top in range(0, rows, elements // width):
            yield slice(top, top + elements // width), slice(first, min(first + width, end))


def _ranges(parts: Sequence[Tensor]) -> list[tuple[float, float]]:
    """The smallest and the largest number of each, or NaN twice. For all of them, the host waits for a GPU once."""
    if all(part.device.type == "cpu" for part in parts):  # NumPy takes half of PyTorch's time
        arrays = [part.detach().numpy() for part in parts]
        return [(float(array.min()), float(array.max())) for array in arrays]
    ends = torch.stack([end for part in parts for end in torch.aminmax(part)]).tolist()
    return list(zip(ends[::2], ends[1::2], strict=True))


def _is_finite(part: Tensor) -> bool:
    return not part.numel() or all(map(math.isfinite, _ranges([part])[0]))


def _accumulate(into: Tensor, rows: Tensor, patterns: Tensor) -> None:
    """Add `patterns` [K, n], each to its row of `into` [groups, n]."""
    if len(into) > 1:
        into.index_add_(0, rows, patterns)
        return
    pattern = patterns[0] if len(patterns) == 1 else patterns.sum(0)
    if into.device.type == "cpu":
        np.add(into[0].numpy(), pattern.numpy(), out=into[0].numpy())  # torch takes three times as long
    else:
        into[0].add_(pattern)
