# mypy: disable-error-code="import-not-found,import-untyped"
"""FedAvg and FedProx compared with Flower's and pfl-research's own: python -m studies.parity_peers.

The problem is that of `studies.parity`: the embedded digits over five clients of different sizes, full batches, all
clients in every round, three rounds of three local steps. Flower's strategies configure and aggregate; its clients
are written as its documentation shows, with the proximal term for FedProx. pfl-research trains and aggregates by
itself. Prints the largest difference of a weight from fedmpi's. Needs `pip install -e '.[bench]'`; a package that is
not installed is left out, and a line says so.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from studies.parity import CLIENTS, LR, MU, ROUNDS, STEPS, Problem, Vector, cases, compared

PACKAGES = {"Flower": "flwr", "pfl-research": "pfl"}
METHODS = {"FedAvg": 0.0, "FedProx": MU}


class Softmax(nn.Module):
    """Softmax regression in double precision, from [P] weights and biases.

    `loss` and `metrics` are what pfl-research asks for.
    """

    def __init__(self, start: Vector) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10, dtype=torch.float64)
        nn.utils.vector_to_parameters(torch.from_numpy(start), self.parameters())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.linear(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, object]:
        from pfl.metrics import Weighted

        return {"loss": Weighted(len(y) * self.loss(x, y).item(), len(y))}

    def vector(self) -> Vector:
        """[P], its weights and biases now."""
        return nn.utils.parameters_to_vector(self.parameters()).detach().numpy().copy()


def samples(problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """Those of each client."""
    return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(problem.x, problem.y, strict=True)]


def flower(problem: Problem, mu: float) -> Vector:
    """Flower's strategy, with clients in this process."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg, FedProx
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # messages are made outside a Flower run

    class Nodes:
        """As much of a grid as a strategy asks for."""

        def get_node_ids(self) -> Iterable[int]:
            return range(1, CLIENTS + 1)

    shards = samples(problem)

    def train(message: Message) -> Message:
        model = Softmax(problem.start)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        received = [parameter.detach().clone() for parameter in model.parameters()]
        pull = float(message.content["config"].get("proximal-mu", 0.0))
        x, y = shards[message.metadata.dst_node_id - 1]
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        for _ in range(STEPS):
            optimizer.zero_grad()
            squares = [((new - old) ** 2).sum() for new, old in zip(model.parameters(), received, strict=True)]
            (model.loss(x, y) + pull / 2 * torch.stack(squares).sum()).backward()
            optimizer.step()
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
        return Message(content=RecordDict(content), reply_to=message)

    everybody = {"fraction_train": 1.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
    strategy = FedProx(**everybody, proximal_mu=mu) if mu else FedAvg(**everybody)
    arrays = ArrayRecord(Softmax(problem.start).state_dict())
    for number in range(1, ROUNDS + 1):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), Nodes())
        arrays, _ = strategy.aggregate_train(number, map(train, messages))
    model = Softmax(problem.start)
    model.load_state_dict(arrays.to_torch_state_dict())
    return model.vector()


def pfl_research(problem: Problem, mu: float) -> Vector:
    """pfl-research's algorithm in its simulated backend."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.algorithm.fedprox import FedProx, FedProxParams
    from pfl.data import FederatedDataset
    from pfl.data.dataset import Dataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    def users() -> Iterator[int]:
        while True:
            yield from range(CLIENTS)

    shards = samples(problem)
    module = Softmax(problem.start)
    model = PyTorchModel(
        module, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0)
    )
    data = FederatedDataset(lambda client: Dataset(shards[client], user_id=client), users().__next__)
    rounds = {
        "central_num_iterations": ROUNDS,
        "evaluation_frequency": ROUNDS,
        "train_cohort_size": CLIENTS,
        "val_cohort_size": 0,
    }
    algorithm, parameters = (
        (FedProx(), FedProxParams(**rounds, mu=mu)) if mu else (FederatedAveraging(), NNAlgorithmParams(**rounds))
    )
    with redirect_stdout(StringIO()):  # metrics of each round
        algorithm.run(
            parameters,
            SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
            model,
            NNTrainHyperParams(local_learning_rate=LR, local_num_epochs=STEPS, local_batch_size=None),
            NNEvalHyperParams(local_batch_size=None),
        )
    return module.vector()


PEERS: dict[str, Callable[[Problem, float], Vector]] = {"Flower": flower, "pfl-research": pfl_research}


def main() -> int:
    """Print a line for each peer and method."""
    for peer, run in PEERS.items():
        if find_spec(PACKAGES[peer]) is None:
            print(f"{peer} is not installed: pip install -e '.[bench]'")
            continue
        for method, mu in METHODS.items():
            with tempfile.TemporaryDirectory() as folder:
                found = compared(cases()[method], Path(folder))
            theirs = run(found.problem, mu)
            print(f"{peer:14}{method:9}difference {np.abs(found.ours - theirs).max():.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
