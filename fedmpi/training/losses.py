"""Losses of single samples."""

from __future__ import annotations

from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] the cross entropy of logits [B, classes] and labels [B], of each sample.

    That of PyTorch; but under vmap, where PyTorch puts it together in Python for longer than the forward pass of a
    small network takes, in three operations.
    """
    if is_batchedtensor(logits):
        return -functional.log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return functional.cross_entropy(logits, labels, reduction="none")
