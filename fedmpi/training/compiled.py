"""The step of clients side by side in machine code of its own, made by `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from fedmpi.errors import BadInput

P = ParamSpec("P")
R = TypeVar("R")


def compiled(step: Callable[P, R]) -> Callable[P, R]:
    """`step`, to be compiled when it is first called with tensors of certain shapes.

    What cannot be compiled as a whole is an error then; nothing is run uncompiled instead.

    Raises:
        BadInput: nothing can be compiled on this machine.
    """
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # no helper processes beside every rank
    torch.compiler.reset()  # PyTorch compiles a function a few times only: forget earlier experiments
    try:
        torch.compile(_trial)(torch.zeros(16))
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(f"= true: PyTorch cannot compile on this machine ({why})", "--local.compile") from None
    return torch.compile(step, fullgraph=True, dynamic=False)


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x + 1
