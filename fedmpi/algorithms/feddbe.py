"""FedDBE: a personal shift of the features, and features whose mean is the same at all clients.

Zhang, Hua, Cao, Wang, Song, Xue, Ma, Guan: Eliminating Domain Bias for Federated Learning in Representation Space.
NeurIPS 2023. https://arxiv.org/abs/2311.14975
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.partly_shared import PartlyShared
from fedmpi.algorithms.toolbox.features import features_before_last_layer, features_of
from fedmpi.errors import BadInput
from fedmpi.lazy import nn, torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat
from fedmpi.training.block import Phase
from fedmpi.typing import Batch, Block, Cohort, Columns, Federation, Layout, Net, Tensor, Trained, Vectors


@with_options
class FedDBE(PartlyShared):
    """FedAvg with a personal shift of the features, whose mean is pulled to a common one (Zhang et al., 2023).

    Features z are the f inputs of the last fully connected layer, the head. Client k adds its own vector t_k to them,
    so its logits are head(z + t_k). t_k starts as zero, is trained in the same steps as the rest, and stays with the
    client. The loss of a batch gets the additional term kappa/2 mean_f (m - c)^2, where m is the mean of the batch's
    z, and c is the mean of all clients' features.

    In the first round all clients are asked. They train as in FedAvg, without t_k and the term. Then each sends the
    mean features of its samples by its trained model, and c is their mean, weighted as the models. It stays the same
    from then on.

    A client is evaluated with the current global model and its t_k on its own test samples. The column
    global_accuracy has the accuracy of the global model, without any t_k, on the whole test set.

    Args:
        kappa: weight of the term; 0: none. The authors use 50 for Fashion-MNIST, with a learning rate of 0.005. With
            0.1, training can become unstable.
    """

    kappa: NonNegativeFloat = 1.0

    server_state = ("weights", "common")
    hidden_state = ("common",)
    takes_accumulation = False
    takes_privacy = False  # mean features are sent as well

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        return clients if round == 1 else cohort

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        from fedmpi.models._layers import Backbone
        from fedmpi.models._personal import Shifted

        split = features_before_last_layer(network, type(self).__name__)
        assert isinstance(split.classifier, nn.Linear)
        return Backbone(split.extractor, Shifted(split.classifier))

    def split(self, layout: Layout) -> tuple[slice, Columns]:
        (own,) = [entry.columns for entry in layout.entries if entry.name == "classifier.shift"]
        return own, np.delete(np.arange(layout.size), own)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        shape = fed.at_clients.feature_shape
        if len(shape) != 1:
            raise BadInput(f"--model: FedDBE needs one feature vector per sample, not features {list(shape)}")
        self.common = torch.full(shape, math.nan)

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        received, sent = super().payload(layout)
        own, _ = self.split(layout)
        return [*received, own.stop - own.start], sent  # the common mean is as long as the shift

    def count_work(self, fed: Federation, cohort: Cohort) -> NDArray[np.float64]:
        """Until the common mean is known, also a forward pass over all samples."""
        unknown = bool(fed.broadcast(self.common, received=0).isnan().any())
        steps = fed.count_steps(replace(cohort, completed=None), Phase(epochs=1))
        return super().count_work(fed, cohort) + unknown * steps / 3

    def round(self, fed: Federation, cohort: Cohort) -> None:
        common = fed.broadcast(self.common)
        is_first, means = bool(common.isnan().any()), dict[int, Tensor]()
        shift, _ = self.split(fed.layout)
        others = slice(0, shift.start), slice(shift.stop, fed.layout.size)

        def train(block: Block, start: Tensor) -> Trained:
            if not is_first:
                return fed.train(block, start, self, common=common)
            local = fed.train(block, start, self, Phase(columns=others))
            found = features_of(fed, block, local.weights)
            means.update({int(block.clients[k]): found[k].mean(0).float() for k in block.undiverged()})
            return local

        self.average_shared(fed, cohort, train)
        if is_first:
            rows = fed.gather(cohort, means, len(common)).double()
            mass = torch.from_numpy(cohort.mass).to(rows.device) * ~rows.isnan().any(1)
            self.common = ((mass[:, None] * rows.nan_to_num(nan=0.0)).sum(0) / mass.sum()).float()

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        features = net.features(batch.x)
        losses = self.task.loss(net.classify(features), batch.y)
        if not self.kappa or "common" not in client:
            return losses
        mean = (features * batch.real[:, None]).sum(0) / batch.real.sum()
        return losses + self.kappa / 2 * (mean - client["common"]).square().mean()

    def evaluate(self, fed: Federation) -> None:
        """Each client's model on the client's test samples, and the global model on the whole test set."""
        super().evaluate(fed)
        # The server's shift is zero.
        fed.log(**{f"global_{fed.task.main}": fed.evaluate(self.weights).main})
