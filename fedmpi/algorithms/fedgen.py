"""FedGen.

Zhu, Hong, Zhou: Data-Free Knowledge Distillation for Heterogeneous Federated Learning. ICML 2021.
https://arxiv.org/abs/2105.10056
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import BadInput
from fedmpi.lazy import functional, torch
from fedmpi.models.generators import Generator
from fedmpi.models.generators.features import FeatureGenerator
from fedmpi.options import null_for, with_options
from fedmpi.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, UpToOne, interval
from fedmpi.tasks.losses import cross_entropy
from fedmpi.typing import Batch, Block, Cohort, Federation, FlatModel, Layout, Net, Tensor, Vectors

#: Minimum of the weights of the clients' two terms, as in the authors' code.
LEAST = 1e-4
#: Feature vectors per class that a client generates in a round, and the number of draws from them.
MADE, DRAWS = 50, 1000


@with_options
class FedGen(FedAvg):
    """FedAvg whose clients also learn from features that a generator at the server makes (Zhu et al., 2021).

    Features are the input of the head, the last fully connected layer. After each round the server trains the
    generator G so that the clients' heads classify its features as the requested class. It uses Adam on the sum over
    clients of a_k(y) CE(head_k(z), y), where z = G(e, y), e is standard normal noise, y any class of the cohort, and
    a_k(y) the client's share of the cohort's samples of y; plus a term for features as diverse as the noise.

    A client adds two terms to the loss of each sample (x, y): alpha CE(head(G(e', y')), y'), with y' any class, and
    beta times the divergence of the network's prediction for x from the head's prediction for G(e, y). Both weights
    fall from round to round, to no less than 1e-4. Only classes that the generator has been trained on are used, so
    the first round does not have these terms. The generator does not change during a round, so each client generates
    50 feature vectors per class at its start. For each of its samples and terms it draws one of them.

    A generator with non-finite weights is re-initialised; the column generator_resets counts this.

    Args:
        generator: the network that makes features; null: FeatureGenerator.
        alpha: weight of the term for generated features of any class in the first round.
        beta: weight of the term for generated features of the sample's class. The authors use 10 for both, with a
            learning rate of 0.01; with 0.1 most networks then diverge.
        decay: factor per round of alpha and beta.
        steps: steps of the generator (Adam) per round.
        batch_size: generated features per step.
        lr: learning rate of the generator in the first round.
        lr_decay: factor per round of the generator's learning rate.
        weight_decay: weight_decay times the weights is added to the generator's gradient.
    """

    generator: Generator = null_for(FeatureGenerator)
    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 1.0
    decay: UpToOne = 0.98
    steps: PositiveInt = 50
    batch_size: Annotated[int, interval("[2, inf)", "at least 2, for the generator's batch normalisation")] = 32
    lr: PositiveFloat = 3e-4
    lr_decay: UpToOne = 0.98
    weight_decay: NonNegativeFloat = 1e-2

    needs_classes = True
    server_state = ("weights", "generator_weights", "moments", "moves", "known")
    looks_at_models = True
    takes_privacy = False

    def setup(self, fed: Federation) -> None:
        if not fed.at_clients.ends_in_head:
            raise BadInput("--model: FedGen needs one that ends in a fully connected layer")
        head = [entry for entry in fed.layout.entries if entry.segment == "head"]
        self.head, _, first = head[0].name.rpartition(".") if head else ("", "", "")
        if first != "weight" or f"{self.head}.bias" in fed.layout.frozen:
            raise BadInput("--model: FedGen needs one whose last fully connected layer is trained, weight and bias")
        super().setup(fed)
        self.classes, self.features = head[0].shape
        self.network = self.draw_network(fed)
        self.start_generator(self.network)

    def draw_network(self, fed: Federation) -> FlatModel:
        """An untrained generator."""
        return fed.at_server.build(partial(self.generator.build, (self.features,), self.classes), "generator")

    def start_generator(self, drawn: FlatModel) -> None:
        """Set the generator's initial weights; it has been trained on no class yet."""
        self.generator_weights = drawn.weights[0].cpu().clone()
        self.moments = torch.zeros(2, self.network.layout.parameters)  # Adam's
        self.moves = torch.zeros(1)  # Adam's steps so far
        self.known = torch.zeros(self.classes)  # 1 for classes that the generator was trained on

    @property
    def networks(self) -> Mapping[str, Layout]:
        return {"generator_weights": self.network.layout}

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        whole = slice(layout.size)
        return [whole, len(self.generator_weights), len(self.known)], [whole]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        generator, known = fed.broadcast(self.generator_weights), fed.broadcast(self.known)
        self.network.load(generator)
        self.network.module.eval()
        mean = fed.weighted_mean(cohort, start)
        head = fed.layout.segments["head"]
        heads: dict[int, Tensor] = {}
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self, **self.lessons(fed, block, known))
            mean.add(local.weights, block)
            heads |= {int(block.clients[k]): local.weights[k, head].clone() for k in block.undiverged()}
        self.server_step(fed, mean.reduce(empty=self.weights))
        taught = fed.gather(cohort, heads, head.stop - head.start, counts=False)
        with fed.at_server.serving():
            if fed.is_server:
                arrived = ~taught.isnan().any(1)
                if arrived.any():
                    self.train_generator(fed, cohort.subset(np.flatnonzero(arrived.numpy())), taught[arrived])

    def lessons(self, fed: Federation, block: Block, known: Tensor) -> dict[str, Any]:
        """The vectors that a client's loss reads; none in the first round.

        Returns: features [K, classes, MADE, f]; draws [K, DRAWS, 3], a trained class and the numbers of two feature
            vectors; known [classes], whether a class was trained; and strength [2], the weights of both terms.
        """
        classes = np.flatnonzero(known.cpu().numpy())
        strength = [max(w * self.decay ** (fed.round - 1), min(w, LEAST)) for w in (self.alpha, self.beta)]
        if not (len(classes) and any(strength)):
            return {}
        features, draws = [], []
        for client in block.clients.tolist():
            stream = fed.stream("generated features", client)
            labels = np.repeat(np.arange(self.classes), MADE)
            with torch.no_grad():
                made = self.network.module(*self.asked(stream, labels))
            features.append(made.view(self.classes, MADE, -1))
            drawn = [stream.choice(classes, DRAWS), *stream.integers(MADE, size=(2, DRAWS))]
            draws.append(torch.from_numpy(np.stack(drawn, 1)).to(fed.device))
        return {
            "features": torch.stack(features),
            "draws": torch.stack(draws),
            "known": known,
            "strength": torch.tensor(strength, device=fed.device),
        }

    def asked(self, stream: np.random.Generator, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The generator's input: noise [B, n] from the stream, and labels [B]."""
        noise = stream.standard_normal((len(labels), self.generator.noise), dtype=np.float32)
        return torch.from_numpy(noise).to(self.network.device), torch.from_numpy(labels).to(self.network.device)

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        if "features" not in client:
            return super().loss(net, batch, start, client)

        features, (alpha, beta) = client["features"], client["strength"]
        # By the sample's number, so that a client's draws do not depend on other clients. They differ between rounds.
        label, any_class, own_class = client["draws"][batch.index % DRAWS].unbind(-1)
        logits = self.predict(net, batch, client)
        of_any, of_own = (
            net.run(self.head, features[y, number]) for y, number in ((label, any_class), (batch.y, own_class))
        )
        target = functional.log_softmax(of_own.detach(), -1)
        divergence = (target.exp() * (target - functional.log_softmax(logits, -1))).sum(-1) * client["known"][batch.y]
        return cross_entropy(logits, batch.y) + alpha * cross_entropy(of_any, label) + beta * divergence

    def train_generator(self, fed: Federation, cohort: Cohort, heads: Tensor) -> None:
        """The generator's steps of a round, with the heads [m, n] of its clients."""
        from fedmpi.algorithms.toolbox.distillation import class_shares, diversity_loss
        from fedmpi.training.optimizers import Adam

        model, counts = self.network, fed.label_counts[cohort.clients]
        present = np.flatnonzero(counts.sum(0))
        shares = torch.from_numpy(class_shares(counts)).to(fed.device, torch.float32)
        weight = heads[:, : self.classes * self.features].view(-1, self.classes, self.features).to(fed.device)
        bias = heads[:, weight[0].numel() :].to(fed.device)
        optimizer = Adam(model.gradient.shape, fed.device, self.weight_decay)
        optimizer.first[0], optimizer.second[0] = self.moments.to(fed.device)
        optimizer.steps = int(self.moves)
        stream, lr = fed.stream("generator's training"), self.lr * self.lr_decay ** (fed.round - 1)
        model.load(self.generator_weights)
        model.module.train()
        for _ in range(self.steps):
            noise, labels = self.asked(stream, stream.choice(present, self.batch_size))
            made = model.module(noise, labels)
            losses = ensemble_losses(made, labels, weight, bias, shares)
            model.backward(losses + diversity_loss(made, noise))
            optimizer.advance()
            with torch.no_grad():
                optimizer.step(model.weights[:, : model.layout.parameters], model.gradient, lr)
        is_finite = bool(model.weights.isfinite().all())
        fed.log(generator_resets=int(not is_finite))
        if not is_finite:
            self.start_generator(self.draw_network(fed))
            return
        self.generator_weights = model.weights[0].cpu().clone()
        self.moments = torch.cat((optimizer.first, optimizer.second)).cpu()
        self.moves = self.moves + self.steps
        self.known[present] = 1


def ensemble_losses(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, shares: Tensor) -> Tensor:
    """[B], sum_k a_k(y) CE(head_k(z), y) of each of the features z [B, f] and labels y [B].

    Args:
        weight, bias: [m, C, f] and [m, C] of the clients' heads; bias [m, 0]: they have none.
        shares: [m, C], a_k(y).
    """
    logits = features @ weight.transpose(1, 2)  # [m, B, C]
    if bias.shape[1]:
        logits = logits + bias[:, None]
    losses = cross_entropy(logits.flatten(0, 1), labels.repeat(len(weight)))
    return (shares[:, labels] * losses.view(len(weight), -1)).sum(0)
