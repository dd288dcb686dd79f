"""The positions of a model's tensors in its flat vector.

One float32 vector [P] holds a model: its parameters (the first `parameters` elements), then its floating-point
buffers. Segments are ordered so that every part that a method handles separately is a slice:

    head        parameters of the last fully connected layer, unless another layer shares them
    body        all other parameters
    norm        parameters of normalisation layers
    statistics  floating-point buffers (running mean and variance)

Layers are recognised by type, not by name: a ResNet's shortcut normalisation is called `downsample.1`.

Frozen parameters (`requires_grad` is False) and constant buffers, such as an attention mask, are not part of the
vector. They stay in the network, and all clients share them. So no optimizer, noise, attack or mean can change them,
and they are never sent.

Convolution weights [O, I, H, W] are stored as [O, H, W, I], PyTorch's channels_last order, with which training on
CPUs is a quarter faster. The **canonical** vector, as written to files and hashed, has every tensor row-major in its
PyTorch shape.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedmpi.errors import BadInput

NORMALISATIONS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
SEGMENTS = ("head", "body", "norm", "statistics")
_MARK = "_is_the_head"

#: Some columns of a model's vector, ascending.
Columns: TypeAlias = slice | NDArray[np.int64]


def runs(columns: Columns) -> list[slice]:
    """The contiguous parts of some columns, which take much less time to copy than single columns."""
    if isinstance(columns, slice):
        return [columns]
    parts = np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1)
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts if len(part)] or [slice(0, 0)]


@dataclass(frozen=True)
class Entry:
    """One tensor of the model: elements [offset, offset + size) of the vector."""

    name: str
    shape: tuple[int, ...]
    offset: int
    segment: str
    channels_last: bool

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def columns(self) -> slice:
        """Its columns in the vector."""
        return slice(self.offset, self.offset + self.size)

    @property
    def is_parameter(self) -> bool:
        return self.segment != "statistics"

    def lies_in(self, columns: Iterable[slice]) -> bool:
        """Whether these columns, which are whole tensors, contain this tensor."""
        return any(part.start <= self.offset < part.stop for part in columns)

    def view(self, vector: Tensor) -> Tensor:
        """The tensor in its PyTorch shape, as a view of `vector` [..., P]."""
        part = vector[..., self.offset : self.offset + self.size]
        lead = part.shape[:-1]
        if not self.channels_last:
            return part.view((*lead, *self.shape))
        out, into, height, width = self.shape
        return part.view(*lead, out, height, width, into).movedim(-1, -3)


@dataclass(frozen=True)
class Layout:
    """The entries of a model in the order of its vector.

    Attributes:
        size: P, the length of the vector.
        parameters: number of the first elements that are trained; the others are buffers.
        segments: name -> slice of the vector.
        frozen: the network's tensors that are not part of the vector, by name.
    """

    entries: tuple[Entry, ...]
    segments: dict[str, slice]
    frozen: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def size(self) -> int:
        return self.segments["statistics"].stop

    @property
    def parameters(self) -> int:
        return self.segments["statistics"].start

    @property
    def frozen_arrays(self) -> dict[str, NDArray[Any]]:
        """`frozen` as arrays of the host, which are views of it on a CPU."""
        return {name: tensor.numpy(force=True) for name, tensor in self.frozen.items()}

    @property
    def variances(self) -> list[slice]:
        """The columns of running variances, which must not be negative."""
        entries = [entry for entry in self.entries if entry.name.rpartition(".")[2] == "running_var"]
        return [entry.columns for entry in entries]

    @property
    def normalisations(self) -> list[dict[str, slice]]:
        """For each normalisation layer, in the model's order: weight, bias, running_mean, ... and their columns."""
        layers: dict[str, dict[str, slice]] = {}
        for entry in self.entries:
            layer, _, name = entry.name.rpartition(".")
            if entry.segment == "norm" or name in ("running_mean", "running_var"):
                layers.setdefault(layer, {})[name] = entry.columns
        return list(layers.values())

    def extent(self, columns: Columns | int) -> tuple[int, int]:
        """The number of columns, and how many of them are parameters; for a plain length both are the length."""
        if isinstance(columns, int):
            return columns, columns
        if isinstance(columns, np.ndarray):
            return len(columns), int(np.searchsorted(columns, self.parameters))
        start, stop, _ = columns.indices(self.size)
        return stop - start, min(max(self.parameters - start, 0), stop - start)

    def name_at(self, place: int, columns: Columns = slice(None)) -> str:
        """The name of the tensor that an element of these columns belongs to."""
        column = np.arange(self.size)[columns][place]
        return next(entry.name for entry in self.entries if entry.columns.start <= column < entry.columns.stop)

    @classmethod
    def of(cls, module: nn.Module, constant: Collection[str] = ()) -> Layout:
        """The layout of a network.

        Args:
            constant: names of the buffers that training does not change.

        Raises:
            BadInput: the network has tensors of other types than float32, or that cannot be trained, or nothing to
                train.
        """
        head = head_of(module)
        if head is not None and _shares_parameters(module, head):
            head = None

        def segment_of(parameter: str) -> str:
            # A parametrization (torch.nn.utils.parametrizations) keeps what the parameter is made of in a submodule.
            layer, is_made, _ = f".{parameter}".partition(".parametrizations.")
            owner = module.get_submodule((layer if is_made else layer.rpartition(".")[0])[1:])
            return "norm" if isinstance(owner, NORMALISATIONS) else "head" if owner is head else "body"

        # Constants that a module keeps out of its state_dict (a positional encoding, say) are not the model's state.
        state = module.state_dict().keys()
        buffers = [(name, b) for name, b in module.named_buffers() if _is_number(b) and name in state]
        parameters = list(module.named_parameters())
        _check_kinds([*(("parameter", *p) for p in parameters), *(("buffer", *b) for b in buffers)])
        trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        if not any(parameter.numel() for _, parameter in trained):
            frozen_too = ": all are frozen (requires_grad is False)" if parameters else ""
            raise BadInput(f"has no parameters to train{frozen_too}")
        frozen = dict(p for p in parameters if not p[1].requires_grad) | {n: b for n, b in buffers if n in constant}
        tensors: list[tuple[str, str, Tensor]] = [
            *((segment_of(name), name, parameter) for name, parameter in trained),
            *(("statistics", name, buffer) for name, buffer in buffers if name not in constant),
        ]
        entries, segments, offset = [], {}, 0
        for segment in SEGMENTS:
            start = offset
            for owner, name, tensor in tensors:
                if owner == segment:
                    # For a 1x1 kernel both memory orders are the same, and its strides should show that (`flat.py`).
                    channels_last = tensor.dim() == 4 and tensor.shape[2:] != (1, 1)
                    entries.append(Entry(name, tuple(tensor.shape), offset, segment, channels_last))
                    offset += tensor.numel()
            segments[segment] = slice(start, offset)
        return cls(tuple(entries), segments, frozen)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Every tensor by name, as views of `vector` [..., P]."""
        return {entry.name: entry.view(vector) for entry in self.entries}

    def canonical(self, vector: Tensor) -> Tensor:
        """`vector` [..., P] in the order of files: every tensor row-major in its PyTorch shape."""
        result = vector.clone()
        for entry in self.entries:
            if entry.channels_last:
                part = result[..., entry.offset : entry.offset + entry.size]
                part.view(*part.shape[:-1], *entry.shape).copy_(entry.view(vector))
        return result

    def from_canonical(self, vector: Tensor) -> Tensor:
        """The inverse of `canonical`."""
        result = vector.clone()
        for entry in self.entries:
            if entry.channels_last:
                part = vector[..., entry.offset : entry.offset + entry.size]
                entry.view(result).copy_(part.view(*part.shape[:-1], *entry.shape))
        return result


def head_of(module: nn.Module) -> nn.Linear | None:
    """The last fully connected layer of a network; None: it has none.

    This is the layer that `mark_head` has marked, or else the last one in the order of definition.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    marked = [layer for layer in layers if hasattr(layer, _MARK)]
    return (marked or layers)[-1] if layers else None


def mark_head(layer: nn.Linear) -> None:
    """Mark the last fully connected layer of a network in which another one is defined last."""
    setattr(layer, _MARK, True)


def is_composed(network: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a network runs its parts as `kind` does, so that they can also be run one by one, without hooks."""
    forward = getattr(network.forward, "__func__", None)
    has_hooks = bool(network._forward_hooks or network._forward_pre_hooks)
    return isinstance(network, kind) and forward is kind.forward and not has_hooks


def _shares_parameters(module: nn.Module, layer: nn.Module) -> bool:
    """Whether other layers of a network use parameters of this one."""
    own = {id(parameter) for parameter in layer.parameters()}
    inside = {id(part) for part in layer.modules()}
    others = (part for part in module.modules() if id(part) not in inside)
    return any(id(parameter) in own for part in others for parameter in part._parameters.values())


def aligned_rows(count: int, size: int, device: torch.device) -> Tensor:
    """[count, size] uninitialised float32 rows that all start on a 64-byte boundary.

    Matrix libraries choose code by the alignment of their operands. Otherwise the last bits of a client's result
    would depend on its row.
    """
    stride = -(-size // 16) * 16
    return torch.empty(count, stride, device=device)[:, :size]


def _is_number(tensor: Tensor) -> bool:
    """Whether a tensor can be averaged, unlike counters and bit masks."""
    return tensor.is_floating_point() or tensor.is_complex()


def _check_kinds(tensors: Iterable[tuple[str, str, Tensor]]) -> None:
    for kind, name, tensor in tensors:
        if tensor.is_inference():
            raise BadInput(f"{kind} {name} was made in torch.inference_mode, and cannot be trained: make it outside")
        if _is_number(tensor) and tensor.dtype != torch.get_default_dtype():
            found = str(tensor.dtype).removeprefix("torch.")
            remedy = "" if tensor.is_complex() else " (call .float())"
            raise BadInput(f"{kind} {name} is {found}: networks are float32{remedy}")
