"""The state of the process under which an experiment runs, whatever its caller has set.

Libraries keep settings for the whole process, and some of them change results or end a run. So an experiment in a
script or in a notebook gives the bits of the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TypeVar

import numpy as np

from fedmpi.lazy import torch
from fedmpi.randomness import globals_kept

T = TypeVar("T")


@contextmanager
def own_state(threads: int | None = None) -> Iterator[None]:
    """Run with PyTorch's and NumPy's settings as they are when a program starts; restore the caller's afterwards.

    They are: PyTorch's default type and default device, autocast, modes without gradients, whether tiny numbers are
    flushed to 0, its threads, and what NumPy does about floating-point errors. The caller's random generators are
    restored as well (`globals_kept`). One thread of the process computes at a time, and others wait.

    Args:
        threads: of PyTorch; None: those of the caller.
    """
    with ExitStack() as stack:
        stack.enter_context(globals_kept())  # first, because another thread may have settings of its own until then
        kind, its_threads, flushes = torch.get_default_dtype(), torch.get_num_threads(), sys.float_info.min / 2 == 0
        for context in (torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, kind)
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_flush_denormal, flushes)
        torch.set_flush_denormal(False)
        stack.callback(torch.set_num_threads, its_threads)
        torch.set_num_threads(threads or its_threads)
        yield


def apart(steps: Generator[T, None, None], threads: int) -> Iterator[T]:
    """Iterate over a generator under `own_state`: the caller has its own state after each step."""
    with closing(steps):
        while True:
            with own_state(threads):
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step
