"""Losses of single samples."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] the cross entropy of logits [B, classes] and labels [B], of each sample.

    PyTorch's own cross_entropy is the same, but under vmap it is put together in Python, which takes longer than the
    forward pass of a small network.
    """
    return -log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
