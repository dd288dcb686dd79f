# mypy: disable-error-code="import-not-found,import-untyped"
"""pfl-research, as its benchmarks are written: torchrun --standalone --nproc_per_node 2 -m benchmarks.peers.pfl A 6.

Only evaluation and metrics on disk are left out. User data are tensors in memory, which the
guide calls fastest. Cohorts are fedmpi's; users of different sizes are balanced over the processes by their samples.
"""

import time

import numpy as np
import torch
from pfl.aggregate.base import get_num_datapoints_weight_name
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.common_types import Population
from pfl.data import FederatedDataset
from pfl.data.dataset import Dataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import distributed
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.peers.work import Work, arguments, load


class Classifier(nn.Module):
    """A network with the two methods that pfl asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.network(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(len(y) * self.loss(x, y).item(), len(y))}


class Clock(TrainingProcessCallback):
    """Reports the rounds; the first one holds the only evaluation, which pfl insists on."""

    def __init__(self, work: Work) -> None:
        self.work, self.began = work, time.perf_counter()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        seconds = time.perf_counter() - self.began
        if distributed.global_rank == 0:
            samples = aggregate_metrics[get_num_datapoints_weight_name(Population.TRAIN)].weighted_value
            self.work.report(seconds, samples, dict(self.work.network.named_parameters()))
        self.began = time.perf_counter()
        return False, Metrics()


def main(rung: str, rounds: int, channels_last: bool) -> None:
    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 (pfl draws from it, and must draw the same in every process)
    work = load(rung, channels_last)
    local = work.experiment.local
    module = Classifier(work.network)
    model = PyTorchModel(
        module, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0)
    )
    users = FederatedDataset(
        lambda client: Dataset(work.shards[client], user_id=client),
        work.clients().__next__,
        user_id_to_weight=dict(enumerate(work.samples.tolist())) if np.ptp(work.samples) else None,
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,
            train_cohort_size=work.experiment.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_learning_rate=local.lr, local_num_epochs=local.epochs, local_batch_size=local.batch_size
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Clock(work)],
    )


if __name__ == "__main__":
    options = arguments()
    main(options.rung, options.rounds, options.channels_last)
