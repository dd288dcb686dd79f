"""Finds the permutation symmetries of a network: units that can be exchanged without changing the output.

The channels of a hidden layer have no inherent order: if they are permuted in the same way in the weights that
produce them, in their normalisation and in the weights that read them, the network's outputs do not change. Axes of
tensors that must be permuted together form a group. Groups are found by running the network once and following every
feature axis through PyTorch's functions, unit by unit. Residual sums tie units together, concatenations join them,
and flattening repeats them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedmpi.errors import BadInput

Units = NDArray[np.int64]

# Functions that keep every unit where it is.
_KEEP = {
    *("relu", "relu_", "relu6", "hardtanh", "hardswish", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "dropout", "mean", "contiguous"),
    *("float", "to", "clone", "_pack_padded_sequence"),
}
_TIE = {"add", "add_", "__add__", "__iadd__", "__radd__", "mul", "mul_", "__mul__", "__imul__", "__rmul__"}
_RESHAPE = {"flatten", "view", "reshape", "unsqueeze", "__getitem__"}


@dataclass(frozen=True)
class Axis:
    """A dimension (or a part of one) of a tensor that belongs to the units of a group.

    Attributes:
        tensor: name of the tensor.
        dim: of the tensor in its PyTorch shape.
        positions: [units, occurrences] the positions of each unit. There is one occurrence, except for flattened
            features and the gates of an LSTM.
        makes: whether the tensor produces or normalises the units; else it reads them.
    """

    tensor: str
    dim: int
    positions: Units
    makes: bool


@dataclass(frozen=True)
class Group:
    """Axes whose units must be permuted together.

    Attributes:
        size: number of units.
        axes: the axes of the units.
    """

    size: int
    axes: tuple[Axis, ...]


def find_groups(module: nn.Module, x: Tensor) -> list[Group]:
    """The groups of a network, in the order of the forward pass.

    Args:
        module: the network. It is run in evaluation mode; its mode is restored afterwards.
        x: [B, ...] any inputs. The order of input features and of outputs is fixed.

    Raises:
        BadInput: the network calls a function that is not supported here; the message names it.
    """
    was_training = module.training
    tracer = _Tracer({id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]})
    try:
        with torch.no_grad(), tracer:
            module.eval()
            if x.is_floating_point():
                tracer.follow(x, tracer.new(x.shape[1], fixed=True))
            outputs = module(x)
            tracer.fix(outputs)
    finally:
        module.train(was_training)
    return tracer.groups()


class _Tracer(TorchFunctionMode):
    """Follows numbered units from function to function. Units that must move together are merged."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self._parent: list[int] = []
        # Marks of units that cannot be exchanged: the axes where they first appear, and the cells of group norm.
        self._marks: list[set[object]] = []
        self._births = 0
        self._units: dict[int, Units | list[Units]] = {}
        self._alive: list[Tensor] = []  # as long as a tensor lives, no other has its id
        self._axes: dict[tuple[str, int], tuple[Units, bool]] = {}

    # Units

    def new(self, count: int, fixed: bool = False) -> Units:
        self._births += 1
        first = len(self._parent)
        self._parent += range(first, first + count)
        self._marks += [{(self._births, i if fixed else -1)} for i in range(count)]
        return np.arange(first, first + count)

    def follow(self, x: Tensor, units: Units | list[Units]) -> None:
        self._alive.append(x)
        self._units[id(x)] = units

    def fix(self, x: Tensor) -> None:
        for i, unit in enumerate(self._of(x, "the network's output").tolist()):
            self._marks[self._root(unit)].add(("output", i))

    def groups(self) -> list[Group]:
        """The groups: units with the same marks can be exchanged."""
        roots = np.array([self._root(unit) for unit in range(len(self._parent))], dtype=np.int64)
        members: dict[frozenset[object], list[int]] = {}
        for unit in np.unique(roots).tolist():
            members.setdefault(frozenset(self._marks[unit]), []).append(unit)
        group_of, number_of = np.zeros((2, len(roots)), dtype=np.int64)
        for group, units in enumerate(members.values()):
            group_of[units], number_of[units] = group, np.arange(len(units))
        axes: list[list[Axis]] = [[] for _ in members]
        for (name, dim), (on_axis, makes) in self._axes.items():
            groups, numbers = group_of[roots[on_axis]], number_of[roots[on_axis]]
            for group in np.unique(groups).tolist():
                here = np.flatnonzero(groups == group)
                in_order = here[np.argsort(numbers[here], kind="stable")]
                axes[group].append(Axis(name, dim, in_order.reshape(int(numbers[here].max()) + 1, -1), makes))
        found = zip(members.values(), axes, strict=True)
        return [Group(len(units), tuple(found_on)) for units, found_on in found if len(units) > 1]

    def _root(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = unit = self._parent[self._parent[unit]]
        return unit

    def _tie(self, ones: Units, others: Units) -> None:
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            a, b = sorted((self._root(one), self._root(other)))
            if a != b:
                self._parent[b] = a
                self._marks[a] |= self._marks[b]

    def _of(self, x: Tensor, where: str) -> Units:
        units = self._units.get(id(x))
        if not isinstance(units, np.ndarray):
            raise BadInput(f"--model: the input features of {where} come from an unsupported function")
        return units

    def _axis(self, tensor: Tensor | None, dim: int, units: Units, makes: bool) -> None:
        if tensor is not None:
            if id(tensor) not in self._names:
                raise BadInput(
                    "--model: the network has a layer whose weight is computed from other tensors in every run"
                )
            before, _ = self._axes.setdefault((self._names[id(tensor)], dim), (units, makes))
            self._tie(before, units)  # of a layer that is used twice

    # Functions

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        rule = getattr(self, f"_after_{name}", None)
        taken = [x for x in _tensors(*args) if id(x) in self._units]
        if rule is not None:
            rule(result, *args, **(kwargs or {}))
        elif name in _KEEP | _RESHAPE | _TIE:
            if taken:
                self._after_simple(name, result, taken, _tensors(*args))
        elif taken and any(x.dim() > 0 for x in _tensors(result)):
            raise BadInput(f"--model: the network uses {name}, which is not supported with this method")
        return result

    def _after_simple(self, name: str, result: Any, taken: list[Tensor], given: list[Tensor]) -> None:
        units = self._of(taken[0], name)
        if name in _TIE:
            if any(x.numel() > 1 and id(x) not in self._units for x in given):
                raise BadInput(
                    f"--model: the network uses {name} with a constant tensor, so units cannot be permuted"
                )
            for other in taken[1:]:
                self._tie(units, self._of(other, name))
        output = result[0] if isinstance(result, tuple) else result
        if name in _RESHAPE and output.dim() == 2 and output.shape[1] != len(units):
            units = np.repeat(units, output.shape[1] // len(units))  # [B, C, H, W] became [B, C * H * W]
        if output.dim() < 2 or output.shape[_feature_dim(output)] != len(units):
            raise BadInput(f"--model: the network uses {name} in a way that is not supported with this method")
        self.follow(output, units)

    def _after_cat(self, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
        if dim % result.dim() != 1:
            raise BadInput(f"--model: the network concatenates along dimension {dim}")
        self.follow(result, np.concatenate([self._of(x, "cat") for x in tensors]))

    def _after_conv2d(
        self, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> None:
        into = self._of(x, "conv2d")
        if weight.shape[1] == len(into):
            self._axis(weight, 1, into, makes=False)
            made = self.new(len(weight))
        elif weight.shape[1] == 1 and len(weight) == len(into):  # depthwise: each channel stays itself
            made = into
        else:
            raise BadInput("--model: the network has a convolution in groups that is not depthwise")
        self._axis(weight, 0, made, makes=True)
        self._axis(bias, 0, made, makes=True)
        self.follow(result, made)

    def _after_linear(self, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        self._axis(weight, 1, self._of(x, "linear"), makes=False)
        made = self.new(len(weight))
        self._axis(weight, 0, made, makes=True)
        self._axis(bias, 0, made, makes=True)
        self.follow(result, made)

    def _after_batch_norm(
        self,
        result: Tensor,
        x: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self._normalise(result, x, running_mean, running_var, weight, bias)

    def _after_group_norm(
        self,
        result: Tensor,
        x: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        units = self._normalise(result, x, weight, bias)
        self._births += 1
        if num_groups > 1:  # a unit stays in its group
            for place, unit in enumerate(units.tolist()):
                self._marks[self._root(unit)].add((self._births, place * num_groups // len(units)))

    def _after_layer_norm(
        self,
        result: Tensor,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if tuple(normalized_shape) != tuple(x.shape[1:]):
            raise BadInput("--model: the network has a layer norm over a part of its features")
        self._normalise(result, x, weight, bias)

    def _normalise(self, result: Tensor, x: Tensor, *tensors: Tensor | None) -> Units:
        """Each unit is normalised by its own elements of these tensors."""
        units = self._of(x, "a normalisation")
        for tensor in tensors:
            self._axis(tensor, 0, units, makes=True)
        self.follow(result, units)
        return units

    def _after_embedding(self, result: Tensor, tokens: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
        made = self.new(weight.shape[1])
        self._axis(weight, 1, made, makes=True)
        self.follow(result, made)

    def _after_lstm(self, result: tuple[Tensor, ...], x: Tensor, *args: Any) -> None:
        """For each direction of a layer: weights of inputs and states, and biases, with concatenated gates."""
        into = self._of(x, "lstm")
        weights = _tensors(*(arg for arg in args if isinstance(arg, list | tuple) and len(arg) >= 4))
        hidden = []
        for first in range(0, len(weights), 4):
            of_inputs, of_states, *biases = weights[first : first + 4]
            made = self.new(of_states.shape[1])
            gates = np.tile(made, 4)
            self._axis(of_inputs, 0, gates, makes=True)
            self._axis(of_inputs, 1, into, makes=False)
            self._axis(of_states, 0, gates, makes=True)
            self._axis(of_states, 1, made, makes=True)
            for bias in biases:
                self._axis(bias, 0, gates, makes=True)
            hidden.append(made)
        self.follow(result[0], np.concatenate(hidden))
        self.follow(result[1], hidden)  # [directions, B, hidden]

    def _after_index_select(self, result: Tensor, x: Tensor, dim: int, index: Tensor) -> None:
        """Selection of samples, as packed sequences are sorted by length."""
        if id(x) in self._units:
            if dim % x.dim() == _feature_dim(x):
                raise BadInput("--model: the network selects features by index")
            self.follow(result, self._units[id(x)])

    def _after_unbind(self, result: Sequence[Tensor], x: Tensor, dim: int = 0) -> None:
        stacked = self._units.get(id(x))
        if isinstance(stacked, list) and dim == 0:
            for part, units in zip(result, stacked, strict=True):
                self.follow(part, units)


def _feature_dim(x: Tensor) -> int:
    """The feature dimension of samples [B, C] or [B, C, H, W], or of sequences [L, B, C]."""
    return 2 if x.dim() == 3 else 1


def _tensors(*values: Any) -> list[Tensor]:
    """The tensors among the values, also in lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(*value)
    return found
