"""kNN-Per: a global model interpolated with each client's nearest neighbours.

Marfoq, Neglia, Vidal, Kameni: Personalized Federated Learning through Local Memorization. ICML 2022.
https://arxiv.org/abs/2111.09360
"""

from __future__ import annotations

from collections.abc import Mapping

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.toolbox.features import features_before_last_layer
from fedmpi.lazy import functional, nn, torch
from fedmpi.options import with_options
from fedmpi.ranges import PositiveFloat, PositiveInt, Probability
from fedmpi.typing import Batch, Block, Federation, Net, Tensor


@with_options
class KNNPer(FedAvg):
    """FedAvg; clients mix the model's predictions with those of their nearest neighbours (Marfoq et al., 2022).

    Training is that of FedAvg. A client is evaluated with share p_knn + (1 - share) p: p are the probabilities of the
    global model, and p_knn(c) is the sum of exp(-|z - z_i|^2 / (f scale)) over those of the nearest neighbours i that
    have class c, divided by the sum over all of them. z are the f inputs of the last fully connected layer, and
    neighbours are sought among the client's own training samples. Clients that have never taken part are evaluated
    in the same way. The column global_accuracy has the accuracy of the global model.

    Args:
        neighbours: number of nearest neighbours.
        share: share of the neighbours in the prediction; 0: only the global model, 1: only the neighbours.
        scale: the squared distance, per feature, over which the weight of a neighbour falls to 1/e.
    """

    neighbours: PositiveInt = 10
    share: Probability = 0.5
    scale: PositiveFloat = 1.0

    needs_classes = True

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        return features_before_last_layer(network, type(self).__name__)

    def evaluate(self, fed: Federation) -> None:
        """Each client's predictions on the client's test samples, and the global model on the whole test set."""

        def received(block: Block, weights: Tensor) -> Tensor:
            return weights[None]

        def known(block: Block, models: Tensor) -> Mapping[str, Tensor]:
            features = fed.at_clients.features(block, models[0])
            return {"features": features, "labels": fed.at_clients.targets(block)}

        fed.report_personal(fed.evaluate_clients(self.weights, received, self.interpolate, known))
        fed.log(**{f"global_{fed.task.main}": fed.evaluate(self.weights).main})

    def interpolate(self, net: Net, batch: Batch, client: Mapping[str, Tensor]) -> Tensor:
        """[B, C] the logarithms of a client's probabilities."""
        features = net.features(batch.x)
        logs = functional.log_softmax(net.classify(features), 1)
        known, labels = client["features"], client["labels"]
        if len(labels):
            squared = torch.cdist(features, known, compute_mode="donot_use_mm_for_euclid_dist").square()
            # Of equally near ones the first ones count.
            nearest, places = (found[:, : self.neighbours] for found in squared.sort(stable=True, dim=1))
            weights = (nearest / (-features.shape[1] * self.scale)).softmax(1)
            of_neighbours = torch.zeros_like(logs).scatter_add_(1, labels[places], weights)
            # Of logarithms, because the network's probabilities may be too small for float32.
            own, theirs = logs.new_tensor([1 - self.share, self.share]).log()
            logs = torch.logaddexp(own + logs, theirs + of_neighbours.log())
        return logs
