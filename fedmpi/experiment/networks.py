"""The networks of an experiment, built again with the same weights whenever one is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from fedmpi import randomness
from fedmpi.data import Arrays
from fedmpi.errors import BadInput, option_of
from fedmpi.experiment.settings import Settings
from fedmpi.models import Model
from fedmpi.training.dry_run import constant_buffers, materialise
from fedmpi.training.flat import FlatModel


class Networks:
    """number -> a network with newly drawn weights, the same on every rank. Frozen parameters are the same in all.

    Args:
        make: makes the network, with the global random generators.
        seed: seed of the weights, together with the number.
        device: device of the networks.
        constants: for the first network, the names of buffers that training does not change.
        said_of: the option that bad input about a network names.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        seed: int,
        device: torch.device,
        constants: Callable[[nn.Module], Collection[str]] = lambda network: (),
        said_of: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._make = make
        self._seed = seed
        self._device = device
        self._constants = constants
        self._said_of = said_of
        self._frozen: Mapping[str, Tensor] | None = None

    def __call__(self, number: int) -> FlatModel:
        randomness.seed_globals(randomness.key(self._seed, "initial weights", client=number))
        network = self._make()
        with self._said_of():
            constants = self._constants(network) if self._frozen is None else ()
            model = FlatModel(network, self._device, constants, self._frozen)
        self._frozen = model.layout.frozen
        return model


def networks_of(experiment: Settings, arrays: Arrays, outputs: int, device: torch.device) -> Networks:
    """The networks of the experiment's model, extended by its method, for these samples, with this many outputs."""
    model, shape = experiment.model, arrays.train_x.shape[1:]
    is_text = experiment.dataset.vocabulary is not None
    example = torch.ones(2, *shape, dtype=torch.int64 if is_text else torch.float32)

    def make() -> nn.Module:
        with option_of("model"):
            network = model.build(shape, outputs)
        if not isinstance(network, nn.Module):
            kind, found = type(model).__name__, type(network).__name__
            raise BadInput(f"= {kind}: build() returned a {found}, which must be a torch.nn.Module", "--model")
        with _said_of(model):
            materialise(network, example)
        network = experiment.algorithm.extend(network, example)
        with _said_of(model):
            materialise(network, example)
        return network

    def constants(network: nn.Module) -> Collection[str]:
        return constant_buffers(network, example)

    return Networks(make, experiment.seed, device, constants, lambda: _said_of(model))


@contextmanager
def _said_of(model: Model) -> Iterator[None]:
    """Name the model in bad input about its network."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"= {type(model).__name__}: {error.message}", "--model") from None
