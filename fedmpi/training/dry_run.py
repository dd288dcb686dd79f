"""What only a run of a network tells: the shapes of its lazy layers, and which of its buffers training changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedmpi.errors import BadInput


def materialise(network: nn.Module, example: Tensor) -> None:
    """Give lazy layers (nn.LazyLinear, ...) their shapes and first weights, by one run in evaluation mode.

    Args:
        network: it is not run if it has no such layers.
        example: [2, ...] inputs of some values.

    Raises:
        BadInput: it cannot be run.
    """
    if any(map(is_lazy, [*network.parameters(), *network.buffers()])):
        try:
            with torch.no_grad():
                network.eval()(example)
        except Exception as error:  # whatever the network raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BadInput(f"has lazy layers, and cannot be run to learn their shapes ({reason})") from error
        network.train()


def constant_buffers(network: nn.Module, example: Tensor) -> frozenset[str]:
    """Names of the floating-point buffers that training does not change: attention masks, tables, class weights.

    They are no part of what clients learn and send. It is decided by one run in training mode: a buffer that is not
    written to, in place or by assignment, is constant. Values do not count: running statistics may happen to stay as
    they are. One that is written to later on all the same ends training with an error (`FlatModel`).

    Args:
        network: it is left as it was.
        example: [2, ...] inputs of some values.
    """
    state = network.state_dict().keys()
    buffers = {name: b for name, b in network.named_buffers() if name in state and b.is_floating_point()}
    if not buffers:
        return frozenset()
    everything = dict(network.named_buffers())
    before = {name: (buffer, buffer.clone(), buffer._version) for name, buffer in everything.items()}
    with torch.no_grad():
        try:
            network.train()(example)
        except Exception:  # which training will report
            return frozenset()
        after = dict(network.named_buffers())
        constant = frozenset(n for n in buffers if after.get(n) is before[n][0] and after[n]._version == before[n][2])
        for name, (buffer, value, _) in before.items():
            owner, _, own = name.rpartition(".")
            network.get_submodule(owner)._buffers[own] = buffer
            buffer.copy_(value)
    return constant
