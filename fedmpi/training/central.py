"""Training in one place, on samples that are no client's, such as synthetic ones at the server."""

from __future__ import annotations

import torch

from fedmpi import randomness
from fedmpi.training.clientwise import Keyed
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.losses import cross_entropy
from fedmpi.training.optimizers import Adam
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining


class CentralTraining:
    """Ordinary training of one network by Adam, whose moments live on from epoch to epoch.

    Args:
        model: a network of its own, with the weights from which it starts.
        samples: what it learns from.
        settings: batch size and learning rate; batches are cut as at clients.
        seed: of what is random.
    """

    def __init__(self, model: FlatModel, samples: Samples, settings: LocalTraining, seed: int) -> None:
        self.model = model
        self._samples = samples
        self._settings = settings
        self._seed = seed
        self._optimizer = Adam(model.gradient.shape, model.device, settings.weight_decay)

    @randomness.globals_kept()  # networks are trained on some ranks only
    def epoch(self, number: int, training: bool = True) -> float:
        """One pass, in a random order of its own; the mean loss.

        Args:
            training: whether the network is in training mode; in evaluation mode it learns as well.
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
