"""What a network freezes, and its constant buffers, stay as they are under every method, and are not sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.apfl import APFL
from fedmpi.algorithms.feature_fusion import FeatureFusion
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedcm import FedCM
from fedmpi.algorithms.feddbe import FedDBE
from fedmpi.algorithms.fedgen import FedGen
from fedmpi.algorithms.fedma import FedMA
from fedmpi.algorithms.fedper import FedPer, FedRep
from fedmpi.algorithms.fedrod import FedRoD
from fedmpi.algorithms.genfl import GenFL
from fedmpi.algorithms.ifca import IFCA
from fedmpi.algorithms.mimelite import MimeLite
from fedmpi.algorithms.moon import MOON
from fedmpi.algorithms.scaffnew import Scaffnew
from fedmpi.checksum import sha256_of
from fedmpi.errors import BadInput
from fedmpi.models import Backbone, Model
from fedmpi.models.generators.cvae import CVAE
from fedmpi.options import with_options
from fedmpi.policies.attacks import Gaussian
from fedmpi.policies.compression import QSGD, TopK
from fedmpi.policies.privacy import CentralDP
from fedmpi.policies.server_optimizers import Adam
from fedmpi.results.check import problems
from fedmpi.results.summary import summarize
from fedmpi.training.clientwise import _shared_table
from fedmpi.training.dry_run import constant_buffers
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_payload import METHODS
from tests.jobs.networks import Floor, FrozenConvolution, HalfFrozen
from tests.support.experiments import CPU, Cut, network, run, shortened, state
from tests.support.mpi import mpirun, succeed

SHAPE = (1, 8, 8)
SIZES = (20, 30, 20, 30, 20, 30, 20)
FIRST = ["extractor.1.weight", "extractor.1.bias"]


def made_by(
    path: Path, algorithm: Algorithm | None = None, model: Model | None = None, **settings: Any
) -> results.Run:
    chosen: dict[str, Any] = {"rounds": 2, "clients": 7, "evaluate_every": 2, "partition": Cut(*SIZES)}
    chosen["store_frozen"] = True  # what a run has at its end, and not what it began with
    chosen["local"] = LocalTraining(epochs=1, vectorize="off", weight_decay=0.1)
    return run(path, algorithm, model=model or HalfFrozen(floor=True), **{**chosen, **settings})


def is_as_built(
    made: results.Run, names: list[str], model: Model | None = None, algorithm: Algorithm | None = None
) -> None:
    """Oracle: the network as it was built, bit for bit; and that something else has moved."""
    module = network(model or HalfFrozen(floor=True), SHAPE, 10)
    module = (algorithm or FedAvg()).extend(module, torch.zeros(2, *SHAPE))
    built = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    assert sorted(made.frozen) == sorted(names)
    found = made.state_dict()
    for name in names:
        assert found[name].tobytes() == built[name].tobytes(), name
        assert found[name].shape == built[name].shape
    trained = made.state_dict().keys() - set(names)
    assert trained
    assert np.isfinite(made.weights).all()
    # These leave the server's model as it was.
    if made.attributes["algorithm"] not in ("LocalOnly", "FedProto", "FedAMP", "FedFomo"):
        assert any((found[name] != built[name]).any() for name in trained if name in built)


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_under_every_method(method: type[Algorithm], vectorize: Any, tmp_path: Path) -> None:
    """With weight decay and momentum; one client by one, and three at a time."""
    has_momentum = vectorize != "off" and not issubclass(method, (FedCM, MimeLite, Scaffnew))  # which refuse it
    momentum = 0.5 if has_momentum else 0.0
    local = LocalTraining(epochs=1, vectorize=vectorize, weight_decay=0.1, momentum=momentum)
    model = HalfFrozen(floor=method is not FedMA)
    made = made_by(tmp_path / "made.h5", shortened(method), model, local=local)
    names = [*FIRST, *(["extractor.4.floor"] if model.floor else [])]
    if method is APFL:  # which has the network twice
        names = [f"{part}.{name}" for part in ("shared", "own") for name in names]
    is_as_built(made, names, model, shortened(method))
    size, head = 33 * 4 + 33 * 17 + 17 + 17 * 4 + 17 * 10 + 10, 17 * 10 + 10
    if method is not FeatureFusion:  # which has shares as well
        assert len(made.weights) == size + {APFL: size + 1, FedRoD: head, FedDBE: 17}.get(method, 0)
    assert made.rounds["diverged_clients"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"local": LocalTraining(epochs=1, optimizer="adam", lr=0.01, weight_decay=0.1)},
        {"local": LocalTraining(epochs=1, optimizer="adam", lr=0.01, weight_decay=0.1, vectorize=3)},
        {"server_optimizer": Adam()},
        {"attack": Gaussian(0.4)},
        {"compression": TopK(0.1)},
        {"compression": QSGD()},
        {"evaluate_means": "both"},
        {"privacy": CentralDP(), "weighting": "uniform", "model": HalfFrozen(floor=True, norm="layer")},
    ],
    ids=["adam", "adam side by side", "server", "attack", "TopK", "QSGD", "means", "privacy"],
)
def test_under_all_else(settings: dict[str, Any], tmp_path: Path) -> None:
    is_as_built(made_by(tmp_path / "made.h5", **settings), [*FIRST, "extractor.4.floor"], settings.get("model"))


@pytest.mark.parametrize("vectorize", ["off", 2])
def test_convolutions(vectorize: Any, tmp_path: Path) -> None:
    """Of a layer that is frozen in part, the rest is trained."""
    local, model = LocalTraining(epochs=1, vectorize=vectorize, weight_decay=0.1), FrozenConvolution()
    made = made_by(tmp_path / "made.h5", MOON(), model, local=local)
    is_as_built(made, ["extractor.0.weight", "extractor.0.bias", "extractor.2.bias"], model)


def test_training_is_that_of_pytorch(tmp_path: Path) -> None:
    """Oracle: the same network trained by torch.optim over its trained parameters alone."""
    local = LocalTraining(epochs=1, batch_size=1000, lr=0.1, weight_decay=0.1)
    made = made_by(tmp_path / "made.h5", local=local, clients=1, partition=Cut(64), rounds=1)
    plain = network(HalfFrozen(floor=True), SHAPE, 10)
    from tests.support.digits import DIGITS, Few
    from tests.support.experiments import normalised

    x, y = normalised(DIGITS.train_x[:64], Few(64)), torch.from_numpy(DIGITS.train_y[:64])
    parameters = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1, weight_decay=0.1)
    nn.functional.cross_entropy(plain(x), y).backward()
    optimizer.step()
    for name, tensor in state(plain).items():
        np.testing.assert_allclose(made.state_dict()[name], tensor.detach(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_several_first_models_share_it(tmp_path: Path) -> None:
    """Oracle: the first network's; other draws would be other frozen layers. One way or the other, the same model."""
    settings: dict[str, Any] = {"rounds": 1, "local": LocalTraining(epochs=1, vectorize="off"), "evaluate_every": 1}
    made = made_by(tmp_path / "made.h5", IFCA(models=3), **settings)
    is_as_built(made, [*FIRST, "extractor.4.floor"])
    centers = [made.state_dict(center) for center in made.model["centers"]]
    for center in centers:
        assert center[FIRST[0]].tobytes() == made.frozen[FIRST[0]].tobytes()
    assert len({center["classifier.weight"].tobytes() for center in centers}) == 3


def test_networks_of_a_rank_share_memory() -> None:
    """Oracle: addresses, and the first one's numbers, though the second is drawn otherwise."""
    first, second = (network(HalfFrozen(floor=True), SHAPE, 10, number=number) for number in (0, 1))
    one = FlatModel(first, CPU, ["extractor.4.floor"])
    other = FlatModel(second, CPU, shared=one.layout.frozen)
    assert one.layout == other.layout
    assert one.unsent.keys() == other.unsent.keys() == {*FIRST, "extractor.4.floor"}
    for name, tensor in one.unsent.items():
        assert tensor.data_ptr() == other.unsent[name].data_ptr(), name


def test_resume_rebuilds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run in one go, bit for bit."""
    whole = made_by(tmp_path / "whole.h5", MOON(), rounds=3)
    from fedmpi.experiment.settings import Checkpointing

    keep = Checkpointing(keep=True)
    made_by(tmp_path / "made.h5", MOON(), rounds=2, checkpoint=keep)
    resumed = made_by(tmp_path / "made.h5", MOON(), rounds=3, checkpoint=keep, resume=True)
    assert resumed.weights_sha256 == whole.weights_sha256
    is_as_built(resumed, [*FIRST, "extractor.4.floor"])
    build_otherwise(monkeypatch)
    with pytest.raises(BadInput, match=r"--model = HalfFrozen: has other frozen tensors than when .*made\.h5 was"):
        made_by(tmp_path / "made.h5", MOON(), rounds=4, checkpoint=keep, resume=True)


def test_the_file(tmp_path: Path) -> None:
    """Oracle: the schema; the sizes by hand; the network that takes it all back."""
    made = made_by(tmp_path / "made.h5")
    assert problems(made.path) == []
    assert "model       958 values trained and sent, 2,178 frozen" in summarize(made)
    assert made.rounds["bytes_up"].tolist() == [7 * 4 * 958] * 2
    module = network(HalfFrozen(floor=True), SHAPE, 10, number=1)
    given = {name: torch.from_numpy(tensor) for name, tensor in made.state_dict().items()}
    missing, unexpected = module.load_state_dict(given, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)


def test_a_file_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has sizes, checksum and source, not the numbers. Oracle: a file with them; by hand; and the message."""
    stored, made = made_by(tmp_path / "a.h5"), made_by(tmp_path / "b.h5", store_frozen=False)
    assert problems(made.path) == []
    with h5py.File(made.path) as file:
        assert "frozen" not in file["model"]
    for each in (stored, made):
        assert each.inputs["frozen_values"] == 2178
        assert each.inputs["frozen_source"] == "drawn with seed 3"
        assert each.inputs["frozen_sha256"] == sha256_of(stored.frozen)
    assert "model       958 values trained and sent, 2,178 frozen" in summarize(made)
    assert made.weights_sha256 == stored.weights_sha256
    assert {name: tensor.tobytes() for name, tensor in made.frozen.items()} == {
        name: tensor.tobytes() for name, tensor in stored.frozen.items()
    }
    x = torch.rand(3, 1, 8, 8)
    images = (255 * x).to(torch.uint8)
    assert torch.equal(made.network()(images), stored.network()(images))
    build_otherwise(monkeypatch)
    said = r"b\.h5: its 2,178 frozen values are not in the file .*--store_frozen.*drawn with seed 3.*other values now"
    with pytest.raises(BadInput, match=said):
        _ = results.open(made.path).frozen
    stored.network()


def build_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the class build networks with another frozen bias."""
    build = HalfFrozen.build

    def otherwise(self: HalfFrozen, shape: tuple[int, ...], classes: int) -> Backbone:
        network = build(self, shape, classes)
        network.extractor.get_submodule("1").get_parameter("bias").data.fill_(1)
        return network

    monkeypatch.setattr(HalfFrozen, "build", otherwise)


def test_one_copy_per_node() -> None:
    """Oracle: what each of three ranks wrote to it, in the networks of training and of evaluation."""
    said = succeed(mpirun(3, "tests/jobs/shared_base.py", "--clients", "4", "--cohort", "2"))
    assert said.splitlines()[-3:] == ["10 11 12 10 11 12"] * 3


def test_a_table_is_not_copied_for_each_client() -> None:
    """Oracle: the table's address, as `torch.vmap` gives it to the lookup; and the rows themselves."""
    table, tokens, seen = torch.randn(7, 5), torch.tensor([[1, 2], [3, 3], [6, 0]]), []

    def look_up(table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(_shared_table(table))
        return nn.functional.embedding(tokens, seen[-1])

    rows = torch.vmap(look_up)(table.expand(3, -1, -1), tokens)
    assert seen[0].data_ptr() == table.data_ptr()
    assert seen[0].shape == table.shape
    assert torch.equal(rows, table[tokens])
    own = torch.randn(3, 7, 5)
    assert torch.equal(torch.vmap(look_up)(own, tokens)[2], own[2][tokens[2]])


def test_a_pretrained_model_fits_its_frozen_part_alone(tmp_path: Path) -> None:
    """GenFL, from a run of another seed, whose frozen layer is another one."""
    settings: dict[str, Any] = {"local": LocalTraining(epochs=1, vectorize="off"), "rounds": 1}
    first = GenFL(generator_rounds=1, generator_epochs=1, synthetic=64, pretrain_epochs=1, cas_epochs=1)
    earlier = made_by(tmp_path / "earlier.h5", first, **settings)
    is_as_built(earlier, [*FIRST, "extractor.4.floor"])
    taken = GenFL(earlier=earlier.path, take="pretrained", cas_epochs=0)
    again = made_by(tmp_path / "again.h5", taken, **settings)
    np.testing.assert_array_equal(again.model["pretrained"], earlier.model["pretrained"])
    with pytest.raises(BadInput, match="whose frozen tensors are those of this run"):
        made_by(
            tmp_path / "other.h5", GenFL(earlier=earlier.path, take="pretrained", cas_epochs=0), seed=4, **settings
        )


class HalfFrozenCVAE(CVAE):
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        network = super().build(shape, classes)
        network.get_submodule("encoder.1").requires_grad_(False)
        return network


def test_a_generator_is_frozen_in_part_as_well(tmp_path: Path) -> None:
    """Oracle: by hand; and a later run that goes on from it."""
    settings: dict[str, Any] = {"local": LocalTraining(epochs=1, vectorize="off"), "rounds": 1}
    brief: dict[str, Any] = {
        "generator": HalfFrozenCVAE(2, (9,)),
        "synthetic": 64,
        "pretrain": False,
        "cas_epochs": 1,
    }
    earlier = made_by(tmp_path / "earlier.h5", GenFL(generator_rounds=1, **brief), **settings)
    tensors = earlier.tensors("generator_weights")
    assert {name: tensor.shape for name, tensor in tensors.items() if name.startswith("encoder.1")} == {
        "encoder.1.weight": (9, 64),
        "encoder.1.bias": (9,),
    }
    again = made_by(tmp_path / "again.h5", GenFL(earlier=earlier.path, take="generator", **brief), **settings)
    np.testing.assert_array_equal(again.synthetic["images"], earlier.synthetic["images"])


class FrozenScale(HalfFrozen):
    """Batch normalisation whose scale and shift are frozen, in training mode; and frozen single numbers."""

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        network = super().build(shape, classes)
        network.extractor.get_submodule("2").requires_grad_(False)
        network.register_parameter("number", nn.Parameter(torch.tensor(3.0), requires_grad=False))
        network.register_buffer("other", torch.tensor(5.0))
        return network


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_statistics_go_on_without_a_scale_that_is_trained(vectorize: Any, tmp_path: Path) -> None:
    """Of a method that trains its model in parts; and the statistics of what is trained move as well."""
    local = LocalTraining(epochs=1, vectorize=vectorize)
    made = made_by(tmp_path / "made.h5", FedRep(head_epochs=1), FrozenScale(), local=local)
    is_as_built(made, [*FIRST, "extractor.2.weight", "extractor.2.bias", "number", "other"], FrozenScale())
    for layer in (2, 5):
        assert made.state_dict()[f"extractor.{layer}.running_mean"].any(), layer


class AllFrozen(Model):
    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        return HalfFrozen().build(shape, classes).requires_grad_(False)


class FrozenHead(Model):
    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        network = HalfFrozen().build(shape, classes)
        network.classifier.requires_grad_(False)
        return network


@pytest.mark.parametrize(
    ("method", "model", "said"),
    [
        (FedAvg, AllFrozen(), "--model = AllFrozen: has no parameters to train: all are frozen"),
        (FedPer, FrozenHead(), "FedPer needs a fully connected layer that is trained, and other trained layers"),
        (FedGen, FrozenHead(), "FedGen needs one whose last fully connected layer is trained"),
        (FedMA, FrozenConvolution(), "FedMA needs one with hidden units between layers that are not frozen"),
        (FedMA, HalfFrozen(floor=True), "uses maximum, which is not supported with this method"),
    ],
)
def test_what_cannot_be(method: type[Algorithm], model: Model, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        made_by(tmp_path / "made.h5", method(), model)


# Which buffers are constant


class Buffers(nn.Module):
    """Buffers that are written to in every way there is, though their values stay; and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = nn.Linear(3, 4)
        nn.init.zeros_(self.dead.weight)
        nn.init.zeros_(self.dead.bias)
        self.statistics = nn.BatchNorm1d(4)  # of features that are zero, whose mean is what it was
        self.cold = nn.BatchNorm1d(4)
        self.spectral = nn.utils.spectral_norm(nn.Linear(4, 1))  # with one output its vector u cannot change
        self.instance = nn.InstanceNorm1d(1, track_running_stats=True)
        self.in_place: torch.Tensor
        self.assigned: torch.Tensor
        for name, value in {"mask": -torch.inf, "unknown": torch.nan, "in_place": 1.0, "assigned": 1.0}.items():
            self.register_buffer(name, torch.full((3,), value))
        self.register_buffer("count", torch.tensor(0))

    def train(self, mode: bool = True) -> Buffers:
        super().train(mode)
        self.cold.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.in_place.mul_(1)
        self.assigned = self.assigned.clone()
        hidden = self.cold(self.statistics(self.dead(x)))
        result: torch.Tensor = self.spectral(self.instance(hidden[:, None])[:, 0])
        return result


def test_constant_buffers() -> None:
    """Oracle: by hand; and the network is as it was before."""
    module = Buffers()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    places = {name: id(buffer) for name, buffer in module.named_buffers()}
    constant = constant_buffers(module, torch.ones(2, 3))
    assert sorted(constant) == ["cold.running_mean", "cold.running_var", "mask", "unknown"]
    assert {name: id(buffer) for name, buffer in module.named_buffers()} == places
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)


@with_options
class Late(Model):
    """Writes to a buffer, but not in the first batches.

    Args:
        kind: when it does so: in a later batch, or in wide ones in training or in evaluation.
    """

    kind: str = "later"

    class Network(nn.Module):
        def __init__(self, classes: int, kind: str) -> None:
            super().__init__()
            self.floor, self.layer, self.calls, self.kind = Floor(64), nn.Linear(64, classes), 0, kind

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            writes = {
                "later": self.training and self.calls > 9,
                "wide": self.training and len(x) > 5,
                "evaluation": not self.training and len(x) > 5,
            }
            if writes[self.kind]:
                with torch.no_grad():
                    self.floor.floor.lerp_(x.flatten(1).mean(0), 0.1)
            result: torch.Tensor = self.layer(self.floor(x.flatten(1)))
            return result

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return self.Network(classes, self.kind)


@pytest.mark.parametrize(
    ("kind", "vectorize"), [("later", "off"), ("wide", "off"), ("wide", 4), ("evaluation", "off")]
)
def test_one_that_is_written_to_later_is_no_silent_error(kind: str, vectorize: int | str, tmp_path: Path) -> None:
    said = r"buffer floor\.floor was written to, but not by the network's first batch in training"
    local = LocalTraining(epochs=1, batch_size=10, vectorize=vectorize)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=said):
        made_by(tmp_path / "made.h5", model=Late(kind), local=local)
