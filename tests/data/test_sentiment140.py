"""Sentiment140: its tokens and users, files that are none of it, and an experiment on its users."""

from __future__ import annotations

import csv
import os
import re
import zipfile
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from fedmpi.data import Sentiment140, TweetCharacters, Users, prepared
from fedmpi.data.__main__ import main
from fedmpi.errors import BadInput
from fedmpi.training.settings import LocalTraining
from tests.jobs.words import Bag
from tests.support.experiments import read, run

TRAIN, TEST = Sentiment140.files
ROWS = [
    ("0", "ann", "@bob I'm SAD, sad... http://x.org/y?z=1"),
    ("4", "bob", "glad &amp; glad www.x.org"),
    ("0", "ann", "  "),
    ("4", "cid", 'say ""hi"" \xe9t\xe9'),
]
TEST_ROWS = [("4", "ann", "glad hi bye"), ("2", "eve", "neutral"), ("0", "eve", "\t")]


def write(path: Path, rows: list[tuple[str, str, str]]) -> None:
    lines = [f'"{label}","1","Mon","NO_QUERY","{user}","{text}"\n' for label, user, text in rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines), encoding="latin-1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with four tweets and three for tests."""
    write(tmp_path / "sentiment140" / TRAIN, ROWS)
    write(tmp_path / "sentiment140" / TEST, TEST_ROWS)
    return tmp_path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A root with links to the published files, or a sample of them."""
    given = os.environ.get("FEDMPI_TEST_DATA")
    if given is None:
        pytest.skip("FEDMPI_TEST_DATA names no folder of data sets")
    (tmp_path / "sentiment140").mkdir()
    for name in Sentiment140.files:
        source = Path(given, "sentiment140", name)
        if not source.exists():
            pytest.skip(f"{source} is missing")
        (tmp_path / "sentiment140" / name).symlink_to(source)
    return tmp_path


def test_tokens_by_hand(root: Path) -> None:
    """Oracle: counted by hand; tokens rank by frequency, then by where they occur first."""
    arrays = read(Sentiment140(root, vocabulary=8, length=9))
    dot, sad, url, glad, quote, user = range(2, 8)  # three dots, two each of the next, and of the rest one
    assert arrays.train_x.dtype == np.int32
    assert arrays.train_x.tolist() == [
        [user, 1, sad, 1, sad, dot, dot, dot, url],
        [glad, 1, glad, url, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, quote, 1, quote, 1, 0, 0, 0, 0],
    ]
    assert arrays.test_x.tolist() == [[glad, 1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert arrays.train_y.tolist() == [0, 1, 0, 1]
    assert arrays.test_y.tolist() == [1, 0]
    assert arrays.train_users is not None
    assert arrays.train_users.tolist() == [0, 1, 0, 2]
    assert arrays.test_users is None


def test_characters_by_hand(root: Path) -> None:
    """Oracle: counted by hand; a tweet of one character has nothing to learn."""
    rows = [("0", "ann", "abab a"), ("4", "bob", "b"), ("4", "bob", "baaz"), ("0", "ann", "zzyx")]
    write(root / "sentiment140" / TRAIN, rows)
    write(root / "sentiment140" / TEST, [("4", "ann", "za"), ("2", "eve", "bQb"), ("0", "eve", "")])
    a, b, z = 2, 3, 4  # five, four (one of them not counted) and three; the space, y and x are rarer
    arrays = prepared.load(TweetCharacters(root, vocabulary=5, length=5), lambda line: None)
    assert arrays.train_x.dtype == np.int32
    assert arrays.train_y.dtype == np.int64
    assert arrays.train_x.tolist() == [[a, b, a, b, 1], [b, a, a, z, 0], [z, z, 1, 1, 0]]
    assert arrays.train_y.tolist() == [[b, a, b, -1, a], [a, a, z, -1, -1], [z, -1, -1, -1, -1]]
    assert arrays.test_x.tolist() == [[z, a, 0, 0, 0], [b, 1, b, 0, 0]]
    assert arrays.test_y.tolist() == [[a, -1, -1, -1, -1], [-1, b, -1, -1, -1]]
    assert arrays.train_users is not None
    assert arrays.train_users.tolist() == [0, 1, 0]
    assert arrays.test_users is None
    assert Sentiment140(root).folder() != TweetCharacters(root).folder()


def test_characters_of_published_tweets(real: Path) -> None:
    """Oracle: one tweet after another, with a Counter."""
    arrays = read(TweetCharacters(real, vocabulary=60, length=30))
    with (real / "sentiment140" / TRAIN).open(encoding="utf-8", newline="") as file:
        texts = [row[5] for row in csv.reader(file)]
    number = {c: n for n, (c, _) in enumerate(Counter("".join(texts)).most_common(58), start=2)}
    expected = []
    for text in texts:
        codes = [number.get(c, 1) for c in text][:31] + [0] * max(31 - len(text), 0)
        following = [code if code > 1 else -1 for code in codes[1:]]
        if max(following) > 0:
            expected.append((codes[:-1], following))
    assert arrays.train_x.tolist() == [x for x, _ in expected]
    assert arrays.train_y.tolist() == [y for _, y in expected]


def plain_tokens(text: str) -> list[str]:
    words = " ".join("<url>" if re.match(r"https?://\S|www\.\S", word) else word for word in text.lower().split())
    return re.findall(r"<url>|@\w+|&\w+;|\w+(?:'\w+)*|[^\w\s]", words)


def test_published_tweets(real: Path) -> None:
    """Oracle: one tweet after another, with a Counter; in UTF-8, which the sample happens to be valid in."""
    arrays = read(Sentiment140(real, vocabulary=3000, length=12))
    content = {}
    for name in Sentiment140.files:
        with (real / "sentiment140" / name).open(encoding="utf-8", newline="") as file:
            content[name] = [row for row in csv.reader(file) if row[0] != "2"]
    texts = {
        name: [re.sub(r"(https?://|www\.)\S+", " http://x ", row[5].lower()) for row in rows]
        for name, rows in content.items()
    }
    found = {
        name: [["<user>" if t[0] == "@" and len(t) > 1 else t for t in plain_tokens(text)] for text in some]
        for name, some in texts.items()
    }
    counts = Counter(token for tokens in found[TRAIN] for token in tokens)
    number = {token: place for place, (token, _) in enumerate(counts.most_common(2998), start=2)}
    for name, x, y in ((TRAIN, arrays.train_x, arrays.train_y), (TEST, arrays.test_x, arrays.test_y)):
        assert [int(row[0] == "4") for row in content[name]] == y.tolist()
        for tokens, row in zip(found[name], x.tolist(), strict=True):
            expected = [number.get(token, 1) for token in tokens][:12] or [1]
            assert row == expected + [0] * (12 - len(expected))
    names = [row[4] for row in content[TRAIN]]
    assert arrays.train_users is not None
    assert len({*zip(names, arrays.train_users.tolist(), strict=True)}) == len({*names})
    assert arrays.train_users.max() == len({*names}) - 1


def test_options_have_arrays_of_their_own(root: Path) -> None:
    """Oracle: the shapes and largest tokens, after all have been prepared."""
    sets = [Sentiment140(root, 8, 9), Sentiment140(root, 8, 4), Sentiment140(root, 5, 9)]
    for dataset in sets:
        assert prepared.load(dataset, lambda line: None).on_disk
    for dataset in sets:
        arrays = prepared.open_prepared(dataset)
        assert arrays is not None
        assert arrays.train_x.shape == (4, dataset.length)
        assert arrays.train_x.max() == dataset.vocabulary - 1
        assert arrays.train_users is not None
    write(root / "sentiment140" / TRAIN, ROWS[:3])
    assert all(prepared.open_prepared(dataset) is None for dataset in sets)


def test_arrays_of_earlier_versions(root: Path) -> None:
    """Oracle: arrays without a version count for nothing, for their tweets may have been read in another encoding."""
    dataset = Sentiment140(root, 8, 9)
    prepared.load(dataset, lambda line: None)
    manifest = dataset.folder() / prepared.FOLDER / "manifest.json"
    assert prepared.open_prepared(dataset) is not None
    manifest.write_text(manifest.read_text().replace('"read_version": 2,', ""))
    assert prepared.open_prepared(dataset) is None


TWEETS = [
    ["0", "1", "Mon", "NO_QUERY", "ann", 'she said "no", and left'],
    ["4", "2", "Mon", "NO_QUERY", "zoë", "caf\xe9 ♥ \xe9t\xe9"],
    ["4", "3", "Mon", "NO_QUERY", "bob", "one line\nand another"],
    ["0", "4", "Mon", "NO_QUERY", "ann", "a plain tweet"],
]
NAMES = ["target", "ids", "date", "flag", "user", "text"]


def save(root: Path, rows: list[list[str]], encoding: str, quoting: Any = csv.QUOTE_MINIMAL, end: str = "\n") -> None:
    """Both files, with the same tweets."""
    (root / "sentiment140").mkdir(exist_ok=True)
    for name in Sentiment140.files:
        with (root / "sentiment140" / name).open("w", encoding=encoding, newline="") as file:
            csv.writer(file, quoting=quoting, lineterminator=end).writerows(rows)


def test_files_that_were_saved_again(tmp_path: Path) -> None:
    """Oracle: the arrays of the published form, whose characters are those of latin-1."""
    plain = [[text.replace("♥", "x").replace("ë", "e") for text in row] for row in TWEETS]
    save(tmp_path, plain, "latin-1", csv.QUOTE_ALL)
    published = read(Sentiment140(tmp_path, 30, 9))
    words = {*range(2, 30)} & {*published.train_x.ravel().tolist()}
    assert published.train_y.tolist() == [0, 1, 1, 0]
    lines: list[str] = []
    for rows, encoding, quoting, end in (
        (plain, "latin-1", csv.QUOTE_MINIMAL, "\n"),
        (plain, "utf-8", csv.QUOTE_ALL, "\n"),
        (plain, "utf-8", csv.QUOTE_MINIMAL, "\n"),
        (plain, "utf-8-sig", csv.QUOTE_MINIMAL, "\r\n"),  # as spreadsheets write it
        ([NAMES, *plain], "utf-8", csv.QUOTE_MINIMAL, "\n"),
        ([[*"012345"], *plain], "utf-8", csv.QUOTE_MINIMAL, "\n"),  # as pandas does without names
        ([NAMES, *plain], "utf-8-sig", csv.QUOTE_ALL, "\r\n"),
    ):
        save(tmp_path, rows, encoding, quoting, end)
        assert Sentiment140(tmp_path, 30, 9).read(lines.append).checksum == published.checksum
    assert len([line for line in lines if "holds names of columns, and is skipped" in line]) == 6
    save(tmp_path, TWEETS, "utf-8")
    found = read(Sentiment140(tmp_path, 30, 9)).train_x
    assert {*range(2, 30)} & {*found.ravel().tolist()} == words, "one token for the heart, as for the x before"
    assert found[1, :4].tolist() == published.train_x[1, :4].tolist()


def test_a_file_that_is_cut_within_quotes(tmp_path: Path) -> None:
    """Oracle: the message; what is complete without quotes at its end is no less whole."""
    save(tmp_path, TWEETS, "utf-8")
    path = tmp_path / "sentiment140" / TRAIN
    path.write_bytes(path.read_bytes().rstrip())
    assert len(read(Sentiment140(tmp_path)).train_y) == 4
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:3]), encoding="utf-8")
    with pytest.raises(BadInput, match=r"is damaged .its last line is incomplete"):
        read(Sentiment140(tmp_path))
    path.write_text("0;1;Mon;NO_QUERY;ann;sad\n")
    with pytest.raises(BadInput, match="line 1 has 1 columns, not 6, separated by commas"):
        read(Sentiment140(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ('"0","1","Mon","NO_QUERY","ann","sad"\n"4","1","Mon","NO_', "line 2 has 4 columns, not 6"),
        ('"0","1","Mon","NO_QUERY","ann","sa', "its last line is incomplete"),
        ('"7","1","Mon","NO_QUERY","ann","sad"\n', "line 1 has label 7, not 0 or 4"),
        (
            '"0","1","Mon","NO_QUERY","ann","sad"\n"2","1","Mon","NO_QUERY","ann","so"\n',
            "line 2 has label 2, not 0 or 4",
        ),
        ('{"users": ["ann"]}', "line 1 has 1 columns, not 6"),
        ('"' + "x" * 200_000, "line 1: field larger than field limit"),
        ("\xff\xd8\xff\xe0\x00\x10JFIF", "line 1"),
    ],
)
@pytest.mark.parametrize("name", [TRAIN, TEST])
def test_files_that_are_none_of_it(root: Path, name: str, content: str, message: str) -> None:
    """Oracle: the messages."""
    path = root / "sentiment140" / name
    path.write_text(content, encoding="latin-1")
    if name == TEST:
        message = message.replace("2, not 0 or 4", "").replace("0 or 4", "0 or 4 or 2")
        if '"2"' in content:
            return  # left out, and no mistake
    with pytest.raises(BadInput) as error:
        prepared.load(Sentiment140(root), lambda line: None)
    assert str(error.value).startswith(f"{path} is damaged ({message}")
    assert "\n" not in str(error.value)


def test_fetch(root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the arrays of the files that were packed; and the message where there is no archive."""
    with zipfile.ZipFile(root / "archive.zip", "w") as packed:
        for name in Sentiment140.files:
            packed.write(root / "sentiment140" / name, name)
    there = tmp_path_factory.mktemp("there")
    monkeypatch.setattr(Sentiment140, "url", "http://127.0.0.1:9/archive.zip")
    with pytest.raises(BadInput, match=f"^Sentiment140 cannot be fetched into {there}: .*refused.*$"):
        Sentiment140(there).fetch()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=root)) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        monkeypatch.setattr(Sentiment140, "url", f"http://127.0.0.1:{server.server_port}/archive.zip")
        assert main(["fetch", "Sentiment140", "--root", str(there), "--vocabulary", "8", "--length", "9"]) == 0
        server.shutdown()
    arrays = prepared.open_prepared(Sentiment140(there, 8, 9))
    assert arrays is not None
    assert np.array_equal(arrays.train_x, read(Sentiment140(root, 8, 9)).train_x)
    Sentiment140(there).fetch()  # nothing is missing, so no server is asked


def test_an_experiment_on_users(real: Path, tmp_path: Path) -> None:
    """Oracle: how many tweets of either kind the users have, and that the bag of words learns from them."""
    dataset = Sentiment140(real, vocabulary=2000)
    made = run(
        tmp_path / "x.h5",
        dataset=dataset,
        partition=Users(min_samples=3),
        model=Bag(),
        clients=200,
        rounds=3,
        local=LocalTraining(epochs=5, lr=1.0),
    )
    arrays = prepared.open_prepared(dataset)
    assert arrays is not None
    assert arrays.train_users is not None
    of_users = np.zeros((arrays.train_users.max() + 1, 2), np.int64)
    np.add.at(of_users, (arrays.train_users, arrays.train_y), 1)
    enough = Counter(map(tuple, of_users[of_users.sum(axis=1) >= 3].tolist()))
    clients = Counter(map(tuple, made.partition["label_counts"].tolist()))
    assert clients.total() == 200
    assert all(enough[counts] >= number for counts, number in clients.items())
    assert made.rounds["train_loss"][-1] < made.rounds["train_loss"][0]
