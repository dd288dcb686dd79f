"""Layers that read texts, of one or of several clients. Private, because importing it imports torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.nn.utils.rnn import pack_padded_sequence

_TENSORS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class TextEncoder(nn.Module):
    """Texts, int64 tokens [B, L], to the last states of a bidirectional LSTM over their embeddings, [B, 2 * hidden].

    Token 0 is padding at the end of a text and is not read. A text has at least one other token.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.lstm = BidirectionalLSTM(embedding, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens != 0).sum(1)
        of_all = lengths  # under vmap of all clients, so that all take the same steps
        while is_functorch_wrapped_tensor(of_all):
            of_all = get_unwrapped(of_all)
        last: Tensor = self.lstm(self.embedding(tokens[:, : int(of_all.max())].T), lengths)
        return last


class BidirectionalLSTM(nn.LSTM):
    """A one-layer bidirectional LSTM. It returns the last forward state and the last backward state.

    For one client, PyTorch's code for packed sequences is used, which computes nothing for padding. vmap has no rule
    for it. For several clients the same weights are applied step by step to all sequences, and sequences that have
    ended keep their states. Each step is a separate matrix product, because one product for all steps would make the
    last bits of a client depend on the longest sequence of the others.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """[B, 2 * hidden]

        Args:
            x: [L, B, inputs].
            lengths: [B], the number of inputs that are read, at least 1.
        """
        if is_functorch_wrapped_tensor(x):
            return self._step_by_step(x, lengths)
        _, (last, _) = super().forward(pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False))
        return torch.cat(last.unbind(), dim=1)

    def _step_by_step(self, x: Tensor, lengths: Tensor) -> Tensor:
        # Both directions at once, as [2, ...]; the one that goes backward waits until its sequence has begun.
        w_x, w_h, b_x, b_h = (
            torch.stack([getattr(self, f"{name}_l0"), getattr(self, f"{name}_l0_reverse")]) for name in _TENSORS
        )
        w_x, w_h, bias = w_x.mT, w_h.mT, (b_x + b_h)[:, None]
        is_read = (torch.arange(len(x), device=x.device)[:, None] < lengths)[:, :, None]
        inputs, reads = (torch.stack([each, each.flip(0)], dim=1).unbind() for each in (x, is_read))
        h = c = x.new_zeros(2, x.shape[1], self.hidden_size)
        for now, is_read_now in zip(inputs, reads, strict=True):
            new_h, new_c = _step(now @ w_x + bias + h @ w_h, c)
            h = torch.where(is_read_now, new_h, h)
            c = torch.where(is_read_now, new_c, c)
        return torch.cat(h.unbind(), dim=1)


class TextReader(nn.Module):
    """Texts, int64 tokens [B, L], to the state of an LSTM after each token, [B, L, hidden].

    Token 0 is padding at the end of a text. It is read, but no state before it depends on it.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.lstm = ForwardLSTM(embedding, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.lstm(self.embedding(tokens.T))
        return states.transpose(0, 1)


class ForwardLSTM(nn.LSTM):
    """A one-layer LSTM that reads forward. It returns the state at each place.

    For one client, PyTorch's code is used. vmap has no rule for it. For several clients the same weights are applied
    step by step.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[L, B, hidden], of x [L, B, inputs]."""
        if not is_functorch_wrapped_tensor(x):
            states: Tensor = super().forward(x)[0]
            return states
        w_x, w_h, b_x, b_h = (getattr(self, f"{name}_l0") for name in _TENSORS)
        w_x, w_h, bias = w_x.mT, w_h.mT, b_x + b_h
        h = c = x.new_zeros(x.shape[1], self.hidden_size)
        states_so_far = []
        for now in (x @ w_x + bias).unbind():
            h, c = _step(now + h @ w_h, c)
            states_so_far.append(h)
        return torch.stack(states_so_far)


def _step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next states h and c [..., hidden] of an LSTM, from the inputs of its gates [..., 4 * hidden] and its c."""
    i, f, _, o = _sigmoid(gates).chunk(4, dim=-1)
    g = torch.tanh(gates.chunk(4, dim=-1)[2])
    c = f * c + i * g
    return o * torch.tanh(c), c


def _sigmoid(x: Tensor) -> Tensor:
    """A sigmoid without PyTorch's function, which on CPUs rounds the last elements of a tensor differently."""
    return 0.5 * (1 + torch.tanh(0.5 * x))
