"""Facts that only a run of a network shows: the shapes of its lazy layers, and which buffers training changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from fedmpi.errors import BadInput


def materialise(network: nn.Module, example: Tensor) -> None:
    """Give lazy layers (nn.LazyLinear, ...) their shapes and initial weights, by one run in evaluation mode.

    Args:
        network: is not run if it has no lazy layers.
        example: [2, ...] any inputs.

    Raises:
        BadInput: it cannot be run.
    """
    if any(map(is_lazy, [*network.parameters(), *network.buffers()])):
        try:
            with torch.no_grad():
                network.eval()(example)
        except Exception as error:  # whatever the network raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BadInput(f"has lazy layers, whose shapes cannot be found by running it ({reason})") from error
        network.train()


def constant_buffers(network: nn.Module, example: Tensor) -> frozenset[str]:
    """Names of the floating-point buffers that training does not change: attention masks, tables, class weights.

    Clients neither train nor send them. They are found by one run in training mode: a buffer that is not written to,
    in place or by assignment, is constant. Comparing values would not be enough, because running statistics may stay
    the same by chance. If a constant buffer is written to later, training ends with an error (`FlatModel`).

    Args:
        network: is not changed.
        example: [2, ...] any inputs.
    """
    buffers = dict(network.named_buffers())
    numbers = {name for name, buffer in buffers.items() if buffer.is_floating_point()}
    if not numbers:
        return frozenset()
    before = {name: (buffer, buffer.clone(), buffer._version) for name, buffer in buffers.items()}
    with torch.no_grad():
        failed = False
        try:
            with _Statistics() as statistics:
                network.train()(example)
        except Exception:  # of any kind: whoever runs the network next will report it
            failed = True
        after = dict(network.named_buffers())

        def is_untouched(name: str) -> bool:
            buffer, value, version = before[name]
            is_same = after.get(name) is buffer and buffer._version == version and id(buffer) not in statistics.seen
            return is_same and torch.equal(buffer.nan_to_num(), value.nan_to_num())

        constant = frozenset() if failed else frozenset(filter(is_untouched, numbers))
        for name, (buffer, value, _) in before.items():
            owner, _, own = name.rpartition(".")
            network.get_submodule(owner)._buffers[own] = buffer
            buffer.copy_(value)
    return constant


class _Statistics(TorchFunctionMode):
    """Records the running statistics that normalisation layers write to, because PyTorch does not count these writes.

    Attributes:
        seen: ids of these tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in (functional.batch_norm, functional.instance_norm):
            given = signature(func).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments.get("training", given.arguments.get("use_input_stats")):
                self.seen |= {id(given.arguments[name]) for name in ("running_mean", "running_var")}
        return func(*args, **(kwargs or {}))
