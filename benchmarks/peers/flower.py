# mypy: disable-error-code="import-not-found,import-untyped"
"""Flower, as its PyTorch tutorial is written: python -m benchmarks.peers.flower A 6 (workload, rounds).

Two Ray actors of one core each. Unlike in the tutorial, network and samples stay in an actor's memory from one client
to the next, and batches are cut from tensors, without a DataLoader. Cohorts are Flower's own, of the same size.
"""

import time

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy

from benchmarks.peers.work import arguments, load

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    config = message.content["config"]
    work = load(config["rung"], config["channels_last"])
    work.network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    local = work.experiment.local
    optimizer = torch.optim.SGD(work.network.parameters(), lr=local.lr)
    x, y = work.shards[context.node_config["partition-id"]]
    for _ in range(local.epochs):
        for batch in torch.randperm(len(y)).split(local.batch_size):
            optimizer.zero_grad()
            cross_entropy(work.network(x[batch]), y[batch]).backward()
            optimizer.step()
    content = {"arrays": ArrayRecord(work.network.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(content=RecordDict(content), reply_to=message)


def main(rung: str, rounds: int, channels_last: bool) -> None:
    work = load(rung, channels_last)
    clients, cohort = work.experiment.clients, work.experiment.cohort
    trained, began = [0], [time.perf_counter()]

    def count(replies: list[RecordDict], key: str) -> MetricRecord:
        if len(replies) < cohort:  # failures are otherwise passed over
            raise RuntimeError(f"{len(replies)} of {cohort} clients replied")
        trained[0] = sum(reply["metrics"][key] for reply in replies)
        return MetricRecord()

    def clock(round: int, arrays: ArrayRecord) -> None:
        if round:
            work.report(time.perf_counter() - began[0], trained[0], arrays.to_torch_state_dict())
        began[0] = time.perf_counter()

    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        FedAvg(
            fraction_train=cohort / clients,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,  # the first cohort is drawn before all nodes are there
            min_available_nodes=clients,
            train_metrics_aggr_fn=count,
        ).start(
            grid,
            ArrayRecord(work.network.state_dict()),
            num_rounds=rounds,
            train_config=ConfigRecord({"rung": rung, "channels_last": channels_last}),
            evaluate_fn=clock,
        )

    run_simulation(
        server_app,
        client_app,
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
    )


if __name__ == "__main__":
    # The actors must import `train`, to have one `load` for all clients; what is defined in __main__ they are sent.
    from benchmarks.peers import flower

    options = arguments()
    flower.main(options.rung, options.rounds, options.channels_last)
