"""Methods equal the transcriptions of their papers' pseudo-code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studies.parity import cases, compared


@pytest.mark.parametrize("name", cases())
def test_a_method_is_its_papers(name: str, tmp_path: Path) -> None:
    """Oracle: a few lines in double precision; 1e-5, of changes that are far larger, also beside FedAvg's."""
    found = compared(cases()[name], tmp_path)
    assert np.abs(found.ours - found.start).max() > 0.1
    if name != "FedAvg":
        assert np.abs(found.ours - found.plain).max() > 1e-3
    np.testing.assert_allclose(found.ours, found.theirs, rtol=0, atol=1e-5)
