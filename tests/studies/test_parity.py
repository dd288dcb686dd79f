"""Methods equal the transcriptions of their papers' pseudo-code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studies.parity import cases, compared
from studies.parity_peers import METHODS, PACKAGES, PEERS


@pytest.mark.parametrize("name", cases())
def test_a_method_is_its_papers(name: str, tmp_path: Path) -> None:
    """Oracle: a few lines in double precision; 1e-5, of changes that are far larger, also from FedAvg's."""
    found = compared(cases()[name], tmp_path)
    assert np.abs(found.ours - found.problem.start).max() > 0.1
    if name != "FedAvg":
        assert np.abs(found.ours - found.plain).max() > 1e-3
    np.testing.assert_allclose(found.ours, found.theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_that_of_another_simulator(peer: str, method: str, tmp_path: Path) -> None:
    """Oracle: the weights of Flower's and pfl-research's own, where they are installed."""
    pytest.importorskip(PACKAGES[peer])
    found = compared(cases()[method], tmp_path)
    np.testing.assert_allclose(found.ours, PEERS[peer](found.problem, METHODS[method]), rtol=0, atol=1e-5)
