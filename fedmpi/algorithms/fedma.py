"""Federated matched averaging.

Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni: Federated Learning with Matched Averaging. ICLR 2020.
https://arxiv.org/abs/2002.06440
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import BadInput
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeInt, PositiveInt
from fedmpi.training.block import WHOLE, Phase
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Vectors


@with_options
class FedMA(Algorithm):
    """Layer-by-layer averaging of matched hidden units, at a fixed width (Wang et al., 2020).

    After local training, the units of a layer are permuted to match those of the global model. The assignment
    minimises the squared distance between the parameters that produce them. The layer is then averaged and frozen,
    and the clients train the remaining layers before the next layer is matched. In the last layer, the weights of a
    class are averaged by the clients' numbers of samples of that class (with Horvitz-Thompson weights, divided by the
    expected number).

    Differences from the paper: layers do not grow, so the assignment is a plain one instead of that of a
    nonparametric Bayesian model. Normalised, residual, densely connected and recurrent networks can be matched, too.
    Each client permutes its own units, so neither models nor costs are gathered. Units on either side of a frozen
    layer keep their order, and are averaged with the last layer.

    Args:
        retrain: whether clients train again after each layer. If not, all layers are matched and averaged at once.
            This variant costs as much as FedAvg, and is not the method of the paper.
        retrain_epochs: local epochs after each layer; null: as many as in the local training.
        sweeps: number of times that the units of a layer are matched again, to the units of their mean.
    """

    retrain: bool = True
    retrain_epochs: PositiveInt | None = None
    sweeps: NonNegativeInt = 0

    takes_server_optimizer = True
    takes_compression = False

    def setup(self, fed: Federation) -> None:
        from fedmpi.training.matching import Matching

        super().setup(fed)
        groups = fed.at_clients.unit_groups()
        if not groups:
            raise BadInput("--model: FedMA needs one with hidden units between layers that are not frozen")
        self.matching = Matching(fed.layout, groups, layer_by_layer=self.retrain)
        classes = fed.label_counts.shape[1]
        # The class of each value of the outputs; the number of classes: none.
        self.class_of = np.full(len(self.matching.outputs), classes)
        for entry in fed.layout.entries:
            if fed.task.has_classes and entry.segment == "head" and entry.shape[0] == classes:
                first = np.searchsorted(self.matching.outputs, entry.offset)
                self.class_of[first : first + entry.size] = np.arange(entry.size) // (entry.size // classes)

    @property
    def trainings(self) -> tuple[Phase, ...]:
        again = [
            Phase(f"after layer {number}", self.retrain_epochs, layer.rest)
            for number, layer in enumerate(self.matching.layers)
        ]
        return (WHOLE, *again) if self.retrain else (WHOLE,)

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        layers = [layer.columns for layer in self.matching.layers]
        again = 1 + self.sweeps if self.retrain else self.sweeps
        return [slice(layout.size), *again * layers], [*(1 + self.sweeps) * layers, self.matching.outputs]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start, (_, *again) = fed.broadcast(self.weights), self.trainings
        models = self.local_models(fed, cohort, start)
        result, merged = self.weights.clone(), start.clone()
        for number, layer in enumerate(self.matching.layers):
            for sweep in range(1 + self.sweeps):
                mean = fed.weighted_mean(cohort, start[layer.columns], columns=layer.columns)
                for block, weights in models:
                    for own in weights:
                        self.matching.align(own, merged if sweep else start, layer)
                    mean.add(weights[:, layer.columns], block)
                result[layer.columns] = mean.reduce(empty=self.weights[layer.columns])
                if self.retrain or sweep < self.sweeps:
                    merged[layer.columns] = fed.broadcast(result[layer.columns])
            if self.retrain:
                for block, weights in models:
                    weights[:, layer.columns] = merged[layer.columns]
                    weights.copy_(fed.train(block, weights, self, again[number]).weights)
        result[self.matching.outputs] = self.mean_of_outputs(fed, fed.undiverged(cohort), models, start)
        self.server_step(fed, result)

    def local_models(self, fed: Federation, cohort: Cohort, start: Tensor) -> list[tuple[Block, Tensor]]:
        """This rank's blocks of clients, and their locally trained models [K, P]."""
        return [(block, fed.train(block, start, self).weights.clone()) for block in fed.my_clients(cohort)]

    def mean_of_outputs(
        self, fed: Federation, cohort: Cohort, models: list[tuple[Block, Tensor]], start: Tensor
    ) -> Tensor:
        """[n], the mean of values outside of layers.

        The last layer is averaged per class, by the samples of the class.
        """
        columns, inclusion = self.matching.outputs, cohort.inclusion
        counted = cohort.mass[:, None] * fed.label_counts[cohort.clients] / np.maximum(cohort.samples, 1)[:, None]
        counted = np.column_stack([counted, cohort.mass])
        totals = counted.sum(0)
        if inclusion:
            totals = inclusion.expected(np.column_stack([fed.label_counts, fed.samples]))
        shares = counted / np.maximum(
            totals, 1e-300
        )  # 0 for a class without samples in the cohort, which does not change
        # The changes are already weighted, so this is a plain mean; times the number of clients it is the sum.
        alike = replace(cohort, mass=np.minimum(cohort.mass, 1), expected_mass=None, inclusion=None)
        mean = fed.weighted_mean(alike, columns=columns)
        for block, weights in models:
            mine = shares[np.searchsorted(cohort.clients, block.clients)][:, self.class_of]
            changes = (weights[:, columns] - start[columns]) * weights.new_tensor(mine)
            mean.add(changes, replace(block, mass=np.minimum(block.mass, 1)))
        return self.weights[columns] + alike.total_mass * mean.reduce()
