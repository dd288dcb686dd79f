"""Losses per sample, and per place of a sample."""

from __future__ import annotations

from fedmpi.lazy import functional, torch
from fedmpi.typing import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] the cross entropy per sample, of logits [B, classes] and labels [B].

    PyTorch's function; but under vmap a few operations, because PyTorch's decomposition in Python takes longer than
    the forward pass of a small network, and its log_softmax four times as long as logsumexp if there are few classes.

    Raises:
        ValueError: the targets are not labels. PyTorch would take numbers [B, classes] for probabilities.
    """
    from torch._C._functorch import is_batchedtensor

    if labels.dtype != torch.int64 or labels.dim() != 1:
        shape = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        raise ValueError(
            f"cross_entropy needs one label per sample, not {shape}: use self.task.loss(output, batch.y)"
        )
    if is_batchedtensor(logits):
        below = logits - logits.detach().amax(-1, keepdim=True)  # so that small losses are exact
        return below.exp().sum(-1).log() - below.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return functional.cross_entropy(logits, labels, reduction="none")


def cross_entropy_of_places(logits: Tensor, targets: Tensor, dim: int, ignore: int) -> tuple[Tensor, Tensor]:
    """The cross entropy of each place (pixel, token) of a sample, 0 where the target is ignored, and what counts.

    Args:
        logits: [B, ...], with the classes in dimension `dim`.
        targets: int64 [B, ...], the shape of `logits` without dimension `dim`.
        ignore: the target of places that do not count.

    Returns: losses, and 1 for places that count or 0, both of the shape of `targets`.
    """
    counted = targets != ignore
    known = torch.where(counted, targets, 0)
    losses = -functional.log_softmax(logits, dim).gather(dim, known.unsqueeze(dim)).squeeze(dim)
    return torch.where(counted, losses, 0), counted.to(losses.dtype)


def mean_of_places(losses: Tensor, counted: Tensor) -> Tensor:
    """[B] the mean over the places of each sample that count; 0 if none do."""
    return losses.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
