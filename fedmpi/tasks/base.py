"""The interface of tasks: targets, loss, what is measured of each sample, and the metrics made of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmpi.arrays import read_only
from fedmpi.options import Configured
from fedmpi.ranges import interval
from fedmpi.typing import Tensor

#: name of a measurement -> its values [n], or [n, width], one row per evaluated sample
Rows = Mapping[str, NDArray[np.float32]]
#: (measured rows, targets [n, ...], owners [n]: the client of each sample) -> a number
Compute = Callable[[Rows, NDArray, NDArray[np.int64]], float]
Better = Literal["higher", "lower"]
#: A value in masks or texts.
Target = Annotated[int, interval("[-1e6, 1e6]", "from -1,000,000 to 1,000,000")]
PERCENT = "%"


class Described(Protocol):
    """What tasks know about a data set besides its arrays."""

    classes: int
    vocabulary: int | None


class Strata(NamedTuple):
    """Groups of samples with similar targets, which partitions by label and stratified choices use as labels.

    Attributes:
        train, test: int64 [n], the stratum of each sample, from 0.
        strata: how many there are.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    strata: int


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is on a set of samples. It is computed on every rank from the same numbers.

    Attributes:
        compute: makes the number of the rows of these samples. Its arrays are read-only.
        better: which values are better.
        unit: "%" for a share in [0, 1], else "".
        needs: measurements that are only made for metrics that need them, such as "scores".
    """

    compute: Compute
    better: Better = "higher"
    unit: str = ""
    needs: tuple[str, ...] = ()

    def __call__(self, rows: Rows, targets: NDArray, owners: NDArray[np.int64]) -> float:
        """The metric over all these samples; NaN if there are none. Other metrics read the same arrays after it."""
        if not len(targets):
            return np.nan
        given = {name: read_only(row) for name, row in rows.items()}
        return float(self.compute(given, read_only(targets), read_only(owners)))

    def of_owners(self, rows: Rows, targets: NDArray, owners: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """[count] the metric over the samples of each owner; NaN for an owner without samples."""
        found = np.full(count, np.nan)
        order = np.argsort(owners, kind="stable")
        ends = np.searchsorted(owners[order], np.arange(count + 1))
        for owner in np.unique(owners).tolist():
            some = order[ends[owner] : ends[owner + 1]]
            found[owner] = self({name: row[some] for name, row in rows.items()}, targets[some], owners[some])
        return found


@dataclass(frozen=True)
class Ratio(Metric):
    """A metric f(sum of `of` / sum of `over`) over the samples, such as a mean.

    Attributes:
        of, over: names of measurements. `over` "": each sample counts 1.
        then: f; None: the quotient itself.
    """

    compute: Compute = field(init=False, repr=False)
    of: str = ""
    over: str = ""
    then: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None

    def __post_init__(self) -> None:
        def compute(rows: Rows, targets: NDArray, owners: NDArray[np.int64]) -> float:
            total = rows[self.of].sum(dtype=np.float64)
            count = rows[self.over].sum(dtype=np.float64) if self.over else np.float64(len(targets))
            return float(self._value(np.array([total]), np.array([count]))[0])

        object.__setattr__(self, "compute", compute)

    def of_owners(self, rows: Rows, targets: NDArray, owners: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        over = rows[self.over] if self.over else np.ones(len(owners))
        totals, counts = (np.bincount(owners, weights=each, minlength=count) for each in (rows[self.of], over))
        return self._value(totals.astype(np.float64), counts.astype(np.float64))

    def _value(self, totals: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
        quotient = np.divide(totals, counts, out=np.full(len(totals), np.nan), where=counts > 0)
        return quotient if self.then is None else self.then(quotient)


def metric(better: Better = "higher", unit: str = "", needs: tuple[str, ...] = ()) -> Callable[[Compute], Metric]:
    """Say more about a metric of your own than a plain function can, whose higher values are better.

        @metric(better="lower", needs=("scores",))
        def brier(rows, targets, owners):
            return ((rows["scores"] - np.eye(10)[targets]) ** 2).sum(1).mean()

    Args:
        better, unit, needs: see `Metric`.
    """
    return lambda compute: Metric(compute, better, unit, needs)


class Task(metaclass=Configured):
    """What is learned. A task of your own, used with `--task my_module.Counts`:

        class Counts(Task):
            main = "deviance"
            metrics = {"loss": Ratio(of="loss", better="lower"), "deviance": Ratio(of="deviance", better="lower")}

            def problem(self, y, about):
                return None if y.dtype == np.float32 and y.ndim == 2 else "must be float32 [n, outputs]"

            def outputs(self, y, about):
                return y.shape[1]

            def loss(self, output, y):
                return (output.exp() - y * output).mean(-1)

            def measure(self, output, y, names):
                ...

    The methods that get tensors import torch themselves, so that `--help` stays fast.

    Attributes:
        main: name of the main metric, by which models are compared.
        metrics: the metrics that can be named, by name. One of them is "loss".
        usual: names of those that are always computed, in this order.
        has_classes: whether each sample has one class as its target. Some methods need classes.
        is_spatial: whether targets have the places of pixels, so that pixels cannot be moved without them.
    """

    main: str
    metrics: ClassVar[Mapping[str, Metric]]
    usual: tuple[str, ...] = ()
    has_classes: bool = False
    is_spatial: bool = False

    @abstractmethod
    def problem(self, y: NDArray, about: Described) -> str | None:
        """What is wrong with targets [n, ...], as a clause that follows their name, with what is allowed.

        Returns: None if nothing is wrong.
        """

    @abstractmethod
    def outputs(self, y: NDArray, about: Described) -> int:
        """Number of outputs that a network needs for such targets."""

    def output_shape(self, target: tuple[int, ...], outputs: int) -> tuple[int, ...]:
        """Shape of the network's output for one sample, whose target has this shape."""
        return (outputs,)

    @abstractmethod
    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """[B] the loss of each sample, of a network's output [B, ...] and targets [B, ...]."""

    def weights(self, y: NDArray) -> NDArray[np.float32] | None:
        """[n] weight of each sample's loss in the mean that is minimised; None: all count alike.

        For losses that are means over parts of a sample, such as its tokens: the number of these parts.
        """
        return None

    def columns(self, outputs: int) -> Mapping[str, int]:
        """Name of each measurement -> how many numbers it has per sample."""
        return {"loss": 1}

    @abstractmethod
    def measure(self, output: Tensor, y: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        """name -> [B], or [B, width]: the measurements `names` of each sample. Arguments as for `loss`.

        They are stored as float32, so counts are exact up to 2^24.
        """

    def optional(self) -> tuple[str, ...]:
        """Names of the measurements that are only made for metrics that need them."""
        return ()

    def strata(self, train_y: NDArray, test_y: NDArray, about: Described) -> Strata | None:
        """Groups of samples with similar targets; None: there are none, so samples cannot be split by label."""
        return None


def extremes(y: NDArray[np.int64], ignore: int) -> tuple[int, int]:
    """The smallest and the largest of the targets that count, without a copy of them.

    If there are none, they are the largest and the smallest int64.
    """
    counts, limits = y != ignore, np.iinfo(np.int64)
    return int(y.min(where=counts, initial=limits.max)), int(y.max(where=counts, initial=limits.min))
