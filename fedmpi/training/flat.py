"""A network whose parameters and buffers are views of one vector, and the interface of it for losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fedmpi.training.layout import Entry, Layout, aligned_rows, is_composed

# Marks parameters that are part of a vector.
_MARK = "_is_in_a_vector"

#: A forward pass: the losses [B] of some samples, and the share [B] of each in the loss that is minimised.
Pass: TypeAlias = tuple[Tensor, Tensor]


class FlatModel:
    """A module bound to a flat vector: writing the vector changes the network, and training it changes the vector.

    Args:
        module: the network.
        device: of the network.
        constant: names of the buffers that training does not change (`constant_buffers`).
        shared: `layout.frozen` of an earlier network of the same kind, whose memory this one shares.

    Attributes:
        weights: [1, P], the network's parameters and floating-point buffers, in the order of `layout`.
        normalises_batches: whether training needs statistics over a batch of at least two samples.
        has_features: whether it runs the two parts of a `Backbone`, and nothing else.
        ends_in_head: whether it, or its classifier, is a sequence of layers that ends with a fully connected layer.
        in_bf16: whether `Net` runs the network in bfloat16 where that is safe.

    Raises:
        BadInput: as `Layout.of`.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        constant: Collection[str] = (),
        shared: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.module = module.to(device)
        self.device = device
        self.layout = Layout.of(module, constant if shared is None else shared)
        self.weights = aligned_rows(1, self.layout.size, device)
        self.normalises_batches = any(isinstance(layer, _BatchNorm) for layer in module.modules())
        self.has_features = bool(getattr(module, "is_in_two_parts", False))
        self.ends_in_head = _ends_in_head(module.get_submodule("classifier") if self.has_features else module)
        self.in_bf16 = False
        for layer in module.modules():
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                layer.sparse = False  # the same gradient, as a tensor that optimizers and vmap can take
            if _writes_beyond(layer) and device.type == "cpu":
                layer.register_forward_pre_hook(_rows_of_one_channel)
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        self._parameters = [
            (entry, parameters[entry.name]) for entry in self.layout.entries if entry.is_parameter and entry.size
        ]
        self._selected: tuple[slice, ...] = (slice(0, self.layout.parameters),)
        for name, tensor in self.layout.frozen.items():
            # In memory that is aligned, as all weights are; convolutions are faster with channels last.
            order = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
            tensor.data = shared[name].data if shared else tensor.detach().clone(memory_format=order)
        state = parameters | buffers
        for entry in self.layout.entries:
            view, tensor = entry.view(self.weights[0]), state[entry.name]
            view.copy_(tensor.detach())
            # Through .data, so that parameters shared by several layers stay shared and buffers keep their place.
            tensor.data = view
            if entry.is_parameter:
                setattr(tensor, _MARK, True)
        in_vector = {entry.name for entry in self.layout.entries}
        self._buffers = [(*_place(module, name), tensor) for name, tensor in buffers.items()]
        self._constants = [(n, buffers[n], buffers[n]._version) for n in self.layout.frozen if n in buffers]
        # BatchNorm's batch counters, and other buffers that are neither in the vector nor constant, are reset for
        # every client.
        others = [name for name in buffers if name not in {*in_vector, *self.layout.frozen}]
        self._counters = [(*_place(module, name), buffers[name], buffers[name].clone()) for name in others]
        self._copy = self._copied()

    @property
    def unsent(self) -> dict[str, Tensor]:
        """All tensors of numbers that are not part of the vector, by name: frozen parameters and constant buffers."""
        in_vector = {entry.name for entry in self.layout.entries}
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name: t.detach() for name, t in tensors if name not in in_vector and t.is_floating_point()}

    def load(self, weights: Tensor) -> None:
        """Set the network to `weights` [P]."""
        self.weights[0].copy_(weights)
        self.reset_counters()

    def reset_counters(self) -> None:
        """Reset buffers that are neither in the vector nor constant to their initial values."""
        for owner, name, tensor in self._buffers:
            owner._buffers[name] = tensor
        for _, _, tensor, initial in self._counters:
            tensor.copy_(initial)

    @contextmanager
    def counters_kept(self) -> Iterator[None]:
        """After it, buffers that are neither in the vector nor constant are as they were before."""
        kept = [
            (owner, name, now, now.clone())
            for owner, name, *_ in self._counters
            if (now := owner._buffers[name]) is not None
        ]
        yield
        for owner, name, tensor, value in kept:
            owner._buffers[name] = tensor
            tensor.copy_(value)

    @contextmanager
    def elsewhere(self, parameters: Tensor) -> Iterator[None]:
        """While it is active, the network has these `parameters` [d]; then its state is as before."""
        count = self.layout.parameters
        self._aside.copy_(parameters)
        statistics = self.weights[0, count:].clone()
        with self.counters_kept():
            self._bind(self._aside)
            yield
            self._bind(self.weights[0])
        self.weights[0, count:].copy_(statistics)

    @cached_property
    def _aside(self) -> Tensor:
        """[d], other values of the parameters."""
        return aligned_rows(1, self.layout.parameters, self.device)[0]

    def _bind(self, vector: Tensor) -> None:
        """Let the parameters be views of `vector` [d] or [P]."""
        for entry, parameter in self._parameters:
            parameter.data = entry.view(vector)

    def select(self, columns: tuple[slice, ...]) -> None:
        """Compute gradients only for these columns of the parameters, which are whole tensors."""
        if columns == self._selected:
            return
        self._selected = columns
        for entry, parameter in self._parameters:
            parameter.requires_grad_(entry.lies_in(columns))
            parameter.grad = None

    @cached_property
    def gradient(self) -> Tensor:
        """[1, layout.parameters], filled by `backward`."""
        return aligned_rows(1, self.layout.parameters, self.device)

    def backward(self, losses: Tensor) -> None:
        """Fill `gradient` with the gradient of the mean of `losses` [B]."""
        self.backward_over([(losses, torch.full_like(losses, 1 / max(losses.numel(), 1)))])

    def backward_over(self, passes: Iterable[Pass]) -> None:
        """Fill `gradient` with the gradient of a sum over passes, each of which frees its memory before the next.

        The parameters' own gradients are then views of it, for optimizers of PyTorch's.
        """
        self._fill(self.gradient[0], passes)
        for entry, parameter in self._parameters:
            parameter.grad = entry.view(self.gradient[0]) if parameter.requires_grad else None

    def further_gradient(self, passes: Iterable[Pass]) -> Tensor:
        """[1, layout.parameters], the same in new memory; `gradient` stays as it is."""
        found = aligned_rows(1, self.layout.parameters, self.device)
        self._fill(found[0], passes)
        return found

    def _fill(self, gradient: Tensor, passes: Iterable[Pass]) -> None:
        for number, (losses, shares) in enumerate(passes):
            for _, parameter in self._parameters:
                parameter.grad = None
            torch.autograd.backward(losses, shares)
            # A copy of new gradients moves less memory than adding them to zeros.
            found = [(entry.view(gradient), p.grad) for entry, p in self._parameters if p.grad is not None]
            if number == 0 and sum(part.numel() for part, _ in found) < self.layout.parameters:
                gradient.zero_()
            if found:
                move = torch._foreach_add_ if number else torch._foreach_copy_
                move([part for part, _ in found], [new.to_dense() if new.is_sparse else new for _, new in found])
            self._settle()
        for _, parameter in self._parameters:
            parameter.grad = None

    def backward_in_parts(self, only: Pass, update: Callable[[Entry, Tensor, Tensor], None]) -> None:
        """Call `update(entry, parameter, gradient)` for every parameter, after the whole backward pass.

        The gradient of the whole model is never copied into one vector, which saves two passes over memory. Updates
        during the backward pass would be wrong for networks that read a parameter twice, for example once with
        `detach`: PyTorch cannot see that a value which it still needs has changed.
        """
        for _, parameter in self._parameters:
            parameter.grad = None
        torch.autograd.backward(*only)
        for entry, parameter in self._parameters:
            if parameter.requires_grad:
                gradient, parameter.grad = parameter.grad, None
                if gradient is None:  # the losses do not depend on it
                    gradient = torch.zeros_like(parameter)
                update(entry, parameter.data, gradient.to_dense() if gradient.is_sparse else gradient)
        self._settle()

    def _settle(self) -> None:
        """After a step: copy tensors that the network assigned to buffers (`self.mean = 0.9 * self.mean + ...`)."""
        for owner, name, tensor in self._buffers:
            found = owner._buffers[name]
            if found is not tensor:
                owner._buffers[name] = tensor
                if found is not None:
                    tensor.copy_(found.detach())
        self.check_constants()

    def check_constants(self) -> None:
        """Raise RuntimeError if a constant buffer was written to, by this network or by copies of it."""
        for name, tensor, version in self._constants:
            if tensor._version != version:
                raise RuntimeError(
                    f"buffer {name} was written to, but not by the network's first batch in training: let every batch"
                    " write to it, or give it persistent=False, so that each client starts with its first value"
                )

    @property
    def frozen(self) -> nn.Module:
        """A copy of the network in evaluation mode, which is run with weights given in each call.

        Raises:
            RuntimeError: the network cannot be copied.
        """
        if isinstance(self._copy, Exception):
            raise RuntimeError(f"the network cannot be copied ({self._copy}), which the method needs") from self._copy
        return self._copy

    def _copied(self) -> nn.Module | Exception:
        """Copy the network before it runs, because tensors that it keeps (old-style weight_norm) cannot be copied.

        Only buffers outside the vector are copied; all other memory is shared.
        """
        memory: dict[int, object] = {
            id(p): nn.Parameter(p.data, requires_grad=False) for p in self.module.parameters()
        }
        counters = {id(tensor) for _, _, tensor, _ in self._counters}
        memory |= {id(b): b.detach() for b in self.module.buffers() if id(b) not in counters}
        for layer in self.module.modules():  # such as the weight that weight_norm has made in an earlier run
            memory |= {id(x): x.detach() for x in vars(layer).values() if isinstance(x, Tensor)}
        try:
            return copy.deepcopy(self.module, memory).eval()
        except Exception as error:  # of any kind; most methods do well without
            return error


def in_a_vector(module: nn.Module) -> str | None:
    """The name of a parameter of a network that a `FlatModel` has bound to its vector; None: there is none."""
    return next((name for name, parameter in module.named_parameters() if hasattr(parameter, _MARK)), None)


def _writes_beyond(layer: nn.Module) -> bool:
    """Whether oneDNN, as of PyTorch 2.14, writes beyond the end of this layer's gradient on processors with AVX2.

    It does for strided 1x1 convolutions in channels_last format if their channels do not fill a vector register.
    """
    is_strided = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and max(layer.stride) > 1
    return is_strided and bool(layer.in_channels % 8)  # type: ignore[operator]


def _rows_of_one_channel(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Always a copy, because for one channel both memory orders look the same.
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)


def _ends_in_head(part: nn.Module) -> bool:
    while isinstance(part, nn.Sequential) and is_composed(part, nn.Sequential) and len(part):
        part = part[-1]
    return isinstance(part, nn.Linear)


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer that owns a tensor, and the tensor's name in it."""
    owner, _, own = name.rpartition(".")
    return module.get_submodule(owner), own


class Net:
    """The network as losses see it: with the weights that are trained, or with others (`at`).

    The parts `features` and `classify` need a model built as `Backbone(extractor, classifier)`.

    Args:
        model: the network.
        tensors: tensors to run it with, by name; None: the model's own.
        frozen: whether to run it in evaluation mode.
        unsent: those of `tensors` that are not part of a model's vector, so that they are also used with other
            weights.
    """

    def __init__(
        self,
        model: FlatModel,
        tensors: Mapping[str, Tensor] | None = None,
        frozen: bool = False,
        unsent: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._model = model
        self._unsent = unsent or {}
        self._tensors = None if tensors is None else {**self._unsent, **tensors}
        self._module = model.frozen if frozen else model.module

    def __call__(self, x: Tensor) -> Tensor:
        """The output [B, ...] for inputs [B, ...]; for classification logits [B, classes]."""
        return self.run("", x)

    def features(self, x: Tensor) -> Tensor:
        """The extractor's output for inputs [B, ...]."""
        return self.run("extractor", x)

    def classify(self, features: Tensor) -> Tensor:
        """The output [B, ...] for the extractor's output."""
        return self.run("classifier", features)

    def at(self, weights: Tensor) -> Net:
        """The same network with other weights [P], in evaluation mode; no gradient flows into them."""
        return Net(self._model, self._model.layout.views(weights.detach()), True, self._unsent)

    def run(self, part: str, *inputs: Tensor) -> Tensor:
        """The output of a part of the network.

        Args:
            part: its name in the network, as in `network.get_submodule`.
        """
        if not self._model.in_bf16:
            return self._call(part, *inputs)
        # What it gives is float32 again, for losses. Nothing is cached: weights change with every step.
        with torch.autocast(self._model.device.type, torch.bfloat16, cache_enabled=False):
            return self._call(part, *inputs).float()

    def _call(self, part: str, *inputs: Tensor) -> Tensor:
        module = self._module.get_submodule(part)
        if self._tensors is None:
            result: Tensor = module(*inputs)
            return result
        prefix = f"{part}." if part else ""
        tensors = {n.removeprefix(prefix): t for n, t in self._tensors.items() if n.startswith(prefix)}
        with_others: Tensor = functional_call(module, tensors, inputs)
        return with_others
