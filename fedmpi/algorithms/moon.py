"""Model-contrastive federated learning.

Li, He, Song: Model-Contrastive Federated Learning. CVPR 2021. https://arxiv.org/abs/2103.16257
"""

from __future__ import annotations

from collections.abc import Mapping

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import BadInput
from fedmpi.lazy import functional, torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveFloat
from fedmpi.tasks.losses import cross_entropy
from fedmpi.typing import Batch, Cohort, Federation, Net, Tensor


@with_options
class MOON(FedAvg):
    """FedAvg with a contrastive loss: features near the global model's, far from the last local's (Li et al., 2021).

    The loss of each sample gets an additional term mu l, with l = -log(e^(s/tau) / (e^(s/tau) + e^(s'/tau))). Here s
    and s' are the cosines of the sample's features with those of the received model and with those of the client's
    last local model. Both models run in evaluation mode and get no gradient. Before a client's first round, its last
    model is the initial model, as in the authors' code.

    Features are the input of the model's classifier, as one vector. The paper's networks have a projection head
    before the classifier: `--model Projected`. On the virtual clock, a step costs 5/3 because of the two additional
    forward passes.

    Args:
        mu: weight of the contrastive term; 0 is FedAvg.
        tau: temperature.
    """

    mu: NonNegativeFloat = 1.0
    tau: PositiveFloat = 0.5

    @property
    def step_cost(self) -> float:
        return 5 / 3 if self.mu else 1.0

    def setup(self, fed: Federation) -> None:
        if not fed.at_clients.has_features:
            raise BadInput(
                "--model: MOON needs one built as Backbone(extractor, classifier), without a forward of its own"
            )
        super().setup(fed)
        self.previous = fed.client_state("previous", self.weights)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self, previous=self.previous[block])
            mean.add(local.weights, block)
            self.previous[block] = local.weights
        self.server_step(fed, mean.reduce(empty=self.weights))

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        if not self.mu:
            return super().loss(net, batch, start, client)

        features = net.features(batch.x)
        theirs = (net.at(weights).features(batch.x) for weights in (start, client["previous"]))
        cosines = [functional.cosine_similarity(features.flatten(1), other.flatten(1)) for other in theirs]
        # As in the paper's code. A softplus would be shorter, but its last bits depend on the position of an element,
        # and so on the other clients in a batched call.
        logits = torch.stack(cosines, 1) / self.tau
        contrast = cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
        return self.task.loss(net.classify(features), batch.y) + self.mu * contrast
