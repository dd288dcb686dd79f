"""Training on all samples in one place: the upper reference of a comparison."""

from fedmpi.algorithms.fedavg import FedAvg


class Centralized(FedAvg):
    """Ordinary training on the pooled samples of all clients.

    It is FedAvg with a single client, who holds everybody's samples and trains with the same --local options: batch
    size, learning rate and its schedule by rounds, an optimizer that starts afresh in every round. A round goes over
    as many samples as the clients of its cohort would (with --local.steps: does as many steps as they together), in a
    new random order: with 10 of 100 equal clients and 5 epochs, over half of all samples. So a curve over rounds
    compares with those of the federated methods at equal work. One rank trains, the others help to evaluate; on CPUs
    start few ranks and give them --threads.
    """

    averages_models = takes_compression = takes_privacy = False  # there is one model, in one place

    @property
    def pools_clients(self) -> bool:
        return True

    @property
    def welcomes_newcomers(self) -> bool:
        return False
