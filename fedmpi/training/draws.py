"""PyTorch's random functions for one client: each number is a hash of (client, round, step, draw, element).

A network that calls them gets the same numbers on any rank, whether the client is trained alone or together with
others. `RANDOM` lists the functions; `fedmpi.training.clientwise` uses them instead of PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod, sqrt
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# Of MurmurHash3's 32-bit finaliser (Appleby, 2011), and the golden ratio, which spreads the counter.
_FACTORS = (0x85EBCA6B, 0xC2B2AE35)
_GOLDEN = 0x9E3779B9
# Value of a switched-off unit in a self-normalising network (Klambauer et al., 2017).
_ALPHA = 1.7580993408473766
_VECTOR = 64  # elements: two registers of 512 bits, of bfloat16

Size = int | Sequence[int]


class Draws:
    """The random numbers of one client in one step, a new set in each call.

    Args:
        key: of the client, round and step; below 2^31. An int, or an int32 scalar if clients are trained together.

    Attributes:
        count: number of sets that have been drawn.
    """

    def __init__(self, key: int | Tensor) -> None:
        self.count = 0
        self._key = key

    def bits(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Integers below 2^31, int32 of this shape.

        They are numbered in the order of the batch's rows, whatever the memory format, so padding rows come last.
        """
        self.count += 1
        place, count = torch.get_default_device() if device is None else torch.device(device), prod(shape)
        if isinstance(self._key, int) and place.type == "cpu":
            return torch.from_numpy(_hashed(self._key, self.count, count)).view(*shape)
        key = self._key
        if isinstance(key, int):
            key = torch.full((), key, dtype=torch.int32, device=place)  # which copies nothing to a GPU
        return _hashed_tensor(key, self.count, count, place).view(*shape)

    def uniform(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Float32 in [0, 1), multiples of 2^-24."""
        return (self.bits(shape, device) >> 7) * 2.0**-24

    def inner(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Float32 in (0, 1), without both ends."""
        return ((self.bits(shape, device) >> 8) + 0.5) * 2.0**-23

    def normal(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Float32 from the standard normal distribution."""
        return in_whole_vectors(torch.erfinv, self.inner(shape, device) * 2 - 1) * sqrt(2)

    def exponential(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Float32 above 0 from the exponential distribution of rate 1."""
        return -in_whole_vectors(torch.log, self.inner(shape, device))


def in_whole_vectors(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """func(...), an elementwise function, on tensors that are padded to whole vector registers of the processor.

    PyTorch uses other code for the remaining elements, which gives other bits.
    """
    shape = torch.broadcast_shapes(*(x.shape for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))
    count = prod(shape)

    def filled(x: Any) -> Any:
        return functional.pad(x.expand(shape).flatten(), (0, -count % _VECTOR)) if isinstance(x, Tensor) else x

    result = func(*map(filled, args), **{name: filled(x) for name, x in kwargs.items()})
    return result[:count].view(shape)


@cache
def body_of(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `torch.nn.functional` without its first lines, which dispatch it to a mode.

    So the mode stays active for the functions that it calls.
    """
    assert isinstance(func, FunctionType)
    names = {name: _never for name in func.__globals__ if name.startswith("has_torch_function")}
    copied = FunctionType(func.__code__, {**func.__globals__, **names}, func.__name__, func.__defaults__)
    copied.__kwdefaults__ = func.__kwdefaults__
    return copied


def _never(*tensors: object) -> bool:
    return False


# Dropout


def _dropout(draws: Draws, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _dropped(draws, input, p, training, input.shape, inplace)


def _core_dropout(draws: Draws, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropped(draws, input, p, train, input.shape)


def _core_feature_dropout(draws: Draws, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropped(draws, input, p, train, _of_features(input))


def _feature_dropout(without_batch: int) -> Callable[..., Tensor]:
    """Dropout of whole channels; the number is that of the input's dimensions without a batch."""

    def rule(draws: Draws, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return _dropped(draws, input, p, training, _of_features(input, input.dim() == without_batch), inplace)

    return rule


def _dropped(
    draws: Draws, input: Tensor, p: float, training: bool, shape: Sequence[int], inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return input
    kept = draws.bits(shape, input.device) >= round(p * 2**31)
    scale = kept.to(torch.get_default_dtype()).mul_(1 / (1 - p) if p < 1 else 0)  # which bfloat16 would round
    return input.mul_(scale) if inplace else input * scale


def _alpha_dropout(
    draws: Draws, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _switched_off(draws, input, p, training, input.shape, inplace)


def _feature_alpha_dropout(
    draws: Draws, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _switched_off(draws, input, p, training, _of_features(input), inplace)


def _core_alpha_dropout(draws: Draws, input: Tensor, p: float, train: bool) -> Tensor:
    return _switched_off(draws, input, p, train, input.shape)


def _core_feature_alpha_dropout(draws: Draws, input: Tensor, p: float, train: bool) -> Tensor:
    return _switched_off(draws, input, p, train, _of_features(input))


def _switched_off(
    draws: Draws, input: Tensor, p: float, training: bool, shape: Sequence[int], inplace: bool = False
) -> Tensor:
    """Alpha dropout, which keeps mean and variance of a self-normalising network's units."""
    if not training or p == 0:
        return input
    if p == 1:
        return input.mul_(0) if inplace else input * 0
    kept = (draws.bits(shape, input.device) >= round(p * 2**31)).to(torch.get_default_dtype())
    a = 1 / sqrt((_ALPHA * _ALPHA * p + 1) * (1 - p))
    off = (kept - 1) * (_ALPHA * a) + _ALPHA * a * p
    return input.mul_(kept * a).add_(off) if inplace else input * (kept * a) + off


def _of_features(input: Tensor, is_alone: bool = False) -> tuple[int, ...]:
    """The shape of one number per channel and sample; for one sample without a batch, per channel."""
    lead = 1 if is_alone else 2
    return (*input.shape[:lead], *[1] * (input.dim() - lead))


# Other functions


def _rrelu(
    draws: Draws,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    slopes = draws.uniform(input.shape, input.device) * (upper - lower) + lower if training else (lower + upper) / 2
    return (
        input.mul_(torch.where(input >= 0, 1, slopes)) if inplace else torch.where(input >= 0, input, input * slopes)
    )


def _attention(
    draws: Draws,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot products [..., L, E], with dropout of the weights."""
    if dropout_p == 0:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        key, value = (x.repeat_interleave(query.size(-3) // x.size(-3), -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    return _dropout(draws, scores.softmax(-1), dropout_p).to(value.dtype) @ value


def _rand(draws: Draws, *size: Any, **options: Any) -> Tensor:
    return _made(draws.uniform, *size, **options)


def _randn(draws: Draws, *size: Any, **options: Any) -> Tensor:
    return _made(draws.normal, *size, **options)


def _rand_like(draws: Draws, input: Tensor, **options: Any) -> Tensor:
    return _made_like(draws.uniform, input, **options)


def _randn_like(draws: Draws, input: Tensor, **options: Any) -> Tensor:
    return _made_like(draws.normal, input, **options)


def _randint(
    draws: Draws,
    *args: Any,
    low: int | None = None,
    high: int | None = None,
    size: Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    limits = [x for x in (*args, low, high) if isinstance(x, int)]
    (shape,) = [x for x in (*args, size) if x is not None and not isinstance(x, int)]
    first, last = (0, *limits)[-2:]
    options = {"dtype": torch.int64} | options
    return _made(lambda shape, device: _below(draws, first, last, shape, device), shape, **options)


def _randint_like(draws: Draws, input: Tensor, low: int, high: int | None = None, **options: Any) -> Tensor:
    low, high = (0, low) if high is None else (low, high)
    return _made_like(lambda shape, device: _below(draws, low, high, shape, device), input, **options)


def _randperm(draws: Draws, n: int, **options: Any) -> Tensor:
    options = {"dtype": torch.int64} | options
    return _made(lambda shape, device: draws.bits(shape, device).sort(stable=True).indices, n, **options)


def _normal(
    draws: Draws, mean: Tensor | float, std: Tensor | float = 1.0, size: Size | None = None, **options: Any
) -> Tensor:
    given = [x for x in (mean, std) if isinstance(x, Tensor)]
    if not given:
        assert size is not None
        return _made(lambda shape, device: draws.normal(shape, device) * std + mean, size, **options)
    shape = torch.broadcast_shapes(*[x.shape for x in given])
    with torch.no_grad():
        return draws.normal(shape, given[0].device).to(given[0].dtype) * std + mean


def _bernoulli(draws: Draws, input: Tensor, p: float | None = None) -> Tensor:
    with torch.no_grad():
        return (draws.uniform(input.shape, input.device) < (input if p is None else p)).to(input.dtype)


def _multinomial(draws: Draws, input: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    with torch.no_grad():
        if not replacement:  # whose clock rings first, if clocks run at these rates
            return (input / draws.exponential(input.shape, input.device)).topk(num_samples, -1).indices
        shares = (input.cumsum(-1) / input.sum(-1, keepdim=True))[..., None, :]
        drawn = draws.uniform((*input.shape[:-1], num_samples), input.device)[..., None]
        return (shares <= drawn).sum(-1).clamp(max=input.size(-1) - 1)


def _fill_bernoulli(draws: Draws, self: Tensor, p: Tensor | float = 0.5) -> Tensor:
    return _fill(self, (draws.uniform(self.shape, self.device) < p).to(self.dtype))


def _fill_uniform(draws: Draws, self: Tensor, *limits: float, **named: float) -> Tensor:
    low, high = (*limits, *(0.0, 1.0)[len(limits) :])
    low, high = named.get("from", low), named.get("to", high)
    return _fill(self, draws.uniform(self.shape, self.device) * (high - low) + low)


def _fill_normal(draws: Draws, self: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return _fill(self, draws.normal(self.shape, self.device) * std + mean)


def _fill_exponential(draws: Draws, self: Tensor, lambd: float = 1.0) -> Tensor:
    return _fill(self, draws.exponential(self.shape, self.device) / lambd)


def _fill(self: Tensor, values: Tensor) -> Tensor:
    with torch.no_grad():
        return self.copy_(values)


def _below(draws: Draws, low: int, high: int, shape: Sequence[int], device: torch.device | str | None) -> Tensor:
    """Integers from `low` to below `high`; the range must be smaller than 2^32."""
    return low + (draws.bits(shape, device).long() * (high - low) >> 31)


def _made(
    draw: Callable[[Sequence[int], torch.device | str | None], Tensor],
    *size: Any,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    requires_grad: bool = False,
    **options: Any,
) -> Tensor:
    """A new tensor with the arguments of PyTorch's constructors: its size, and options for its memory layout."""
    shape = options.pop("size", size)
    if len(shape) == 1 and not isinstance(shape[0], int):
        (shape,) = shape
    made = draw(tuple(shape), device).to(dtype or torch.get_default_dtype())
    return made.requires_grad_() if requires_grad else made


def _made_like(
    draw: Callable[[Sequence[int], torch.device | str | None], Tensor],
    input: Tensor,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Tensor:
    return draw(input.shape, device or input.device).to(dtype or input.dtype)


#: PyTorch's random functions, and what draws in their place: (draws, their arguments) -> their result. Functions that
#: are missing here (`torch.poisson`, say) draw from PyTorch's own generator, which is seeded per client where clients
#: are trained one after another, because vmap refuses them.
RANDOM: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.dropout: _dropout,
    functional.dropout1d: _feature_dropout(2),
    functional.dropout2d: _feature_dropout(0),  # which takes three dimensions for a batch, too
    functional.dropout3d: _feature_dropout(4),
    functional.alpha_dropout: _alpha_dropout,
    functional.feature_alpha_dropout: _feature_alpha_dropout,
    torch.dropout: _core_dropout,
    torch.feature_dropout: _core_feature_dropout,
    torch.alpha_dropout: _core_alpha_dropout,
    torch.feature_alpha_dropout: _core_feature_alpha_dropout,
    functional.rrelu: _rrelu,
    functional.scaled_dot_product_attention: _attention,
    torch.rand: _rand,
    torch.randn: _randn,
    torch.rand_like: _rand_like,
    torch.randn_like: _randn_like,
    torch.randint: _randint,
    torch.randint_like: _randint_like,
    torch.randperm: _randperm,
    torch.normal: _normal,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    torch.multinomial: _multinomial,
    Tensor.multinomial: _multinomial,
    Tensor.bernoulli_: _fill_bernoulli,
    Tensor.uniform_: _fill_uniform,
    Tensor.normal_: _fill_normal,
    Tensor.exponential_: _fill_exponential,
}
#: Functions written in Python that call some of them.
COMPOSED: set[Callable[..., Any]] = {functional.gumbel_softmax, functional.multi_head_attention_forward}


def _hashed(key: int, draw: int, count: int) -> NDArray[np.int32]:
    """[count] integers below 2^31, a hash of key, draw and position."""
    x = np.arange(count, dtype=np.uint32)
    x *= np.uint32(_GOLDEN)
    x += np.uint32((key + draw * _GOLDEN) & 0xFFFFFFFF)
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


def _hashed_tensor(key: Tensor, draw: int, count: int, device: torch.device) -> Tensor:
    """The same, in PyTorch's signed arithmetic, for keys of several clients or on another device."""
    # In this order, because compiled code rounds a large number that is added to one number per client to float32.
    x = torch.arange(count, dtype=torch.int32, device=device) * _signed(_GOLDEN) + _signed(draw * _GOLDEN) + key
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
