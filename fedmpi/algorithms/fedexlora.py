"""FedEx-LoRA: exact means of low-rank adapters, by a correction of the layers that they adapt.

Singhal, Ponkshe, Vepakomma: FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language
Models. ACL 2025. https://arxiv.org/abs/2410.09432
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.toolbox.lora import ADAPTER, adapted_layers
from fedmpi.lazy import nn, torch
from fedmpi.options import with_options
from fedmpi.training.block import WHOLE, Phase
from fedmpi.typing import Block, Cohort, Entry, Federation, Layout, Tensor, Trained, Vectors


@dataclass(frozen=True)
class AdaptedLayer:
    """The layer W x + scale B A x; `is_transposed`: W is stored as its transpose."""

    w: Entry
    a: Entry
    b: Entry
    scale: float
    is_transposed: bool

    def add_product(self, model: Tensor, sign: int) -> None:
        """Add sign * scale * B A to W in a model [P], in place."""
        product = self.b.view(model) @ self.a.view(model)
        self.w.view(model).add_(product.T if self.is_transposed else product, alpha=sign * self.scale)


@with_options
class FedExLoRA(FedAvg):
    """FedAvg of low-rank adapters, with exactly the mean of the clients' models (Singhal et al., 2025).

    A layer is W x + s B A x, and clients train A and B. The server averages them, and adds what the product of the
    means lacks to the pre-trained W: W += s (mean_k(B_k A_k) - mean_k(B_k) mean_k(A_k)). So the model after a round
    is W + s mean_k(B_k A_k).

    The adapted layers' W are part of the model's vector, because they change. Clients receive them, do not train
    them, and do not send them.
    """

    takes_server_optimizer = takes_privacy = averages_models = False

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        self.adapted = {}
        for name, layer in [*adapted_layers(network, type(self).__name__)]:
            layer.base_layer.weight.requires_grad_(True)
            self.adapted[name] = float(layer.scaling[ADAPTER]), bool(getattr(layer, "fan_in_fan_out", False))
        return network

    def layers(self, layout: Layout) -> list[AdaptedLayer]:
        """The adapted layers of the network."""
        entries = {entry.name: entry for entry in layout.entries}
        return [
            AdaptedLayer(
                entries[f"{name}.base_layer.weight"],
                entries[f"{name}.lora_A.{ADAPTER}.weight"],
                entries[f"{name}.lora_B.{ADAPTER}.weight"],
                scale,
                is_transposed,
            )
            for name, (scale, is_transposed) in self.adapted.items()
        ]

    def sent(self, layout: Layout) -> NDArray[np.int64]:
        """The columns of the model's vector that clients train and send: all but the adapted layers' W."""
        corrected = [np.arange(layout.size)[layer.w.columns] for layer in self.layers(layout)]
        return np.setdiff1d(np.arange(layout.size), np.concatenate(corrected))

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        return [slice(layout.size)], [self.sent(layout)]

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        corrected = {layer.w.name for layer in self.layers(fed.layout)}
        trained = [entry for entry in fed.layout.entries if entry.is_parameter and entry.name not in corrected]
        columns = tuple(entry.columns for entry in trained)
        return super().train(fed, block, start, received, replace(phase, columns=columns))

    def round(self, fed: Federation, cohort: Cohort) -> None:
        layers, sent = self.layers(fed.layout), self.sent(fed.layout)
        start = fed.broadcast(self.weights)
        uplink = fed.context.uplink(cohort, start[sent], sent)
        mean = fed.context.mean_over(cohort, expected_mass=cohort.expected_mass)
        for block in fed.my_clients(cohort):
            local, left = self.train(fed, block, start, received=start), block.undiverged()
            group = np.zeros(len(left), dtype=np.int64)
            arrived, senders, _ = uplink.send(local.weights[left][:, sent], block.rows(left), group)
            mean.add(self.merged(layers, start, sent, arrived), senders)
        for arrived, senders, _ in uplink.late():
            mean.add(self.merged(layers, start, sent, arrived), senders)
        result = mean.reduce(empty=self.merged(layers, self.weights, sent, self.weights[sent][None])[0])
        for layer in layers:
            layer.add_product(result, -1)
        self.weights = result

    @staticmethod
    def merged(layers: list[AdaptedLayer], start: Tensor, sent: NDArray[np.int64], vectors: Tensor) -> Tensor:
        """[K, P], the models of sent vectors [K, n], whose adapters are added to the adapted layers as well."""
        models = start.expand(len(vectors), -1).clone()
        models[:, torch.from_numpy(sent).to(models.device)] = vectors
        for model in models:  # one after another, because bits of products depend on their number
            for layer in layers:
                layer.add_product(model, +1)
        return models
