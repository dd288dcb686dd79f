"""Whatever happens to a checkpoint or a results file, nothing that is not what was written is used.

Thousands of bits in place of some: pytest -m slow tests/experiment/test_damage.py
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedmpi import results
from fedmpi.errors import BadInput
from fedmpi.experiment.archive import Archive, Damaged
from fedmpi.experiment.checkpoint import Checkpoints
from fedmpi.experiment.command_line import parse
from fedmpi.experiment.ownership import Lock
from fedmpi.experiment.resume import find
from fedmpi.results.__main__ import main
from fedmpi.results.check import problems
from fedmpi.results.paths import checkpoint_beside, checkpoints_beside
from tests.experiment.test_checkpoint import go
from tests.results.made_runs import finished
from tests.support.experiments import Alone
from tests.support.same_bits import assert_same_bits

OPTIONS = "--clients 3 --rounds 5 --local.steps 2 --model LogisticRegression --algorithm SCAFFOLD --cohort 2"
EVERY = f"{OPTIONS} --checkpoint.every_rounds 1"
LISTED = "about.json"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was interrupted after its third round, and the whole one."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "left").mkdir()
    experiment, config = parse([*EVERY.split(), "--output", str(folder / "run.h5")])
    for outcome in experiment.outcomes(Alone(), config):
        if outcome.row["round"] == 4:
            for path in (experiment.output, *checkpoints_beside(experiment.output)):
                shutil.copy(path, folder / "left")
    return folder


@pytest.fixture
def left(broken: Path, tmp_path: Path) -> Path:
    """The results file of the interrupted run, with its checkpoints after two and three rounds."""
    for path in (broken / "left").iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "run.h5"


def after(output: Path) -> int:
    """After which round the run would go on."""
    experiment, config = parse([*EVERY.split(), "--output", str(output), "--resume"])
    checkpoints = Checkpoints(Alone(), output, experiment.checkpoint, Lock())
    place = find(experiment, config, checkpoints)
    checkpoints.close()
    assert place
    return place.round


def changed(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Write an archive anew, as any program would, with other entries."""
    with zipfile.ZipFile(path) as old:
        entries, comment = {name: old.read(name) for name in old.namelist()}, old.comment
    change(entries)
    with zipfile.ZipFile(path, "w") as new:
        new.comment = comment
        for name, content in entries.items():
            new.writestr(name, content)


def with_a_bit(content: bytes, place: int) -> bytes:
    """Other content, by one bit, counted from the start."""
    flipped = bytearray(content)
    flipped[place // 8] ^= 1 << (place % 8)
    return bytes(flipped)


def faults(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is said of a checkpoint, and what does that to it."""
    content, archive = path.read_bytes(), Archive(path)
    names = [f"{name}.npy" for name in archive.names]
    archive.zip.close()

    def rewrite(change: Callable[[dict[str, bytes]], object]) -> Callable[[], None]:
        return lambda: changed(path, change)

    def overwrite(other: bytes) -> Callable[[], int]:
        return lambda: path.write_bytes(other)

    def swap(entries: dict[str, bytes], one: str, other: str) -> None:
        entries[one], entries[other] = entries[other], entries[one]

    def later(entries: dict[str, bytes]) -> None:
        entries[LISTED] = json.dumps({**json.loads(entries[LISTED]), "round": 4}).encode()

    for number, name in enumerate(names):
        with zipfile.ZipFile(path) as found:
            info = found.getinfo(name)
        bit = 8 * (info.header_offset + 30 + len(name) + len(info.extra) + 60) + number % 8
        yield f"its entry {name} is damaged", overwrite(with_a_bit(content, bit))
        yield f"its entry {name} is missing", rewrite(lambda entries, name=name: entries.pop(name))  # type: ignore[misc]
        cut = rewrite(lambda entries, name=name: entries.update({name: entries[name][:-1]}))  # type: ignore[misc]
        yield f"its entry {name} is not what was written", cut
        other = names[number - 1]
        first = names[min(number, names.index(other))]
        swapped = rewrite(lambda entries, one=name, other=other: swap(entries, one, other))  # type: ignore[misc]
        yield f"its entry {first} is not what was written", swapped
    yield f"its {LISTED} is not what was written", rewrite(later)
    yield f"it has no {LISTED}", rewrite(lambda entries: entries.pop(LISTED))
    yield "its entry more.npy was added", rewrite(lambda entries: entries.update({"more.npy": b""}))
    yield f"its {LISTED} is not what was written", overwrite(content[:-1])  # of its checksum, which comes last
    for length in (0, 1, len(content) // 2, len(content) - 80):
        yield "it is no archive, or ends early", overwrite(content[:length])


def test_damage_to_every_part_of_a_checkpoint(broken: Path, left: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is named, and the one before is used; oracle: the run that nothing has come between."""
    newest, before = checkpoint_beside(left), checkpoint_beside(left, 1)
    good, count = newest.read_bytes(), 0
    assert after(left) == 3
    for said, damage in faults(newest):
        damage()
        capfd.readouterr()
        assert after(left) == 2
        assert capfd.readouterr().out == (
            f"{newest} is damaged ({said}); resuming from {before}\n{left}: resuming after round 2\n"
        )
        newest.write_bytes(good)
        count += 1
    assert count > 40
    changed(newest, lambda entries: entries.update({LISTED: entries[LISTED].replace(b'"round": 3', b'"round": 2')}))
    shutil.copytree(left.parent, left.parent / "both")
    experiment, config = parse([*EVERY.split(), "--output", str(left), "--resume"])
    for outcome in experiment.outcomes(Alone(), config):
        if outcome.row["round"] == 4:
            rounds = [Archive(path).about["round"] for path in checkpoints_beside(left)]
            assert rounds == [3, 2], "what was damaged has not come in the place of what was not"
    assert_same_bits(results.open(left), results.open(broken / "run.h5"))
    both = left.parent / "both" / "run.h5"
    checkpoint_beside(both, 1).write_bytes(b"")
    with pytest.raises(BadInput) as caught:
        go(EVERY, both, "--resume")
    assert str(caught.value) == (
        f"--resume: {checkpoint_beside(both)} is damaged (its {LISTED} is not what was written),"
        f" {checkpoint_beside(both, 1)} is damaged (it is no archive, or ends early);"
        " --overwrite instead of --resume starts again"
    )


def test_killed_between_two_names(broken: Path, left: Path) -> None:
    """The last checkpoint has been moved, and the new one is not in its place."""
    checkpoint_beside(left).replace(checkpoint_beside(left, 1))
    assert after(left) == 3
    assert results.open(left).status == "running"
    assert go(EVERY, left, "--resume") == 0
    assert_same_bits(results.open(left), results.open(broken / "run.h5"))


@pytest.mark.parametrize(("copies", "kept"), [(1, [5]), (2, [5, 4]), (3, [5, 4, 3]), (9, [5, 4, 3, 2, 1])])
def test_how_many_are_kept(copies: int, kept: list[int], left: Path) -> None:
    """Of a new run; and of one that goes on, which has had two."""
    options = f"{EVERY} --checkpoint.keep true --checkpoint.copies {copies}"
    assert go(options, left, "--resume") == 0
    assert [Archive(path).about["round"] for path in checkpoints_beside(left)] == kept[: 2 + 2]
    assert go(options, left, "--overwrite") == 0
    assert [Archive(path).about["round"] for path in checkpoints_beside(left)] == kept
    assert len(list(left.parent.iterdir())) == 1 + len(kept)


def contents(path: Path) -> dict[str, Any]:
    """All that a results file has."""
    found: dict[str, Any] = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found.update({f"{name} {key}": value for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path, "r", locking=False) as file:
        add("/", file)
        file.visititems(add)
    return {name: (np.asarray(value).dtype, np.asarray(value).tolist()) for name, value in found.items()}


@pytest.mark.parametrize("bits", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_one_bit_of_a_results_file(bits: int, tmp_path: Path) -> None:
    """Each that changes what is read: h5py refuses to read it, or `results check` says so. One in every dataset."""
    path = finished(tmp_path / "run.h5", rounds=3)
    content, good, rng, counted = path.read_bytes(), str(contents(path)), np.random.default_rng(0), [0, 0]
    places = set(rng.integers(8 * len(content), size=bits).tolist())
    with h5py.File(path) as file:
        names: list[str] = []
        file.visit(names.append)
        for dataset in (file[name] for name in names if isinstance(file[name], h5py.Dataset)):
            assert dataset.fletcher32 or dataset.dtype == object
            begin = dataset.id.get_chunk_info(0).byte_offset if dataset.chunks else dataset.id.get_offset()
            places.add(8 * begin + int(rng.integers(64)))
    for place in places:
        path.write_bytes(with_a_bit(content, place))
        said: list[str] = []
        with suppress(OSError, KeyError, RuntimeError, UnicodeError):
            if str(contents(path)) == good:
                continue
            counted[0] += 1
        try:
            said = problems(path)
        except BadInput as error:
            said = [str(error)]
        counted[1] += 1
        assert said, f"bit {place}"
    assert counted[1] > len(places) / 2
    assert counted[0] < counted[1] / 5


def test_the_dataset_is_named(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the check, and by --resume, which changes nothing."""
    content = left.read_bytes()
    with h5py.File(left) as file:
        begin = file["clients/loss"].id.get_chunk_info(0).byte_offset
    left.write_bytes(with_a_bit(content, 8 * begin + 3))
    assert main(["check", str(left)]) == 1
    assert capsys.readouterr().out == f"{left}: /clients/loss: is damaged\n"
    with pytest.raises(BadInput) as caught:
        go(EVERY, left, "--resume")
    assert str(caught.value) == f"--resume: {left}: /clients/loss: is damaged"
    assert left.read_bytes() == with_a_bit(content, 8 * begin + 3)
    assert after_writing_back(left, content) == 3


def after_writing_back(output: Path, content: bytes) -> int:
    output.write_bytes(content)
    return after(output)


@pytest.mark.parametrize("bits", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_one_bit_of_a_checkpoint(bits: int, left: Path) -> None:
    """Each that changes what is read is noticed."""
    path = checkpoint_beside(left)
    content = path.read_bytes()

    def read() -> dict[str, Any]:
        archive = Archive(path)
        with archive.zip:
            return {"about": archive.about, **{name: archive.read(name).tobytes() for name in archive.names}}

    good, noticed = read(), 0
    for place in np.random.default_rng(0).integers(8 * len(content), size=bits).tolist():
        path.write_bytes(with_a_bit(content, place))
        try:
            assert read() == good, f"bit {place}"
        except Damaged:
            noticed += 1
    assert noticed > bits / 2
