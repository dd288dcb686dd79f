"""A trained network, built once more from what a results file says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonargparse
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness
from fedmpi.algorithms import Algorithm
from fedmpi.errors import BadInput
from fedmpi.models import Model
from fedmpi.training.dry_run import materialise
from fedmpi.training.samples import image_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedmpi.results.reader import Run

_TAKES = {
    "uint8": "images as uint8 [B, C, H, W], from 0 to 255",
    "float32": "features as floating-point numbers [B, ...]",
    "int64": "tokens as whole numbers [B, L]",
}


class Network(nn.Module):
    """A network that takes samples as a data set's arrays hold them, and gives logits [B, classes].

    Args:
        network: takes images that are normalised already, features, or tokens as int64.
        inputs: what the arrays hold: uint8, float32 or int64.
        mean, std: per channel of images, on the scale 0..1; None: they are only scaled to 0..1.

    Attributes:
        network: the same.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        inputs: str,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.inputs = inputs
        scale, shift = image_scale(mean, std)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor | NDArray[Any]) -> Tensor:
        """Logits [B, classes].

        Raises:
            TypeError: `x` is of another kind than the data set's arrays.
        """
        x = torch.tensor(x) if isinstance(x, np.ndarray) else x
        found = "uint8" if x.dtype == torch.uint8 else "float32" if x.is_floating_point() else "int64"
        if found != self.inputs:
            raise TypeError(f"the network takes {_TAKES[self.inputs]}, not {x.dtype}; the bare one is `.network`")
        x = x.to(self.scale.device)
        if self.inputs == "uint8":
            x = (x.movedim(1, -1).to(self.scale.dtype) * self.scale + self.shift).movedim(-1, 1)
        else:
            x = x.long() if self.inputs == "int64" else x.to(self.scale.dtype)
        logits: Tensor = self.network(x)
        return logits


def load(run: Run, which: int | str | None = None) -> Network:
    """See `Run.network`."""
    about = run.inputs
    if "shape" not in about:
        raise BadInput(f"{run.path}: does not say what its network takes (a run of an earlier version, perhaps)")
    weights = _weights(run, which)
    try:
        network = _build(run, about)
        _fill(network, run.state_dict(weights))
    except Exception as error:  # what builds it may be a user's class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{run.path}: cannot build the network of {run.attributes['model']} again: {reason}"
        ) from error
    mean, std = (tuple(map(float, about[name])) if name in about else None for name in ("mean", "std"))
    return Network(network, str(about["inputs"]), mean, std).eval()


def _weights(run: Run, which: int | str | None) -> NDArray[np.float32]:
    """[P], of the model that is meant."""
    models = {name: values for name, values in run.model.items() if values.dtype == np.float32}
    name = "weights" if which is None else "centers" if isinstance(which, int) else which
    found = models.get(name)
    if isinstance(which, int) and found is not None and 0 <= which < len(found):
        return found[which]
    if isinstance(which, int) or found is None or found.ndim != 1:
        vectors = [repr(name) for name, values in models.items() if values.ndim == 1]
        numbers = [f"0 to {len(models['centers']) - 1}"] if "centers" in models else []
        raise BadInput(f"{run.path}: no model {which!r}, but {', '.join([*numbers, *vectors])}")
    return found


def _build(run: Run, about: Mapping[str, Any]) -> nn.Module:
    """The network as it was before the first round."""
    model, algorithm = _component(run, "model", Model), _component(run, "algorithm", Algorithm)
    shape, is_text = tuple(map(int, about["shape"])), "vocabulary" in about
    model.vocabulary = int(about["vocabulary"]) if is_text else None
    example = torch.ones(2, *shape, dtype=torch.int64 if is_text else torch.float32)
    with randomness.globals_kept():  # the caller's random numbers are not disturbed
        randomness.seed_globals(randomness.key(int(run.attributes["seed"]), "initial weights", client=0))
        network: nn.Module = model.build(shape, int(about["classes"]))
        materialise(network, example)
        network = algorithm.extend(network, example)
        materialise(network, example)
    return network


def _component(run: Run, option: str, base: type) -> Any:
    """The object that the settings describe."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, option)
    return parser.instantiate(parser.parse_object({option: run.settings[option]}))[option]


def _fill(network: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Give the network these tensors, by name.

    Raises:
        ValueError: it has others.
    """
    parameters = dict(network.named_parameters())
    own = {**parameters, **dict(network.named_buffers())}
    for name, values in tensors.items():
        if name not in own or own[name].shape != values.shape:
            there = tuple(own[name].shape) if name in own else "not there"
            raise ValueError(f"{name} is {there}, and was {values.shape}: its class has changed since the run")
    if missing := [name for name in parameters if name not in tensors]:
        raise ValueError(f"{', '.join(missing[:3])} was not there: its class has changed since the run")
    with torch.no_grad():
        for name, values in tensors.items():
            own[name].copy_(torch.tensor(values))
