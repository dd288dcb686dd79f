"""A pretend GPU: tensors that say they are on cuda:0, compute on the CPU, and keep a GPU's rules.

    with pretend_gpu() as gpu:
        x = torch.ones(3, device="cuda")
        x + torch.ones(3)  # RuntimeError: tensors are on different devices
        x.sum().item()
        gpu.counts.synchronisations  # 1

Results have the bits of the CPU, except for recurrent layers, which have a kernel of their own there. What it cannot
show: the bits and the speed of a GPU's kernels, automatic mixed precision, and streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

CUDA = torch.device("cuda", 0)
#: PyTorch's own code takes the tensors for those of this device. It needs no driver, no package uses it, and the
#: backward pass of its tensors runs in the calling thread. So composite functions make tensors that can be told from
#: the host's.
WITHIN = torch.device("lazy", 0)

aten = torch.ops.aten
#: On a GPU the host waits for the result of these, because it is a number or the shape of a tensor.
WAITS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
    aten.bincount,
    aten.histc,
}
#: These take the lengths of sequences from the host, and leave the sizes of batches there.
PACKED = {aten._pack_padded_sequence, aten._pad_packed_sequence, aten._pack_padded_sequence_backward}
#: These take tensors of two devices: what they write to has a device of its own.
COPIES = {aten._to_copy, aten.copy_, aten.copy}
#: These look only at the shape and type of a tensor.
SHAPES = {
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like),
    *(aten.new_empty, aten.new_empty_strided, aten.new_zeros, aten.new_ones, aten.new_full),
}
#: Everywhere else a GPU takes a scalar of the host for a number.
NO_NUMBERS = {
    *(aten.cat, aten.stack, aten.index_select, aten.gather, aten.scatter, aten.scatter_),
    *(aten.scatter_add, aten.scatter_add_, aten.index_add, aten.index_add_, aten.index_copy, aten.index_copy_),
}
#: The indices of these may be in the host's memory.
INDEXES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


@dataclass
class Counts:
    """What happened on the device.

    Attributes:
        operations: kernels and views.
        uploads, downloads: copies to the device, and from it.
        uploaded, downloaded: their bytes.
        synchronisations: how often the host waited for the device: for a number, and for a copy, unless its memory is
            pinned and it is asked for with `non_blocking`.
    """

    operations: int = 0
    uploads: int = 0
    downloads: int = 0
    uploaded: int = 0
    downloaded: int = 0
    synchronisations: int = 0

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(mine - its for mine, its in zip(astuple(self), astuple(other), strict=True)))


class Pretend(Tensor):
    """A tensor on the device, around one in the host's memory."""

    inner: Any  # the tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretend:
        # Never an inference tensor, because views of ordinary tensors are none either.
        with torch.inference_mode(False):
            made: Pretend = Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                layout=inner.layout,
                device=WITHIN,
            )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} of a tensor on the pretend GPU, outside of `pretend_gpu`")

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"Pretend({self.inner})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Pretend):
            raise RuntimeError("the data of a tensor on a GPU cannot be in the host's memory")
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def to(self, *args: Any, **options: Any) -> Tensor:
        # A tensor that is already there is not copied.
        return Tensor.to(self, *map(_within, args), **{name: _within(value) for name, value in options.items()})

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *args: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
        copied = self.detach().clone()
        memo[id(self)] = copied = nn.Parameter(copied, self.requires_grad) if hasattr(self, "_is_param") else copied
        return copied

    # With these, `module.to` exchanges what is in a parameter, and shared parameters stay shared.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *context: Any) -> Pretend:
        return Pretend(parts["inner"])


class Device(TorchDispatchMode):
    """Runs and counts all operations.

    Attributes:
        counts: what has happened.
        log: the copies and synchronisations in their order, with the bytes of copies.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.log: list[tuple[str, int]] = []

    def so_far(self) -> Counts:
        """The counts as they are now."""
        return replace(self.counts)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        packet, asked = func.overloadpacket, kwargs.get("device")
        if packet is aten.is_pinned:
            return hasattr(args[0], "pinned")
        if packet is aten._pin_memory or kwargs.get("pin_memory"):
            made = args[0].clone() if packet is aten._pin_memory else func(*args, **kwargs | {"pin_memory": False})
            made.pinned = True
            return made
        here = [x for x in tree_iter((args, kwargs)) if isinstance(x, Pretend)]
        is_made_here = bool(here) if asked is None else torch.device(asked).type in ("cuda", "lazy")
        if not here and not is_made_here:
            return func(*args, **kwargs)
        if packet in (aten.copy_, aten.copy):
            is_made_here = isinstance(args[0], Pretend)
        elif packet not in COPIES | SHAPES | PACKED:
            self._refuse_mixing(func, packet, args, kwargs)
        self.counts.operations += 1
        wrappers = {id(x.inner): x for x in here}
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        self._count(packet, args, kwargs, is_made_here)
        if not is_made_here:
            return result
        if packet is aten._pack_padded_sequence:
            return Pretend(result[0]), result[1]

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return wrappers[id(x)] if id(x) in wrappers else Pretend(x)  # itself, where it was changed in place

        return tree_map(wrapped, result)

    def _refuse_mixing(self, func: Any, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if packet in INDEXES and isinstance(args[0], Pretend):
            args = (args[0], *args[2:])
        others = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, Pretend)]
        if strange := [x for x in others if x.dim() or x.device.type != "cpu" or packet in NO_NUMBERS]:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and"
                f" {strange[0].device}! ({func}, {list(strange[0].shape)})"
            )

    def _count(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_made_here: bool) -> None:
        if packet in COPIES:
            source = args[0] if packet is aten._to_copy else args[1]
            if isinstance(source, Pretend) != is_made_here:
                others = [x for x in args[:2] if hasattr(x, "pinned")]
                in_order = bool(others) and (kwargs.get("non_blocking", False) or args[2:] == (True,))
                self._copied(source, is_made_here, waits=not in_order)
        elif packet in INDEXES:
            for index in args[1]:
                if isinstance(index, Pretend) and index.dtype in (torch.bool, torch.uint8):
                    self._waited(packet)
                elif isinstance(index, Tensor) and not isinstance(index, Pretend):
                    self._copied(index, is_up=True, waits=True)
        elif packet in WAITS:
            self._waited(packet)

    def _copied(self, source: Tensor, is_up: bool, waits: bool) -> None:
        size = source.numel() * source.element_size()
        if is_up:
            self.counts.uploads += 1
            self.counts.uploaded += size
        else:
            self.counts.downloads += 1
            self.counts.downloaded += size
        self.counts.synchronisations += waits
        self.log.append(("up" if is_up else "down", size))

    def _waited(self, packet: Any) -> None:
        self.counts.synchronisations += 1
        self.log.append((str(packet), 0))


def _within(x: Any) -> Any:
    if isinstance(x, str):
        x = torch.device(x)
    return WITHIN if isinstance(x, torch.device) and x.type == "cuda" else x


def _inner(x: Any) -> Any:
    if isinstance(x, Pretend):
        return x.inner
    return torch.device("cpu") if isinstance(x, torch.device) and x.type in ("cuda", "lazy") else x


@cache
def _is_composite(func: Any) -> bool:
    """Whether it only calls others. Autograd takes such functions apart; without it they come here as they are."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


#: What `torch.cuda` says and does.
_CUDA: dict[str, Any] = {
    "_lazy_init": lambda *arguments: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda *arguments: None,
    "get_device_properties": lambda device=None: SimpleNamespace(name="Pretend", uuid="", major=0, minor=0),
    "get_device_name": lambda device=None: "Pretend",
    "manual_seed": lambda *arguments: None,
    "manual_seed_all": lambda *arguments: None,
    "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda *arguments: None,
}


@contextmanager
def pretend_gpu() -> Iterator[Device]:
    """While it is active, there is one GPU."""
    torch._C._ensureCUDADeviceGuardSet()
    lifts_only_host = torch._C._only_lift_cpu_tensors()
    with ExitStack() as patches:
        patches.enter_context(torch.backends.cudnn.flags(enabled=False))
        for name, value in _CUDA.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, value))
        # torch.tensor(..., device="cuda") is then made on the host, and copied.
        patches.callback(torch._C._set_only_lift_cpu_tensors, lifts_only_host)
        torch._C._set_only_lift_cpu_tensors(True)
        yield patches.enter_context(Device())
