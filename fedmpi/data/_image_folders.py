"""Finds the training and test images in a folder, by the names of its folders, and reports unused files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fedmpi.data.base import Progress
from fedmpi.data.pictures import is_picture
from fedmpi.data.prepared import folders_below, visible
from fedmpi.errors import BadInput

Labelled = list[tuple[Path, int]]

_TRAINING, _TESTS, _VALIDATION = "for training", "for tests", "for validation"
#: What folders are for, and how they are named, in lower case.
_NAMES = {
    _TRAINING: ("train", "training"),
    _TESTS: ("test", "testing"),
    _VALIDATION: ("val", "valid", "validation"),
}


class Parts(NamedTuple):
    """The folders that hold the class folders.

    Attributes:
        training: the folder of training images; of all images, if there is no test folder.
        test: the folder of test images; None: there is none.
        unused: a validation folder in addition to a test folder. Its images are not used.
    """

    training: Path
    test: Path | None = None
    unused: Path | None = None

    @property
    def used(self) -> list[Path]:
        """The one or two whose images are used."""
        return [part for part in (self.training, self.test) if part]


def parts_of(root: Path) -> Parts:
    """ROOT/train and ROOT/test, in whatever spelling, or ROOT itself.

    Raises:
        BadInput: a folder in ROOT is neither for training nor for tests.
    """
    folders = subfolders(root)
    found = {purpose: [folder for folder in folders if _purpose(folder) == purpose] for purpose in _NAMES}
    named = next((folder.name for some in found.values() for folder in some), None)
    if named is None:
        return Parts(root)
    for purpose, some in found.items():
        if len(some) > 1:
            raise BadInput(f"{some[0]} and {some[1].name} are both {purpose}: move one of them away")
    known = ", ".join(name for names in _NAMES.values() for name in names)
    for folder in folders:
        if _purpose(folder) is None:
            raise BadInput(
                f"{folder} is neither for training nor for tests, but {named} is next to it: move it away;"
                f" if {named} is a class, give it another name (not {known})"
            )
    training, test, validation = ((some[0] if some else None) for some in found.values())
    if training is None:
        raise BadInput(
            f"{root} has {named}, but no folder for training ({' or '.join(_NAMES[_TRAINING])}): add it;"
            f" if {named} is a class, give it another name (not {known})"
        )
    return Parts(training, test, validation) if test else Parts(training, validation)


def class_names(folder: Path) -> list[str]:
    """The names of the class folders, sorted.

    Raises:
        BadInput: there are fewer than two.
    """
    names = [found.name for found in subfolders(folder)]
    if not names:
        raise BadInput(
            f"{folder} has no class folders: set --dataset.root to the folder of class folders, or of train and test"
        )
    if len(names) == 1:
        raise BadInput(
            f"{folder} has only one class folder, {names[0]}: set --dataset.root to a folder of several class folders"
        )
    return names


def labelled(folder: Path, names: list[str]) -> tuple[Labelled, list[Path]]:
    """The images in the class folders of a part, and the files there that are not used.

    Args:
        folder: the part.
        names: names of the classes; the number of a class is its position.

    Raises:
        BadInput: the class folders have other names, or one has no images.
    """
    found = [below.name for below in subfolders(folder)]
    if not found:
        raise BadInput(f"{folder} has no class folders: move it away if its images have no labels")
    for name in sorted({*names} ^ {*found}):
        raise BadInput(
            f"{folder} has no class folder {name}, as the training images have"
            if name in names
            else f"{folder / name} is a class folder that the training images do not have"
        )
    images: Labelled = []
    passed = files_in(folder)
    for label, name in enumerate(names):
        top, *deeper = folders_below(folder / name)
        for part in filter(_purpose, deeper):
            raise BadInput(f"{part} is in a class folder: the order must be train/CLASS")
        inside = sorted(path for below in (top, *deeper) for path in files_in(below))
        pictures = [path for path in inside if is_picture(path)]
        if not pictures:
            raise BadInput(f"{top} is an empty class folder: move it away, or put images there")
        images += [(path, label) for path in pictures]
        passed += sorted({*inside} - {*pictures})
    return images, passed


def tell(
    parts: Parts, names: list[str], train: Labelled, test: Labelled, passed: list[Path], progress: Progress
) -> None:
    """Report which images are used, and which files are not used."""
    if parts.test:
        which = f"{len(train):,} training images of {parts.training} and {len(test):,} test images of {parts.test}"
    else:
        which = f"{len(train) + len(test):,} images of {parts.training}, {len(test):,} of them for tests"
    progress(f"ImageFolder: {which}, in {len(names):,} classes: {_first(names)}")
    if deeper := sum(path.parent.parent not in parts.used for path, _ in (*train, *test)):
        progress(f"ImageFolder: {deeper:,} of the images are in subfolders of their class folder")
    if parts.unused:
        progress(f"ImageFolder: {parts.unused} is not used, because {parts.test} has the test images")
    if passed:
        shown = _first([str(path) for path in passed])
        progress(
            f"ImageFolder: {len(passed):,} files that are not images, or not in a class folder, are not used: {shown}"
        )


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name; none where there is no such folder."""
    return [Path(entry.path) for entry in visible(folder) if entry.is_dir()] if folder.is_dir() else []


def files_in(folder: Path) -> list[Path]:
    """The visible files in a folder, by name."""
    return [Path(entry.path) for entry in visible(folder) if not entry.is_dir()]


def _purpose(folder: Path) -> str | None:
    """What a folder of this name is for; None: it may be a class."""
    return next((purpose for purpose, names in _NAMES.items() if folder.name.lower() in names), None)


def _first(names: list[str]) -> str:
    """As many names as fit on one line."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
