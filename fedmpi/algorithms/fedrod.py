"""FedRoD: a generic head for all clients, and a personal one on top of it.

Chen, Chao: On Bridging Generic and Personalized Federated Learning for Image Classification. ICLR 2022.
https://arxiv.org/abs/2107.00778
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedmpi.algorithms.fedper import FedPer
from fedmpi.algorithms.toolbox.features import features_before_last_layer
from fedmpi.lazy import nn, torch
from fedmpi.typing import Batch, Block, Federation, Net, Tensor, Trained

#: In place of the number of samples of a class that a client lacks, whose logarithm does not exist.
LEAST = 1e-12


class FedRoD(FedPer):
    """A shared body and generic head G, and a personal head P per client that corrects G (Chen and Chao, 2022).

    Body and G learn by balanced softmax, CE(G(z) + log n_k, y), where z are the features and n_k the client's numbers
    of samples per class. P learns by CE(G(z) + P(z), y), whose gradient reaches neither G nor the body. The server
    averages the body and G; P stays with each client. A client is evaluated with G(z) + P(z) on its own test samples.
    The column global_accuracy has the accuracy of G(z) on the whole test set.

    Both heads have the shape of the network's last fully connected layer. P starts as zero, so a client that has not
    taken part yet is evaluated with the generic model. The training loss is the sum of both losses.
    """

    needs_classes = True
    takes_clip_norm = False

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        from fedmpi.models._layers import Backbone
        from fedmpi.models._personal import TwoHeads

        split = features_before_last_layer(network, type(self).__name__)
        assert isinstance(split.classifier, nn.Linear)
        return Backbone(split.extractor, TwoHeads(split.classifier))

    def train_parts(self, fed: Federation, block: Block, start: Tensor) -> Trained:
        counts = np.maximum(fed.label_counts[block.clients], LEAST)
        prior = torch.from_numpy(np.log(counts)).to(fed.device, start.dtype)
        return fed.train(block, start, self, prior=prior)

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        features = net.features(batch.x)
        generic = net.run("classifier.generic", features)
        both = generic.detach() + net.run("classifier.personal", features.detach())
        return self.task.loss(generic + client["prior"], batch.y) + self.task.loss(both, batch.y)

    def evaluate(self, fed: Federation) -> None:
        """Each client's model on the client's test samples, and the generic model on the whole test set."""
        super().evaluate(fed)
        # The server's personal head is zero.
        fed.log(**{f"global_{fed.task.main}": fed.evaluate(self.weights).main})
