"""Feature fusion, FedFusion in its paper.

Yao, Huang, Wu, Zhang, Sun: Towards Faster and Better Federated Learning: A Feature Fusion Approach. ICIP 2019.
https://doi.org/10.1109/ICIP.2019.8803001
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import BadInput, require
from fedmpi.lazy import nn, torch
from fedmpi.options import with_options
from fedmpi.ranges import BelowOne, NonNegativeInt
from fedmpi.training.block import WHOLE, Phase
from fedmpi.typing import Batch, Block, Federation, Net, Tensor, Trained

SMOOTHING = 0.9  # from the authors' code; the paper does not state it


@with_options
class FeatureFusion(FedAvg):
    """FedAvg whose clients fuse their extractor's features with those of the frozen global one (Yao et al., 2019).

    A client's model is C(F(E(x), E_g(x))): the extractor E, the classifier C and the fusion operator F are trained,
    sent and averaged; E_g is the extractor as received, in evaluation mode. The features E_g(x) of the client's
    samples are computed once per round, unless samples are augmented or the features take too much memory. On the
    virtual clock this costs one forward pass over the samples, or one forward pass in every step.

    Args:
        operator: the fusion operator F. conv: a 1x1 convolution over both extractors' channels. multi: a learned
            share of the frozen extractor E_g per channel. single: one learned share for all channels.
        smoothing: smoothing of the shares at the server: they become (1 - smoothing) times the clients' mean plus
            smoothing times their old values; null: 0.9. Not for conv.
        start: initial weights of conv: default, as PyTorch draws them; or average, the mean of both extractors.
            Shares start at zero, so training starts as in FedAvg.
        evaluated_with: the frozen extractor E_g in evaluations of the global model. previous: the extractor that the
            last round's clients received, as in the authors' code. self: the model's own extractor, with which shares
            have no effect. Both accuracies are columns.
        cache_mb: memory per rank for features of the frozen extractor E_g, in 10^6 bytes. If the clients that are
            trained together on a rank could need more, features are computed in every step. The column
            cached_features says what was done.
    """

    operator: Literal["conv", "multi", "single"] = "multi"
    smoothing: BelowOne | None = None
    start: Literal["default", "average"] = "default"
    evaluated_with: Literal["previous", "self"] = "previous"
    cache_mb: NonNegativeInt = 1000

    server_state = ("weights", "previous")

    def __post_init__(self) -> None:
        blends, needed = self.operator != "conv", "null with operator conv, which has no shares"
        require(blends or self.smoothing is None, "smoothing", self.smoothing, needed)
        require(not blends or self.start == "default", "start", self.start, f"default with operator {self.operator}")
        if blends and self.smoothing is None:
            self.smoothing = SMOOTHING

    @property
    def step_cost(self) -> float:
        return 1.0 if self.caches else 4 / 3

    @property
    def forward_passes(self) -> int:
        return 1 if self.caches else 0

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        from fedmpi.models import Backbone
        from fedmpi.models._fusion import Blend, Fused, Mix

        if not isinstance(network, Backbone) or not network.is_in_two_parts:
            raise BadInput(
                "--model: FeatureFusion needs one built as Backbone(extractor, classifier),"
                " without a forward of its own"
            )
        with torch.no_grad():
            features = network.extractor.eval()(example)
        network.extractor.train()
        if features.dim() not in (2, 4):
            raise BadInput(
                f"--model: FeatureFusion needs features [B, C] or [B, C, H, W], not {list(features.shape)}"
            )
        channels = features.shape[1]
        if self.operator == "conv":
            return Fused(network.extractor, Mix(channels, self.start), network.classifier)
        return Fused(network.extractor, Blend(channels if self.operator == "multi" else 1), network.classifier)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.previous = self.weights
        self.shares = [entry.columns for entry in fed.layout.entries if entry.name == "fusion.share"]
        needed = 4 * fed.at_clients.at_once * int(fed.samples.max()) * prod(fed.at_clients.feature_shape) / 1e6
        augments = fed.local.augmentation != "none"
        self.caches = not augments and needed <= self.cache_mb
        if not self.caches:
            reason = "samples are augmented" if augments else f"they would take up to {needed:.0f} MB per rank"
            fed.say(f"features of the global extractor are computed in every step, because {reason}")

    def train(self, fed: Federation, block: Block, start: Tensor, received: Tensor, phase: Phase = WHOLE) -> Trained:
        known = {"features": fed.at_clients.features(block, received)} if self.caches else {}
        return fed.train(block, start, self, phase, received=received, **known)

    def predict(self, net: Net, batch: Batch, client: Mapping[str, Tensor]) -> Tensor:
        if batch.place is not None and "features" in client:
            theirs = client["features"][batch.place]
        else:
            theirs = net.at(client["received"]).features(batch.x)
        return net.classify(net.run("fusion", theirs, net.features(batch.x)))

    def server_step(self, fed: Federation, mean: Tensor) -> None:
        """As in FedAvg, but shares are updated by an exponential moving average (section 3.2 of the paper)."""
        smoothed = mean.clone()
        for columns in self.shares:
            assert self.smoothing is not None
            # The old values are zero in the first round, as in the authors' code.
            smoothed[columns] = (1 - self.smoothing) * mean[columns] + self.smoothing * self.weights[columns]
        self.previous = self.weights
        super().server_step(fed, smoothed)
        fed.log(cached_features=self.caches)

    def evaluate(self, fed: Federation) -> None:
        """Evaluate the global model on the test set, with E_g from the previous round and with its own extractor."""
        measured = {
            "previous": fed.evaluate(self.weights, self.predict, received=self.previous),
            "self": fed.evaluate(self.weights),
        }
        fed.report(measured[self.evaluated_with])
        fed.log(**{f"with_{name}_extractor_{fed.task.main}": found.main for name, found in measured.items()})
