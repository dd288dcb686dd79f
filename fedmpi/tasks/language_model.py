"""The next token at each place of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.options import with_options
from fedmpi.tasks.base import PERCENT, Described, Metric, Ratio, Target, Task, extremes
from fedmpi.tasks.losses import cross_entropy_of_places, mean_of_places
from fedmpi.typing import Tensor


@with_options
class LanguageModel(Task):
    """The next token at each place of a text: targets int64 [n, L], and logits [B, L, vocabulary].

    The loss is the mean cross entropy over the tokens that count, not over texts. Metrics: perplexity (its
    exponential over all tokens of a set), token_accuracy, loss. Texts have no labels, so partitions by label are not
    possible.

    Args:
        ignore: the target of places that do not count, such as padding.
    """

    ignore: Target = -1

    main = "perplexity"
    usual = ("loss", "perplexity", "token_accuracy")
    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": Ratio(of="loss", over="tokens", better="lower", then=np.exp),
        "token_accuracy": Ratio(of="hits", over="tokens", unit=PERCENT),
        "loss": Ratio(of="loss", over="tokens", better="lower"),
    }

    def problem(self, y: NDArray, about: Described) -> str | None:
        if about.vocabulary is None:
            return "needs `vocabulary`, the number of different tokens, which is None"
        if y.dtype != np.int64 or y.ndim != 2:
            return f"is {y.dtype} of shape {y.shape}: LanguageModel needs int64 of shape ({len(y)}, tokens)"
        least, largest = extremes(y, self.ignore)
        if least < 0 or largest >= about.vocabulary:
            return (
                f"is from {least} to {largest}: tokens are 0 to {about.vocabulary - 1}, and {self.ignore} is ignored"
            )
        return None

    def outputs(self, y: NDArray, about: Described) -> int:
        assert about.vocabulary is not None
        return int(about.vocabulary)

    def output_shape(self, target: tuple[int, ...], outputs: int) -> tuple[int, ...]:
        return (*target, outputs)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return mean_of_places(*cross_entropy_of_places(output, y, -1, self.ignore))

    def weights(self, y: NDArray) -> NDArray[np.float32]:
        return (y != self.ignore).sum(1).astype(np.float32)

    def columns(self, outputs: int) -> Mapping[str, int]:
        return {"loss": 1, "tokens": 1, "hits": 1}

    def measure(self, output: Tensor, y: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        losses, counted = cross_entropy_of_places(output, y, -1, self.ignore)
        hits = (output.argmax(-1) == y) & counted.bool()  # a network may predict the token that is ignored
        return {"loss": losses.sum(1), "tokens": counted.sum(1), "hits": hits.sum(1)}
