"""pFedMe.

T Dinh, Tran, Nguyen: Personalized Federated Learning with Moreau Envelopes. NeurIPS 2020.
https://arxiv.org/abs/2006.08848
"""

from __future__ import annotations

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import require
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from fedmpi.typing import Block, Cohort, Federation, Tensor


@with_options
class pFedMe(FedAvg):
    """Personal models by Moreau envelopes (T Dinh et al., 2020).

    Clients minimise F_k(w) = min_v f_k(v) + pull/2 |v - w|^2 over w, where v is the personal model. For each batch, a
    client first moves v by `inner_steps` steps v -= inner_lr (g(v) + pull (v - w)), and then w by
    w -= lr pull (w - v). Here lr is `--local.lr`, and momentum, weight decay and clipping apply to w only. Every
    round starts with v = w. The server averages w; its mixing weight beta is
    `--server_optimizer Momentum --server_optimizer.lr BETA --server_optimizer.momentum 0`.

    Every client is evaluated with its last v, and the running statistics of the model that it trained with it. The
    column global_accuracy has the accuracy of the global model.

    Args:
        pull: strength of the pull, lambda in the paper.
        inner_steps: steps of v per batch, K in the paper.
        inner_lr: learning rate of v.
    """

    pull: NonNegativeFloat = 15.0
    inner_steps: PositiveInt = 5
    inner_lr: PositiveFloat = 0.05

    direction_is_elementwise = False

    @property
    def step_cost(self) -> float:
        return self.inner_steps + 1.0

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        local = fed.local
        require(local.optimizer == "sgd", "--local.optimizer", local.optimizer, "sgd with pFedMe")
        # Above these limits, steps along the pull alone diverge (with momentum: Polyak, 1964).
        for name, lr, limit in (
            ("--algorithm.inner_lr", self.inner_lr, 2 / self.inner_lr),
            ("--local.lr", local.lr, 2 * (1 + local.momentum) / local.lr),
        ):
            require(self.pull < limit, "pull", self.pull, f"below {limit:g}, for steps of {name} = {lr:g}")
        self.personal = fed.client_state("personal", self.weights)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained = slice(0, fed.layout.parameters)
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self, personal=start[trained])
            mean.add(local.weights, block)
            own = local.weights.clone()
            own[:, trained] = local.rows["personal"]
            self.personal[block] = own
        self.server_step(fed, mean.reduce(empty=self.weights))

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        personal = block["personal"]
        for _ in range(self.inner_steps):
            way = block.gradient(personal).add_(personal - weights, alpha=self.pull)
            personal.sub_(way, alpha=self.inner_lr)
        return self.pull * (weights - personal)

    def evaluate(self, fed: Federation) -> None:
        """Each client's personal model on its own test samples, and the global model on the whole test set."""
        fed.report_personal(fed.evaluate_clients(self.weights, lambda block, weights: self.personal[block]))
        fed.log(**{f"global_{fed.task.main}": fed.evaluate(self.weights).main})
