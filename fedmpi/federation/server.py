"""Work of the server in addition to averaging, with the help of all ranks: training, distillation, generated images.

No result depends on the number of ranks. Images are generated in blocks, which have separate random numbers. Each
network is trained on one rank, several networks at the same time. (The training of one network is not distributed:
each step would wait for an exact sum of its gradients over the ranks, and batch normalisation over a part of a batch
would be another method.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness
from fedmpi.federation.context import Context
from fedmpi.federation.local import Local
from fedmpi.federation.mean import total
from fedmpi.federation.observers import KeptModels
from fedmpi.mpi.shared import assemble_shared
from fedmpi.training.central import CentralTraining
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.settings import LocalTraining

# Samples that a generator makes from one stream of random numbers.
MADE_AT_ONCE = 1000

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass
class Lesson:
    """A network that is trained on samples at the server.

    Attributes:
        weights: [P] at the server: the initial weights, and then the trained ones.
        epochs: number of epochs.
        freezes: whether it is in evaluation mode from the second epoch on. It still learns, but uses running
            statistics and no dropout.
        loss: mean loss of the last epoch, on every rank.
    """

    weights: Tensor
    epochs: int
    freezes: bool = False
    loss: float = 0.0


class Server:
    """The work of the server.

    Args:
        context: of the federation.
        local: the work of clients; the server shares its memory.

    Attributes:
        samples: number of unlabelled samples at the server.
    """

    def __init__(self, context: Context, local: Local) -> None:
        self.samples = len(context.proxy.y) if context.proxy else 0
        self._context = context
        self._local = local

    # Training in one place

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A context for the server's training: it measures the time, and seeds random layers for this round."""
        context = self._context
        key = randomness.key(context.seed, "training at the server", context.round.number)
        with context.doing("training at the server"), context.round.ledger.serving(), randomness.globals_kept():
            randomness.seed_globals(key)
            yield

    def build(self, make: Callable[[], nn.Module], purpose: str) -> FlatModel:
        """A new network with weights drawn for this purpose and round, the same on every rank."""
        key = randomness.key(self._context.seed, randomness.of_method(purpose), self._context.round.number)
        randomness.seed_globals(key)
        return FlatModel(make(), self._context.device)

    def model(self, weights: Tensor) -> FlatModel | None:
        """The clients' network with the server's `weights` [P], for training; None on the other ranks.

        It is valid until the next call of `train`, which uses the same memory.
        """
        self._local.forget_trained()
        if not self._context.world.is_server:
            return None
        model = self._context.trainer.model
        model.select((slice(0, model.layout.parameters),))
        model.load(weights)
        return model

    def batch(self, index: NDArray[np.int64]) -> Tensor:
        """[B, ...] the server's samples with these numbers, as networks take them.

        On every rank, without communication.
        """
        assert self._context.proxy is not None
        return self._context.proxy.batch(index).x

    # The clients' models as teachers

    def keep_models(self) -> None:
        """For the rest of this round, keep the model of each client with weight on the rank that trained it.

        Refused under `--privacy`.
        """
        self._context.refuse_if_private("fed.at_server.keep_models")
        self._context.round.observers.append(KeptModels())

    @property
    def teachers(self) -> dict[int, Tensor]:
        """Client -> [P], the models kept on this rank."""
        kept = [observer for observer in self._context.round.observers if isinstance(observer, KeptModels)]
        assert kept, "no models were kept in this round"
        return kept[0].models

    def ask_models(
        self,
        respond: Callable[..., tuple[Tensor, ...]],
        told: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
        only: int | None = None,
    ) -> list[Tensor]:
        """Run `respond` on every kept model, and sum the answers exactly.

        The models stay on their ranks; batches and sums are sent. The sums are exact, so they are bit-identical for
        any placement.

        Args:
            respond: (network, client, *told) -> tensors of the given shapes. The network is the client's, in
                evaluation mode, and no gradient flows into its weights.
            told: tensors of the server, which all ranks get; on the other ranks any tensors of the same shapes and
                types.
            only: the only client that is asked; None: all.

        Returns: One float32 sum per shape, on every rank.
        """
        context, teachers = self._context, self.teachers
        with context.doing("asking the clients' models"):
            arrived = [self._tell(tensor) for tensor in told]
            with context.round.ledger.timed("teacher_seconds"):
                net = Net(context.trainer.model)
                answers = [
                    [part.detach().cpu() for part in respond(net.at(weights), client, *arrived)]
                    for client, weights in teachers.items()
                    if only in (None, client)
                ]
            return [part.float().to(context.device) for part in total(context.world, answers, shapes)]

    def _tell(self, tensor: Tensor) -> Tensor:
        memory = torch.from_numpy(self._context.world.tell(tensor.detach().contiguous().cpu().numpy()))
        # Of its own, and laid out alike on every rank: the bits of convolutions depend on it.
        order = torch.channels_last if memory.dim() == 4 else torch.contiguous_format
        return memory.clone(memory_format=order).to(self._context.device)

    # Images

    def generate(self, weights: Tensor, labels: Labels, noise: int, finish: Callable[[Tensor], Tensor]) -> Images:
        """[n, C, H, W] images for labels [n] from this federation's network, a generator; on every rank.

        The ranks that train share the work. The result is read-only. The same labels always give the same images.

        Args:
            weights: of the server.
            noise: length of the noise vectors.
            finish: function of the generated images [B, C, H, W] on the scale 0..1.
        """
        context, world, seed = self._context, self._context.world, self._context.seed
        net = Net(context.trainer.model).at(context.distribute(weights))

        @torch.inference_mode()
        def fill(images: Images) -> None:
            blocks = range(-(-len(labels) // MADE_AT_ONCE))
            for block in blocks[world.workers.index(world.rank) :: len(world.workers)] if world.is_worker else ():
                some = slice(block * MADE_AT_ONCE, (block + 1) * MADE_AT_ONCE)
                asked = torch.from_numpy(labels[some]).to(context.device)
                stream = randomness.stream(seed, "generator's noise", client=block)
                drawn = torch.from_numpy(stream.standard_normal((len(asked), noise), np.float32)).to(context.device)
                randomness.seed_globals(randomness.key(seed, "generator's own draws", client=block))
                images[some] = (255 * finish(net.run("", drawn, asked))).round().to(torch.uint8).cpu().numpy()

        with context.doing("sampling"):
            images = assemble_shared(world, (len(labels), *context.train.shape), fill)
        context.reseed()
        return images

    def spread(self, images: Images | None, labels: Labels | None) -> tuple[Images, Labels]:
        """The server's images [n, C, H, W] and labels [n] on every rank. The ranks of a node share one copy."""
        world = self._context.world

        def fill(whole: Images) -> None:
            if images is not None:
                whole[...] = images

        with self._context.doing("spreading images"):
            everywhere = world.from_server(labels)
            assert everywhere is not None
            return assemble_shared(world, (len(everywhere), *self._context.train.shape), fill), everywhere

    def teach(
        self, lessons: Sequence[Lesson], images: Images, labels: Labels, settings: LocalTraining
    ) -> Iterator[int]:
        """Train networks like the federation's on images [n, C, H, W] and labels [n], which every rank has.

        The networks are independent. Yields the number of each finished epoch. To be called between rounds.

        Args:
            settings: batch size and learning rate of Adam.
        """
        context, world = self._context, self._context.world
        starts = [context.distribute(lesson.weights) for lesson in lessons]
        with context.doing("training at the server"):
            ranks = [world.workers[number % len(world.workers)] for number in range(len(lessons))]
            mine: dict[int, CentralTraining] = {}
            for number, (rank, start) in enumerate(zip(ranks, starts, strict=True)):
                if rank == world.rank:
                    with randomness.globals_kept():  # other ranks build none
                        model = context.build(0)
                    model.load(start)
                    seed = randomness.key(context.seed, "lesson", client=number)
                    mine[number] = CentralTraining(model, context.train.like(images, labels), settings, seed)
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
                        lesson.weights = self._bring(ranks[number], mine.get(number), lesson.weights)
                context.when_idle()
                context.pause()
                yield epoch

    def _bring(self, rank: int, training: CentralTraining | None, like: Tensor) -> Tensor:
        """[P] at the server (a meta tensor on other ranks), from the rank that has it."""
        world = self._context.world
        weights = training.model.weights[0].to("cpu", copy=True) if training else torch.empty(like.shape)
        if rank != 0 and world.is_server:
            world.exchange([], [(rank, weights.numpy())])
        elif rank != 0 and training:
            world.exchange([(0, weights.numpy())], [])
        return weights if world.is_server else weights.to("meta")
