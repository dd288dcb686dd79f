"""Methods compared with transcriptions of their papers' pseudo-code: python -m studies.parity.

One deterministic problem: the embedded digits over five clients of different sizes, full batches, all clients in
every round, three rounds of three local steps. Each method runs once as fedmpi has it (float32), and once as a few
lines of NumPy in double precision, written from the paper alone; MOON, whose loss looks at features, in PyTorch's
double precision. Prints the largest difference of a weight, how far the method is from FedAvg, and how far it moved.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedmpi import Experiment, randomness
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddyn import FedDyn
from fedmpi.algorithms.fednova import FedNova
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.algorithms.moon import MOON
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.data import Digits, Dirichlet, make_split
from fedmpi.models import MLP, LogisticRegression, Model
from fedmpi.policies import All, Conditions, Heterogeneous, Ideal
from fedmpi.results import Run
from fedmpi.training.settings import LocalTraining

CLIENTS, ROUNDS, STEPS, LR, SEED = 5, 3, 3, 0.5, 0
MU, ALPHA, TAU = 0.1, 0.1, 0.5
Vector = NDArray[np.float64]


@dataclass
class Problem:
    """What a transcription sees.

    Attributes:
        start: [P] the first global model: weights [10, 64], then biases [10].
        x, y: of each client, samples [n, 64] and labels [n].
        steps: [rounds, clients] local steps that each does.
    """

    start: Vector
    x: list[Vector]
    y: list[NDArray[np.int64]]
    steps: NDArray[np.int64]

    @property
    def share(self) -> Vector:
        """[clients] of all samples."""
        sizes = np.array([len(y) for y in self.y], dtype=float)
        return sizes / sizes.sum()

    def gradient(self, k: int, w: Vector) -> Vector:
        """[P] of client k's mean cross entropy under softmax regression."""
        x, y = self.x[k], self.y[k]
        logits = x @ w[:640].reshape(10, 64).T + w[640:]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        return np.concatenate([(p.T @ x).ravel(), p.sum(0)]) / len(y)


def fedavg(problem: Problem) -> Vector:
    """McMahan et al. (2017), algorithm 1."""
    return fedprox(problem, mu=0.0)


def fedprox(problem: Problem, mu: float = MU) -> Vector:
    """Li et al. (2020), algorithm 2, with clients that count by their samples."""
    w = problem.start
    for _ in range(ROUNDS):
        local = []
        for k in range(CLIENTS):
            v = w
            for _ in range(STEPS):
                v = v - LR * (problem.gradient(k, v) + mu * (v - w))
            local.append(v)
        w = problem.share @ np.array(local)
    return w


def scaffold(problem: Problem) -> Vector:
    """Karimireddy et al. (2020), algorithm 1, option II, global step size 1; clients count alike."""
    x, c, own = problem.start, np.zeros_like(problem.start), np.zeros((CLIENTS, len(problem.start)))
    for _ in range(ROUNDS):
        moved, changed = [], []
        for i in range(CLIENTS):
            y = x
            for _ in range(STEPS):
                y = y - LR * (problem.gradient(i, y) - own[i] + c)
            new = own[i] - c + (x - y) / (STEPS * LR)
            moved.append(y - x)
            changed.append(new - own[i])
            own[i] = new
        x, c = x + np.mean(moved, 0), c + np.mean(changed, 0)
    return x


def feddyn(problem: Problem) -> Vector:
    """Acar et al. (2021), algorithm 1; clients count alike."""
    theta, h = problem.start, np.zeros_like(problem.start)
    slopes = np.zeros((CLIENTS, len(theta)))
    for _ in range(ROUNDS):
        local = []
        for k in range(CLIENTS):
            v = theta
            for _ in range(STEPS):
                v = v - LR * (problem.gradient(k, v) - slopes[k] + ALPHA * (v - theta))
            slopes[k] -= ALPHA * (v - theta)
            local.append(v)
        h = h - ALPHA * np.mean(np.array(local) - theta, 0)
        theta = np.mean(local, 0) - h / ALPHA
    return theta


def fednova(problem: Problem) -> Vector:
    """Wang et al. (2020), equation 6 with plain local steps, of which clients do different numbers."""
    x = problem.start
    for steps in problem.steps:
        directions = []
        for i, tau in enumerate(steps):
            y = x
            for _ in range(tau):
                y = y - LR * problem.gradient(i, y)
            directions.append((x - y) / (LR * tau))
        x = x - (problem.share @ steps) * LR * (problem.share @ np.array(directions))
    return x


def moon(problem: Problem) -> Vector:
    """Li et al. (2021), algorithm 1, for a network with one hidden layer of 16, whose outputs are the features."""

    def shaped(w: torch.Tensor) -> list[torch.Tensor]:
        parts = w.split([16 * 64, 16, 10 * 16, 10])
        return [parts[0].view(16, 64), parts[1], parts[2].view(10, 16), parts[3]]

    def features(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        a, b, _, _ = shaped(w)
        return (x @ a.T + b).relu()

    w = torch.from_numpy(problem.start)
    last = [w] * CLIENTS
    for _ in range(ROUNDS):
        local = []
        for k in range(CLIENTS):
            x, y, v = torch.from_numpy(problem.x[k]), torch.from_numpy(problem.y[k]), w
            for _ in range(STEPS):
                v = v.detach().requires_grad_()
                z = features(v, x)
                near = functional.cosine_similarity(z, features(w, x)) / TAU
                far = functional.cosine_similarity(z, features(last[k], x)) / TAU
                contrast = -(near.exp() / (near.exp() + far.exp())).log()
                _, _, a, b = shaped(v)
                loss = (functional.cross_entropy(z @ a.T + b, y, reduction="none") + MU * contrast).mean()
                v = v.detach() - LR * torch.autograd.grad(loss, v)[0]
            local.append(v)
        last = local
        w = sum(share * v for share, v in zip(problem.share.tolist(), local, strict=True))
    return np.asarray(w.numpy())


@dataclass
class Case:
    """A method, and its transcription.

    Attributes:
        conditions: under which clients do different numbers of steps, where the method is for that.
    """

    algorithm: Algorithm
    transcription: Callable[[Problem], Vector]
    model: Model
    conditions: Conditions


def cases() -> dict[str, Case]:
    """By name."""
    regression, ideal = LogisticRegression(), Ideal()
    stragglers = Heterogeneous(speed_spread=0.0, bandwidth_spread=0.0, stragglers=0.6)
    return {
        "FedAvg": Case(FedAvg(), fedavg, regression, ideal),
        "FedProx": Case(FedProx(mu=MU), fedprox, regression, ideal),
        "SCAFFOLD": Case(SCAFFOLD(), scaffold, regression, ideal),
        "FedDyn": Case(FedDyn(alpha=ALPHA), feddyn, regression, ideal),
        "FedNova": Case(FedNova(), fednova, regression, stragglers),
        "MOON": Case(MOON(mu=MU, tau=TAU), moon, MLP(hidden=(16,)), ideal),
    }


@dataclass
class Outcome:
    """[P] each: fedmpi's last model, that of the transcription, and FedAvg's; and the problem.

    The problem has the first model.
    """

    problem: Problem
    ours: Vector
    theirs: Vector
    plain: Vector


def compared(case: Case, folder: Path) -> Outcome:
    """Run a case, its transcription, and FedAvg."""
    run = trained(case.algorithm, case.model, case.conditions, folder / "method.h5")
    plain = trained(FedAvg(), case.model, Ideal(), folder / "plain.h5")
    problem = problem_of(case.model, run)
    return Outcome(problem, _weights(run), case.transcription(problem), _weights(plain))


def _weights(run: Run) -> Vector:
    """[P], layer by layer."""
    tensors = run.state_dict()
    names = [name for part in ("extractor", "classifier") for name in tensors if name.startswith(part)]
    return np.concatenate([tensors[name].astype(np.float64).ravel() for name in names])


def trained(algorithm: Algorithm, model: Model, conditions: Conditions, path: Path) -> Run:
    """What fedmpi makes of the problem."""
    experiment = Experiment(
        algorithm=algorithm,
        dataset=Digits(),
        partition=Dirichlet(0.5),
        model=model,
        conditions=conditions,
        sampler=All(),
        clients=CLIENTS,
        rounds=ROUNDS,
        local=LocalTraining(epochs=STEPS, batch_size=2000, lr=LR),
        evaluate_every=0,
        seed=SEED,
        device="cpu",
        output=path,
    )
    with redirect_stdout(StringIO()):
        return experiment.run()


def problem_of(model: Model, run: Run) -> Problem:
    """The same first model, samples and numbers of steps as in a run."""
    dataset = Digits()
    arrays = dataset.read(print)
    split = make_split(Dirichlet(0.5), arrays.train_y, arrays.test_y, dataset.classes, CLIENTS, SEED)
    x = (arrays.train_x.reshape(len(arrays.train_y), -1) / 255.0 - dataset.mean[0]) / dataset.std[0]
    with randomness.globals_kept():
        randomness.seed_globals(randomness.key(SEED, "initial weights", client=0))
        network = model.build(arrays.train_x.shape[1:], dataset.classes)
    start = np.concatenate([parameter.detach().double().numpy().ravel() for parameter in network.parameters()])
    steps = run.clients["steps"].reshape(ROUNDS, CLIENTS)
    return Problem(start, [x[part] for part in split.train], [arrays.train_y[part] for part in split.train], steps)


def main() -> None:
    """Print a line for each method."""
    print(f"{'method':10}{'difference':>12}{'from FedAvg':>13}{'from the start':>16}")
    for name, case in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            found = compared(case, Path(folder))
        others = (found.theirs, found.plain, found.problem.start)
        difference, far, moved = (np.abs(found.ours - other).max() for other in others)
        print(f"{name:10}{difference:12.1e}{far:13.1e}{moved:16.2f}")


if __name__ == "__main__":
    main()
