"""The checksums of the data in the results file."""

from __future__ import annotations

from pathlib import Path

from fedmpi.algorithms.feddf import FedDF
from fedmpi.data import Digits
from fedmpi.data.subset import Subset
from tests.support.experiments import read, run


def test_data_and_proxy_are_told_apart(tmp_path: Path) -> None:
    """Oracle: the checksums of what the data sets read."""
    other = Subset(samples=60, test_samples=50)
    method = FedDF(proxy=other, generator_steps=1, student_steps=1)
    made = run(tmp_path / "x.h5", method, evaluate_every=0)
    assert made.attributes["data_sha256"] == read(Digits()).checksum
    assert made.attributes["proxy_sha256"] == read(other).checksum
    assert read(other).checksum != read(Digits()).checksum
