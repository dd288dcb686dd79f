"""FFA-LoRA: of the adapters B A only B is trained, so that the mean of the adapters is exact.

Sun, Li, Li, Ding: Improving LoRA in Privacy-preserving Federated Learning. ICLR 2024.
https://arxiv.org/abs/2403.12313
"""

from __future__ import annotations

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.toolbox.lora import ADAPTER, adapted_layers
from fedmpi.lazy import nn
from fedmpi.options import with_options
from fedmpi.typing import Tensor


@with_options
class FFALoRA(FedAvg):
    """FedAvg of low-rank adapters whose A stays as it was drawn, the same at all clients (Sun et al., 2024).

    A layer is W x + s B A x. Each client trains its B, and all else that is trained. With one common A, the mean of
    the products is the product of the means, mean_k(B_k A) = mean_k(B_k) A, which is not so if A_k differ. A is
    frozen, so it is never sent: half of the adapters' traffic, and no noise of `--privacy` is multiplied with noise.
    """

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        for _, layer in [*adapted_layers(network, type(self).__name__)]:
            layer.lora_A[ADAPTER].requires_grad_(False)
        return network
