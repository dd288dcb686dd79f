"""Training on samples that belong to no client, such as synthetic samples at the server."""

from __future__ import annotations

import torch

from fedmpi import randomness
from fedmpi.tasks.losses import cross_entropy
from fedmpi.training.clientwise import Keyed
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.optimizers import Adam
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining


class CentralTraining:
    """Ordinary training of one network by Adam. Its moments are kept between epochs.

    Args:
        model: a separate network, with its initial weights.
        samples: the training samples.
        settings: batch size and learning rate. Batches are formed as at clients.
        seed: of the random numbers.
    """

    def __init__(self, model: FlatModel, samples: Samples, settings: LocalTraining, seed: int) -> None:
        self.model = model
        self._samples = samples
        self._settings = settings
        self._seed = seed
        self._optimizer = Adam(model.gradient.shape, model.device, settings.weight_decay)

    @randomness.globals_kept()  # networks are trained on some ranks only
    def epoch(self, number: int, training: bool = True) -> float:
        """One pass over the samples in a new random order; returns the mean loss.

        Args:
            training: whether the network is in training mode. It learns in evaluation mode as well.
        """
        model, size = self.model, len(self._samples.y)
        key = randomness.keys(self._seed, "order", number)
        order = randomness.hashed_bits(key.reshape(1), size)[0].argsort(kind="stable")
        draws = randomness.key(self._seed, "dropout", number)
        randomness.seed_globals(draws)  # for what else in a network is random
        keyed = Keyed(draws)
        model.module.train(training)
        total = torch.zeros((), device=model.device)
        for step, cut in enumerate(self._settings.batches(size, model.normalises_batches)):
            batch = self._samples.batch(order[cut])
            with keyed.step(step):
                losses = cross_entropy(Net(model)(batch.x), batch.y)
            model.backward(losses)
            with torch.no_grad():
                self._optimizer.advance()
                parameters = model.weights[:, : model.layout.parameters]
                self._optimizer.step(parameters, model.gradient, self._settings.lr)
            total += losses.detach().sum()
        return total.item() / size
