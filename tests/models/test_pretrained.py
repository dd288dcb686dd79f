"""Weights from files, and the parts of a network that are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.experiment.experiment import Experiment
from fedmpi.models import MLP, VGG11, LeNet, Model, Projected, ResNet18, ResNet34
from fedmpi.results.check import problems
from tests.support.digits import Few
from tests.support.experiments import network, run

SHAPE = (1, 8, 8)


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def published(name: str, path: Path, shape: tuple[int, ...], **options: Any) -> tuple[nn.Module, torch.Tensor]:
    """A torchvision network with random weights and statistics, and its outputs in evaluation mode."""
    torch.manual_seed(1)
    theirs = torchvision.models.get_model(name, **options)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 2)
    saved(theirs, path)
    with torch.no_grad():
        output: torch.Tensor = theirs.eval()(torch.rand(2, *shape, generator=torch.Generator().manual_seed(2)))
    return theirs, output


@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [
        (ResNet18, "resnet18", (3, 64, 64)),
        (ResNet34, "resnet34", (3, 64, 64)),
        pytest.param(VGG11, "vgg11", (3, 224, 224), marks=pytest.mark.slow),
        pytest.param(VGG11, "vgg11_bn", (3, 224, 224), marks=pytest.mark.slow),
    ],
)
def test_torchvision_s_networks(model: type[Model], name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Oracle: torchvision's own network. With another number of classes the last layer is drawn."""
    path = tmp_path / "weights.pth"
    theirs, expected = published(name, path, shape)
    options: dict[str, Any] = {"stem": "imagenet"} if model is not VGG11 else {"hidden": (4096, 4096)}
    options |= {"norm": "batch" if name != "vgg11" else "none", "weights": path}
    ours = model(**options)
    torch.manual_seed(7)
    made = ours.make(shape, 1000).eval()
    assert list(ours.drawn) == []
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(made(images), expected)
    if name == "resnet18":
        torch.manual_seed(7)
        made = ours.make(shape, 10)
        assert list(ours.drawn) == ["classifier.weight", "classifier.bias"]
        torch.manual_seed(7)
        drawn = ResNet18(stem="imagenet").make(shape, 10).get_submodule("classifier").get_parameter("weight")
        assert torch.equal(made.get_submodule("classifier").get_parameter("weight"), drawn)
        assert torch.equal(made.get_parameter("extractor.0.weight"), theirs.get_parameter("conv1.weight"))


def test_kinds_of_files(tmp_path: Path) -> None:
    """Oracle: the network that was saved; in half precision as well."""
    from safetensors.torch import save_file

    first = network(MLP(hidden=(5,), norm="batch"), SHAPE, 10, seed=8)
    state = first.state_dict()
    without_counter = {name: tensor.half() for name, tensor in state.items() if tensor.is_floating_point()}
    torch.save(state, tmp_path / "a.pt")
    save_file(without_counter, tmp_path / "b.safetensors")
    for name in ("a.pt", "b.safetensors"):
        made = MLP(hidden=(5,), norm="batch", weights=tmp_path / name).make(SHAPE, 10)
        for key, tensor in without_counter.items():
            torch.testing.assert_close(made.state_dict()[key], state[key], rtol=1e-3, atol=1e-3)
            assert made.state_dict()[key].dtype == torch.float32
            assert torch.equal(made.state_dict()[key].half(), tensor)
    inner = Projected(over=MLP(hidden=(5,), norm="batch", weights=tmp_path / "a.pt")).make(SHAPE, 10)
    assert torch.equal(inner.get_parameter("extractor.0.1.weight"), state["extractor.1.weight"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"nothing", "is no state dict that torch.save has written ("),
        ({"classifier.weight": torch.ones(10, 6)}, "its tensor extractor.1.weight is missing, and of shape [5, 64]"),
        ([1, 2], "has no tensors by name, but a list"),
        ({"a": 1}, "has no tensors by name, but a dict"),
        ("wide", "its tensor classifier.weight is of shape [10, 6], and of shape [10, 5] in the network"),
        ("more", "its tensor more is of shape [2], and missing in the network"),
    ],
)
def test_files_that_do_not_fit(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = network(MLP(hidden=(5,)), SHAPE, 10).state_dict()
    if content == "wide":
        content = {**state, "classifier.weight": torch.ones(10, 6)}
    if content == "more":
        content = {**state, "more": torch.ones(2)}
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(BadInput) as caught:
        run(tmp_path / "run.h5", model=MLP(hidden=(5,), weights=path))
    assert str(caught.value).startswith(f"--model.weights = {path}: {said}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run.h5").exists()


def test_results_file_and_broken_safetensors(tmp_path: Path) -> None:
    first = run(tmp_path / "first.h5", model=MLP(hidden=(5,)))
    with pytest.raises(BadInput, match=r"is an HDF5 file; --init takes the model of a results file"):
        run(tmp_path / "run.h5", model=MLP(hidden=(5,), weights=first.path))
    (tmp_path / "w.safetensors").write_bytes(b"12345678910")
    with pytest.raises(BadInput, match="is no safetensors file"):
        run(tmp_path / "run.h5", model=MLP(hidden=(5,), weights=tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("model", "trained"),
    [
        (MLP(hidden=(5,), norm="batch", train="head"), ["classifier.weight", "classifier.bias"]),
        (
            MLP(hidden=(5,), norm="batch", train="norm"),
            [
                *("classifier.weight", "classifier.bias"),
                *(f"extractor.2.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
            ],
        ),
        (MLP(hidden=(5,), train="bias"), ["classifier.weight", "classifier.bias", "extractor.1.bias"]),
        (MLP(hidden=(5,), train="all"), None),
    ],
    ids=["head", "norm", "bias", "all"],
)
def test_trained_parts(model: MLP, trained: list[str] | None, tmp_path: Path) -> None:
    """Oracle: by hand; what is frozen, the running statistics of the norm as well, is as it was built."""
    made = run(tmp_path / "run.h5", model=model, store_frozen=True)
    built = network(model, SHAPE, 10).state_dict()
    names = [str(name) for name in made.model["names"]]
    assert sorted(names) == sorted(trained or built)
    assert sorted(made.frozen) == sorted(n for n, t in built.items() if n not in names and t.is_floating_point())
    for name, tensor in made.frozen.items():
        assert tensor.tobytes() == built[name].numpy().tobytes(), name
    for name in names:
        assert (made.state_dict()[name] != built[name].numpy()).any(), name


class Convolutions(Model):
    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(shape[0], outputs, shape[-1]), nn.Flatten())


def test_no_head() -> None:
    with pytest.raises(BadInput, match=r"train = head: must be another part, because .*Convolutions has no fully"):
        Convolutions(train="head").make(SHAPE, 2)


def test_the_file_names_its_source(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a run that continues from weights of another number of classes; and no other file does for it."""
    path = saved(network(LeNet(), SHAPE, 3, seed=8), tmp_path / "w.pt")
    made = run(tmp_path / "run.h5", model=LeNet(weights=path, train="head"))
    assert f"model: {path} has another number of outputs: drawn instead: classifier." in capfd.readouterr().out
    assert not problems(made.path)
    assert made.inputs["frozen_source"] == f"--model.weights = {path}"
    given = torch.load(path)
    for name, tensor in made.frozen.items():
        np.testing.assert_array_equal(tensor, given[name])
    saved(network(LeNet(), SHAPE, 3, seed=9), path)
    with pytest.raises(BadInput, match=r"its .* frozen values are not in the file .*--model.weights = .*other val"):
        results.open(made.path).network()
    with pytest.raises(BadInput, match=r"--resume: --model.weights = .* has changed since"):
        run(tmp_path / "run.h5", model=LeNet(weights=path, train="head"), rounds=2, resume=True)
    path.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        results.open(made.path).network()
    assert Experiment(dataset=Few(5), model=LeNet()).settings["model"]["init_args"]["weights"] is None
