"""Operations that are run for one client each, under an unmodified network.

Random functions must give each client its own numbers, whether it is trained alone or together with others
(`fedmpi.training.draws`). If clients are trained together, there is more to do. Normalisation over a batch must leave
out padding rows. The padding row of an embedding must get no gradient, which PyTorch's vmap forgets for all clients
but the first. On a CPU, activations and sums over a batch must not round differently for the client that is last in
memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_get_bdim
from torch.nn import functional
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from fedmpi.training.draws import COMPOSED, RANDOM, Draws, body_of, in_whole_vectors

# On a CPU, these functions use other code for the last elements of a tensor, which do not fill a vector register, and
# give other bits. (Tanh, exp, erf, hardswish and others do not.)
_NAMES = ("sigmoid", "exp2", "atanh", "arctanh", "pow", "float_power", "atan2", "arctan2", "logaddexp", "logaddexp2")
_UNEVEN = {
    *(getattr(place, name) for place in (torch, Tensor) for name in _NAMES),
    *(Tensor.__pow__, Tensor.__rpow__, torch.special.exp2, torch.special.expit, torch.celu, torch.selu),
    *(functional.silu, functional.mish, functional.gelu, functional.softplus),
    *(functional.elu, functional.celu, functional.selu),
}
# The same in place.
_UNEVEN_IN_PLACE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    **{getattr(Tensor, f"{name}_"): getattr(Tensor, name) for name in _NAMES if hasattr(Tensor, f"{name}_")},
    Tensor.__ipow__: Tensor.pow,
    torch.sigmoid_: torch.sigmoid,
    torch.exp2_: torch.exp2,
    functional.elu_: functional.elu,
    torch.celu_: torch.celu,
    torch.selu_: torch.selu,
}
# These return [B, K, C, ...]. A sum over the batch treats all clients' channels as one row, and the order of
# additions changes towards the end of the row.
_CONVOLUTIONS = {functional.conv1d, functional.conv2d, functional.conv3d}
# A tensor made by one of these may be filled with random numbers, which takes memory for each client.
_UNFILLED = {torch.empty, torch.empty_like, Tensor.new_empty}


class ClientWise(TorchFunctionMode):
    """While it is active, random functions and normalisation over a batch are those of one client.

    Args:
        key: of the client, round and step; below 2^31. An int, or an int32 scalar if clients are trained together.
        real: [B] float32, 1 for rows of the batch that are samples, 0 for padding; None: all rows are samples.
        buffers: the network's buffers by name; running statistics among them are not changed in place.

    Attributes:
        changed: the new values of buffers, by name.
    """

    def __init__(
        self, key: int | Tensor, real: Tensor | None = None, buffers: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.changed: dict[str, Tensor] = {}
        self._key = key
        self._draws = Draws(key)
        self._real = real
        self._names = {id(buffer): name for name, buffer in (buffers or {}).items()}

    @property
    def has_drawn(self) -> bool:
        """Whether a random function was called."""
        return self._draws.count > 0

    def from_here(self) -> ClientWise:
        """Another one that draws what this one draws next, and does the same otherwise."""
        other = copy.copy(self)
        other._draws = copy.copy(self._draws)
        return other

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if (drawn := RANDOM.get(func)) and not kwargs.get("generator"):
            return drawn(self._draws, *args, **kwargs)
        if func in COMPOSED:
            with self:
                return body_of(func)(*args, **kwargs)
        if self._real is None:
            return func(*args, **kwargs)
        if func is functional.batch_norm:
            return self._batch_norm(func, self._real, *args, **kwargs)
        if func is functional.instance_norm:
            return self._instance_norm(func, self._real, *args, **kwargs)
        if func is functional.embedding:
            return _embedding(func, *args, **kwargs)
        if func in _UNFILLED:
            made = func(*args, **kwargs)
            return made.zero_() + self._key * 0 if made.is_floating_point() else made
        if self._real.device.type != "cpu":
            return func(*args, **kwargs)
        if func in _UNEVEN:
            return in_whole_vectors(func, *args, **kwargs)
        if func in _UNEVEN_IN_PLACE:
            return args[0].copy_(in_whole_vectors(_UNEVEN_IN_PLACE[func], *args, **kwargs))
        if func in _CONVOLUTIONS:
            return _convolved_by_client(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        func: Callable[..., Tensor],
        is_real: Tensor,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Like PyTorch's, over the real rows. A single sample is normalised by the running statistics."""
        if not training:
            return func(x, running_mean, running_var, weight, bias, False, momentum, eps)
        others = [dimension for dimension in range(x.dim()) if dimension != 1]
        wide = [1, -1] + [1] * (x.dim() - 2)
        rows = is_real.sum()
        real = is_real.view(-1, *[1] * (x.dim() - 1))
        count = rows * x[0, 0].numel()
        mean = (x * real).sum(others) / count
        centred = x - mean.view(wide)
        var = (centred.square() * real).sum(others) / count
        if running_mean is not None and running_var is not None:
            unbiased = var * count / (count - 1).clamp(min=1)
            several = rows > 1
            self._move(running_mean, mean, momentum, several)
            self._move(running_var, unbiased, momentum, several)
            centred = torch.where(several, centred, x - running_mean.view(wide))
            var = torch.where(several, var, running_var)
        result = centred * (var + eps).rsqrt().view(wide)
        if weight is not None:
            result = result * weight.view(wide)
        return result if bias is None else result + bias.view(wide)

    def _instance_norm(
        self,
        func: Callable[..., Tensor],
        is_real: Tensor,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Like PyTorch's. Running statistics move towards the mean over the real rows."""
        if running_mean is not None and running_var is not None and use_input_stats:
            places, share = list(range(2, input.dim())), is_real / is_real.sum()
            for buffer, of_rows in ((running_mean, input.mean(places)), (running_var, input.var(places))):
                self._move(buffer, share @ of_rows, momentum, torch.ones_like(share[0], dtype=torch.bool))
            running_mean = running_var = None
        return func(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)

    def _move(self, buffer: Tensor, towards: Tensor, by: float, if_true: Tensor) -> None:
        name = self._names[id(buffer)]
        before = self.changed.get(name, buffer)  # a loss may run a layer twice
        self.changed[name] = torch.where(if_true, before.lerp(towards.detach(), by), before)


class Keyed:
    """The steps of one client that is trained alone, each under its own `ClientWise` if anything is random.

    If a network draws nothing in its first step, its operations are not intercepted in later steps, to save time.

    Args:
        key: of the client and round.
    """

    def __init__(self, key: int) -> None:
        self._key = key
        self._first: ClientWise | None = None

    def step(self, number: int) -> AbstractContextManager[object]:
        """The context in which the step of this number (from 0) computes its losses."""
        if self._first is not None and not self._first.has_drawn:
            return nullcontext()
        mode = ClientWise((self._key + number) & 0x7FFFFFFF)
        self._first = self._first or mode
        return mode


def drawn_again() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """The contexts of a part of a forward pass, and of its second time in the backward pass, which draws the same.

    It is the `context_fn` of `torch.utils.checkpoint`.
    """
    modes = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, ClientWise)]
    return nullcontext(), modes[-1].from_here() if modes else nullcontext()


def _embedding(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Like PyTorch's, and no gradient flows into the padding row."""
    rows = func(input, _shared_table(weight), None, *args, **kwargs)
    if padding_idx is None:
        return rows
    is_padding = input == padding_idx % weight.size(0)
    return torch.where(is_padding[..., None], rows.detach(), rows)


def _shared_table(table: Tensor) -> Tensor:
    """The table itself if all clients share it; PyTorch's vmap would make a copy for each client to look rows up."""
    if torch.compiler.is_compiling() or not is_batchedtensor(table):
        return table
    of_all, clients = get_unwrapped(table), maybe_get_bdim(table)
    return table if of_all.stride(clients) else of_all.select(clients, 0)


def _convolved_by_client(func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """func(input), with inputs, outputs and their gradients in memory as [K, B, C, ...]."""
    return _by_client(func(_by_client(input), *args, **kwargs))


def _by_client(x: Tensor) -> Tensor:
    return x.flatten().view(x.shape)  # each client's elements are made contiguous, to flatten them under vmap
