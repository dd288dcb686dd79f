"""Builds networks of transformers, with adapters of peft. Private, because importing it imports both libraries."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedmpi.errors import BadInput
from fedmpi.models._layers import Backbone
from fedmpi.models.adapters import LoRA
from fedmpi.training.clientwise import drawn_again

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


class Chosen(Protocol):
    """The options of `HuggingFace`."""

    path: Path
    dropout: float | None
    lora: LoRA
    ia3: bool
    prompt_tokens: int | None
    checkpointing: bool

    @property
    def pooling(self) -> str | None: ...

    @property
    def has_adapters(self) -> bool: ...


class Encoder(nn.Module):
    """Texts, int64 tokens [B, L], to one vector per text [B, width].

    The library decides by the values of a usual mask [B, L] what to do, and vmap has no values. With a mask
    [B, 1, L, L] of numbers that are added it decides nothing.

    Args:
        network: gives the states of tokens [B, L, width].
        pooling: see `HuggingFace`.
        padding: the token that is not read, at the end of a text.
        is_causal: whether the state of a token does not depend on later tokens, so that padding needs no mask.
        has_dropout: whether the network has dropout.
    """

    def __init__(self, network: nn.Module, pooling: str, padding: int, is_causal: bool, has_dropout: bool) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.padding = padding
        self.is_causal = is_causal
        self.has_dropout = has_dropout

    def forward(self, tokens: Tensor) -> Tensor:
        is_read = tokens != self.padding
        draws = self.training and self.has_dropout
        if tokens.device.type == "cpu" and not draws and not is_functorch_wrapped_tensor(tokens):
            # For one client, nothing is computed for padding that all texts of a batch have. What dropout draws
            # depends on the length, and must be the same for clients that are trained side by side.
            longest = max(int(is_read.sum(1).max()), 1)
            tokens, is_read = tokens[:, :longest], is_read[:, :longest]
        mask = None if self.is_causal else _added(is_read)
        states: Tensor = self.network(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        states = states[:, -tokens.shape[1] :]  # without those of vectors before the text
        if self.pooling == "first":
            return states[:, 0]
        if self.pooling == "last":
            places = torch.arange(tokens.shape[1], device=tokens.device)
            weight = places == is_read.sum(1, keepdim=True) - 1
        else:
            weight = is_read
        share = weight.to(states.dtype) / weight.sum(1, keepdim=True).clamp(min=1)
        return (states * share[..., None]).sum(1)


class NextTokenLogits(nn.Module):
    """Texts, int64 tokens [B, L], to logits of the next token at each place [B, L, vocabulary].

    A logit depends only on the tokens up to its place. So padding at the end needs no mask.
    """

    def __init__(self, network: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.network = network
        self.vocabulary = vocabulary

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=tokens, attention_mask=None, use_cache=False).logits
        return logits[:, -tokens.shape[1] :, : self.vocabulary]


class Prompted(nn.Module):
    """A frozen network that reads trained vectors before each text.

    Args:
        network: the one that is frozen.
        count: N, the number of vectors.
    """

    def __init__(self, network: Any, count: int) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        table: Tensor = network.get_input_embeddings().weight
        self.vectors = nn.Parameter(table[torch.randint(len(table), (count,))].clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, **options: Any) -> Any:
        """The network's output for N + L places.

        Args:
            input_ids: tokens [B, L].
            attention_mask: [B, 1, L, L] of equal rows, or None.
        """
        texts = self.network.get_input_embeddings()(input_ids)
        before = self.vectors.expand(len(texts), -1, -1)
        if attention_mask is not None:
            row = functional.pad(attention_mask[:, :, :1], (before.shape[1], 0))
            attention_mask = row.expand(-1, -1, row.shape[-1], -1)
        return self.network(inputs_embeds=torch.cat([before, texts], 1), attention_mask=attention_mask, **options)


def build(model: Chosen, vocabulary: int, length: int, outputs: int) -> nn.Module:
    """The network of a folder.

    Args:
        vocabulary: number of different tokens of the data set.
        length: L, tokens per text.
        outputs: number of outputs per text.

    Raises:
        BadInput: the folder has no network that fits, or the adapters do not fit it.
    """
    config = _config(model)
    of_language, of_masked = (
        type(config) in mapping
        for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_MASKED_LM_MAPPING)
    )
    is_causal = of_language and not of_masked
    pooling = model.pooling or ("none" if is_causal else "mean")
    if pooling == "none" and not is_causal:
        raise BadInput(f"= none: must be mean, first or last, because {config.model_type} is not causal", "pooling")
    known, longest = int(config.vocab_size), int(getattr(config, "max_position_embeddings", length))
    if vocabulary > known:
        raise BadInput(f"= {model.path}: knows {known:,} tokens, and the data set has {vocabulary:,}", "path")
    if (read := length + (model.prompt_tokens or 0)) > longest:
        vectors = f" with {model.prompt_tokens:,} vectors before them" if model.prompt_tokens else ""
        reason = f"reads at most {longest:,} tokens per text, and they have {read:,}{vectors}"
        raise BadInput(f"= {model.path}: {reason}", "path")
    if pooling == "none":
        return NextTokenLogits(_adapted(model, _loaded(model, transformers.AutoModelForCausalLM, config)), vocabulary)
    network: Any = _loaded(model, transformers.AutoModel, config)
    if hasattr(network, "pooler"):
        network.pooler = None  # a layer for the first token, of whose output no use is made
    padding = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    has_dropout = bool(model.lora.dropout) or any(getattr(config, name) for name in _dropouts(config))
    encoder = Encoder(_adapted(model, network), pooling, padding, is_causal, has_dropout)
    return Backbone(encoder, nn.Linear(int(config.hidden_size), outputs))


def _config(model: Chosen) -> Any:
    if not (model.path / "config.json").is_file():
        reason = "must be a folder with config.json; python -m fedmpi.models fetch downloads one"
        raise BadInput(f"= {model.path}: {reason}", "path")
    try:
        config = transformers.AutoConfig.from_pretrained(model.path, local_files_only=True)
    except Exception as error:  # of many kinds, for files of many kinds
        raise BadInput(f"= {model.path}: its config.json cannot be used ({_line(error)})", "path") from None
    for name in _dropouts(config) if model.dropout is not None else ():
        setattr(config, name, model.dropout)
    return config


def _dropouts(config: Any) -> list[str]:
    """The names of the dropout probabilities in a configuration: hidden_dropout_prob, attn_pdrop and so on."""
    return [name for name, value in config.to_dict().items() if "drop" in name and isinstance(value, (int, float))]


def _loaded(model: Chosen, kind: Any, config: Any) -> nn.Module:
    """The network with its weights; attention is computed by matrix products, which vmap and dropout need."""
    try:
        network, found = kind.from_pretrained(
            model.path,
            config=config,
            dtype=torch.get_default_dtype(),
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, for files of many kinds
        raise BadInput(f"= {model.path}: its network cannot be loaded ({_line(error)})", "path") from None
    lacking = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
    if lacking:
        raise BadInput(f"= {model.path}: its weights lack {sorted(lacking)[0]} of {type(network).__name__}", "path")
    if model.checkpointing:
        if not network.supports_gradient_checkpointing:
            reason = f"must be false, because {type(network).__name__} has none"
            raise BadInput(f"= true: {reason}", "checkpointing")
        # The public function also computes gradients of embedded tokens, which only the reentrant form needs.
        again = partial(checkpoint, use_reentrant=False, context_fn=drawn_again)
        network._set_gradient_checkpointing(True, again)
    made: nn.Module = network
    return made.train()


def _adapted(model: Chosen, network: nn.Module) -> nn.Module:
    """The network with adapters, if there are any; then only they are trained."""
    if not model.has_adapters:
        return network
    if model.prompt_tokens:
        return Prompted(network, model.prompt_tokens)
    import peft  # takes seconds

    lora = model.lora
    if model.ia3:
        settings: peft.PeftConfig = peft.IA3Config()
    else:
        targets = None if lora.targets is None else list(lora.targets)
        scale: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha}  # which may be a fraction, too
        settings = peft.LoraConfig(**scale, lora_dropout=lora.dropout, target_modules=targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted: nn.Module = peft.inject_adapter_in_model(settings, network)
    except ValueError as error:
        option = "ia3" if model.ia3 else "lora.targets"
        value = "true" if model.ia3 else str(None if lora.targets is None else list(lora.targets))
        raise BadInput(f"= {value}: do not fit the network ({_line(error)})", option) from None
    return adapted


def _added(is_read: Tensor) -> Tensor:
    """[B, 1, L, L] of [B, L]: 0 where a token is read, and the lowest number elsewhere."""
    lowest = torch.finfo(torch.get_default_dtype()).min
    mask = torch.zeros_like(is_read, dtype=torch.get_default_dtype()).masked_fill(~is_read, lowest)
    return mask[:, None, None].expand(-1, 1, is_read.shape[1], -1)


def _line(error: Exception) -> str:
    """The first sentence of a library's message."""
    return " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__
