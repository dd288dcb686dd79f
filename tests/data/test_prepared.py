"""Data sets, their prepared arrays, and `python -m fedmpi.data`."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.data import (
    CIFAR10,
    MNIST,
    Arrays,
    Dataset,
    Digits,
    FashionMNIST,
    Progress,
    TinyImageNet,
    as_stored,
    prepared,
)
from fedmpi.data.__main__ import main
from fedmpi.data.prepared import DamagedArrays, open_prepared, verify
from fedmpi.errors import BadInput
from fedmpi.options import null_for, with_options
from fedmpi.tasks import Classification, Task

ROOT = Path(__file__).parents[2]


class Toy(Dataset):
    """A published file of 12 images, and how often it was decoded."""

    classes = 3

    seconds = 0.0

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reads = 0

    def sources(self) -> list[Path]:
        return [self.root / "published.npy"]

    def folder(self) -> Path:
        return self.root / "toy"

    def read(self, progress: Progress) -> Arrays:
        self.reads += 1
        progress("decoding")
        time.sleep(self.seconds)
        if not self.sources()[0].exists():
            raise BadInput(f"{self.sources()[0]} is missing")
        x = np.load(self.sources()[0])
        y = np.arange(len(x)) % 3
        return Arrays(x[:8], y[:8], x[8:], y[8:])


class Overtaken(Toy):
    """Another user's job is faster, whose arrays this one may not read."""

    def read(self, progress: Progress) -> Arrays:
        manifest = stored(self, "manifest.json")
        manifest.parent.mkdir(parents=True)
        manifest.touch(0)
        return super().read(progress)


class InMemory(Dataset):
    """As in the documentation of `Dataset`."""

    classes = 2

    def read(self, progress: Progress) -> Arrays:
        x, y = np.ones((9, 4), np.float32), np.arange(9) % 2
        return Arrays(x[3:], y[3:], x[:3], y[:3])


def images(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (12, 3, 5, 4), dtype=np.uint8)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    np.save(tmp_path / "published.npy", images())
    return Toy(tmp_path)


@pytest.fixture
def lines() -> list[str]:
    return []


def keep_times(path: Path, change: Any) -> None:
    """Change a file behind the back of its modification time."""
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def stored(toy: Toy, name: str) -> Path:
    folder = prepared.place(toy)
    assert folder is not None
    return folder / name


def test_round_trip(toy: Toy, lines: list[str]) -> None:
    assert open_prepared(toy) is None
    made = prepared.load(toy, lines.append)
    again = prepared.load(toy, lines.append)
    assert toy.reads == 1
    assert any(str(toy.folder()) in line for line in lines)
    for arrays in (made, again):
        assert arrays.on_disk
        assert np.array_equal(arrays.train_x, images()[:8])
        assert np.array_equal(arrays.test_x, images()[8:])
        assert arrays.train_y.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
        assert arrays.train_x.dtype == np.uint8
        assert arrays.train_y.dtype == np.int64


def test_the_checksum_is_that_of_the_content(toy: Toy, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: what is the same, and what is not; and the files of prepared arrays, hashed by hand."""
    read = toy.read(lines.append)
    made = prepared.load(toy, lines.append)
    again = open_prepared(toy)
    assert again is not None
    others = [
        Arrays(read.train_x, read.train_y[::-1], read.test_x, read.test_y),
        Arrays(read.train_x, read.train_y.astype(np.int32), read.test_x, read.test_y),
        Arrays(read.train_x.reshape(8, 3, 4, 5), read.train_y, read.test_x, read.test_y),
        Arrays(read.test_x, read.train_y, read.train_x, read.test_y),
        Arrays(read.train_x, read.train_y, read.test_x, read.test_y, read.train_y),
    ]
    assert len({read.checksum, *(other.checksum for other in others)}) == 1 + len(others)
    files = {name: stored(toy, f"{name}.npy").read_bytes() for name in ("train_x", "train_y", "test_x", "test_y")}
    text = "".join(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in files.items())
    assert read.checksum == hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(np, "save", None)  # prepared arrays are not read
    assert made.checksum == again.checksum == hashlib.sha256(text.encode()).hexdigest()


def test_channels_come_last_in_memory(toy: Toy, lines: list[str]) -> None:
    arrays = prepared.load(toy, lines.append)
    assert arrays.train_x.shape == (8, 3, 5, 4)
    assert arrays.train_x.transpose(0, 2, 3, 1).flags.c_contiguous
    assert np.shares_memory(as_stored(arrays.train_x), arrays.train_x)
    manifest = json.loads(stored(toy, "manifest.json").read_text())
    assert manifest["arrays"]["train_x"]["order"] == "NHWC"
    assert manifest["arrays"]["train_x"]["shape"] == [8, 5, 4, 3]


def test_mapped_arrays_are_writable_but_nothing_is_written(toy: Toy, lines: list[str]) -> None:
    arrays = prepared.load(toy, lines.append)
    arrays.train_x[:] = 0
    again = open_prepared(toy)
    assert again is not None
    assert np.array_equal(again.train_x, images()[:8])
    verify(toy)


@pytest.mark.parametrize("damage", [cut, flip_last_byte, Path.unlink])
@pytest.mark.parametrize("name", ["train_x.npy", "test_y.npy"])
def test_damaged_arrays_are_named(toy: Toy, lines: list[str], damage: Any, name: str) -> None:
    prepared.load(toy, lines.append)
    damage(stored(toy, name))
    for attempt in (open_prepared, verify):
        with pytest.raises(DamagedArrays, match=name) as error:
            attempt(toy)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
        assert "\n" not in str(error.value)
        assert str(stored(toy, name).parent) in str(error.value)


def test_damaged_arrays_are_prepared_anew(toy: Toy, lines: list[str]) -> None:
    prepared.load(toy, lines.append)
    flip_last_byte(stored(toy, "train_x.npy"))
    arrays = prepared.load(toy, lines.append)
    assert any("train_x.npy is damaged" in line and "preparing it again" in line for line in lines)
    assert arrays.on_disk
    assert np.array_equal(arrays.train_x, images()[:8])
    verify(toy)
    assert [path.name for path in toy.folder().iterdir()] == [stored(toy, "").name]


def test_damaged_arrays_without_published_files(toy: Toy, lines: list[str]) -> None:
    prepared.load(toy, lines.append)
    toy.sources()[0].unlink()
    cut(stored(toy, "train_x.npy"))
    with pytest.raises(DamagedArrays, match="delete"):
        prepared.load(toy, lines.append)


def test_damage_that_keeps_size_and_time_needs_checksums(toy: Toy, lines: list[str]) -> None:
    prepared.load(toy, lines.append)
    keep_times(stored(toy, "train_x.npy"), flip_last_byte)
    assert open_prepared(toy) is not None
    with pytest.raises(DamagedArrays, match="train_x"):
        verify(toy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"arrays": {}}'])
def test_damaged_manifest(toy: Toy, lines: list[str], text: str) -> None:
    prepared.load(toy, lines.append)
    stored(toy, "manifest.json").write_text(text)
    with pytest.raises(DamagedArrays, match="manifest"):
        open_prepared(toy)
    assert prepared.load(toy, lines.append).on_disk
    verify(toy)


def test_changed_source(toy: Toy, lines: list[str]) -> None:
    prepared.load(toy, lines.append)
    np.save(toy.sources()[0], images(1))
    assert open_prepared(toy) is None
    with pytest.raises(BadInput, match="prepare"):
        verify(toy)
    arrays = prepared.load(toy, lines.append)
    assert toy.reads == 2
    assert np.array_equal(arrays.train_x, images(1)[:8])


def test_touched_files_are_compared_once(toy: Toy, lines: list[str]) -> None:
    """A copied folder has new times: the checksums decide, and the times are kept for the next job."""
    prepared.load(toy, lines.append)
    for path in (toy.sources()[0], stored(toy, "train_x.npy")):
        os.utime(path, ns=(1, 1))
    assert open_prepared(toy) is not None
    manifest = json.loads(stored(toy, "manifest.json").read_text())
    assert manifest["arrays"]["train_x"]["mtime_ns"] == 1
    assert manifest["sources"]["../published.npy"]["mtime_ns"] == 1
    assert toy.reads == 1
    verify(toy)


def test_missing_source_does_not_matter(toy: Toy, lines: list[str]) -> None:
    prepared.load(toy, lines.append)
    toy.sources()[0].unlink()
    assert prepared.load(toy, lines.append).on_disk
    verify(toy)


def test_moved_root(toy: Toy, lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    prepared.load(toy, lines.append)
    moved = tmp_path_factory.mktemp("other") / "root"
    toy.root.rename(moved)
    assert open_prepared(Toy(moved)) is not None


def test_root_that_cannot_be_written(tmp_path: Path, lines: list[str]) -> None:
    np.save(tmp_path / "published.npy", images())
    (tmp_path / "toy").write_text("a file where the folder should be")
    toy = Toy(tmp_path)
    arrays = prepared.load(toy, lines.append)
    assert not arrays.on_disk
    assert open_prepared(toy) is None
    assert np.array_equal(arrays.train_x, images()[:8])
    assert arrays.train_x.transpose(0, 2, 3, 1).flags.c_contiguous
    assert any("cannot be written" in line for line in lines)


def test_unreadable_files(toy: Toy, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match=r"data set Toy cannot be read: .* denied: .*published\.npy"):
        prepared.load(toy, lines.append)


def shut(path: Path) -> Callable[[], None]:
    """Make a file or folder unreadable; returns what undoes that."""
    mode = path.stat().st_mode
    path.chmod(0)
    return lambda: path.chmod(mode)


LOAD = """
import sys
from pathlib import Path
from fedmpi.data import prepared
from fedmpi.errors import BadInput
from tests.data import test_prepared
toy = getattr(test_prepared, sys.argv[2])(Path(sys.argv[1]))
try:
    arrays = prepared.load(toy, print)
    print(arrays.on_disk, arrays.checksum)
except BadInput as error:
    print(type(error).__name__, error)
"""


def test_arrays_that_may_not_be_read(toy: Toy, lines: list[str]) -> None:
    """Oracle: the checksum of what can be read, whose arrays are left as they are; and the messages."""
    made = prepared.load(toy, lines.append)
    folder = stored(toy, "train_x.npy").parent
    before = sorted(path.name for path in toy.folder().iterdir())
    for path in (folder / "manifest.json", folder / "test_x.npy", folder):
        undo = shut(path)
        try:
            notice, decoding, found = unprivileged("-c", LOAD, toy.root, "Toy").splitlines()
            toy.sources()[0].rename(toy.root / "away")
            refused = unprivileged("-c", LOAD, toy.root, "Toy").splitlines()
            (toy.root / "away").rename(toy.sources()[0])
        finally:
            undo()
        blocked = folder / "manifest.json" if path == folder else path
        owner = folder.owner()
        assert notice == (
            f"{blocked} cannot be read (Permission denied): have {owner} allow it (chmod -R a+rX {folder});"
            " until then the arrays are decoded into memory, for this job only"
        )
        assert decoding == "decoding"
        assert found == f"False {made.checksum}"
        assert refused == [f"UnreadableArrays {notice.partition(';')[0]}"]
        assert sorted(path.name for path in toy.folder().iterdir()) == before
    assert prepared.load(toy, lines.append).on_disk
    verify(toy)
    undo = shut(toy.folder())  # with all that is in it; the published file lies beside it
    try:
        assert unprivileged("-c", LOAD, toy.root, "Toy").splitlines()[-1] == f"False {made.checksum}"
    finally:
        undo()
    shutil.rmtree(toy.folder())
    decoding, notice, found = unprivileged("-c", LOAD, toy.root, "Overtaken").splitlines()
    assert notice.endswith("the arrays stay in memory, for this job only")
    assert found == f"False {made.checksum}"
    (left,) = toy.folder().iterdir()
    assert [path.name for path in left.iterdir()] == ["manifest.json"], "what is another's is left alone"


def unprivileged(*arguments: str | Path) -> str:
    """What a Python program prints that may not read everything, as root may."""
    command = [sys.executable, *map(str, arguments)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything, and setpriv, which forbids it, is missing")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def test_another_version_of_read(toy: Toy, lines: list[str]) -> None:
    """Oracle: how often it was read, and the message when it cannot be read again."""
    manifest = stored(toy, "manifest.json")
    prepared.load(toy, lines.append)
    before = json.loads(manifest.read_text())
    assert before.pop("read_version") == 1
    manifest.write_text(json.dumps(before))  # as the first version of fedmpi wrote it
    prepared.load(toy, lines.append)
    assert toy.reads == 1
    toy.read_version = 2
    assert open_prepared(toy) is None
    assert prepared.load(toy, lines.append).on_disk
    assert toy.reads == 2
    assert json.loads(manifest.read_text())["read_version"] == 2
    toy.sources()[0].unlink()
    assert prepared.load(toy, lines.append).on_disk
    toy.read_version = 3
    with pytest.raises(BadInput, match=r"was decoded by other code of .*\.Toy in another way, and the files"):
        prepared.load(toy, lines.append)


def test_full_disk(toy: Toy, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", no_space)
    assert not prepared.load(toy, lines.append).on_disk
    assert any("No space left" in line for line in lines)
    assert list(toy.folder().iterdir()) == []


@pytest.mark.parametrize("before", ["nothing", "outdated", "damaged"])
def test_jobs_that_prepare_at_once(toy: Toy, lines: list[str], before: str) -> None:
    if before != "nothing":
        prepared.load(toy, lines.append)
    if before == "outdated":
        np.save(toy.sources()[0], images(1))
    if before == "damaged":
        cut(stored(toy, "train_x.npy"))
    code = (
        "import sys; from pathlib import Path\n"
        "from fedmpi.data import prepared; from tests.data.test_prepared import Toy\n"
        "Toy.seconds = 0.3; arrays = prepared.load(Toy(Path(sys.argv[1])), print)\n"
        "assert arrays.on_disk; print(arrays.train_x.sum())"
    )
    command = [sys.executable, "-c", code, str(toy.root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    outputs = [job.communicate(timeout=60)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    expected = images(1 if before == "outdated" else 0)[:8].sum()
    assert [int(output.split()[-1]) for output in outputs] == [expected] * 3
    assert [path.name for path in toy.folder().iterdir()] == [stored(toy, "").name]
    verify(toy)
    assert sum("decoding" in output for output in outputs) == 1


def test_file_system_without_locks(toy: Toy, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    toy.folder().mkdir()
    monkeypatch.setattr(prepared.fcntl, "flock", no_locks)
    assert prepared.load(toy, lines.append).on_disk


def test_data_set_that_keeps_nothing_on_disk(lines: list[str]) -> None:
    arrays = prepared.load(InMemory(), lines.append)
    assert not arrays.on_disk
    assert arrays.train_x.shape == (6, 4)
    assert open_prepared(InMemory()) is None
    with pytest.raises(BadInput, match="InMemory has nothing to fetch"):
        InMemory().fetch()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_x", np.ones((0, 4), np.float32), r"train_x has shape \(0, 4\)"),
        ("train_x", np.ones(6, np.float32), r"train_x has shape \(6,\)"),
        ("train_x", np.ones((6, 4)), "train_x is float64"),
        ("train_x", [[1.0]], "train_x is a list"),
        ("train_x", np.ones((6, 4), np.uint8), "images are"),
        ("train_x", np.full((6, 4), np.nan, np.float32), "train_x has values that are not finite"),
        ("train_x", np.ones((6, 5), np.float32), "but test_x is"),
        ("train_y", np.arange(5) % 2, r"train_y has shape \(5,\): it must have a row for each of 6 samples"),
        ("train_y", np.zeros(6, np.int32), "train_y is int32"),
        ("test_y", np.array([0, 1, 2]), "test_y is from 0 to 2: labels are 0 to 1"),
        ("test_y", np.array([0, -1, 1]), "test_y is from -1 to 1"),
        ("train_users", [0, 1, 2, 0, 1, 2], "train_users is a list: it must be a NumPy array, or None"),
        ("test_users", np.array([0, -1, 1]), "test_users is int64 of shape .*: it must be int64 >= 0"),
    ],
)
def test_what_a_data_set_may_not_return(field: str, value: Any, message: str, lines: list[str]) -> None:
    class Wrong(InMemory):
        def read(self, progress: Progress) -> Arrays:
            parts = vars(super().read(progress)) | {field: value}
            return Arrays(**parts)

    with pytest.raises(BadInput, match=f"data set Wrong: .*{message}"):
        prepared.load(Wrong(), lines.append)


def test_mean_of_too_few_channels(toy: Toy, lines: list[str]) -> None:
    toy.mean = (0.5,)
    with pytest.raises(BadInput, match=r"data set Toy: mean .* 3 channels"):
        prepared.load(toy, lines.append)
    toy.mean = 0.5  # type: ignore[assignment]
    with pytest.raises(BadInput, match=r"data set Toy: mean is 0.5: it must be a tuple of one number per channel"):
        prepared.load(toy, lines.append)
    toy.mean, toy.std = (0.5,) * 3, (1.0, 0.0, 1.0)
    with pytest.raises(BadInput, match=r"data set Toy: std is .*: samples are divided by it, so it must be above 0"):
        prepared.load(toy, lines.append)


def test_digits(lines: list[str]) -> None:
    from sklearn.datasets import load_digits

    start = time.process_time()
    arrays = prepared.load(Digits(), lines.append)
    assert time.process_time() - start < 0.06
    assert arrays.train_x.shape == (1442, 1, 8, 8)
    assert arrays.test_x.shape == (355, 1, 8, 8)
    published = load_digits()
    test = np.zeros(1797, bool)
    for label in range(10):
        test[np.flatnonzero(published.target == label)[4::5]] = True
    for mask, x, y in ((~test, arrays.train_x, arrays.train_y), (test, arrays.test_x, arrays.test_y)):
        assert np.array_equal(np.rint(x[:, 0] / (255 / 16)), published.images[mask])
        assert np.array_equal(y, published.target[mask])
    assert (arrays.train_x.min(), arrays.train_x.max()) == (0, 255)
    shares = np.bincount(arrays.test_y) / np.bincount(published.target)
    assert np.abs(shares - 0.2).max() < 0.01
    assert_normalised(Digits(), arrays)


def assert_normalised(dataset: Dataset, arrays: Arrays) -> None:
    assert dataset.mean is not None
    assert dataset.std is not None
    values = np.arange(256) / 255
    for channel, (mean, std) in enumerate(zip(dataset.mean, dataset.std, strict=True)):
        share = np.bincount(arrays.train_x[:, channel].ravel(), minlength=256) / arrays.train_x[:, channel].size
        assert share @ values == pytest.approx(mean, abs=1e-4)
        assert np.sqrt(share @ (values - mean) ** 2) == pytest.approx(std, abs=1e-4)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def small_mnist(tmp_path: Path) -> Path:
    """A root with a MNIST of 40 and 20 samples."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_idx_files(small_mnist: Path, lines: list[str]) -> None:
    arrays = prepared.load(MNIST(small_mnist), lines.append)
    assert arrays.train_x.shape == (40, 1, 28, 28)
    assert arrays.test_y.tolist() == [*range(10), *range(10)]
    raw = (small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    assert arrays.test_x.tobytes() == raw[16:]
    assert (small_mnist / "MNIST" / prepared.FOLDER / "train_x.npy").exists()


class Shuffled(MNIST):
    """MNIST whose training labels are in another order."""

    def read(self, progress: Progress) -> Arrays:
        read = super().read(progress)
        return replace(read, train_y=np.random.default_rng(0).permutation(read.train_y))


@with_options
class Shifted(MNIST):
    """MNIST whose labels are shifted."""

    by: int = 0
    task_of: Task = null_for(Classification)

    def decode(self, progress: Progress) -> Arrays:
        read = super().decode(progress)
        return replace(read, train_y=(read.train_y + self.by) % 10)


@with_options
class Reversed(Dataset):
    """Another data set with its training samples in reverse order, prepared in the folder that the other uses."""

    over: Dataset = null_for(Digits)
    root: Path = Path()

    classes = 10

    def sources(self) -> list[Path]:
        return self.over.sources()

    def folder(self) -> Path:
        return self.root

    def read(self, progress: Progress) -> Arrays:
        read = prepared.load(self.over, progress)
        return replace(read, train_x=read.train_x[::-1], train_y=read.train_y[::-1])


def test_classes_and_options_do_not_share_arrays(small_mnist: Path) -> None:
    """Oracle: the published labels, permuted, shifted and reversed by NumPy; and how often files were decoded.

    The first one prepares the one that it wraps, next to itself.
    """
    published = np.arange(40) % 10
    sets: list[tuple[Dataset, NDArray]] = [
        (MNIST(small_mnist), published),
        (Shuffled(small_mnist), np.random.default_rng(0).permutation(published)),
        *((Shifted(small_mnist, by), (published + by) % 10) for by in (0, 3)),
        *((Reversed(Shifted(small_mnist, by), small_mnist / "MNIST"), (published + by)[::-1] % 10) for by in (0, 3)),
    ]
    lines: list[str] = []
    for _ in range(2):
        for dataset, expected in [*sets[::-1], *sets]:
            arrays = prepared.load(dataset, lines.append)
            assert arrays.on_disk
            np.testing.assert_array_equal(arrays.train_y, expected)
            np.testing.assert_array_equal(arrays.test_y, np.arange(20) % 10)
    assert len([line for line in lines if "prepared arrays are in" in line]) == len(sets), "each was prepared once"
    moved = small_mnist.with_name("moved")
    small_mnist.rename(moved)
    for dataset in (Shuffled(moved), Shifted(moved, 3), Reversed(Shifted(moved, 3), moved / "MNIST")):
        assert open_prepared(dataset) is not None
    assert open_prepared(Shifted(moved, 4)) is None


def test_arrays_that_another_class_left(small_mnist: Path, lines: list[str]) -> None:
    """Oracle: the published labels, where an earlier version let any class of this folder write its arrays."""
    prepared.load(Shuffled(small_mnist), lines.append)
    stored_by_it = prepared.place(Shuffled(small_mnist))
    assert stored_by_it is not None
    shared = stored_by_it.rename(small_mnist / "MNIST" / prepared.FOLDER)
    manifest = json.loads((shared / "manifest.json").read_text())
    early = {name: manifest[name] for name in ("format", "read_version", "sources", "arrays", "remarks")}
    (shared / "manifest.json").write_text(json.dumps({**early, "dataset": "Shuffled"}))
    np.testing.assert_array_equal(prepared.load(MNIST(small_mnist), lines.append).train_y, np.arange(40) % 10)
    manifest = json.loads((shared / "manifest.json").read_text())
    early = {name: manifest[name] for name in (*early, "dataset")}
    (shared / "manifest.json").write_text(json.dumps(early))
    del lines[:]
    np.testing.assert_array_equal(prepared.load(MNIST(small_mnist), lines.append).train_y, np.arange(40) % 10)
    assert lines == [], "what it wrote itself is still good"


OWN = """
from pathlib import Path
import numpy as np
from fedmpi.data import Arrays, Dataset, prepared

class Mine(Dataset):
    classes = 9

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self):
        return self.root

    def sources(self):
        return [self.root / "y.npy"]

    def read(self, progress):
        import parts.labels  # known only after the first use
        progress("decoding")
        x, y = np.ones((6, 2), np.float32), parts.labels.of(self.root)
        return Arrays(x, y, x, y)

if __name__ == "__main__":
    import sys
    from mine import Mine
    print(*prepared.load(Mine(Path(sys.argv[1])), print).train_y)
"""


def test_code_of_the_user_that_has_changed(tmp_path: Path) -> None:
    """Oracle: the labels that the module computes now, and whether they were decoded; and the refusal."""
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "parts").mkdir()
    np.save(tmp_path / "y.npy", np.arange(6))

    def decoded() -> list[str]:
        command = [sys.executable, str(tmp_path / "mine.py"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        return [line for line in (done.stdout + done.stderr).splitlines() if "prepared arrays are in" not in line]

    module = tmp_path / "parts" / "labels.py"
    module.write_text("import numpy as np\n\ndef of(root):\n    return np.load(root / 'y.npy')\n")
    assert decoded() == ["decoding", "0 1 2 3 4 5"]
    assert decoded() == ["0 1 2 3 4 5"]
    (tmp_path / "mine.py").write_text(OWN.replace("parts.labels.of(self.root)", "parts.labels.of(self.root) + 1"))
    assert decoded() == ["decoding", "1 2 3 4 5 6"]
    assert decoded() == ["1 2 3 4 5 6"]
    (tmp_path / "y.npy").unlink()
    assert decoded() == ["1 2 3 4 5 6"]
    (tmp_path / "mine.py").write_text(OWN)
    reason = (
        "was decoded by other code of mine.Mine in another way, and the files that it was decoded from are missing"
    )
    assert reason in decoded()[-1]


@pytest.mark.parametrize("name", MNIST.files)
def test_missing_published_file(small_mnist: Path, lines: list[str], name: str) -> None:
    path = small_mnist / "MNIST" / name
    path.unlink()
    with pytest.raises(BadInput) as error:
        prepared.load(MNIST(small_mnist), lines.append)
    assert str(path) in str(error.value)
    assert f"python -m fedmpi.data fetch MNIST --root {small_mnist}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage", [cut, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 999)]
)
@pytest.mark.parametrize("name", MNIST.files)
def test_damaged_published_file(small_mnist: Path, lines: list[str], damage: Any, name: str) -> None:
    path = small_mnist / "MNIST" / name
    damage(path)
    with pytest.raises(BadInput, match="is damaged") as error:
        prepared.load(MNIST(small_mnist), lines.append)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_published_file_that_differs_from_its_archive(small_mnist: Path, lines: list[str]) -> None:
    path = small_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    prepared.load(MNIST(small_mnist), lines.append)
    flip_last_byte(path)
    with pytest.raises(BadInput, match=r"train-images-idx3-ubyte is damaged .*checksum"):
        prepared.load(MNIST(small_mnist), lines.append)


def pack(path: Path, name: str) -> None:
    """Put a compressed file of this name in the file's place."""
    content = gzip.compress(path.read_bytes(), 1)
    path.unlink()
    (path.parent / name).write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: pack(path, f"{path.name}.gz"),
        lambda path: path.rename(path.with_name(path.name.replace("-idx", ".idx"))),
        lambda path: pack(path, f"{path.name.replace('-idx', '.idx')}.gz"),
        lambda path: pack(path, path.name),
        lambda path: path.rename(path.parents[1] / path.name),
        lambda path: pack(path, f"../{path.name}.gz"),
    ],
)
def test_files_as_people_have_them(small_mnist: Path, lines: list[str], change: Callable[[Path], object]) -> None:
    """Oracle: the arrays of the files as they are published; and nothing is to be downloaded."""
    expected = MNIST(small_mnist).read(lines.append)
    for path in MNIST(small_mnist).sources():
        change(path)
    arrays = prepared.load(MNIST(small_mnist), lines.append)
    assert arrays.checksum == expected.checksum
    assert expected.train_x.flags.writeable, "PyTorch warns of arrays that are not"
    assert main(["fetch", "MNIST", "--root", str(small_mnist)]) == 0
    cut(MNIST(small_mnist).sources()[2])
    with pytest.raises(BadInput, match=r"t10k-images.idx3-ubyte.* is damaged"):
        MNIST(small_mnist).read(lines.append)


def test_files_in_the_root(tmp_path: Path, lines: list[str]) -> None:
    """Oracle: the arrays of the same files in their own folder; those of another data set have the same names."""
    given = os.environ.get("FEDMPI_TEST_DATA")
    if given is None:
        pytest.skip("FEDMPI_TEST_DATA names no folder of data sets")
    for name in MNIST.files:
        (tmp_path / Path(name).name).symlink_to(Path(given, "MNIST", name))
    assert MNIST(tmp_path).read(lines.append).checksum == MNIST(Path(given)).read(lines.append).checksum
    with pytest.raises(
        BadInput, match="train-images-idx3-ubyte has another checksum than FashionMNIST's file: if it"
    ):
        FashionMNIST(tmp_path).read(lines.append)


def test_an_archive_that_is_there(tmp_path: Path, lines: list[str]) -> None:
    """Oracle: the message, which does not ask for internet access."""
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"packed")
    with pytest.raises(BadInput, match=r"data_batch_1 is missing: run .* fetch CIFAR10 .*, which unpacks .*tar.gz$"):
        prepared.load(CIFAR10(tmp_path), lines.append)


def test_damaged_cifar_file(tmp_path: Path, lines: list[str]) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in CIFAR10.files:
        (folder / name).write_bytes(b"nothing of the kind")
    with pytest.raises(BadInput, match=r"data_batch_1 is damaged .*checksum"):
        prepared.load(CIFAR10(tmp_path), lines.append)


@pytest.mark.parametrize("dataset", [MNIST, FashionMNIST, CIFAR10])
def test_published_data(dataset: type[MNIST], tmp_path: Path, lines: list[str]) -> None:
    given = os.environ.get("FEDMPI_TEST_DATA")
    if given is None:
        pytest.skip("FEDMPI_TEST_DATA names no folder of data sets")
    real, here = dataset(Path(given)), dataset(tmp_path)
    for source, link in zip(real.sources(), here.sources(), strict=True):
        if not source.exists():
            pytest.skip(f"{source} is missing")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)
    arrays = prepared.load(here, lines.append)
    start = time.process_time()
    again = open_prepared(here)
    assert time.process_time() - start < 0.05
    assert again is not None
    assert arrays.on_disk
    assert_normalised(here, arrays)
    assert len(again.test_y) == 10_000
    for part, x, y in ((True, arrays.train_x, again.train_y), (False, arrays.test_x, again.test_y)):
        published = here.published(train=part)
        for index in (0, 77, len(y) - 1):
            image, label = published[index]
            pixels = np.asarray(image)
            assert np.array_equal(x[index], pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None])
            assert y[index] == label
    verify(here)


def test_commands(small_mnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(small_mnist)]
    assert main(["check", "MNIST", *root]) == 2
    assert "no prepared arrays" in capsys.readouterr().err
    assert main(["fetch", "MNIST", *root]) == 0  # the files are there: no network needed
    assert main(["prepare", "MNIST", *root]) == 0
    assert main(["check", "MNIST", *root]) == 0
    assert "MNIST: intact" in capsys.readouterr().out
    keep_times(small_mnist / "MNIST" / prepared.FOLDER / "test_x.npy", flip_last_byte)
    assert main(["check", "MNIST", *root]) == 2
    assert "test_x.npy is damaged" in capsys.readouterr().err
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == [
        *("BreastCancer", "CIFAR10", "CIFAR100", "Diabetes", "Digits", "FEMNIST", "FashionMNIST", "ImageFolder"),
        *("MNIST", "MNISTMasks", "Sentiment140", "Shakespeare", "Subset", "Table", "TextTable", "TinyImageNet"),
        *("TweetCharacters", "Wine"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "MNIST", "--root", "nowhere"], "nowhere/MNIST/raw/train-images-idx3-ubyte is missing"),
        (["prepare", "MNISTT"], "unknown data set MNISTT: must be one of BreastCancer, CIFAR10"),
        (["prepare", "Digits"], "Digits keeps no arrays on disk: there is nothing to prepare"),
        (["check", "Table", "--target", "price"], "Table keeps no arrays on disk: there is nothing to check"),
        (["fetch"], "name"),
        (["fetch", "MNIST", "--roo", "x"], "--roo"),
        (["prepare", "MNIST", "--size", "32"], "--size"),
        (["prepare", "ImageFolder", "--size", "wide"], "--size: invalid int value"),
        (["prepare", "ImageFolder", "--size", "0"], "size = 0: must be at least 1"),
        (["fetch", "ImageFolder"], "ImageFolder has nothing to fetch"),
        (["list", "MNIST"], "unrecognized arguments: MNIST"),
        (["unpack"], "unpack"),
        ([], "command"),
    ],
)
def test_commands_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output, error = capsys.readouterr()
    assert message in error
    assert error.count("\n") == 1
    assert output == ""


def test_fetch_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/again/"])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    monkeypatch.setattr(TinyImageNet, "url", "http://127.0.0.1:9/tiny.zip")
    for name in ("MNIST", "CIFAR10", "TinyImageNet"):
        assert main(["fetch", name, "--root", str(tmp_path)]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {name} cannot be fetched into {tmp_path}: ")
        assert "refused" in line


def test_imports_are_light() -> None:
    code = (
        "import sys, fedmpi.data\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'h5py', 'jsonargparse', 'mpi4py'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "from fedmpi.data import Digits, prepared\n"
        "prepared.load(Digits(), print)\n"
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_options_on_the_command_line() -> None:
    from jsonargparse import ArgumentParser

    from fedmpi.data import Dirichlet, Partition, Permuted

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--dataset", type=Dataset, default="Digits")
    parser.add_argument("--partition", type=Partition, default="IID")
    arguments = "--dataset CIFAR100 --dataset.root there --partition Permuted --partition.over Dirichlet"
    made = parser.instantiate(parser.parse_args([*arguments.split(), "--partition.over.alpha", "0.1"]))
    assert made.dataset.root == Path("there")
    assert isinstance(made.partition, Permuted)
    assert isinstance(made.partition.over, Dirichlet)
    assert made.partition.over.alpha == 0.1
