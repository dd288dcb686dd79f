"""FeatureFusion: operators, the algorithm in plain PyTorch, the cache, held-out clients, and what is refused."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi import results
from fedmpi.algorithms.centralized import Centralized
from fedmpi.algorithms.feature_fusion import FeatureFusion
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.algorithms.moon import MOON
from fedmpi.components import subclasses
from fedmpi.data import Dirichlet, Permuted, make_split
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import Backbone, BiLSTM, HuggingFace, LeNet, Model, NextToken, ResNet34
from fedmpi.models._fusion import Blend, Mix
from fedmpi.policies.server_optimizers import Replace
from fedmpi.results.writer import settled
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_ifca import DIGITS, seen_by
from tests.jobs.methods import Noisy
from tests.jobs.regression import InOrder
from tests.support.digits import EACH, SHAPE, Few, in_order
from tests.support.experiments import CPU, SEED, Spy, network, normalised, order, plain_batches, run, tensors
from tests.training.test_sidebyside import MODELS, SIZES, Both, block, compare, double

__all__ = ["double"]  # a fixture

OPERATORS: tuple[Literal["conv", "multi", "single"], ...] = ("conv", "multi", "single")
LOCAL: dict[str, Any] = {"epochs": 2, "batch_size": 10, "lr": 0.05, "momentum": 0.5, "weight_decay": 0.01}


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The operators


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4)])
def test_blends(shape: tuple[int, ...]) -> None:
    """Oracle: the formula, channel by channel; and the features themselves where both extractors agree."""
    theirs, own = maps(*shape), maps(*shape, seed=1)
    for channels in (1, 4):
        blend = Blend(channels)
        torch.testing.assert_close(blend(theirs, own), own, rtol=0, atol=0, msg="zero at first")
        blend.share.data = maps(channels, seed=2) * 3
        shares = blend.share.expand(4)
        for channel in range(4):
            expected = shares[channel] * theirs[:, channel] + (1 - shares[channel]) * own[:, channel]
            torch.testing.assert_close(blend(theirs, own)[:, channel], expected)
        torch.testing.assert_close(blend(own, own), own, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4)])
def test_mixes(shape: tuple[int, ...]) -> None:
    """Oracle: with weights [I, 0] the global extractor's features, with [0, I] the local one's; or their mean."""
    theirs, own = maps(*shape), maps(*shape, seed=1)
    mix = Mix(4, "average")
    torch.testing.assert_close(mix(theirs, own), (theirs + own) / 2)
    unit, none = torch.eye(4), torch.zeros(4, 4)
    for weights, expected in (((unit, none), theirs), ((none, unit), own)):
        mix.convolution.weight.data = torch.cat(weights, 1)[:, :, None, None]
        torch.testing.assert_close(mix(theirs, own), expected, rtol=1e-6, atol=1e-6)
    assert sum(p.numel() for p in Mix(64, "default").parameters()) == 8256


SHIPPED = {cls for cls in subclasses(Model) if cls.__module__.startswith("fedmpi.") and not inspect.isabstract(cls)}


@pytest.mark.parametrize(
    "kind", sorted(SHIPPED - {ResNet34, NextToken, HuggingFace}, key=str)
)  # as ResNet18; refused; files
def test_every_backbone_takes_every_operator(kind: type[Model]) -> None:
    """Oracle: the backbone's own logits where shares are zero."""
    is_text = kind is BiLSTM
    example = torch.ones(2, 12, dtype=torch.int64) if is_text else maps(2, 1, 32, 32)
    model = kind()
    model.vocabulary = 30 if is_text else None
    backbone = network(model, tuple(example.shape[1:]), 10).eval()
    with torch.no_grad():
        for operator in OPERATORS[:2]:
            fused = FeatureFusion(operator).extend(backbone.train(), example).eval()
            logits = fused(example)
            assert logits.shape == backbone(example).shape
            if operator != "conv":
                torch.testing.assert_close(logits, backbone(example))


# The first steps


def one_step(path: Path, algorithm: FedAvg, steps: int) -> results.Run:
    local = LocalTraining(steps=steps, batch_size=10, lr=0.05, clip_norm=5)
    return run(path, algorithm, model=LeNet("none"), dataset=Few(40), clients=1, local=local)


@pytest.mark.parametrize("operator", ["multi", "single"])
def test_the_first_step_is_fedavgs(operator: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit; shares have no gradient while both extractors agree, and one from then on."""
    plain = tensors(one_step(tmp_path / "plain.h5", FedAvg(), 1))
    made = tensors(one_step(tmp_path / "made.h5", FeatureFusion(operator), 1))
    assert made.keys() - plain.keys() == {"fusion.share"}
    assert not made["fusion.share"].any()
    for name, tensor in plain.items():
        assert torch.equal(tensor, made[name])
    assert tensors(one_step(tmp_path / "two.h5", FeatureFusion(operator), 2))["fusion.share"].all()


# The whole method


def plain_fusion(algorithm: FeatureFusion, model: Model, rounds: int) -> tuple[list[dict[str, Tensor]], Any]:
    """The tensors after each round of the paper's algorithm 1 with two equal clients; the last but one's network."""
    settings = LocalTraining(**LOCAL)
    server: Any = algorithm.extend(network(model, SHAPE, 10), torch.zeros(2, *SHAPE))
    x, y = normalised(DIGITS.train_x[: 2 * EACH], Few(1)), torch.from_numpy(DIGITS.train_y[: 2 * EACH])
    average = torch.zeros(())
    after = []
    for round in range(1, rounds + 1):
        trained = []
        for client in range(2):
            mine = slice(client * EACH, (client + 1) * EACH)
            module, frozen = copy.deepcopy(server).train(), copy.deepcopy(server).eval().requires_grad_(False)
            optimizer = torch.optim.SGD(
                module.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
            )
            for epoch in range(settings.epochs):
                for chosen in plain_batches(order(epoch, round, client, EACH), settings.batch_size, True):
                    images = x[mine][chosen]
                    logits = module.classifier(module.fusion(frozen.extractor(images), module.extractor(images)))
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(logits, y[mine][chosen]).backward()
                    optimizer.step()
            trained.append(module.state_dict())
        previous = copy.deepcopy(server)
        mean = {name: torch.stack([one[name].float() for one in trained]).mean(0) for name in trained[0]}
        if "fusion.share" in mean:
            mean["fusion.share"] = average = 0.1 * mean["fusion.share"] + 0.9 * average
        server.load_state_dict(mean)
        after.append({name: tensor.clone() for name, tensor in mean.items() if "num_batches" not in name})
    return after, previous


def flattened(tensors: Mapping[str, Tensor], names: Iterable[str]) -> list[float]:
    """The values of some tensors, one after another."""
    values: list[float] = torch.cat([tensors[name].flatten() for name in names]).tolist()
    return values


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("operator", OPERATORS)
def test_it_is_the_papers_algorithm(operator: Any, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: plain PyTorch, three rounds of two clients; to 1e-3 of what fusion changes. And its evaluations."""
    local = LocalTraining(**LOCAL, vectorize=vectorize)
    made = in_order(tmp_path / "made.h5", FeatureFusion(operator), LeNet(), 2, local)
    plain = tensors(in_order(tmp_path / "plain.h5", FedAvg(), LeNet(), 2, local))
    after, previous = plain_fusion(FeatureFusion(operator), LeNet(), 3)
    found = tensors(made)
    assert found.keys() == after[-1].keys()
    off = math.dist(*(flattened(some, found) for some in (found, after[-1])))
    changed = math.dist(*(flattened(some, plain) for some in (plain, after[-1])))
    assert changed > 0.01
    assert off < 1e-3 * changed
    if operator != "conv":
        assert (found["fusion.share"] - after[-1]["fusion.share"]).norm() < 1e-2 * after[-1]["fusion.share"].norm()
    server = copy.deepcopy(previous)
    server.load_state_dict(found, strict=False)
    server.eval(), previous.eval()
    with torch.no_grad():
        images, labels = normalised(DIGITS.test_x, Few(1)), torch.from_numpy(DIGITS.test_y)
        by = {"self": server(images)}
        by["previous"] = server.classifier(server.fusion(previous.extractor(images), server.extractor(images)))
    accuracies = {name: (logits.argmax(1) == labels).float().mean().item() for name, logits in by.items()}
    for name, accuracy in accuracies.items():
        assert made.rounds[f"with_{name}_extractor_accuracy"][-1] == pytest.approx(accuracy, abs=0.01)
    assert (by["self"] - by["previous"]).abs().max() > 1e-3
    loss = nn.functional.cross_entropy(by["previous"], labels).item()
    assert made.rounds["test_loss"][-1] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_client_is_the_mean(operator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: what the client has trained; of shares a tenth."""
    spy = Spy(monkeypatch)
    made = run(tmp_path / "made.h5", FeatureFusion(operator), model=LeNet("none"), dataset=Few(40), clients=1)
    layout = FlatModel(
        FeatureFusion(operator).extend(network(LeNet("none"), SHAPE, 10), torch.zeros(2, *SHAPE)), CPU
    ).layout
    trained = layout.canonical(torch.from_numpy(spy.trained[-1][0]).float()).numpy()
    local, server = tensors(made, trained), tensors(made)
    for name, tensor in server.items():
        scale = 0.1 if name == "fusion.share" else 1
        torch.testing.assert_close(tensor, scale * local[name], rtol=1e-6, atol=0)


def test_moving_average_of_shares() -> None:
    """Oracle: 1 - 0.9^r of clients whose shares are 1, in round r; everything else is the clients' mean."""
    algorithm = FeatureFusion()
    algorithm.server_optimizer, algorithm.caches = Replace(), True
    algorithm.weights, algorithm.shares = torch.tensor([5.0, 0.0, 0.0, 5.0]), [slice(1, 3)]
    fed: Any = SimpleNamespace(layout=SimpleNamespace(parameters=4), log=lambda **values: None)
    for expected in (0.1, 0.19, 0.271):
        before = algorithm.weights
        algorithm.server_step(fed, torch.tensor([7.0, 1.0, 1.0, 8.0]))
        torch.testing.assert_close(algorithm.weights, torch.tensor([7.0, expected, expected, 8.0]))
        assert algorithm.previous is before


def test_smoothing_can_be_chosen(tmp_path: Path) -> None:
    """Oracle: without smoothing shares are the clients' mean, ten times what they are in the first round with it."""
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(60), "partition": InOrder(), "clients": 2}
    usual, none = (
        tensors(run(tmp_path / f"{smoothing}.h5", FeatureFusion(smoothing=smoothing), **settings))
        for smoothing in (None, 0.0)
    )
    torch.testing.assert_close(10 * usual["fusion.share"], none["fusion.share"], rtol=1e-5, atol=0)


# The features that are kept


@pytest.mark.parametrize("operator", OPERATORS)
def test_kept_features_change_nothing(operator: Any, tmp_path: Path) -> None:
    """Oracle: the run that computes them in every step: losses to 1e-4, in two rounds of unequal permuted clients."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "partition": Permuted(Dirichlet(0.3)),
        "dataset": Few(80),
        "clients": 5,
        "rounds": 2,
    }
    for vectorize in ("off", 3):
        local = LocalTraining(epochs=2, batch_size=7, lr=0.05, vectorize=vectorize)
        kept, anew = (
            run(tmp_path / f"{vectorize}{mb}.h5", FeatureFusion(operator, cache_mb=mb), local=local, **settings)
            for mb in (1000, 0)
        )
        assert kept.rounds["cached_features"].tolist() == [1, 1]
        assert anew.rounds["cached_features"].tolist() == [0, 0]
        np.testing.assert_allclose(kept.clients["loss"], anew.clients["loss"], rtol=1e-4)
        assert np.abs(kept.weights - anew.weights).max() < 1e-4


def test_augmented_samples_have_no_features_to_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: with augmentation, the run that is not allowed to keep any, bit for bit."""
    local = LocalTraining(epochs=1, augmentation="flip")
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(60), "local": local}
    made, never = (run(tmp_path / f"{mb}.h5", FeatureFusion(cache_mb=mb), **settings) for mb in (1000, 0))
    assert made.rounds["cached_features"].tolist() == [0]
    assert made.weights_sha256 == never.weights_sha256
    said = capsys.readouterr().out
    assert (
        said.count("features of the global extractor are computed in every step, because samples are augmented\n")
        == 2
    )


def test_the_bound_of_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: 512 bytes a digit of LeNet's last maps, 32 x 2 x 2 float32, for 3 clients at once of at most 1,000."""
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(1000, 3), "partition": InOrder(), "clients": 3}
    local = LocalTraining(steps=1, vectorize=3)
    module: Any = network(LeNet(), SHAPE, 10)
    features = module.extractor(torch.zeros(2, *SHAPE))
    needed = 3 * 1000 * features[0].numel() * 4
    assert 1e6 < needed < 2e6
    for cache_mb, kept in ((1, 0), (2, 1)):
        made = run(tmp_path / f"{cache_mb}.h5", FeatureFusion(cache_mb=cache_mb), local=local, **settings)
        assert made.rounds["cached_features"].tolist() == [kept]
        assert ("they would take up to 2 MB per rank\n" in capsys.readouterr().out) != kept


# Side by side


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("model", ["lenet batch", "bilstm batch"])
@pytest.mark.usefixtures("double")
def test_side_by_side(operator: Any, model: str) -> None:
    """Oracle: clients one by one, with kept features and without; 1e-11 of the way. E_g stays bit for bit."""
    algorithm = FeatureFusion(operator)

    class Extended(Model):
        vocabulary = MODELS[model].vocabulary

        def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
            kind = torch.int64 if self.vocabulary else torch.get_default_dtype()
            return algorithm.extend(MODELS[model].build(shape, classes), torch.ones(2, *shape, dtype=kind))

    both = Both(Extended(), permuted=MODELS[model].vocabulary is None)
    share = next((entry for entry in both.plain.model.layout.entries if entry.name == "fusion.share"), None)
    if share:
        both.start[:, share.columns] = 0.3
    received = both.start[0] + 0.01 * maps(both.start.shape[1])
    received[both.plain.model.layout.segments["statistics"]].abs_()
    clients, as_received = np.arange(len(SIZES)), received.clone()
    features = both.plain.features(block(clients.tolist(), {}, None), received)
    everywhere = received.expand(len(clients), -1)
    compare(both, algorithm, 1e-11, received=everywhere)
    with_cache, _ = both.one_by_one(algorithm, received=everywhere, features=features)
    without, _ = both.one_by_one(algorithm, received=everywhere)
    torch.testing.assert_close(with_cache, without, rtol=1e-9, atol=1e-12)
    compare(both, algorithm, 1e-11, received=everywhere, features=features)
    assert torch.equal(received, as_received)


# Measured at the clients


def test_what_was_trained_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the trained networks in PyTorch beside the received extractor, each on its client's test samples."""
    spy, settings = Spy(monkeypatch), {"model": LeNet(), "clients": 5, "partition": Permuted(Dirichlet(0.3))}
    made = run(tmp_path / "made.h5", FeatureFusion("conv"), rounds=2, evaluate_local=True, **settings)
    split = make_split(Permuted(Dirichlet(0.3)), DIGITS.train_y, DIGITS.test_y, 10, 5, SEED)
    algorithm = FeatureFusion("conv")
    own, theirs = (
        FlatModel(algorithm.extend(network(LeNet(), SHAPE, 10), torch.zeros(2, *SHAPE)), CPU) for _ in range(2)
    )
    received = spy.measured[1][0]  # the model after the first round
    theirs.load(received)
    found = []
    local: Any = own.module.eval()
    frozen: Any = theirs.module.eval()
    for client in range(5):
        own.load(torch.from_numpy(spy.trained[2][client]).float())
        images = seen_by(split, client, DIGITS.test_x[split.test[client]])
        with torch.no_grad():
            logits = local.classifier(local.fusion(frozen.extractor(images), local.extractor(images)))
        found.append((logits.argmax(1).numpy() == DIGITS.test_y[split.test[client]]).mean())
    measured = made.clients["local_accuracy"][made.clients["round"] == 2]
    np.testing.assert_allclose(measured, found, atol=0.02)
    assert made.rounds["local_accuracy"][1] == pytest.approx(measured.mean())
    assert np.ptp(measured) > 0


def test_held_out(tmp_path: Path) -> None:
    """Oracle: PyTorch, from the global model on, epoch by epoch, with a frozen extractor; on its own permutation.

    They take part in no round, and nobody is measured on their samples.
    """
    partition, local = Permuted(), LocalTraining(epochs=1, batch_size=10, lr=0.1)
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(500), "partition": partition, "local": local}
    made = run(
        tmp_path / "made.h5", FeatureFusion("multi"), clients=3, held_out=2, held_out_epochs=6, rounds=3, **settings
    )
    assert set(made.clients["client"]) == {0, 1, 2}
    split = make_split(partition, DIGITS.train_y[:500], DIGITS.test_y, 10, 5, SEED)
    assert len(made.partition["samples"]) == 3
    measured = sum(len(shard) for shard in split.test[:3])
    assert made.rounds["test_accuracy"][-1] * measured == pytest.approx(
        (made.evaluation["client_accuracy"][-1] * [len(shard) for shard in split.test[:3]]).sum()
    )
    server: Any = FeatureFusion("multi").extend(network(LeNet(), SHAPE, 10), torch.zeros(2, *SHAPE))
    server.load_state_dict(tensors(made), strict=False)
    for k, client in enumerate((3, 4)):
        module, frozen = copy.deepcopy(server).train(), copy.deepcopy(server).eval().requires_grad_(False)
        shard = split.train[client]
        x, y = seen_by(split, client, DIGITS.train_x[shard]), torch.from_numpy(DIGITS.train_y[shard])
        held, labels = split.test[client], DIGITS.test_y[split.test[client]]
        accuracy = []
        for epoch in range(7):
            if epoch:
                for chosen in plain_batches(
                    order(0, 3, client, len(shard), phase=f"held-out {epoch} "), local.batch_size, True
                ):
                    logits = module.classifier(
                        module.fusion(frozen.extractor(x[chosen]), module.extractor(x[chosen]))
                    )
                    module.zero_grad()
                    nn.functional.cross_entropy(logits, y[chosen]).backward()
                    with torch.no_grad():
                        for parameter in module.parameters():
                            assert parameter.grad is not None
                            parameter -= local.lr * parameter.grad
            with torch.no_grad():
                images = seen_by(split, client, DIGITS.test_x[held])
                module.eval()
                logits = module.classifier(module.fusion(frozen.extractor(images), module.extractor(images)))
                module.train()
            accuracy.append((logits.argmax(1).numpy() == labels).mean())
        np.testing.assert_allclose(made.held_out["accuracy"][k], accuracy, atol=0.02)
        assert accuracy[-1] > accuracy[0] + 0.2


def test_when_a_held_out_client_has_settled() -> None:
    """Oracle: by hand. The next three epochs must gain less than a tenth of a point."""
    assert settled(np.array([0.1, 0.5, 0.7, 0.7005, 0.7, 0.6, 0.9])) == 2
    assert settled(np.array([0.1, 0.5, 0.7, 0.701, 0.702, 0.703])) != settled(np.array([0.5, 0.5, 0.5, 0.5]))
    assert settled(np.array([0.5, 0.5, 0.5, 0.5])) == 0
    assert np.isnan(settled(np.array([0.1, 0.2, 0.3, 0.4, 0.5])))
    assert np.isnan(settled(np.array([0.5, 0.5, 0.5])))


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("conv --algorithm.smoothing 0.5", "smoothing = 0.5: must be null with operator conv, which has no shares"),
        ("multi --algorithm.smoothing 1", "smoothing = 1.0: must be at least 0 and below 1"),
        ("multi --algorithm.start average", "start = average: must be default with operator multi"),
        ("single --algorithm.cache_mb -1", "cache_mb = -1: must be at least 0"),
    ],
)
def test_options_that_cannot_be(options: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", "FeatureFusion", "--algorithm.operator", *options.split()])
    assert str(error.value) == f"--algorithm.{message}"


class Sequences(Model):
    """Features [B, 8, 8] without channels."""

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        return Backbone(nn.Flatten(1, 2), nn.Sequential(nn.Flatten(), nn.Linear(64, classes)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Noisy(),
            "--model: FeatureFusion needs one built as Backbone(extractor, classifier), without a forward of its own",
        ),
        (Sequences(), "--model: FeatureFusion needs features [B, C] or [B, C, H, W], not [2, 8, 8]"),
    ],
)
def test_models_without_features(model: Model, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        run(tmp_path / "never.h5", FeatureFusion(), model=model)
    assert str(error.value) == message
    assert not (tmp_path / "never.h5").exists()


@pytest.mark.parametrize("algorithm", [FedProx(), MOON(), Centralized()])
def test_held_out_clients_need_no_more_than_the_model(algorithm: FedAvg, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        run(tmp_path / "never.h5", algorithm, held_out=1)
    assert str(error.value).startswith(f"held_out = 1: must be 0 with {type(algorithm).__name__}")
