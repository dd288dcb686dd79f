"""FedFomo.

Zhang, Sapra, Fidler, Yeung, Alvarez: Personalized Federated Learning with First Order Model Optimization. ICLR 2021.
https://arxiv.org/abs/2012.08565
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.mixing import Mixing
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveInt, Probability, interval
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Vectors


@dataclass
class Judge:
    """A client that compares models in a round.

    Attributes:
        client: its number.
        base: [P], its model before the training, in host memory.
        loss: the loss of this model.
        affinity: [clients], see `FedFomo`; updated by the comparisons.
        candidates: the clients whose models it compares, with its own number.
    """

    client: int
    base: Tensor
    loss: float
    affinity: Tensor
    candidates: set[int] = field(default_factory=set)


@with_options
class FedFomo(Mixing):
    """Each client's model moves towards those models that lower its loss on samples set aside (Zhang et al., 2021).

    A client sets a part of its samples aside, always the same ones. It trains its model b on the others, which gives
    w_k. Then it compares w_k and the models w_n of some other clients of the round by their mean loss L_k on the
    samples set aside. Their weights are a_n = max(L_k(b) - L_k(w_n), 0) / |w_n - b|, with the distance of the
    parameters. The client's new model is b + sum_n a_n (w_n - b) / sum_n a_n. It is evaluated on the client's test
    samples. A client with a single sample sets none aside, compares nothing, and keeps w_k.

    The other clients are chosen by affinity, which is the sum of (L_k(b) - L_k(w_n)) / |w_n - b| over all rounds in
    which the client compared n's model. Ties are broken at random. With a probability that falls from round to round,
    a random client is chosen in place of the best one that is left. The column others of /clients has the share of
    the others' models in the sum. On the virtual clock, the loss of a model costs a forward pass over the samples set
    aside.

    Args:
        models: number of models that a client compares in a round: its own, and those that it receives.
        set_aside: share of a client's samples that it sets aside, rounded, but at least one if it has two.
        fallback: the new model if no weight is positive. base: the client's model before this round (b). keep: the
            model that it has just trained (w_k).
        explore: probability in the first round that a client is chosen at random.
        explore_decay: by how much it falls per round.
    """

    models: PositiveInt = 5
    set_aside: Annotated[float, interval("(0, 1)")] = 0.2
    fallback: Literal["base", "keep"] = "base"
    explore: Probability = 0.3
    explore_decay: NonNegativeFloat = 0.05

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.affinity = fed.client_state("affinity", self.weights.new_zeros(fed.clients))
        shuffled = [fed.stream("set aside", client).permutation(shard) for client, shard in enumerate(fed.shards)]
        counts = [min(max(round(self.set_aside * len(shard)), 1), len(shard) - 1) for shard in shuffled]
        self.aside = [shard[:count] for shard, count in zip(shuffled, counts, strict=True)]
        fed.at_clients.train_on([shard[count:] for shard, count in zip(shuffled, counts, strict=True)])

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        return [], [slice(layout.size)]

    def count_received(self, clients: NDArray[np.int64], present: int) -> NDArray[np.int64]:
        """[m], how many of the other models each client receives if so many clients take part."""
        compares = np.array([len(self.aside[client]) > 0 for client in clients.tolist()])
        return np.where(compares, min(self.models, max(present, 1)) - 1, 0)

    def received_beside(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        return self.count_received(cohort.clients, len(cohort)) * fed.layout.size

    def count_work(self, fed: Federation, cohort: Cohort) -> NDArray[np.float64]:
        """The training, and the losses of the model before it, of the trained model, and of those received."""
        passes = self.count_received(cohort.clients, len(cohort)) + 2
        batches = [fed.local.count_cuts(len(self.aside[client]), False) for client in cohort.clients.tolist()]
        return super().count_work(fed, cohort) + passes / 3 * np.array(batches)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        models, mine, judges = fed.stack(cohort, self.own.initial), [], []
        for block in fed.my_clients(cohort):
            bases, affinities = self.own[block], self.affinity[block].cpu()
            losses = [self.measure(fed, block.rows([k]), base) for k, base in enumerate(bases)]
            local = fed.train(block, bases, self)
            models.add(local.weights, block)
            for k in block.undiverged():
                client, alone = int(block.clients[k]), block.rows([k])
                mine.append(alone)
                judges.append(Judge(client, bases[k].cpu(), losses[k], affinities[k]))
                if self.fallback == "keep" or not len(self.aside[client]):
                    self.own[alone] = local.weights[[k]]
        models.close()
        present = cohort.clients[models.present]
        for judge in judges:
            judge.candidates = self.choose(fed, judge, present)

        def weigh(number: int, client: int, model: Tensor) -> float:
            return self.weigh(fed, mine[number], judges[number], client, model)

        received = int(self.count_received(present, len(present)).sum())
        for alone, mixture in self.mixtures(fed, cohort, models, mine, received, weigh):
            self.own[alone] = mixture
        for alone, judge in zip(mine, judges, strict=True):
            self.affinity[alone] = judge.affinity[None]

    def measure(self, fed: Federation, alone: Block, model: Tensor) -> float:
        """The loss of a model [P] on the samples that a client set aside; NaN if there are none."""
        return fed.at_clients.losses(alone, model[None], [self.aside[alone.clients[0]]]).item()

    def choose(self, fed: Federation, judge: Judge, present: NDArray[np.int64]) -> set[int]:
        """The numbers of the clients whose models this client compares, and its own number."""
        draws = fed.stream("candidates", judge.client)
        others = draws.permutation(present[present != judge.client])
        left = others[np.argsort(-judge.affinity.numpy()[others], kind="stable")].tolist()
        count = int(self.count_received(np.array([judge.client]), len(present))[0])
        explores = draws.random(count) < self.explore - self.explore_decay * (fed.round - 1)
        return {judge.client, *(left.pop(draws.integers(len(left)) if at_random else 0) for at_random in explores)}

    def weigh(self, fed: Federation, alone: Block, judge: Judge, client: int, model: Tensor) -> float:
        """The weight of a client's model [P] in the mixture of a client."""
        if client not in judge.candidates:
            return 0.0
        apart = torch.linalg.vector_norm((model - judge.base)[: fed.layout.parameters].double()).item()
        slope = (judge.loss - self.measure(fed, alone, model)) / apart if apart else 0.0
        if not math.isfinite(slope):
            return 0.0
        judge.affinity[client] += slope
        return max(slope, 0.0)
