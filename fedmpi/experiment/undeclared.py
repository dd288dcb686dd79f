"""Finds state that a component keeps from round to round without declaring it.

Only declared state is in checkpoints and moves with a client to another rank. An attribute that one round sets and
the next one reads is lost when a run is resumed. An attribute that every round sets before it reads it is no state.
So it is watched in the first rounds whether an attribute that has changed is read or set first.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmpi.algorithms import Algorithm
from fedmpi.checksum import checksum
from fedmpi.federation.client_state import ClientState
from fedmpi.options import Configured
from fedmpi.policies.server_optimizers import ServerOptimizer

#: How many rounds are watched, after the first one of a process.
WATCHED = 2
#: How deep values are compared.
DEPTH = 3


class Undeclared:
    """Watches the components of a run in its first rounds.

    Args:
        components: set up, before the first round of this process.

    Attributes:
        found: attributes that an earlier round had changed, and that a round has read before it set them.
    """

    def __init__(self, components: Iterable[object]) -> None:
        self.found: list[str] = []
        self._components = list(components)
        self._at_first = [_attributes(component) for component in self._components]
        self._rounds = 0

    @contextmanager
    def round(self) -> Iterator[None]:
        """The context of a round."""
        self._rounds += 1
        is_watched = 1 < self._rounds <= 1 + WATCHED
        with ExitStack() as stack:
            if is_watched:
                for component, before in zip(self._components, self._at_first, strict=True):
                    now = _attributes(component)
                    changed = {name for name, value in now.items() if name not in before or before[name] != value}
                    if changed:
                        stack.enter_context(self._watching(component, changed))
            yield

    @contextmanager
    def _watching(self, component: Any, names: set[str]) -> Iterator[None]:
        """Find those of these attributes that are read before they are set."""
        cls: Any = type(component)

        def read(component: object, name: str) -> Any:
            if name in names:
                names.discard(name)
                self.found.append(f"{name} ({cls.__name__})")
            return cls.__getattribute__(component, name)

        def write(component: object, name: str, value: object) -> None:
            names.discard(name)
            cls.__setattr__(component, name, value)

        own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        own |= {"__getattribute__": read, "__setattr__": write}
        component.__class__ = type(cls)(cls.__name__, (cls,), own)
        try:
            yield
        finally:
            component.__class__ = cls


def _attributes(component: object) -> dict[str, Any]:
    """What can be compared of the attributes that are neither options nor declared."""
    cls, own = type(component), vars(component)
    skipped = {"_options", *own["_options"], *(name for name in own if name.startswith("_is_used"))}
    if isinstance(component, Algorithm):
        skipped |= {*component.server_state, *component.recomputed, "server_optimizer", "task"}
    if isinstance(component, ServerOptimizer):
        skipped.add("state")
    return {
        name: _value(value, DEPTH)
        for name, value in own.items()
        if name not in skipped
        and not isinstance(value, ClientState)
        and not isinstance(getattr(cls, name, None), cached_property)  # which is computed again
    }


def _value(value: object, depth: int) -> Any:
    """Something that is equal if a value is; the identity of objects whose content is unknown."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, Tensor):
        return "meta" if value.is_meta else checksum(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    if isinstance(value, np.ndarray):
        return checksum(value) if value.dtype.kind in "biufcSUmM" else id(value)
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return hash(value.getstate())
    if isinstance(value, torch.Generator):
        return checksum(value.get_state().numpy())
    if not depth:
        return id(value)
    if isinstance(value, Mapping):
        return [(repr(key), _value(each, depth - 1)) for key, each in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return [_value(each, depth - 1) for each in value]
    is_own = not isinstance(type(value), Configured) and not type(value).__module__.startswith(("fedmpi.", "torch."))
    inner = vars(value) if is_own and hasattr(value, "__dict__") and not callable(value) else None
    return id(value) if inner is None else {name: _value(each, depth - 1) for name, each in inner.items()}
