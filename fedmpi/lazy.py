"""PyTorch, imported on first use.

The command line imports every method, model and policy to know their options, and `--help` should not wait for
PyTorch. So these files write `from fedmpi.lazy import torch`. Files that only a run imports write `import torch`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _Lazy(ModuleType):
    """A placeholder for a module, which is imported when an attribute is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":  # requested for every module by `inspect` and others
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
