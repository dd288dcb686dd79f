"""FedProto: clients exchange class means of features, and no models.

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang: FedProto: Federated Prototype Learning across Heterogeneous Clients. AAAI
2022. https://arxiv.org/abs/2105.00243
"""

from __future__ import annotations

from collections.abc import Mapping

from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.algorithms.prototypical import Prototypical, to_send
from fedmpi.algorithms.toolbox.features import class_means, features_of, labels_of
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat
from fedmpi.typing import Batch, Block, Cohort, Federation, Layout, Net, Tensor, Vectors


@with_options
class FedProto(Prototypical, LocalOnly):
    """Local models whose features are pulled towards common prototypes of the classes (Tan et al., 2022).

    Every client has a model of its own, which is never sent. After its training, a client sends the mean features of
    each class that it has: its prototypes. Features z are the f inputs of the last fully connected layer. The server
    averages the prototypes of each class over the clients that have it, with equal weights by default. A class that
    nobody in the round has keeps its prototype. The local loss is CE + mu mean_f (z - c_y)^2, where c_y is the
    received prototype of the sample's class, so there is no such term in the first round.

    Each client's model predicts the class with the nearest prototype, on the client's own test samples. The logits
    are the negative distances mean_f (z - c)^2, and classes without a prototype have the probability 0. Before there
    are any prototypes, the model's own last layer predicts. The column head_accuracy is that of the last layers.

    Args:
        mu: weight of the distance; 0: the models of LocalOnly. The paper calls it lambda.
    """

    mu: NonNegativeFloat = 1.0

    server_state = ("prototypes",)
    weighting = "uniform"
    forward_passes = 1  # for the prototypes

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        return [len(self.prototypes)], [len(self.prototypes) + self.classes]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        prototypes = fed.broadcast(self.prototypes)
        sent: dict[int, Tensor] = {}
        for block in fed.my_clients(cohort):
            local = fed.train(block, self.own[block], self, prototypes=prototypes)
            self.own[block] = local.weights
            features, labels = features_of(fed, block, local.weights), labels_of(fed, block)
            for k in block.undiverged():
                means, counts = class_means(features[k], labels[k])
                sent[int(block.clients[k])] = to_send(means, (counts > 0) * int(block.mass[k])).float()
        self.prototypes = self.updated(fed.gather(cohort, sent, len(self.prototypes) + self.classes))

    def evaluate(self, fed: Federation) -> None:
        """Each client's model on the client's test samples: by the nearest prototypes, and by its last layer."""
        prototypes = fed.broadcast(self.prototypes, received=0)

        def own(block: Block, weights: Tensor) -> Tensor:
            return self.own[block]

        def known(block: Block, models: Tensor) -> Mapping[str, Tensor]:
            return {"prototypes": prototypes.expand(len(block), -1)}

        fed.report_personal(fed.evaluate_clients(self.weights, own, self.nearest, known))
        fed.log(**{f"head_{fed.task.main}": fed.evaluate_clients(self.weights, own).main})

    def nearest(self, net: Net, batch: Batch, client: Mapping[str, Tensor]) -> Tensor:
        """[B, C], the negative mean squared distances to the prototypes."""
        prototypes = client["prototypes"].view(self.classes, -1)
        unknown = prototypes.isnan().any(1)
        if unknown.all():
            return net(batch.x)
        features = net.features(batch.x)
        distances = torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
        return -distances.square().div(features.shape[1]).masked_fill(unknown, torch.inf)
