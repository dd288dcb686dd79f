"""Two experiments in one job, a round of each in turn, so that both see nearly the same machine."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World

if TYPE_CHECKING:
    from fedmpi.experiment.experiment import Experiment
    from fedmpi.federation.ledger import Outcome


def pairs_of_rounds(
    world: World, ours: str, reference: str, pairs: int, watch: Callable[[Experiment], None] | None = None
) -> Iterator[tuple[Outcome, Outcome]]:
    """What a round of the first experiment and one of the second came to; a collective.

    The first pair warms up, and is left out. What fedmpi says of its rounds is not printed.

    Args:
        ours: options of the first experiment, without its rounds, evaluation and output.
        reference: likewise, of the second.
        pairs: how many.
        watch: is given each experiment before it starts, the first one first.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):

        def start(options: str, name: str) -> Iterator[Outcome]:
            words = shlex.split(f"{options} --evaluate_every 0 --rounds {pairs + 1} --output {folder}/{name}.h5")
            experiment, config = parse(words, speaks=False)
            if watch:
                watch(experiment)
            return experiment.outcomes(world, config)

        both = zip(start(ours, "ours"), start(reference, "reference"), strict=True)
        yield from islice(both, 1, None)
