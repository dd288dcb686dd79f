"""Losses per sample."""

from __future__ import annotations

from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] the cross entropy per sample, of logits [B, classes] and labels [B].

    PyTorch's function; but under vmap three operations, because PyTorch's decomposition in Python takes longer than
    the forward pass of a small network.
    """
    if is_batchedtensor(logits):
        return -functional.log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return functional.cross_entropy(logits, labels, reduction="none")
