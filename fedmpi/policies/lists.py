"""Files that name clients, round by round."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput, require


def read_lists(file: Path) -> list[NDArray[np.int64]]:
    """The numbers on each line of a text file, separated by blanks.

    # begins a comment; an empty line names no client.

    Raises:
        BadInput: it cannot be read, has no lines, or holds something else.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"= {file}: {getattr(error, 'strerror', None) or 'is not a text file'}", "file") from None
    texts = [line.partition("#")[0].split() for line in lines if not line.startswith("#")]
    require(bool(texts), "file", file, "a file with one line per round")
    for number, text in enumerate(texts, 1):
        wrong = [word for word in text if not (word.isascii() and word.isdigit() and len(word) < 19)]
        require(not wrong, "file", file, f"numbers of clients, not {''.join(wrong[:1])} (round {number})")
    return [np.array(list(map(int, text)), dtype=np.int64) for text in texts]


def check_numbers(lists: list[NDArray[np.int64]], option: str, file: Path, clients: int) -> None:
    """Raise BadInput if a list names a client that does not exist."""
    highest = max((int(numbers.max()) for numbers in lists if len(numbers)), default=0)
    require(highest < clients, option, file, f"numbers of clients below {clients}, not {highest}")
