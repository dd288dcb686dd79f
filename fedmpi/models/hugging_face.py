"""Pre-trained transformers from a folder, whole or with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedmpi.errors import BadInput
from fedmpi.lazy import nn
from fedmpi.models.adapters import LoRA
from fedmpi.models.base import Model
from fedmpi.options import with_options
from fedmpi.ranges import BelowOne, PositiveInt

Pooling = Literal["mean", "first", "last", "none"]


@with_options
class HuggingFace(Model):
    """A transformer from a folder of files as the Hugging Face Hub has them. Needs `pip install 'fedmpi[llm]'`.

    The folder has config.json and the weights (*.safetensors). `python -m fedmpi.models fetch NAME --root DIR`
    downloads it; a job downloads nothing. Code in the folder is not run.

    Inputs are texts of tokens [B, L], numbered by the network's own tokenizer. Shorter texts are padded at the end,
    with the tokenizer's padding token (`pad_token_id` in config.json; 0 if it has none). With pooling none the output
    are logits of the next token at each place [B, L, vocabulary], for the task LanguageModel. With the other kinds
    it is a vector per text, which one new linear layer maps to the outputs, and features are [B, width].

    Without adapters everything is trained, unless `train` chooses a part. With adapters these are trained, and the
    new linear layer. For all-MiniLM-L6-v2 with 2 classes: 22,566,146 parameters; with LoRA of rank 8 in query and
    value, 73,728 more, of which 74,498 are trained.

    Args:
        path: the folder.
        pooling: what becomes of the states of a text's tokens. mean: their mean, without padding. first: the state
            of the first token. last: the state of the last token that is not padding. none: the language model's own
            logits. null: none for causal language models, mean for others.
        dropout: dropout probability of the network's own layers; null: as in config.json.
        lora: low-rank adapters.
        ia3: adapters that scale keys, values and inner activations by trained vectors (Liu et al., 2022), in the
            layers that the library chooses.
        prompt_tokens: number of trained vectors that are read before each text, as if they were embedded tokens
            (Lester et al., 2021). They start as those of random tokens. null: none.
        checkpointing: the backward pass computes the activations within the network's layers again, layer by layer.
            This takes less memory and more time, and gives the same bits. Clients are then trained one by one.
    """

    path: Path
    pooling: Pooling | None = None
    dropout: BelowOne | None = None
    lora: LoRA = LoRA()
    ia3: bool = False
    prompt_tokens: PositiveInt | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.has_adapters and self.train:
            raise BadInput(f"= {self.train}: must be null, because adapters and the head are trained", "train")
        if self.ia3 and self.lora.rank:
            raise BadInput("= true: must be false together with lora.rank", "ia3")
        if self.prompt_tokens and (self.ia3 or self.lora.rank):
            other = "ia3" if self.ia3 else "lora.rank"
            raise BadInput(f"= {self.prompt_tokens}: must be null together with {other}", "prompt_tokens")

    @property
    def has_adapters(self) -> bool:
        """Whether adapters, or vectors before texts, are trained instead of the network's own layers."""
        return self.ia3 or self.lora.rank is not None or self.prompt_tokens is not None

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        vocabulary = self.text(shape)
        try:
            from fedmpi.models import _transformers
        except ImportError as error:
            missing = f"{error.name} is not installed: pip install 'fedmpi[llm]'"
            raise BadInput(f"= HuggingFace: {missing}", "--model") from None
        return _transformers.build(self, vocabulary, shape[0], outputs)
