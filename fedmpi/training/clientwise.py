"""Operations that know which client they are run for, under any unmodified network.

Three things in a network need care. Dropout and noise must be each client's own numbers, the same whether it is
trained alone or beside others: here they are a hash of (client, round, step, layer, element). Where clients are
trained side by side, batch normalisation must leave out the rows that only pad a batch; and, on a CPU, neither
activations nor sums over a batch may round otherwise for the client that happens to lie last in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Of MurmurHash3's 32-bit finaliser (Appleby, 2011), and the golden ratio, which spreads the counter.
_FACTORS = (0x85EBCA6B, 0xC2B2AE35)
_GOLDEN = 0x9E3779B9

# On a CPU, the last elements of a tensor, too few for a vector register, pass through other code in these activations
# than those before, and get other bits. (Tanh, exp, hardswish and others make no difference.)
_UNEVEN = {
    *(torch.sigmoid, Tensor.sigmoid, functional.silu, functional.mish, functional.gelu),
    *(functional.elu, functional.celu, functional.selu, functional.softplus),
}
_VECTOR = 64  # elements: two registers of 512 bits, of bfloat16
# These give [B, K, C, ...], where the sum over a batch takes all clients' channels for one row of vectors: the order
# in which it adds changes towards the end of the row.
_CONVOLUTIONS = {functional.conv1d, functional.conv2d, functional.conv3d}


class ClientWise(TorchFunctionMode):
    """While active, dropout, batch normalisation in training mode and `torch.randn_like` are those of one client.

    Args:
        key: of the client, round and step; below 2^31, an int, or an int32 scalar where clients run side by side.
        real: [B] float32, 1 for the rows of the batch that are samples; None if all are.
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
        self._real = real
        self._names = {id(buffer): name for name, buffer in (buffers or {}).items()}
        self._draws = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.dropout:
            return self._dropout(*args, **(kwargs or {}))
        if func is torch.randn_like:
            return self._noise(*args)
        if self._real is None:
            return func(*args, **(kwargs or {}))
        if func is functional.batch_norm:
            return self._batch_norm(func, self._real, *args, **(kwargs or {}))
        if func in _UNEVEN and self._real.device.type == "cpu":
            return _in_whole_vectors(func, *args, **(kwargs or {}))
        if func in _CONVOLUTIONS and self._real.device.type == "cpu":
            return _convolved_by_client(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        kept = (self._bits(x) >= round(p * 2**31)).view(x.shape)
        return x * kept.to(torch.get_default_dtype()).mul_(1 / (1 - p))  # which bfloat16 would round

    def _noise(self, like: Tensor) -> Tensor:
        # Of 24 bits, the last of them set: neither end of (-1, 1) is reached, and float32 is exact.
        uniform = ((self._bits(like) >> 8) + 0.5) * 2.0**-22 - 1
        return _in_whole_vectors(torch.erfinv, uniform).view(like.shape) * sqrt(2)

    def _bits(self, x: Tensor) -> Tensor:
        """[elements of x] integers below 2^31, others in each call."""
        self._draws += 1
        # In the order of the batch's rows, whatever the memory format, so that rows that pad come last.
        if isinstance(self._key, int) and x.device.type == "cpu":
            return torch.from_numpy(_hashed(self._key, self._draws, x.numel()))
        return _hashed_tensor(torch.as_tensor(self._key, dtype=torch.int32, device=x.device), self._draws, x)

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
        """The same as PyTorch's, over the real rows; one sample alone is normalised by the running statistics."""
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

    def _move(self, buffer: Tensor, towards: Tensor, by: float, if_true: Tensor) -> None:
        name = self._names[id(buffer)]
        before = self.changed.get(name, buffer)  # a loss may run a layer twice
        self.changed[name] = torch.where(if_true, before.lerp(towards.detach(), by), before)


def _in_whole_vectors(func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """func(input), with no element of any client left over."""
    padded = functional.pad(input.flatten(), (0, -input.numel() % _VECTOR))
    return func(padded, *args, **kwargs)[: input.numel()].view(input.shape)


def _convolved_by_client(func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """func(input), where all around it, and their gradients, lie in memory as [K, B, C, ...]."""
    return _by_client(func(_by_client(input), *args, **kwargs))


def _by_client(x: Tensor) -> Tensor:
    return x.flatten().view(x.shape)  # to flatten it under vmap, each client's elements are put in one piece


def _hashed(key: int, layer: int, count: int) -> NDArray[np.int32]:
    """[count] integers below 2^31, a hash of key, layer and position."""
    x = np.arange(count, dtype=np.uint32)
    x *= np.uint32(_GOLDEN)
    x += np.uint32((key + layer * _GOLDEN) & 0xFFFFFFFF)
    shifted = np.empty_like(x)
    for shift, factor in ((16, _FACTORS[0]), (13, _FACTORS[1])):
        np.right_shift(x, np.uint32(shift), out=shifted)
        x ^= shifted
        x *= np.uint32(factor)
    x ^= np.uint32(key)
    np.right_shift(x, np.uint32(16), out=shifted)
    x ^= shifted
    x &= np.uint32(0x7FFFFFFF)
    return x.view(np.int32)


def _hashed_tensor(key: Tensor, layer: int, like: Tensor) -> Tensor:
    """The same, in PyTorch's signed arithmetic, for keys of several clients or on another device."""
    x = torch.arange(prod(like.shape), dtype=torch.int32, device=like.device) * _signed(_GOLDEN)
    x = x + (key + _signed(layer * _GOLDEN))
    for shift, factor in ((16, _FACTORS[0]), (13, _FACTORS[1])):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    x = x ^ key
    return (x ^ _shifted(x, 16)) & 0x7FFFFFFF


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right; PyTorch has only the arithmetic one."""
    return (x >> by) & ((1 << (32 - by)) - 1)


def _signed(bits: int) -> int:
    bits &= 0xFFFFFFFF
    return bits - (1 << 32) if bits >= 1 << 31 else bits
