"""Local losses with logits that are corrected by the client's own label counts.

FedLC: Zhang, Li, Li, Xu, Wu, Ding, Wu: Federated Learning with Label Distribution Skew via Logits Calibration. ICML
2022. https://arxiv.org/abs/2209.00189
BalancedSoftmax: Ren, Yu, Sheng, Ma, Zhao, Yi, Li: Balanced Meta-Softmax for Long-Tailed Visual Recognition. NeurIPS
2020. https://arxiv.org/abs/2007.10740
FedRS: Li, Zhan: FedRS: Federated Learning with Restricted Softmax for Label Distribution Non-IID Data. KDD 2021.
https://doi.org/10.1145/3447548.3467254
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, Probability
from fedmpi.training.block import WHOLE, Phase
from fedmpi.typing import Batch, Block, Federation, Net, Tensor, Trained


class Calibrated(FedAvg):
    """FedAvg whose clients train on logits that are corrected by their own label counts.

    The counts stay at the client. The model is evaluated with its own logits.
    """

    needs_classes = True

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        with np.errstate(divide="ignore"):  # an absent class has a shift of minus infinity
            terms = self.terms(fed.label_counts[block.clients].astype(np.float64))
        return fed.train(block, start, self, phase, terms=torch.from_numpy(terms).to(fed.device, start.dtype))

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return self.task.loss(self.correct(self.predict(net, batch, client), client["terms"]), batch.y)

    @abstractmethod
    def terms(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """[K, C] what corrects the logits, from the numbers of training samples [K, C] of K clients and C classes."""

    def correct(self, logits: Tensor, terms: Tensor) -> Tensor:
        """[B, C] the corrected logits, from the logits [B, C] and one client's terms [C]."""
        return logits + terms


@with_options
class FedLC(Calibrated):
    """FedAvg with logits calibrated by a margin per class (Zhang et al., 2022).

    The local loss is the cross entropy of z_c - tau n_c^(-1/4). Here z are the logits, and n_c is the number of the
    client's training samples of class c. So rare classes get a larger margin. Classes that the client does not have
    are left out of the softmax, so the client does not change their part of the last layer. The sum in the softmax
    includes the true class, as in all public code.

    Args:
        tau: size of the margin; 0 is FedAvg.
    """

    tau: NonNegativeFloat = 1.0

    def terms(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(-self.tau / np.sqrt(np.sqrt(counts)) if self.tau else np.zeros_like(counts))


class BalancedSoftmax(Calibrated):
    """FedAvg with the balanced softmax of each client's label distribution (Ren et al., 2020).

    The local loss is the cross entropy of z_c + log n_c. Here z are the logits, and n_c is the number of the client's
    training samples of class c. So the logits learn a posterior for balanced classes. Classes that the client does
    not have are left out of the softmax. It is the logit adjustment of Menon et al. (ICLR 2021) with their tau = 1.
    """

    def terms(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(counts)


@with_options
class FedRS(Calibrated):
    """FedAvg with a restricted softmax: smaller logits of the classes that a client lacks (Li and Zhan, 2021).

    The local loss is the cross entropy of a_c z_c, where z are the logits. With scale "missing", a_c is alpha for
    classes without training samples, and 1 for the others. With scale "frequency", as in the authors' code, it is
    alpha + (1 - alpha) n_c / max_j n_j for the client's n_c samples of class c.

    Args:
        alpha: the smallest factor; 1 is FedAvg.
        scale: how the factor of a class depends on its samples.
    """

    alpha: Probability = 0.5
    scale: Literal["missing", "frequency"] = "missing"

    def terms(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        most = np.maximum(counts.max(1, keepdims=True), 1)
        share = counts / most if self.scale == "frequency" else counts > 0
        return np.asarray(self.alpha + (1 - self.alpha) * share)

    def correct(self, logits: Tensor, terms: Tensor) -> Tensor:
        return logits * terms
