"""The bidirectional LSTM: as PyTorch's on every text alone, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.errors import BadInput
from fedmpi.models import Backbone, BiLSTM, Norm, Projected
from fedmpi.models._recurrent import TextEncoder, _sigmoid
from fedmpi.training.flat import FlatModel
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import CPU, Client, network, plain_training, texts

VOCABULARY, LONGEST = 30, 9
RNG = np.random.default_rng(0)
TOKENS = torch.from_numpy(RNG.permutation(texts(RNG, 20, LONGEST, VOCABULARY)))


def model(norm: Norm = "batch", vocabulary: int = VOCABULARY, **options: Any) -> BiLSTM:
    made = BiLSTM(norm=norm, **options)
    made.vocabulary = vocabulary
    return made


def build(of: BiLSTM, classes: int = 3) -> Backbone:
    made = network(of, (LONGEST,), classes)
    assert isinstance(made, Backbone)
    return made


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(VOCABULARY, embedding=5, hidden=7).double()


def side_by_side(encoder: TextEncoder) -> Callable[[Tensor], Tensor]:
    """The way of several clients: here of two, of which one has but a text of one token."""

    def read(tokens: Tensor) -> Tensor:
        other = torch.zeros_like(tokens)
        other[:, 0] = 1
        return torch.vmap(encoder)(torch.stack([other, tokens]))[1]

    return read


WAYS: dict[str, Callable[[TextEncoder], Callable[[Tensor], Tensor]]] = {
    "one by one": lambda encoder: encoder,
    "side by side": side_by_side,
}


@pytest.mark.parametrize(("embedding", "hidden", "norm"), [(100, 128, "batch"), (5, 7, "group"), (3, 4, "none")])
def test_parameter_count(embedding: int, hidden: int, norm: Norm) -> None:
    """Oracle: PyTorch's layers, and the formulas."""
    made = build(model(norm, 20_000, embedding=embedding, hidden=hidden), classes=2)
    lstm = nn.LSTM(embedding, hidden, bidirectional=True)
    parts = nn.Embedding(20_000, embedding), lstm, nn.Linear(2 * hidden, 2)
    count = sum(p.numel() for p in made.parameters())
    ends = 0 if norm == "none" else 4 * hidden
    assert count == sum(p.numel() for part in parts for p in part.parameters()) + ends
    assert count == 20_000 * embedding + 8 * hidden * (embedding + hidden + 2) + ends + 2 * (2 * hidden + 1)
    statistics = [b.numel() for b in made.buffers() if b.is_floating_point()]
    assert statistics == ([2 * hidden] * 2 if norm == "batch" else [])
    if (embedding, hidden) == (100, 128):
        assert count == 2_236_546, "as its docstring says"


@pytest.mark.parametrize("way", WAYS)
def test_it_is_pytorchs_lstm_on_each_text_alone(way: str, encoder: TextEncoder) -> None:
    """Oracle: torch.nn.LSTM with the same weights on texts without padding; values and gradients, in float64."""
    plain = nn.LSTM(5, 7, batch_first=True, bidirectional=True).double()
    plain.load_state_dict(encoder.lstm.state_dict())
    table = encoder.embedding.weight.detach().clone().requires_grad_()
    expected = []
    for text in TOKENS:
        output, _ = plain(table[text[text != 0]][None])
        expected.append(torch.cat([output[0, -1, :7], output[0, 0, 7:]]))
    weights = torch.randn(len(TOKENS), 14, dtype=torch.float64)
    (torch.stack(expected) * weights).sum().backward()
    seen = WAYS[way](encoder)(TOKENS)
    torch.testing.assert_close(seen, torch.stack(expected), rtol=0, atol=1e-13)
    (seen * weights).sum().backward()
    pairs = {"embedding": (encoder.embedding.weight, table)}
    pairs |= {name: (p, plain.get_parameter(name)) for name, p in encoder.lstm.named_parameters()}
    for name, (ours, theirs) in pairs.items():
        assert theirs.grad is not None
        assert theirs.grad.any()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12, msg=name)
    assert not encoder.embedding.weight.grad[0].any()  # type: ignore[index]


@pytest.mark.parametrize("way", WAYS)
def test_padding_is_not_read(way: str, encoder: TextEncoder) -> None:
    """Oracle: the same bits with more padding, and with other values in the place of padding."""
    assert not encoder.embedding.weight[0].any(), "no random numbers that nothing would ever train"
    read, expected = WAYS[way](encoder), WAYS[way](encoder)(TOKENS)
    assert torch.equal(read(nn.functional.pad(TOKENS, (0, 6))), expected)
    nn.init.normal_(encoder.embedding.weight[0])
    assert torch.equal(read(TOKENS), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [torch.tanh, _sigmoid])
def test_bits_do_not_depend_on_the_place(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Oracle: the same values in tensors of other lengths, from other places on; and their gradients.

    Vector instructions take 8 or 16 values at a time, and what is left at a tensor's end may go another way.
    """
    x = torch.linspace(-9, 9, 4001, dtype=dtype).requires_grad_()

    def values(x: Tensor) -> tuple[Tensor, Tensor]:
        y = function(x)
        return y, torch.autograd.grad(y.sum(), x)[0]

    expected = values(x)
    for start in range(33):
        for length in (1, 7, 31, 32, 97, 1024):
            part = slice(start, start + length)
            for seen, whole in zip(values(x[part].detach().clone().requires_grad_()), expected, strict=True):
                assert torch.equal(seen, whole[part]), (start, length)


def test_the_two_parts() -> None:
    """Oracle: features after the norm, [B, 2 * hidden]; the segments that methods treat apart."""
    made = build(model(embedding=5, hidden=7)).eval()
    features = made.extractor(TOKENS)
    assert features.shape == (20, 14)
    assert torch.equal(made.classifier(features), made(TOKENS))
    made.train()
    assert made.extractor(TOKENS).mean(0).abs().max() < 1e-6
    names = {s: [e.name for e in Layout.of(made).entries if e.segment == s] for s in ("head", "norm", "statistics")}
    assert names == {
        "head": ["classifier.1.weight", "classifier.1.bias"],
        "norm": ["extractor.1.weight", "extractor.1.bias"],
        "statistics": ["extractor.1.running_mean", "extractor.1.running_var"],
    }


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_without_batch_norm_a_text_gives_the_same_alone(norm: Norm) -> None:
    """Fed-GN. Oracle: one text at a time."""
    made = build(model(norm, embedding=5, hidden=7)).eval()
    alone = torch.cat([made(text[None]) for text in TOKENS])
    torch.testing.assert_close(alone, made(TOKENS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_is_a_plain_loop(precision: str) -> None:
    """Oracle: torch.optim.SGD on the module, under autocast for bf16; 1e-5 of the way."""
    settings = LocalTraining(epochs=1, batch_size=10, lr=0.5, precision=precision)  # type: ignore[arg-type]
    of = model("group", embedding=5, hidden=6, dropout=0.0)
    y = torch.arange(20) % 3
    one, plain = Client(build(of), TOKENS.numpy(), y.numpy(), settings), build(of)
    one.train()

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
                logits: Tensor = self.network(x)
            return logits.float()

    plain_training(Run(), TOKENS, y, settings)
    apart = (one.model.weights - FlatModel(plain, CPU).weights).norm() / one.moved.norm()
    assert one.moved.norm() > 0.1
    assert apart < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BiLSTM(embedding=0), "embedding = 0: must be at least 1"),
        (lambda: BiLSTM(hidden=0), "hidden = 0: must be at least 1"),
        (
            lambda: BiLSTM(hidden=5, norm="group", groups=3),
            "groups = 3: must be a divisor of every normalised width, here 10",
        ),
        (lambda: BiLSTM(dropout=1), "dropout = 1.0: must be at least 0 and below 1"),
    ],
)
def test_a_bad_option_is_named(make: Callable[[], object], message: str) -> None:
    """Oracle: the line."""
    with pytest.raises(BadInput) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(("of", "shape"), [(BiLSTM(), (40,)), (model(), (1, 8, 8)), (model(), ())])
def test_inputs_that_are_no_texts_are_named(of: BiLSTM, shape: tuple[int, ...]) -> None:
    """Oracle: the line."""
    with pytest.raises(BadInput) as error:
        of.build(shape, 2)
    assert str(error.value) == (
        f"BiLSTM cannot take inputs of shape {shape}: it needs texts (tokens,) from a data set with a vocabulary"
    )


def test_below_a_projection() -> None:
    """Oracle: its shape; the other network learns of the vocabulary."""
    projected = Projected(BiLSTM(embedding=5, hidden=7), size=4)
    projected.vocabulary = VOCABULARY
    made = network(projected, (LONGEST,), 3).eval()
    assert isinstance(made, Backbone)
    assert made.extractor(TOKENS).shape == (20, 4)
