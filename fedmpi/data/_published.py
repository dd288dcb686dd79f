"""Data sets that are published as files: they are looked for under a root, and downloaded by `fetch`."""

from __future__ import annotations

from abc import abstractmethod
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile

from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.errors import BadInput
from fedmpi.options import with_options


@with_options
class Published(Dataset):
    """Files that can be downloaded, and arrays that are prepared next to them.

    Args:
        root: folder of the data sets.

    Attributes:
        name: its name in `python -m fedmpi.data`.
        files: the published files, in `home`.
        archive: the archive that `download` gets and unpacks in the root; None: it gets the files themselves.
    """

    root: Path = Path("data")

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    archive: ClassVar[str | None] = None

    @abstractmethod
    def home(self) -> Path:
        """The folder of the published files."""

    def folder(self) -> Path:
        return self.home()

    def sources(self) -> list[Path]:
        return [self.home() / file for file in self.files]

    def read(self, progress: Progress) -> Arrays:
        for path in self.sources():
            if not path.exists():
                fetch = f"`python -m fedmpi.data fetch {self.name} --root {self.root}`"
                if self.archive and (self.root / self.archive).exists():
                    raise BadInput(f"{path} is missing: run {fetch}, which unpacks {self.root / self.archive}")
                raise BadInput(
                    f"{path} is missing: set --dataset.root to the folder that has {self.name}, or, with"
                    f" internet access, run {fetch}"
                )
        progress(f"{self.name}: decoding {self.home()}")
        return self.decode(progress)

    @abstractmethod
    def decode(self, progress: Progress) -> Arrays:
        """What `read` returns, from files that exist."""

    @abstractmethod
    def download(self) -> None:
        """Download the files with torchvision."""

    def fetch(self) -> None:
        if all(path.exists() for path in self.sources()):
            return
        try:
            self.download()
        except (RuntimeError, OSError, HTTPException, BadZipFile) as error:
            raise BadInput(f"{self.name} cannot be fetched into {self.root}: {one_line(error)}") from error


def damaged(path: Path, reason: str) -> BadInput:
    return BadInput(f"{path} is damaged ({reason}): delete it and fetch the data set again")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
