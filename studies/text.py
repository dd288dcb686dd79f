"""Tweets by users: a pre-trained encoder with adapters, or a trained head alone, and an LSTM; a tiny language model.

The clients are the users with three tweets or more. The test set are the tweets of Sentiment140 that were labelled by
hand. `python -m studies.tweets --data DATA` writes the files that the study reads. Needs `pip install 'fedmpi[llm]'`.

A cell is sentiment/MODEL/SEED or language/MODEL/SEED.
"""

from __future__ import annotations

import sys

import numpy as np

from fedmpi import results
from studies.study import Files, Study

TEXTS = (
    "--dataset TextTable --dataset.path {data}/tweets/tweets.jsonl --dataset.split part --dataset.user user"
    " --partition Users --clients 250 --cohort 25 --rounds 10 --local.epochs 2"
)
SENTIMENT = f"{TEXTS} --dataset.tokenizer {{data}}/tweets/minilm --dataset.length 48 --local.optimizer adamw"
MINILM = "--model HuggingFace --model.path {data}/tweets/minilm --model.dropout 0"
MODELS = {
    "lora": f"{MINILM} --model.lora.rank 8 --model.lora.alpha 16 --model.lora.targets [query,value] --local.lr 0.002",
    "head": f"{MINILM} --model.train head --local.lr 0.01",
    "bilstm": "--model BiLSTM --model.norm none --local.lr 0.002",
}
LANGUAGE = {
    "tiny": f"{TEXTS} --dataset.tokenizer {{data}}/tweets/tiny --dataset.task LanguageModel --dataset.pack true"
    " --dataset.length 32 --model HuggingFace --model.path {data}/tweets/tiny --local.optimizer adamw"
    " --local.lr 0.003 --local.warmup 0.5 --local.schedule_by step",
}
SEEDS = range(3)


def show_sentiment(files: Files) -> None:
    """Print accuracy, bytes and seconds of each model, as mean and standard deviation over the seeds."""
    head = ["model", "trained numbers", "accuracy (%)", "sent by clients (MB)", "seconds", "seeds"]
    rows = [head]
    for model in MODELS:
        runs = [results.open(path) for path in files.matching(f"sentiment/{model}/*")]
        if runs:
            accuracy = [100 * run.rounds["test_accuracy"][-1] for run in runs]
            sent = [run.rounds["bytes_up"].sum() / 1e6 for run in runs]
            seconds = [run.rounds["seconds"].sum() for run in runs]
            numbers = [_mean(values, digits) for values, digits in ((accuracy, 1), (sent, 1), (seconds, 0))]
            size = int(runs[0].clients["bytes_up"].max()) // 4
            rows.append([model, f"{size:,}", *numbers, str(len(runs))])
    files.show(rows)


def show_language(files: Files) -> None:
    """Print the perplexity of the test tweets after some rounds."""
    wanted = (0, 1, 2, 5, 10)
    rows = [["model", *(f"round {number}" for number in wanted), "seeds"]]
    for model in LANGUAGE:
        runs = [results.open(path) for path in files.matching(f"language/{model}/*")]
        if runs:
            found = [[run.statistics().initial, *run.rounds["test_perplexity"]] for run in runs]
            rows.append([model, *(_mean([each[number] for each in found], 1) for number in wanted), str(len(runs))])
    files.show(rows)


def _mean(values: list[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


STUDY = Study(
    module="studies.text",
    cells={
        **{
            f"sentiment/{name}/{seed}": f"{SENTIMENT} {MODELS[name]} --seed {seed}"
            for name in MODELS
            for seed in SEEDS
        },
        **{f"language/{name}/{seed}": f"{LANGUAGE[name]} --seed {seed}" for name in LANGUAGE for seed in SEEDS},
    },
    tables={"sentiment": show_sentiment, "language": show_language},
    root="",
)
main = STUDY.main

if __name__ == "__main__":
    sys.exit(main())
