"""Builds a trained network from its results file (`Run.network`), or what is frozen in it (`Run.frozen`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonargparse
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness, results
from fedmpi.algorithms import Algorithm
from fedmpi.checksum import sha256_of
from fedmpi.errors import BadInput
from fedmpi.models import Model
from fedmpi.own_state import own_state
from fedmpi.results import Run
from fedmpi.results.network import Network
from fedmpi.training.dry_run import materialise
from fedmpi.training.samples import image_scale


@own_state()
def rebuild(run: Run, which: int | str | None) -> Network:
    """See `Run.network`."""
    about = run.inputs
    if "shape" not in about:
        raise BadInput(f"{run.path}: has no information about its network's inputs (perhaps from an earlier version)")
    tensors = run.state_dict(_weights(run, which))
    try:
        network = _build(run, about)
        _fill(network, tensors)
    except Exception as error:  # what builds it may be a user's class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{run.path}: cannot build the network of {run.attributes['model']} again: {reason}"
        ) from error
    mean, std = (tuple(map(float, about[name])) if name in about else None for name in ("mean", "std"))
    return Network(network, str(about["inputs"]), *image_scale(mean, std)).eval()


@own_state()
def frozen_tensors(run: Run) -> dict[str, NDArray[Any]]:
    """See `Run.frozen`."""
    about = run.inputs
    try:
        if init := run.settings.get("init"):
            made = dict(results.open(init).frozen)
        else:
            network, trained = _build(run, about), {str(name) for name in run.model["names"]}
            kept = network.state_dict().keys() - trained  # not the constants that a module keeps out of it
            tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            made = {n: t.detach().numpy() for n, t in tensors.items() if n in kept and not _is_counter(t)}
        if sha256_of(made) != about["frozen_sha256"]:
            raise ValueError("they have other values now")
    except Exception as error:  # what builds the network may be a user's class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{run.path}: its {about['frozen_values']:,} frozen values are not in the file (--store_frozen true would"
            f" have stored them), and cannot be taken from where they came from ({about['frozen_source']}): {reason}"
        ) from error
    return made


def _is_counter(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _weights(run: Run, which: int | str | None) -> NDArray[np.float32]:
    """[P], the weights of the chosen model."""
    if which == "best":
        if "weights" not in run.best:
            raise BadInput(f"{run.path}: no model 'best': the run has no validation set, or no evaluation yet")
        return run.best["weights"]
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
    """The network with the weights from before the first round."""
    model, algorithm = _component(run, "model", Model), _component(run, "algorithm", Algorithm)
    shape, is_text = tuple(map(int, about["shape"])), "vocabulary" in about
    model.vocabulary = int(about["vocabulary"]) if is_text else None
    example = torch.ones(2, *shape, dtype=torch.int64 if is_text else torch.float32)
    randomness.seed_globals(randomness.key(int(run.attributes["seed"]), "initial weights", client=0))
    network: nn.Module = model.make(shape, int(about["classes"]))
    network = algorithm.extend(network, example)
    materialise(network, example)
    return network


def _component(run: Run, option: str, base: type) -> Any:
    """The component that the settings describe."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, option)
    return parser.instantiate(parser.parse_object({option: run.settings[option]}))[option]


def _fill(network: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Set the network's tensors, by name.

    Raises:
        ValueError: it has other tensors.
    """
    parameters = dict(network.named_parameters())
    own = {**parameters, **dict(network.named_buffers())}
    for name, values in tensors.items():
        if name not in own or own[name].shape != values.shape:
            there = tuple(own[name].shape) if name in own else "not there"
            raise ValueError(f"{name} is {there}, and was {values.shape}: its class has changed since the run")
    if missing := [name for name in parameters if name not in tensors]:
        raise ValueError(f"{', '.join(missing[:3])} did not exist: its class has changed since the run")
    with torch.no_grad():
        for name, values in tensors.items():
            own[name].copy_(torch.tensor(values))
