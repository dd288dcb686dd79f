"""The data sets of LEAF (Caldas et al., 2018), as its scripts write them: JSON files of users and their samples."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.data._published import one_line
from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.data.prepared import visible
from fedmpi.errors import BadInput
from fedmpi.options import with_options

#: The characters of Shakespeare's plays, in LEAF's order.
LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
_CODES = np.full(128, len(LETTERS) - 1, np.int32)
_CODES[[ord(letter) for letter in LETTERS]] = np.arange(len(LETTERS))


@with_options
class _Leaf(Dataset):
    """Files of one of LEAF's data sets.

    Args:
        root: folder of the data sets.
    """

    root: Path = Path("data")

    part: ClassVar[str]

    def folder(self) -> Path:
        return self.root / self.part

    def sources(self) -> list[Path]:
        return [path for part in ("train", "test") for path in self._files(part)]

    def _files(self, part: str) -> list[Path]:
        """The JSON files of a part; none if there is no such folder."""
        folder = self.folder() / part
        found = [Path(entry.path) for entry in visible(folder)] if folder.is_dir() else []
        return [path for path in found if path.suffix.lower() == ".json"]

    def fetch(self) -> None:
        raise BadInput(
            f"{type(self).__name__} is made by LEAF's data/{self.part}/preprocess.sh: copy its data/train and"
            f" data/test to {self.folder()}"
        )

    def read(self, progress: Progress) -> Arrays:
        numbers: dict[str, int] = {}  # of users, in the order of the files
        train, test = (self._read_part(part, numbers, progress) for part in ("train", "test"))
        return Arrays(train[0], train[1], test[0], test[1], train[2], test[2])

    def _read_part(self, part: str, numbers: dict[str, int], progress: Progress) -> list[NDArray]:
        files = self._files(part)
        if not files:
            raise BadInput(
                f"{self.folder() / part} has no JSON files: set --dataset.root to the folder that has {self.part},"
                f" with the files that LEAF's data/{self.part}/preprocess.sh makes"
            )
        if others := len(visible(self.folder() / part)) - len(files):
            unused = "files (not named .json) are not used" if others > 1 else "file (not named .json) is not used"
            progress(f"{type(self).__name__}: {self.folder() / part}: {others} other {unused}")
        pieces = []
        for path in files:
            progress(f"{type(self).__name__}: decoding {path}")
            try:
                pieces += self._read_file(json.loads(path.read_bytes()), numbers)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                reason = f"{type(error).__name__}: {one_line(error)}"
                raise BadInput(f"{path} is not a file as LEAF writes it ({reason})") from error
        if not pieces:
            raise BadInput(f"{self.folder() / part} has no samples")
        return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]

    def _read_file(self, content: Any, numbers: dict[str, int]) -> list[tuple[NDArray, NDArray, NDArray]]:
        """For each user with samples: inputs, labels and the user's number."""
        pieces = []
        for name, count in zip(content["users"], content["num_samples"], strict=True):
            samples = content["user_data"][name]
            if not len(samples["x"]) == len(samples["y"]) == count:
                raise ValueError(f"user {name} has {len(samples['x'])} x and {len(samples['y'])} y, not {count}")
            if count:
                x, y = self.inputs(samples["x"]), self.labels(samples["y"])
                if y.shape != (count,) or y.min() < 0 or y.max() >= self.classes:
                    raise ValueError(f"user {name} has labels from {y.min()} to {y.max()}")
                pieces.append((x, y, np.full(count, numbers.setdefault(name, len(numbers)))))
        return pieces

    @abstractmethod
    def inputs(self, x: list[Any]) -> NDArray:
        """The inputs of a user's samples, or `ValueError`."""

    @abstractmethod
    def labels(self, y: list[Any]) -> NDArray[np.int64]:
        """The labels of a user's samples, or `ValueError`."""


class FEMNIST(_Leaf):
    """Handwritten digits and letters of 3,550 writers (the users), 1x28x28, as LEAF's preprocess.sh makes it.

    62 classes: digits, upper case, lower case.

    Args:
        root: folder that holds femnist/train and femnist/test, with LEAF's JSON files.
    """

    part = "femnist"
    classes = 62

    def inputs(self, x: list[Any]) -> NDArray:
        images = np.array(x, np.float64)
        if images.shape[1:] != (784,) or not 0 <= images.min() <= images.max() <= 1:
            raise ValueError(f"images of shape {images.shape[1:]} from {images.min()} to {images.max()}")
        return np.rint(images * 255).astype(np.uint8).reshape(-1, 1, 28, 28)

    def labels(self, y: list[Any]) -> NDArray[np.int64]:
        labels = np.array(y)
        if labels.dtype.kind != "i":
            raise ValueError("labels that are not whole numbers")
        return labels.astype(np.int64)


class Shakespeare(_Leaf):
    """Next-character prediction on Shakespeare's plays: 80 characters of a role, and the label is the 81st.

    The roles are the users. The files are those that LEAF's preprocess.sh makes. A character that is not in LEAF's
    alphabet counts as its last one, as in LEAF. There are 80 classes, and 81 tokens, because token 0 is padding.

    Args:
        root: folder that holds shakespeare/train and shakespeare/test, with LEAF's JSON files.
    """

    part = "shakespeare"
    classes = len(LETTERS)
    vocabulary = 1 + classes

    def inputs(self, x: list[Any]) -> NDArray:
        if {len(text) for text in x} != {80}:
            raise ValueError("texts that are not of 80 characters")
        return 1 + _codes(x).reshape(-1, 80)

    def labels(self, y: list[Any]) -> NDArray[np.int64]:
        if {len(text) for text in y} != {1}:
            raise ValueError("labels that are not one character")
        return _codes(y).astype(np.int64)


def _codes(texts: list[str]) -> NDArray[np.int32]:
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    codes: NDArray[np.int32] = _CODES[np.minimum(characters, len(_CODES) - 1)]
    return codes
