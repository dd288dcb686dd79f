"""What a server does beside averaging, with the help of all ranks: images from a generator, training in one place.

Nothing depends on the number of ranks. Images are made in blocks with random numbers of their own, and every network
is trained on one rank, several at the same time. (A single network is not spread: each step would wait for an exact
sum of all its gradients over the ranks, and batch normalisation over a part of a batch is another method.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness
from fedmpi.mpi.shared import assemble_shared
from fedmpi.mpi.world import World
from fedmpi.training.central import CentralTraining
from fedmpi.training.flat import FlatModel, Net

# Samples that a generator makes from one stream of random numbers.
MADE_AT_ONCE = 1000

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass
class Lesson:
    """A network that learns from samples at the server.

    Attributes:
        weights: [P] of the server, from which it starts; then what it has learnt.
        epochs: how many.
        freezes: whether it is in evaluation mode from the second epoch on, in which it learns as well, but normalises
            by its running statistics and drops nothing out.
        loss: the mean of the last epoch, on every rank.
    """

    weights: Tensor
    epochs: int
    freezes: bool = False
    loss: float = 0.0


@torch.inference_mode()
def sample(
    world: World,
    net: Net,
    labels: Labels,
    shape: tuple[int, ...],
    noise: int,
    finish: Callable[[Tensor], Tensor],
    device: torch.device,
    seed: int,
) -> Images:
    """[n, C, H, W] images of these labels [n]: each rank that trains makes some, and all have all of them.

    Args:
        net: the generator.
        shape: of an image.
        noise: length of the vectors that it takes beside the labels.
        finish: what becomes of the images [B, C, H, W] that it makes, on the scale 0..1.
        seed: of the noise.
    """

    def fill(images: Images) -> None:
        blocks = range(-(-len(labels) // MADE_AT_ONCE))
        for block in blocks[world.workers.index(world.rank) :: len(world.workers)] if world.is_worker else ():
            some = slice(block * MADE_AT_ONCE, (block + 1) * MADE_AT_ONCE)
            asked = torch.from_numpy(labels[some]).to(device)
            stream = randomness.stream(seed, "generator's noise", client=block)
            drawn = torch.from_numpy(stream.standard_normal((len(asked), noise), np.float32)).to(device)
            randomness.seed_globals(randomness.key(seed, "generator's own draws", client=block))
            images[some] = (255 * finish(net.run("", drawn, asked))).round().to(torch.uint8).cpu().numpy()

    return assemble_shared(world, (len(labels), *shape), fill)


def spread(
    world: World, images: Images | None, labels: Labels | None, shape: tuple[int, ...]
) -> tuple[Images, Labels]:
    """Rank 0's images and labels on every rank; those of a node share one copy of the images."""

    def fill(whole: Images) -> None:
        if images is not None:
            whole[...] = images

    everywhere = world.from_server(labels)
    assert everywhere is not None
    return assemble_shared(world, (len(everywhere), *shape), fill), everywhere


def teach(
    world: World,
    lessons: Sequence[Lesson],
    starts: Sequence[Tensor],
    make: Callable[[FlatModel, int], CentralTraining],
    build: Callable[[int], FlatModel],
) -> Iterator[int]:
    """Train networks that have nothing to do with each other; gives the number of each epoch when it is over.

    Args:
        starts: the lessons' weights [P], on every rank.
        make: the training of a network with such weights, given the number of the lesson.
        build: a network, whatever its weights.
    """
    ranks = [world.workers[number % len(world.workers)] for number in range(len(lessons))]
    mine: dict[int, CentralTraining] = {}
    for number, (rank, start) in enumerate(zip(ranks, starts, strict=True)):
        if rank == world.rank:
            with randomness.globals_kept():  # other ranks build none
                model = build(0)
            model.load(start)
            mine[number] = make(model, number)
    for epoch in range(1, max((lesson.epochs for lesson in lessons), default=0) + 1):
        world.begin_round()  # what was broadcast before is no longer needed
        losses = np.zeros(len(lessons))
        for number, training in mine.items():
            if epoch <= lessons[number].epochs:
                losses[number] = training.epoch(epoch, not lessons[number].freezes or epoch == 1)
        world.sum(losses)
        for number, lesson in enumerate(lessons):
            if epoch <= lesson.epochs:
                lesson.loss = float(losses[number])
                lesson.weights = _bring(world, ranks[number], mine.get(number), lesson.weights)
        yield epoch


def _bring(world: World, rank: int, training: CentralTraining | None, like: Tensor) -> Tensor:
    """[P] at the server, on the meta device elsewhere, from the rank that has it."""
    weights = training.model.weights[0].to("cpu", copy=True) if training else torch.empty(like.shape)
    if rank != 0 and world.is_server:
        world.exchange([], [(rank, weights.numpy())])
    elif rank != 0 and training:
        world.exchange([(0, weights.numpy())], [])
    return weights if world.is_server else weights.to("meta")
