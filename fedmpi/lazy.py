"""PyTorch, imported when something of it is first used.

The command line imports every method, model and policy to know their options; `--help` shall not wait for PyTorch. So
their files write `from fedmpi.lazy import torch`. Files that only a run imports write `import torch`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _Lazy(ModuleType):
    """Stands for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":  # asked of every module by `inspect` and the like
            raise AttributeError(name)
        found = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, found)
        return found


if TYPE_CHECKING:
    import torch as torch
    from torch import nn as nn
    from torch.nn import functional as functional
else:
    torch, nn, functional = (_Lazy(name) for name in ("torch", "torch.nn", "torch.nn.functional"))
