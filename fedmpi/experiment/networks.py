"""The networks of an experiment, built again with the same weights whenever one is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from fedmpi import randomness
from fedmpi.data import Arrays
from fedmpi.errors import BadInput, option_of
from fedmpi.experiment.initial_model import InitialModel
from fedmpi.experiment.settings import Settings
from fedmpi.models import Model
from fedmpi.mpi.shared import share_aligned
from fedmpi.mpi.world import World
from fedmpi.training.dry_run import constant_buffers, materialise
from fedmpi.training.flat import FlatModel, in_a_vector


class Networks:
    """number -> a network with newly drawn weights, the same on every rank. Frozen parameters are the same in all.

    The first network that is asked for must be number 0. If there is an initial model, number 0 has its weights.

    Args:
        make: makes the network, with the global random generators.
        seed: seed of the weights, together with the number.
        device: device of the networks.
        constants: for the first network, the names of buffers that training does not change.
        said_of: the option that bad input about a network names.
        initial: the model of another run; None: the initial weights are drawn.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        seed: int,
        device: torch.device,
        constants: Callable[[nn.Module], Collection[str]] = lambda network: (),
        said_of: Callable[[], AbstractContextManager[None]] = nullcontext,
        initial: InitialModel | None = None,
    ) -> None:
        self._make = make
        self._seed = seed
        self._device = device
        self._constants = constants
        self._said_of = said_of
        self._initial = initial
        self._start: Tensor | None = None  # the weights of the initial model
        self._frozen: Mapping[str, Tensor] | None = None

    def __call__(self, number: int) -> FlatModel:
        randomness.seed_globals(randomness.key(self._seed, "initial weights", client=number))
        network = self._make()
        with self._said_of():
            if name := in_a_vector(network):
                raise BadInput(f"parameter {name} belongs to an earlier network: build() must make a new one")
            constants = self._constants(network) if self._frozen is None else ()
            model = FlatModel(network, self._device, constants, self._frozen)
        if number == 0 and self._initial:
            self._initial.load_into(model)
            self._start, self._initial = model.weights[0].clone(), None
        elif number == 0 and self._start is not None:
            model.load(self._start)
        self._frozen = self._frozen or model.layout.frozen
        return model

    def share(self, world: World) -> None:
        """Let all later networks of a node's ranks have one copy of the frozen tensors, on CPUs; a collective.

        Raises:
            BadInput: the node's shared memory is too small; on every rank alike.
        """
        if self._frozen and self._device.type == "cpu" and world.size > 1:
            arrays = {name: tensor.detach().numpy() for name, tensor in self._frozen.items()}
            self._frozen = {name: torch.from_numpy(array) for name, array in share_aligned(world, arrays).items()}


def networks_of(
    experiment: Settings, arrays: Arrays, outputs: int, device: torch.device, initial: InitialModel | None
) -> Networks:
    """The networks of the experiment's model, extended by its method, for these samples, with this many outputs."""
    model, shape = experiment.model, arrays.train_x.shape[1:]
    is_text = experiment.dataset.vocabulary is not None
    example = torch.ones(2, *shape, dtype=torch.int64 if is_text else torch.float32)

    def make() -> nn.Module:
        with option_of("model"):
            network = model.make(shape, outputs)
        network = experiment.algorithm.extend(network, example)
        with _said_of(model):
            materialise(network, example)
        return network

    def constants(network: nn.Module) -> Collection[str]:
        return constant_buffers(network, example)

    return Networks(make, experiment.seed, device, constants, lambda: _said_of(model), initial)


@contextmanager
def _said_of(model: Model) -> Iterator[None]:
    """Name the model in bad input about its network."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"= {type(model).__name__}: {error.message}", "--model") from None
