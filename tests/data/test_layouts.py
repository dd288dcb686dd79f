"""Folders of images as people have them: which images are used, for what, and what is said of the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmpi import results
from fedmpi.data import Arrays, ImageFolder, prepared
from fedmpi.errors import BadInput
from tests.support.mpi import fedmpi, succeed


def write(folder: Path, *colours: int) -> None:
    """Images 0.png, 1.png, ... of these grey values."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(colours):
        Image.new("L", (4, 4), colour).save(folder / f"{number}.png")


def load(root: Path, lines: list[str] | None = None) -> Arrays:
    return prepared.load(ImageFolder(root, 4), (lines if lines is not None else []).append)


def colours(x: np.ndarray) -> list[int]:
    return [int(image[0, 0, 0]) for image in x]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("train", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("train", "Test"),
        ("Train", "Test"),
        ("Training", "Testing"),
        ("TRAIN", "Valid"),
    ],
)
def test_names_of_the_parts(tmp_path: Path, train: str, test: str) -> None:
    """Oracle: the colours of the images, which are of one part each."""
    for label in (0, 1):
        write(tmp_path / train / f"class {label}", *range(10 * label, 10 * label + 6))
        write(tmp_path / test / f"class {label}", 100 + label)
    lines: list[str] = []
    arrays = load(tmp_path, lines)
    assert colours(arrays.train_x) == [*range(6), *range(10, 16)]
    assert colours(arrays.test_x) == [100, 101]
    assert arrays.test_y.tolist() == [0, 1]
    assert lines[1] == (
        f"ImageFolder: 12 training images of {tmp_path / train} and 2 test images of {tmp_path / test}, in 2 classes:"
        " class 0, class 1"
    )


def test_tests_and_validation(tmp_path: Path) -> None:
    """Oracle: the colours; and the line that names what is not used."""
    for label in (0, 1):
        for part, colour in (("train", 0), ("Val", 50), ("test", 100)):
            write(tmp_path / part / str(label), colour + label)
    lines: list[str] = []
    assert colours(load(tmp_path, lines).test_x) == [100, 101]
    assert f"ImageFolder: {tmp_path / 'Val'} is not used, because {tmp_path / 'test'} has the test images" in lines
    shutil.rmtree(tmp_path / "Val")
    assert prepared.open_prepared(ImageFolder(tmp_path, 4)) is not None, "what is not used does not matter"
    shutil.move(tmp_path / "test", tmp_path / "valid")
    assert colours(load(tmp_path).test_x) == [100, 101]


def test_strays_and_deeper_folders(tmp_path: Path) -> None:
    """Oracle: the same arrays as without the strays; what systems leave is not spoken of, and the rest is counted."""
    for label in "ab":
        write(tmp_path / label, *range(10))
    clean = load(tmp_path)
    for place in (tmp_path, tmp_path / "a", tmp_path / "b"):
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png", "Desktop.ini"):
            (place / name).write_text("x")
        for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
            (place / name).mkdir()
            (place / name / "0.png").write_text("x")
    lines: list[str] = []
    again = load(tmp_path, lines)
    assert again.checksum == clean.checksum
    assert not [line for line in lines if "not used" in line]
    (tmp_path / "a" / "labels.csv").write_text("file,label\n")
    (tmp_path / "README.txt").write_text("hello")
    shutil.copy(tmp_path / "a" / "0.png", tmp_path / "of no class.png")
    deeper = tmp_path / "b" / "more" / "and more"
    deeper.mkdir(parents=True)
    for number in (8, 9):
        shutil.move(tmp_path / "b" / f"{number}.png", deeper)
    (deeper / "notes").write_text("none")
    lines.clear()
    again = load(tmp_path, lines)
    assert again.checksum == clean.checksum
    assert lines[1:-1] == [
        f"ImageFolder: 20 images of {tmp_path}, 4 of them for tests, in 2 classes: a, b",
        "ImageFolder: 2 of the images are in subfolders of their class folder",
        "ImageFolder: 4 files that are not images, or not in a class folder, are not used: "
        + ", ".join(str(tmp_path / name) for name in ("README.txt", "of no class.png", "a/labels.csv"))
        + f", {deeper / 'notes'}",
    ]
    shutil.copy(deeper / "8.png", deeper / "again.png")
    assert prepared.open_prepared(ImageFolder(tmp_path, 4)) is None, "a new file is noticed however deep it lies"
    assert len(load(tmp_path).train_y) == 17


def test_links(tmp_path: Path) -> None:
    """Oracle: the images of the folders that are linked; a link that goes round has no end and is refused."""
    for label in "ab":
        write(tmp_path / "elsewhere" / label, *range(5))
    root = tmp_path / "my data" / "größe 猫"
    root.mkdir(parents=True)
    for label in "ab":
        (root / label).symlink_to(tmp_path / "elsewhere" / label)
    assert len(load(root).train_y) == 8
    (tmp_path / "elsewhere" / "a" / "round").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=r"round/a is a link to .*elsewhere/a, which contains it: remove the link"):
        load(root)


def unlabelled(root: Path) -> None:
    shutil.rmtree(root / "test")
    write(root / "test", 1)


def within_classes(root: Path) -> None:
    for label in "ab":
        write(root / "by class" / label / "train", 1)
        write(root / "by class" / label / "test", 1)
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "test")
    for label in "ab":
        shutil.move(root / "by class" / label, root)
    (root / "by class").rmdir()


def no_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def one_class(root: Path) -> None:
    no_train(root)
    write(root / "archive" / "a", 1)
    shutil.rmtree(root / "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: write(root / "holdout" / "a", 1),
            "holdout is neither for training nor for tests, but train",
        ),
        (lambda root: write(root / "Training" / "a", 1), "and .* are both for training: move one of them away"),
        (lambda root: write(root / "TESTING" / "a", 1), "and .* are both for tests: move one of them away"),
        (
            no_train,
            r"has test, but no folder for training \(train or training\): add it; if test is a class, give it",
        ),
        (unlabelled, "test has no class folders: move it away if its images have no labels"),
        (within_classes, "a/test is in a class folder: the order must be train/CLASS"),
        (one_class, "has only one class folder, archive: set --dataset.root to a folder of several"),
        (lambda root: write(root / "train/c", 1), "test has no class folder c, as the training images have"),
        (lambda root: write(root / "test/C", 1), "test/C is a class folder that the training images do not have"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    """Oracle: the messages."""
    for part in ("train", "test"):
        for label in "ab":
            write(tmp_path / part / label, 1)
    change(tmp_path)
    with pytest.raises(BadInput, match=message) as error:
        load(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_arrays_of_earlier_versions(tmp_path: Path) -> None:
    """Oracle: arrays without a version, as they were when pictures were decoded in another way, count for nothing."""
    for label in "ab":
        write(tmp_path / label, *range(5))
    load(tmp_path)
    manifest = ImageFolder(tmp_path, 4).folder() / prepared.FOLDER / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["read_version"]
    manifest.write_text(json.dumps(content))
    lines: list[str] = []
    load(tmp_path, lines)
    assert len(lines) == 3
    manifest.write_text(json.dumps(content))
    for label in "ab":
        shutil.rmtree(tmp_path / label)
    with pytest.raises(
        BadInput, match=r"another version of fedmpi in another way, .* decoded from are missing: restore them"
    ):
        load(tmp_path)


def test_an_empty_class(tmp_path: Path) -> None:
    """Oracle: the message, also where other files lie in the folder."""
    for label in "ab":
        write(tmp_path / label, 1)
    (tmp_path / "c").mkdir()
    for _ in range(2):
        with pytest.raises(BadInput, match="c is an empty class folder: move it away, or put images there"):
            load(tmp_path)
        (tmp_path / "c" / "labels.csv").write_text("file,label\n")


def test_a_job(tmp_path: Path) -> None:
    """Oracle: what is said, and the number of images; the checksum that the data have in this process, prepared."""
    for label in "ab":
        write(tmp_path / "pics" / "Training" / label, *range(6))
        write(tmp_path / "pics" / "Valid" / label, *range(3))
    options = ["--clients", "2", "--cohort", "2", "--rounds", "1", "--partition", "IID", "--model", "MLP"]
    data: list[str | Path] = ["--dataset", "ImageFolder", "--dataset.size", "4", "--dataset.root", tmp_path / "pics"]
    output = succeed(fedmpi(3, *options, *data, "--output", tmp_path / "x.h5"))
    assert output.count("12 training images") == 1
    run = results.open(tmp_path / "x.h5")
    assert run.partition["samples"].sum() == 12
    assert run.attributes["data_sha256"] == load(tmp_path / "pics").checksum
    write(tmp_path / "pics" / "extra", 1)
    other = fedmpi(2, *options, *data, "--output", tmp_path / "none.h5")
    assert other.returncode == 2
    assert other.stderr.startswith(f"fedmpi: error: {tmp_path}/pics/extra is neither for training nor for tests")
    assert other.stderr.count("\n") == 1
