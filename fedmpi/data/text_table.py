"""Your own texts: a file with one text per row, as the tokens of a pre-trained model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.data import _tokens
from fedmpi.data._parts import COMPLETE, is_test_row
from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.data.prepared import OURS, UnreadableArrays, open_prepared
from fedmpi.errors import BadInput, named, require
from fedmpi.options import null_for, shown, with_options
from fedmpi.ranges import PositiveInt, interval
from fedmpi.tasks import Classification, LanguageModel, Task
from fedmpi.typing import Frame

SUFFIXES = (".jsonl", ".csv", ".parquet")


@with_options
class TextTable(Dataset):
    """Your own texts: a JSON Lines, CSV or Parquet file with a text per row, as tokens of a Hugging Face tokenizer.

    With the task Classification, each text has a class: those of the training rows, in sorted order. With the task
    LanguageModel, a model predicts each next token of a text. If rows have a prompt and a response, the text is the
    prompt with the response directly behind it, and only the tokens of the response count. Texts for a language model
    end with the tokenizer's end of text, if it has one.

    Texts are padded at the end with the tokenizer's padding, or with token 0 if it has none. The arrays are as wide
    as the longest text. Longer texts than `length` are cut at the end. Lines at the start of each run say how many
    were cut, and how much is padding. The arrays are prepared next to the file.

    Needs pyarrow and tokenizers: pip install 'fedmpi[llm]'.

    Args:
        path: file named .jsonl, .csv or .parquet.
        tokenizer: folder of the model, with tokenizer.json.
        task: Classification or LanguageModel; null: Classification.
        text: column of the texts.
        target: column of the classes, for Classification.
        prompt: column of the prompts, for LanguageModel; null: none.
        response: column of the responses, which is used if there are prompts.
        user: column with the user (or device) of each text, for the partition Users; null: unknown. Users are
            distinguished by the text of the column: 7 and 07 are two users.
        split: column that says train or test; null: test rows are drawn, the same ones for every seed.
        test_share: share of test rows, for Classification in each class, if no column says which they are.
        length: most tokens of a text, for LanguageModel most places.
        too_long: what is done with longer texts.
        pack: for LanguageModel without prompts: the texts of a user are joined and cut into blocks of `length`
            tokens, so that only a user's last block has padding. Nothing is lost, and blocks have several texts.
    """

    path: Path = Path("data/texts.jsonl")
    tokenizer: Path = Path("data/model")
    task: Task = null_for(Classification)
    text: str = "text"
    target: str = "target"
    prompt: str | None = None
    response: str = "response"
    user: str | None = None
    split: str | None = None
    test_share: Annotated[float, interval("(0, 1)")] = 0.2
    length: PositiveInt = 128
    too_long: Literal["cut", "refuse"] = "cut"
    pack: bool = False

    read_version = 2

    def __post_init__(self) -> None:
        known = isinstance(self.task, (Classification, LanguageModel))
        require(known, "task", named(self.task), "Classification or LanguageModel")
        for_language = isinstance(self.task, LanguageModel)
        if self.prompt is not None:
            require(for_language, "prompt", self.prompt, "null without --dataset.task LanguageModel")
        require(for_language or not self.pack, "pack", "true", "false without --dataset.task LanguageModel")
        require(not (self.pack and self.prompt), "pack", "true", "false with prompts")
        columns = [name for _, name in self._named()]
        for option, name in self._named():
            require(columns.count(name) == 1, option, name, "a column that no other option names")

    def _named(self) -> Iterator[tuple[str, str]]:
        """Each option that names a column, and the column."""
        used = ["text"] if self.prompt is None else ["prompt", "response"]
        used += ["target"] if isinstance(self.task, Classification) else []
        yield from ((option, getattr(self, option)) for option in used)
        yield from ((option, name) for option in ("user", "split") if (name := getattr(self, option)) is not None)

    @cached_property
    def _tokenizer(self) -> _tokens.Tokenizer:
        return _tokens.read(self.tokenizer)

    @cached_property
    def vocabulary(self) -> int:  # type: ignore[override]
        """The number of the tokenizer's tokens."""
        return self._tokenizer.vocabulary

    @cached_property
    def classes(self) -> int:  # type: ignore[override]
        """The number of classes; 0: the task has none.

        It is read from the prepared arrays, because the file may have been deleted.
        """
        if not self.task.has_classes:
            return 0
        arrays = None
        with suppress(UnreadableArrays):
            arrays = open_prepared(self)
        return int(arrays.train_y.max()) + 1 if arrays else len(self._labels(self._frame())[0])

    def folder(self) -> Path:
        chosen: list[object] = [named(self.task), self.tokenizer.name, self.split, self.test_share, *self._named()]
        chosen += [self.length, self.too_long, self.pack]
        digest = hashlib.sha256(repr(chosen).encode()).hexdigest()
        return self.path.parent / f"{OURS}{self.path.stem}-{digest[:12]}"

    def sources(self) -> list[Path]:
        allowed = f"an existing file named {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        require(self.path.suffix.lower() in SUFFIXES, "path", self.path, allowed)
        return [self.path, self.tokenizer / _tokens.TOKENIZER]

    def read(self, progress: Progress) -> Arrays:
        require(self.path.is_file(), "path", self.path, "an existing file")
        longest = self._tokenizer.longest
        if longest is not None and not self.pack:
            allowed = f"at most {longest}, the limit in {self.tokenizer / 'tokenizer_config.json'}"
            require(self.length <= longest, "length", self.length, allowed)
        progress(f"TextTable: reading {self.path}")
        frame = self._frame()
        users = None if self.user is None else frame.users(self.user, COMPLETE)
        if isinstance(self.task, Classification):
            names, y, is_test = self._labels(frame)
            self.classes = len(names)
            progress(f"TextTable: classes of {self.target}: " + ", ".join(f"{k} = {n}" for k, n in enumerate(names)))
            rows, cuts = self._cut(frame, self.length, ended=False)
            x = _tokens.padded(rows, max(map(len, rows)), self._tokenizer.padding, np.int32)
            owners, filled = np.arange(len(x)), sum(map(len, rows)) / x.size
        else:
            assert isinstance(self.task, LanguageModel)
            is_test = is_test_row(frame, self.split, self.test_share, np.zeros(len(frame), np.int64))
            x, y, owners, cuts = self._places(frame, users, is_test)
            filled = (y != self.task.ignore).mean()
        is_test = is_test[owners]
        of_users = [None if users is None else users[owners][part] for part in (~is_test, is_test)]
        remarks = tuple(self._remarks(len(frame), x, filled, cuts))
        return Arrays(x[~is_test], y[~is_test], x[is_test], y[is_test], *of_users, remarks=remarks)

    def _frame(self) -> Frame:
        """The columns that options name."""
        try:
            from fedmpi.data._frames import read
        except ImportError as error:
            raise BadInput(f"data set TextTable needs pyarrow ({error}): pip install 'fedmpi[llm]'") from error
        as_written = [self.user] if self.user else []
        frame = read(self.path, [self.path], [name for _, name in self._named()], as_written)
        for option, name in self._named():
            if name not in frame.names:
                raise frame.unknown(name, option)
        return frame

    def _labels(self, frame: Frame) -> tuple[list[str], NDArray[np.int64], NDArray[np.bool_]]:
        """The class names, and [n] the class of each row, and whether it is a test row."""
        values = frame.classes(self.target, COMPLETE, "choose a column of classes")
        drawn = np.unique(values, return_inverse=True)[1]
        is_test = is_test_row(frame, self.split, self.test_share, drawn)
        names = np.unique(values[~is_test])
        if others := set(values[is_test].tolist()) - set(names.tolist()):
            reason = f"has {shown(min(others))} in test rows, but in no training row"
            raise BadInput(f"= {self.target}: {reason}", "target")
        if len(names) == 1:
            reason = f"has only one value, {shown(names[0])}: choose a column of classes"
            raise BadInput(f"= {self.target}: {reason}", "target")
        return [str(name) for name in names], np.searchsorted(names, values).astype(np.int64), is_test

    def _texts(self, frame: Frame, name: str) -> list[str]:
        if frame.is_numeric(name):
            raise frame.refused(name, "has numbers, not texts")
        texts: list[str] = frame.without_gaps(name, COMPLETE).tolist()
        if (empty := next((row for row, text in enumerate(texts) if not text.strip()), None)) is not None:
            raise frame.refused(name, f"has an empty text in {frame.place(empty)}: {COMPLETE}")
        return texts

    def _cut(self, frame: Frame, most: int | None, ended: bool) -> tuple[list[NDArray], int]:
        """The tokens of every text, and how many texts were cut."""
        cuts = list(self._each(frame, self._texts(frame, self.text), most, ended))
        return [cut.ids for cut in cuts], sum(cut.is_cut for cut in cuts)

    def _each(
        self, frame: Frame, texts: list[str], most: int | None, ended: bool, prompts: Sequence[str] = ()
    ) -> Iterator[_tokens.Cut]:
        for row, cut in enumerate(self._tokenizer.cut(texts, most, ended, prompts)):
            if len(cut.ids) == 0:
                raise BadInput(f"{self.path}: the text in {frame.place(row)} has no token: {COMPLETE}")
            if cut.is_cut and self.too_long == "refuse":
                allowed = "raise --dataset.length, or set --dataset.too_long cut"
                raise BadInput(f"{self.path}: the text in {frame.place(row)} is longer than {self.length}: {allowed}")
            yield cut

    def _places(
        self, frame: Frame, users: NDArray[np.int64] | None, is_test: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], int]:
        """Inputs and targets [n, L], [n] a row of the frame that each is from, and how many texts were cut."""
        assert isinstance(self.task, LanguageModel)
        if self.pack:
            rows, _ = self._cut(frame, None, ended=True)
            sequences, owners = self._packed(rows, users, is_test)
            counts: list[NDArray] = [np.ones(len(each), bool) for each in sequences]
            lost = 0
        else:
            prompts = [] if self.prompt is None else self._texts(frame, self.prompt)
            texts = self._texts(frame, self.text if self.prompt is None else self.response)
            texts = [a + b for a, b in zip(prompts, texts, strict=True)] if prompts else texts
            cuts = list(self._each(frame, texts, self.length + 1, True, prompts))
            sequences, counts = [cut.ids for cut in cuts], [cut.behind if prompts else cut.ids >= 0 for cut in cuts]
            owners, lost = np.arange(len(cuts)), sum(cut.is_cut for cut in cuts)
        targets = [
            np.where(count[1:], ids[1:], self.task.ignore) for ids, count in zip(sequences, counts, strict=True)
        ]
        kept = [row for row, target in enumerate(targets) if (target != self.task.ignore).any()]
        if not kept:
            raise BadInput(f"{self.path}: no text has a token to predict")
        length = max(len(targets[row]) for row in kept)
        x = _tokens.padded([sequences[row][:-1] for row in kept], length, self._tokenizer.padding, np.int32)
        y = _tokens.padded([targets[row] for row in kept], length, self.task.ignore, np.int64)
        return x, y, owners[kept], lost

    def _packed(
        self, rows: list[NDArray], users: NDArray[np.int64] | None, is_test: NDArray[np.bool_]
    ) -> tuple[list[NDArray], NDArray[np.int64]]:
        """Blocks of up to `length` + 1 tokens, of which the last is the next block's first; and a row of each.

        Training and test texts, and those of different users, are never in the same block.
        """
        groups: dict[tuple[int, bool], list[int]] = {}
        for row in range(len(rows)):
            groups.setdefault((0 if users is None else int(users[row]), bool(is_test[row])), []).append(row)
        blocks, owners = [], []
        for members in groups.values():
            joined = np.concatenate([rows[row] for row in members])
            for first in range(0, max(len(joined) - 1, 1), self.length):
                blocks.append(joined[first : first + self.length + 1])
                owners.append(members[0])
        return blocks, np.array(owners, np.int64)

    def _remarks(self, texts: int, x: NDArray, filled: float, cuts: int) -> Iterator[str]:
        if self.pack:
            yield f"TextTable: {texts:,} texts in {len(x):,} blocks of {x.shape[1]} tokens"
        else:
            words = f"were cut to --dataset.length {self.length}" if cuts else f"have at most {self.length} tokens"
            yield f"TextTable: {cuts or texts:,} of {texts:,} texts {words}"
        if not self.pack and len(x) < texts:
            yield f"TextTable: {texts - len(x):,} texts are left out, because they have no token to predict"
        others = "count" if isinstance(self.task, LanguageModel) else "are no padding"
        yield f"TextTable: {filled:.1%} of {x.shape[1]} places per text {others}"
