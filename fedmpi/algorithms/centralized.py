"""Training on the pooled samples of all clients: the upper baseline of a comparison."""

from fedmpi.algorithms.fedavg import FedAvg


class Centralized(FedAvg):
    """Ordinary training on the pooled samples of all clients.

    It is FedAvg with a single client, which holds all samples and trains with the same --local options: batch size,
    learning rate and its schedule over rounds, and an optimizer whose state is reset every round. A round processes
    as many samples as the cohort of a federated run would (with --local.steps: as many steps as the cohort together),
    in a new random order. With 10 of 100 equal clients and 5 epochs, that is half of all samples. So curves over
    rounds can be compared with federated methods at equal work. One rank trains, and the others help to evaluate. On
    CPUs, start few ranks and give them --threads.
    """

    averages_models = takes_compression = takes_privacy = False  # there is only one model

    @property
    def pools_clients(self) -> bool:
        return True

    @property
    def takes_held_out(self) -> bool:
        return False
