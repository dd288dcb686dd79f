"""Networks with an output per place: the U-Net for pixels, and the LSTM that predicts the next token."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmpi import results
from fedmpi.data import TweetCharacters
from fedmpi.errors import BadInput
from fedmpi.models import Backbone, NextToken, Norm, UNet
from fedmpi.models._recurrent import TextReader
from fedmpi.training.layout import Layout
from tests.data.test_leaf import SONNET
from tests.data.test_masks import write_mnist
from tests.data.test_sentiment140 import write as write_tweets
from tests.support.mpi import REPOSITORY, mpirun, succeed

VOCABULARY, LENGTH = 30, 9


def unet(shape: tuple[int, ...] = (1, 8, 12), classes: int = 5, **options: Any) -> Backbone:
    torch.manual_seed(0)
    return UNet(**options).build(shape, classes)


def next_token(vocabulary: int = VOCABULARY, **options: Any) -> Backbone:
    torch.manual_seed(0)
    model = NextToken(**options)
    model.vocabulary = vocabulary
    return model.build((LENGTH,), vocabulary)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("width", "depth", "norm"), [(16, 2, "batch"), (4, 0, "group"), (6, 3, "none")])
def test_parameters_of_the_u_net(width: int, depth: int, norm: Norm) -> None:
    """Oracle: by hand, level by level: 3x3 convolutions without bias, and 2 numbers per normalised channel."""

    def twice(inputs: int, outputs: int) -> int:
        return 9 * outputs * (inputs + outputs) + (0 if norm == "none" else 4 * outputs)

    widths = [width * 2**level for level in range(depth + 1)]
    expected = twice(1, width) + 11 * (width + 1)
    for upper, lower in pairwise(widths):
        expected += twice(upper, lower) + (4 * lower * upper + upper) + twice(2 * upper, upper)
    made = unet((1, 28, 28), 11, width=width, depth=depth, norm=norm)
    assert parameters(made) == expected
    buffers = sum(buffer.numel() for buffer in made.buffers() if buffer.is_floating_point())
    if norm == "batch":
        assert (expected, buffers) == (117_243, 640), "as its docstring says"
    else:
        assert buffers == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_u_net_written_out(training: bool) -> None:
    """Oracle: two levels in plain PyTorch, with the tensors in their order; batch normalisation in both modes."""
    made = unet(width=3, depth=1).double().train(training)
    tensors = iter(list(made.parameters()))
    x = torch.randn(4, 1, 8, 12, dtype=torch.float64)

    def twice(x: Tensor) -> Tensor:
        for _ in range(2):
            x = functional.conv2d(x, next(tensors), padding=1)
            channels = x.shape[1]
            mean, var = torch.zeros(channels, dtype=x.dtype), torch.ones(channels, dtype=x.dtype)
            x = functional.batch_norm(x, mean, var, next(tensors), next(tensors), training).relu()
        return x

    upper = twice(x)
    lower = twice(functional.max_pool2d(upper, 2))
    enlarged = functional.conv_transpose2d(lower, next(tensors), next(tensors), stride=2)
    features = twice(torch.cat([upper, enlarged], 1))
    expected = torch.einsum("bchw,kc->bkhw", features, next(tensors)) + next(tensors)[:, None, None]
    torch.testing.assert_close(made(x), expected)
    assert expected.shape == (4, 5, 8, 12)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 9), (1, 1), (4, 6)])
def test_images_of_any_size(height: int, width: int) -> None:
    """Oracle: the image with zeros at the bottom and on the right, of which the same part of the output counts."""
    made = unet((2, height, width), norm="group").eval()
    x = torch.randn(3, 2, height, width)
    padded = torch.zeros(3, 2, -(-height // 4) * 4, -(-width // 4) * 4)
    padded[..., :height, :width] = x
    assert made(x).shape == (3, 5, height, width)
    torch.testing.assert_close(made(x), made(padded)[..., :height, :width])


def test_an_output_depends_on_the_whole_image() -> None:
    """Oracle: the gradient: at depth 2 that of one pixel reaches farther than six 3x3 convolutions."""
    made = unet((1, 32, 32), norm="none").eval()
    x = torch.rand(1, 1, 32, 32, requires_grad=True)
    made(x)[0, :, 16, 16].sum().backward()
    assert x.grad is not None
    reached = torch.nonzero(x.grad[0, 0])
    assert (reached - 16).abs().max() > 8


@pytest.mark.parametrize(
    ("embedding", "hidden", "projection", "vocabulary"), [(32, 128, 32, 100), (96, 670, 96, 10_004), (3, 4, 5, 6)]
)
def test_parameters_of_the_next_token(embedding: int, hidden: int, projection: int, vocabulary: int) -> None:
    """Oracle: by hand; of Reddi et al. (2021), 4,050,748 with the one bias per gate that Keras has instead of two."""
    made = next_token(vocabulary, embedding=embedding, hidden=hidden, projection=projection)
    lstm = 4 * hidden * (embedding + hidden + 2)
    linear = (hidden + 1) * projection + (projection + 1) * vocabulary
    assert parameters(made) == vocabulary * embedding + lstm + linear
    if hidden == 128:
        assert parameters(made) == 93_572, "as its docstring says"
    if hidden == 670:
        assert parameters(made) == 4_050_748 + 4 * hidden


@pytest.fixture
def reader() -> TextReader:
    torch.manual_seed(0)
    return TextReader(VOCABULARY, embedding=5, hidden=7).double()


def side_by_side(reader: TextReader) -> Callable[[Tensor], Tensor]:
    """As one of two clients that are trained side by side."""
    return lambda tokens: torch.vmap(reader)(torch.stack([tokens.flip(0), tokens]))[1]


WAYS: dict[str, Callable[[TextReader], Callable[[Tensor], Tensor]]] = {
    "one by one": lambda reader: reader,
    "side by side": side_by_side,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_pytorchs_lstm(way: str, reader: TextReader) -> None:
    """Oracle: torch.nn.LSTM with the same weights; values and gradients, in float64; padding is not trained."""
    tokens = torch.randint(1, VOCABULARY, (6, LENGTH))
    tokens[0, 4:] = 0
    plain = nn.LSTM(5, 7, batch_first=True).double()
    plain.load_state_dict(reader.lstm.state_dict())
    table = reader.embedding.weight.detach().clone().requires_grad_()
    expected = plain(table[tokens])[0]
    weights = torch.randn(6, LENGTH, 7, dtype=torch.float64)
    (expected * weights).sum().backward()
    seen = WAYS[way](reader)(tokens)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-13)
    (seen * weights).sum().backward()
    assert table.grad is not None
    assert reader.embedding.weight.grad is not None
    torch.testing.assert_close(reader.embedding.weight.grad[1:], table.grad[1:], rtol=0, atol=1e-12)
    assert not reader.embedding.weight.grad[0].any()
    for name, parameter in reader.lstm.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_no_token_sees_those_after_it(way: str, reader: TextReader) -> None:
    """Oracle: the same states, to the last bit, up to a place behind which all tokens are changed."""
    tokens = torch.randint(1, VOCABULARY, (6, LENGTH))
    other = tokens.clone()
    other[:, 5:] = 0
    first, second = WAYS[way](reader)(tokens), WAYS[way](reader)(other)
    assert torch.equal(first[:, :5], second[:, :5])
    assert not torch.equal(first[:, 5], second[:, 5])


def test_runs(tmp_path: Path) -> None:
    """Oracles: clients that are trained four at a time end where they do one by one; both networks learn."""
    write_mnist(tmp_path, 120, 40)
    text = " ".join(SONNET.split()).replace("\u2014", "-")
    rows = [("04"[n % 2], f"author {n % 6}", text[3 * n : 3 * n + 24]) for n in range(60)]
    for name in TweetCharacters.files:
        write_tweets(tmp_path / "sentiment140" / name, rows)
    common = "--partition IID --clients 6 --rounds 2 --local.epochs 1 --local.lr 0.05"
    masks = f"{common} --dataset MNISTMasks --dataset.root {tmp_path} --model UNet --model.width 4 --model.norm group"
    texts = f"--dataset TweetCharacters --dataset.root {tmp_path} --dataset.length 24"
    characters = f"{common} {texts} --model NextToken --partition Users"
    lines = [
        f"{name}-{at_once} {options} --local.vectorize {at_once}"
        for name, options in (("masks", masks), ("characters", characters))
        for at_once in ("off", 4)
    ]
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "lines").write_text("\n".join(lines))
    succeed(mpirun(2, REPOSITORY / "tests/jobs/runs.py", tmp_path, "all:0:2"))
    for name in ("masks", "characters"):
        alone, together = (results.open(tmp_path / "all" / f"{name}-{at_once}.h5") for at_once in ("off", 4))
        assert (together.environment["clients_at_once"], alone.environment["clients_at_once"]) == (4, 1)
        apart = {key: together.state_dict()[key] - tensor for key, tensor in alone.state_dict().items()}
        assert max(np.abs(x).max() for x in apart.values()) < 1e-4  # of weights, most of which are above 1e-2
        assert alone.rounds["test_loss"][-1] < alone.rounds["test_loss"][0]


def test_the_two_parts() -> None:
    """Oracle: shapes; and the last layer as the head, which some methods keep at the clients."""
    tokens, images = torch.ones(2, LENGTH, dtype=torch.int64), torch.randn(2, 1, 8, 12)
    for made, x, features, output in (
        (next_token(), tokens, (2, LENGTH, 32), (2, LENGTH, VOCABULARY)),
        (unet(), images, (2, 16, 8, 12), (2, 5, 8, 12)),
    ):
        made.eval()
        assert made.extractor(x).shape == features
        assert made(x).shape == output
        assert torch.equal(made.classifier(made.extractor(x)), made(x))
        heads = [entry.name for entry in Layout.of(made).entries if entry.segment == "head"]
        assert [name.rpartition(".")[2] for name in heads] == ["weight", "bias"]
        assert all(name.startswith("classifier.") for name in heads)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(width=0), "width = 0: must be at least 1"),
        (lambda: UNet(depth=-1), "depth = -1: must be at least 0"),
        (lambda: UNet(width=3, norm="group"), "groups = 2: must be a divisor of every normalised width, here 3"),
        (lambda: unet((64,)), r"UNet cannot take inputs of shape \(64,\): it needs images .* of at least 1x1"),
        (lambda: NextToken(projection=0), "projection = 0: must be at least 1"),
        (
            lambda: NextToken().build((1, 8, 8), 2),
            r"NextToken cannot take inputs of shape \(1, 8, 8\): it needs texts",
        ),
    ],
)
def test_what_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput, match=f"^{message}"):
        make()
