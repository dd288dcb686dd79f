"""The measurements for a machine with a GPU run to their end without one."""

from __future__ import annotations

from math import isnan
from pathlib import Path

import pytest

from benchmarks.gpu import Course

pytestmark = pytest.mark.slow


def test_to_the_end_on_a_cpu(tmp_path: Path) -> None:
    found = list(Course(5, tmp_path).findings())
    assert [finding.what for finding in found if "Error" in finding.what or "BadInput" in finding.what] == []
    same = [finding for finding in found if "same sha256" in finding.what]
    assert [finding.ratio for finding in same] == [1, 1, 1], "the same bits again, and on 3 and 5 ranks"
    assert all(finding.ratio > 1 for finding in found if "distance of weights" in finding.what)
    assert sum("side by side, compiled" in finding.what for finding in found) == 1
    assert sum("compared with the target" in finding.what for finding in found) == 4
    assert not any(isnan(finding.found) for finding in found)


def test_the_time_is_up(tmp_path: Path) -> None:
    """It ends, and what was measured is kept."""
    found = list(Course(0.02, tmp_path).findings())
    assert {finding.unit for finding in found} <= {"", "methods"}
