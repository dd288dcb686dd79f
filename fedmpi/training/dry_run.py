"""Facts that only a run of a network shows: shapes of lazy layers, the last layer, buffers that training changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from fedmpi.errors import BadInput
from fedmpi.training.layout import mark_head


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


def find_head(network: nn.Module, example: Tensor) -> None:
    """Mark the last fully connected layer (`head_of`), if the order of definition is not that of the forward pass.

    It is the layer that gives the network's output. If none does, it is the last one that runs.

    Args:
        network: is run once in evaluation mode, if it has at least two fully connected layers.
        example: [2, ...] any inputs.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    ran: list[tuple[nn.Linear, int]] = []

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(layer, nn.Linear) and isinstance(output, Tensor):
            ran.append((layer, output.untyped_storage().data_ptr()))

    if len(layers) < 2:
        return
    hooks = [layer.register_forward_hook(note) for layer in layers]
    modes = [(layer, layer.training) for layer in network.modules()]
    with torch.no_grad(), _buffers_kept(network), suppress(Exception):  # whoever runs it next will report it
        output = network.eval()(example)
        memory = output.untyped_storage().data_ptr() if isinstance(output, Tensor) else None
        last = next((layer for layer, at in reversed(ran) if at == memory), ran[-1][0] if ran else layers[-1])
        if last is not layers[-1]:
            mark_head(last)
    for layer, mode in modes:
        layer.training = mode
    for hook in hooks:
        hook.remove()


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """After it, the buffers of a network are the same tensors with the same values as before."""
    before = {name: (buffer, buffer.clone()) for name, buffer in network.named_buffers()}
    yield
    for name, (buffer, value) in before.items():
        owner, _, own = name.rpartition(".")
        network.get_submodule(owner)._buffers[own] = buffer
        buffer.copy_(value)


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
    with torch.no_grad(), _buffers_kept(network):
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

        return frozenset() if failed else frozenset(filter(is_untouched, numbers))


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
