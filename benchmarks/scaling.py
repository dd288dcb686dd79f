"""python -m benchmarks.scaling: measure the constants of a machine, check the model of `benchmarks.round_time` with
them, and predict rounds on up to 1024 ranks with up to a million clients. Prints tables in Markdown and draws a
figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.launch import mpirun, output_of
from benchmarks.round_time import (
    PARTS,
    Cluster,
    Machine,
    Network,
    Training,
    nap,
    one_node,
    round_time,
    transfers,
)
from benchmarks.workloads import CHECKED, SCALING

CHECKED_RANKS = (2, 3, 5, 9, 17)
RANKS = tuple(2**power for power in range(11))
# Predicted rounds: title, workload, cohort and spread of the clients' sizes, which are log-normal.
CASES = (
    ("MLP, 10,000 clients", "MLP", 10_000, 1.0),
    ("CNN, 1,000 clients", "CNN", 1_000, 1.0),
    ("CNN, 10,000 equal clients", "CNN", 10_000, 0.0),
    ("ResNet18, 1,000 clients", "ResNet18", 1_000, 1.0),
)
SHOWN = CASES[2]
# Nodes and parameters of predicted broadcasts and means.
NODES, PARAMETERS = (2, 4, 16, 64), (1_660_000, 11_170_000, 100_000_000)
# Clients in all, the mean of their samples, samples a step.
MANY, SAMPLES, BATCH = 100_000, 60, 10
# Okabe and Ito's colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--measured", type=Path, help="use the measurements in this file instead of measuring")
    parser.add_argument(
        "--output", type=Path, default=Path("scaling.json"), help="the measurements (default: scaling.json)"
    )
    parser.add_argument(
        "--plot", type=Path, default=Path("scaling.png"), help="file for the figure (default: scaling.png)"
    )
    parser.add_argument("--cores", type=int, default=64, help="of a predicted node (default: 64)")
    parser.add_argument("--ranks_a_node", type=int, default=64, help="of a predicted node (default: 64)")
    parser.add_argument("--memory", type=float, default=200, help="GB/s of a node (default: 200)")
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["InfiniBand:2:12.5", "Ethernet:30:1.25"],
        metavar="NAME:MICROSECONDS:GB/S",
        help="latency and bandwidth (default: 100 Gbit/s InfiniBand and 10 Gbit/s Ethernet, nominally)",
    )
    options = parser.parse_args()
    measured = json.loads((options.measured or measure(options.output)).read_text())
    machine, trainings = constants(measured)
    clusters = {}
    for words in options.networks:
        name, latency, bandwidth = words.split(":")
        network = Network(float(latency) * 1e-6, float(bandwidth) * 1e9)
        clusters[name] = Cluster(options.cores, options.ranks_a_node, options.memory * 1e9, network)
    print(f"{measured['machine']}\n")
    for title, rows in (
        ("Constants", constants_table(machine, trainings)),
        ("Barriers", barriers_table(machine, measured)),
        ("Check", check_table(machine, trainings, measured)),
        ("Predicted rounds", paper_table(machine, trainings, clusters)),
        ("Predicted communication", transfers_table(machine, clusters)),
        ("Bookkeeping", books_table(measured)),
        ("Start", start_table(measured)),
    ):
        print(f"## {title}\n\n{markdown(rows)}\n")
    draw(options.plot, machine, trainings, clusters, measured)


# Measuring


def measure(output: Path) -> Path:
    """Run all measurements, and keep them in a file."""
    cores = len(os.sched_getaffinity(0))
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    found: dict[str, Any] = {
        "machine": f"{platform.node()}, {cores} cores, {datetime.now():%Y-%m-%d %H:%M}, load before: {load}"
    }
    found["constants"] = run(cores, "machine")
    found["clients"] = run(1, "clients")
    found["checks"] = [run(ranks, "rounds") for ranks in CHECKED_RANKS]
    output.write_text(json.dumps(found))
    return output


def run(ranks: int, what: str) -> dict[str, Any]:
    print(f"measuring {what} on {ranks} ranks", file=sys.stderr, flush=True)
    printed = output_of([*mpirun(ranks), "-m", "benchmarks.constants", what])
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])  # after what fedmpi says of the partition
    return found


def constants(measured: dict[str, Any]) -> tuple[Machine, dict[str, Training]]:
    """The model's constants, some of them fitted to what was measured."""
    found = dict(measured["constants"])
    trainings = {name: Training(**values) for name, values in found.pop("training").items()}
    books = measured["clients"]["books"]
    spent = [sum(row[name] for name in ("draw", "place", "states", "ledger")) for row in books]
    found["a_client"], found["a_member"], _ = fit([[row["clients"], row["cohort"], 1] for row in books], spent)
    crowds = {check["ranks"] / found["cores"]: check["meeting"] for check in measured["checks"]}
    found["barrier"] = next(iter(crowds.values()))
    longer = {crowd: max(spent - found["barrier"], 1e-9) for crowd, spent in crowds.items() if crowd > 1}
    found["sharing"], found["sleeps"] = fit([[crowd - 1, nap(crowd)] for crowd in longer], list(longer.values()))
    return Machine(**found), trainings


def fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """The factors, not negative, that give the least relative errors."""
    solution, _ = nnls(np.array(rows) / np.array(values)[:, None], np.ones(len(values)))
    factors: list[float] = solution.tolist()
    return factors


# Tables


def markdown(rows: Iterator[list[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def constants_table(machine: Machine, trainings: dict[str, Training]) -> Iterator[list[str]]:
    yield ["constant", *(f"{size:,} parameters" for size in machine.sizes)]
    for name, what in (
        ("add", "add a client's vector to the sum"),
        ("total", "add a rank's sum to the node's"),
        ("form", "turn the sum into a mean"),
        ("pack", "make bytes of a sum for another node, and add them there"),
    ):
        yield [f"`{name}`: {what}, ns per parameter", *(f"{1e9 * value:.2f}" for value in getattr(machine, name))]
    blanks = [""] * (len(machine.sizes) - 1)
    for name, what in (
        ("barrier", "of two ranks"),
        ("poll", "checking one rank"),
        ("sharing", "a barrier, for each additional rank per core"),
        ("a_round", "the engine, per round"),
        ("a_block", "the engine, per block of clients"),
        ("a_member", "bookkeeping, per client of the cohort"),
        ("a_client", "bookkeeping, per client of all"),
        ("a_number", "summing the bookkeeping, per number and rank"),
    ):
        yield [f"`{name}`: {what}", f"{1e6 * getattr(machine, name):.3g} us", *blanks]
    yield ["`sleeps`: a barrier, where ranks share cores", f"{machine.sleeps:.2f} sleeps", *blanks]
    for name, training in trainings.items():
        costs = {
            "per block": training.a_block,
            "per step": training.a_step,
            "per client's step": training.a_clients_step,
        }
        shown = ", ".join(f"{1e3 * cost:.3g} ms {of}" for of, cost in costs.items() if cost)
        yield [f"training: {SCALING[name].title}, {training.at_once} at once", shown, *blanks]


def barriers_table(machine: Machine, measured: dict[str, Any]) -> Iterator[list[str]]:
    yield ["ranks", "measured", "by the formula"]
    for check in measured["checks"]:
        spent = machine.meet(check["ranks"], machine.cores)
        yield [str(check["ranks"]), f"{1e3 * check['meeting']:.3f} ms", f"{1e3 * spent:.3f} ms"]


def check_table(machine: Machine, trainings: dict[str, Training], measured: dict[str, Any]) -> Iterator[list[str]]:
    yield [
        "workload",
        "ranks",
        "round, predicted",
        "measured",
        "fastest",
        "error",
        "CPU time, predicted",
        "measured",
        "error",
    ]
    for name in CHECKED:
        for check in measured["checks"]:
            seconds, busy = predicted(machine, trainings[name], check, name)
            took, worked = (np.array(check["rounds"][name][what]) for what in ("seconds", "busy"))
            yield [
                SCALING[name].title if check["ranks"] == CHECKED_RANKS[0] else "",
                str(check["ranks"]),
                f"{1e3 * np.median(seconds):.3g} ms",
                f"{1e3 * np.median(took):.3g} ms",
                f"{1e3 * took.min():.3g} ms",
                f"{100 * np.median(seconds / took - 1):+.0f} %",
                f"{1e3 * np.median(busy):.3g} ms",
                f"{1e3 * np.median(worked):.3g} ms",
                f"{100 * np.median(busy / worked - 1):+.0f} %",
            ]


def predicted(
    machine: Machine, training: Training, check: dict[str, Any], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of the rounds that were measured, and those of all cores together: what one core alone would take.

    Waiting ranks leave their core to others, so barriers are not among the latter.
    """
    rounds = [
        [
            round_time(machine, one_node(cores), training, np.array(steps), check["ranks"], 1000)
            for cores in (machine.cores, 1)
        ]
        for steps in check["rounds"][name]["steps"]
    ]
    seconds = np.array([sum(here.values()) for here, _ in rounds])
    return seconds, np.array([sum(alone.values()) - alone["barriers"] for _, alone in rounds])


def steps_of(cohort: int, sigma: float) -> NDArray[np.int64]:
    """[cohort] steps of clients with log-normally many samples."""
    sizes = np.exp(sigma * np.random.default_rng(0).standard_normal(cohort) - sigma**2 / 2)
    return np.maximum(np.ceil(SAMPLES * sizes / BATCH), 1).astype(np.int64)


def paper_table(
    machine: Machine, trainings: dict[str, Training], clusters: dict[str, Cluster]
) -> Iterator[list[str]]:
    yield ["workload", "ranks", "network", "round", "speed-up", *PARTS]
    for title, name, cohort, sigma in CASES:
        steps, training = steps_of(cohort, sigma), trainings[name]
        for ranks in (1, 17, 64, 256, 1024):
            for number, (network, cluster) in enumerate(clusters.items()):
                on_one_node = ranks <= cluster.ranks_a_node
                if number and on_one_node:
                    continue
                one = sum(round_time(machine, cluster, training, steps, 1, MANY).values())
                parts = round_time(machine, cluster, training, steps, ranks, MANY)
                whole = sum(parts.values())
                shares = [f"{100 * parts[part] / whole:.1f} %" for part in PARTS]
                within = "one node" if on_one_node else network
                yield [
                    title if ranks == 1 else "",
                    str(ranks),
                    within,
                    f"{whole:.3g} s",
                    f"{one / whole:.1f}",
                    *shares,
                ]


def transfers_table(machine: Machine, clusters: dict[str, Cluster]) -> Iterator[list[str]]:
    """Broadcasts and means alone, where every rank has trained."""
    yield ["parameters", "nodes", *(f"{what}, {name}" for name in clusters for what in ("broadcast", "mean"))]
    for size, nodes in product(PARAMETERS, NODES):
        spent = [
            seconds
            for cluster in clusters.values()
            for seconds in transfers(machine, cluster, size, nodes, cluster.ranks_a_node)
        ]
        yield [f"{size:,}" if nodes == NODES[0] else "", str(nodes), *(f"{1e3 * took:.3g} ms" for took in spent)]


def books_table(measured: dict[str, Any]) -> Iterator[list[str]]:
    names = ("draw", "place", "states", "ledger", "bernoulli", "weighted")
    yield ["clients", "cohort", *(f"`{name}`, ms" for name in names)]
    for row in measured["clients"]["books"]:
        yield [f"{row['clients']:,}", f"{row['cohort']:,}", *(f"{1e3 * row[name]:.2f}" for name in names)]


def start_table(measured: dict[str, Any]) -> Iterator[list[str]]:
    yield ["clients", "`make_split`", "memory per rank", "of which label counts"]
    for row in measured["clients"]["start"]:
        yield [
            f"{row['clients']:,}",
            f"{row['split']:.2f} s",
            f"{row['megabytes']:.0f} MB",
            f"{row['labels']:.1f} MB",
        ]


# The figure


def draw(
    path: Path,
    machine: Machine,
    trainings: dict[str, Training],
    clusters: dict[str, Cluster],
    measured: dict[str, Any],
) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(9.6, 8.0), layout="constrained")
        (check, paper), (shares, growth) = figure.subplots(2, 2)
        draw_check(check, machine, trainings, measured)
        draw_paper(paper, machine, trainings, clusters)
        draw_shares(shares, machine, trainings, clusters)
        draw_growth(growth, measured)
        figure.savefig(path, dpi=150)


def draw_check(axes: Any, machine: Machine, trainings: dict[str, Training], measured: dict[str, Any]) -> None:
    for colour, marker, name in zip(COLOURS, "os^", CHECKED, strict=False):
        ranks = [check["ranks"] for check in measured["checks"]]
        seconds = [np.median(predicted(machine, trainings[name], check, name)[0]) for check in measured["checks"]]
        axes.plot(ranks, seconds, color=colour, label=f"{name}: model")
        rounds = [check["rounds"][name]["seconds"] for check in measured["checks"]]
        middle = np.array([np.median(took) for took in rounds])
        below = middle - [min(took) for took in rounds]
        axes.errorbar(
            ranks, middle, [below, 0 * below], fmt=marker, color=colour, capsize=3, label=f"{name}: measured"
        )
    axes.set(xscale="log", yscale="log", xlabel="Ranks", ylabel="Seconds per round")
    axes.set_title(f"Check on {machine.cores} cores (median, down to the fastest round)", fontsize=9)
    axes.set_xticks(CHECKED_RANKS, list(map(str, CHECKED_RANKS)))
    axes.minorticks_off()
    finish(axes, columns=3)


def draw_paper(axes: Any, machine: Machine, trainings: dict[str, Training], clusters: dict[str, Cluster]) -> None:
    for colour, (title, name, cohort, sigma) in zip(COLOURS, CASES, strict=False):
        steps = steps_of(cohort, sigma)
        for dash, (network, cluster) in zip(("-", "--", ":"), clusters.items(), strict=False):
            rounds = [round_time(machine, cluster, trainings[name], steps, ranks, MANY) for ranks in RANKS]
            seconds = np.array([sum(parts.values()) for parts in rounds])
            label = f"{title}; {network}" if dash == "-" else network
            axes.plot(RANKS, seconds[0] / seconds, dash, color=colour, label=label)
    axes.plot(RANKS, RANKS, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="Ranks", ylabel="Speed-up over one rank")
    axes.set_title("Predicted speed-up; grey: as many times as fast as there are ranks", fontsize=9)
    ticks_of_ranks(axes)
    finish(axes, columns=len(clusters))


def draw_shares(axes: Any, machine: Machine, trainings: dict[str, Training], clusters: dict[str, Cluster]) -> None:
    title, name, cohort, sigma = SHOWN
    network, cluster = list(clusters.items())[-1]
    steps = steps_of(cohort, sigma)
    rounds = [round_time(machine, cluster, trainings[name], steps, ranks, MANY) for ranks in RANKS]
    values = np.array([list(parts.values()) for parts in rounds]).T
    axes.stackplot(RANKS, 100 * values[1:] / values.sum(axis=0), colors=COLOURS, labels=PARTS[1:])
    axes.set(xscale="log", xlabel="Ranks", ylabel="Share of the round (%)", xlim=(1, RANKS[-1]))
    axes.set_title(f"Predicted, all but training: {title}; {network}", fontsize=9)
    ticks_of_ranks(axes)
    finish(axes, columns=5)


def draw_growth(axes: Any, measured: dict[str, Any]) -> None:
    books, start = measured["clients"]["books"], measured["clients"]["start"]
    for colour, marker, cohort in zip(COLOURS, "os^", sorted({row["cohort"] for row in books}), strict=False):
        rows = [row for row in books if row["cohort"] == cohort]
        spent = [row["draw"] + row["place"] + row["states"] + row["ledger"] for row in rows]
        axes.plot([row["clients"] for row in rows], spent, marker=marker, color=colour, label=f"cohort {cohort:,}")
    seconds = [row["split"] for row in start]
    axes.plot([row["clients"] for row in start], seconds, "k--", marker="D", label="at the start: `make_split`")
    axes.set(xscale="log", yscale="log", xlabel="Clients in all", ylabel="Seconds on every rank")
    axes.set_title("Measured: bookkeeping per round, and the split at the start", fontsize=9)
    finish(axes, columns=2)


def ticks_of_ranks(axes: Any) -> None:
    axes.set_xticks(RANKS[::2], list(map(str, RANKS[::2])))
    axes.minorticks_off()


def finish(axes: Any, columns: int) -> None:
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.legend(fontsize=7, ncols=columns, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))


if __name__ == "__main__":
    main()
