"""Functions of tensors as compiled code (`torch.compile`), so that little time passes between operations.

The Python code of a function runs only when it is traced; then its operations are compiled for the shapes of its
tensors. Numbers that Python computes are part of the compiled code. So there is a compiled function for each set of
values that a method's loss may read, and the first calls are compared with those of the uncompiled function.

PyTorch keeps compiled code on disk, in TORCHINDUCTOR_CACHE_DIR (default: in the node's folder of temporary files).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Hashable, Mapping
from math import isfinite
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from fedmpi.errors import BadInput

# A function that is compiled more often reads something that changes all the time.
MOST = 16
# The first calls of compiled code that are compared; the second one shows what Python counts from step to step.
COMPARED = 2
# The largest difference, as a share of the largest value of a tensor: far more than rounding, in single precision.
TOLERANCE = 1e-2

Function = Callable[[Any], Any]


class Compiler:
    """Compiled functions, by what they depend on.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._functions: dict[Hashable, Function] = {}
        self._calls: dict[Hashable, int] = {}

    def call(self, function: Function, inputs: Any, key: Hashable) -> Any:
        """function(inputs), by compiled code.

        Args:
            function: from nested tensors to a tuple of nested tensors. It must not depend on anything that is not in
                `inputs`, in `key`, or the same in every call.
            inputs: nested tensors, of the same shapes in all calls of this key.
            key: what the function depends on.

        Raises:
            BadInput: it cannot be compiled, or compiled code gives other results.
        """
        if key not in self._functions:
            if len(self._functions) == MOST:
                raise _refusal(f"something that the method's loss reads changes all the time ({MOST} times so far)")
            self._functions[key] = self._compiled(function, inputs)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls > COMPARED:
            return self._functions[key](inputs)
        expected = _copied(function(inputs))
        found = self._functions[key](inputs)
        _compare(expected, found)
        return found

    def _compiled(self, function: Function, inputs: Any) -> Function:
        from torch.fx.experimental.proxy_tensor import make_fx

        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
        try:
            traced = make_fx(function)(inputs)
            # On a GPU, the operations of a step are recorded as a CUDA graph.
            mode = "reduce-overhead" if self._device.type == "cuda" else "default"
            compiled: Function = torch.compile(traced, fullgraph=True, dynamic=False, mode=mode)
            with torch.no_grad():
                compiled(inputs)
        except Exception as error:
            raise _refusal(f"PyTorch cannot compile the local step: {_first_line(error)}") from error

        def run(inputs: Any) -> Any:
            with torch.no_grad():
                return compiled(inputs)

        return run


def lacking() -> str | None:
    """What this machine lacks to compile, as a clause; None: nothing."""
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"there is no C++ compiler {compiler!r} on this machine"


def fingerprint(value: object, depth: int = 2) -> Hashable:
    """The values that an object's attributes hold, as far as they can enter compiled code.

    Numbers and words count by value, tensors and other objects by identity. So do objects that say that no loss reads
    what they hold (`enters_losses`).

    Args:
        depth: how many levels of attributes of attributes are looked at.
    """
    if isinstance(value, (int, float, complex, str, bytes, bool, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(fingerprint(each, depth) for each in value)
    if isinstance(value, MethodType):
        return fingerprint(value.__self__, depth), value.__func__
    attributes = getattr(value, "__dict__", None)
    if not getattr(value, "enters_losses", True):
        return id(value)
    if depth == 0 or not isinstance(attributes, Mapping) or isinstance(value, (Tensor, nn.Module, type)):
        return id(value)
    state = getattr(value, "server_state", ())  # changes in every round, and is not for clients to read
    found = [(name, fingerprint(each, depth - 1)) for name, each in attributes.items() if name not in state]
    return type(value), tuple(sorted(found, key=lambda item: item[0]))


def _compare(expected: Any, found: Any) -> None:
    """Raise BadInput if results differ by more than rounding, field by field of the outermost tuple."""
    for one, other in zip(expected, found, strict=True):
        tensors = [tensor for tensor in _pytree.tree_leaves(one) if tensor.numel()]
        scale = max((tensor.abs().max().item() for tensor in tensors), default=0.0)
        pairs = zip(tensors, filter(Tensor.numel, _pytree.tree_leaves(other)), strict=True)
        apart = max(((a - b).abs().max().item() for a, b in pairs), default=0.0)
        if isfinite(scale) and not apart <= TOLERANCE * scale:
            differs = f"values up to {scale:.3g} differ by {apart:.3g}"
            raise _refusal(f"the compiled local step gives other results than the uncompiled one: {differs}")


def _copied(outputs: Any) -> Any:
    return _pytree.tree_map(lambda tensor: tensor.detach().clone(), outputs)


def _refusal(why: str) -> BadInput:
    return BadInput(f"= on: must be off, because {why}", "--local.compile")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
