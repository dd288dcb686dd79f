"""Tweets: with negative or positive sentiment, and as sequences of characters."""

from __future__ import annotations

import codecs
import csv
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fedmpi.data._published import Published, damaged
from fedmpi.data.base import Arrays, Progress
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt, interval
from fedmpi.tasks import LanguageModel

PADDING, UNKNOWN = 0, 1
NEUTRAL = -1
_IGNORED = LanguageModel().ignore
_LABELS = {"0": 0, "4": 1}
_COLUMNS = 6  # label, number, date, query, user, text
_URL = re.compile(r"(?:https?://|www\.)\S+")
_USER = re.compile(r"@\w+")
_TOKEN = re.compile(r"<url>|<user>|&\w+;|\w+(?:'\w+)*|[^\w\s]")
_ROWS_A_LINE = 400_000


class _Tweets(Published):
    """The published files, from which each data set takes other tokens and targets.

    Attributes:
        vocabulary: number of different tokens, including padding and the token for all others.
    """

    name = "Sentiment140"
    url = "http://cs.stanford.edu/people/alecmgo/trainingandtestdata.zip"
    archive = "sentiment140/trainingandtestdata.zip"
    files = ("training.1600000.processed.noemoticon.csv", "testdata.manual.2009.06.14.csv")
    vocabulary: int

    def home(self) -> Path:
        return self.root / "sentiment140"

    def download(self) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(self.url, self.home(), remove_finished=True)

    def tokenised(self, cut: Callable[[str], Iterable[str]], length: int, progress: Progress) -> Arrays:
        """All tweets as tokens [n, length], with their labels (`NEUTRAL` for some test tweets) and authors.

        Tokens are numbered by their frequency in the training tweets, and equally frequent ones by their first
        occurrence. Longer tweets are cut, and shorter ones are padded at the end.

        Args:
            cut: gives the tokens of a text.
        """
        train, test = self.sources()
        tokens, authors = _Numbers(), _Numbers()
        y, users = array("q"), array("q")

        def training_texts() -> Iterator[str]:
            for label, author, text in _rows(train, progress):
                y.append(label)
                users.append(authors[author])
                yield text

        found, ends = _tokenise(map(cut, training_texts()), tokens.__getitem__)
        ranks = np.full(len(tokens) + 1, UNKNOWN, np.int32)  # the last one: tokens that no training tweet has
        best = np.argsort(-np.bincount(found, minlength=1), kind="stable")[: self.vocabulary - 2]
        ranks[best] = np.arange(2, 2 + len(best))
        train_x = _padded(ranks[found], ends, length)

        rows = [*_rows(test, progress, {**_LABELS, "2": NEUTRAL})]
        found, ends = _tokenise((cut(text) for _, _, text in rows), lambda token: tokens.get(token, len(tokens)))
        test_x = _padded(ranks[found], ends, length)
        test_y = np.array([label for label, _, _ in rows], np.int64)
        return Arrays(train_x, np.array(y), test_x, test_y, np.array(users))


@with_options
class Sentiment140(_Tweets):
    """1,600,000 tweets, labelled negative (0) or positive (1) by their emoticons, and 359 by hand (Go et al., 2009).

    Tweets are put in lower case and cut into words and punctuation marks. Each address, and each user spoken to, is
    one token. Tokens are numbered by their frequency in the training tweets, and equally frequent ones by their first
    occurrence. 0 is padding, and 1 is any other token. The test tweets of label 2 (neutral) are left out. Users are
    the authors of training tweets.

    The files may have been saved again by pandas or a spreadsheet: with a first line of column names, with quotes
    only where they are needed, and in UTF-8. A file that is valid UTF-8 is read as UTF-8. All others are read as
    latin-1, like the published files.

    Args:
        root: folder that holds sentiment140, with the two published CSV files.
        vocabulary: number of different tokens, including padding and the token for unknown words.
        length: tokens per tweet; longer tweets are cut, shorter ones are padded at the end.
    """

    vocabulary: Annotated[int, interval("[3, inf)")] = 20_000
    length: PositiveInt = 40

    classes = 2
    read_version = 2

    def folder(self) -> Path:
        return self.home() / f"vocabulary-{self.vocabulary}-length-{self.length}"

    def decode(self, progress: Progress) -> Arrays:
        read = self.tokenised(_words, self.length, progress)
        is_labelled = read.test_y != NEUTRAL
        return replace(read, test_x=read.test_x[is_labelled], test_y=read.test_y[is_labelled])


@with_options
class TweetCharacters(_Tweets):
    """Next-character prediction on the tweets of Sentiment140 (Go et al., 2009), whose authors are the users.

    Inputs are the characters of a tweet, and targets are the characters that follow them. Characters are numbered by
    their frequency in the training tweets. 0 is padding, and 1 is any other character. Places that are followed by
    neither of the known characters do not count. The test tweets are the 498 that were labelled by hand, of all
    labels, without their authors. Tweets without a place that counts are left out. All of Sentiment140 needs 1.5 GB
    of prepared arrays.

    Args:
        root: folder that holds sentiment140, with the two published CSV files.
        vocabulary: number of different characters, including padding and the token for all others.
        length: inputs per tweet; longer tweets are cut, shorter ones are padded at the end.
    """

    vocabulary: Annotated[int, interval("[3, inf)")] = 100
    length: PositiveInt = 80

    task = LanguageModel()

    def folder(self) -> Path:
        return self.home() / f"characters-{self.vocabulary}-length-{self.length}"

    def decode(self, progress: Progress) -> Arrays:
        read = self.tokenised(list, self.length + 1, progress)
        assert read.train_users is not None
        train_x, train_y, counts = self._shifted(read.train_x)
        return Arrays(train_x, train_y, *self._shifted(read.test_x)[:2], read.train_users[counts])

    def _shifted(self, tokens: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
        """Inputs and targets of the tweets with a target, and [n] which of the tweets these are."""
        following = tokens[:, 1:].astype(np.int64)
        following[following <= UNKNOWN] = _IGNORED
        counts = (following != _IGNORED).any(1)
        return tokens[counts, :-1], following[counts], counts


class _Numbers(dict[str, int]):
    """Gives numbers to names, in the order of first use."""

    def __missing__(self, name: str) -> int:
        return self.setdefault(name, len(self))


def _words(text: str) -> list[str]:
    """The words and punctuation marks of a tweet."""
    return _TOKEN.findall(_USER.sub(" <user> ", _URL.sub(" <url> ", text.lower())))


def _tokenise(
    texts: Iterable[Iterable[str]], number: Callable[[str], int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The numbers of the tokens of all texts, concatenated, and the end of each text."""
    numbers, ends = array("i"), array("q")
    for tokens in texts:
        numbers.extend(map(number, tokens))
        ends.append(len(numbers))
    return np.array(numbers, np.int32), np.array(ends, np.int64)


def _padded(tokens: NDArray[np.int32], ends: NDArray[np.int64], length: int) -> NDArray[np.int32]:
    """[n, length], from the concatenated tokens of all tweets and the end of each tweet."""
    lengths = np.diff(ends, prepend=0)
    place = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
    padded = np.full((len(ends), length), PADDING, np.int32)
    padded[np.arange(length) < lengths[:, None]] = tokens[place < length]
    padded[lengths == 0, 0] = UNKNOWN  # no sequence is empty
    return padded


def _rows(path: Path, progress: Progress, labels: dict[str, int] = _LABELS) -> Iterator[tuple[int, str, str]]:
    """Label, author and text of each tweet of a published file."""
    encoding, is_cut = _form(path)
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file)
        number = 0
        try:
            for row in reader:
                if len(row) != _COLUMNS:
                    reason = f"line {reader.line_num} has {len(row)} columns, not {_COLUMNS}, separated by commas"
                    raise damaged(path, reason)
                if reader.line_num == 1 and _is_header(row):
                    progress(f"Sentiment140: the first line of {path} holds names of columns, and is skipped")
                    continue
                if row[0] not in labels:
                    raise damaged(path, f"line {reader.line_num} has label {row[0][:20]}, not {' or '.join(labels)}")
                yield labels[row[0]], row[4], row[5]
                number += 1
                if number % _ROWS_A_LINE == 0:
                    progress(f"Sentiment140: {number:,} tweets")
        except csv.Error as error:
            raise damaged(path, f"line {reader.line_num}: {error}") from error
    if number == 0:
        raise damaged(path, "it is empty")
    if is_cut:
        raise damaged(path, "its last line is incomplete")


def _form(path: Path) -> tuple[str, bool]:
    """The encoding of a file, and whether it ends within quotes."""
    decoder, encoding = codecs.getincrementaldecoder("utf-8")(), "utf-8-sig"
    quotes, end = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            quotes += chunk.count(b'"')
            end = (end + chunk)[-3:]
            if encoding != "latin-1":
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError:
                    encoding = "latin-1"
    if encoding != "latin-1" and decoder.getstate()[0]:
        encoding = "latin-1"  # the last character is not whole
    return encoding, quotes % 2 == 1 and not end.rstrip().endswith(b'"')


def _is_header(row: list[str]) -> bool:
    """Whether a row holds names of columns, or the numbers that pandas gives to unnamed columns."""
    return not row[0].lstrip("-").isdecimal() or row == [str(column) for column in range(_COLUMNS)]
