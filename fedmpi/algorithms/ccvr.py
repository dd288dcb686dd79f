"""Classifier calibration with virtual representations.

Luo, Chen, Hu, Zhang, Liang, Feng: No Fear of Heterogeneity: Classifier Calibration for Federated Learning with
Non-IID Data. NeurIPS 2021. https://arxiv.org/abs/2106.05001
"""

from __future__ import annotations

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.layered import Layered
from fedmpi.errors import BadInput
from fedmpi.lazy import functional, nn, torch
from fedmpi.options import null_for, with_options
from fedmpi.ranges import NonNegativeInt, PositiveFloat, PositiveInt
from fedmpi.typing import Batch, Cohort, Federation, Net, Tensor

#: Share of the mean variance that is added to all variances, so that a covariance has a Cholesky factor.
RIDGE = 1e-6


@with_options
class CCVR(Layered):
    """An averaging method whose model gets a calibrated last layer before it is evaluated (Luo et al., 2021).

    z are the inputs of the last fully connected layer, for the training samples of all clients. For each class c, the
    clients send the number n_c of its samples, the sum of z and the sum of z z'. From these the server has the mean
    mu_c and the covariance Sigma_c = (sum of z z' - n_c mu_c mu_c') / (n_c - 1). It draws `samples` features from
    N(mu_c, Sigma_c) for each class, and trains the last layer alone on them by cross entropy, from the weights that
    it has. Classes with fewer than two samples are left out.

    The rounds are those of the base method, and so is the model in the results file: only a copy is calibrated, at
    each evaluation. The column uncalibrated_accuracy has the accuracy of the base method's model.

    Args:
        base: the method that is extended; null: FedAvg.
        samples: number of features that are drawn for each class.
        epochs: passes of the last layer over these, with the batch size of the clients and plain SGD; 0 is the base
            method.
        lr: learning rate of the last layer; null: `--local.lr`.
    """

    base: Algorithm = null_for(FedAvg)
    samples: PositiveInt = 200
    epochs: NonNegativeInt = 10
    lr: PositiveFloat | None = None

    needs_classes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.base).evaluate is not Algorithm.evaluate:
            raise BadInput(f"= {type(self.base).__name__}: must be a method that evaluates one global model", "base")

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        from torch.nn.utils.parametrize import is_parametrized

        from fedmpi.models._layers import without_last

        extended = self.base.extend(network, example)
        before, last = without_last(extended)
        if not isinstance(last, nn.Linear):
            raise BadInput(
                "--model: CCVR needs a Backbone or nn.Sequential that ends in a fully connected layer,"
                " without a forward of its own"
            )
        if is_parametrized(last) or not all(part.requires_grad for part in last.parameters()):
            raise BadInput("--model: CCVR needs a last layer that is trained, without parametrizations")
        names = {layer: name for name, layer in extended.named_modules()}
        self.before_last = [names[layer] for layer in before]
        return extended

    def last_inputs(self, net: Net, batch: Batch) -> Tensor:
        """[B, f], the inputs of the last layer."""
        z = batch.x
        for name in self.before_last:
            z = net.run(name, z)
        return z

    def round(self, fed: Federation, cohort: Cohort) -> None:
        self.base.round(fed, cohort)

    def evaluate(self, fed: Federation) -> None:
        """The model with the calibrated layer on the test set; the accuracy without calibration is a column."""
        found = fed.evaluate(self.weights)
        fed.log(**{f"uncalibrated_{fed.task.main}": found.main})
        fed.report(fed.evaluate(self.calibrated(fed)) if self.epochs else found)

    def calibrated(self, fed: Federation) -> Tensor:
        """[P] at the server, a copy of the weights with another last layer."""
        drawn = self.draw(fed, fed.broadcast(self.weights, received=0))
        weights = self.weights.clone()
        if fed.is_server and drawn:
            with fed.at_server.serving():
                labels = torch.cat([torch.full((len(z),), label) for label, z in drawn.items()])
                self.fit(fed, weights, torch.cat(list(drawn.values())), labels)
        return weights

    def draw(self, fed: Federation, weights: Tensor) -> dict[int, Tensor]:
        """Class -> [samples, f] features; on every rank, but only the server needs them."""
        known = [
            (fed.at_clients.features(block, weights, self.last_inputs)[0], fed.at_clients.targets(block)[0])
            for block in fed.at_clients.everyone()
        ]
        width = next(entry.shape[1] for entry in fed.layout.entries if entry.segment == "head")
        drawn: dict[int, Tensor] = {}
        for label in range(fed.classes):
            own = [z[y == label].cpu().double() for z, y in known]
            terms = [(torch.tensor(float(len(z))), z.sum(0), z.T @ z) for z in own if len(z)]
            count, total, squares = fed.at_clients.total(terms, [(), (width,), (width, width)])
            if fed.is_server and count >= 2 and squares.isfinite().all():
                noise = torch.from_numpy(fed.stream("CCVR", label).standard_normal((self.samples, width)))
                mean, covariance = moments(int(count), total, squares)
                drawn[label] = (mean + noise @ root(covariance).T).float()
        return drawn

    def fit(self, fed: Federation, weights: Tensor, z: Tensor, labels: Tensor) -> None:
        """Train the last layer of `weights` [P] in place on features z [n, f] and their labels [n]."""
        lr, size = self.lr or fed.local.lr, fed.local.batch_size
        head = [entry.view(weights) for entry in fed.layout.entries if entry.segment == "head"]
        for epoch in range(self.epochs):
            order = torch.from_numpy(fed.stream("CCVR order", epoch).permutation(len(z)))
            for some in order.split(size):
                layer = [part.clone().requires_grad_() for part in head]
                loss = functional.cross_entropy(functional.linear(z[some], *layer), labels[some])
                for part, gradient in zip(head, torch.autograd.grad(loss, layer), strict=True):
                    part.sub_(gradient, alpha=lr)


def moments(count: int, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [f] and unbiased covariance [f, f] of vectors, from their number, sum, and sum of outer products."""
    mean = total / count
    return mean, (squares - count * torch.outer(mean, mean)) / (count - 1)


def root(covariance: Tensor) -> Tensor:
    """[f, f] the Cholesky factor of a covariance, of which some variances may be zero."""
    ridge = RIDGE * covariance.trace().item() / len(covariance)
    if ridge <= 0:  # all vectors were equal
        return torch.zeros_like(covariance)
    while True:  # more than once only if sums have lost more digits than the ridge has
        factor, problem = torch.linalg.cholesky_ex(covariance + ridge * torch.eye(len(covariance)))
        if not problem:
            return factor
        ridge *= 10
