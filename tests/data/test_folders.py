"""Images in folders: every pixel and label, what is noticed and what not, and files that are none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedmpi.data import ImageFolder, TinyImageNet, folders, prepared
from fedmpi.data.__main__ import main
from fedmpi.errors import BadInput

SIZE = 12


def photograph(name: str) -> Any:
    """One of the two that come with scikit-learn: china, flower."""
    package = find_spec("sklearn")
    assert package
    assert package.origin
    return Image.open(Path(package.origin).parent / "datasets" / "images" / f"{name}.jpg")


def write_class(folder: Path, name: str, count: int) -> None:
    """Cut-outs of different sizes, kinds and formats; and a hidden file, which is none of them."""
    folder.mkdir(parents=True)
    (folder / ".hidden").write_text("no image")
    whole = photograph(name)
    for number in range(count):
        cut = whole.crop((9 * number, 5 * number, 9 * number + 50 + 3 * number, 5 * number + 60))
        kind, ending = [("RGB", "jpg"), ("L", "jpg"), ("P", "png"), ("CMYK", "jpg"), ("RGBA", "png")][number % 5]
        cut.convert(kind).save(folder / f"{number * 5 % count:02}.{ending}")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A root with two class folders, and a file that is no folder."""
    root = tmp_path / "photos"
    write_class(root / "china", "china", 11)
    write_class(root / "a flower", "flower", 7)
    (root / "readme").write_text("photographs")
    return root


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """A root with train and val."""
    root = tmp_path / "divided"
    for part, count in (("train", 3), ("val", 2)):
        for name in ("china", "flower"):
            write_class(root / part / name, name, count)
    return root


def plain(files: list[Path]) -> NDArray[np.uint8]:
    """[n, 3, SIZE, SIZE], one image after another."""
    images = []
    for path in files:
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        images.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1))
    return np.array(images)


def shown(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != ".hidden")


def load(root: Path, lines: list[str] | None = None, **options: Any) -> Any:
    return prepared.load(ImageFolder(root, **{"size": SIZE, **options}), (lines if lines is not None else []).append)


def test_every_fifth_image_is_a_test_image(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a plain loop over the files, decoded by one thread; here by several, each with a few at a time."""
    monkeypatch.setattr(folders, "PIECE", 2)
    monkeypatch.setattr(folders, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(5))
    lines: list[str] = []
    arrays = load(photos, lines)
    flowers, chinas = shown(photos / "a flower"), shown(photos / "china")
    test = [flowers[4], chinas[4], chinas[9]]
    train = [path for path in [*flowers, *chinas] if path not in test]
    assert np.array_equal(arrays.train_x, plain(train))
    assert np.array_equal(arrays.test_x, plain(test))
    assert arrays.train_y.tolist() == [0] * 6 + [1] * 9
    assert arrays.test_y.tolist() == [0, 1, 1]
    assert arrays.train_x.transpose(0, 2, 3, 1).flags.c_contiguous
    assert "10 of 15 images decoded" in lines
    assert ImageFolder(photos, SIZE).classes == 2


def test_folders_for_training_and_tests(divided: Path) -> None:
    """Oracle: a plain loop over the files."""
    arrays = load(divided)
    for part, x, y in (("train", arrays.train_x, arrays.train_y), ("val", arrays.test_x, arrays.test_y)):
        files = [path for name in ("china", "flower") for path in shown(divided / part / name)]
        assert np.array_equal(x, plain(files))
        assert y.tolist() == [int(path.parent.name == "flower") for path in files]
    shutil.rmtree(divided / "val")
    assert prepared.open_prepared(ImageFolder(divided, SIZE)) is not None, "what is gone does not matter"
    assert len(load(divided, test_share=0.4).test_y) == 2, "one in three of each class"


def test_images_that_are_gone_and_options_that_differ(photos: Path) -> None:
    """Oracle: the arrays as they were made, and the number of classes."""
    made = load(photos)
    half = load(photos, test_share=0.5)
    large = load(photos, size=20)
    for name in ("china", "a flower"):
        shutil.rmtree(photos / name)
    for options, arrays in (({}, made), ({"test_share": 0.5}, half), ({"size": 20}, large)):
        again = load(photos, **options)
        assert np.array_equal(again.train_x, arrays.train_x)
        assert np.array_equal(again.test_y, arrays.test_y)
    assert ImageFolder(photos, SIZE).classes == 2
    assert (len(made.test_y), len(half.test_y), large.train_x.shape) == (3, 8, (15, 3, 20, 20))
    assert main(["check", "ImageFolder", "--root", str(photos), "--size", "20"]) == 0
    with pytest.raises(BadInput, match="has no class folders"):
        load(photos, size=21)


def test_what_is_noticed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: lines of progress, which only preparing gives; and the paths whose state is asked for."""
    lines: list[str] = []
    load(photos)
    asked: list[str] = []
    real = os.stat

    def stat(path: Any, **how: Any) -> os.stat_result:
        asked.append(str(path))
        return real(path, **how)

    monkeypatch.setattr(os, "stat", stat)
    passing = [photos / "china" / f"{'x' * 200}{number}" for number in range(200)]
    for act in (Path.touch, Path.unlink):
        for path in passing:
            act(path)
    load(photos, lines)
    assert not lines, "another time (and on some file systems size), but the same names"
    assert str(photos / "china") in asked
    assert not [path for path in asked if path.endswith((".jpg", ".png"))]
    monkeypatch.undo()
    shutil.copy(photos / "china" / "00.jpg", photos / "china" / "new.jpg")
    assert len(load(photos, lines).train_y) == 16
    (photos / "china" / "new.jpg").unlink()
    assert len(load(photos, lines).train_y) == 15
    shutil.copytree(photos / "china", photos / "china again")
    assert load(photos, lines).train_y.max() == 2
    shutil.rmtree(photos / "china again")
    assert load(photos, lines).train_y.max() == 1
    assert len([line for line in lines if "prepared arrays are in" in line]) == 4
    assert ImageFolder(photos, SIZE).classes == 2


def test_a_folder_that_cannot_be_written(photos: Path) -> None:
    """Oracle: the same arrays, in memory."""
    made = load(photos)
    ImageFolder(photos, 13).folder().write_text("a file where the folder should be")
    arrays = load(photos, size=13)
    assert not arrays.on_disk
    assert np.array_equal(arrays.train_y, made.train_y)
    assert ImageFolder(photos, 13).classes == 2


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def two_empty_folders(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "zebra").mkdir()


def no_class_folders(root: Path) -> None:
    for name in ("china", "flower"):
        shutil.rmtree(root / "train" / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: cut(root / "train/china/00.jpg"), r"train/china/00.jpg cannot be decoded: .*[Tt]runcated.*"),
        (lambda root: (root / "val/china/00.jpg").write_text(""), "val/china/00.jpg is not an image"),
        (lambda root: shutil.copytree(root / "val/china", root / "train/zebra"), "val has no class folder zebra"),
        (lambda root: (root / "val/zebra").mkdir(), "val/zebra is a class folder that the training images do not"),
        (two_empty_folders, "train/zebra is an empty class folder"),
        (lambda root: shutil.rmtree(root), "divided has no class folders: set --dataset.root"),
        (no_class_folders, "train has no class folders"),
    ],
)
def test_folders_that_are_refused(divided: Path, change: Callable[[Path], object], message: str) -> None:
    """Oracle: the messages."""
    change(divided)
    with pytest.raises(BadInput, match=f"^{divided.parent}.*{message}") as error:
        load(divided)
    assert "\n" not in str(error.value)


def test_refused_options() -> None:
    """Oracle: the messages."""
    with pytest.raises(BadInput, match="size = 0: must be at least 1"):
        ImageFolder(size=0)
    for share in (0.0, 1.0):
        with pytest.raises(BadInput, match=r"test_share = .*: must be above 0 and below 1"):
            ImageFolder(test_share=share)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a Tiny ImageNet of two training images a class and 20 test images, every other one grey."""
    root = tmp_path_factory.mktemp("root")
    home = root / "tiny-imagenet-200"
    whole = photograph("china")
    names = [f"n{number * 37 % 200:08}" for number in range(200)]
    lines = []
    for number, name in enumerate(names):
        (home / "train" / name / "images").mkdir(parents=True)
        image = whole.crop((number, number, number + 64, number + 64)).convert(["L", "RGB"][number % 2])
        for copy in range(2):
            image.save(home / "train" / name / "images" / f"{name}_{copy}.JPEG")
        if number < 20:
            (home / "val" / "images").mkdir(parents=True, exist_ok=True)
            image.save(home / "val" / "images" / f"val_{number}.JPEG")
            lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t63\t63\n")
    (home / "wnids.txt").write_text("\n".join(names) + "\n")
    (home / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet(tiny: Path, tmp_path: Path) -> None:
    """Oracle: a plain loop over the files."""
    tiny = shutil.copytree(tiny, tmp_path / "root")
    arrays = prepared.load(TinyImageNet(tiny), lambda line: None)
    home = tiny / "tiny-imagenet-200"
    files = sorted(home.glob("train/*/images/*"))
    assert arrays.train_y.tolist() == [int(path.name[1:9]) for path in files]
    for x, path in zip(arrays.train_x, files, strict=True):
        assert np.array_equal(x, np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1))
    assert arrays.test_y.tolist() == [number * 37 % 200 for number in range(20)]
    for number, x in enumerate(arrays.test_x):
        image = Image.open(home / "val" / "images" / f"val_{number}.JPEG").convert("RGB")
        assert np.array_equal(x, np.asarray(image).transpose(2, 0, 1))
    again = prepared.open_prepared(TinyImageNet(tiny))
    assert again is not None
    shutil.copy(files[0], files[0].with_name("new.JPEG"))
    assert prepared.open_prepared(TinyImageNet(tiny)) is None


def replace(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("wnids.txt", cut, "is damaged .it names 100 classes, not 200"),
        ("wnids.txt", lambda path: path.write_text(""), "is damaged .it names 0 classes"),
        ("wnids.txt", lambda path: path.write_bytes(b"\xff\xd8\xff"), "is damaged .*decode"),
        ("wnids.txt", Path.unlink, "is missing: .* fetch TinyImageNet"),
        ("val/val_annotations.txt", replace("n00000037", "n99999999"), "line 2 names the class 'n99999999', unknown"),
        ("val/val_annotations.txt", cut, "line 1[01] names the class|it names 10 images, which are not"),
        ("val/val_annotations.txt", lambda path: path.write_text(""), "it names 0 images, which are not those of"),
        ("val/images/val_3.JPEG", cut, "cannot be decoded: .*[Tt]runcated.*"),
        ("val/images/val_3.JPEG", lambda path: path.write_text("x"), "is not an image"),
        ("val/images/val_3.JPEG", Path.unlink, None),
        (
            "train/n00000003/images/n00000003_0.JPEG",
            lambda path: photograph("china").save(path),
            "640x427, not 64x64",
        ),
        ("train/n00000003/images", shutil.rmtree, None),
    ],
)
def test_damaged_tiny_imagenet(
    tiny: Path, tmp_path: Path, file: str, damage: Callable[[Path], object], message: str | None
) -> None:
    """Oracle: the messages. The file is put back in the end."""
    path = tiny / "tiny-imagenet-200" / file
    copy = shutil.copytree if path.is_dir() else shutil.copy
    copy(path, tmp_path / "saved")
    try:
        damage(path)
        with pytest.raises(BadInput, match=message or "val_annotations.txt is damaged|images is missing") as error:
            prepared.load(TinyImageNet(tiny), lambda line: None)
    finally:
        copy(tmp_path / "saved", path)
    assert str(path.parent) in str(error.value)
    assert "\n" not in str(error.value)
