"""What clients keep takes the memory that it needs, and no more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fedmpi.experiment.command_line import parse
from fedmpi.federation.client_state import ClientState
from tests.support.experiments import CPU, Alone, block

CLIENTS, SIZE = 400, 100_000


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory() -> None:
    """Oracle: the vectors' bytes; a tenth more is allowed. Blocks come and go between them, as in training."""
    warm, state = (ClientState(torch.zeros(SIZE), CPU) for _ in range(2))
    warm[block(0, 1, 2, 3)] = warm[block(0, 1, 2, 3)] + 1  # what PyTorch needs for itself
    before = resident()
    for visit in range(3):
        for first in range(0, CLIENTS, 4):
            some = block(*range(first, first + 4))
            assert (state[some] == visit).all()
            state[some] = state[some] + 1
    assert resident() - before <= 1.1 * CLIENTS * SIZE * 4


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_over_rounds(tmp_path: Path) -> None:
    """It stays as it is once all clients have taken part, but for the rows of the results: 2 % in 900 rounds."""
    options = (
        "--clients 100 --cohort 20 --local.steps 1 --model LogisticRegression --algorithm SCAFFOLD --rounds 1000"
    )
    arguments = [*options.split(), "--evaluate_every", "0", "--checkpoint.every_rounds", "50"]
    experiment, config = parse([*arguments, "--output", str(tmp_path / "run.h5")])
    measured = [resident() for outcome in experiment.outcomes(Alone(), config) if outcome.row["round"] % 100 == 0]
    assert len(measured) == 10
    assert measured[-1] <= 1.02 * measured[0]


def test_rows_are_copies() -> None:
    """Oracle: by hand."""
    state, written = ClientState(torch.full((17,), 5.0), CPU), torch.arange(34.0).view(2, 17)
    state[block(3, 8)] = written
    kept = written.clone()
    written.zero_()
    assert torch.equal(state[block(8, 3)], kept.flip(0))
    state[block(8)].zero_()
    assert torch.equal(state[block(8)], kept[1:])
    assert torch.equal(state[block(0)], torch.full((1, 17), 5.0)), "it never wrote"
