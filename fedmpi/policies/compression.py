"""How clients compress what they send.

Clients compress the change of the trained parameters: the difference between what they send and what they received.
Running statistics of normalisation layers are not compressed. The ranks of a job always exchange full vectors, which
hold the values after compression; the bytes in the results are those of the compressed form.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import require
from fedmpi.lazy import torch
from fedmpi.options import Configured, with_options
from fedmpi.randomness import hashed_bits
from fedmpi.ranges import PositiveInt, UpToOne, interval
from fedmpi.typing import Tensor

# Elements that are rounded at once: many enough for low overhead, few enough for a cache.
PIECE_ELEMENTS = 1 << 16


class Compression(metaclass=Configured):
    """Base of the compression methods."""

    @abstractmethod
    def bytes(self, count: int) -> int:
        """Bytes of a change of `count` numbers when it is sent."""

    def payload(self, size: int, parameters: int) -> int:
        """Bytes of a vector [size] in which the change of the first `parameters` numbers is compressed."""
        return self.bytes(parameters) + 4 * (size - parameters)

    def kept(self, count: int) -> int:
        """How many numbers a client keeps between rounds, for a change of `count` numbers."""
        return 0

    @abstractmethod
    def compress(self, change: Tensor, kept: Tensor, keys: NDArray[np.uint64], round: int) -> Tensor:
        """The changes [K, d] of K clients as the server decodes them.

        The result for a client does not depend on the others.

        Args:
            change: must not be modified.
            kept: [K, `kept(d)`], what the clients keep; updated in place. Zeros at first.
            keys: [K], of the random numbers.
        """


class Dense(Compression):
    """Nothing is compressed: four bytes per value."""

    def bytes(self, count: int) -> int:
        return 4 * count

    def compress(self, change: Tensor, kept: Tensor, keys: NDArray[np.uint64], round: int) -> Tensor:
        return change


@with_options
class TopK(Compression):
    """The largest values of an update, with their indices; the rest is added to the client's next update.

    Aji, Heafield: Sparse Communication for Distributed Gradient Descent. EMNLP 2017. https://arxiv.org/abs/1704.05021
    Stich, Cordonnier, Jaggi: Sparsified SGD with Memory. NeurIPS 2018. https://arxiv.org/abs/1809.07599

    Among values of the same magnitude, the first are sent. Each takes 8 bytes, for value and index. A client keeps
    the unsent rest of each vector that its method sends, for the whole experiment.

    Args:
        share: share of the values that is sent; at least one value.
        feedback: error feedback: whether the unsent rest is added to the client's next update; else it is lost.
        forget_after: the rest is dropped if the client last took part more than this many rounds ago; null: it is
            never dropped.
    """

    share: UpToOne = 0.01
    feedback: bool = True
    forget_after: PositiveInt | None = None

    def __post_init__(self) -> None:
        require(
            self.feedback or self.forget_after is None, "forget_after", self.forget_after, "null without feedback"
        )

    def count(self, of: int) -> int:
        """Number of values that are sent."""
        return max(1, round(self.share * of))

    def bytes(self, count: int) -> int:
        return 8 * self.count(count)

    def kept(self, count: int) -> int:
        # The kept vector also holds the round in which the client last took part.
        return (count + (self.forget_after is not None)) if self.feedback else 0

    def compress(self, change: Tensor, kept: Tensor, keys: NDArray[np.uint64], round: int) -> Tensor:
        size = change.shape[1]
        if not self.feedback:
            return _largest(change, self.count(size))
        left_out = kept[:, :size]
        if self.forget_after is not None:
            left_out[round - kept[:, size] > self.forget_after] = 0
            kept[:, size] = round
        left_out += change
        sent = _largest(left_out, self.count(size))
        left_out -= sent
        return sent


class Rounding(Compression):
    """Base of the quantisers: values are multiples of a unit, from -levels to levels, with one unit per bucket.

    A number is rounded up or down at random, so that its expected value is the number itself.

    Attributes:
        levels: the largest multiple.
        bucket: number of values that share a unit.
    """

    levels: int
    bucket: int

    @abstractmethod
    def unit(self, buckets: Tensor) -> Tensor:
        """[K, b, 1], the unit of each bucket [K, b, n]. No value is larger than `levels` units."""

    def bytes(self, count: int) -> int:
        bits = (2 * self.levels).bit_length()  # of 2 levels + 1 values
        return -(-bits * count // 8) + 4 * -(-count // self.bucket)

    def compress(self, change: Tensor, kept: Tensor, keys: NDArray[np.uint64], round: int) -> Tensor:
        sent = torch.empty_like(change)
        for rows, columns in _pieces(len(change), change.shape[1], self.bucket):
            part = change[rows, columns]
            buckets = part.unflatten(1, (-1, min(self.bucket, part.shape[1])))
            unit = self.unit(buckets)
            multiple = buckets / torch.where(unit == 0, 1, unit)
            whole = multiple.floor()
            # An integer is never changed; with floor(multiple + chance) rounding could change large ones.
            chance = _uniform(keys[rows], columns, like=part).view(buckets.shape)
            whole += chance < multiple.sub_(whole)
            # The unit is rounded, so its largest multiple may be a little larger than the value.
            sent[rows, columns] = whole.clamp_(-self.levels, self.levels).mul_(unit).flatten(1)
        return sent


@with_options
class QSGD(Rounding):
    """Values rounded at random to multiples of a unit: the norm of a bucket of values, divided by the levels.

    Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding.
    NeurIPS 2017. https://arxiv.org/abs/1610.02132

    Each value takes as many bits as 2 levels + 1 different values need, and each bucket takes 4 bytes more. The
    paper's code for frequent values is not used. The rounding is unbiased; its variance is at most
    min(d / levels^2, sqrt(d) / levels) |v|^2 in a bucket v of d values.

    Args:
        levels: number of multiples between zero and the norm.
        bucket: number of values that share a norm.
    """

    levels: Annotated[int, interval("[1, 32768)", "at least 1 and below 2^15")] = 7
    bucket: PositiveInt = 512

    def unit(self, buckets: Tensor) -> Tensor:
        norm = buckets.norm(dim=2, keepdim=True)
        if norm.isinf().any():  # squares of large numbers
            wide = buckets.double().norm(dim=2, keepdim=True)
            most = wide.clamp(max=torch.finfo(norm.dtype).max).to(norm.dtype)
            norm = torch.where(norm.isinf() & wide.isfinite(), most, norm)
        return norm / self.levels


@with_options
class Int8(Rounding):
    """One byte per value, rounded at random; the unit is the largest magnitude of a chunk of values / 127.

    Suresh, Yu, Kumar, McMahan: Distributed Mean Estimation with Limited Communication. ICML 2017.
    https://arxiv.org/abs/1611.00429 (stochastic k-level quantisation, with levels around zero). Each chunk takes 4
    bytes for its unit.

    Args:
        chunk: number of values that share a unit.
    """

    chunk: PositiveInt = 1024

    levels = 127

    @property
    def bucket(self) -> int:  # type: ignore[override]
        return self.chunk

    def unit(self, buckets: Tensor) -> Tensor:
        return buckets.abs().amax(2, keepdim=True) / 127


def _largest(vectors: Tensor, count: int) -> Tensor:
    """`vectors` [K, d] with all but the `count` largest values (by magnitude) of each row set to zero.

    Of equal values the first are kept.
    """
    size = vectors.abs()
    least = size.kthvalue(vectors.shape[1] - count + 1, dim=1, keepdim=True).values
    chosen = ~(size < least)  # also NaN, so that the server notices diverged clients
    tied = chosen.sum(1) > count
    if tied.any():
        equal = size[tied] == least[tied]
        room = count - (chosen[tied] & ~equal).sum(1, keepdim=True)
        chosen[tied] &= ~equal | (equal.cumsum(1) <= room)
    return torch.where(chosen, vectors, 0)


def _pieces(rows: int, size: int, bucket: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of pieces that consist of whole buckets. An incomplete last bucket is a piece of its own.

    Columns do not depend on the number of rows.
    """
    full = size // bucket * bucket
    width = min(full, max(PIECE_ELEMENTS // bucket, 1) * bucket)
    columns = [slice(first, min(first + width, full)) for first in range(0, full, max(width, 1))]
    columns += [slice(full, size)] if full < size else []
    for part in columns:
        height = max(PIECE_ELEMENTS // (part.stop - part.start), 1)
        for top in range(0, rows, height):
            yield slice(top, top + height), part


def _uniform(keys: NDArray[np.uint64], columns: slice, like: Tensor) -> Tensor:
    """[K, n] uniform numbers in [0, 1), multiples of 2^-24, for these columns of vectors with these keys [K]."""
    count = columns.stop - columns.start
    words = hashed_bits(keys, -(-count // 2), columns.start).view(np.uint32)[:, :count]
    return torch.from_numpy((words >> np.uint32(8)).view(np.int32)).to(like.device).float().mul_(2.0**-24)
