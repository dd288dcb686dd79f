"""The low-rank adapters of a network, as peft makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedmpi.errors import BadInput
from fedmpi.lazy import nn

#: The name of the adapters of a layer; peft could give a layer several.
ADAPTER = "default"


def adapted_layers(network: nn.Module, method: str) -> Iterator[tuple[str, Any]]:
    """Name and layer of each linear layer that has trained adapters A and B, in the network's order.

    Raises:
        BadInput: there is none.
    """
    found = False
    for name, layer in network.named_modules():
        adapters = getattr(layer, "lora_A", {})
        if isinstance(adapters, nn.ModuleDict) and ADAPTER in adapters and adapters[ADAPTER].weight.requires_grad:
            found = True
            yield name, layer
    if not found:
        raise BadInput(f"--model: {method} needs one with low-rank adapters (--model.lora.rank 8)")
