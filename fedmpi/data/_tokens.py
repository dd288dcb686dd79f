"""Texts as tokens of a pre-trained model. Private, because reading a tokenizer imports the library tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.data._published import one_line
from fedmpi.errors import BadInput, require

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
#: transformers writes about 1e30 where a tokenizer knows no limit.
_NO_LIMIT = 10**9
#: Texts that are tokenised before their tokens are copied into an array.
_AT_ONCE = 10_000


@dataclass(frozen=True)
class Cut:
    """The tokens of a text.

    Attributes:
        ids: int32 [l].
        behind: [l] whether a token has characters behind the prompt, or ends the text.
        is_cut: whether tokens are missing at the end.
    """

    ids: NDArray[np.int32]
    behind: NDArray[np.bool_]
    is_cut: bool


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a pre-trained model.

    Attributes:
        library: that of the library tokenizers.
        vocabulary: number of its tokens.
        padding: the token of padding; 0 if it has none.
        end: the token that ends a text; None: it has none.
        longest: the largest number of tokens that the model takes, as far as the tokenizer's files say.
    """

    library: Any
    vocabulary: int
    padding: int
    end: int | None
    longest: int | None

    def cut(self, texts: Sequence[str], most: int | None, ended: bool, prompts: Sequence[str] = ()) -> Iterator[Cut]:
        """The tokens of each text, with those that the tokenizer adds itself, such as [CLS] and [SEP].

        Args:
            most: the largest number of tokens; None: any.
            ended: whether `end` follows, if a text does not end with it anyway.
            prompts: the beginnings of the texts that are prompts, if there are any.
        """
        self.library.no_padding()
        self.library.no_truncation()
        if most is not None and not ended:
            self.library.enable_truncation(most)
        ends = [self.end] if ended and self.end is not None else []
        rest = iter(texts)
        lengths = iter([len(prompt) for prompt in prompts] or [0] * len(texts))
        while some := list(islice(rest, _AT_ONCE)):
            for found in self.library.encode_batch(some):
                length = next(lengths)
                behind = [stop > length for _, stop in found.offsets]
                ids = found.ids
                if ends and ids[-1:] != ends:
                    ids, behind = [*ids, *ends], [*behind, True]
                is_cut = bool(found.overflowing) or (most is not None and len(ids) > most)
                yield Cut(np.array(ids[:most], np.int32), np.array(behind[:most], bool), is_cut)


def read(folder: Path) -> Tokenizer:
    """The tokenizer in the folder of a Hugging Face model.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    path, saved = folder / TOKENIZER, "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
    require(path.is_file(), "tokenizer", folder, f"a folder with {TOKENIZER}, as transformers' {saved} writes it")
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise BadInput(f"data set TextTable needs tokenizers ({error}): pip install 'fedmpi[llm]'") from error
    try:
        library = Library.from_file(str(path))
        config = json.loads((folder / _CONFIG).read_text("utf-8")) if (folder / _CONFIG).is_file() else {}
    except Exception as error:  # the library has no class of its own for damaged files
        raise BadInput(f"{folder} has no tokenizer that can be read: {one_line(error)[:200]}", None) from error

    def token(name: str) -> int | None:
        text = config.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        return None if text is None else library.token_to_id(text)

    given = config.get("model_max_length")
    longest = int(given) if isinstance(given, (int, float)) and given < _NO_LIMIT else None
    return Tokenizer(library, library.get_vocab_size(), token("pad") or 0, token("eos"), longest)


def padded(rows: Sequence[NDArray], length: int, padding: int, kind: type) -> NDArray:
    """[n, length], with the rows at the beginning."""
    table: NDArray = np.full((len(rows), length), padding, kind)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table
