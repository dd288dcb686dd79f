"""Weights from a file, and which parts of a network are trained. Private, because importing it imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmpi.errors import BadInput
from fedmpi.training.layout import NORMALISATIONS, head_of


def load(network: nn.Module, path: Path, published: str | None) -> list[str]:
    """Set the parameters and buffers of a network to those of a file.

    All names and shapes must be the network's, with two exceptions. The last fully connected layer keeps its values
    if the file's has another number of outputs. Counters (integer buffers) may be missing.

    Args:
        path: see `Model.weights`.
        published: see `Model.published`.

    Returns: The names of the tensors of the last fully connected layer, if it keeps its values.

    Raises:
        BadInput: the file cannot be read, or its tensors do not fit. The message names the first one.
    """
    own, given = network.state_dict(), _read(path)
    if published and given.keys() != own.keys():
        theirs = _published_names(published)
        if len(theirs) == len(own) and given.keys() == set(theirs):
            given = {name: given[other] for name, other in zip(own, theirs, strict=True)}
    head = head_of(network)
    keeps = []
    for name in dict.fromkeys([*own, *given]):
        mine, other = (list(each[name].shape) if name in each else None for each in (own, given))
        if mine == other or (other is None and not own[name].is_floating_point()):
            continue
        if mine and other and mine[1:] == other[1:] and _is_in(own[name], head):
            keeps.append(name)
            continue
        its, here = ("missing" if shape is None else f"of shape {shape}" for shape in (other, mine))
        raise BadInput(f"= {path}: its tensor {name} is {its}, and {here} in the network", "weights")
    with torch.no_grad():
        for name, tensor in own.items():
            if name in given and name not in keeps:
                tensor.copy_(given[name])
    return keeps


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name: of safetensors, or a state dict that `torch.save` has written.

    Raises:
        BadInput: it is no such file.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise BadInput(f"= {path}: cannot be read ({error.strerror or error})", "weights") from None
    if h5py.is_hdf5(path):
        raise BadInput(f"= {path}: is an HDF5 file; --init takes the model of a results file", "weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for files of many kinds
        reason = " ".join(str(error).split()).split(". ")[0][:120] or type(error).__name__
        raise BadInput(f"= {path}: is no state dict that torch.save has written ({reason})", "weights") from None
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise BadInput(f"= {path}: has no tensors by name, but a {type(found).__name__}", "weights")
    return dict(found)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise BadInput(f"= {path}: safetensors is not installed: pip install 'fedmpi[llm]'", "weights") from None
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise BadInput(f"= {path}: is no safetensors file ({error})", "weights") from None
    return tensors


def freeze(network: nn.Module, trained: str, kind: str) -> None:
    """Freeze all parameters but those of a part, see `Model.train`.

    Normalisation layers over batches of which nothing is trained stay in evaluation mode, so that their running
    statistics stay as they are, too.

    Args:
        kind: of the model, for the message.

    Raises:
        BadInput: the network does not have this part.
    """
    head = head_of(network)
    if head is None and trained == "head":
        raise BadInput(f"= head: must be another part, because {kind} has no fully connected layer", "train")
    for layer in network.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            is_chosen = {
                "all": True,
                "head": False,
                "norm": isinstance(layer, NORMALISATIONS),
                "bias": name == "bias",
            }[trained]
            parameter.requires_grad_(is_chosen or layer is head)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and not any(each.requires_grad for each in layer.parameters()):
            layer.register_forward_pre_hook(_evaluate)


def _evaluate(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    layer.training = False


def _is_in(tensor: Tensor, layer: nn.Module | None) -> bool:
    return layer is not None and any(tensor.data_ptr() == own.data_ptr() for own in layer.parameters())


def _published_names(constructor: str) -> list[str]:
    """The names of a torchvision network's tensors, in its order."""
    from torchvision.models import get_model

    with torch.device("meta"):
        return list(get_model(constructor).state_dict())
