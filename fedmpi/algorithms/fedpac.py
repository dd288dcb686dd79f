"""FedPAC: features aligned by prototypes, and heads combined for each client.

Xu, Tong, Huang: Personalized Federated Learning with Feature Alignment and Classifier Collaboration. ICLR 2023.
https://arxiv.org/abs/2306.11867
"""

from __future__ import annotations

import numpy as np

from fedmpi.algorithms.fedper import FedRep
from fedmpi.algorithms.prototypical import Prototypical, to_send
from fedmpi.algorithms.toolbox.features import class_means, features_of, labels_of
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveInt
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Trained, Vectors

#: Smaller weights of heads are set to zero, as in the authors' code.
LEAST = 1e-3


@with_options
class FedPAC(Prototypical, FedRep):
    """FedRep with prototypes, whose server combines the heads of similar clients (Xu, Tong and Huang, 2023).

    The head is the last fully connected layer, and features z are its f inputs. A client first trains its head with a
    frozen body, and then the body with a frozen head by CE + mu mean_f (z - c_y)^2. Here c_y is the server's
    prototype of the sample's class or, if there is none, the client's own mean features of the class by the received
    body. The server averages the bodies, and the class means of features by the trained bodies, weighted by samples
    of the class: the prototypes.

    Client i gets back the combination sum_j a_j head_j of the round's heads. Its weights are not negative, sum to 1,
    and minimise sum_j a_j^2 V_j + |h_i - sum_j a_j h_j|^2. With the received body, h_j are the mean features of each
    class times the share of the class, for all classes, and V_j = (E|z|^2 - |h_j|^2) / n_j is their variance, for n_j
    samples. Weights below 0.001 become zero. A client is evaluated with the head that it got in its last round, and
    the current body. The column own_share has the mean weight of a client's own head.

    Args:
        head_epochs: local epochs in which the head is trained.
        mu: weight of the distance; 0: none. The paper calls it lambda.
    """

    head_epochs: PositiveInt = 1
    mu: NonNegativeFloat = 1.0

    server_state = ("weights", "prototypes")
    forward_passes = 2  # for the statistics, and for the prototypes

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        own, shared = self.split(layout)
        size = len(self.prototypes)
        return [own, shared, size], [own, shared, size, 1, size + self.classes]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        prototypes, blocks, sent = fed.broadcast(self.prototypes), list[Block](), dict[int, Tensor]()

        def train(block: Block, start: Tensor) -> Trained:
            labels = labels_of(fed, block)
            before = [statistics(*samples) for samples in zip(features_of(fed, block, start), labels, strict=True)]
            own = torch.stack([means for means, _, _ in before]).to(prototypes.dtype)
            pulls = torch.where(prototypes.isnan(), own, prototypes)
            local = self.train_parts(fed, block, start, prototypes=pulls)
            features = features_of(fed, block, local.weights)
            for k in block.undiverged():
                means, counts = class_means(features[k], labels[k])
                weights = counts / counts.sum() * int(block.mass[k])
                parts = local.weights[k, self.own], *before[k][1:], to_send(means, weights)
                sent[int(block.clients[k])] = torch.cat(parts).float()
            blocks.append(block)
            return local

        self.average_shared(fed, cohort, train)
        size, count = self.own.stop, len(prototypes)
        rows = fed.gather(cohort, sent, size + 2 * count + 1 + self.classes)
        heads, moments, variances, means = rows.tensor_split([size, size + count, size + count + 1], 1)
        self.prototypes = self.updated(means)
        if fed.is_server:
            there = ~heads.isnan().any(1)
            weights = head_weights(moments[there].double(), variances[there, 0].double())
            heads[there] = (weights @ heads[there].double()).float()
            fed.log(own_share=weights.diagonal().mean().item())
        combined = fed.broadcast(heads, received=heads.numel())
        for block in blocks:
            theirs = combined[np.searchsorted(cohort.clients, block.clients)]
            self.kept[block] = torch.where(theirs.isnan(), self.kept[block], theirs)


def statistics(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A client's class means [C f], the same times the shares of the classes (h), and the variance V [1] of h.

    Args:
        features: [n, f]
        labels: [n, C], one-hot.
    """
    means, counts = class_means(features, labels)
    moments = (counts / counts.sum())[:, None] * means
    variance = (features.square().sum() / len(features) - moments.square().sum()) / len(features)
    return means.flatten(), moments.flatten(), variance.clamp(min=0)[None]


def head_weights(moments: Tensor, variances: Tensor) -> Tensor:
    """[m, m], for each client the weights of the heads of m clients, from h [m, n] and V [m] of all of them.

    With B'B = P, the vector x >= 0 with the smallest |B x|^2 + (sum x - 1)^2 is proportional to the weights a with
    the smallest q = a'P a: the smallest value for x = s a is q / (1 + q).
    """
    from scipy.optimize import nnls

    count = len(variances)
    near = torch.linalg.qr(moments.T, mode="r").R  # distances of its columns are those of the rows of `moments`
    rows = []
    for i in range(count):
        root = torch.cat((variances.sqrt().diag(), near[:, [i]] - near))
        # Neither too small beside a sum of 1 nor too large.
        root /= root.norm().clamp(min=torch.finfo(root.dtype).tiny)
        found, _ = nnls(torch.cat((root, root.new_ones(1, count))).numpy(), np.eye(len(root) + 1)[-1])
        shares = torch.from_numpy(found / found.sum())
        rows.append(torch.where(shares < LEAST, 0, shares))
    weights = torch.stack(rows)
    return weights / weights.sum(1, keepdim=True)
